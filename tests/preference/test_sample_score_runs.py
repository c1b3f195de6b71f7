"""Sampling and scoring on several processes, and killed at any moment."""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import nibabel as nib
import pytest

from hf_mu2.files import PARTIAL
from hf_mu2.preference.sample import sample
from hf_mu2.preference.score import read_weights, score
from hf_mu2.reporting.inference import load_reader
from hf_mu2.reporting.journal import SharedJournal
from hf_mu2.reporting.studies import open_studies
from hf_mu2.scoring.green import Judge, JudgeTemplate
from hf_mu2.scoring.judge_backends import EndpointBackend
from hf_mu2.scoring.judge_cache import ReplyCache
from tests.data.killed_runs import PROCESSES, KilledRuns
from tests.preference.candidate_rows import candidate_row, write_candidates, write_references
from tests.scoring.judge_server import TEMPLATE, JudgeServer, make_random_judge
from tests.tiny import tiny_nifti

pytestmark = pytest.mark.slow
NUM_STUDIES = 9
SETTINGS = {"num_candidates": 3, "max_new_tokens": 12, "batch_size": 2}


@pytest.fixture
def dataset(tmp_path):
    folder = tmp_path / "dataset" / "train"
    folder.mkdir(parents=True)
    lines = []
    for index in range(NUM_STUDIES):
        nib.save(tiny_nifti(index), folder / f"{index}.nii.gz")
        lines.append(json.dumps({"images_file_names": [f"{index}.nii.gz"], "study_id": f"study-{index}"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "4.nii.gz").write_bytes(b"no volume")
    return folder.parent


def run_on_two_processes(*arguments: object) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2]
    command = [*map(str, [*launch, "-m", "hf_mu2.cli", *arguments])]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert len(run.stdout.splitlines()) == 1


def test_two_processes_sample_what_one_does(dataset, checkpoint, tmp_path):
    (dataset / "train" / "4.nii.gz").write_bytes((dataset / "train" / "3.nii.gz").read_bytes())
    one = sample(open_studies(dataset), tmp_path / "one.jsonl", load_reader(checkpoint, "cpu"), **SETTINGS)
    options = ["--num-candidates", 3, "--max-new-tokens", 12, "--batch-size", 2, "--model", checkpoint]
    run_on_two_processes("sample", dataset, "--out", tmp_path / "two.jsonl", *options)
    assert (tmp_path / "two.jsonl").read_bytes() == one.out.read_bytes()
    assert json.loads((tmp_path / "two.manifest.json").read_text())["num_processes"] == 2


def test_two_processes_score_what_one_does(tmp_path, cli):
    candidates = write_candidates(tmp_path / "candidates.jsonl", [candidate_row(name) for name in "abc"])
    references = write_references(tmp_path / "references.jsonl", ["a", "b", "c"])
    template = tmp_path / "template.txt"
    template.write_text(TEMPLATE)
    options = ["--references", references, "--by", "label_f1", "--by", "green", "--judge-template", template]
    options += ["--judge", make_random_judge(tmp_path / "judge"), "--batch-size", 1, "--max-new-tokens", 8]
    one = cli("score", candidates, "--out", tmp_path / "one.jsonl", *options)
    assert one.code == 0, one.err
    run_on_two_processes("score", candidates, "--out", tmp_path / "two.jsonl", *options)
    assert (tmp_path / "two.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()
    assert len(list((tmp_path / "two.jsonl.replies").iterdir())) == 2


class SlowFile:
    """A file whose writes take so long that kills meet them; `marker` is there as long as one lasts."""

    def __init__(self, file, marker: Path):
        self.file, self.marker = file, marker

    def write(self, text: str) -> None:
        self.marker.touch()
        for start in range(0, len(text), 1 + len(text) // 5):
            self.file.write(text[start : start + 1 + len(text) // 5])
            self.file.flush()
            time.sleep(0.004)
        self.marker.unlink()

    def flush(self) -> None:
        self.file.flush()


class KilledWrites(KilledRuns):
    """Runs whose writes last a while."""

    def _start(self):
        for marker in self.out.rglob(f"{PARTIAL}marker"):  # of the run that was killed before
            marker.unlink()
        return super()._start()


def sample_slowly(studies, reader):
    from hf_mu2.tables import to_lines

    def add(self, rows):
        with self.path.open("a", encoding="utf-8") as file:
            SlowFile(file, self.out.with_name(f"{PARTIAL}marker")).write(to_lines(rows))

    def run(rows, out, workers):
        SharedJournal.add = add
        if not (out / "candidates.jsonl").exists():  # else the last run was killed when all was done
            sample(studies, out / "candidates.jsonl", reader, **SETTINGS)

    return run


def test_a_sampling_killed_twenty_times_ends_in_the_rows_of_an_undisturbed_one(dataset, checkpoint, tmp_path):
    run = sample_slowly(open_studies(dataset), load_reader(checkpoint, "cpu"))
    killed = KilledWrites(run, [], tmp_path / "out", workers=1)
    assert killed.kill(20) >= 5
    out = killed.finish() / "candidates.jsonl"
    assert out.read_bytes() == (killed.undisturbed / "candidates.jsonl").read_bytes()
    found = [json.loads(line)["study_id"] for line in out.read_text().splitlines()]
    assert found == [f"study-{index}" for index in range(NUM_STUDIES) if index != 4]
    facts = [
        json.loads((folder / "candidates.manifest.json").read_text())
        for folder in (out.parent, killed.undisturbed)
    ]
    assert list(facts[0]["failed"]) == ["study-4"] and facts[0]["failed"] == facts[1]["failed"]


def score_slowly(candidates, url):
    store = ReplyCache.add
    judge = Judge(EndpointBackend(url, "scripted", max_concurrent=2), JudgeTemplate(TEMPLATE, "tests"))

    def add(self, replies, about):
        if self._file is None:
            store(self, {}, about)
        file = self._file
        self._file = SlowFile(file, self.folder.with_name(f"{PARTIAL}marker"))
        store(self, replies, about)
        self._file = file

    def run(rows, out, workers):
        ReplyCache.add = add
        score(candidates, out / "scored.jsonl", read_weights(["green", "label_f1"]), judge=judge)

    return run


def test_a_scoring_killed_twenty_times_ends_in_the_rows_of_an_undisturbed_one(tmp_path):
    rows = [candidate_row(name, reference=f"Findings: Emphysema. {name}") for name in "abcdef"]
    candidates = write_candidates(tmp_path / "candidates.jsonl", rows)
    server, stop = JudgeServer(), PROCESSES.Event()

    def serve():  # in a process of its own: a fork of this one must not hold a thread's lock
        with server:
            stop.wait()

    serving = PROCESSES.Process(target=serve)
    serving.start()
    try:
        score(candidates, tmp_path / "imports.jsonl", read_weights(["label_f1"]))  # of what forks then have
        killed = KilledWrites(score_slowly(candidates, server.url), [], tmp_path / "out", workers=1)
        assert killed.kill(20) >= 5
        out = killed.finish()
    finally:
        stop.set()
        serving.join()
    assert (out / "scored.jsonl").read_bytes() == (killed.undisturbed / "scored.jsonl").read_bytes()
    lines = [line for path in (out / "scored.jsonl.replies").iterdir() for line in path.open()]
    keys = Counter(json.loads(line)["key"] for line in lines if line.endswith("\n"))
    assert len(keys) == 24 and set(keys.values()) == {1}  # no reply was paid for twice once it was kept
