"""Sentence skeletons of the abdomen and pelvis; `report.py` says how a skeleton is filled.

Every sentence was written for this package; none is taken from a report corpus.
"""

from .vocabulary import Organ, Vocabulary

_NOUNS: dict[str, tuple[str, ...]] = {
    "Liver lesion": ("liver lesion", "focal liver lesion"),
    "Hepatic steatosis": ("hepatic steatosis", "fatty liver"),
    "Gallstone": ("gallstone", "cholelithiasis"),
    "Splenomegaly": ("splenomegaly", "splenic enlargement"),
    "Pancreatic lesion": ("pancreatic lesion", "pancreatic mass"),
    "Adrenal nodule": ("adrenal nodule", "adrenal lesion"),
    "Renal cyst": ("renal cyst", "cortical cyst"),
    "Renal stone": ("renal stone", "nephrolithiasis"),
    "Hydronephrosis": ("hydronephrosis", "dilatation of the renal pelvis"),
    "Bowel obstruction": ("small bowel obstruction", "dilated small bowel"),
    "Bowel wall thickening": ("bowel wall thickening", "colonic wall thickening"),
    "Ascites": ("ascites", "free fluid"),
    "Aortic aneurysm": ("aortic aneurysm", "aneurysm of the abdominal aorta"),
    "Aortic calcification": ("aortic calcification", "calcified aortic plaque"),
    "Abdominal lymphadenopathy": ("lymphadenopathy", "enlarged lymph node"),
}

_POSITIVES: dict[str, tuple[str, ...]] = {
    "Liver lesion": (
        "{a} [{size} ][{kind} ]lesion in [{region} of ]the liver.",
        "There is {a} [{kind} ]liver lesion[ {measuring}][ in {region}].",
        "[In {region} of the liver there is ]{a} [{kind} ]focal lesion[ {measuring}].",
        "The liver holds {a} [{kind} ]lesion[ of {size}][ in {region}].",
        "{n} [{kind} ]lesions in [{region} of ]the liver[, {measuring}].",
        "There are {n} [{kind} ]liver lesions[ up to {size}][ in {region}].",
        "{n} [{kind} ]focal liver lesions[ in {region}][, {measuring}].",
        "[{kind} ]focal liver lesion{s}[ in {region}][, {measuring}].",
    ),
    "Hepatic steatosis": (
        "[{severity} ]hepatic steatosis.",
        "The liver shows [{severity} ]diffuse fatty infiltration.",
        "Attenuation of the liver is diffusely lowered, [{severity} ]steatosis.",
        "[{severity} ]fatty liver.",
        "There is [{severity} ]diffuse steatosis of the liver.",
    ),
    "Gallstone": (
        "{a} gallstone[ of {size}].",
        "There is {a} calcified stone[ {measuring}] in the gallbladder.",
        "The gallbladder holds {a} stone[ of {size}].",
        "{n} gallstones[, {measuring}].",
        "There are {n} calcified stones in the gallbladder[, {measuring}].",
        "Cholelithiasis with {n} stones[ up to {size}].",
        "Calcified gallstone{s}[, {measuring}].",
    ),
    "Splenomegaly": (
        "[{severity} ]splenomegaly[, {size} in length].",
        "The spleen is [{severity}ly ]enlarged[, {size} long].",
        "There is [{severity} ]splenic enlargement[ with a length of {size}].",
        "[{severity}ly ]enlarged spleen[ measuring {size} craniocaudally].",
        "The length of the spleen is [{severity}ly ]increased[ to {size}].",
    ),
    "Pancreatic lesion": (
        "{a} [{size} ][{kind} ]lesion in the [{region}].",
        "There is {a} [{kind} ]mass[ {measuring}][ in the {region}].",
        "[{kind} ]pancreatic lesion[ of {size}][ in the {region}].",
        "[In the {region} there is ]{a} [{kind} ]focal pancreatic lesion[ {measuring}].",
        "Pancreatic lesion[, {kind}][, {region}][, {size}].",
    ),
    "Adrenal nodule": (
        "{a} [{size} ][{side} ]adrenal nodule.",
        "There is {a} nodule[ {measuring}] of the [{side} ]adrenal gland.",
        "The [{side} ]adrenal gland holds {a} nodule[ of {size}].",
        "[{side} ]adrenal nodule[, {size}].",
    ),
    "Renal cyst": (
        "{a} [{size} ]cyst in the [{region} of the ][{side} ]kidney.",
        "There is {a} simple [{side} ]renal cyst[ {measuring}][ in the {region}].",
        "[{side} ]renal cyst[ of {size}][ in the {region}].",
        "The [{side} ]kidney holds {a} cortical cyst[ of {size}][ in its {region}].",
        "{n} cysts in the [{region} of the ][{side} ]kidney[, {measuring}].",
        "There are {n} [{side} ]renal cysts[ in the {region}][, {measuring}].",
        "[{side} ]renal cyst{s}[ in the {region}][, {measuring}].",
    ),
    "Renal stone": (
        "{a} [{size} ]stone in the [{region} of the ][{side} ]kidney.",
        "There is {a} [{side} ]renal stone[ {measuring}][ in the {region}].",
        "[{side} ]nephrolithiasis[ with a stone of {size}][ in the {region}].",
        "The [{side} ]kidney holds {a} calculus[ of {size}][ in its {region}].",
        "[{side} ]renal stone{s}[ in the {region}][, {measuring}].",
    ),
    "Hydronephrosis": (
        "[{severity} ][{side} ]hydronephrosis.",
        "There is [{severity} ]hydronephrosis of the [{side} ]kidney.",
        "The [{side} ]renal pelvis is [{severity}ly ]dilated.",
        "[{severity} ]dilatation of the [{side} ]renal collecting system.",
        "[{side} ]collecting system with [{severity} ]hydronephrosis.",
    ),
    "Bowel obstruction": (
        "Dilated small bowel loops with air-fluid levels[, up to {size}].",
        "Small bowel obstruction[ with loops dilated to {size}].",
        "There are fluid-filled small bowel loops dilated[ to {size}], in keeping with obstruction.",
        "The small bowel is dilated[ to {size}] with air-fluid levels, suggesting obstruction.",
        "Obstructed small bowel[, caliber up to {size}].",
    ),
    "Bowel wall thickening": (
        "Wall thickening of the {region}[, up to {size}].",
        "The wall of the {region} is thickened[ to {size}].",
        "There is circumferential wall thickening of the {region}[ measuring {size}].",
        "Thickened wall of the {region}[, {size} thick].",
        "Bowel wall thickening[ {place}][, {size}].",
    ),
    "Ascites": (
        "[{severity} ]ascites.",
        "There is [{severity} ]ascites around the liver and in the pelvis.",
        "[{severity} ]free intraperitoneal fluid.",
        "Free fluid in the abdomen and pelvis[, {severity} in amount].",
        "[{severity} ]amount of free abdominal fluid.",
    ),
    "Aortic aneurysm": (
        "[{region} ]aneurysm of the abdominal aorta[, {size} across].",
        "There is {a} [{region} ]abdominal aortic aneurysm[ {measuring}].",
        "[{region} ]abdominal aortic aneurysm[ of {size}].",
        "The abdominal aorta is aneurysmal[ at the {region} level][, {size} in diameter].",
        "Aneurysmal [{region} ]aorta[ with a diameter of {size}].",
    ),
    "Aortic calcification": (
        "[{severity} ]calcification of the abdominal aorta.",
        "[{severity} ]calcified plaques in the wall of the abdominal aorta.",
        "There is [{severity} ]atherosclerotic calcification of the abdominal aorta.",
        "The aortic wall is [{severity}ly ]calcified.",
        "[{severity} ]aortic atherosclerosis with calcified plaques.",
    ),
    "Abdominal lymphadenopathy": (
        "{a} enlarged [{side} ][{region} ]lymph node[, {size} in short axis].",
        "There is {a} [{side} ][{region} ]lymph node[ with a short axis of {size}].",
        "{n} enlarged [{side} ][{region} ]lymph nodes[, {measuring} in short axis].",
        "[{side} ][{region} ]lymphadenopathy with {n} nodes[, {measuring}].",
        "There are {n} [{side} ][{region} ]lymph nodes[ with short axes up to {size}].",
        "[{side} ][{region} ]lymphadenopathy[, {measuring}].",
    ),
}

_IMPRESSIONS: dict[str, tuple[str, ...]] = {
    "Liver lesion": (
        "[{kind} ]liver lesion{s}[ in {region}][, {measuring}].",
        "[{kind} ]focal liver lesion{s}[, {size}][, {region}].",
    ),
    "Hepatic steatosis": ("[{severity} ]hepatic steatosis.", "[{severity} ]fatty liver."),
    "Gallstone": ("Cholelithiasis.", "Gallstone{s}[, {size}]."),
    "Splenomegaly": ("[{severity} ]splenomegaly[, {size}].", "[{severity}ly ]enlarged spleen[, {size}]."),
    "Pancreatic lesion": (
        "[{kind} ]lesion of the {region}[, {size}].",
        "[{kind} ]pancreatic lesion[ in the {region}][, {size}].",
    ),
    "Adrenal nodule": (
        "[{side} ]adrenal nodule[ of {size}].",
        "Nodule of the [{side} ]adrenal gland[, {size}].",
    ),
    "Renal cyst": ("[{side} ]renal cyst{s}[, {size}].", "Simple [{side} ]renal cyst{s}."),
    "Renal stone": ("[{side} ]renal stone{s}[ of {size}].", "[{side} ]nephrolithiasis[, {size}]."),
    "Hydronephrosis": (
        "[{severity} ][{side} ]hydronephrosis.",
        "[{severity} ]hydronephrosis of the [{side} ]kidney.",
    ),
    "Bowel obstruction": ("Small bowel obstruction.", "Dilated small bowel loops, suggesting obstruction."),
    "Bowel wall thickening": (
        "Wall thickening of the {region}, which may represent inflammation.",
        "Thickened wall of the {region}[, {size}].",
    ),
    "Ascites": ("[{severity} ]ascites.", "[{severity} ]free abdominal fluid."),
    "Aortic aneurysm": (
        "Abdominal aortic aneurysm[ of {size}].",
        "Aneurysm of the abdominal aorta[, {size}].",
    ),
    "Aortic calcification": ("[{severity} ]aortic calcification.", "[{severity} ]aortic atherosclerosis."),
    "Abdominal lymphadenopathy": (
        "[{side} ][{region} ]lymphadenopathy[, up to {size}].",
        "Enlarged [{side} ][{region} ]lymph node{s}[, {measuring}].",
    ),
}

_ORGANS = (
    Organ(
        ("Liver lesion", "Hepatic steatosis"),
        (
            "The liver is normal in size and attenuation.",
            "No focal liver lesion.",
            "The liver is homogeneous without a focal lesion.",
            "Normal liver, without steatosis or mass.",
            "Liver size, contour and density are normal.",
        ),
        "The size, contour and parenchymal density of the liver are normal and no solid or cystic "
        "mass is detected in it.",
        "The examination covers the abdomen from the domes of the diaphragm down to the pubic "
        "symphysis and was reviewed in "
        "soft tissue, lung and bone windows.",
    ),
    Organ(
        ("Gallstone",),
        (
            "The gallbladder is unremarkable.",
            "No gallstone.",
            "The gallbladder holds no stone.",
            "Normal gallbladder and bile ducts.",
        ),
        "The gallbladder is of normal size and contour, its lumen is free, and no calculus is "
        "observed in its projection.",
        "The intrahepatic and extrahepatic bile ducts follow their usual course towards the duodenum.",
    ),
    Organ(
        ("Splenomegaly",),
        (
            "The spleen is normal in size.",
            "Normal spleen.",
            "No splenomegaly.",
            "The spleen is not enlarged.",
        ),
        "The spleen is of normal size and contour, and its parenchyma has the usual homogeneous density.",
        "The stomach lies in its normal position below the left dome of the diaphragm and is partly filled.",
    ),
    Organ(
        ("Pancreatic lesion", "Adrenal nodule"),
        (
            "Pancreas and adrenal glands are normal.",
            "No pancreatic or adrenal mass.",
            "The pancreas and both adrenal glands are unremarkable.",
            "Normal pancreas; no adrenal nodule.",
        ),
        "The pancreas is of normal thickness and lobulation, the main duct is not dilated, and both "
        "adrenal glands are "
        "normal in shape and thickness.",
        "The fat planes around the pancreas can be followed from the duodenum to the hilum of the spleen.",
    ),
    Organ(
        ("Renal cyst", "Renal stone", "Hydronephrosis"),
        (
            "The kidneys are unremarkable.",
            "No renal stone or hydronephrosis.",
            "Both kidneys are normal, without cyst, stone or dilatation.",
            "Kidneys of normal size without hydronephrosis.",
            "Normal kidneys and collecting systems.",
        ),
        "Both kidneys are normal in location, size and parenchymal thickness, no stone or solid mass "
        "is detected, and the "
        "collecting systems are not dilated.",
        "Both kidneys lie in their usual retroperitoneal position beside the psoas muscles, the left "
        "higher than the right.",
    ),
    Organ(
        ("Bowel obstruction", "Bowel wall thickening"),
        (
            "The bowel is unremarkable.",
            "No bowel obstruction or wall thickening.",
            "Bowel loops are of normal caliber and wall thickness.",
            "Normal small and large bowel.",
            "There is no dilated or thickened bowel loop.",
        ),
        "The small and large bowel loops are of normal caliber and wall thickness, and no transition "
        "point or inflammatory "
        "change is observed along their course.",
        "Gas and stool are present in the colon, which can be followed from the cecum to the rectum.",
    ),
    Organ(
        ("Ascites",),
        (
            "No ascites.",
            "No free fluid.",
            "There is no free abdominal fluid.",
            "The peritoneal cavity is dry.",
        ),
        "No free or loculated fluid collection is detected in the abdominal cavity or in the pelvis.",
        "The abdominal wall is intact and its muscles are symmetrical on both sides of the midline.",
    ),
    Organ(
        ("Aortic aneurysm", "Aortic calcification"),
        (
            "The abdominal aorta is normal.",
            "No aortic aneurysm or calcification.",
            "Normal caliber of the abdominal aorta without plaques.",
            "The aorta is of normal caliber and free of calcification.",
        ),
        "The abdominal aorta and the common iliac arteries are of normal caliber and their walls "
        "show no calcified plaque.",
        "The inferior vena cava lies to the right of the aorta and both vessels divide at the usual level.",
    ),
    Organ(
        ("Abdominal lymphadenopathy",),
        (
            "No lymphadenopathy.",
            "No enlarged abdominal or pelvic lymph node.",
            "Lymph nodes are not enlarged.",
            "There is no retroperitoneal or pelvic lymphadenopathy.",
        ),
        "No lymph node in pathological size or configuration is detected in the mesentery, in the "
        "retroperitoneum or in the "
        "pelvis.",
        "The urinary bladder is of normal contour, and the lumbar vertebrae, pelvic bones and both "
        "hip joints included in "
        "the sections show no lytic or destructive lesion.",
    ),
)

ABDOMEN = Vocabulary(
    labels=tuple(_NOUNS),
    nouns=_NOUNS,
    positives=_POSITIVES,
    impressions=_IMPRESSIONS,
    importance=(
        "Bowel obstruction",
        "Aortic aneurysm",
        "Pancreatic lesion",
        "Hydronephrosis",
        "Liver lesion",
        "Bowel wall thickening",
        "Ascites",
        "Abdominal lymphadenopathy",
        "Splenomegaly",
        "Adrenal nodule",
        "Renal stone",
        "Gallstone",
        "Hepatic steatosis",
        "Renal cyst",
        "Aortic calcification",
    ),
    organs=_ORGANS,
    impression_normal=(
        "No acute abnormality of the abdomen or pelvis.",
        "Normal CT of the abdomen and pelvis.",
        "No acute abdominal or pelvic abnormality.",
    ),
)
