"""How often the check of rewrites refuses a changed report, and how often one that says the same.

    python benchmarks/rewrite_check.py [--reports 200] [--first 0] [--region chest] [--table reports.csv]

Phantoms are told twice, and one thing is changed in the second telling. With `--table` (any file `hf-mu2 labels run`
reads) the reports are real and reworded lightly.
"""

import argparse
import itertools

from hf_mu2.data.phantom import FIRST_SEED
from hf_mu2.preference.rewrite_check import VERSION
from hf_mu2.preference.rewrite_trials import phantom_trials, run_trials, table_trials, to_table
from hf_mu2.scoring.label_files import read_reports


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reports", type=int, default=200)
    parser.add_argument("--first", type=int, default=0, help="how many reports to pass over")
    parser.add_argument("--region", default="chest", choices=("chest", "abdomen"))
    parser.add_argument("--table")
    arguments = parser.parse_args()
    if arguments.table:
        _, texts, _ = read_reports(arguments.table)
        wanted = itertools.islice(texts, arguments.first, arguments.first + arguments.reports)
        trials = table_trials(wanted, arguments.region)
    else:
        first = FIRST_SEED["validation"] + arguments.first
        trials = phantom_trials(range(first, first + arguments.reports), arguments.region)
    print(f"{VERSION}, {arguments.reports} reports, {arguments.region}\n{to_table(run_trials(trials))}")


if __name__ == "__main__":
    main()
