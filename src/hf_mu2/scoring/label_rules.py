"""The rule table of the finding labeler: how each of the 18 labels is worded. `statements.py` holds negation and hedges.

The conventions are those of the CT-RATE annotation, not of a textbook: "Lung opacity" is ground glass, what is worded
as an opacity and any other density of the lung that is not called a sequela, an atelectasis or a consolidation; an
infiltrate or a ground-glass nodule is none. "Lymphadenopathy" is any reported node, millimetric and calcified ones
included. Fibroatelectasis and pleuroparenchymal densities are "Pulmonary fibrotic sequela", pulmonary fibrosis as a
disease is not. Calcification of coronary arteries alone is not "Arterial wall calcification"; bronchial-wall
thickening alone is not "Peribronchial thickening"; crazy paving alone is not "Interlobular septal thickening".

Every pattern is an alternative over the even, lower-case text of `statements.even_text`.
"""

from __future__ import annotations

from dataclasses import dataclass

from .statements import Patterns


@dataclass(frozen=True)
class Rule:
    """How one label is worded.

    Args:
        label (`str`): The label.
        mention (`tuple[str, ...]`): What counts as a mention; matched within a sentence.
        require (`tuple[str, ...]`): One of these must occur in the clause of the mention, if any are given.
        forbid (`tuple[str, ...]`): None of these may occur in the clause of the mention.
        forbid_in_item (`tuple[str, ...]`): None of these may occur between the commas or "and"s around the mention.
        forbid_in_sentence (`tuple[str, ...]`): None of these may occur in the sentence of the mention.
    """

    label: str
    mention: Patterns
    require: Patterns = ()
    forbid: Patterns = ()
    forbid_in_item: Patterns = ()
    forbid_in_sentence: Patterns = ()


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
            r"\b(?:perm)?cath(?:eter)?s?\b",
            r"\b(?:nasogastric|orogastric|feeding) probes?\b",
            r"\b(?:tubes?|cannula\w*|drains?(?! (?:in)?to\b)|pigtail|picc|hickman|ecmo|iabp|shunts? (?:tube|cath\w*))\b",
            r"\b(?:pace ?-?makers?|defibrillators?|icd|electrodes?|stimulators?|pac(?:ing|er) (?:leads?|wires?)|occluders?)\b",
            r"\bstent\w*",
            r"\bpro(?:s|ts?)the\w+",
            r"\bvalve (?:replace\w+|prosthe\w+|repair)",
            r"\b(?:mechanical|metal\w*|prosthetic|artificial|biological) (?:aortic |mitral |heart )?valves?\b",
            r"\b(?:tavi|tavr|annuloplasty)\b",
            r"\bport\b(?! (?:site|of entry))",
            r"\bport-?a-?cath\w*",
            r"\bsutur\w+",
            r"\b(?:metal\w*|surgical|sternal|sternotomy|cerclage|operati\w+|post-?op\w*) (?:wires?|clips?|materials?|implants?|"
            r"densit\w+|artifact\w*|stapl\w+|plates?|object\w*|foreign)",
            r"\b(?:clips?|staples?|cerclage)\b",
            r"\bsternotomy\b",
            r"\bmedical (?:material|device|hardware)s?\b",
            r"\b(?:indwelling|implanted|implantable|cardiac|support|foreign) (?:devices?|bod(?:y|ies))\b",
            r"\b(?:hardware|screws?|instrumentation)\b",
            r"\bfixat(?:or|ion)\w*",
            r"\bpeg\b",
            r"\b(?:breast|silicone|dental|cochlear|metal\w*) implants?\b",
            r"\b(?:tissue expanders?|gastric band|(?:ivc|vena cava|caval) filter|embolization coils?|coils?)\b",
            r"\b(?:intubat\w+|tracheostomy)\b",
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
            rf"^(?!.*(?:{_CORONARY})).*wall calcif",
        ),
        forbid_in_item=(_NO_VESSEL_WALL,),
    ),
    Rule(
        "Cardiomegaly",
        mention=(
            r"\bcardiomegal\w*",
            r"\b(?:heart|cardiac|cardiothoracic|cardio-thoracic|ctr|cti)\b(?! (?:valve|cavit|pacemaker))"
            r"(?:(?!pericard|normal|natural|aort|pulmon|effus|calcif)[^.;?]){0,50}?\b(?:enlarg\w+|increas\w+|larger|"
            r"large(?! (?:ves|vas|art))|bigger)\b",
            r"\b(?:heart|cardiac) (?:size|dimension|diameter)s?\b[^.;?]{0,20}\babove (?:the )?normal",
            r"\bcardiac dilat\w+",
            r"\b(?:enlarg\w+|increas\w+) (?:(?:in|of|the|sizes?|dimensions?) ){0,6}(?:heart|cardi(?!acor)\w+)",
        ),
    ),
    Rule(
        "Pericardial effusion",
        mention=(
            rf"\bpericardi\w+{_LINK}(?:effusion|fluid)\w*",
            r"\b(?:effusion|fluid)\w*(?:(?!pleur)[^.;?]){0,140}?\bpericardi(?!ac recess|al recess)\w+",
            r"\bpericardium[^.;?]{0,30}\bfluid",
            r"\b(?:hemo|hydro|pneumohydro|pyo)pericardi\w+",
        ),
    ),
    Rule("Coronary artery wall calcification", mention=_PLAQUE, require=(_CORONARY,)),
    Rule(
        "Hiatal hernia",
        mention=(
            r"\b(?:hia?i?t\w{0,4}|hait\w+|para-?esophageal)[ -](?:\w+ )?herni\w*",
            r"\besophageal herni\w*",
            r"\bherni\w+[^.;]{0,60}\bhiatus",
            r"\bhiatus[^.;]{0,60}\bherni\w+",
            r"\bherniated stomach|\b(?:gastric|stomach) herni\w+|\bintra-?thoracic stomach",
            r"\bs[il]+ding (?:\w+ ){0,3}herni\w*",
            r"\bdiaphragmatic hernia\w*(?=[^.;]*\besophag)",
        ),
    ),
    Rule(
        "Lymphadenopathy",
        mention=(
            r"\b(?:ly[mn]ph?|lenf)(?:atic)?[ -]?(?:nod|gland)\w+(?! stations?)",
            r"\b(?:(?:ly[mn]ph?|lenf)[ -]?)?aden(?:o|e)(?:path|megal)\w+",
            r"\blaps?\b",
            r"\b(?:paratracheal|subcarinal|precarinal|hilar|mediastinal|axillary|prevascular|supraclavicular) nodes?\b",
            r"\bnodal (?:conglomerat|enlarge|metasta|mass)\w*",
        ),
        forbid_in_item=(
            r"intrapulmonary|intraparenchymal|subpleural|fissur|intramam|subcutan|spleen hilum|is suboptimal",
        ),
    ),
    Rule(
        "Emphysema",
        mention=(
            r"\b\w*(?:[ea]mphy?i?[sz]e|enfi[sz]e)\w+",
            r"\bbull(?:as?|ae|ous)\b",
            r"\bblebs?\b",
        ),
        forbid_in_item=(r"subcutan|skin|axilla|pectoral|soft tissue|fatty planes|muscle",),
    ),
    Rule(
        "Atelectasis",
        mention=(
            r"(?<!fibro )(?<!fibro-)(?<!fibrotic )\bat[el]{1,4}[a-z]*t(?:a|i)\w+",
            r"(?<!fibro )(?<!fibro-)(?<!fibrotic )\bat[ht]?[aeil]{1,4}[a-z]{0,3}ta[sctz]\w+",
            r"\bcollaps\w+(?=[^.;]*\b(?:lungs?|lobes?|segments?|parenchyma)\b)",
            r"\b(?:lungs?|lobes?|segments?)\b[^.;,]{0,40}\bcollaps\w+",
        ),
        forbid_in_item=(r"vertebra|fractur|\bvena\b|\bvein|trachea|esophag",),
    ),
    Rule(
        "Lung nodule",
        mention=(
            r"(?<!lymph )(?<!lymph-)\b(?:micro|macro)?-?nodules?\b",
            r"\bnodular (?:lesion|structure)s?\b",
        ),
        forbid_in_item=(
            r"thyroid|liver|hepatic|adrenal|breast|kidney|renal|spleen|pancrea|skin|subcutan|mesenter|oment|periton|"
            r"schmorl|hypodense|axilla|adipose|fatty|(?<!sub)pleural nodul|in the pleura|parotid|muscle|chest wall|"
            r"abdominal wall|peritone|prostat|gallbladder",
        ),
        forbid_in_sentence=(
            r"^(?!.*(?:lung|pulmon|parenchym|pleur|segment|fissur|(?:upper|middle|lower|left|right) lobe of|upper lobe|"
            r"lower lobe|middle lobe|lingul|thora)).*(?:thyroid|kidney|spleen|splenic|liver|hepat|adrenal|breast|colon)",
        ),
    ),
    Rule(
        "Lung opacity",
        mention=(
            r"\bground[ -]?glass\w*(?! (?:\w+ ){0,2}nodul)",
            r"\b(?:frosted|icy?|matte?)[ -]?glass\w*(?! nodul)",
            r"(?<!acinar )(?<!nodular )\bopaci\w+",
            r"\bggos?\b",
            # Written as densities, yet annotated as opacities.
            r"\bdep[ae]nd[ae]nt(?:[ -]like)? (?:\w+ )?(?:densit\w+|increases? in density)",
            r"\blinear (?:(?!pleuro|sequel|fibro|atelect)\w+ ){0,3}densit\w+",
        ),
        forbid_in_item=(r"trache|mosaic|fat\b|fatty|adipose|kidney|colon|subcutan|breast",),
    ),
    # A density of the lung is annotated as an opacity unless it is called a sequela, an atelectasis or something else.
    Rule(
        "Lung opacity",
        mention=(
            r"\bdensity (?:\w+ )?(?:increas|increment)\w*",
            r"\bincreas\w+ (?:in |of )?(?:\w+ ){0,2}densit\w+",
            r"\b(?:alveolar|acinar|nodular|parenchymal|subpleural|nonspecific|patchy|hazy|irregular|peripheral) densit\w+",
        ),
        require=(r"\blungs?\b|\blob(?:e|ar)|segment|lingul|parenchym|subpleur|\bbas(?:al|es?)\b|apic|apex",),
        forbid=(
            r"sequel|fibrotic|pleur\w*-? ?paren|\bband|\bbud|tree|consolid|atelec|emphys|mosaic|soft tissue|\bfat|"
            r"adipose|subcutan|mediast|thym|trache|lumen|mucus|calcif|metal|contrast|liver|hepat|spleen|kidney|renal|"
            r"pancrea|adrenal|gallbl|breast|bone|vertebr|vascul|peribronch|interstit|decreas|lesion|mass\b|thyroid|air densit",
        ),
    ),
    Rule(
        "Pulmonary fibrotic sequela",
        mention=(
            r"\bsequel\w*\b(?! (?:\w+ ){0,2}(?:calcif|lymph|nodul|treat|fractur|rib))",
            r"\b\w*fibro(?!ade|us|mu|mya|sarc|mat|glan|cal|lip|cys|ids?\b|sis)\w+(?! nodul)",
            r"(?<!pulmonary )(?<!parenchymal )(?<!interstitial )(?<!cystic )\bfibros[ie]s\b",
            r"\bfibro-?\s?atele\w+",
            r"\b(?:(?:sub)?pleural |(?:pleur[oa])?parenchymal )?bands\b",
            r"\b(?:parenchymal|pleuroparenchymal|subpleural) band",
            r"\bscar(?:s|red|ring)?\b",
            r"\bpleuroparenchymal recess\w+",
            r"\b(?:increas\w+ in )?pleur(?:[oa]?-?|al )paren?chymal (?:densit|increas)\w+",
        ),
        forbid_in_item=(
            r"kidney|renal|fractur|humer|clavic|scapul|sternum|femur|\bbones?\b|\bribs?\b|vertebra|breast|liver|hepatic|spleen|splenic|postoperative sequel|"
            r"lymph node",
        ),
    ),
    Rule(
        "Pleural effusion",
        mention=(
            rf"\bpleur\w+{_LINK}(?:effusion|fluid)\w*",
            r"\b(?:effusion|fluid)\w*(?:(?!pericard)[^.;?]){0,70}?\b(?:pleur\w+|hemithora\w+)",
            r"\b(?:hydro|h[ae]{1,2}mo|chylo|pyo)-?(?:pneumo)?thora\w+",
            r"\bempyema\w*",
            r"\bhydropn\w+",
            r"(?<!pericardial )(?<!pericardial minimal )(?<!thickening-)\beffusions?\b",
        ),
        forbid=(
            r"^(?!.*(?:pleur|thora|lung)).*(?:pericard|joint|kidney|renal|nephri|abdom|pelvi|periton|hepat|spleen|"
            r"splen|cholec|bursa|knee|shoulder|subdural|mastoid|scrot)",
        ),
    ),
    Rule("Mosaic attenuation pattern", mention=(r"\bmo[sz]ai[ck]\w*",)),
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
    Rule("Consolidation", mention=(r"(?<!glass )(?<!glass-)\bcons[oa]l[ia]d\w*",)),
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
            r"\binter-?lobular (?:\w+ )?thick\w+",
            r"\bkerley\b",
        ),
        forbid=(r"interatrial|nasal|interventric",),
    ),
)
