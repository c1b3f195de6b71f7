"""Judges' backends: token ids, batches, what ends a reply, and a server that misbehaves."""

import asyncio
import itertools
import json
import sys
import time
import types

import pytest
import torch
from transformers import AutoTokenizer

from hf_mu2.scoring.green_parse import read_reply
from hf_mu2.scoring.judge_backends import (
    EndpointBackend,
    TransformersBackend,
    VllmBackend,
    encode,
    is_loopback,
    pad_left,
    resolve_revision,
)
from tests.scoring.judge_server import (
    WELL_FORMED,
    Answer,
    JudgeServer,
    assess,
    make_fluent_judge,
    make_random_judge,
)
from tests.tiny import tiny_tokenizer


def ask(backend, prompts, batches=None):
    """Collect a backend's replies by prompt."""

    async def collect():
        return {
            prompt: reply
            async for replies in backend.replies(backend.batches(prompts) if batches is None else batches)
            for prompt, reply in replies.items()
        }

    return asyncio.run(collect())


@pytest.fixture(scope="module")
def random_judge(tmp_path_factory):
    return make_random_judge(tmp_path_factory.mktemp("random") / "judge")


@pytest.fixture(scope="module")
def fluent_judge(tmp_path_factory):
    return make_fluent_judge(tmp_path_factory.mktemp("fluent") / "judge")


# --- token ids ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flags", [{}, {"add_bos_token": True}, {"add_bos_token": False}, {"add_eos_token": True}]
)
def test_start_and_end_tokens_do_not_depend_on_the_tokenizers_flags(random_judge, flags):
    tokenizer = AutoTokenizer.from_pretrained(random_judge, **flags)
    ids = encode(tokenizer, "P", "green")
    assert ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1
    assert tokenizer.decode(ids[1:-1]) == "<|user|>\nP<|end|>\n<|assistant|>\n<|end|>\n<|assistant|>\n"


def test_a_llama_tokenizer_that_was_asked_for_the_end_token_only_still_gets_a_start_token():
    """The trap of transformers 5: `add_eos_token=True` alone leaves the start token out."""
    from transformers import LlamaTokenizerFast

    vocabulary = {
        "<unk>": 0,
        "<s>": 1,
        "</s>": 2,
        **{piece: i for i, piece in enumerate("▁abcP<|>\nuserit", 3)},
    }
    for flags in (
        {"add_eos_token": True},
        {"add_bos_token": True, "add_eos_token": True},
        {"add_bos_token": False},
    ):
        tokenizer = LlamaTokenizerFast(vocab=vocabulary, merges=[], **flags)
        ids = encode(tokenizer, "P", "green")
        assert (ids[0], ids[-1], ids.count(1), ids.count(2)) == (1, 2, 1, 3)


def test_a_tokenizer_without_a_start_token_gets_none():
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = None
    assert encode(tokenizer, "P", "green")[0] == tokenizer.convert_tokens_to_ids("<|user|>")


def test_chat_turns_are_the_judges_own_template():
    tokenizer = tiny_tokenizer()
    assert tokenizer.decode(encode(tokenizer, "P", "chat")) == "<|bos|><|user|>P<|end|><|assistant|>"


def test_padding_is_on_the_left():
    input_ids, attention_mask = pad_left([[5, 6], [7]], padding=0)
    assert input_ids.tolist() == [[5, 6], [0, 7]] and attention_mask.tolist() == [[1, 1], [0, 1]]


# --- transformers ---------------------------------------------------------------------------------------------------


def test_batches_hold_prompts_of_similar_length_and_every_prompt_once(random_judge):
    backend = TransformersBackend(random_judge, batch_size=3, max_new_tokens=4)
    prompts = ["x" * (7 * i % 11) for i in range(11)]
    batches = backend.batches(prompts)
    assert sorted(prompt for batch in batches for prompt in batch) == sorted(prompts)
    lengths = [[len(prompt) for prompt in batch] for batch in batches]
    assert lengths == [[10, 9, 8], [7, 6, 5], [4, 3, 2], [1, 0]]
    assert backend.batches(prompts[::-1]) == batches


def test_weights_are_bfloat16_and_decoding_is_greedy_whatever_the_checkpoint_says(random_judge, tmp_path):
    from transformers import GenerationConfig

    GenerationConfig(
        do_sample=True, temperature=2.0, repetition_penalty=1.9, eos_token_id=[7]
    ).save_pretrained(tmp_path)
    plain = TransformersBackend(random_judge, max_new_tokens=8)
    for file in random_judge.iterdir():
        (tmp_path / file.name).exists() or (tmp_path / file.name).write_bytes(file.read_bytes())
    noisy = TransformersBackend(tmp_path, max_new_tokens=8)
    assert noisy.model.dtype == plain.model.dtype == torch.bfloat16
    assert noisy.stops == [4, 7]
    first = {prompt: reply.text for prompt, reply in ask(plain, ["abc", "de"]).items()}
    assert {
        prompt: reply.text[: len(first[prompt])] for prompt, reply in ask(noisy, ["abc", "de"]).items()
    } == first
    assert noisy.identity["revision"] != plain.identity["revision"]


def test_a_batch_answers_as_its_prompts_alone_would(random_judge):
    """In float32, where padding does not tip near-ties."""
    backend = TransformersBackend(random_judge, batch_size=3, max_new_tokens=8)
    backend.model.float()
    prompts = ["a", "some longer prompt", "a prompt that is longer still, by far"]
    assert ask(backend, prompts) == ask(backend, prompts, [[prompt] for prompt in prompts])


def test_the_reason_a_reply_ended_is_told(fluent_judge):
    (whole,) = ask(TransformersBackend(fluent_judge, max_new_tokens=8), ["P"]).values()
    (cut,) = ask(TransformersBackend(fluent_judge, max_new_tokens=2), ["P"]).values()
    assert (whole.text.strip(), whole.finish_reason) == (WELL_FORMED.strip(), "stop")
    assert cut.finish_reason == "length" and WELL_FORMED.startswith(cut.text.strip())


def test_a_prompt_that_does_not_fit_fails_alone(fluent_judge):
    replies = ask(TransformersBackend(fluent_judge, max_new_tokens=8), ["P", "x" * 5000])
    assert replies["P"].error is None and "tokens, this judge takes 4088" in replies["x" * 5000].error


def test_a_folders_revision_follows_its_content(random_judge, fluent_judge, tmp_path):
    assert resolve_revision(random_judge, None) != resolve_revision(fluent_judge, None)
    for file in random_judge.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    assert resolve_revision(tmp_path, None) == resolve_revision(random_judge, None)


# --- vLLM, which is not installed here: what it would be asked -----------------------------------------------------


class FakeEngine:
    """Stands in for `vllm.LLM` and keeps what it was given."""

    def __init__(self, **options):
        self.options, self.calls = options, []
        type(self).last = self

    def generate(self, prompts, sampling_params, use_tqdm):
        self.calls.append((prompts, sampling_params))
        completion = types.SimpleNamespace(text=WELL_FORMED, finish_reason="stop")
        return [types.SimpleNamespace(outputs=[completion]) for _ in prompts]


@pytest.fixture
def vllm(monkeypatch):
    module = types.ModuleType("vllm")
    module.LLM, module.SamplingParams, module.__version__ = FakeEngine, lambda **options: options, "0.0"
    monkeypatch.setitem(sys.modules, "vllm", module)


def test_vllm_is_asked_greedily_by_token_ids_with_prefix_caching(vllm, random_judge):
    backend = VllmBackend(random_judge, revision="main", max_new_tokens=64, max_model_len=512, batch_size=2)
    prompts = ["shared b", "other", "shared a"]
    replies = ask(backend, prompts)
    assert set(replies) == set(prompts) and read_reply(replies["other"].text).status == "ok"
    options = FakeEngine.last.options
    assert (
        options["dtype"] == "bfloat16" and options["enable_prefix_caching"] and options["revision"] == "main"
    )
    assert options["max_model_len"] == 512
    (first, sampling), (second, _) = FakeEngine.last.calls
    tokenizer = AutoTokenizer.from_pretrained(random_judge)
    asked = ["other", "shared a", "shared b"]  # neighbours share their beginning
    assert first + second == [{"prompt_token_ids": encode(tokenizer, prompt, "green")} for prompt in asked]
    assert sampling == {"temperature": 0.0, "max_tokens": 64}


def test_vllm_is_not_handed_a_prompt_that_does_not_fit(vllm, random_judge):
    backend = VllmBackend(random_judge, max_new_tokens=64, max_model_len=128)
    replies = ask(backend, ["P", "x" * 200])
    assert replies["P"].error is None and "tokens" in replies["x" * 200].error
    assert len(FakeEngine.last.calls[0][0]) == 1


def test_without_vllm_the_error_says_what_to_do(monkeypatch, random_judge):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ImportError, match="pip install vllm"):
        VllmBackend(random_judge)


# --- endpoints ------------------------------------------------------------------------------------------------------


def at(server, **options):
    return EndpointBackend(server.url, "judge-7b", **{"max_retries": 3, "timeout_s": 10, **options})


def test_a_prompt_is_one_user_message_answered_greedily():
    with JudgeServer() as server:
        replies = ask(at(server, max_new_tokens=99), ["P"])
    assert replies["P"].text == assess("P").text
    request = server.requests[0]
    assert (
        request["messages"] == [{"role": "user", "content": "P"}]
        and request["path"] == "/v1/chat/completions"
    )
    assert (request["model"], request["temperature"], request["max_tokens"]) == ("judge-7b", 0.0, 99)


def test_completions_send_the_token_ids_of_the_other_backends(random_judge):
    with JudgeServer() as server:
        replies = ask(at(server, api="completions", tokenizer=random_judge), ["P"])
    ids = encode(AutoTokenizer.from_pretrained(random_judge), "P", "green")
    assert server.requests[0]["prompt"] == ids and server.requests[0]["path"] == "/v1/completions"
    assert replies["P"].text == assess(json.dumps(ids)).text


def test_a_refusal_for_the_moment_is_asked_again():
    def script(prompt, attempt):
        codes = {"429": 429, "500": 500, "503": 503}
        if prompt in codes and attempt == 0:
            return Answer(status=codes[prompt], body="{}", headers={"retry-after-ms": "20"})
        return assess(prompt)

    prompts = ["429", "500", "503", "fine"]
    with JudgeServer(script) as server:
        replies = ask(at(server), prompts)
    assert {prompt: reply.text for prompt, reply in replies.items()} == {p: assess(p).text for p in prompts}
    assert server.asked == {"429": 2, "500": 2, "503": 2, "fine": 1}


def test_retry_after_is_honoured():
    def script(prompt, attempt):
        return Answer(status=429, body="{}", headers={"Retry-After": "1"}) if attempt == 0 else assess(prompt)

    with JudgeServer(script) as server:
        ask(at(server), ["P"])
    assert server.at[1] - server.at[0] >= 1.0  # by itself the client waits half as long


def test_a_reply_that_does_not_come_is_given_up_and_asked_again():
    def script(prompt, attempt):
        return Answer(delay_s=30) if prompt == "hangs" or attempt == 0 else assess(prompt)

    started = time.monotonic()
    with JudgeServer(script) as server:
        replies = ask(at(server, timeout_s=0.3, max_retries=1), ["hangs", "hangs once"])
    assert replies["hangs"].error == "no reply within 0.3 s" and server.asked["hangs"] == 2
    assert replies["hangs once"].text == assess("hangs once").text
    assert time.monotonic() - started < 25


def test_a_permanent_refusal_fails_at_once_and_alone():
    def script(prompt, attempt):
        return (
            Answer(status=400, body='{"error": {"message": "too long"}}')
            if prompt == "long"
            else assess(prompt)
        )

    with JudgeServer(script) as server:
        replies = ask(at(server), ["long", "fine"])
    assert "HTTP 400" in replies["long"].error and "too long" in replies["long"].error
    assert replies["fine"].error is None and server.asked["long"] == 1


@pytest.mark.parametrize(
    "body", ["<html>proxy</html>", "{}", '{"choices": []}', "[1]", '{"choices": [{"message": 1}]}']
)
def test_an_answer_that_is_no_completion_fails(body):
    with JudgeServer(lambda prompt, attempt: Answer(body=body)) as server:
        assert ask(at(server), ["P"])["P"].error == "the server's answer is no completion"


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (Answer(), "ok"),
        (Answer("I cannot compare these."), "unparsed"),
        (Answer(WELL_FORMED[:150], "length"), "truncated"),
        (Answer(""), "empty"),
        (Answer(body='{"choices": [{"message": {"content": null}, "finish_reason": "stop"}]}'), "empty"),
    ],
)
def test_scripted_replies_get_their_status(answer, status):
    with JudgeServer(lambda prompt, attempt: answer) as server:
        (reply,) = ask(at(server), ["P"]).values()
    assert read_reply(reply.text, reply.finish_reason).status == status


def test_requests_under_way_are_limited_and_overlap():
    with JudgeServer(lambda prompt, attempt: Answer(delay_s=0.05)) as server:
        replies = ask(at(server, max_concurrent=3), [str(i) for i in range(12)])
    assert len(replies) == 12 and server.most_at_once == 3


def test_requests_are_spaced_to_a_rate_those_asked_again_too():
    def script(prompt, attempt):
        return Answer(status=500, body="{}", headers={"retry-after-ms": "1"}) if not attempt else Answer()

    with JudgeServer(script) as server:
        ask(at(server, requests_per_minute=1200), ["a", "b", "c"])  # one every 50 ms
    gaps = [later - sooner for sooner, later in itertools.pairwise(server.at)]
    assert len(gaps) == 5 and min(gaps) > 0.02 and server.at[-1] - server.at[0] > 0.23


def test_sampling_is_sent_and_named():
    with JudgeServer() as server:
        backend = at(server, temperature=0.7, seed=5)
        ask(backend, ["P"])
        greedy = at(server).identity
    assert (server.requests[0]["temperature"], server.requests[0]["seed"]) == (0.7, 5)
    assert backend.identity == greedy | {"temperature": 0.7, "seed": 5} and "temperature" not in greedy


@pytest.mark.parametrize("wrong", [{"temperature": -1}, {"requests_per_minute": 0}, {"max_concurrent": 0}])
def test_an_endpoint_that_could_not_be_asked_is_refused(wrong):
    with pytest.raises(ValueError, match="An endpoint needs"):
        EndpointBackend("http://localhost:1/v1", "m", **wrong)


def test_a_judge_that_keeps_failing_stops_the_run_after_what_it_did_answer():
    def script(prompt, attempt):
        return assess(prompt) if prompt == "0" else Answer(status=500, body="{}")

    async def collect():
        async for replies in at(server, max_retries=0, max_concurrent=1).replies(
            [[str(i)] for i in range(100)]
        ):
            seen.update(replies)

    seen = {}
    with JudgeServer(script) as server, pytest.raises(ConnectionError, match=r"8 times in a row.*HTTP 500"):
        asyncio.run(collect())
    assert seen["0"].error is None and len(seen) == 9


def test_a_server_that_is_not_there_is_named():
    with pytest.raises(ConnectionError, match="no connection"):
        ask(
            EndpointBackend("http://127.0.0.1:9/v1", "m", max_retries=0, max_concurrent=1),
            [str(i) for i in range(20)],
        )


def test_a_judge_on_this_machine_is_reached_without_proxy(monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    with JudgeServer() as server:
        assert ask(at(server, max_retries=0), ["P"])["P"].error is None


def test_a_judge_on_this_machine_cannot_send_the_reports_elsewhere():
    with JudgeServer() as elsewhere:
        away = Answer(status=307, body="{}", headers={"Location": f"{elsewhere.url}/chat/completions"})
        with JudgeServer(lambda prompt, attempt: away) as server:
            assert "HTTP 307" in ask(at(server), ["P"])["P"].error
        assert not elsewhere.asked


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://localhost", "", "http://"])
def test_an_endpoint_is_a_web_address(url):
    with pytest.raises(ValueError, match="http or https"):
        EndpointBackend(url, "m")


def test_without_a_client_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ImportError, match=r"hf_mu2\[endpoint\]"):
        EndpointBackend("http://localhost:1/v1", "m")


def test_loopback_is_known_by_address_not_by_look():
    assert all(map(is_loopback, (None, "localhost", "127.0.0.1", "::1")))
    assert not any(map(is_loopback, ("127.0.0.1.example.org", "10.0.0.1", "0.0.0.0", "my-localhost")))
