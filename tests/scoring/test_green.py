"""GREEN from rows to scores: prompts, resuming, several processes, what may leave the machine, the command."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time

import pytest

import hf_mu2.cli.judge  # noqa: F401  (registers the command)
from hf_mu2.scoring import green, judge_backends
from hf_mu2.scoring.green import Judge, JudgeTemplate, Pair, judge_pairs, load_template, score_file
from hf_mu2.scoring.judge_backends import EndpointBackend, TransformersBackend
from hf_mu2.scoring.judge_cache import ReplyCache
from tests.scoring.judge_server import (
    TEMPLATE,
    WELL_FORMED,
    Answer,
    JudgeServer,
    assess,
    make_fluent_judge,
    make_random_judge,
)

T = JudgeTemplate(TEMPLATE, "test")
RANDOM_RUN = """
import sys
from hf_mu2.scoring.green import Judge, load_template, score_file
from hf_mu2.scoring.judge_backends import EndpointBackend, TransformersBackend
kind, where, template, rows, out = sys.argv[1:]
backend = TransformersBackend(where, batch_size=4, max_new_tokens=12) if kind == "model" else EndpointBackend(
    where, "scripted", max_concurrent=2)
score_file(rows, out, Judge(backend, load_template(template)))
"""


def write_rows(path, num_rows=24, **fields):
    """Write rows of growing candidates; every third repeats the one before."""
    rows = [
        {
            "study_id": f"s{i:03d}",
            "reference": f"Nodule {i - (i % 3 == 2)}.",
            "candidate": "cyst " * (i - (i % 3 == 2)),
            **fields,
        }
        for i in range(num_rows)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def rows(tmp_path):
    return write_rows(tmp_path / "rows.jsonl")


@pytest.fixture
def template(tmp_path):
    path = tmp_path / "template.txt"
    path.write_text(TEMPLATE)
    return path


# --- the prompt -----------------------------------------------------------------------------------------------------


def test_reports_are_cut_and_put_where_the_template_says():
    prompt = T.fill(Pair("a  b\nc {candidate} d", "x y z"), max_words=4)
    assert prompt == "Compare.\nTruth: a b c {candidate}\nAttempt: x y z\n"
    assert "w299" in T.fill(Pair(" ".join(f"w{i}" for i in range(400)), "x"), 300)
    assert "w300" not in T.fill(Pair(" ".join(f"w{i}" for i in range(400)), "x"), 300)


@pytest.mark.parametrize("text", ["no places", "{reference} {reference} {candidate}", "{reference}"])
def test_a_template_names_both_reports_once(tmp_path, text):
    (tmp_path / "t.txt").write_text(text)
    with pytest.raises(ValueError, match="once each"):
        load_template(tmp_path / "t.txt")


def test_without_a_template_the_error_says_how_to_get_one(monkeypatch):
    monkeypatch.setattr(green.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install --no-deps radeval.*--judge-template FILE"):
        load_template()


def test_the_prompt_of_an_installed_radeval_is_used_without_importing_the_package(tmp_path, monkeypatch):
    folder = tmp_path / "radeval" / "metrics" / "green_score"
    folder.mkdir(parents=True)
    (tmp_path / "radeval" / "__init__.py").write_text("raise RuntimeError('imported')")
    (folder / "utils.py").write_text(
        "def make_prompt(text1, text2, max_len=300):\n    return f'Compare.\\nTruth: {text1}\\nAttempt: {text2}\\n'\n"
    )
    (tmp_path / "radeval-2.2.1.dist-info").mkdir()
    (tmp_path / "radeval-2.2.1.dist-info" / "METADATA").write_text("Name: radeval\nVersion: 2.2.1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    template = load_template()
    assert (template.text, template.source) == (TEMPLATE, "radeval 2.2.1")
    assert template.sha256 == T.sha256
    (folder / "utils.py").unlink()
    with pytest.raises(ValueError, match="Install radeval"):
        load_template()


def test_an_empty_reference_is_refused(tmp_path, template):
    with JudgeServer() as server, pytest.raises(ValueError, match="pair 1 is empty"):
        asyncio.run(judge_pairs([Pair("a", "b"), Pair(" ", "b")], Judge(EndpointBackend(server.url, "m"), T)))
    assert not server.asked


# --- judging --------------------------------------------------------------------------------------------------------


def test_equal_pairs_are_asked_once_and_results_keep_the_order():
    pairs = [Pair("a", str(i % 3)) for i in range(9)]
    with JudgeServer() as server:
        results = asyncio.run(judge_pairs(pairs, Judge(EndpointBackend(server.url, "m"), T)))
    assert sum(server.asked.values()) == 3
    assert [result.reply for result in results] == [assess(T.fill(pair, 300)).text for pair in pairs]


def test_a_cache_in_memory_serves_the_next_call():
    cache, pairs = ReplyCache(), [Pair("a", "b"), Pair("a", "c")]
    with JudgeServer() as server:
        judge = Judge(EndpointBackend(server.url, "m"), T)
        first = asyncio.run(judge_pairs(pairs, judge, cache))
        assert asyncio.run(judge_pairs([*pairs, Pair("a", "d")], judge, cache))[:2] == first
    assert sum(server.asked.values()) == 3


def test_what_a_reply_depends_on_changes_its_key_and_the_parser_does_not():
    backend = EndpointBackend("http://localhost:1/v1", "m")
    judge = Judge(backend, T)
    same = [Judge(backend, T, parser="reference"), Judge(EndpointBackend("http://localhost:2/v1", "m"), T)]
    other = [
        Judge(backend, JudgeTemplate(f"{TEMPLATE} ", "test")),
        Judge(backend, T, max_words=200),
        Judge(EndpointBackend("http://localhost:1/v1", "n"), T),
        Judge(EndpointBackend("http://localhost:1/v1", "m", revision="2"), T),
        Judge(EndpointBackend("http://localhost:1/v1", "m", max_new_tokens=7), T),
    ]
    assert {j.key("p") for j in same} == {judge.key("p")}
    assert len({j.key("p") for j in [judge, *other]}) == 6
    assert len({j.signature for j in [judge, same[0], *other]}) == 7
    assert T.sha256[:12] in judge.signature


def test_the_reference_parser_scores_what_strict_leaves_open():
    with JudgeServer(lambda prompt, attempt: Answer("", "stop")) as server:
        backend = EndpointBackend(server.url, "m")
        (strict,) = asyncio.run(judge_pairs([Pair("a", "b")], Judge(backend, T)))
        (released,) = asyncio.run(judge_pairs([Pair("a", "b")], Judge(backend, T, parser="reference")))
    assert (strict.status, strict.score, strict.reference_score) == ("empty", None, 0.0)
    assert (released.status, released.score) == ("empty", 0.0)


# --- what may leave the machine -------------------------------------------------------------------------------------


@pytest.mark.parametrize("egress", [False, None])
def test_reports_that_may_not_leave_are_refused_before_anything_is_sent(egress):
    judge = Judge(EndpointBackend("https://judge.example.org/v1", "m"), T)
    with pytest.raises(ValueError, match=r"judge\.example\.org.*1 of 2 may not|1 do not say"):
        asyncio.run(judge_pairs([Pair("a", "b", True), Pair("secret", "b", egress)], judge))


def test_reports_that_do_not_say_may_be_let_go_and_those_that_forbid_may_not():
    judge = Judge(EndpointBackend("https://judge.example.org/v1", "m"), T, unmarked_may_leave=True)
    assert judge.prompts([Pair("a", "b"), Pair("a", "b", True)])
    with pytest.raises(ValueError, match="1 of 1 may not"):
        judge.prompts([Pair("a", "b", False)])


def test_text_is_no_permission():
    with pytest.raises(ValueError, match="true, false or null, got `'false'`"):
        Judge(EndpointBackend("https://judge.example.org/v1", "m"), T).prompts([Pair("a", "b", "false")])


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.0.1", "[::1]"])
def test_this_machine_may_judge_everything(host):
    assert Judge(EndpointBackend(f"http://{host}:8000/v1", "m"), T).prompts([Pair("a", "b", False)])


@pytest.mark.parametrize("host", ["10.0.0.1", "0.0.0.0", "localhost.example.org", "judge"])
def test_other_machines_may_not(host):
    with pytest.raises(ValueError, match="egress"):
        Judge(EndpointBackend(f"http://{host}:8000/v1", "m"), T).prompts([Pair("a", "b", False)])


def test_a_row_or_its_reference_may_forbid(tmp_path):
    rows, references = tmp_path / "rows.jsonl", tmp_path / "references.jsonl"
    rows.write_text('{"study_id": "s1", "candidate": "b", "egress": true}\n')
    references.write_text('{"study_id": "s1", "reference": "a", "egress": false}\n')
    judge = Judge(EndpointBackend("https://judge.example.org/v1", "m"), T)
    with pytest.raises(ValueError, match="1 of 1 may not"):
        score_file(rows, tmp_path / "out.jsonl", judge, references=references)
    references.write_text('{"study_id": "s1", "reference": "a", "egress": "no"}\n')
    with pytest.raises(ValueError, match="true, false or null"):
        score_file(rows, tmp_path / "out.jsonl", judge, references=references)


def test_rows_that_allow_it_are_sent(tmp_path, monkeypatch):
    """With this machine's server standing in for one elsewhere."""
    monkeypatch.setattr(judge_backends, "is_loopback", lambda host: False)
    rows = write_rows(tmp_path / "rows.jsonl", 2, egress=True)
    with JudgeServer() as server:
        assert (
            len(
                read(score_file(rows, tmp_path / "out.jsonl", Judge(EndpointBackend(server.url, "m"), T)).out)
            )
            == 2
        )


# --- files ----------------------------------------------------------------------------------------------------------


def test_a_file_is_scored_row_by_row_with_a_manifest(tmp_path, rows):
    with JudgeServer() as server:
        run = score_file(rows, tmp_path / "out.jsonl", Judge(EndpointBackend(server.url, "m"), T))
    scored = read(run.out)
    assert [row["study_id"] for row in scored] == [f"s{i:03d}" for i in range(24)]
    assert all(row["status"] == "ok" and 0 <= row["score"] <= 1 for row in scored)
    assert sum(server.asked.values()) == 16  # every third row repeats the one before
    manifest = json.loads(run.manifest.read_text())
    assert manifest["template"] == {"source": "test", "sha256": T.sha256}
    assert manifest["signature"] == scored[0]["judge"] and manifest["judge"]["model"] == "m"
    assert manifest["summary"]["num_scored"] == 24
    assert manifest["summary"]["mean"] == pytest.approx(sum(row["score"] for row in scored) / 24)


def test_references_may_come_from_another_file(tmp_path):
    (tmp_path / "c.jsonl").write_text(
        '{"study_id": 1, "candidate": "b"}\n{"study_id": 1, "candidate": "c"}\n'
    )
    (tmp_path / "r.jsonl").write_text('{"study_id": 1, "reference": "a"}\n')
    with JudgeServer() as server:
        judge = Judge(EndpointBackend(server.url, "m"), T)
        run = score_file(tmp_path / "c.jsonl", tmp_path / "o.jsonl", judge, references=tmp_path / "r.jsonl")
        assert len(read(run.out)) == 2
        (tmp_path / "r.jsonl").write_text('{"study_id": 2, "reference": "a"}\n')
        with pytest.raises(ValueError, match=r"study `1` has none in .*r\.jsonl"):
            score_file(tmp_path / "c.jsonl", tmp_path / "p.jsonl", judge, references=tmp_path / "r.jsonl")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "complete and in UTF-8"),
        ('{"candidate": "a"}', "must have the columns study_id"),
        ('{"study_id": "s1", "reference": "a"}', "study `s1` has none"),
        ('{"study_id": "s1", "candidate": "a", "reference": " "}', "text of its reference"),
    ],
)
def test_rows_that_cannot_be_judged_are_named(tmp_path, line, message):
    (tmp_path / "rows.jsonl").write_text(line + "\n")
    with pytest.raises(ValueError, match=message):
        score_file(
            tmp_path / "rows.jsonl",
            tmp_path / "o.jsonl",
            Judge(EndpointBackend("http://localhost:1", "m"), T),
        )


def test_scores_of_two_judges_do_not_share_a_file(tmp_path, rows):
    with JudgeServer() as server:
        score_file(rows, tmp_path / "out.jsonl", Judge(EndpointBackend(server.url, "m"), T))
        with pytest.raises(ValueError, match="Scores of different judges are not mixed"):
            score_file(rows, tmp_path / "out.jsonl", Judge(EndpointBackend(server.url, "n"), T))


def test_a_finished_file_is_replaced_by_the_same_scores_only(tmp_path, rows):
    with JudgeServer() as server:
        judge = Judge(EndpointBackend(server.url, "m"), T)
        first = score_file(rows, tmp_path / "out.jsonl", judge).out.read_bytes()
        asked = server.asked.total()
        assert score_file(rows, tmp_path / "out.jsonl", judge).out.read_bytes() == first
        assert server.asked.total() == asked
        with rows.open("a") as file:
            file.write('{"study_id": "new", "reference": "a", "candidate": "b"}\n')
        with pytest.raises(ValueError, match="scores of other reports"):
            score_file(rows, tmp_path / "out.jsonl", judge)
        (tmp_path / "out.jsonl").unlink()
        assert len(read(score_file(rows, tmp_path / "out.jsonl", judge).out)) == 25
        assert server.asked.total() == asked + 1
    (tmp_path / "foreign.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match="Name another output file"):
        score_file(rows, tmp_path / "foreign.jsonl", judge)


def test_failed_studies_are_asked_again_and_only_these(tmp_path, rows):
    def refuse_long(prompt, attempt):
        return (
            Answer(status=400, body='{"error": {"message": "too long"}}')
            if "cyst " * 20 in prompt
            else assess(prompt)
        )

    with JudgeServer(refuse_long) as server:
        judge = Judge(EndpointBackend(server.url, "m"), T)
        run = score_file(rows, tmp_path / "out.jsonl", judge)
        failed = [row for row in read(run.out) if row["status"] == "failed"]
        assert failed and all(row["score"] is None and "too long" in row["error"] for row in failed)
        assert run.failed.keys() == {row["study_id"] for row in failed}
        server.script, before = assess, server.asked.total()
        run = score_file(rows, tmp_path / "out.jsonl", judge)
        assert not run.failed and server.asked.total() == before + 2
    assert all(row["status"] == "ok" for row in read(run.out))


def run_script(tmp_path, *arguments, launch=()):
    script = tmp_path / "run.py"
    script.write_text(RANDOM_RUN)
    command = [sys.executable, *launch, script, *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(list(map(str, command)), env=environment, stderr=subprocess.PIPE, text=True)


def test_a_killed_run_goes_on_without_losing_or_doubling_a_row(tmp_path, rows, template):

    def falter(prompt, attempt):
        """Answer eight prompts, then hold the line."""
        return assess(prompt) if server.asked.total() < 8 else Answer(delay_s=60)

    with JudgeServer(falter) as server:
        process = run_script(tmp_path, "endpoint", server.url, template, rows, tmp_path / "out.jsonl")
        while server.asked.total() < 10 and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        _, errors = process.communicate()
        assert process.returncode == -signal.SIGKILL, errors
        assert not (tmp_path / "out.jsonl").exists()
        assert len(ReplyCache(tmp_path / "out.jsonl.replies").replies) == 8
        server.script, before = assess, server.asked.total()
        judge = Judge(EndpointBackend(server.url, "scripted"), load_template(template))
        resumed = score_file(rows, tmp_path / "out.jsonl", judge)
        assert server.asked.total() - before == 16 - 8
        whole = score_file(rows, tmp_path / "whole.jsonl", judge)
    assert resumed.out.read_bytes() == whole.out.read_bytes()
    assert len({row["study_id"] for row in read(resumed.out)}) == len(read(resumed.out)) == 24


@pytest.mark.slow
def test_two_processes_write_the_rows_of_one(tmp_path, rows, template):
    judge = make_random_judge(tmp_path / "judge")
    backend = TransformersBackend(judge, batch_size=4, max_new_tokens=12)
    one = score_file(rows, tmp_path / "one.jsonl", Judge(backend, load_template(template)))
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2]
    process = run_script(tmp_path, "model", judge, template, rows, tmp_path / "two.jsonl", launch=launch)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert (tmp_path / "two.jsonl").read_bytes() == one.out.read_bytes()
    assert json.loads((tmp_path / "two.manifest.json").read_text())["num_processes"] == 2
    assert len(list((tmp_path / "two.jsonl.replies").iterdir())) == 2
    assert len({row["reply"] for row in read(one.out)}) > 8


@pytest.mark.slow
def test_a_tiny_model_behind_transformers_serve_is_a_judge(tmp_path, rows):
    """`transformers serve` is the OpenAI-compatible server of the installed libraries."""
    pytest.importorskip("fastapi")
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    judge = make_fluent_judge(tmp_path / "judge")
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", judge, "--device", "cpu"]
    command += ["--host", "127.0.0.1", "--port", port]
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(list(map(str, command)), stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and server.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.2)
        backend = EndpointBackend(
            f"http://127.0.0.1:{port}/v1", str(judge), max_new_tokens=8, max_concurrent=2
        )
        run = score_file(rows, tmp_path / "out.jsonl", Judge(backend, T))
        assert not run.failed, (run.failed, (tmp_path / "log").read_text())
        assert all((row["status"], row["score"]) == ("ok", 0.5) for row in read(run.out))
        short = EndpointBackend(f"http://127.0.0.1:{port}/v1", str(judge), max_new_tokens=2)
        (cut,) = asyncio.run(judge_pairs([Pair("a", "b")], Judge(short, T)))
        assert (cut.status, cut.finish_reason) == ("truncated", "length")
    finally:
        server.kill()
        server.wait()


# --- the command ----------------------------------------------------------------------------------------------------


def test_the_command_judges_with_a_model_and_prints_the_summary(cli, tmp_path, rows, template):
    judge = make_fluent_judge(tmp_path / "judge")
    out = tmp_path / "out.jsonl"
    options = ["--judge", judge, "--judge-template", template, "--max-new-tokens", 8, "--out", out]
    result = cli("green", rows, *options)
    assert result.code == 0 and "GREEN 0.500 over 24 of 24 pairs (24 ok)" in result.out
    assert json.loads(cli("green", rows, *options, "--json").out)["mean"] == 0.5
    assert read(out)[0]["reply"].strip() == WELL_FORMED.strip()


def test_the_command_tells_bad_input_from_a_judge_that_is_down(cli, tmp_path, rows, template):
    options = ["--judge", "m", "--judge-template", template, "--out", tmp_path / "out.jsonl"]
    assert cli("green", rows, *options, "--backend", "endpoint").code == 2
    assert cli("green", rows, *options, "--url", "http://localhost:1").code == 2
    down = ["--backend", "endpoint", "--max-retries", 0]
    with JudgeServer(lambda prompt, attempt: Answer(status=503, body="{}")) as server:
        result = cli("green", rows, *options, *down, "--url", server.url, "--max-concurrent", 2)
    assert result.code == 1 and "8 times in a row" in result.err and "HTTP 503" in result.err
    with JudgeServer(
        lambda prompt, attempt: (
            Answer(status=400, body='{"error": {"message": "too long"}}')
            if "cyst" not in prompt
            else assess(prompt)
        )
    ) as server:
        result = cli("green", rows, *options, *down, "--url", server.url)
    assert result.code == 1 and "s000: HTTP 400" in result.err and "same command again" in result.err


def test_the_command_refuses_to_send_reports_away(cli, tmp_path, template):
    rows = write_rows(tmp_path / "rows.jsonl", 2, egress=False)
    options = [
        "--judge",
        "m",
        "--judge-template",
        template,
        "--backend",
        "endpoint",
        "--out",
        tmp_path / "o.jsonl",
    ]
    result = cli("green", rows, *options, "--url", "https://judge.example.org/v1", "--unmarked-may-leave")
    assert result.code == 2 and "2 of 2 may not" in result.err
