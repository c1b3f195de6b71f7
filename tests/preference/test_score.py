import json

import pytest

from hf_mu2.preference.score import read_weights, score
from hf_mu2.scoring.green import Judge, JudgeTemplate
from hf_mu2.scoring.judge_backends import EndpointBackend
from hf_mu2.scoring.lexical import score_texts
from hf_mu2.scoring.rewards import crg_reward, label_f1_reward
from hf_mu2.tables import read_rows
from tests.preference.candidate_rows import (
    REFERENCE,
    TEXTS,
    candidate_row,
    write_candidates,
    write_references,
)
from tests.scoring.judge_server import TEMPLATE, Answer, JudgeServer, assess

pytest.importorskip("openai")


def judge_at(server: JudgeServer, **options) -> Judge:
    options = {"max_retries": 0, "timeout_s": 5.0, "max_concurrent": 4} | options
    return Judge(EndpointBackend(server.url, "scripted", **options), JudgeTemplate(TEMPLATE, "tests"))


def rows_of(path) -> list[dict]:
    return list(read_rows(path))


def column(rows: list[dict], name: str) -> list:
    return [candidate["scores"][name] for row in rows for candidate in row["candidates"]]


def statuses(rows: list[dict]) -> list[str]:
    return [candidate["status"] for row in rows for candidate in row["candidates"]]


@pytest.fixture
def candidates(tmp_path):
    return write_candidates(tmp_path / "candidates.jsonl", [candidate_row("a"), candidate_row("b")])


@pytest.fixture
def references(tmp_path):
    return write_references(tmp_path / "references.jsonl", ["b", "a", "unasked"])


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_scores_are_those_of_the_scorers(candidates, references, tmp_path, ending):
    out = tmp_path / f"out.{ending}"
    weights = read_weights(["label_f1", "crg", "rouge_l=2"])
    rows = rows_of(score(candidates, out, weights, references=references).out)
    truth = [REFERENCE] * len(TEXTS)
    expected = {
        "label_f1": label_f1_reward(TEXTS, truth),
        "crg": crg_reward(TEXTS, truth),
        "rouge_l": [score_texts([text], [REFERENCE])["rougeL"] for text in TEXTS],
    }
    for name, values in expected.items():
        assert column(rows, name) == pytest.approx(values * 2)
    totals = [sum(parts) / 4 for parts in zip(*expected.values(), expected["rouge_l"])]
    assert column(rows, "total") == pytest.approx(totals * 2) and set(statuses(rows)) == {"ok"}
    assert expected["label_f1"][0] == 1.0 > expected["label_f1"][1] > expected["label_f1"][2] == 0.0


def test_rows_keep_their_fields_and_order(candidates, references, tmp_path):
    result = score(candidates, tmp_path / "out.jsonl", read_weights(["label_f1"]), references=references)
    for before, after in zip(rows_of(candidates), rows_of(result.out), strict=True):
        assert {name: after[name] for name in before if name != "candidates"} == {
            name: value for name, value in before.items() if name != "candidates"
        }
        for candidate, scored in zip(before["candidates"], after["candidates"], strict=True):
            assert scored | candidate == scored
        assert after["reference"] == REFERENCE and "labels:" in after["signature"]
    manifest = json.loads(result.manifest.read_text())
    assert manifest["signature"] == after["signature"] and manifest["versions"]["hf-mu2"]
    assert manifest["summary"]["status"] == {"ok": 8} and str(tmp_path) not in result.manifest.read_text()


def test_scored_rows_are_scored_again_by_their_own_references(candidates, references, tmp_path):
    weights = read_weights(["label_f1"])
    first = score(candidates, tmp_path / "first.jsonl", weights, references=references).out
    again = score(first, tmp_path / "again.jsonl", read_weights(["rouge_l"])).out
    assert column(rows_of(again), "label_f1") == column(rows_of(first), "total")
    assert column(rows_of(again), "total") == column(rows_of(again), "rouge_l")


@pytest.mark.parametrize(
    "by", [[], ["bleu"], ["label_f1", "label_f1=2"], ["green=0"], ["green=-1"], ["crg=inf"], ["crg=a"]]
)
def test_weights_that_make_no_score_are_refused(by):
    with pytest.raises(ValueError, match="A score is made of"):
        read_weights(by)


def test_weights_sum_to_one():
    assert read_weights(["green=3", "label_f1=1"]) == {"green": 0.75, "label_f1": 0.25}


def test_a_mix_is_the_weighted_mean_and_a_judge_is_asked_once_per_text(candidates, references, tmp_path):
    with JudgeServer() as server:
        weights = read_weights(["green=0.7", "label_f1=0.3"])
        judge = judge_at(server)
        result = score(candidates, tmp_path / "out.jsonl", weights, references=references, judge=judge)
    rows = rows_of(result.out)
    mixed = [0.7 * green + 0.3 * f1 for green, f1 in zip(column(rows, "green"), column(rows, "label_f1"))]
    assert column(rows, "total") == pytest.approx(mixed) and len(set(mixed)) > 2
    assert len(server.asked) == sum(server.asked.values()) == 4  # both studies have the same texts
    assert rows[0]["candidates"][0]["judge"]["significant"].keys() == set("abcdef")
    assert judge.signature in rows[0]["signature"] and "0.7*green" in rows[0]["signature"]


def test_a_study_without_reference_keeps_its_row_and_gets_no_score(candidates, tmp_path):
    references = write_references(tmp_path / "references.jsonl", ["b"])
    with JudgeServer() as server:
        result = score(
            candidates,
            tmp_path / "out.jsonl",
            read_weights(["green", "label_f1"]),
            references=references,
            judge=judge_at(server),
        )
    rows = rows_of(result.out)
    assert [row["reference"] is None for row in rows] == [True, False]
    assert statuses(rows) == ["no_reference"] * 4 + ["ok"] * 4
    assert (
        column(rows[:1], "total") == column(rows[:1], "green") == column(rows[:1], "label_f1") == [None] * 4
    )
    assert result.summary["studies_without_reference"] == ["a"] and sum(server.asked.values()) == 4


def test_candidates_of_which_none_has_a_reference_are_refused(candidates, tmp_path):
    for references in (None, write_references(tmp_path / "references.jsonl", ["c"])):
        with pytest.raises(ValueError, match="Scoring needs references, none of 2 studies has one"):
            score(candidates, tmp_path / "out.jsonl", read_weights(["label_f1"]), references=references)
    assert not (tmp_path / "out.jsonl").exists()


def test_findings_and_impression_are_references_too_and_sections_are_cut_on_both_sides(tmp_path):
    texts = ("Findings: Emphysema.\nImpression: Cardiomegaly.", "Findings: Emphysema.\nImpression: Normal.")
    path = write_candidates(tmp_path / "candidates.jsonl", [candidate_row("a", texts)])
    table = tmp_path / "metadata.jsonl"
    table.write_text(
        json.dumps({"study_id": "a", "findings": "Emphysema.", "impression": "Cardiomegaly."}) + "\n"
    )
    found = {
        section: column(
            rows_of(
                score(
                    path,
                    tmp_path / f"{section}.jsonl",
                    read_weights(["label_f1"]),
                    references=table,
                    section=section,
                ).out
            ),
            "total",
        )
        for section in ("both", "findings", "impression")
    }
    assert found["both"] == pytest.approx([1, 2 / 3])
    assert found["findings"] == [1, 1] and found["impression"] == [1, 0]


def test_a_reference_that_the_labeler_cannot_read_gives_no_label_score(tmp_path):
    path = write_candidates(
        tmp_path / "candidates.jsonl", [candidate_row("a", reference="左侧胸腔积液。肺气肿。")]
    )
    rows = rows_of(score(path, tmp_path / "labels.jsonl", read_weights(["label_f1", "rouge_l"])).out)
    assert set(statuses(rows)) == {"unreadable_reference"} and set(column(rows, "total")) == {None}
    rows = rows_of(score(path, tmp_path / "words.jsonl", read_weights(["rouge_l"])).out)
    assert set(statuses(rows)) == {"ok"} and None not in column(rows, "total")


SAME = ("Findings: Emphysema.", "findings:  emphysema. ", "Findings: Emphysema.")
SAME_LABELS = ("Findings: Emphysema.", "There is emphysema in both lungs.")


@pytest.mark.parametrize(("differing", "asked"), [(None, 8), ("text", 6), ("labels", 4)])
def test_the_judge_is_asked_only_where_candidates_differ(tmp_path, differing, asked):
    rows = [candidate_row("a", SAME), candidate_row("b", SAME_LABELS), candidate_row("c")]
    rows = [row | {"reference": f"{REFERENCE} {row['study_id']}"} for row in rows]
    path = write_candidates(tmp_path / "candidates.jsonl", rows)
    with JudgeServer() as server:
        result = score(
            path,
            tmp_path / "out.jsonl",
            read_weights(["green", "label_f1"]),
            judge=judge_at(server),
            only_differing=differing,
        )
    scored = rows_of(result.out)
    # The prompt of a judge has one space where a text has several.
    assert sum(server.asked.values()) == asked
    skipped = {None: 0, "text": 1, "labels": 2}[differing]
    for row in scored[:skipped]:
        assert set(statuses([row])) == {"not_differing"} and set(column([row], "total")) == {None}
        assert None not in column([row], "label_f1")
    assert set(statuses(scored[skipped:])) == {"ok"}


def test_an_empty_candidate_is_not_sent_to_the_judge(tmp_path):
    row = candidate_row("a", ("", "<think>unfinished", "Findings: Emphysema."), reference=REFERENCE)
    path = write_candidates(tmp_path / "candidates.jsonl", [row])
    with JudgeServer() as server:
        result = score(path, tmp_path / "out.jsonl", read_weights(["green"]), judge=judge_at(server))
    rows = rows_of(result.out)
    assert statuses(rows) == ["empty", "empty", "ok"] and column(rows, "label_f1")[:2] == [0, 0]
    assert column(rows, "total")[:2] == [None, None] and sum(server.asked.values()) == 1


@pytest.mark.parametrize(
    ("bad", "status"),
    [
        (Answer("I like this report."), "judge_unparsed"),
        (Answer(""), "judge_empty"),
        (Answer(body="<html>busy</html>"), "judge_failed"),
        (Answer(status=400, body="no"), "judge_failed"),
        (Answer(delay_s=1.5), "judge_failed"),
        (Answer("[Explanation]:\nSome", finish_reason="length"), "judge_truncated"),
    ],
    ids=["chatter", "nothing", "no completion", "refusal", "silence", "half a reply"],
)
def test_a_judge_that_fails_on_some_gives_no_score_there_and_is_asked_again(
    candidates, references, tmp_path, bad, status
):
    out, weights = tmp_path / "out.jsonl", read_weights(["green=0.7", "label_f1=0.3"])

    def script(prompt, attempt):
        return bad if "Cardiomegaly" in prompt and attempt == 0 else assess(prompt)

    with JudgeServer(script) as server:
        judge = judge_at(server, timeout_s=0.7)
        result = score(candidates, out, weights, references=references, judge=judge)
        rows = rows_of(out)
        wanted = ["ok", "ok", status, "ok"]
        assert statuses(rows) == wanted * 2
        for row in rows:
            scores = row["candidates"][2]["scores"]
            assert scores["green"] is None and scores["total"] is None and scores["label_f1"] == 0.0
        if status == "judge_failed":
            assert result.failed.keys() == {"a", "b"}
            asked = sum(server.asked.values())
            again = score(candidates, out, weights, references=references, judge=judge)
            assert sum(server.asked.values()) == asked + 1 and again.failed == {}
            assert set(statuses(rows_of(out))) == {"ok"}
        else:
            assert result.failed == {}


def test_a_judge_that_goes_down_leaves_its_replies_and_the_next_run_ends(tmp_path):
    rows = [candidate_row(f"s{number}", reference=f"{REFERENCE} {number}") for number in range(6)]
    path = write_candidates(tmp_path / "candidates.jsonl", rows)
    out, weights = tmp_path / "out.jsonl", read_weights(["green"])
    num_answered = 0

    def script(prompt, attempt):
        nonlocal num_answered
        num_answered += 1
        return assess(prompt) if num_answered <= 5 else Answer(status=400, body="down")

    with JudgeServer(script) as server:
        judge = judge_at(server, max_concurrent=2)
        with pytest.raises(ConnectionError, match="replies so far are kept"):
            score(path, out, weights, judge=judge)
        assert not out.exists()
        server.script = assess
        asked = sum(server.asked.values())
        result = score(path, out, weights, judge=judge)
        assert sum(server.asked.values()) == asked + 24 - 5
    assert set(statuses(rows_of(result.out))) == {"ok"}


def test_a_judge_and_green_go_together(candidates, references, tmp_path):
    with pytest.raises(ValueError, match="GREEN needs a judge"):
        score(candidates, tmp_path / "out.jsonl", read_weights(["green"]), references=references)
    with JudgeServer() as server, pytest.raises(ValueError, match="only GREEN does"):
        judge = judge_at(server)
        score(candidates, tmp_path / "out.jsonl", read_weights(["crg"]), references=references, judge=judge)


@pytest.mark.parametrize(("mine", "theirs"), [(False, True), (True, False), (None, None)])
def test_texts_that_may_not_leave_are_not_sent_to_another_machine(tmp_path, mine, theirs):
    path = write_candidates(tmp_path / "candidates.jsonl", [candidate_row("a", egress=mine)])
    references = write_references(tmp_path / "references.jsonl", ["a"], egress=theirs)
    backend = EndpointBackend("https://judge.invalid/v1", "scripted", max_retries=0)
    judge = Judge(backend, JudgeTemplate(TEMPLATE, "tests"))
    with pytest.raises(ValueError, match="may be sent"):
        score(path, tmp_path / "out.jsonl", read_weights(["green"]), references=references, judge=judge)
    rows = rows_of(score(path, tmp_path / "own.jsonl", read_weights(["crg"]), references=references).out)
    assert rows[0]["egress"] is (None if mine is None else False)


def test_other_scores_are_not_replaced(candidates, references, tmp_path):
    out = tmp_path / "out.jsonl"
    score(candidates, out, read_weights(["label_f1"]), references=references)
    score(candidates, out, read_weights(["label_f1"]), references=references)
    with pytest.raises(ValueError, match="another signature"):
        score(candidates, out, read_weights(["crg"]), references=references)
    write_candidates(candidates, [candidate_row("a")])
    with pytest.raises(ValueError, match="another candidates_sha256"):
        score(candidates, out, read_weights(["label_f1"]), references=references)


@pytest.mark.parametrize("listed", ["text", [{"report": "x"}], [{"text": None}]])
def test_rows_that_are_no_candidates_are_refused_by_study(tmp_path, listed):
    path = write_candidates(tmp_path / "candidates.jsonl", [candidate_row("a") | {"candidates": listed}])
    with pytest.raises(ValueError, match=r"study `a` of `candidates\.jsonl`"):
        score(path, tmp_path / "out.jsonl", read_weights(["label_f1"]))


def test_the_command_scores_and_says_what_has_no_score(candidates, tmp_path, cli):
    references = write_references(tmp_path / "references.jsonl", ["b"])
    out = tmp_path / "out.jsonl"
    run = cli("score", candidates, "--references", references, "--out", out)
    assert run.code == 0 and run.out.strip() == f"4 of 8 candidates scored: {out}"
    assert "4 candidates have no score: the study has no reference" in run.err
    assert "Studies without a reference: a" in run.err
    run = cli("score", candidates, "--references", references, "--out", out, "--by", "crg=2")
    assert run.code == 2 and "another signature" in run.err


def test_the_command_ends_with_1_when_the_judge_fails(candidates, references, tmp_path, cli):
    template = tmp_path / "template.txt"
    template.write_text(TEMPLATE)
    out = tmp_path / "out.jsonl"
    asking = (
        "--by",
        "green=0.7",
        "--by",
        "label_f1=0.3",
        "--judge",
        "scripted",
        "--judge-template",
        template,
    )
    asking = ("score", candidates, "--references", references, "--out", out, *asking, "--backend", "endpoint")

    def script(prompt, attempt):
        return Answer(status=400, body="no") if "Cardiomegaly" in prompt and attempt == 0 else assess(prompt)

    with JudgeServer(script) as server:
        run = cli(*asking, "--url", server.url, "--max-retries", 0)
        assert run.code == 1 and "Run the same command again" in run.err and "a: HTTP 400" in run.err
        assert "2 candidates have no score: the judge gave no reply" in run.err
        run = cli(*asking, "--url", server.url, "--max-retries", 0)
        assert run.code == 0 and run.out.strip() == f"8 of 8 candidates scored: {out}"
    run = cli(*asking[:5], out.with_name("down.jsonl"), *asking[6:], "--url", server.url, "--max-retries", 0)
    assert run.code == 1 and "8 candidates have no score" in run.err and "no connection" in run.err
