"""Sentence skeletons of the phantom report; `report.py` says how a skeleton is filled.

Every sentence was written for this package; none is taken from a report corpus.
"""

from __future__ import annotations

# Noun phrases of a label, for the lists of what is absent. The first also names it in a list of what is present.
LABEL_NOUNS: dict[str, tuple[str, ...]] = {
    "Medical material": ("medical device", "medical material", "indwelling device"),
    "Arterial wall calcification": ("aortic calcification", "arterial wall calcification"),
    "Cardiomegaly": ("cardiomegaly", "cardiac enlargement"),
    "Pericardial effusion": ("pericardial effusion", "pericardial fluid"),
    "Coronary artery wall calcification": ("coronary calcification", "coronary artery calcification"),
    "Hiatal hernia": ("hiatal hernia", "hiatus hernia"),
    "Lymphadenopathy": ("lymphadenopathy", "enlarged lymph node"),
    "Emphysema": ("emphysema", "emphysematous change"),
    "Atelectasis": ("atelectasis", "volume loss"),
    "Lung nodule": ("lung nodule", "pulmonary nodule"),
    "Lung opacity": ("ground-glass opacity", "ground-glass density"),
    "Pulmonary fibrotic sequela": ("fibrotic scarring", "fibrotic change"),
    "Pleural effusion": ("pleural effusion", "pleural fluid"),
    "Mosaic attenuation pattern": ("mosaic attenuation", "mosaic perfusion"),
    "Peribronchial thickening": ("peribronchial thickening", "peribronchial cuffing"),
    "Consolidation": ("consolidation", "airspace consolidation"),
    "Bronchiectasis": ("bronchiectasis", "bronchial dilatation"),
    "Interlobular septal thickening": ("septal thickening", "interlobular septal thickening"),
}

# Sentences about a label that is present. Each label has at least one skeleton without a required slot.
POSITIVES: dict[str, tuple[str, ...]] = {
    "Medical material": (
        "{kind} in place[ {place}].",
        "{kind} in situ[ {place}].",
        "{kind} noted as medical material[ {place}].",
        "There is medical hardware[ {place}]: {kind}.",
        "Status post placement of {kind}, in place[ {place}].",
        "Indwelling device[ {place}]: {kind}.",
        "A medical device is in place[ {place}].",
        "Medical material is seen[ {place}].",
    ),
    "Arterial wall calcification": (
        "[{severity} ]calcified plaques in the wall of the {where}.",
        "There is [{severity} ]calcification of the {where}.",
        "[{severity} ]atherosclerotic wall calcification[ {place}].",
        "[{severity} ]calcific atherosclerosis of the {where}.",
        "Calcified atheromatous plaques, [{severity}, ]along the {where}.",
        "The wall of the {where} shows [{severity} ]calcification.",
        "[{severity} ]calcification of the thoracic aorta.",
        "[{severity} ]calcified plaques in the aortic wall.",
    ),
    "Cardiomegaly": (
        "[{severity} ]cardiomegaly[, transverse diameter {size}].",
        "The heart is [{severity}ly ]enlarged[, {size} across].",
        "Heart size is [{severity}ly ]increased[, measuring {size} transversely].",
        "There is [{severity} ]enlargement of the heart[, {size} in transverse diameter].",
        "[{severity} ]cardiac enlargement[ with a transverse diameter of {size}].",
        "Cardiac size is [{severity}ly ]enlarged[, {size} in width].",
        "The cardiac silhouette is [{severity}ly ]enlarged[, with a width of {size}].",
    ),
    "Pericardial effusion": (
        "[{severity} ]pericardial effusion[, {size} in thickness].",
        "There is {a} [{severity} ]pericardial effusion[ measuring {size}].",
        "[{severity} ]fluid in the pericardial space[, up to {size} thick].",
        "[{severity} ]pericardial fluid collection[ with a depth of {size}].",
        "The pericardium contains fluid[, {severity} in amount][, {size} deep].",
        "[{severity} ]circumferential pericardial effusion[ of {size}].",
    ),
    "Coronary artery wall calcification": (
        "[{severity} ]coronary artery calcification[ {place}].",
        "There is [{severity} ]calcification of the coronary arteries[, mainly {place}].",
        "[{severity} ]calcified plaques in the coronary arteries[, {place}].",
        "The coronary arteries are [{severity}ly ]calcified[, most {place}].",
        "[{severity} ]coronary atherosclerotic calcification[ {place}].",
        "[{severity} ]calcific coronary artery disease[ {place}].",
    ),
    "Hiatal hernia": (
        "[{severity} ][{kind} ]hiatal hernia[ measuring {size}].",
        "There is {a} [{severity} ][{kind} ]hiatal hernia[, {size} in size].",
        "[{severity} ][{kind} ]hiatus hernia[ of {size}].",
        "Part of the stomach lies above the diaphragm, a [{severity} ][{kind} ]hiatal hernia[ of {size}].",
        "[{severity} ][{kind} ]herniation of the stomach through the esophageal hiatus[, {size}].",
        "At the esophageal hiatus there is {a} [{severity} ][{kind} ]hernia[ measuring {size}].",
    ),
    "Lymphadenopathy": (
        "{a} [{side} ][{region} ]lymph node[ with a short axis of {size}].",
        "Enlarged [{side} ][{region} ]lymph node[, {size} in short axis].",
        "There is {a} [{size} ]enlarged [{side} ][{region} ]lymph node.",
        "{n} enlarged [{side} ][{region} ]lymph nodes[, {measuring} in short axis].",
        "[{side} ][{region} ]lymphadenopathy with {n} nodes[, {measuring}].",
        "There are {n} [{side} ][{region} ]lymph nodes[ with short axes up to {size}].",
        "[{side} ][{region} ]lymphadenopathy[, {measuring}].",
        "[{side} ][{region} ]adenopathy[ up to {size}].",
    ),
    "Emphysema": (
        "[{severity} ][{kind} ]emphysema[ {place}].",
        "There is [{severity} ][{kind} ]emphysema[ {place}].",
        "[{severity} ][{kind} ]emphysematous changes[ {place}].",
        "[{severity} ]areas of [{kind} ]emphysema[ {place}].",
        "The {where} shows [{severity} ][{kind} ]emphysematous change.",
        "[{severity} ]parenchymal destruction with [{kind} ]emphysema[ {place}].",
    ),
    "Atelectasis": (
        "[{severity} ][{kind} ]atelectasis[ {place}][, {size} thick].",
        "There is [{severity} ][{kind} ]atelectasis[ {place}][, {measuring}].",
        "[{severity} ][{kind} ]volume loss with atelectasis[ {place}][, {size}].",
        "[{severity} ][{kind} ]atelectatic change[ {place}][ of {size}].",
        "A [{severity} ][{kind} ]band of atelectasis[ {measuring}] lies {place}.",
        "[{severity} ]partial collapse[ {place}] with [{kind} ]atelectasis[ of {size}].",
    ),
    "Lung nodule": (
        "{a} [{size} ][{kind} ]nodule {place}.",
        "There is {a} [{kind} ]pulmonary nodule[ {measuring}][ {place}].",
        "[{kind} ]lung nodule[ of {size}][ {place}].",
        "[{place}, ]{a} [{kind} ]nodule[ {measuring}] is seen.",
        "{a} solitary [{kind} ]nodule[ {measuring}] lies {place}.",
        "{n} [{kind} ]nodules[ {place}][, {measuring}].",
        "There are {n} [{kind} ]pulmonary nodules[ {place}][, {measuring}].",
        "{n} [{kind} ]lung nodules[ up to {size}][ {place}].",
        "[{place}, ]{n} [{kind} ]nodules are seen[, {measuring}].",
        "[{kind} ]pulmonary nodule{s}[ {place}][, {measuring}].",
    ),
    "Lung opacity": (
        "[{severity} ][{kind} ]ground-glass opacit{y}[ {place}][, {measuring}].",
        "There {is} [{severity} ][{kind} ]ground-glass opacit{y}[ {place}][, {measuring}].",
        "[{severity} ]area{s} of [{kind} ]ground-glass density[ {place}][, {measuring}].",
        "{n} [{severity} ][{kind} ]ground-glass opacities[ {place}][, {measuring}].",
        "{n} areas of [{severity} ][{kind} ]ground-glass attenuation[ {place}][, {measuring}].",
        "[{place} there {is} ][{severity} ][{kind} ]hazy ground-glass opacification[, {measuring}].",
        "[{severity} ][{kind} ]ground-glass attenuation[ {place}][, {size} in extent].",
    ),
    "Pulmonary fibrotic sequela": (
        "[{severity} ][{kind} ]fibrotic scarring[ {place}][, {size}].",
        "[{severity} ][{kind} ]fibrotic changes[ {place}][, {measuring}].",
        "There is [{severity} ][{kind} ]fibrosis[ {place}][ over {size}].",
        "[{severity} ][{kind} ]sequela of prior disease with fibrotic bands[ {place}][, {size}].",
        "[{severity} ][{kind} ]pleuroparenchymal fibrotic bands[ {place}][, {size} long].",
        "[{severity} ][{kind} ]fibrotic sequelae[ {place}][, {measuring}].",
    ),
    "Pleural effusion": (
        "[{severity} ][{side} ]pleural effusion{s}[, {size} in depth].",
        "There {is} [{severity} ][{side} ]pleural effusion{s}[ {measuring}].",
        "[{severity} ][{side} ]pleural fluid[ up to {size} thick].",
        "[{severity} ]free fluid in the [{side} ]pleural space[, {size} in thickness].",
        "[{severity} ][{side} ]layering pleural effusion{s}[ of {size}].",
        "[{side} ]pleural effusion{s}[, {severity}][, {size} deep].",
    ),
    "Mosaic attenuation pattern": (
        "[{severity} ]mosaic attenuation[ {place}].",
        "[{severity} ]mosaic attenuation pattern[ {place}].",
        "There is [{severity} ]mosaic attenuation[ {place}], suggesting air trapping.",
        "[{severity} ]patchy mosaic perfusion[ {place}].",
        "The lung parenchyma shows [{severity} ]mosaic attenuation[ {place}].",
        "[{severity} ]heterogeneous aeration with a mosaic pattern[ {place}].",
    ),
    "Peribronchial thickening": (
        "[{severity} ]peribronchial thickening[ {place}].",
        "There is [{severity} ]peribronchial thickening[ {place}].",
        "[{severity} ]peribronchial cuffing[ {place}].",
        "[{severity} ]thickening of the peribronchial interstitium[ {place}].",
        "[{severity} ]peribronchial wall thickening[ {place}].",
        "The peribronchial tissue is [{severity}ly ]thickened[ {place}].",
    ),
    "Consolidation": (
        "[{severity} ][{kind} ]consolidation[ {place}][, {size}].",
        "There is [{severity} ][{kind} ]consolidation[ {place}][, {measuring}].",
        "[{severity} ][{kind} ]airspace consolidation[ {place}][, {measuring}].",
        "A [{size} ][{severity} ]area of [{kind} ]consolidation lies {place}.",
        "{n} foci of [{severity} ][{kind} ]consolidation[ {place}][, {measuring}].",
        "{n} areas of [{severity} ][{kind} ]airspace consolidation[ {place}][, {measuring}].",
        "[{severity} ][{kind} ]parenchymal consolidation[ {place}][ of {size}].",
    ),
    "Bronchiectasis": (
        "[{severity} ][{kind} ]bronchiectasis[ {place}][, up to {size}].",
        "There is [{severity} ][{kind} ]bronchiectasis[ {place}][ with lumina of {size}].",
        "[{severity} ][{kind} ]bronchiectatic changes[ {place}][, {size} wide].",
        "[{severity} ][{kind} ]dilatation of the bronchi[ {place}][ to {size}].",
        "The bronchi are [{severity}ly ]dilated[ {place}][, up to {size}].",
        "[{severity} ]ectatic bronchi[ {place}], [{kind} ]bronchiectasis[ of {size}].",
    ),
    "Interlobular septal thickening": (
        "[{severity} ][{kind} ]interlobular septal thickening[ {place}].",
        "There is [{severity} ][{kind} ]interlobular septal thickening[ {place}].",
        "[{severity} ][{kind} ]thickening of the interlobular septa[ {place}].",
        "The interlobular septa are [{severity}ly ]thickened[ {place}].",
        "[{severity} ][{kind} ]septal thickening[ {place}].",
        "[{severity}ly ]thickened interlobular septa[, {kind},][ {place}].",
    ),
}

# What the impression says of a label, after its findings are merged into one.
IMPRESSIONS: dict[str, tuple[str, ...]] = {
    "Medical material": ("{kind} in place.", "Indwelling {kind}, in place.", "Medical device in place."),
    "Arterial wall calcification": (
        "[{severity} ]calcification of the {where}.",
        "[{severity} ]aortic atherosclerotic calcification.",
    ),
    "Cardiomegaly": ("[{severity} ]cardiomegaly.", "[{severity} ]enlargement of the heart."),
    "Pericardial effusion": (
        "[{severity} ]pericardial effusion[, {size}].",
        "[{severity} ]pericardial fluid[ of {size}].",
    ),
    "Coronary artery wall calcification": (
        "[{severity} ]coronary artery calcification.",
        "[{severity} ]calcific coronary atherosclerosis.",
    ),
    "Hiatal hernia": ("[{severity} ]hiatal hernia[, {size}].", "[{kind} ]hiatus hernia[ of {size}]."),
    "Lymphadenopathy": (
        "[{side} ][{region} ]lymphadenopathy[, up to {size}].",
        "[{side} ][{region} ]lymph node{s}[, {measuring}].",
    ),
    "Emphysema": (
        "[{severity} ][{kind} ]emphysema[ {place}].",
        "[{severity} ]emphysematous changes[ {place}].",
    ),
    "Atelectasis": ("[{severity} ]atelectasis[ {place}].", "[{severity} ]atelectatic change[ {place}]."),
    "Lung nodule": (
        "[{size} ][{kind} ]nodule {place}.",
        "[{kind} ]pulmonary nodule[ {place}][, {size}].",
        "{n} [{kind} ]lung nodules[ {place}][, {measuring}].",
        "{n} [{kind} ]pulmonary nodules[ up to {size}][ {place}].",
        "[{kind} ]lung nodule{s}[ {place}][, {measuring}].",
    ),
    "Lung opacity": (
        "[{severity} ]ground-glass opacit{y}[ {place}].",
        "[{severity} ]ground-glass attenuation[ {place}].",
    ),
    "Pulmonary fibrotic sequela": (
        "[{severity} ]fibrotic scarring[ {place}].",
        "[{severity} ]fibrotic changes[ {place}].",
    ),
    "Pleural effusion": (
        "[{severity} ][{side} ]pleural effusion{s}.",
        "[{side} ]pleural effusion{s}[, {severity}].",
    ),
    "Mosaic attenuation pattern": (
        "[{severity} ]mosaic attenuation, possible small airway disease.",
        "[{severity} ]mosaic attenuation pattern[ {place}].",
    ),
    "Peribronchial thickening": (
        "[{severity} ]peribronchial thickening[ {place}].",
        "[{severity} ]peribronchial cuffing[ {place}].",
    ),
    "Consolidation": (
        "[{severity} ]consolidation[ {place}], which may represent infection.",
        "[{severity} ]airspace consolidation[ {place}].",
    ),
    "Bronchiectasis": (
        "[{severity} ][{kind} ]bronchiectasis[ {place}].",
        "[{severity} ]bronchiectatic changes[ {place}].",
    ),
    "Interlobular septal thickening": (
        "[{severity} ]interlobular septal thickening[ {place}].",
        "[{severity} ]septal thickening[ {place}], which may reflect interstitial edema.",
    ),
}

# Most urgent first.
IMPORTANCE: tuple[str, ...] = (
    "Consolidation",
    "Pericardial effusion",
    "Pleural effusion",
    "Lung nodule",
    "Lung opacity",
    "Lymphadenopathy",
    "Cardiomegaly",
    "Interlobular septal thickening",
    "Atelectasis",
    "Emphysema",
    "Bronchiectasis",
    "Pulmonary fibrotic sequela",
    "Mosaic attenuation pattern",
    "Peribronchial thickening",
    "Coronary artery wall calcification",
    "Arterial wall calcification",
    "Hiatal hernia",
    "Medical material",
)
IMPRESSION_ALSO: tuple[str, ...] = ("Also {nouns}.", "Further findings: {nouns}.", "In addition, {nouns}.")
IMPRESSION_NORMAL: tuple[str, ...] = (
    "No acute cardiopulmonary abnormality.",
    "No acute cardiopulmonary abnormality on chest CT.",
    "Normal chest CT. No acute cardiopulmonary abnormality.",
)

# How the absent labels of a group are listed when another label of the group is present.
NEGATIVE_FRAMES: tuple[str, ...] = (
    "No {nouns}.",
    "There is no {nouns}.",
    "No evidence of {nouns}.",
    "No {nouns} is seen.",
)

# Labels reported together, in anatomical order, and the sentences for a group of which nothing is present.
GROUPS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (
        ("Medical material",),
        (
            "No medical device.",
            "No indwelling catheter or device.",
            "No medical material is seen.",
            "There is no catheter, tube or implanted device.",
        ),
    ),
    (
        ("Bronchiectasis", "Peribronchial thickening"),
        (
            "The trachea and main bronchi are patent.",
            "The central airways are patent, without bronchiectasis or peribronchial thickening.",
            "Trachea and both main bronchi are clear.",
            "The airways are of normal caliber with no peribronchial thickening.",
            "Airways are patent without bronchiectasis.",
        ),
    ),
    (
        ("Consolidation", "Lung nodule", "Lung opacity"),
        (
            "No nodule, consolidation or ground-glass opacity.",
            "There is no focal consolidation, ground-glass opacity or pulmonary nodule.",
            "The lungs show no nodule or infiltrate.",
            "No suspicious pulmonary nodule or airspace disease.",
            "Neither consolidation nor nodule is seen in the lungs.",
            "No focal lung lesion or infiltration.",
        ),
    ),
    (
        (
            "Atelectasis",
            "Pulmonary fibrotic sequela",
            "Emphysema",
            "Mosaic attenuation pattern",
            "Interlobular septal thickening",
        ),
        (
            "The lungs are well expanded and evenly aerated.",
            "Lung volumes and aeration are normal.",
            "No atelectasis, emphysema or fibrotic change.",
            "There is no emphysema, scarring or septal thickening.",
            "Background lung parenchyma is normal.",
            "Normal aeration of both lungs without fibrosis or atelectasis.",
        ),
    ),
    (
        ("Pleural effusion", "Pericardial effusion"),
        (
            "No pleural or pericardial effusion.",
            "There is no pleural or pericardial fluid.",
            "The pleural and pericardial spaces are dry.",
            "Neither pleural nor pericardial effusion is present.",
            "No effusion in the pleural or pericardial space.",
        ),
    ),
    (
        ("Cardiomegaly",),
        (
            "Heart size is normal.",
            "The heart is not enlarged.",
            "The heart is normal in size.",
            "No cardiomegaly.",
            "Cardiac size is within normal limits.",
        ),
    ),
    (
        ("Coronary artery wall calcification", "Arterial wall calcification"),
        (
            "No coronary or aortic calcification.",
            "The aorta and coronary arteries are free of calcification.",
            "No vascular calcification.",
            "There is no calcified plaque in the aorta or coronary arteries.",
            "The thoracic aorta is normal in caliber without calcification.",
        ),
    ),
    (
        ("Lymphadenopathy",),
        (
            "No lymphadenopathy.",
            "No enlarged mediastinal, hilar or axillary lymph nodes.",
            "There is no mediastinal or hilar lymphadenopathy.",
            "Lymph nodes are not enlarged.",
            "No pathologically enlarged lymph node is seen.",
        ),
    ),
    (
        ("Hiatal hernia",),
        (
            "The imaged upper abdomen is unremarkable.",
            "No hiatal hernia; upper abdomen is normal.",
            "Upper abdominal organs are normal.",
            "No hiatal hernia.",
            "The visualized upper abdomen shows no abnormality.",
        ),
    ),
)
