"""Judges to test against: a scripted OpenAI-compatible server, and tiny models."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from transformers import AddedToken, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests.tiny import tiny_tokenizer

# A prompt of the tests' own, not that of any published judge.
TEMPLATE = "Compare.\nTruth: {reference}\nAttempt: {candidate}\n"
WELL_FORMED = """\
[Explanation]:
Some findings agree.

[Clinically Significant Errors]:
(a) False report: 2. Right pleural effusion; Cardiomegaly
(b) Missing finding: 1. Left lower lobe nodule

[Clinically Insignificant Errors]:
(d) Wrong severity: 1. Mild atelectasis called moderate

[Matched Findings]:
3. Aortic calcification; Emphysema; Hiatal hernia
"""


@dataclass(frozen=True)
class Answer:
    """What the server does with a request: answer, refuse, talk nonsense, or hold the line."""

    text: str = WELL_FORMED
    finish_reason: str = "stop"
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: str | None = None
    delay_s: float = 0.0


Script = Callable[[str, int], Answer]


def assess(prompt: str, attempt: int = 0) -> Answer:
    """Give every prompt its own well-formed assessment, always the same."""
    digest = hashlib.sha256(prompt.encode()).digest()
    counts = {letter: digest[i] % 3 for i, letter in enumerate("abcdef")}
    lines = "\n".join(
        f"({letter}) Some type: {count}. " + "; ".join(["x"] * count) for letter, count in counts.items()
    )
    return Answer(
        f"[Explanation]:\nNone.\n\n[Clinically Significant Errors]:\n{lines}\n\n"
        f"[Clinically Insignificant Errors]:\nNo errors.\n\n[Matched Findings]:\n{digest[6] % 4 + 1}. y\n"
    )


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # connections that may wait; the default of 5 turns some away


class JudgeServer:
    """A server on a free port of this machine that follows a script, and counts who asked what.

    Args:
        script (`Callable`): Maps a prompt and how often it came before to an `Answer`.
    """

    def __init__(self, script: Script = assess) -> None:
        self.script = script
        self.asked: Counter[str] = Counter()
        self.requests: list[dict[str, Any]] = []
        self.at: list[float] = []
        self.most_at_once = 0
        self._num_open = 0
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._server = _Server(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> JudgeServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        judge = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                is_chat = self.path.endswith("/chat/completions")
                prompt = body["messages"][-1]["content"] if is_chat else json.dumps(body["prompt"])
                with judge._lock:
                    answer = judge.script(prompt, judge.asked[prompt])
                    judge.asked[prompt] += 1
                    judge.requests.append({"path": self.path, **body})
                    judge.at.append(time.monotonic())
                    judge._num_open += 1
                    judge.most_at_once = max(judge.most_at_once, judge._num_open)
                judge._closing.wait(answer.delay_s)
                with judge._lock:
                    judge._num_open -= 1
                content = answer.body if answer.body is not None else _completion(answer, is_chat)
                self.send_response(answer.status)
                for name, value in {"Content-Type": "application/json", **answer.headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content.encode())))
                self.end_headers()
                self.wfile.write(content.encode())

            def log_message(self, *_: object) -> None:
                pass

            def handle(self) -> None:
                with contextlib.suppress(OSError):  # the client gave up waiting
                    super().handle()

        return Handler


def _completion(answer: Answer, is_chat: bool) -> str:
    said = {"message": {"role": "assistant", "content": answer.text}} if is_chat else {"text": answer.text}
    choice = {"index": 0, "finish_reason": answer.finish_reason, **said}
    return json.dumps(
        {"id": "1", "object": "completion", "created": 0, "model": "scripted", "choices": [choice]}
    )


def make_random_judge(path: Path) -> Path:
    """Save a random model: every prompt gets a reply of its own, none of them an assessment."""
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    model = LlamaForCausalLM(_config(tokenizer, hidden_size=64, num_attention_heads=4, initializer_range=0.3))
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def make_fluent_judge(path: Path) -> Path:
    """Save a model that answers every prompt with `WELL_FORMED`, a token per section.

    Its layers add nothing to the residual stream, so the next token follows from the last one alone.
    """
    tokenizer = tiny_tokenizer()
    sections = [f"{section}\n\n" for section in WELL_FORMED.strip().split("\n\n")]
    tokenizer.add_tokens([AddedToken(section, normalized=False) for section in sections])
    ids = [*tokenizer.convert_tokens_to_ids(sections), tokenizer.eos_token_id]
    model = LlamaForCausalLM(
        _config(tokenizer, hidden_size=len(tokenizer) + len(tokenizer) % 2, num_attention_heads=1)
    )
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.zero_().fill_diagonal_(1.0)
        model.lm_head.weight.zero_()
        model.lm_head.weight[ids[0]] = 1.0  # after anything, the first section
        for this, following in itertools.pairwise(ids):
            model.lm_head.weight[following, this] = 2.0
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def _config(tokenizer: PreTrainedTokenizerFast, **fields: float) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        intermediate_size=32,
        num_hidden_layers=2,
        max_position_embeddings=4096,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **fields,
    )
