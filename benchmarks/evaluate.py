"""The whole offline evaluation of 1,564 studies against per-call use of the same metrics.

Run: python benchmarks/evaluate.py [REPORTS.csv]

1,564 is the size of CT-RATE's validation set. Reports are drawn from a CT-RATE table (`report_text` and labels; the
sample data's by default), each with another patient's report as its candidate, else they are synthetic. Seconds of one
core's time, which other work on the machine does not change.

Per call means: sacreBLEU for BLEU-1..4 and chrF, rouge-score and NLTK's METEOR report by report, our labeler twice per
report; point scores of the candidates and of the three floors. Ours adds 1,000 resamples of patients for every score,
the findings' F1, the degeneracy checks and the per-study rows.
"""

import csv
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from hf_mu2.scoring.evaluate import evaluate_reports  # noqa: E402
from hf_mu2.scoring.floors import constant_normal, nearest_reports, random_reports  # noqa: E402
from hf_mu2.scoring.labels import label_reports  # noqa: E402
from hf_mu2.scoring.lexical import LexicalScorer  # noqa: E402
from hf_mu2.scoring.meteor import find_wordnet  # noqa: E402
from hf_mu2.scoring.resampling import total  # noqa: E402
from tests.paths import shared_data  # noqa: E402

STUDIES = 1564


def main() -> None:
    texts = read_texts()
    rng = np.random.default_rng(0)
    training = [{"study_id": f"t{index}", "reference": text} for index, text in enumerate(texts)]
    drawn = rng.integers(0, len(texts), STUDIES)
    references = [texts[index] for index in drawn]
    candidates = [texts[index] for index in (drawn + rng.integers(1, len(texts), STUDIES)) % len(texts)]
    ids = [f"s{index}" for index in range(STUDIES)]
    reference_rows = [{"study_id": name, "reference": text} for name, text in zip(ids, references)]
    prediction_rows = [{"study_id": name, "candidate": text} for name, text in zip(ids, candidates)]

    def whole() -> Any:
        return evaluate_reports(prediction_rows, reference_rows, training_references=training)

    def words() -> dict[str, float]:
        scorer = LexicalScorer(references)
        return {
            name: float(value) for name, value in scorer.scores(total(scorer.columns(candidates))).items()
        }

    print(
        f"{STUDIES} studies, {np.mean([len(text.split()) for text in references]):.0f} words per report, "
        "seconds of one core"
    )
    ours, our_seconds = timed(words)
    theirs, their_seconds = timed(lambda: words_per_call(candidates, references))
    gap = max(abs(ours[name] - theirs[name]) for name in theirs)
    show("text scores of one system", our_seconds, their_seconds)
    evaluation, seconds = timed(whole)
    floors, per_call = timed(lambda: floor_texts(texts, references, ids))
    _, reference_seconds = timed(lambda: label_each(references))
    per_call += their_seconds + reference_seconds + timed(lambda: label_each(candidates))[1]
    for system in floors.values():
        per_call += timed(lambda system=system: words_per_call(system, references))[1]
        per_call += timed(lambda system=system: label_each(system))[1] + reference_seconds
    show("the whole evaluation", seconds, per_call)
    print(f"largest difference between the text scores of the two: {gap:.1e}")
    print(f"scores {len(evaluation.scores)}, floors {len(evaluation.floors)}, rows {len(evaluation.studies)}")


def show(what: str, ours: float, per_call: float) -> None:
    print(f"{what:28} ours {ours:7.1f} s   per call {per_call:7.1f} s   ratio {per_call / ours:5.1f}")


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    start = time.process_time()
    result = call()
    return result, time.process_time() - start


def words_per_call(candidates: list[str], references: list[str]) -> dict[str, float]:
    """Use each library as its documentation does."""
    from nltk.translate.meteor_score import single_meteor_score
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics import BLEU, CHRF
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    scores = {}
    for order in range(1, 5):
        bleu = BLEU(lowercase=True, max_ngram_order=order)
        scores[f"bleu{order}"] = bleu.corpus_score(candidates, [references]).score / 100
    scores["chrf"] = CHRF(lowercase=True).corpus_score(candidates, [references]).score / 100
    rouge = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    rouges = [rouge.score(reference, candidate) for reference, candidate in zip(references, candidates)]
    for name in ("rouge1", "rouge2", "rougeL"):
        scores[name] = float(np.mean([score[name].fmeasure for score in rouges]))
    tokenize, wordnet = Tokenizer13a(), find_wordnet()[0]
    meteors = [
        single_meteor_score(
            tokenize(reference.lower()).split(), tokenize(candidate.lower()).split(), wordnet=wordnet
        )
        for reference, candidate in zip(references, candidates)
    ]
    return scores | {"meteor": float(np.mean(meteors))}


def floor_texts(texts: list[str], references: list[str], ids: list[str]) -> dict[str, list[str]]:
    labels, owners = label_reports(texts), [f"t{index}" for index in range(len(texts))]
    return {
        "constant normal": constant_normal(texts, labels, owners, ids),
        "random": random_reports(texts, owners, ids),
        "nearest": nearest_reports(label_reports(references), texts, labels),
    }


def label_each(texts: list[str]) -> np.ndarray:
    return np.concatenate([label_reports([text]) for text in texts])


def read_texts() -> list[str]:
    folder = shared_data()
    path = (
        Path(sys.argv[1]) if len(sys.argv) > 1 else folder and folder / "reports" / "ctrate_textclf_train.csv"
    )
    if path is None or not path.exists():
        from tests.scoring.synthetic import make_references

        return [row["reference"] for row in make_references(800)]
    with path.open(encoding="utf-8", newline="") as file:
        return [row["report_text"] for row in csv.DictReader(file)]


if __name__ == "__main__":
    main()
