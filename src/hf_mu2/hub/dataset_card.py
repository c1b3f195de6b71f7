"""Write the card of a dataset from what was counted in it; no number on it is typed.

Reads: the result of [`~hf_mu2.data.inspect.inspect_corpus`].
Writes: `README.md` with the header that the Hub reads.
"""

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from hf_mu2 import __version__
from hf_mu2.data.study import TEXTS
from hf_mu2.files import replace_text

CARD = "README.md"
TEMPLATE = (
    "templates/dataset_card.md.jinja"  # `hub_cards/dataset_card.md.jinja` in the repository is a link to it
)
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def render_dataset_card(
    facts: Mapping[str, Any], *, repo_id: str | None = None, tags: Sequence[str] = ()
) -> str:
    """Render the card of a corpus.

    Args:
        facts (`Mapping`): What `inspect_corpus` returned.
        repo_id (`str`, *optional*): Where the dataset will be published; the example then loads it from there, and
            opens the owners' archive with `load_corpus` otherwise.
        tags (`Sequence[str]`): Further tags of the header.
    """
    from huggingface_hub import DatasetCard, DatasetCardData

    num_studies = sum(counts["studies"] for counts in facts["splits"].values())
    data = DatasetCardData(
        license=facts["licence"],
        language="en",
        pretty_name=facts["title"],
        size_categories=next((name for limit, name in _SIZES if num_studies < limit), "n>1M"),
        task_categories=["image-text-to-text"]
        + (["visual-question-answering"] * bool(facts["texts"]["questions"])),
        tags=["medical", "ct", "radiology", "report-generation", *tags],
        corpus=facts["corpus"],
    )
    texts = facts["texts"]
    card = DatasetCard.from_template(
        data,
        template_str=resources.files(__package__).joinpath(TEMPLATE).read_text(encoding="utf-8"),
        **{key: facts[key] for key in _COPIED},
        description=_description(facts, num_studies),
        lengths={name: texts[name] for name in TEXTS if name in texts},
        num_complete=texts["findings and impression"]["studies"],
        num_questions=texts["questions"],
        usage=_usage(facts, repo_id),
        version=__version__,
        command=f"hf-mu2 data inspect {facts['corpus']} --root <folder>",
    )
    return f"{card.content.strip()}\n"


def write_dataset_card(
    folder: str | Path, facts: Mapping[str, Any], *, repo_id: str | None = None, tags: Sequence[str] = ()
) -> Path:
    """Write the card of a corpus into the folder that will be published, and return its path."""
    path = Path(folder) / CARD
    replace_text(path, render_dataset_card(facts, repo_id=repo_id, tags=tags))
    return path


_COPIED = (
    *("title", "splits", "split_policy", "regions", "prevalence", "prevalence_by_split", "drops", "notes"),
    *("licence", "terms", "egress", "redistributable", "url", "citation"),
)


def _description(facts: Mapping[str, Any], num_studies: int) -> str:
    num_volumes = sum(counts["volumes"] for counts in facts["splits"].values())
    with_volumes = f" with {num_volumes:,} CT volumes" if num_volumes else ", text alone"
    source = f" from [{facts['title']}]({facts['url']})" if facts["url"] else ""
    return f"{num_studies:,} studies{with_volumes}{source}."


def _usage(facts: Mapping[str, Any], repo_id: str | None) -> str:
    if repo_id and facts["redistributable"]:
        return f'from datasets import load_dataset\n\ndataset = load_dataset("{repo_id}")'
    split = next(iter(facts["splits"]))
    return (
        "from hf_mu2.data.build import load_corpus\n\n"
        f'dataset = load_corpus("{facts["corpus"]}", root="<folder>", split="{split}")'
    )
