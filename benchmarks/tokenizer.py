"""Seconds and peak memory of the mu2 tokenizer against a plain transcription of the published one, outputs equal.

    python benchmarks/tokenizer.py [--tokens 2048 --frames 8 --width 768 --selected 1024 --queries 1024 --threads 2]

Three forms of the same maths (published refiner, 1-D relative bias, constant gates, one query set): `loop`, the
published code written plainly with its Python loop over slots; `matmul`, the same with selection as one product;
`ours`, this package in `official` form. Each runs in a process of its own, forward and forward + backward; then our
default form.
"""

import argparse
import json
import resource
import subprocess
import sys
import time

import torch
import torch.nn.functional as F

SECTIONS = ("forward", "forward + backward")


def attention(module, queries, keys, raw_values=False):
    """Published attention: all scores in memory, bias gathered from its table."""
    heads = module.num_heads
    q, k = (
        layer(x).unflatten(-1, (heads, -1)).transpose(1, 2)
        for layer, x in ((module.query, queries), (module.key, keys))
    )
    v = (keys if raw_values else module.value(keys)).unflatten(-1, (heads, -1)).transpose(1, 2)
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    if module.bias is not None:
        offset = torch.arange(keys.shape[1]) - torch.arange(queries.shape[1])[:, None]
        scores = scores + module.bias.table[:, offset + module.bias.reach[0] - 1]
    attended = (scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(2)
    return attended if raw_values else module.output(attended)


def published(tokenizer, tokens, question, is_loop):
    """The published forward pass (REFERENCE: u2Tokenizer b9fb37a), on the weights of our `official` form."""
    batch, frames, count, width = tokens.shape
    x = tokens
    for layer in tokenizer.refiner.layers:
        flat = x.reshape(batch * frames, count, width)
        x = attention(layer.spatial_attention, flat, flat).view(batch, frames, count, width)
        flat = x.transpose(1, 2).reshape(batch * count, frames, width)
        x = attention(layer.temporal_attention, flat, flat).view(batch, count, frames, width).transpose(1, 2)
    flat = x.reshape(batch, frames * count, width)
    weights = tokenizer.selection.score(flat).softmax(dim=1)
    if is_loop:
        slots = [(weights[:, :, r : r + 1] * flat).sum(dim=1) for r in range(weights.shape[2])]
        selected = torch.stack(slots, dim=1)
    else:
        selected = weights.transpose(1, 2) @ flat
    pooled = [F.avg_pool1d(selected.transpose(1, 2), s, s).transpose(1, 2) for s in (1, 2, 4)]
    gates = torch.cat([tokenizer.pooling.gate(y.mean(dim=1)) for y in pooled], dim=-1).softmax(dim=-1)
    visual = torch.cat([gates[:, i, None, None] * y for i, y in enumerate(pooled)], dim=1)
    queries = tokenizer.aggregator.query_tokens.expand(batch, -1, -1)
    for layer in tokenizer.aggregator.layers:
        queries = layer.self_norm(queries + attention(layer.self_attention, queries, queries))
        queries = layer.visual_norm(queries + attention(layer.visual_attention, queries, visual))
        queries = layer.text_norm(queries + attention(layer.text_attention, queries, question))
    return attention(tokenizer.aggregator.aggregation, queries, visual, raw_values=True)


def build(args, form):
    from hf_mu2.model.configuration_mu2 import Mu2TokenizerConfig
    from hf_mu2.model.modeling_mu2_tokenizer import Mu2Tokenizer

    depth = max(1, args.tokens // 256)
    sizes = {
        "hidden_size": args.width,
        "text_hidden_size": args.width,
        "vision_hidden_size": args.width,
        "frame_grid": (depth, 16, args.tokens // depth // 16),
        "num_selected_tokens": args.selected,
        "num_query_tokens": args.queries,
        "max_frames": args.frames,
    }
    if form == "default":
        half, quarter = args.queries // 2, args.queries // 4
        config = Mu2TokenizerConfig(**sizes, scale_queries=(half, quarter, args.queries - half - quarter))
    else:
        config = Mu2TokenizerConfig(
            **sizes,
            position="1d",
            query_position=True,
            max_positions=max(args.tokens, args.queries),
            refiner="published",
            select_from="refined",
            pooling="published",
            query_sets="shared",
            normalize_question=False,
        )
    torch.manual_seed(args.seed)
    tokenizer = Mu2Tokenizer(config)
    if form != "default":
        tokenizer.question_projector = torch.nn.Identity()
        tokenizer.projector = torch.nn.Identity()
        # Larger weights than at initialisation, where the published refiner collapses and any two forms agree.
        for layer in tokenizer.refiner.layers:
            for block in (layer.spatial_attention, layer.temporal_attention):
                torch.nn.init.normal_(block.bias.table, std=0.5)
                block.query.weight.data *= 4
    return tokenizer


def measure(args, form):
    """Run one form in this process and print its figures as JSON."""
    torch.set_num_threads(args.threads)
    tokenizer = build(args, form)
    generator = torch.Generator().manual_seed(args.seed)
    tokens = torch.randn(1, args.frames, args.tokens, args.width, generator=generator)
    question = torch.randn(1, 32, args.width, generator=generator)

    def forward():
        if form in ("loop", "matmul"):
            return published(tokenizer, tokens, question, is_loop=form == "loop")
        return tokenizer.aggregate(tokens, question)

    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    if args.section == "forward":
        with torch.no_grad():
            output = forward()
    else:
        output = forward()
        output.square().mean().backward()
    seconds = time.perf_counter() - start
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base) / 1024**2
    gradient = tokenizer.refiner.layers[0].spatial_attention.query.weight.grad
    numbers = {
        "seconds": seconds,
        "GiB": peak,
        "output": output.detach().flatten()[:: output.numel() // 64].tolist(),
        "gradient": None if gradient is None else gradient.norm().item(),
    }
    print(json.dumps(numbers))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sizes = {"tokens": 2048, "frames": 8, "width": 768, "selected": 1024, "queries": 1024}
    for name, default in {**sizes, "threads": 2, "seed": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--form", help=argparse.SUPPRESS)
    parser.add_argument("--section", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.form:
        return measure(args, args.form)

    results = {}
    for section in SECTIONS:
        for form in ("loop", "matmul", "ours", "default"):
            command = [sys.executable, __file__, *sys.argv[1:], "--form", form, "--section", section]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            results[section, form] = json.loads(output.splitlines()[-1])
    sizes = f"N={args.tokens} T={args.frames} E={args.width} k={args.selected} Q={args.queries}"
    print(f"{sizes}, {args.threads} threads, fp32")
    columns = f"{'x loop':>9}{'x matmul':>10}{'memory / matmul':>17}{'max |diff|':>12}"
    print(f"{'':20}{'form':10}{'seconds':>9}{'GiB':>8}{columns}")
    for section in SECTIONS:
        loop, matmul = results[section, "loop"], results[section, "matmul"]
        for form in ("loop", "matmul", "ours", "default"):
            row = results[section, form]
            difference = max(abs(a - b) for a, b in zip(row["output"], loop["output"]))
            agreement = "-" if form == "default" else f"{difference:.1e}"
            print(
                f"{section:20}{form:10}{row['seconds']:9.2f}{row['GiB']:8.2f}{loop['seconds'] / row['seconds']:9.1f}"
                f"{matmul['seconds'] / row['seconds']:10.2f}{row['GiB'] / matmul['GiB']:17.2f}{agreement:>12}"
            )
    gradients = [results[SECTIONS[1], form]["gradient"] for form in ("loop", "matmul", "ours")]
    print(
        "gradient norm of one refiner weight:",
        ", ".join(f"{g:.6g}" for g in gradients),
        "(loop, matmul, ours)",
    )


if __name__ == "__main__":
    main()
