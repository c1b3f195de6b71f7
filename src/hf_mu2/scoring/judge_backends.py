"""Where a judge runs: transformers in this process, vLLM in this process, or any OpenAI-compatible endpoint.

A backend turns prompts into replies, greedily. It says in `identity` everything about itself that a reply depends on,
and in `host` where the prompts travel.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import json
import os
from collections.abc import AsyncIterator, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol
from urllib.parse import urlsplit

from .judge_cache import Reply

if TYPE_CHECKING:
    import openai
    import torch
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

Turns = Literal["green", "chat"]
EndpointApi = Literal["chat", "completions"]


class Backend(Protocol):
    """What a judge needs of a backend.

    `identity` holds the model's name and revision and all settings, ready for JSON; `host` is `None` where prompts stay
    in this process.
    """

    @property
    def identity(self) -> dict[str, Any]: ...

    @property
    def host(self) -> str | None: ...

    def batches(self, prompts: Sequence[str]) -> list[list[str]]:
        """Group prompts as they are best answered together; the same for any number of processes."""
        ...

    def replies(self, batches: Iterable[list[str]]) -> AsyncIterator[dict[str, Reply]]:
        """Answer batches; yield replies by prompt, in any order, as they arrive."""
        ...


def encode(tokenizer: PreTrainedTokenizerBase, prompt: str, turns: Turns) -> list[int]:
    """Turn a prompt into token ids, whatever `add_bos_token` and `add_eos_token` say.

    `green` is the form the GREEN judges were trained on: a user turn, an empty assistant turn, and the header of the
    answer, between the start and the end token. The released scorer asks its tokenizer for the end token only;
    transformers 5 then leaves the start token out. `chat` is the tokenizer's own chat template.
    """
    if turns == "chat":
        message = [{"role": "user", "content": prompt}]
        return tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=False)
    end = tokenizer.eos_token
    text = f"<|user|>\n{prompt}{end}\n<|assistant|>\n{end}\n<|assistant|>\n"
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    return start + tokenizer(text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]


class TransformersBackend:
    """A causal language model of transformers, in bfloat16, left-padded, in batches of similar length.

    Under `accelerate launch` or torchrun each process loads the model on its own device.

    Args:
        model (`str` or `Path`): Hub id or folder.
        revision (`str`, *optional*): Branch, tag or commit; the commit it resolves to is what is recorded.
        max_new_tokens (`int`): Longest reply. The prompt does not count.
    """

    host = None

    def __init__(
        self,
        model: str | Path,
        *,
        revision: str | None = None,
        turns: Turns = "green",
        batch_size: int = 8,
        max_new_tokens: int = 1024,
        trust_remote_code: bool = False,
    ) -> None:
        import torch
        import transformers
        from accelerate import PartialState

        source = {"revision": revision, "trust_remote_code": trust_remote_code}
        self.device = PartialState(cpu=not torch.accelerator.is_available()).device
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(model, **source)
        self.model = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16, **source)
        self.model.eval().to(self.device)
        stops = self.model.generation_config.eos_token_id
        stops = set(stops if isinstance(stops, list) else [] if stops is None else [stops])
        self.stops = sorted(stops | {self.tokenizer.eos_token_id})
        self.padding = (
            self.tokenizer.eos_token_id
            if self.tokenizer.pad_token_id is None
            else self.tokenizer.pad_token_id
        )
        # Replaces the checkpoint's own, whose penalties and sampling would otherwise apply.
        self.model.generation_config = transformers.GenerationConfig(
            do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=self.stops, pad_token_id=self.padding
        )
        self.turns, self.batch_size, self.max_new_tokens = turns, batch_size, max_new_tokens
        positions = self.model.config.get_text_config().to_dict().get("max_position_embeddings")
        self.max_prompt_tokens = None if positions is None else positions - max_new_tokens
        self.identity = {
            "model": _name_model(model),
            "revision": resolve_revision(model, self.model.config),
            "backend": "transformers",
            "version": transformers.__version__,
            "turns": turns,
            "dtype": "bfloat16",
            "max_new_tokens": max_new_tokens,
        }

    def batches(self, prompts: Sequence[str]) -> list[list[str]]:
        ordered = sorted(
            prompts, key=lambda prompt: (-len(prompt), prompt)
        )  # out of memory shows in the first batch
        return [ordered[i : i + self.batch_size] for i in range(0, len(ordered), self.batch_size)]

    async def replies(self, batches: Iterable[list[str]]) -> AsyncIterator[dict[str, Reply]]:
        for batch in batches:
            yield await asyncio.to_thread(self._generate, batch)

    def _generate(self, prompts: list[str]) -> dict[str, Reply]:
        encoded = {prompt: encode(self.tokenizer, prompt, self.turns) for prompt in prompts}
        answers = {
            prompt: Reply(
                error=f"the prompt has {len(ids)} tokens, this judge takes {self.max_prompt_tokens}"
            )
            for prompt, ids in encoded.items()
            if self.max_prompt_tokens is not None and len(ids) > self.max_prompt_tokens
        }
        fitting = [prompt for prompt in prompts if prompt not in answers]
        if fitting:
            generated = self._continue([encoded[prompt] for prompt in fitting])
            answers |= {prompt: self._read(ids) for prompt, ids in zip(fitting, generated)}
        return answers

    def _continue(self, prompts: list[list[int]]) -> list[list[int]]:
        """Return the new tokens of each prompt."""
        import torch

        input_ids, attention_mask = pad_left(prompts, self.padding)
        with torch.inference_mode():
            output = self.model.generate(
                input_ids=input_ids.to(self.device), attention_mask=attention_mask.to(self.device)
            )
        return output[:, input_ids.shape[1] :].tolist()

    def _read(self, ids: list[int]) -> Reply:
        """Decode up to the first stop token; a reply without one ran out of tokens."""
        end = next((i for i, token in enumerate(ids) if token in self.stops), None)
        text = self.tokenizer.decode(ids[:end], skip_special_tokens=True)
        return Reply(text, "length" if end is None else "stop")


def pad_left(prompts: list[list[int]], padding: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Batch token ids to `(batch, longest)` with the padding in front; return them and their attention mask."""
    import torch

    longest = max(map(len, prompts))
    input_ids = [[padding] * (longest - len(ids)) + ids for ids in prompts]
    attention_mask = [[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts]
    return torch.tensor(input_ids), torch.tensor(attention_mask)


class VllmBackend:
    """A model inside vLLM's offline engine, prompted with the same token ids as `TransformersBackend`.

    vLLM spreads over devices by itself (`tensor_parallel_size`): do not start it under torchrun.

    Args:
        batch_size (`int`): Prompts handed to the engine at a time, and so what a killed run may lose.
        max_model_len (`int`): Longest prompt and reply together, in tokens.
    """

    host = None

    def __init__(
        self,
        model: str | Path,
        *,
        revision: str | None = None,
        turns: Turns = "green",
        batch_size: int = 512,
        max_new_tokens: int = 1024,
        max_model_len: int = 4096,
        tensor_parallel_size: int = 1,
        trust_remote_code: bool = False,
    ) -> None:
        try:
            import vllm
        except ImportError as error:
            raise ImportError(
                "The vLLM backend needs vLLM, which is not installed. It pins its own torch: make an environment for "
                "it, `pip install vllm hf_mu2`; or serve the judge with `vllm serve` and use the endpoint backend."
            ) from error
        from transformers import AutoConfig, AutoTokenizer

        source = {"revision": revision, "trust_remote_code": trust_remote_code}
        self.tokenizer = AutoTokenizer.from_pretrained(model, **source)
        self.engine = vllm.LLM(
            model=str(model),
            tokenizer=str(model),
            revision=revision,
            tokenizer_revision=revision,
            trust_remote_code=trust_remote_code,
            dtype="bfloat16",
            seed=0,
            max_model_len=max_model_len,
            tensor_parallel_size=tensor_parallel_size,
            enable_prefix_caching=True,
        )
        self.sampling = vllm.SamplingParams(temperature=0.0, max_tokens=max_new_tokens)
        self.turns, self.batch_size = turns, batch_size
        self.max_prompt_tokens = max_model_len - max_new_tokens
        self.identity = {
            "model": _name_model(model),
            "revision": resolve_revision(model, AutoConfig.from_pretrained(model, **source)),
            "backend": "vllm",
            "version": vllm.__version__,
            "turns": turns,
            "dtype": "bfloat16",
            "max_new_tokens": max_new_tokens,
        }

    def batches(self, prompts: Sequence[str]) -> list[list[str]]:
        ordered = sorted(
            prompts
        )  # candidates of one reference share a prefix, which the engine then computes once
        return [ordered[i : i + self.batch_size] for i in range(0, len(ordered), self.batch_size)]

    async def replies(self, batches: Iterable[list[str]]) -> AsyncIterator[dict[str, Reply]]:
        for batch in batches:
            yield await asyncio.to_thread(self._generate, batch)

    def _generate(self, prompts: list[str]) -> dict[str, Reply]:
        encoded = {prompt: encode(self.tokenizer, prompt, self.turns) for prompt in prompts}
        fitting = [prompt for prompt, ids in encoded.items() if len(ids) <= self.max_prompt_tokens]
        answers = {
            prompt: Reply(
                error=f"the prompt has {len(ids)} tokens, this judge takes {self.max_prompt_tokens}"
            )
            for prompt, ids in encoded.items()
            if len(ids) > self.max_prompt_tokens
        }
        outputs = self.engine.generate(
            [{"prompt_token_ids": encoded[prompt]} for prompt in fitting], self.sampling, use_tqdm=False
        )
        for prompt, output in zip(fitting, outputs):
            answers[prompt] = Reply(output.outputs[0].text, output.outputs[0].finish_reason)
        return answers


class EndpointBackend:
    """A judge behind an OpenAI-compatible server.

    Errors 408, 409, 429 and 5xx, lost connections and replies that do not come are asked again, with growing pauses or
    after what `Retry-After` says; what still fails is reported per prompt. The key is read from `OPENAI_API_KEY`.
    Greedy, as a judge should be, unless `temperature` says otherwise.

    Args:
        url (`str`): The server's base URL, ending in `/v1` for most.
        model (`str`): Model name to ask for.
        revision (`str`, *optional*): What the server serves; servers do not tell. State it, or change the cache when
            the server's weights change.
        api (`str`): `chat` sends the prompt as a user message, to which the server applies its own chat template.
            `completions` sends the token ids of `encode`, as the other backends use them; vLLM takes these.
        tokenizer (`str` or `Path`, *optional*): Where `completions` finds the judge's tokenizer, by default `model`.
        temperature (`float`): 0 for greedy.
        seed (`int`, *optional*): Sent with every request; a server may ignore it.
        max_concurrent (`int`): Requests under way at a time.
        requests_per_minute (`float`, *optional*): Most requests a minute, evenly spaced; those asked again count.
        timeout_s (`float`): Longest wait for a reply.
        max_retries (`int`): How often a prompt is asked again.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        revision: str | None = None,
        api: EndpointApi = "chat",
        turns: Turns = "green",
        tokenizer: str | Path | None = None,
        max_new_tokens: int = 1024,
        temperature: float = 0.0,
        seed: int | None = None,
        max_concurrent: int = 16,
        requests_per_minute: float | None = None,
        timeout_s: float = 180.0,
        max_retries: int = 4,
    ) -> None:
        host = urlsplit(url).hostname
        if urlsplit(url).scheme not in ("http", "https") or not host:
            raise ValueError(
                f"An endpoint must be an http or https URL, got `{url}`. "
                "Give the base URL of the server, e.g. `http://localhost:8000/v1`."
            )
        if max_concurrent < 1 or max_retries < 0 or timeout_s <= 0:
            raise ValueError(
                "An endpoint needs at least 1 request at a time, 0 retries and a wait above 0 s, "
                f"got {max_concurrent}, {max_retries} and {timeout_s}. Change these."
            )
        if temperature < 0 or (requests_per_minute is not None and requests_per_minute <= 0):
            raise ValueError(
                "An endpoint needs a temperature of at least 0 and more than 0 requests per minute, "
                f"got {temperature} and {requests_per_minute}. Change these."
            )
        self.url, self.host, self.model, self.api, self.turns = url, host, model, api, turns
        self.max_new_tokens, self.max_concurrent = max_new_tokens, max_concurrent
        self.timeout_s, self.max_retries = timeout_s, max_retries
        self.requests_per_minute = requests_per_minute
        self.sampling = {"temperature": temperature} | ({} if seed is None else {"seed": seed})
        self.tokenizer: PreTrainedTokenizerBase | None = None
        if api == "completions":
            from transformers import AutoTokenizer

            self.tokenizer = AutoTokenizer.from_pretrained(model if tokenizer is None else tokenizer)
        self.identity: dict[str, Any] = {
            "model": model,
            "revision": revision,
            "backend": "endpoint",
            "api": api,
            "turns": turns if api == "completions" else "server",
            "max_new_tokens": max_new_tokens,
        }
        if self.sampling != {"temperature": 0.0}:  # greedy replies go by the name they have had
            self.identity |= self.sampling
        self._client()  # says at once if the client is not installed

    def batches(self, prompts: Sequence[str]) -> list[list[str]]:
        return [[prompt] for prompt in prompts]

    async def replies(self, batches: Iterable[list[str]]) -> AsyncIterator[dict[str, Reply]]:
        prompts = (prompt for batch in batches for prompt in batch)
        pending: set[asyncio.Task[dict[str, Reply]]] = set()
        num_failed_in_a_row = 0
        async with self._client() as client:
            try:
                while True:
                    while len(pending) < self.max_concurrent and (prompt := next(prompts, None)) is not None:
                        pending.add(asyncio.create_task(self._ask(client, prompt)))
                    if not pending:
                        return
                    done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        answer = task.result()
                        error = next(iter(answer.values())).error
                        num_failed_in_a_row = 0 if error is None else num_failed_in_a_row + 1
                        yield answer
                        if num_failed_in_a_row >= max(2 * self.max_concurrent, 8):
                            raise ConnectionError(
                                f"The server at `{self.url}` failed {num_failed_in_a_row} times in a row, the last "
                                f"time with: {error}. Start or mend it and run again: replies so far are kept."
                            )
            finally:
                for task in pending:
                    task.cancel()

    async def _ask(self, client: openai.AsyncOpenAI, prompt: str) -> dict[str, Reply]:
        import openai

        limits: Any = {"model": self.model, "max_tokens": self.max_new_tokens, **self.sampling}
        try:
            if self.tokenizer is None:
                messages: Any = [{"role": "user", "content": prompt}]
                response = await client.chat.completions.with_raw_response.create(messages=messages, **limits)
            else:
                ids = encode(self.tokenizer, prompt, self.turns)
                response = await client.completions.with_raw_response.create(prompt=ids, **limits)
        except openai.APIStatusError as error:
            return {prompt: Reply(error=f"HTTP {error.status_code}: {_quote(error.response.text)}")}
        except openai.APITimeoutError:
            return {prompt: Reply(error=f"no reply within {self.timeout_s:g} s")}
        except openai.APIConnectionError as error:
            return {prompt: Reply(error=f"no connection: {error.__cause__ or error}")}
        return {prompt: _read_choice(response.text, self.api)}

    def _client(self) -> openai.AsyncOpenAI:
        try:
            import openai
        except ImportError as error:
            raise ImportError(
                'The endpoint backend needs a client: `pip install "hf_mu2[endpoint]"`.'
            ) from error
        # What is bound for this machine goes through no proxy and follows no redirect to another one.
        is_local = is_loopback(self.host)
        pace: list[Any] = [] if self.requests_per_minute is None else [_Pace(60 / self.requests_per_minute)]
        http_client = openai.DefaultAsyncHttpxClient(
            trust_env=not is_local, follow_redirects=not is_local, event_hooks={"request": pace}
        )
        return openai.AsyncOpenAI(
            base_url=self.url,
            api_key=os.environ.get("OPENAI_API_KEY", "none"),
            timeout=self.timeout_s,
            max_retries=self.max_retries,
            http_client=http_client,
        )


class _Pace:
    """Hold requests back so that they start at least `interval_s` apart, whoever sends them and why."""

    def __init__(self, interval_s: float) -> None:
        self.interval_s, self.next_s = interval_s, 0.0

    async def __call__(self, _: Any) -> None:
        now = asyncio.get_running_loop().time()
        start, self.next_s = max(now, self.next_s), max(now, self.next_s) + self.interval_s
        await asyncio.sleep(start - now)


def refuse_egress(
    host: str | None, marks: Sequence[bool | None], *, unmarked_may_leave: bool = False
) -> None:
    """Refuse to send reports to another machine that their corpus does not let leave this one.

    Args:
        host (`str`, *optional*): Where they would go; anything goes where `is_loopback`.
        marks (`Sequence[bool | None]`): `egress` of each report; `None` where nobody said.
        unmarked_may_leave (`bool`): Take `None` for a yes.

    Raises:
        ValueError: with the number of reports that may not leave, and what to do.
    """
    if is_loopback(host):
        return
    num_marked = sum(mark is not None and not mark for mark in marks)
    num_unmarked = sum(mark is None for mark in marks)
    if num_marked or (num_unmarked and not unmarked_may_leave):
        raise ValueError(
            f"Reports may be sent to `{host}` only if their corpus lets its text leave this machine (`egress`): "
            f"{num_marked} of {len(marks)} may not, {num_unmarked} do not say. Run the model on this machine "
            "(transformers, vLLM, or a server on localhost). Reports of your own that may be sent say so with `egress` "
            "true in their rows; a judge also takes `--unmarked-may-leave`."
        )


def is_loopback(host: str | None) -> bool:
    """Tell whether a host is this machine; names other than `localhost` are not looked up."""
    if host is None or host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def resolve_revision(model: str | Path, config: PreTrainedConfig) -> str:
    """Return the commit of a Hub checkpoint, or a digest of the files of a folder."""
    if not Path(model).is_dir():
        return str(config._commit_hash)
    digest = hashlib.sha256()
    for path in sorted(Path(model).iterdir()):
        if path.suffix in (".json", ".jinja", ".model", ".safetensors", ".bin"):
            with path.open("rb") as file:
                digest.update(f"{path.name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return f"sha256:{digest.hexdigest()[:16]}"


def _name_model(model: str | Path) -> str:
    """Name a checkpoint without the path it lies at."""
    return Path(model).resolve().name if Path(model).is_dir() else str(model)


def _read_choice(body: str, api: EndpointApi) -> Reply:
    try:
        choice = json.loads(body)["choices"][0]
        text = choice["message"]["content"] if api == "chat" else choice["text"]
        return Reply(text or "", choice.get("finish_reason"))
    except (ValueError, KeyError, IndexError, TypeError):
        return Reply(error="the server's answer is no completion")


def _quote(body: str) -> str:
    text = " ".join(body.split())
    return text if len(text) <= 200 else text[:200] + "..."
