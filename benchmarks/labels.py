"""Seconds of the finding labeler over many reports: one call for all against one call per report, results equal.

    python benchmarks/labels.py [--reports 10000] [--table reports.csv]

The reports are the first ones of `--table` (any file `hf-mu2 labels run` reads); without one, reports of phantoms.
Corpora repeat their sentences; `label_reports` reads each different sentence once.
"""

import argparse
import random
import time

import numpy as np

from hf_mu2.data.phantom.report import Finding, write_report
from hf_mu2.scoring.label_files import read_reports
from hf_mu2.scoring.labels import LABELS, VERSION, label_report, label_reports


def phantom_reports(count: int) -> list[str]:
    reports = []
    for seed in range(count):
        rng = random.Random(seed)
        findings = [
            Finding(label, rng.choice(("left", "right")), None, 1, rng.uniform(3, 30), None)
            for label in rng.sample(LABELS, rng.choice((0, 1, 2, 3, 4, 6)))
        ]
        reports.append(write_report(findings, seed).text)
    return reports


def seconds_of(label, texts):
    start = time.perf_counter()
    labels = label(texts)
    return time.perf_counter() - start, labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reports", type=int, default=10_000)
    parser.add_argument("--table")
    arguments = parser.parse_args()
    if arguments.table:
        _, texts, _ = read_reports(arguments.table)
        texts = texts[: arguments.reports]
    else:
        texts = phantom_reports(arguments.reports)
    label_report(texts[0])  # compiles the rules
    together, labels = seconds_of(label_reports, texts)
    alone, again = seconds_of(lambda texts: [list(label_report(text).values()) for text in texts], texts)
    assert np.array_equal(labels, again)
    words = sum(len(text.split()) for text in texts) / len(texts)
    print(f"{VERSION}, {len(texts)} reports of {words:.0f} words on average")
    print(f"{'':26} seconds  ms per report")
    for name, seconds in (("one call for all", together), ("one call per report", alone)):
        print(f"{name:26} {seconds:7.2f} {1000 * seconds / len(texts):14.2f}")
    print(f"ratio {alone / together:.1f}")


if __name__ == "__main__":
    main()
