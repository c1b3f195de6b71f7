"""What is asked of a study: the questions of the training views, chosen by study so that they never change.

The question conditions the tokenizer (METHOD of mu2, section 2.2), so training needs many ways to say the same thing.
"""

from .corpus import share_of

IMPRESSION_INSTRUCTION = (
    "Derive the impression from findings in the radiology report"  # Radiology-Llama2, section 3.2
)

_PARTS = {"report": "findings and impression", "findings": "findings", "impression": "impression"}
_WAYS = (
    "Write the {parts} of this {region} CT.",
    "Report this {region} CT: {parts}.",
    "Please write a radiology report with {parts} for this CT of the {region}.",
    "What does this {region} CT show? Give {parts}.",
    "Generate the {parts} of this CT of the {region}.",
    "Read this {region} CT and state {parts}.",
)


def report_prompt(study_id: str, region: str = "", target: str = "report") -> str:
    """Return the question for a study: the same study always gets the same one.

    Args:
        region (`str`): As in the study row; several are joined with "and".
        target (`str`): `"report"`, `"findings"` or `"impression"`.
    """
    way = _WAYS[int(share_of(f"prompt:{study_id}") * len(_WAYS))]
    return way.format(parts=_PARTS[target], region=" and ".join(region.split("+")) or "body")
