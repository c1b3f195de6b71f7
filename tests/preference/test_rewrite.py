"""Expanding a corpus: rows, refusals, resuming, what may be sent where, and training on the result."""

import json
import time
from pathlib import Path

import pytest

pytest.importorskip("openai")
pytest.importorskip("trl")

from datasets import load_dataset

from hf_mu2.data.views import view_dataset
from hf_mu2.preference.rewrite import Expansion, rewrite_corpus
from hf_mu2.preference.rewrite_prompts import STYLES, paraphrase_prompt, prompts_sha256, questions_prompt
from hf_mu2.scoring.judge_backends import EndpointBackend
from tests.data.corpora import write_folder, write_table
from tests.data.killed_runs import KilledRuns
from tests.scoring.judge_server import Answer, JudgeServer

PAIRS = [
    {"kind": "presence", "question": "Is there a lung nodule?", "answer": "Yes"},
    {"kind": "presence", "question": "Is there emphysema?", "answer": "Yes"},
    {"kind": "open", "question": "How certain is this?", "answer": "Hard to say."},
]


def write_like(prompt: str, attempt: int = 0) -> Answer:
    """Answer as a model would that obeys: every style in its own words, one of them with another size."""
    report = prompt.rpartition("\n\n")[2]
    if "JSON" in prompt:
        return Answer(json.dumps(PAIRS))
    style = next(i for i, style in enumerate(STYLES) if style in prompt)
    size = report.split("of ")[1].split(" mm")[0]
    said = 99 if style == 2 else size
    opening = (
        "There is",
        "Seen is",
        "We note",
        "One sees",
        "Found is",
        "Shown is",
        "There now is",
        "Present is",
    )
    return Answer(
        f"Findings: {opening[style]} a nodule of {said} mm. No effusion.\nImpression: {opening[style]} a nodule."
    )


def write_corpus(root: Path) -> Path:
    """Write four studies to train on, two to test with; each report has its own size."""
    write_folder(root)
    (root / "metadata.csv").unlink()
    rows = [
        {
            "study_id": f"s{i}", "patient_id": f"p{i // 2}", "split": "test" if i >= 4 else "train",
            "volume": f"ct{i}.nii.gz", "findings": f"Nodule of {i + 3} mm. No effusion.", "impression": "Nodule.",
            "region": "chest",
        }
        for i in range(6)
    ]  # fmt: skip
    return write_table(root, rows)


@pytest.fixture
def root(tmp_path) -> Path:
    return write_corpus(tmp_path / "corpus")


@pytest.fixture(scope="module")
def expanded(tmp_path_factory):
    """One expansion for the tests that only look: its folder, its manifest, the server that was asked."""
    folder = tmp_path_factory.mktemp("expanded")
    with JudgeServer(write_like) as server:
        manifest = expand(write_corpus(folder / "corpus"), folder / "out", server, num_questions=3)
    return folder / "out", manifest, server


def at(server, **options):
    return EndpointBackend(
        server.url, "writer", **{"temperature": 0.7, "seed": 1, "max_retries": 0, **options}
    )


def expand(root, out, server, *, options=None, **expansion):
    return rewrite_corpus("folder", root, out, at(server, **(options or {})), Expansion(**expansion))


def read(out, split="train"):
    return load_dataset(str(out), split=split, cache_dir=str(out.parent / "cache")).to_list()


def test_originals_rewrites_and_questions_come_out_as_rows(expanded):
    out, manifest, server = expanded
    assert sum(server.asked.values()) == 4 * 9 == len(server.asked)
    assert {(r["temperature"], r["seed"]) for r in server.requests} == {(0.7, 1)}
    first = [row for row in read(out) if row["study_id"] == "s0"]
    assert [(row["source"], row["rewrite"], row["status"]) for row in first] == [
        ("original", 0, "original"),
        *(("rewrite", number, "checked") for number in (1, 2, 4, 5, 6, 7, 8)),
        ("question", 1, "checked"),
        ("question", 3, "unchecked"),
    ]
    assert (
        first[0]["completion"][0]["content"] == "Findings: Nodule of 3 mm. No effusion.\nImpression: Nodule."
    )
    assert first[1]["completion"][0]["content"].startswith("Findings: There is a nodule of 3 mm.")
    assert first[8]["prompt"][0]["content"] == "Is there a lung nodule?\nA. Yes\nB. No"
    assert first[8]["completion"][0]["content"] == "A. Yes" and first[8]["kind"] == "presence"
    assert {Path(row["images"][0]["path"]).name for row in first} == {"ct0.nii.gz"}
    assert manifest["rows"] == {
        "train": {"original": 4, "question checked": 4, "question unchecked": 4, "rewrite checked": 28},
        "test": {"original": 2},
    }
    assert manifest["refused"] == {"resized": 4, "not stated": 4} and manifest["num_failed"] == 0


def test_a_rewrite_stays_with_its_patient_in_its_split(expanded):
    train, test = (read(expanded[0], split) for split in ("train", "test"))
    assert {row["study_id"]: row["patient_id"] for row in train} == {f"s{i}": f"p{i // 2}" for i in range(4)}
    assert {row["source"] for row in test} == {"original"} and {row["patient_id"] for row in test} == {"p2"}


def test_refusals_are_listed_without_a_word_of_the_report(expanded):
    out, _, _ = expanded
    listed = [json.loads(line) for line in (out / "refused.jsonl").read_text().splitlines()]
    assert listed[0] == {
        "study_id": "s0", "source": "rewrite", "rewrite": 3, "reason": "resized",
        "detail": "findings: Lung nodule (chest) from 3 mm to 99 mm", "reply": listed[0]["reply"],
    }  # fmt: skip
    replies = "".join(path.read_text() for path in out.with_name("out.replies").iterdir())
    assert listed[0]["reply"] in replies and "99 mm. No effusion" in replies


def test_the_manifest_names_everything_a_reply_depends_on_and_no_address(expanded):
    out, manifest, server = expanded
    written = (out / "manifest.json").read_text()
    assert json.loads(written) == manifest and server.url not in written and str(out.parent) not in written
    assert manifest["model"]["model"] == "writer" and manifest["endpoint"] == "loopback"
    assert (manifest["model"]["temperature"], manifest["model"]["seed"]) == (0.7, 1)
    assert manifest["prompts_sha256"] == prompts_sha256() and manifest["check"] and manifest["complete"]


def test_what_was_not_checked_can_be_left_out(root, tmp_path):
    with JudgeServer(write_like) as server:
        manifest = expand(root, tmp_path / "out", server, num_questions=3, require_checked=True)
    assert {row["status"] for row in read(tmp_path / "out")} == {"original", "checked"}
    assert manifest["refused"]["unchecked"] == 4


def test_studies_come_out_for_the_views(root, tmp_path):
    with JudgeServer(write_like) as server:
        expand(root, tmp_path / "out", server, num_questions=3, view="study")
    studies = load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(view_dataset(studies, "sft")) == len(view_dataset(studies, "impression")) == 4 * 8
    asked = view_dataset(studies, "vqa")
    assert len(asked) == 4 * 2 and set(asked["kind"]) == {"presence", "open"}


def test_impressions_are_expanded_as_text_alone(root, tmp_path):
    with JudgeServer(write_like) as server:
        expand(root, tmp_path / "out", server, num_paraphrases=2, view="impression")
    rows = read(tmp_path / "out")
    assert len(rows) == 4 * 3 and "images" not in rows[0]
    assert rows[1]["completion"][0]["content"] == "There is a nodule."
    assert "There is a nodule of 3 mm" in rows[1]["prompt"][0]["content"]


def test_other_splits_are_rewritten_when_asked_for(root, tmp_path):
    with JudgeServer(write_like) as server:
        manifest = expand(root, tmp_path / "out", server, num_paraphrases=1, splits=("train", "test"))
        assert manifest["rows"]["test"] == {"original": 2, "rewrite checked": 2}
        with pytest.raises(ValueError, match=r"\['validation'\] of `folder` has none"):
            expand(root, tmp_path / "other", server, splits=("validation",))


def test_a_second_run_asks_for_nothing(root, tmp_path):
    with JudgeServer(write_like) as server:
        first = expand(root, tmp_path / "out", server, num_paraphrases=2)
        asked = sum(server.asked.values())
        again = expand(root, tmp_path / "out", server, num_paraphrases=2)
        assert sum(server.asked.values()) == asked == 8
        del first["written"], again["written"]
        assert first == again
        with pytest.raises(ValueError, match="holds something else"):
            expand(root, tmp_path / "out", server, num_paraphrases=3)


def test_equal_reports_are_sent_once_and_expanded_each(root, tmp_path):
    rows = [json.loads(line) for line in (root / "metadata.jsonl").read_text().splitlines()]
    write_table(root, [row | {"findings": "Nodule of 5 mm. No effusion."} for row in rows])
    with JudgeServer(write_like) as server:
        manifest = expand(root, tmp_path / "out", server, num_paraphrases=2)
        assert sum(server.asked.values()) == 2
    assert manifest["rows"]["train"]["rewrite checked"] == 8


def test_failed_calls_are_listed_and_asked_again_by_the_next_run(root, tmp_path):
    broken = True

    def script(prompt, attempt):
        return Answer(status=400, body="{}") if broken and "of 4 mm" in prompt else write_like(prompt)

    with JudgeServer(script) as server:
        manifest = expand(root, tmp_path / "out", server, num_paraphrases=2)
        assert manifest["num_failed"] == 2 and manifest["refused"] == {"no reply": 2}
        assert manifest["rows"]["train"] == {"original": 4, "rewrite checked": 6}
        broken, before = False, sum(server.asked.values())
        manifest = expand(root, tmp_path / "out", server, num_paraphrases=2)
        assert sum(server.asked.values()) == before + 2 and manifest["num_failed"] == 0
    assert len(read(tmp_path / "out")) == 12


def test_a_server_that_goes_down_stops_the_run_and_keeps_what_it_said(root, tmp_path):
    def script(prompt, attempt):
        is_first = "of 3 mm" in prompt
        return write_like(prompt) if is_first else Answer(status=500, body="{}")

    one_by_one = {"max_concurrent": 1}
    with JudgeServer(script) as server:
        with pytest.raises(ConnectionError, match="replies so far are kept"):
            expand(root, tmp_path / "out", server, options=one_by_one, num_paraphrases=8)
        server.script = write_like
        before = server.asked.copy()
        expand(root, tmp_path / "out", server, options=one_by_one, num_paraphrases=8)
        assert all(server.asked[prompt] == count for prompt, count in before.items() if "of 3 mm" in prompt)


def test_a_text_that_may_not_leave_is_sent_to_this_machine_alone(root, tmp_path):
    endpoint = EndpointBackend("https://writer.example.org/v1", "writer")
    with pytest.raises(ValueError, match=r"`writer.example.org`.*4 of 4 may not"):
        rewrite_corpus("folder", root, tmp_path / "out", endpoint)
    assert not (tmp_path / "out").exists()


def test_a_corpus_without_reports_is_refused(root, tmp_path):
    rows = [json.loads(line) for line in (root / "metadata.jsonl").read_text().splitlines()]
    write_table(root, [row | {"impression": ""} for row in rows])
    with (
        JudgeServer(write_like) as server,
        pytest.raises(ValueError, match="view `impression` needs studies"),
    ):
        expand(root, tmp_path / "out", server, view="impression")


def test_an_expansion_without_anything_to_ask_is_refused():
    with pytest.raises(ValueError, match="Ask for at least one"):
        Expansion(num_paraphrases=0)
    with pytest.raises(ValueError, match="Questions are asked of volumes"):
        Expansion(num_questions=2, view="impression")


def test_every_paraphrase_has_a_prompt_of_its_own():
    report = "Findings: A.\nImpression: B."
    prompts = [paraphrase_prompt(report, number) for number in range(1, 3 * len(STYLES) + 1)]
    assert len(set(prompts)) == len(prompts) and all(prompt.endswith(report) for prompt in prompts)
    assert 'begins "Impression:"' in prompts[0]
    assert 'begins "Impression:"' not in paraphrase_prompt("Findings: A.", 1)
    assert questions_prompt(report, 5).endswith(report)


def test_the_command_says_what_came_of_it(cli, root, tmp_path):
    def run(out, url, *options):
        place = ("--root", root, "--out", tmp_path / out, "--url", url, "--model", "writer")
        return cli("data", "rewrite", "folder", *place, "--max-retries", 0, *options)

    asked = ("--paraphrases", 3, "--questions", 3, "--requests-per-minute", 60_000)
    with JudgeServer(write_like) as server:
        result = run("out", server.url, *asked)
        assert result.code == 0 and "train: 4 original" in result.out and "4 resized" in result.out
        assert "nodule" not in result.out.lower() + result.err.lower()
        facts = json.loads(run("out", server.url, *asked, "--json").out)
        assert facts["rows"]["train"]["rewrite checked"] == 8
        server.script = lambda prompt, attempt: Answer(status=400, body="{}")
        failed = run("other", server.url, "--paraphrases", 1)
    assert failed.code == 1 and "4 requests have no reply" in failed.err
    away = run("third", "https://writer.example.org/v1")
    assert away.code == 2 and "4 of 4 may not" in away.err


@pytest.mark.slow
def test_a_training_step_on_originals_rewrites_and_questions(root, tmp_path, checkpoint):
    from hf_mu2.training.recipe import train_recipe

    with JudgeServer(write_like) as server:
        expand(root, tmp_path / "out", server, num_paraphrases=2, num_questions=3)
    options = {
        "model_name_or_path": str(checkpoint), "dataset_name": str(tmp_path / "out"), "stage": "full",
        "max_steps": 1, "per_device_train_batch_size": 2, "max_length": 512, "bf16": False, "use_cpu": True,
        "report_to": "none", "output_dir": str(tmp_path / "trained"),
    }  # fmt: skip
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps(options))  # JSON is YAML
    assert (train_recipe(recipe) / "model.safetensors").exists()


def snapshot(out: Path) -> dict[str, bytes]:
    """Read what a run leaves, without its time stamp and the replies in the order they came."""
    files = {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    manifest = json.loads(files.pop("manifest.json"))
    manifest.pop("written")
    kept = {name: content for name, content in files.items() if not name.startswith("replies")}
    return kept | {"manifest": json.dumps(manifest).encode()}


@pytest.mark.slow
def test_twenty_kills_lose_no_line_and_double_none(root, tmp_path):
    def slowly(prompt, attempt):
        time.sleep(0.005)
        return write_like(prompt)

    with JudgeServer(slowly) as server:

        def run(rows, out, workers):
            rewrite_corpus("folder", root, out, at(server), Expansion(num_questions=3), cache=out / "replies")

        # Every other kill waits for a file of the folder to be written, the rest meet the asking at random.
        killed = KilledRuns(run, [], tmp_path / "out", 1)
        asked = sum(server.asked.values())
        assert killed.kill(20) >= 5
        out = killed.finish()
        assert asked == 36
        assert snapshot(out) == snapshot(killed.undisturbed)
    keys = [
        json.loads(line)["key"]
        for path in (out / "replies").iterdir()
        for line in path.read_text().splitlines(keepends=True)
        if line.endswith("\n")
    ]
    assert len(keys) == len(set(keys)) == 36
