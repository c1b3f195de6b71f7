"""Seconds and peak memory of the visual path (vision tower, then tokenizer) against the number of frames of a study.

    python benchmarks/scaling.py [--frames 4 8 16 24 32 --width 192 --repeats 3 --threads 2]

Each number of frames runs in a process of its own: forward without gradients, and forward + backward with gradient
checkpointing. A least-squares line is fitted through the medians and printed with its R2.
"""

import argparse
import json
import resource
import subprocess
import sys
import time

import numpy as np
import torch

SECTIONS = ("forward", "forward + backward")


def measure(args: argparse.Namespace) -> None:
    """Run one number of frames in this process and print its figures as JSON."""
    from hf_mu2.model.configuration_mu2 import Mu2Config
    from hf_mu2.model.modeling_mu2 import Mu2Model

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    config = Mu2Config.from_preset(
        "tiny",
        vision_config={
            "hidden_size": args.width,
            "intermediate_size": 4 * args.width,
            "num_attention_heads": args.width // 64,
            "frame_size": (32, 128, 128),
            "patch_size": (4, 16, 16),
            "frames_per_chunk": 2,
        },
        tokenizer_config={
            "hidden_size": args.width,
            "num_heads": args.width // 64,
            "num_refiner_layers": 2,
            "num_selected_tokens": 256,
            "max_frames": max(args.frames),
        },
    )
    model = Mu2Model(config)
    frames = args.frames[0]
    pixel_values = torch.rand(1, frames, 64, 128, 128)
    question = torch.randint(7, 500, (1, 16))
    start_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if args.section == "forward":
        model.eval()
    else:
        model.train()
        model.gradient_checkpointing_enable({"use_reentrant": False})
    seconds = []
    for _ in range(1 + args.repeats):  # the first is a warm-up
        model.zero_grad()
        start = time.perf_counter()
        with torch.set_grad_enabled(args.section != "forward"):
            features = model.get_image_features(pixel_values, question_input_ids=question)
            if features.requires_grad:
                features.square().mean().backward()
        seconds.append(time.perf_counter() - start)
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start_kb) / 1024**2
    print(json.dumps({"seconds": float(np.median(seconds[1:])), "GiB": peak}))


def fit(x: list[int], y: list[float]) -> str:
    slope, offset = np.polyfit(x, y, 1)
    residual = np.asarray(y) - (slope * np.asarray(x) + offset)
    r2 = 1 - residual.var() / np.var(y)
    exponent = np.polyfit(np.log(x), np.log(y), 1)[0]
    return f"{offset:.3f} + {slope:.4f} x frames, R2 {r2:.4f}; log-log exponent {exponent:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=int, nargs="+", default=[4, 8, 16, 24, 32])
    for name, default in (("width", 192), ("repeats", 3), ("threads", 2), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--section", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.section:
        return measure(args)
    options = [f"--{name}={getattr(args, name)}" for name in ("width", "repeats", "threads", "seed")]
    for section in SECTIONS:
        rows = []
        for frames in args.frames:
            command = [sys.executable, __file__, "--frames", str(frames), "--section", section, *options]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            rows.append(json.loads(output.splitlines()[-1]))
            print(
                f"{section:20} {frames:3} frames {rows[-1]['seconds']:8.3f} s {rows[-1]['GiB']:7.3f} GiB",
                flush=True,
            )
        for figure in ("seconds", "GiB"):
            print(f"{section:20} {figure:8} = {fit(args.frames, [row[figure] for row in rows])}")
    return None


if __name__ == "__main__":
    main()
