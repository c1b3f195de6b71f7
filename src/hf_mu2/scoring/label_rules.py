"""The rule table of the finding labeler: how each of the 18 labels is worded, and how a mention is negated or hedged.

The conventions are those of the CT-RATE annotation, not of a textbook: "Lung opacity" is ground glass and what is
worded as an opacity or infiltrate; "Lymphadenopathy" is any reported node, millimetric and calcified ones included;
fibroatelectasis is "Pulmonary fibrotic sequela"; calcification of coronary arteries alone is not "Arterial wall
calcification"; bronchial-wall thickening alone is not "Peribronchial thickening"; crazy paving alone is not
"Interlobular septal thickening".
"""

from __future__ import annotations

from dataclasses import dataclass

_WORDS = r"(?:[^\s.;:,?]+\s+)"  # one word and the space after it, within a clause


@dataclass(frozen=True)
class Rule:
    """How one label is worded, as regular expressions over lower-case text.

    Args:
        mention (`str`): What counts as a mention; matched within a sentence.
        require (`str`, *optional*): Must occur in the clause of the mention.
        forbid (`str`, *optional*): Must not occur in the clause of the mention.
        forbid_in_sentence (`str`, *optional*): Must not occur in the sentence of the mention.
    """

    label: str
    mention: str
    require: str | None = None
    forbid: str | None = None
    forbid_in_sentence: str | None = None


_LINK = (
    r"(?:[\s,/–-]+(?:or|and|nor|minimal|mild|moderate|severe|massive|small|large|trace|free|loculated|thickening|"
    r"pleural|pericardial|left|right|bilateral|space|amount|of|the|in|both|is|layering|circumferential)\b){0,5}[\s,/–-]+"
)
_LUNG = r"lung|lobe|lobar|lingul|segment|pulmon|parenchym|bas(?:al|es)|apex|apical|apices|subpleural|hemithorax|zone|fissure"
_PLAQUE = r"\b(?:non-?)?calcif\w+|\batherom?\w*|\batrom\w+|\bplaques?\b|\barteriosclero\w+|\bcalcium\b"
_NOT_A_VESSEL_WALL = (
    r"pleura|lymph|nodul\w+|granulom\w*|thyroid|liver|hepatic|kidney|renal|spleen|splenic|breast|valve|valvul|annul|"
    r"pericard|trache|bronch|gallbladder|prostat|pancrea|disc|ligament|costochond|cartilage|mass\b|lesion|cyst"
)

RULES: tuple[Rule, ...] = (
    Rule(
        "Medical material",
        r"\bcatheters?\b|\b(?:naso\w+|feeding|endotracheal|tracheostomy|chest|thorax|thoracic|thoracostomy|gastrostomy|"
        r"drainage|intubation|et|ng)[ -]tubes?\b|\btubes?\b|\bcannula\w*|\bpacemakers?\b|\bpace ?maker|\bstent\w*|"
        r"\bprosthe\w+|\bvalve replace\w+|\breplaced valve|\bport chamber|\bport-?a-?cath\w*|\bchemo ?port|\bchest port|"
        r"\bsutures?\b|\b(?:metal\w*|surgical|sternal|sternotomy) ?(?:wires?|clips?|material|suture\w*|densit\w+|artifact\w*|"
        r"stapl\w+)|\bclips?\b|\bsternotomy\b|\bmedical (?:material|device|hardware)s?|\b(?:indwelling|implanted|cardiac|"
        r"support) devices?|\bdevice\b|\bhardware\b|\bin situ\b|\bin place\b|\bscrews?\b|\bfixat(?:or|ion)\w*|"
        r"\belectrodes?\b|\bleads?\b|\bdefibrillator|\bicd\b|\bpeg\b|\bmaterials? (?:belonging|of|secondary)|\bimplants?\b|"
        r"\bvascular filter|\bivc filter|\bembolization|\bcoils?\b|\bdrains?\b|\bintubat\w+|\btracheostomy\b|"
        r"\bplatinum|\bplates?\b and screws|\binstrumentation",
        forbid=r"contrast material uptake|in favor of (?:the )?implant|changes or implants|calcified tube|leads to",
    ),
    Rule(
        "Arterial wall calcification",
        _PLAQUE,
        require=r"aort|arter|arcus|\barch\b|vascular|vessel|carotid|subclav|iliac|atherosc\w+|atheromat\w+|brachioceph",
        forbid=_NOT_A_VESSEL_WALL,
    ),
    Rule(
        "Cardiomegaly",
        r"\bcardiomegal\w*|\b(?:heart|cardiac|cardiothoracic|cardio-thoracic|ctr|cti)\b(?! (?:valve|cavit|pacemaker))"
        r"[^.;?]{0,50}?\b(?:enlarg\w+|increas\w+|larger|big\b|large\b)|"
        r"\b(?:enlarg\w+|increas\w+) (?:in |of )?(?:the )?(?:heart|cardi\w+)",
        forbid=r"pericard",
    ),
    Rule(
        "Pericardial effusion",
        rf"\bpericardi\w+{_LINK}(?:effusion|fluid)\w*|\b(?:effusion|fluid)\w*[^.;?]{{0,60}}?\bpericardi\w+|"
        r"\bpericardium[^.;?]{0,30}\bfluid",
    ),
    Rule(
        "Coronary artery wall calcification",
        _PLAQUE,
        require=r"coronar|\blad\b|left anterior descending|circumflex|\brca\b|\bcx\b",
    ),
    Rule(
        "Hiatal hernia",
        r"\bhiat(?:al|us) herni\w*|\besophageal herni\w*|\bherni\w+[^.;]{0,60}\bhiatus|\bhiatus[^.;]{0,60}\bherni\w+|"
        r"\bherniated stomach|\bsliding (?:type )?(?:\w+ )?herni\w*",
    ),
    Rule(
        "Lymphadenopathy",
        r"\blymph(?:atic)?[ -]?nod\w+|\blymphadeno\w+|\badenopath\w+|\blaps?\b|\blymph adenopath\w+|\blymphadenomegal\w*",
        forbid=r"intrapulmonary|subpleural|fissur|intramam|lymph nodes? is suboptimal",
    ),
    Rule(
        "Emphysema",
        r"\b(?:pan)?emphy?se\w+|\bbull(?:a|ae|as|ous)\b|\bblebs?\b",
        forbid=r"subcutan|under the skin|skin|axilla|pectoral|soft tissue|fatty planes|muscle|mediastinal emphysema",
    ),
    Rule("Atelectasis", r"(?<!fibro)(?<!fibro-)\batel\w*ct\w*|\batelec\w+|\bpartial collapse\b|\bcollaps\w+"),
    Rule(
        "Lung nodule",
        r"(?<!lymph )(?<!lymph-)\b(?:micro|macro)?nodules?\b",
        forbid=r"thyroid|liver|hepatic|adrenal|breast|kidney|renal|spleen|lymph node station|pancrea|skin|subcutan|"
        r"mesenter|omentum|periton",
    ),
    Rule(
        "Lung opacity",
        r"\bground[ -]?(?:\w+ )?glass\w*|\bgroundglass|\bfrosted glass|\bopaci\w+|\binfiltrat(?:es?|ions?)\b|\bggo\b",
    ),
    Rule(
        "Pulmonary fibrotic sequela",
        r"\bsequel\w+|\b\w*fibro(?!ade|us|mu|mya|sarc|mat)\w+|\bfibroti\w+|\bfibrosis\b|\bparenchymal bands?\b|\bscar(?:s|ring)?\b|"
        r"\bfibro-?atele\w+",
        forbid=r"kidney|renal|fracture|bone|rib\b|ribs\b|vertebra|breast|liver|hepatic|postoperative sequel",
    ),
    Rule(
        "Pleural effusion",
        rf"\bpleur\w+{_LINK}(?:effusion|fluid)\w*|\b(?:effusion|fluid)\w*[^.;?]{{0,50}}?\b(?:pleur\w+|hemithora\w+)|"
        r"\bhydro(?:pneumo)?thora\w+|\bhydropn\w+|(?<!pericardial )(?<!pericardial minimal )(?<!thickening-)\beffusions?\b",
        forbid=r"joint|knee|shoulder",
    ),
    Rule("Mosaic attenuation pattern", r"\bmosaic\w*"),
    Rule(
        "Peribronchial thickening",
        r"\bperi-?bronch\w*(?:[\s,-]+(?!lymph|ground|nodul)[a-z]+){0,4}?[\s-]+(?:thick\w+|cuffing|densit\w+)|"
        r"\bthick\w+ (?:of|in|around) (?:the )?(?:peri-?bronch\w+|bronchial structures)|"
        r"\bthickness of (?:the )?peribronch\w+|\bincreased peribron\w+",
        forbid=r"ground[ -]glass densit",
    ),
    Rule("Consolidation", r"\bconsolidat\w*|\bpneumonic infiltrat\w*"),
    Rule(
        "Bronchiectasis",
        r"\b(?:broncho?|bronchi)o?ecta\w+|\bbronchiec\w+|\bbronch\w+ (?:\w+ )?ectasi\w+|\bectatic bronch\w+|"
        r"\bdilat\w+ (?:of|in) (?:the )?bronch\w+|\bbronch\w+ (?:\w+ ){0,3}dilat\w+|\benlargement of the bronchial|"
        r"\bdilated bronch\w+|\bbronchial dilat\w+",
    ),
    Rule(
        "Interlobular septal thickening",
        r"\b(?:inter-?lobular|intra-?lobular|inter-?lobar|interstitial)?\s*\bsept(?:al|a|um|ae)\b[^.;?]{0,40}?\bthick\w+|"
        r"\bthick\w+[^.;?]{0,50}?\bsept(?:a|al|um|ae)\b|\binter-?lobular thick\w+",
        forbid=r"interatrial|nasal|interventric",
    ),
)

# Where a sentence begins anew: these split it into clauses wherever they occur.
CLAUSE_BREAK = (
    r"\bbut\b|\bhowever\b|\balthough\b|\bwhereas\b|\bexcept\b|\bapart from\b|\bother than\b|\baside from\b|;|"
    r",\s*(?:and\s+)?(?=(?:there|it|a|an|mild|mildly|moderate|severe|minimal|small|large|trace|multiple|few|several|stable|"
    r"slight|millimetric|nonspecific|unchanged|status)\b)"
)
# Where a sentence begins anew if both sides have a verb.
CLAUSE_JOIN = r",|\band\b"
FINITE_VERB = r"\b(?:is|are|was|were|has|have|had)\b"

NEGATION_BEFORE = (
    r"\b(?:no|without|neither|nor|free of|absence of|absent|negative for|devoid of|cleared of|resolution of|resolved|"
    r"rather than|not (?:show\w*|contain\w*|have|demonstrat\w+|reveal\w*|any|evident|suggest\w*|observ\w+|detect\w+|"
    r"see|seen|accompan\w+))\b"
)
# "no" that does not deny what follows it.
PSEUDO_NEGATION = (
    r"\bno (?:\w+ ){0,2}?(?:change|difference|increase in (?:the )?(?:size|number)|decrease|regression|progression|"
    r"interval|growth)\b|\bnot only\b|\bno longer\b|\bno doubt\b"
)
SCOPE_END = (
    r"\b(?:which|that|causing|due to|secondary to|because|despite|since|compared|consistent with|accompan\w+|"
    r"(?:is|are|was|were) (?:observed|detected|seen|noted|present|identified) (?:and|with|in the presence))\b|:"
)
NEGATION_AFTER = (
    r"\b(?:not|never|no longer) (?:\w+ ){0,2}?(?:detected|observed|seen|present|identified|noted|found|visuali[sz]ed|"
    r"evident|appreciated|encountered|demonstrated|available|enlarged|monitored|selected|dilated|thickened|increased)\b|"
    r"\b(?:is|are|was|were) (?:absent|negative|excluded|ruled out|resolved)\b|\b(?:has|have) (?:\w+ )?(?:resolved|"
    r"disappeared|regressed completely|completely regressed|cleared)\b|\bcompletely (?:regressed|resolved|disappeared)|"
    r"\bno thickening was detected\b|\b(?:is|are|was|were) (?:within )?normal\b"
)
HEDGE_BEFORE = (
    r"\b(?:possible|possibly|probable|probably|suspected|suspicious|questionable|equivocal|may be|may represent|may reflect|"
    r"might|could be|could represent|cannot exclude|can not exclude|cannot be excluded|to exclude|to rule out|"
    r"in terms of|concern for|differential)\b"
)
HEDGE_AFTER = r"^[^.;,()]{0,12}\?|\b(?:cannot|can not|could not|not) be (?:excluded|ruled out)|\b(?:is|are) (?:suspected|possible|questionable)"
