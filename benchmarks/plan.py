"""Peak memory of real training steps on CPU against what `hf_mu2.training.plan` says of them.

    python benchmarks/plan.py [--sizes NAME ...]

Measured is what PyTorch's allocator held at most in two steps with AdamW. Resident memory is not asked: for the same
step it differed by 40 % between two machines.
"""

import argparse
import gc
import time
import warnings
from itertools import accumulate

import torch
from torch.profiler import ProfilerActivity, profile

from hf_mu2.model.configuration_mu2 import Mu2Config
from hf_mu2.training.plan import Step, build_model, make_inputs, measure

_LM = {
    "vocab_size": 32768,  # one tile of TRL's fused head, whose buffer is then used whole
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "head_dim": 64,
}
# Differ in what fills memory: weights and optimizer, the tower's activations, the language model's, an adapter.
SIZES: dict[str, tuple[dict, Step]] = {
    "full": ({"num_hidden_layers": 16}, Step("full", batch=1, frames=2, length=128, checkpointing=False)),
    "align": ({"num_hidden_layers": 4}, Step("align", batch=2, frames=8, length=128, checkpointing=False)),
    "checkpointing": ({"num_hidden_layers": 12}, Step("full", batch=4, frames=4, length=256)),
    "lora": (
        {"num_hidden_layers": 8},
        Step("adapt", batch=4, frames=2, length=256, lora_r=16, checkpointing=False),
    ),
}


def size_of(name: str) -> tuple[Mu2Config, Step]:
    """Return configuration and step of a size: the preset `tiny` with a larger language model, in float32."""
    layers, step = SIZES[name]
    config = Mu2Config.from_preset("tiny", text_config={**_LM, **layers})
    return config, Step(**{**vars(step), "autocast": False})


def measure_on_cpu(name: str) -> dict[str, float]:
    """Run two real steps; return the most bytes that PyTorch's allocator held in them."""
    config, step = size_of(name)
    started = time.perf_counter()
    gc.collect()  # what an earlier size left must not be freed, and counted, in this one
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run_steps(config, step)
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return {"measured": max(accumulate(changes)), "seconds": time.perf_counter() - started}


def run_steps(config: Mu2Config, step: Step) -> None:
    """Train for two steps: the second has the optimizer's state from the first."""
    model = build_model(config, step)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)  # a page that was never written takes no memory
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=True)
    for _ in range(2):
        model(**make_inputs(config, step), fused_lm_head=True).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def compare(name: str) -> dict[str, float]:
    """Measure a size, and plan it."""
    facts = measure_on_cpu(name)
    started = time.perf_counter()
    memory, _ = measure(*size_of(name))
    return {**facts, "planned": memory.peak, "plan_seconds": time.perf_counter() - started}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES))
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    print(
        "| size | measured (GB) | planned (GB) | planned / measured | planning (s) |\n|---|---|---|---|---|"
    )
    for name in arguments.sizes:
        facts = compare(name)
        print(
            f"| {name} | {facts['measured'] / 1e9:.3f} | {facts['planned'] / 1e9:.3f} | "
            f"{facts['planned'] / facts['measured']:.2f} | {facts['plan_seconds']:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
