"""The tables of the region-generic reader: organs, finding heads, and the labels of abdomen and pelvis made of them.

Every pattern is an alternative over the even, lower-case text of `statements.even_text`.
"""

from __future__ import annotations

from dataclasses import dataclass

from .statements import Patterns


@dataclass(frozen=True)
class Organ:
    """How an organ is worded. An organ listed first wins where two overlap."""

    name: str
    mention: Patterns


@dataclass(frozen=True)
class Head:
    """How the head of a finding is worded.

    Args:
        name (`str`): The head; rows of one name are one head.
        mention (`tuple[str, ...]`): Its wordings.
        organs (`tuple[str, ...]`): Organs it can belong to; any when empty.
        default (`str`): The organ where none of `organs` is mentioned; without one the words are no finding then.
        is_firm (`bool`): No negation after it turns it round ("surgically removed", "not visualized").
    """

    name: str
    mention: Patterns
    organs: tuple[str, ...] = ()
    default: str = ""
    is_firm: bool = False


@dataclass(frozen=True)
class RegionLabel:
    """A label: one of `heads` in one of `organs`."""

    label: str
    organs: tuple[str, ...]
    heads: tuple[str, ...]


ORGANS: tuple[Organ, ...] = (
    Organ(
        "colon",
        (
            r"\bcolon\w*|\blarge bowel|\bsigmoid\w*|\bca?ec(?:um|al)\b|\brect(?:um|al|osigmoid)\b",
            r"\b(?:hepatic|splenic) flexure",
        ),
    ),
    Organ(
        "bile duct",
        (
            r"\b(?:common )?bile ducts?|\bbiliary\b|\bcholedoch(?!olith)\w*|\bintrahepatic\b(?: ducts?)?|\bcbd\b",
        ),
    ),
    Organ("pancreatic duct", (r"\b(?:main )?pancreatic ducts?|\bwirsung|\bmain duct",)),
    Organ(
        "veins",
        (
            r"\bvena cava|\bivc\b|\bvenous\b",
            r"\b(?:portal|splenic|hepatic|mesenteric|renal|iliac|femoral)\b[\w ,]{0,20}\bveins?\b",
        ),
    ),
    Organ(
        "arteries",
        (
            r"\b(?:renal|splenic|hepatic|mesenteric|celiac|femoral)\b[\w ,]{0,20}\b(?:arter(?:y|ies)|vessels|trunk)\b",
        ),
    ),
    Organ("aorta", (r"\baort\w+|\biliac arter\w+",)),
    Organ("lymph nodes", (r"\blymph[ -]?nod\w+|\bnodes?\b|\bporta hepatis",)),
    Organ("gallbladder", (r"\bgall ?bladder|\bcholecystic\b",)),
    Organ("liver", (r"\bliver|\bhepatic\b|\bhepato\w*(?= parenchym)",)),
    Organ("pancreas", (r"\bpancreas|\bpancreatic\b",)),
    Organ("spleen", (r"\bspleen|\bsplenic\b",)),
    Organ("adrenal gland", (r"\badrenals?\b(?: glands?)?|\bsuprarenal",)),
    Organ("ureter", (r"\bureter\w*",)),
    Organ(
        "kidney",
        (
            r"\bkidneys?|\brenal\b(?: pelvis| collecting system)?|\bcollecting systems?|\bcalyces|\bcortical(?= cyst)",
        ),
    ),
    Organ("stomach", (r"\bstomach|\bgastric\b",)),
    Organ("appendix", (r"\bappendix|\bappendiceal",)),
    Organ(
        "bowel",
        (
            r"\b(?:small )?bowel(?: loops?)?|\bjejun\w+|\bile(?:um|al)\b",
            r"\bduoden\w+|\bintestin\w+|\bgastrointestinal(?: tract)?|\bloops\b|\bgi tract",
        ),
    ),
    Organ(
        "peritoneum",
        (
            r"\bperiton\w+|\bmesenter\w+|\boment\w+|\bintra-?(?:abdominal|peritoneal)|\babdominal (?:cavity|fluid)",
        ),
    ),
    Organ("retroperitoneum", (r"\bretroperiton\w+",)),
    Organ("bladder", (r"\bbladder|\bvesical\b",)),
    Organ("prostate", (r"\bprostat(?:e|ic)\b",)),
    Organ("uterus", (r"\buter(?:us|ine)|\bendometri\w+|\bcervix",)),
    Organ("ovary", (r"\bovar(?:y|ies|ian)\b|\badnex\w+",)),
    Organ("reproductive organs", (r"\breproductive organs?",)),
    Organ("abdominal wall", (r"\babdominal wall|\bsubcutaneous|\bsoft tissues?|\binguinal|\bumbilical",)),
    Organ("spine", (r"\bspine|\bspinal|\bvertebra\w*|\blumbar|\bdis[ck]s?\b",)),
    Organ(
        "bone",
        (
            r"\bbon(?:es?|y)\b|\bosseous|\bskelet\w+|\bribs?\b|\bfem(?:ur|oral)|\bhips?\b|\bsacr\w+|\bpubic|\bacetabul\w+|\bsternum",
        ),
    ),
    Organ("pericardium", (r"\bpericardi\w+",)),
    Organ("pleura", (r"\bpleura\w*|\bhemithora\w+|\baround the lungs",)),
    Organ("heart", (r"\bheart|\bcardiac|\bcoronar\w+",)),
    Organ("lung", (r"\blungs?\b|\bpulmonary|\b(?:upper|middle|lower) lobes?|\blingula\w*|\bbasilar",)),
    Organ("airways", (r"\btrachea\w*|\bbronch(?:us|i|ial)\b|\bairways?",)),
    Organ("mediastinum", (r"\bmediastin\w+|\bhil(?:ar|um)\b",)),
    Organ("esophagus", (r"\b(?:o)?esophag\w+",)),
    Organ("thyroid", (r"\bthyroid",)),
    Organ("breast", (r"\bbreasts?\b",)),
    Organ("vessels", (r"\bvascul\w+|\bvessels?\b",)),
)

HEADS: tuple[Head, ...] = (
    Head("stone", (r"\bgall ?stones?|\bcholelith\w+",), ("gallbladder",)),
    Head("stone", (r"\bcholedocholith\w+",), ("bile duct",)),
    Head("stone", (r"\b(?:nephro|uro)lith\w+",), ("kidney",)),
    Head("stone", (r"\bureterolith\w+",), ("ureter",)),
    Head("stone", (r"\bstones?\b|\bcalcul(?:us|i)\b",)),
    Head("cyst", (r"\bcysts?\b|\bpseudocysts?\b",)),
    Head("lesion", (r"\bfibroids?|\b(?:leio)?myomas?\b",), ("uterus",)),
    Head("lesion", (r"\bangiomyolipomas?",), ("kidney",)),
    Head("lesion", (r"\bhepatic metastas\w+|\bhcc\b|\bhepatocellular",), ("liver",)),
    Head(
        "lesion",
        (
            r"\blesions?\b|\bmass(?:es)?\b|\btumou?rs?\b|\bneoplas\w+|\b(?:micro|macro)?nodul(?:es?|arity)\b|\b(?<!lympho)(?:adeno)?carcinomas?|"
            r"\badenomas?\b|\bha?emangiomas?\b|\bmalignan\w+|\bmetasta\w+|\bhypodensit\w+|\blipomas?\b|\bipmns?\b|\bimplants\b",
        ),
    ),
    Head("enlargement", (r"\bhepatomegal\w+",), ("liver",)),
    Head("enlargement", (r"\bsplenomegal\w+",), ("spleen",)),
    Head("enlargement", (r"\bprostatomegal\w+|\bprostatic hypertroph\w+|\bbph\b",), ("prostate",)),
    Head("enlargement", (r"\bcardiomegal\w+",), ("heart",)),
    Head(
        "enlargement",
        (
            r"\benlarg\w+|\bhypertroph\w+",
            r"\b(?:sizes?|length|dimensions?|volume)\b[^.;,]{0,40}\bincreas\w+",
            r"\bincreas\w+ in (?:size|length|volume)\b",
        ),
        (
            "liver",
            "spleen",
            "kidney",
            "prostate",
            "uterus",
            "ovary",
            "heart",
            "thyroid",
            "adrenal gland",
            "pancreas",
            "gallbladder",
        ),
    ),
    Head("atrophy", (r"\batroph\w+|\bshrunken",)),
    Head(
        "steatosis",
        (r"\bsteato\w+|\bhepatosteato\w+|\bfatty (?:liver|infiltrat\w+|change\w*)",),
        ("liver", "pancreas"),
        "liver",
    ),
    Head("cirrhosis", (r"\bcirrho\w+",), ("liver",)),
    Head("inflammation", (r"\bcholecystitis",), ("gallbladder",)),
    Head("inflammation", (r"\bcholangitis",), ("bile duct",)),
    Head("inflammation", (r"\bpancreatitis|\bperipancreatic (?:fat )?(?:strand|inflam)\w+",), ("pancreas",)),
    Head("inflammation", (r"\bappendicitis",), ("appendix",)),
    Head("inflammation", (r"\b(?:procto|entero)?colitis|\bdiverticulitis",), ("colon",)),
    Head("inflammation", (r"\b(?:enter|ile|duoden)itis",), ("bowel",)),
    Head("inflammation", (r"\bpyel(?:onephr)?itis",), ("kidney",)),
    Head("inflammation", (r"\binflam\w+|\bstranding",)),
    Head(
        "dilatation",
        (r"\bhydro(?:uretero)?nephro\w+|\bhydronephro\w+|\bpelvicaliectasis|\bcaliectas\w+",),
        ("kidney",),
    ),
    Head("dilatation", (r"\bhydroureter\b",), ("ureter",)),
    Head("dilatation", (r"\bdilat\w+|\bdistend\w*|\bdistension|\bectasia",)),
    Head("obstruction", (r"\bileus|\btransition point",), ("bowel", "colon"), "bowel"),
    Head("obstruction", (r"\bobstruct\w+",), ("bowel", "colon", "ureter", "bile duct", "kidney", "stomach")),
    Head(
        "thickening",
        (
            r"\bthicken\w+|\bthickness(?:es)? increas\w+|\bincreas\w+ (?:in )?(?:wall |\w+ )?thickness|\bthickened",
        ),
    ),
    Head(
        "diverticulum",
        (r"\bdiverticul(?!itis)\w+",),
        ("colon", "bladder", "bowel", "stomach", "airways", "esophagus"),
        "colon",
    ),
    Head("hernia", (r"\bhiat\w+ herni\w+",), ("stomach",)),
    Head("hernia", (r"\bherni\w+",), ("abdominal wall", "spine"), "abdominal wall"),
    Head(
        "fluid",
        (
            r"\bascit\w+",
            r"\b(?:free|loculated|abdominal|pelvic|intra-?peritoneal|peritoneal) (?:\w+ ){0,3}fluid(?! collect)",
            r"\bfluid (?:accumulat\w+|is|in the (?:abdomen|pelvis|peritone\w+))",
        ),
        ("peritoneum", "pleura", "pericardium", "lung"),
        "peritoneum",
    ),
    Head("fluid", (r"\b(?:pleural|pericardial)?\s?effusions?",), ("pleura", "pericardium"), "pleura"),
    Head("collection", (r"\bcollections?\b|\babscess\w*",)),
    Head(
        "free air",
        (r"\bfree (?:\w+ )?(?:air|gas)\b|\bpneumoperiton\w+|\bextraluminal (?:air|gas)",),
        ("peritoneum",),
    ),
    Head("gas", (r"\bpneumobilia",), ("bile duct",)),
    Head("gas", (r"\bgas bubbles?|\bpneumatosis",)),
    Head("hemorrhage", (r"\bha?emorrhag\w+|\bha?ematomas?|\bbleeding",)),
    Head("thrombus", (r"\bthromb\w+|\bfilling defects?|\boccluded|\bocclusion",)),
    Head("aneurysm", (r"\baneurysm\w*",), ("aorta", "arteries", "heart"), "aorta"),
    Head("dissection", (r"\bdissection",), ("aorta", "arteries"), "aorta"),
    Head(
        "calcification", (r"\bcalcifications?\b|\bcalcified(?! (?:gall)?stones?)|\bath?ero\w+|\bplaques?\b",)
    ),
    # Of the chest, beside the 18 labels.
    Head("pneumothorax", (r"\b(?:hydro-?)?pneumothora\w+",), ("pleura",)),
    Head("pneumomediastinum", (r"\bpneumomediastin\w+",), ("mediastinum",)),
    Head("embolism", (r"\bembol(?:us|i|ism|isms|ic)\b",), ("arteries",)),
    Head("pneumonia", (r"\b(?:broncho)?pneumoni[ac]\w*|\bpneumonitis",), ("lung",)),
    Head("infiltration", (r"\binfiltrat\w+|\bairspace disease",), ("lung", "pleura", "mediastinum"), "lung"),
    Head("cavity", (r"\bcavit(?:y|ies|ation|ations|ary|ating)\b",), ("lung",)),
    Head("granuloma", (r"\bgranulom\w+",)),
    Head("bronchiolitis", (r"\bbronchiolitis|\btree[- ]in[- ]bud\w*|\bbudding tree",), ("lung",)),
    Head("air trapping", (r"\bair[- ]trapping",), ("lung",)),
    Head(
        "interstitial disease", (r"\bhoneycomb\w*|\breticula(?:r|tion|tions)\b|\bcrazy[- ]paving",), ("lung",)
    ),
    Head("stenosis", (r"\bstenos\w+|\bnarrow\w+|\bcompress(?:ion|ed|ing)",)),
    Head("varices", (r"\bvarices\b|\bvaric\w+|\bcollateral\w*",), ("veins",), "veins"),
    Head("infarct", (r"\binfarct\w*",)),
    Head("laceration", (r"\blacerat\w+|\bruptur\w+",)),
    Head("polyp", (r"\bpolyps?\b",)),
    Head("fracture", (r"\bfractur\w*",), ("bone", "spine"), "bone"),
    Head(
        "degeneration",
        (
            r"\bdegenerat\w+|\bosteophyt\w+|\bspondyl\w+|\bosteoarthr\w+|\bscolio\w+|\bosteopor\w+|\bosteopeni\w+",
        ),
        ("spine", "bone"),
        "bone",
    ),
    Head(
        "node",
        (r"\b(?:lymph)?adenopath\w+|\blymphadenomegal\w+|\blymph[ -]?nodes?\b|\bnodes?\b",),
        ("lymph nodes",),
    ),
    Head("edema", (r"\b(?:o)?edema\w*|\banasarca",)),
    Head(
        "device",
        (
            r"\bstents?\b|\bcatheters?\b|\bdrains?\b|\bclips?\b|\bprosthe\w+|\brods?\b|\bfoley|\btubes?\b|\bshunts?\b|"
            r"\bfilters?\b|\bscrews?\b|\bhardware|\bgrafts?\b|\bsutures?\b",
        ),
    ),
    Head("transplant", (r"\ballografts?|\btransplant\w*",)),
    Head("absence", (r"\bcholecystectom\w+",), ("gallbladder",), is_firm=True),
    Head("absence", (r"\bsplenectom\w+",), ("spleen",), is_firm=True),
    Head("absence", (r"\bnephrectom\w+",), ("kidney",), is_firm=True),
    Head("absence", (r"\bhysterectom\w+",), ("uterus",), is_firm=True),
    Head("absence", (r"\boophorectom\w+",), ("ovary",), is_firm=True),
    Head("absence", (r"\bprostatectom\w+",), ("prostate",), is_firm=True),
    Head("absence", (r"\bappendectom\w+",), ("appendix",), is_firm=True),
    Head(
        "absence",
        (
            r"\bsurgically (?:removed|absent)|\bresected",
            r"\b(?:is|are|was|were) (?:removed|absent|not visuali[sz]ed|operated)",
        ),
        is_firm=True,
    ),
    Head(
        "abnormality",
        (
            r"\b(?:ab)?normal(?:ly|it\w+)?\b|\bunremarkable|\bnatural\b|\bpatholog\w+|\bintact|\bpreserved|\bpatent\b|"
            r"\bhomogeneous\w*|\bregular\b|\bdry\b|\bsymmetric\w*|\bclear\b",
        ),
    ),
)
# Words of the head "abnormality" that deny one.
DENIAL = (
    r"normal\w*|unremarkable|natural|intact|preserved|patent|homogeneous\w*|regular|dry|symmetric\w*|clear"
)

# Organ and head that say what a label of the chest says, where its rule has no mention.
CHEST_LABEL_OF = {
    ("aorta", "calcification"): "Arterial wall calcification",
    ("vessels", "calcification"): "Arterial wall calcification",
    ("heart", "enlargement"): "Cardiomegaly",
    ("lymph nodes", "enlargement"): "Lymphadenopathy",
    ("lymph nodes", "node"): "Lymphadenopathy",
    ("pericardium", "collection"): "Pericardial effusion",
    ("pericardium", "fluid"): "Pericardial effusion",
    ("pleura", "fluid"): "Pleural effusion",
}

ABDOMEN: tuple[RegionLabel, ...] = (
    RegionLabel("Liver lesion", ("liver",), ("lesion",)),
    RegionLabel("Liver cyst", ("liver",), ("cyst",)),
    RegionLabel("Hepatic steatosis", ("liver",), ("steatosis",)),
    RegionLabel("Hepatomegaly", ("liver",), ("enlargement",)),
    RegionLabel("Cirrhosis", ("liver",), ("cirrhosis",)),
    RegionLabel("Gallstone", ("gallbladder",), ("stone",)),
    RegionLabel("Cholecystitis", ("gallbladder",), ("inflammation", "thickening")),
    RegionLabel("Biliary dilatation", ("bile duct",), ("dilatation",)),
    RegionLabel("Pancreatic lesion", ("pancreas",), ("lesion", "cyst")),
    RegionLabel("Pancreatic duct dilatation", ("pancreatic duct",), ("dilatation",)),
    RegionLabel("Pancreatitis", ("pancreas",), ("inflammation",)),
    RegionLabel("Splenomegaly", ("spleen",), ("enlargement",)),
    RegionLabel("Splenic lesion", ("spleen",), ("lesion", "cyst")),
    RegionLabel("Adrenal nodule", ("adrenal gland",), ("lesion", "thickening")),
    RegionLabel("Renal stone", ("kidney", "ureter"), ("stone",)),
    RegionLabel("Renal cyst", ("kidney",), ("cyst",)),
    RegionLabel("Renal lesion", ("kidney",), ("lesion",)),
    RegionLabel("Hydronephrosis", ("kidney", "ureter"), ("dilatation", "obstruction")),
    RegionLabel("Renal atrophy", ("kidney",), ("atrophy",)),
    RegionLabel("Bowel obstruction", ("bowel", "colon"), ("obstruction", "dilatation")),
    RegionLabel("Bowel wall thickening", ("bowel", "colon", "stomach"), ("thickening",)),
    RegionLabel("Bowel inflammation", ("bowel", "colon"), ("inflammation",)),
    RegionLabel("Diverticulosis", ("colon", "bowel"), ("diverticulum",)),
    RegionLabel("Appendicitis", ("appendix",), ("inflammation", "dilatation", "thickening")),
    RegionLabel("Hernia", ("abdominal wall", "stomach"), ("hernia",)),
    RegionLabel("Ascites", ("peritoneum",), ("fluid",)),
    RegionLabel("Free air", ("peritoneum",), ("free air",)),
    RegionLabel("Peritoneal lesion", ("peritoneum",), ("lesion",)),
    RegionLabel("Abdominal lymphadenopathy", ("lymph nodes",), ("node",)),
    RegionLabel("Aortic aneurysm", ("aorta",), ("aneurysm", "dilatation")),
    RegionLabel("Aortic calcification", ("aorta", "vessels"), ("calcification",)),
    RegionLabel("Venous thrombosis", ("veins",), ("thrombus",)),
    RegionLabel("Bladder finding", ("bladder",), ("thickening", "lesion", "stone", "diverticulum")),
    RegionLabel("Prostate enlargement", ("prostate",), ("enlargement",)),
    RegionLabel("Uterine lesion", ("uterus", "reproductive organs"), ("lesion",)),
    RegionLabel("Ovarian lesion", ("ovary",), ("lesion", "cyst")),
    RegionLabel("Fracture", ("bone", "spine"), ("fracture",)),
    RegionLabel("Degenerative bone change", ("bone", "spine"), ("degeneration",)),
    RegionLabel("Bone lesion", ("bone", "spine"), ("lesion",)),
)
