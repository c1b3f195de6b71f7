"""GREEN as a reward: scores of the judge, nothing where it failed, 0 for a report that says nothing."""

import asyncio
import inspect
import threading

import pytest

from hf_mu2.scoring import green_reward as module
from hf_mu2.scoring.green import Judge, JudgeTemplate
from hf_mu2.scoring.green_reward import green_reward, make_green_reward
from hf_mu2.scoring.judge_backends import EndpointBackend
from tests.scoring.judge_server import TEMPLATE, Answer, JudgeServer

NODULE, NORMAL, CHINESE = "There is a lung nodule.", "No lung nodule.", "双肺纹理清晰，未见明显结节。"


def reward_of(judge: JudgeServer, **fields):
    backend = EndpointBackend(judge.url, "scripted", timeout_s=5.0, max_retries=0, **fields)
    return make_green_reward(Judge(backend, JudgeTemplate(TEMPLATE, "test")))


def ask(reward, completions, references=None, **columns):
    return asyncio.run(reward(completions, references or [NODULE] * len(completions), **columns))


def test_a_completion_gets_the_judges_score_and_equal_ones_are_judged_once():
    with JudgeServer(lambda prompt, attempt: Answer()) as judge:
        found = ask(reward_of(judge), [NODULE, [{"role": "assistant", "content": NODULE}], NORMAL])
        assert found == [0.5, 0.5, 0.5] and sum(judge.asked.values()) == 2  # 3 matched, 3 significant errors


def test_where_the_judge_fails_there_is_no_reward_and_never_a_zero():
    def script(prompt: str, attempt: int) -> Answer:
        if "broken" in prompt:
            return Answer(status=500)
        if "nonsense" in prompt:
            return Answer("I like this report.")
        return Answer(finish_reason="length") if "long" in prompt else Answer()

    logged = {}
    with JudgeServer(script) as judge:
        found = ask(reward_of(judge), ["broken", "nonsense", "long", NODULE], log_metric=logged.__setitem__)
    assert found == [None, None, None, 0.5] and logged == {"green_unanswered": 0.75}


def test_a_judge_that_is_down_stops_no_training():
    with JudgeServer() as judge:
        reward = reward_of(judge)
    assert ask(reward, [f"Report {i}." for i in range(40)]) == [None] * 40


def test_a_report_that_says_nothing_earns_nothing_and_is_not_sent():
    with JudgeServer() as judge:
        assert ask(reward_of(judge), ["", "<think>no end", CHINESE]) == [0.0, 0.0, 0.0]
        assert not judge.asked


def test_texts_that_may_not_leave_are_not_sent_to_another_machine():
    backend = EndpointBackend("http://judge.example/v1", "scripted")
    reward = make_green_reward(Judge(backend, JudgeTemplate(TEMPLATE, "test")))
    with pytest.raises(ValueError, match="egress"):
        ask(reward, [NODULE], egress=[False])


def test_the_judge_of_the_environment_is_asked_on_the_trainers_loop(tmp_path, monkeypatch):
    """TRL awaits rewards on a loop in a thread of its own."""
    assert inspect.iscoroutinefunction(green_reward) and inspect.iscoroutinefunction(make_green_reward(None))
    module._reward_of_environment.cache_clear()
    monkeypatch.delenv("HF_MU2_JUDGE_URL", raising=False)
    with pytest.raises(ValueError, match="HF_MU2_JUDGE_URL"):
        ask(green_reward, [NODULE])
    (tmp_path / "template.txt").write_text(TEMPLATE)
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    with JudgeServer(lambda prompt, attempt: Answer()) as judge:
        monkeypatch.setenv("HF_MU2_JUDGE_URL", judge.url)
        monkeypatch.setenv("HF_MU2_JUDGE_MODEL", "scripted")
        monkeypatch.setenv("HF_MU2_JUDGE_TEMPLATE", str(tmp_path / "template.txt"))
        for completion in (NODULE, NORMAL):  # two steps
            call = green_reward(
                prompts=["p"], completions=[completion], reference=[NODULE], trainer_state=None
            )
            assert asyncio.run_coroutine_threadsafe(call, loop).result(20) == [0.5]
    loop.call_soon_threadsafe(loop.stop)
    module._reward_of_environment.cache_clear()
