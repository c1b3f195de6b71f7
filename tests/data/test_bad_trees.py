"""Every way of spoiling a tree gives one clear error, a counted drop or a note, and the docs say which."""

from pathlib import Path

import pytest

from tests.data.bad_trees import COLUMNS, LAYOUTS, outcome, table

DOCS = Path(__file__).parents[2] / "docs" / "corpora" / "index.md"


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> dict[tuple[str, str], str]:
    cases = [(corpus, defect) for corpus in LAYOUTS for defect in COLUMNS]
    return {case: outcome(*case, tmp_path_factory.mktemp("tree")) for case in cases}


def test_no_defect_passes_in_silence(outcomes):
    silent = {case for case, told in outcomes.items() if "nothing is said" in told}
    assert not silent


def test_the_docs_show_what_happens(outcomes):
    shown = table(lambda corpus, defect: outcomes[corpus, defect])
    assert shown in DOCS.read_text(), (
        "run `python -m tests.data.bad_trees` and put its table into docs/corpora/index.md"
    )
