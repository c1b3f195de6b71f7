import math
import random
import shutil

import numpy as np
import pytest

from hf_mu2.scoring.lexical import PROTOCOLS, LexicalScorer, rouge_l, score_texts
from hf_mu2.scoring.meteor import NoWordNet, meteor
from hf_mu2.scoring.overlap import count_ngrams, lcs_length, overlap
from hf_mu2.scoring.ptb import ptb_tokenize, ptb_tokenize_java
from hf_mu2.scoring.resampling import total
from tests.paths import shared_data_or_skip

WORDS = [
    *(
        "no",
        "nodule",
        "nodules",
        "mass",
        "in",
        "the",
        "right",
        "left",
        "upper",
        "lobe",
        "effusion,",
        "pleural",
        "3.5",
        "mm",
    ),
    *(
        "(chronic)",
        "heart",
        "is",
        "normal.",
        "thickening",
        "thickened",
        "X-ray",
        "and/or",
        "size;",
        "patient's",
        "10-15",
    ),
    *("was", "observed", "observing", "ground-glass", "it", "pericardial"),
]


def make_texts(seed: int, number: int = 40, longest: int = 60) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(1, longest))) for _ in range(number)]


REFERENCES, CANDIDATES = make_texts(0), ["", "zzz", *make_texts(1)[2:]]


def test_default_is_what_the_libraries_give():
    from nltk.stem.porter import PorterStemmer
    from nltk.translate.meteor_score import single_meteor_score
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics import BLEU, CHRF
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    ours = score_texts(CANDIDATES, REFERENCES)
    for order in range(1, 5):
        expected = BLEU(lowercase=True, max_ngram_order=order).corpus_score(CANDIDATES, [REFERENCES]).score
        assert ours[f"bleu{order}"] == pytest.approx(expected / 100, abs=1e-12)
    assert ours["chrf"] == pytest.approx(
        CHRF(lowercase=True).corpus_score(CANDIDATES, [REFERENCES]).score / 100
    )
    rouge = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    each = [rouge.score(reference, candidate) for reference, candidate in zip(REFERENCES, CANDIDATES)]
    for name in ("rouge1", "rouge2", "rougeL"):
        assert ours[name] == pytest.approx(np.mean([score[name].fmeasure for score in each]), abs=1e-12)

    tokenize = Tokenizer13a()
    meteors = [
        single_meteor_score(
            tokenize(reference.lower()).split(),
            tokenize(candidate.lower()).split(),
            stemmer=PorterStemmer(),
            wordnet=NoWordNet(),
        )
        for reference, candidate in zip(REFERENCES, CANDIDATES)
    ]
    scorer = LexicalScorer(REFERENCES)
    if "wn:none" in scorer.signatures["meteor"]:
        assert ours["meteor"] == pytest.approx(np.mean(meteors), abs=1e-12)


def test_meteor_is_that_of_nltk_pair_by_pair():
    from nltk.stem.porter import PorterStemmer
    from nltk.translate.meteor_score import single_meteor_score

    stemmer = PorterStemmer()
    rng = random.Random(3)
    words = [
        "thick",
        "thickened",
        "thickening",
        "nodule",
        "nodules",
        "effusion",
        "effusions",
        "wall",
        "walls",
        "a",
    ]
    for _ in range(300):
        first, second = (rng.choices(words, k=rng.randint(0, 25)) for _ in range(2))
        expected = single_meteor_score(first, second, stemmer=stemmer, wordnet=NoWordNet())
        assert meteor(first, second, stemmer.stem) == pytest.approx(expected, abs=1e-12)


def test_u2_is_what_nltk_gives_report_by_report():
    from nltk.translate.bleu_score import SmoothingFunction, corpus_bleu

    ours = score_texts(CANDIDATES, REFERENCES, protocol="u2")
    for order in range(1, 5):
        each = [
            corpus_bleu(
                [[reference.lower().split()]],
                [candidate.lower().split()],
                weights=(1 / order,) * order,
                smoothing_function=SmoothingFunction().method3,
            )
            for reference, candidate in zip(REFERENCES, CANDIDATES)
        ]
        assert ours[f"bleu{order}"] == pytest.approx(np.mean(each), abs=1e-12)


def test_u2_by_hand_on_three_reports():
    """Every fraction here was worked out on paper.

    1: "no lung nodule" against "no nodule seen here". 2 of 3 words match, 0 of 2 pairs; 3 words against 4.
    2: "heart size is normal" against itself.
    3: nothing in common.
    """
    references = ["no nodule seen here", "heart size is normal", "no effusion"]
    candidates = ["no lung nodule", "heart size is normal", "mass present"]
    scores = score_texts(candidates, references, protocol="u2")
    brevity = math.exp(1 - 4 / 3)
    assert scores["bleu1"] == pytest.approx((brevity * 2 / 3 + 1 + 0) / 3)
    # method3: the first order without a match counts half a match, so 1/2 of 2 pairs
    assert scores["bleu2"] == pytest.approx((brevity * math.sqrt(2 / 3 * 1 / 4) + 1 + 0) / 3)
    assert scores["rouge1"] == pytest.approx((2 * 2 / (3 + 4) + 1 + 0) / 3)
    assert scores["rouge2"] == pytest.approx((0 + 1 + 0) / 3)
    assert scores["rougeL"] == pytest.approx((2 * 2 / (3 + 4) + 1 + 0) / 3)
    # METEOR: P 2/3, R 2/4, F = PR / (.9 P + .1 R); two chunks of two matches halve it; a perfect match is one chunk
    fmean = (2 / 3 * 1 / 2) / (0.9 * 2 / 3 + 0.1 * 1 / 2)
    perfect = 1 - 0.5 * (1 / 4) ** 3
    assert scores["meteor"] == pytest.approx((fmean * 0.5 + perfect + 0) / 3)


def test_default_by_hand_on_two_reports():
    references, candidates = ["no nodule seen.", "heart normal"], ["No nodule.", "heart normal"]
    scores = score_texts(candidates, references)
    brevity = math.exp(1 - 6 / 5)  # 13a: 3 + 2 words against 4 + 2
    assert scores["bleu1"] == pytest.approx(brevity)
    assert scores["bleu2"] == pytest.approx(brevity * math.sqrt(1 * 2 / 3))
    assert scores["rouge1"] == pytest.approx((4 / 5 + 1) / 2)
    assert scores["rouge2"] == pytest.approx((2 / 3 + 1) / 2)


def coco_scores(references: dict[int, list[str]], candidates: dict[int, list[str]]) -> dict[str, float]:
    bleu = pytest.importorskip("pycocoevalcap.bleu.bleu")
    rouge = pytest.importorskip("pycocoevalcap.rouge.rouge")
    scores, _ = bleu.Bleu(4).compute_score(references, candidates, verbose=0)
    found = {f"bleu{order}": value for order, value in enumerate(scores, start=1)}
    return found | {"rougeL": float(rouge.Rouge().compute_score(references, candidates)[0])}


def test_coco_is_what_pycocoevalcap_gives_on_tokenized_text():
    tokenized = [
        [" ".join(ptb_tokenize(text.lower())) for text in texts] for texts in (REFERENCES, CANDIDATES)
    ]
    references, candidates = (dict(enumerate([text] for text in texts)) for texts in tokenized)
    ours = score_texts(CANDIDATES, REFERENCES, protocol="coco")
    assert ours == pytest.approx(coco_scores(references, candidates), abs=1e-12)


def test_coco_by_hand_on_one_report():
    scores = score_texts(["no nodule"], ["no lung nodule seen"], protocol="coco")
    assert scores["bleu1"] == pytest.approx(math.exp(1 - 4 / 2))
    precision, recall = 1, 0.5
    assert scores["rougeL"] == pytest.approx((1 + 1.44) * precision * recall / (recall + 1.44 * precision))


@pytest.mark.skipif(shutil.which("java") is None, reason="needs Java")
def test_without_java_coco_scores_are_those_of_java_to_the_third_digit():
    """Measured on real chest reports of another hospital than those whose tokens the rules were read from."""
    import json

    pytest.importorskip("pycocoevalcap")
    path = shared_data_or_skip("reports", "openi_pairs.jsonl")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[:600]]
    texts = [f"{row['findings']} {row['impression']}" for row in rows]
    references, candidates = texts, texts[1:] + texts[:1]
    ours = score_texts(candidates, references, protocol="coco")
    java = score_texts(candidates, references, protocol="coco", java=True)
    assert all(abs(ours[name] - java[name]) < 1e-3 for name in PROTOCOLS["coco"])
    lowered = [" ".join(text.lower().split()) for text in texts]
    alike = sum(
        mine == theirs for mine, theirs in zip(map(ptb_tokenize, lowered), ptb_tokenize_java(lowered))
    )
    assert alike / len(texts) > 0.9


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_perfect_copy_scores_one_and_every_score_has_a_signature(protocol):
    references = [
        "There is a small nodule in the right upper lobe of the lung.",
        "Heart size and aorta are normal today.",
    ]
    scorer = LexicalScorer(references, protocol=protocol)
    scores = scorer.scores(total(scorer.columns(references)))
    assert tuple(scores) == PROTOCOLS[protocol] == tuple(scorer.signatures)
    assert all(
        value == pytest.approx(1, abs=2e-3) for value in scores.values()
    )  # METEOR keeps a penalty of one chunk
    for name, signature in scorer.signatures.items():
        assert signature.startswith(name.replace("chrf", "chrf2") + "|")
        for part in ("lc:yes", "n:2", f"protocol:{protocol}"):
            assert part in signature.split("|")
    assert "tok:" in scorer.signatures["bleu1"] and "smooth:" in scorer.signatures["bleu1"]


def test_an_absent_wordnet_is_in_the_signature(monkeypatch):
    import nltk

    monkeypatch.setattr(nltk.data, "path", [])
    from nltk.corpus import wordnet

    if not hasattr(wordnet, "_LazyCorpusLoader__name"):
        pytest.skip("WordNet is loaded already")
    assert "wn:none" in LexicalScorer(["a"]).signatures["meteor"].split("|")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_reports_score_alone_as_they_do_in_a_sum_of_one(protocol):
    scorer = LexicalScorer(REFERENCES, protocol=protocol)
    per_report = scorer.scores(scorer.columns(CANDIDATES))
    for index in (0, 1, 5, 17):
        alone = score_texts([CANDIDATES[index]], [REFERENCES[index]], protocol=protocol)
        assert {name: float(values[index]) for name, values in per_report.items()} == pytest.approx(alone)


def test_one_candidate_per_reference_is_wanted():
    with pytest.raises(ValueError, match="one candidate, got 1 for 2"):
        LexicalScorer(["a", "b"]).columns(["a"])
    with pytest.raises(ValueError, match="must be one of"):
        LexicalScorer(["a"], protocol="bleu")
    with pytest.raises(ValueError, match="Java is for"):
        LexicalScorer(["a"], java=True)


def test_overlap_counts_each_ngram_as_often_as_both_have_it():
    codes = [np.array([1, 2, 1, 2]), np.array([], dtype=int), np.array([3])]
    others = [np.array([1, 2, 2]), np.array([1]), np.array([3, 3])]
    shared = overlap(count_ngrams(codes, 2), count_ngrams(others, 2))
    assert shared.tolist() == [[3, 1], [0, 0], [1, 0]]


def test_the_longest_common_subsequence_is_that_of_the_table():
    rng = random.Random(0)
    for _ in range(50):
        first, second = (rng.choices("abcd", k=rng.randint(0, 80)) for _ in range(2))
        row = [0] * (len(second) + 1)
        for a in first:
            new = [0]
            for place, b in enumerate(second, start=1):
                new.append(row[place - 1] + 1 if a == b else max(row[place], new[-1]))
            row = new
        assert lcs_length(first, second) == row[-1]


def test_rouge_l_alone_is_that_of_the_protocol():
    references = ["The heart is enlarged.", "右肺 nodule of 6 mm.", "Normal."]
    candidates = ["Heart: slightly enlarged", "右肺 nodules, 6 mm", ""]
    together = [score_texts([mine], [theirs])["rougeL"] for mine, theirs in zip(candidates, references)]
    assert rouge_l(candidates, references) == pytest.approx(together)
    assert 0 < together[0] < 1 and together[2] == 0
