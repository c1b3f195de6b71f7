import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_mu2.scoring.measures import find_sides, find_sizes, one_side
from hf_mu2.scoring.regions import (
    ABDOMEN_LABELS,
    RegionFinding,
    compare_findings,
    label_abdomen,
    read_findings,
)

STATED = {
    "Liver lesion": [
        "A 2 cm hypodense lesion in segment 6 of the liver.",
        "Hepatic metastases in both lobes.",
    ],
    "Liver cyst": ["Simple hepatic cyst.", "There are two cysts in the left lobe of the liver."],
    "Hepatic steatosis": ["Diffuse fatty infiltration of the liver.", "Moderate hepatosteatosis."],
    "Hepatomegaly": ["Hepatomegaly.", "The liver is enlarged."],
    "Cirrhosis": ["Cirrhotic configuration of the liver."],
    "Gallstone": ["Cholelithiasis.", "Gallbladder: a 6 mm calculus in the lumen."],
    "Cholecystitis": ["Findings of acute cholecystitis.", "The gallbladder wall is thickened."],
    "Biliary dilatation": ["The common bile duct is dilated to 12 mm.", "Intrahepatic biliary dilatation."],
    "Pancreatic lesion": ["An ill-defined mass in the pancreatic head."],
    "Pancreatic duct dilatation": ["The pancreatic duct is dilated."],
    "Pancreatitis": ["Acute pancreatitis.", "Inflammation around the pancreas."],
    "Splenomegaly": ["Splenomegaly, 15 cm.", "The spleen is enlarged."],
    "Splenic lesion": ["Hypodense lesion of the spleen."],
    "Adrenal nodule": ["Left adrenal adenoma of 14 mm.", "Nodule of the right adrenal gland."],
    "Renal stone": ["Nonobstructing left renal calculus.", "Bilateral nephrolithiasis."],
    "Renal cyst": ["Kidneys: cysts bilaterally.", "A simple cyst of the right kidney."],
    "Renal lesion": ["Enhancing mass in the left kidney."],
    "Hydronephrosis": ["Mild right hydronephrosis.", "The left renal pelvis is dilated."],
    "Renal atrophy": ["The right kidney is atrophic."],
    "Bowel obstruction": ["Small bowel obstruction with a transition point.", "Dilated small bowel loops."],
    "Bowel wall thickening": ["Wall thickening of the sigmoid colon."],
    "Bowel inflammation": ["Colitis.", "Inflammatory stranding around the colon."],
    "Diverticulosis": ["Sigmoid diverticulosis."],
    "Appendicitis": ["Acute appendicitis.", "The appendix is dilated."],
    "Hernia": ["Small umbilical hernia.", "Left inguinal hernia.", "Hiatal hernia."],
    "Ascites": ["Moderate ascites.", "Free fluid in the pelvis."],
    "Free air": ["Pneumoperitoneum.", "Free intraperitoneal air."],
    "Peritoneal lesion": ["Several peritoneal nodules."],
    "Abdominal lymphadenopathy": [
        "Retroperitoneal lymphadenopathy.",
        "An enlarged mesenteric lymph node of 16 mm.",
    ],
    "Aortic aneurysm": ["Infrarenal abdominal aortic aneurysm of 4.5 cm.", "The aorta is aneurysmal."],
    "Aortic calcification": ["Calcified plaques of the abdominal aorta.", "Aortic atherosclerosis."],
    "Venous thrombosis": ["Thrombus in the portal vein."],
    "Bladder finding": ["The bladder wall is thickened.", "A stone in the urinary bladder."],
    "Prostate enlargement": ["The prostate is enlarged."],
    "Uterine lesion": ["Uterine fibroids."],
    "Ovarian lesion": ["A 3 cm cyst of the left ovary.", "Right adnexal mass."],
    "Fracture": ["Healed rib fracture.", "Compression fracture of the L1 vertebra."],
    "Degenerative bone change": ["Degenerative changes of the lumbar spine."],
    "Bone lesion": ["A lytic lesion in the sacrum."],
}
DENIED = [
    "Liver: unremarkable.",
    "No focal liver lesion.",
    "Liver, spleen, pancreas and adrenal glands are normal.",
    "No mass is found in the pancreas, liver or kidney.",
    "The gallbladder holds no stone.",
    "No gallstones or biliary dilatation.",
    "The common bile duct is not dilated.",
    "The kidneys enhance symmetrically without hydronephrosis or stones.",
    "The spleen is not enlarged.",
    "Bowel loops are of normal caliber and wall thickness.",
    "No bowel obstruction, free air or free fluid.",
    "Lymphadenopathy: absent",
    "Lymph nodes: no node is enlarged.",
    "There is no aneurysm of the abdominal aorta.",
    "Bones: no suspicious lesions.",
    "The appendix is normal.",
    "Bladder and prostate are unremarkable.",
]


def stated(text: str) -> set[str]:
    return {label for label, value in label_abdomen(text).items() if value == 1}


def test_every_abdominal_label_has_a_sentence_here():
    assert tuple(STATED) == ABDOMEN_LABELS


@pytest.mark.parametrize(
    ("label", "sentence"), [(label, s) for label, group in STATED.items() for s in group]
)
def test_a_plain_sentence_gets_its_abdominal_label(label, sentence):
    assert stated(sentence) == {label}


@pytest.mark.parametrize("sentence", DENIED)
def test_denied_findings_get_no_abdominal_label(sentence):
    assert stated(sentence) == set()
    assert read_findings(sentence), "a denial is read, not overlooked"


def test_a_hedged_finding_of_the_abdomen_is_the_callers_choice():
    text = "Possible wall thickening of the colon."
    assert label_abdomen(text)["Bowel wall thickening"] == 1
    assert label_abdomen(text, uncertain="negative")["Bowel wall thickening"] == 0
    assert label_abdomen(text, uncertain="ignore")["Bowel wall thickening"] is None
    with pytest.raises(ValueError, match="uncertain"):
        label_abdomen(text, uncertain="perhaps")


def test_an_enumeration_is_one_finding_per_organ():
    found = read_findings("The liver and both kidneys show no tumor.")
    assert [(f.organ, f.head, f.polarity) for f in found] == [
        ("liver", "lesion", "negative"),
        ("kidney", "lesion", "negative"),
    ]


def test_a_sentence_without_an_organ_speaks_of_the_last_one():
    found = read_findings("The liver is homogeneous. A cyst of 8 mm is noted.")
    assert (found[-1].organ, found[-1].head, found[-1].size_mm) == ("liver", "cyst", (8.0,))


def test_sides_and_sizes_go_to_the_finding_they_are_said_of():
    text = "A 2.1 x 1.7 cm cyst in the left kidney and a 4 mm stone in the right kidney."
    assert [(f.head, f.side, f.size_mm) for f in read_findings(text)] == [
        ("cyst", "left", (21.0, 17.0)),
        ("stone", "right", (4.0,)),
    ]


def test_spans_cut_the_head_from_the_text_as_written():
    text = "LIVER:  Two\tCysts.\n\nKidneys: İ no Stone."
    assert [text[slice(*finding.span)] for finding in read_findings(text)] == ["Cysts", "Stone"]


ORIGINAL = (
    "Liver: 2 cm hypodense lesion in segment 6. Gallbladder: No stones. "
    "Right kidney: 5 mm stone in the lower pole. No ascites."
)
SAME = (
    "There is a 20 mm hypodense lesion in segment 6 of the liver. The gallbladder contains no stones. "
    "A 5 mm stone is seen in the lower pole of the right kidney. There is no ascites."
)


def test_another_wording_of_the_same_findings_agrees():
    assert compare_findings(ORIGINAL, SAME, region="abdomen").verdict == "agrees"


def test_repeating_a_finding_with_less_detail_is_no_difference():
    assert (
        compare_findings(ORIGINAL, SAME + " Liver lesion. Renal stone.", region="abdomen").verdict == "agrees"
    )


@pytest.mark.parametrize(
    ("old", "new", "field", "names"),
    [
        ("ascites.", "ascites. Splenomegaly.", "added", [("spleen", "positive")]),
        ("The gallbladder contains no stones. ", "", "lost", [("gallbladder", "negative")]),
        ("contains no stones", "contains stones", "added", [("gallbladder", "positive")]),
        ("contains no stones", "may contain stones", "added", [("gallbladder", "uncertain")]),
        ("right kidney", "left kidney", "moved", [("kidney", "positive")]),
        ("20 mm", "25 mm", "resized", [("liver", "positive")]),
        ("20 mm hypodense", "hypodense", "resized", [("liver", "positive")]),
    ],
)
def test_what_differs_is_named(old, new, field, names):
    comparison = compare_findings(ORIGINAL, SAME.replace(old, new), region="abdomen")
    assert comparison.verdict == "differs"
    found = getattr(comparison, field)
    found = [pair[1] if isinstance(pair, tuple) else pair for pair in found]
    assert [(finding.organ, finding.polarity) for finding in found] == names


@pytest.mark.parametrize(
    ("old", "new", "unread"),
    [
        ("segment 6", "segment 7", "rewrite: 7"),
        ("lower pole", "upper pole", "rewrite: upper"),
        ("ascites.", "ascites. The patient feels well.", "rewrite: the patient feels well"),
        ("ascites.", "ascites and no sign of sarcoidosis.", "rewrite: sarcoidosis"),
    ],
)
def test_content_that_was_not_read_is_unchecked(old, new, unread):
    comparison = compare_findings(ORIGINAL, SAME.replace(old, new), region="abdomen")
    assert comparison.verdict == "unchecked" and unread in comparison.unread


@pytest.mark.parametrize(
    ("text", "region"),
    [("Ventricles are normal.", "head"), ("", "abdomen"), ("Nothing known here.", "pelvis"), ("", "chest")],
)
def test_nothing_read_never_agrees(text, region):
    comparison = compare_findings(text, text, region=region)
    assert comparison.verdict == "unchecked" and comparison.unread


def test_chest_texts_are_compared_by_the_18_labels_and_beyond():
    original = "4 mm nodule in the right upper lobe. The heart size is normal. Thyroid cyst on the left."
    same = "Right upper lobe nodule of 4 mm. The heart is normal in size. Left thyroid cyst."
    assert compare_findings(original, same, region="chest").verdict == "agrees"
    (moved,) = compare_findings(original, same.replace("Right", "Left"), region="chest").moved
    assert moved[0].head == "Lung nodule" and (moved[0].side, moved[1].side) == ("right", "left")
    assert compare_findings(original, same + " Emphysema.", region="chest").added[0].head == "Emphysema"


@pytest.mark.parametrize(
    ("one", "another"),
    [
        ("Ground-glass opacities in both lungs, the largest measuring 67 mm.",
         "In both lungs there is hazy ground-glass opacification, the largest measuring 67 mm."),
        ("Calcified atheromatous plaques, severe, along the descending aorta.",
         "There is severe calcification of the descending aorta."),
        ("Moderate pericardial fluid collection with a depth of 17 mm.",
         "There is a moderate pericardial effusion measuring 17 mm."),
        ("Right hilar lymphadenopathy with two nodes, the largest measuring 23 mm.",
         "Two enlarged right hilar lymph nodes, the largest measuring 23 mm."),
        ("The heart is normal. There is an 18 mm enlarged left axillary lymph node.",
         "The heart is normal. Left axillary lymph node with a short axis of 18 mm."),
        ("No pleural effusion or pneumothorax.", "Neither pleural effusion nor pneumothorax is seen."),
    ],
)  # fmt: skip
def test_wordings_of_one_finding_of_the_chest_agree(one, another):
    assert compare_findings(one, another, region="chest").verdict == "agrees"
    assert compare_findings(another, one, region="chest").verdict == "agrees"


def test_findings_of_the_chest_beside_the_18_labels_are_read():
    original = "No pleural effusion or pneumothorax. No pulmonary embolism. No cavity in the lungs."
    for old, new in (("or pneumothorax", ""), ("No pulm", "Pulm"), (" No cavity in the lungs.", "")):
        assert compare_findings(original, original.replace(old, new), region="chest").verdict == "differs"


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.sampled_from([*DENIED, *(s for group in STATED.values() for s in group)]), min_size=1, max_size=6
    )
)
def test_a_text_agrees_with_itself_in_another_case_and_spacing(sentences):
    text = " ".join(sentences)
    again = text.upper().replace(" ", "  ")
    assert compare_findings(text, again, region="abdomen").verdict == "agrees"
    assert read_findings(text) == read_findings(again)


def test_phantom_abdomens_are_read():
    abdomen = pytest.importorskip("hf_mu2.data.phantom.abdomen_sentences").ABDOMEN
    for organ in abdomen.organs:
        for sentence in (*organ.normals, organ.fixed):
            assert stated(sentence) == set(), sentence
    assert set(abdomen.labels) <= set(ABDOMEN_LABELS)
    for label, nouns in abdomen.nouns.items():
        rng = random.Random(label)
        noun = rng.choice(nouns)
        assert label in stated(f"There is {noun}."), noun
        assert label not in stated(f"There is no {noun}."), noun


@pytest.mark.parametrize(
    ("text", "mm"),
    [
        ("a nodule of 6 mm", (6.0,)),
        ("13x9.3 mm lymph node", (13.0, 9.3)),
        ("3 x 4 x 5 cm mass", (30.0, 40.0, 50.0)),
        ("3 × 4 cm", (30.0, 40.0)),
        ("1,5 x 2 cm", (15.0, 20.0)),
        ("a 10-mm nodule", (10.0,)),
        ("1.2 cm x 8 mm", (12.0, 8.0)),
        ("4-5 mm nodules", (5.0,)),
        ("ranging from 3 to 6 mm", (6.0,)),
        ("grew from 8 mm to 12 mm", (12.0,)),
        ("shrank from 12 mm to 8 mm", (8.0,)),
        ("8 mm (previously 6 mm)", (8.0,)),
        ("6 millimeters", (6.0,)),
        ("2.5cm", (25.0,)),
    ],
)
def test_sizes_are_read_in_millimetres(text, mm):
    (size,) = find_sizes(text)
    assert size.mm == mm and size.largest_mm == max(mm)
    assert find_sizes(text.upper())[0].mm == mm


@pytest.mark.parametrize(
    "text",
    [
        "5 mm slice thickness",
        "slice thickness of 5 mm",
        "12 mm2",
        "120 cm3",
        "3 cm above the carina",
        "3.5 cm proximal to the bifurcation",
        "5 x 3 without a unit",
        "previously 8 mm",
        "T12 and L1",
    ],
)
def test_other_numbers_are_no_sizes(text):
    assert find_sizes(text) == []


@pytest.mark.parametrize(
    ("text", "side"),
    [
        ("left lower lobe", "left"),
        ("Right-sided effusion", "right"),
        ("bilateral effusions", "both"),
        ("both lungs", "both"),
        ("right and left kidney", "both"),
        ("left kidney, and the right one", "both"),
        ("the lingula", "left"),
        ("middle lobe", "right"),
        ("left atrium and right coronary artery", None),
        ("the liver", None),
    ],
)
def test_sides_are_read(text, side):
    assert one_side(find_sides(text)) == side


def test_findings_that_differ_only_in_place_are_equal():
    assert RegionFinding("liver", "cyst", "positive", None, (), (0, 4)) == RegionFinding(
        "liver", "cyst", "positive", None, (), (9, 13)
    )
