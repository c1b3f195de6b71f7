"""What the page and the figures call groups of claims, measures, floors and corpora."""

CLAIM_TITLES = {
    "a": "Parts of the tokenizer",
    "b": "Share of the training studies",
    "c": "Preference training",
    "d": "Negative constraint",
    "e": "Two stages against one",
    "f": "Preprocessing of 1-8 mm studies",
}
MEASURE_TITLES = {
    "macro_f1": "macro-F1",
    "report_f1": "F1 per report (the judge)",
    "coverage": "Coverage",
    "coverage_under_3mm": "Coverage, < 3 mm",
    "coverage_3_to_6mm": "Coverage, 3-6 mm",
    "coverage_6_to_10mm": "Coverage, 6-10 mm",
    "coverage_over_10mm": "Coverage, > 10 mm",
    "accuracy": "Accuracy",
    "accuracy_all_negative": "Accuracy of no finding",
    "crg": "CRG",
    "bleu1": "BLEU-1",
    "bleu4": "BLEU-4",
    "rouge1": "ROUGE-1",
    "rougeL": "ROUGE-L",
    "meteor": "METEOR",
    "paired_change": "paired change",
    "changed_finding": "changed finding",
    "side_agreement": "side agreement",
    "size_agreement": "size agreement",
    "image_dependence": "image dependence",
    "unique": "unique reports",
    "words": "words",
}
FLOOR_TITLES = {
    "constant_normal": "floor: constant normal report",
    "random": "floor: random other report",
    "nearest_by_labels": "floor: nearest report by true labels (oracle)",
    "lookup": "bar: lookup",
}
CORPUS_TITLES = {
    "ordinary": "ordinary reports",
    "low": "text shortcut low",
    "high": "text shortcut high",
    "scans": "1-8 mm studies",
    "scans_published": "1-8 mm studies, published preprocessing",
}


def reports_of(corpus: str) -> str:
    """Return the corpus whose reports and volumes a corpus has: how volumes are prepared changes neither."""
    return corpus.removesuffix("_published")
