"""Floors of impressions: the last sentence, the most frequent impression, that of the nearest findings."""

import numpy as np
import pytest

from hf_mu2.scoring.impression_floors import (
    FLOORS,
    impression_floors,
    last_sentence,
    most_frequent,
    nearest_texts,
)

FINDINGS = ["Heart size normal. Lungs clear.", "Large left effusion.", "Lungs clear. No effusion."]
IMPRESSIONS = ["No acute disease.", "Left effusion.", "no acute  disease"]


def test_every_floor_writes_one_impression_per_study():
    floors = impression_floors(["Heart enlarged. Effusion on the left."], FINDINGS, IMPRESSIONS)
    assert tuple(floors) == FLOORS
    assert floors["last_sentence"] == ["Effusion on the left."]
    assert floors["most_frequent"] == ["No acute disease."]
    assert floors["nearest_findings"] == ["Left effusion."]


def test_a_number_does_not_end_a_sentence():
    assert (
        last_sentence("Clear. A nodule of 1.5 cm in the left lobe.") == "A nodule of 1.5 cm in the left lobe."
    )
    assert last_sentence("No end") == "No end"


def test_case_spaces_and_the_final_stop_do_not_make_another_impression():
    assert most_frequent(["Effusion.", "normal", "Normal. ", "NORMAL."]) == "normal"
    assert most_frequent(["b.", "a."]) == "b.", "of equals the first"


def test_a_text_is_nearest_to_itself():
    texts = [f"finding {i} of kind {i % 7} with size {i * 3}" for i in range(40)]
    assert nearest_texts(texts, texts) == list(range(40))


def test_the_nearest_text_is_that_of_the_highest_cosine():
    sklearn = pytest.importorskip("sklearn.feature_extraction.text")
    rng = np.random.default_rng(0)
    words = [f"word{i}" for i in range(60)]
    weights = 1 / np.arange(1, 61)
    training, queries = (
        [" ".join(rng.choice(words, 20, p=weights / weights.sum())) for _ in range(count)]
        for count in (80, 20)
    )
    vectors = sklearn.TfidfVectorizer(sublinear_tf=True, token_pattern=r"\w+")
    known = vectors.fit_transform(training)
    expected = (vectors.transform(queries) @ known.T).toarray()
    found = nearest_texts(queries, training)
    np.testing.assert_allclose(expected[np.arange(20), found], expected.max(axis=1), atol=1e-9)


def test_words_that_training_never_had_are_nobodys_neighbour():
    assert nearest_texts(["xylophone", ""], FINDINGS) == [0, 0]


def test_sections_that_do_not_pair_are_refused():
    with pytest.raises(ValueError, match="both sections"):
        impression_floors(["a"], ["a", "b"], ["c"])
    with pytest.raises(ValueError, match="both sections"):
        impression_floors(["a"], [], [])
