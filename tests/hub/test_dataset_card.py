import json
from pathlib import Path
from typing import Any

import pytest
import yaml

import hf_mu2
from hf_mu2.data.inspect import inspect_corpus
from hf_mu2.data.phantom import make_phantom
from hf_mu2.data.phantom.amos_mm_tree import write_amos_mm_tree
from hf_mu2.data.study import FINDING_LABELS
from hf_mu2.hub.dataset_card import TEMPLATE, render_dataset_card, write_dataset_card

FACTS: dict[str, Any] = {
    "corpus": "phantom_ct",
    "title": "PhantomCT",
    "url": "",
    "citation": "",
    "licence": "cc0-1.0",
    "terms": "Synthetic: no patient is in it.",
    "egress": True,
    "redistributable": True,
    "split_policy": "By ranges of seeds.",
    "splits": {
        "train": {"studies": 1234, "patients": 1200, "volumes": 1240},
        "test": {"studies": 50, "patients": 50, "volumes": 51},
    },
    "prevalence": {FINDING_LABELS[0]: 0.2215, FINDING_LABELS[1]: 0.5},
    "prevalence_by_split": {
        "train": {FINDING_LABELS[0]: 0.25, FINDING_LABELS[1]: 0.5},
        "test": {FINDING_LABELS[0]: 0.1},
    },
    "texts": {
        "findings": {"studies": 1284, "median_words": 77, "max_words": 210},
        "findings and impression": {"studies": 1283},
        "sections": {},
        "questions": 4321,
    },
    "regions": {"chest": 1284},
    "missing_files": {"count": 0, "examples": []},
    "drops": {"report without volume": {"count": 7, "examples": ["phantom_000001"]}},
    "notes": {},
}


def header(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("---")[1])


def rows(card: str) -> list[list[str]]:
    """Return the cells of every table row."""
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in card.splitlines()
        if line.startswith("|")
    ]


def test_every_number_of_the_facts_is_on_the_card():
    card = render_dataset_card(FACTS)
    cells = rows(card)
    assert ["train", "1,234", "1,200", "1,240"] in cells
    assert ["test", "50", "50", "51"] in cells
    assert ["findings", "1,284", "77", "210"] in cells
    assert [FINDING_LABELS[0], "22.1%", "25.0%", "10.0%"] in cells or [
        FINDING_LABELS[0],
        "22.2%",
        "25.0%",
        "10.0%",
    ] in cells
    assert [FINDING_LABELS[1], "50.0%", "50.0%", "-"] in cells
    assert ["report without volume", "7"] in cells
    assert "1,283 studies. Questions: 4,321." in card
    assert "1,284 studies with 1,291 CT volumes" in card


def test_the_card_says_licence_terms_split_policy_and_notice():
    card = render_dataset_card(FACTS)
    for text in (
        "`cc0-1.0`",
        FACTS["terms"],
        FACTS["split_policy"],
        "not a medical device",
        hf_mu2.__version__,
    ):
        assert text in card
    assert "hf-mu2 data inspect phantom_ct" in card


def test_the_header_is_what_the_hub_reads():
    card = header(render_dataset_card(FACTS, tags=["synthetic"]))
    assert (
        card["license"] == "cc0-1.0" and card["pretty_name"] == "PhantomCT" and card["corpus"] == "phantom_ct"
    )
    assert card["size_categories"] == "1K<n<10K"
    assert "synthetic" in card["tags"] and "visual-question-answering" in card["task_categories"]


def test_a_published_dataset_is_loaded_from_the_hub_and_a_closed_one_from_its_archive():
    assert 'load_dataset("name/phantoms")' in render_dataset_card(FACTS, repo_id="name/phantoms")
    closed = render_dataset_card(FACTS | {"redistributable": False}, repo_id="name/phantoms")
    assert 'load_corpus("phantom_ct"' in closed and "may not be redistributed" in closed


def test_tables_have_no_ragged_rows():
    widths: dict[int, set[int]] = {}
    block = 0
    for line in render_dataset_card(FACTS).splitlines():
        if not line.startswith("|"):
            block += 1
            continue
        widths.setdefault(block, set()).add(line.count("|"))
    assert widths and all(len(width) == 1 for width in widths.values())


def test_nothing_left_out_is_said_so_and_empty_parts_are_absent():
    card = render_dataset_card(FACTS | {"drops": {}, "prevalence": {}, "regions": {}})
    assert "Nothing." in card and "Prevalence" not in card and "Regions" not in card
    assert "\n\n\n" not in card


def test_a_card_is_rendered_from_a_counted_corpus(tmp_path):
    root = write_amos_mm_tree(
        tmp_path / "amos", [make_phantom(seed, spacing=(12, 8, 8)) for seed in range(3)]
    )
    facts = inspect_corpus("amos_mm", root)
    card = write_dataset_card(tmp_path / "out", facts).read_text()
    assert ["test", "1", "1", "1"] in rows(card)
    assert header(card)["license"] == "cc-by-nd-4.0"
    assert "amos_5000" not in card, "ids of left out studies stay off the card"
    json.dumps(facts)


def test_the_template_of_the_repository_is_the_one_that_ships():
    root = Path(__file__).resolve().parents[2]
    link = root / "hub_cards" / "dataset_card.md.jinja"
    if not link.exists():
        pytest.skip("not a checkout of the repository")
    assert link.read_bytes() == (Path(hf_mu2.__file__).parent / "hub" / TEMPLATE).read_bytes()
