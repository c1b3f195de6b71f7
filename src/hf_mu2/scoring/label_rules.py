"""The rule table of the finding labeler: how each of the 18 labels is worded, and how a mention is negated or hedged.

The conventions are those of the CT-RATE annotation, not of a textbook: "Lung opacity" is ground glass and what is
worded as an opacity, not an infiltrate or a ground-glass nodule; "Lymphadenopathy" is any reported node, millimetric
and calcified ones included; fibroatelectasis is "Pulmonary fibrotic sequela"; calcification of coronary arteries
alone is not "Arterial wall calcification"; bronchial-wall thickening alone is not "Peribronchial thickening"; crazy
paving alone is not "Interlobular septal thickening".

Every pattern is a tuple of alternatives over lower-case text.
"""

from __future__ import annotations

from dataclasses import dataclass

Patterns = tuple[str, ...]


@dataclass(frozen=True)
class Rule:
    """How one label is worded.

    Args:
        label (`str`): The label.
        mention (`tuple[str, ...]`): What counts as a mention; matched within a sentence.
        require (`tuple[str, ...]`): One of these must occur in the clause of the mention, if any are given.
        forbid (`tuple[str, ...]`): None of these may occur in the clause of the mention.
        forbid_in_item (`tuple[str, ...]`): None of these may occur between the commas or "and"s around the mention.
    """

    label: str
    mention: Patterns
    require: Patterns = ()
    forbid: Patterns = ()
    forbid_in_item: Patterns = ()


# What may stand between "pleural" or "pericardial" and "effusion".
_LINK = (
    r"(?:[\s,/–-]+(?:or|and|nor|minimal|mild|moderate|severe|massive|small|large|trace|free|loculated|thickening|"
    r"pleural|pericardial|left|right|bilateral|space|amount|of|the|in|both|is|layering|circumferential)\b){0,5}[\s,/–-]+"
)
_PLAQUE = (
    r"\b(?:non-?)?calcif\w+",
    r"\bath?er[ao]\w*",
    r"\batrom\w+",
    r"\bplaques?\b",
    r"\barteriosclero\w+",
)
_CORONARY = r"coronar|\blad\b|left anterior descending|circumflex|\brca\b|\bcx\b"
_NO_VESSEL_WALL = (
    r"pleura|lymph|nodul|granulom|thyroid|liver|hepatic|kidney|renal|spleen|splenic|breast|valv|annul|pericard|"
    r"trache|bronch|gallbladder|prostat|pancrea|\bdis[ck]|ligament|cartilage|mass\b|lesion|cyst"
)

RULES: tuple[Rule, ...] = (
    Rule(
        "Medical material",
        mention=(
            r"\bcatheters?\b",
            r"\btubes?\b",
            r"\bcannula\w*",
            r"\bpace ?makers?\b",
            r"\bstent\w*",
            r"\bprosthe\w+",
            r"\bvalve replace\w+",
            r"\bport (?:chamber|is|was)\b",
            r"\b(?:chemo|chest) ?port\b",
            r"\bport-?a-?cath\w*",
            r"\bsutures?\b",
            r"\b(?:metal\w*|surgical|sternal|sternotomy|cerclage) (?:wires?|clips?|material\w*|densit\w+|artifact\w*|stapl\w+)",
            r"\bclips?\b",
            r"\bsternotomy\b",
            r"\bmedical (?:material|device|hardware)s?\b",
            r"\b(?:indwelling|implanted|implantable|cardiac|support|foreign) (?:devices?|bod(?:y|ies))\b",
            r"\bhardware\b",
            r"\bin (?:situ|place)\b",
            r"\bscrews?\b",
            r"\bfixat(?:or|ion)\w*",
            r"\belectrodes?\b",
            r"\bdefibrillator\w*",
            r"\bpeg\b",
            r"\b(?:breast|silicone|dental|cochlear) implants?\b",
            r"\bfilter\b",
            r"\bcoils?\b",
            r"\bintubat\w+",
            r"\btracheostomy\b",
        ),
        forbid=(r"calcified tube",),
    ),
    Rule(
        "Arterial wall calcification",
        mention=_PLAQUE,
        require=(
            r"aort|arcus|\barch\b|carotid|subclav|iliac|brachioceph",
            r"(?<!coronary )(?<!coronary - )\bvascular|\bvessel",
            r"(?<!coronary )(?<!descending )(?<!circumflex )(?<!coronary, )\barter(?:y|ies|ial)\b(?<!coronary artery)",
            rf"^(?!.*(?:{_CORONARY})).*(?:ath?ero|wall calcif)",
        ),
        forbid_in_item=(_NO_VESSEL_WALL,),
    ),
    Rule(
        "Cardiomegaly",
        mention=(
            r"\bcardiomegal\w*",
            r"\b(?:heart|cardiac|cardiothoracic|cardio-thoracic|ctr|cti)\b(?! (?:valve|cavit|pacemaker))"
            r"(?:(?!pericard|normal|natural)[^.;?]){0,50}?\b(?:enlarg\w+|increas\w+|larger|large)\b",
            r"\b(?:enlarg\w+|increas\w+) (?:in |of )?(?:the )?(?:heart|cardi\w+)",
        ),
    ),
    Rule(
        "Pericardial effusion",
        mention=(
            rf"\bpericardi\w+{_LINK}(?:effusion|fluid)\w*",
            r"\b(?:effusion|fluid)\w*(?:(?!pleur)[^.;?]){0,100}?\bpericardi(?!ac recess|al recess)\w+",
            r"\bpericardium[^.;?]{0,30}\bfluid",
        ),
    ),
    Rule("Coronary artery wall calcification", mention=_PLAQUE, require=(_CORONARY,)),
    Rule(
        "Hiatal hernia",
        mention=(
            r"\bhiat(?:al|us) herni\w*",
            r"\besophageal herni\w*",
            r"\bherni\w+[^.;]{0,60}\bhiatus",
            r"\bhiatus[^.;]{0,60}\bherni\w+",
            r"\bherniated stomach",
            r"\bs[il]+ding (?:\w+ ){0,3}herni\w*",
            r"\bdiaphragmatic hernia\w*(?=[^.;]*\besophag)",
        ),
    ),
    Rule(
        "Lymphadenopathy",
        mention=(
            r"\blymph(?:atic)?[ -]?nod\w+(?! stations?)",
            r"\blymphadeno\w+",
            r"\badenopath\w+",
            r"\blaps?\b",
            r"\blymph adenopath\w+",
            r"\blymphadenomegal\w*",
        ),
        forbid_in_item=(
            r"intrapulmonary|intraparenchymal|subpleural|fissur|intramam|subcutan|spleen hilum|is suboptimal",
        ),
    ),
    Rule(
        "Emphysema",
        mention=(r"\b\w*emphy?[sz]e\w+", r"\bbull(?:a|ae|as|ous)\b", r"\bblebs?\b"),
        forbid_in_item=(r"subcutan|skin|axilla|pectoral|soft tissue|fatty planes|muscle",),
    ),
    Rule(
        "Atelectasis",
        mention=(
            r"(?<!fibro )(?<!fibro-)(?<!fibrotic )\bat[el]{1,4}[a-z]*t(?:a|i)\w+",
            r"\bcollaps\w+",
        ),
        forbid_in_item=(r"vertebra|fractur|\bvena\b|\bvein|trachea|esophag",),
    ),
    Rule(
        "Lung nodule",
        mention=(
            r"(?<!lymph )(?<!lymph-)\b(?:micro|macro)?nodules?\b",
            r"\bnodular lesions?\b",
        ),
        forbid_in_item=(
            r"thyroid|liver|hepatic|adrenal|breast|kidney|renal|spleen|pancrea|skin|subcutan|mesenter|oment|periton|"
            r"schmorl|hypodense|axilla|adipose|fatty|(?<!sub)pleural nodul|in the pleura",
        ),
    ),
    Rule(
        "Lung opacity",
        mention=(
            r"\bground[ -]?glass\w*(?! (?:\w+ ){0,2}nodul)",
            r"\bfrosted[ -]?glass\w*(?! nodul)",
            r"(?<!acinar )(?<!nodular )\bopaci\w+",
            r"\bggos?\b",
            # Written as densities, yet annotated as opacities.
            r"\bdep[ae]nd[ae]nt(?:[ -]like)? (?:\w+ )?(?:densit\w+|increases? in density)",
            r"\blinear (?:(?!pleuro|sequel|fibro)\w+ ){0,3}densit\w+",
            r"\bdensit(?:y|ies)(?: increases?)? (?:consistent|compatible) with (?:\w+ ){0,3}atelec\w+",
            r"\b(?:alveolar|subpleural) densit\w+",
            r"\bnodular density increases?\b",
        ),
    ),
    Rule(
        "Pulmonary fibrotic sequela",
        mention=(
            r"\bsequel\w*\b(?! (?:\w+ ){0,2}(?:calcif|lymph|nodul|treat|fractur|rib))",
            r"\b\w*fibro(?!ade|us|mu|mya|sarc|mat|glan|cal|lip|cys)\w+(?! nodul)",
            r"\bfibro-?\s?atele\w+",
            r"\b(?:sub|pleuro?|pleura)?(?:pleural|parenchymal)? ?\bbands\b",
            r"\b(?:parenchymal|pleuroparenchymal|subpleural) band",
            r"\bscar(?:s|red|ring)?\b",
            r"\bpleuroparenchymal recess\w+",
        ),
        forbid_in_item=(
            r"kidney|renal|fractur|\bbones?\b|\bribs?\b|vertebra|breast|liver|hepatic|spleen|splenic|postoperative sequel|"
            r"lymph node",
        ),
    ),
    Rule(
        "Pleural effusion",
        mention=(
            rf"\bpleur\w+{_LINK}(?:effusion|fluid)\w*",
            r"\b(?:effusion|fluid)\w*(?:(?!pericard)[^.;?]){0,70}?\b(?:pleur\w+|hemithora\w+)",
            r"\bhydro(?:pneumo)?thora\w+",
            r"\bhydropn\w+",
            r"(?<!pericardial )(?<!pericardial minimal )(?<!thickening-)\beffusions?\b",
        ),
        forbid=(
            r"^(?!.*(?:pleur|thora|lung)).*(?:pericard|joint|kidney|renal|nephri|abdom|pelvi|periton|hepat|spleen|splen)",
        ),
    ),
    Rule("Mosaic attenuation pattern", mention=(r"\bmosaic\w*",)),
    Rule(
        "Peribronchial thickening",
        mention=(
            r"\bperi-?bronch\w*(?:[\s,-]+(?!and|lymph|ground|nodul|interlob)[a-z]+){0,4}?[\s-]+(?:thick\w+|cuffing)",
            r"\bperi-?bronch\w*[\s-]+(?:\w+ )?densit\w+",
            r"\bthick\w+(?:(?!ground)[^.;?]){0,80}?\bperi-?bronch\w+(?! (?:lymph|buds?|distrib))",
            r"\bthick\w+ around (?:the )?bronchial structures",
            r"\bincreased peribron\w+",
        ),
        forbid_in_item=(r"lymph",),
    ),
    Rule("Consolidation", mention=(r"\bconsolidat\w*",)),
    Rule(
        "Bronchiectasis",
        mention=(
            r"\b(?:broncho?|bronchi)o?ecta\w+",
            r"\bbronchiec\w+",
            r"\bbronch\w+ (?:\w+ )?ectasi\w+",
            r"\bectasia\b[^.;]{0,60}?\bbronch\w+",
            r"\bectatic bronch\w+",
            r"\bdilat\w+ (?:of|in) (?:the )?bronch\w+",
            r"\bdilated bronch\w+",
            r"\bbronch\w+ (?:\w+ ){0,3}dilat\w+",
        ),
    ),
    Rule(
        "Interlobular septal thickening",
        mention=(
            r"\b(?:inter|intra)?sept(?:al|a|um|ae)\b[^.;?]{0,40}?\b(?:thick\w+|clarif\w+)",
            r"\b(?:thick\w+|prominence)\b[^.;?]{0,50}?\bsept(?:a|al|um|ae)\b",
            r"\binter-?lobular thick\w+",
        ),
        forbid=(r"interatrial|nasal|interventric",),
    ),
)

# A negation does not reach across these.
CLAUSE_BREAK: Patterns = (
    r"\b(?:but|however|although|though|whereas|except|apart from|other than|aside from)\b",
    r";",
    r",\s*(?:and\s+)?(?=(?:there|it|a|an|mild|mildly|moderate|severe|minimal|small|large|trace|multiple|few|several|"
    r"stable|slight|millimetric|nonspecific|unchanged|status|fusiform|dilat\w+|aneurysm\w+|ectasia|ather\w+|calcif\w+)\b)",
)
# Nor across these, if what is before them is a whole statement and what follows has a verb.
CLAUSE_JOIN: Patterns = (r",", r"\band\b")
STATEMENT: Patterns = (
    r"\b(?:is|are|was|were|been)(?: not)?(?: \w+)? (?:detected|observed|seen|present|noted|identified|found|natural|"
    r"normal|open|patent|available)\b",
)
VERB: Patterns = (r"\b(?:is|are|was|were|has|have|had)\b",)

NEGATION_BEFORE: Patterns = (
    r"\b(?:no|without|neither|nor|free of|absence of|absent|negative for|devoid of|resolution of|resolved|rather than|"
    r"loss of (?=consol))\b",
    r"\bnot (?:show\w*|contain\w*|have|demonstrat\w+|reveal\w*|any|evident|suggest\w*|see|seen|accompan\w+)\b",
)
# A "no" that does not deny what follows it.
PSEUDO_NEGATION: Patterns = (
    r"\bno (?:(?:significant|obvious|interval|appreciable|relevant|remarkable|marked|pathological|other|clear) )*"
    r"(?:(?:change|difference|decrease|regression|progression|growth)s?|increase in (?:the )?(?:size|number|dimension)\w*)\b",
    r"\bnot only\b",
    r"\bno (?:longer|doubt)\b",
)
# Between a negation and a mention, these end its reach.
SCOPE_END: Patterns = (
    r"\b(?:which|that|causing|due to|secondary to|because|despite|since|compared|accompan\w+)\b",
    r":",
)
NEGATION_AFTER: Patterns = (
    r"\b(?:not|never|no longer) (?:\w+ ){0,2}?(?:detected|observed|seen|present|identified|noted|found|visuali[sz]ed|evident|"
    r"appreciated|encountered|demonstrated|distinguished|available|enlarged|selected|dilated|thickened|increased)\b"
    r"(?! in (?:the |his |her )?(?:previous|prior|old|earlier))",
    r"\babsent\b",
    r"\b(?:is|are|was|were) (?:negative|excluded|ruled out|resolved|removed)\b",
    r"\bbeen removed\b",
    r"\b(?:has|have) (?:\w+ )?(?:resolved|disappeared|regressed completely|completely regressed|cleared)\b",
    r"\b(?:completely|totally) (?:regressed|resolved|disappeared)\b",
    r"\bdisappear\w*",
    r"\b(?:full|complete) (?:regression|resolution)\b",
    r"\bno (?:\w+ ){0,2}(?:was|were|is|are) (?:detected|observed|seen)\b",
    r"\b(?:is|are|was|were) (?:within )?normal\b",
)
HEDGE_BEFORE: Patterns = (
    r"\b(?:possibl[ey]|probabl[ey]|suspected|suspicious|questionable|equivocal|may|might|could|cannot|can not|to exclude|"
    r"to rule out|in terms of|concern for|differential)\b",
)
HEDGE_AFTER: Patterns = (
    r"^[^.;,()]{0,12}\?",
    r"\b(?:cannot|can not|could not|not) be (?:excluded|ruled out)",
    r"\b(?:is|are) (?:suspected|possible|questionable)\b",
)
