"""Train the embedded demo checkpoint `mu2-phantom` on PhantomCT, from nothing, on a CPU or a GPU.

    python scripts/train_mu2_phantom.py --work WORK_DIR --out src/hf_mu2/checkpoints/mu2-phantom

Five stages, each resumable (kill it and call it again): `data` makes studies and preprocesses them with the
checkpoint's own image processor; `tower` trains the vision tower to say, per patch and per study, which findings it
holds; `report` trains tokenizer and language model on the reports, from cached tower features; `whole` goes on with the
vision tower included, from the volumes; `export` writes the checkpoint. `scripts/mu2_phantom_card.sh` measures it and
writes its card.

Reads: nothing (studies are computed from their seeds). Writes: WORK_DIR (studies, training state) and OUT (checkpoint).
"""

import argparse
import hashlib
import json
import math
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn
from tqdm import tqdm
from transformers import GenerationConfig, PreTrainedTokenizerFast

from hf_mu2.data.phantom import GENERATOR_VERSION, PROMPTS, make_phantom, random_spacing
from hf_mu2.data.phantom.report import Finding, write_report
from hf_mu2.data.study import FINDING_LABELS
from hf_mu2.hub.assemble import save_checkpoint
from hf_mu2.hub.chat_template import adapt_chat_template
from hf_mu2.model.configuration_mu2 import Mu2Config
from hf_mu2.model.image_processing_mu2 import Mu2ImageProcessor
from hf_mu2.model.modeling_mu2 import Mu2ForConditionalGeneration
from hf_mu2.model.modeling_mu2_vision import Mu2VisionModel
from hf_mu2.model.processing_mu2 import DEFAULT_QUESTION, Mu2Processor

STAGES = ("data", "tower", "report", "whole", "export")
SHARD = 100
QUESTIONS = (DEFAULT_QUESTION, *PROMPTS)
# Ids follow this order, as the preset `tiny` says.
SPECIAL_TOKENS = ("<|pad|>", "<|bos|>", "<|user|>", "<|assistant|>", "<|end|>", "<|image|>", "<|system|>")
CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
    {{- '<|' + message['role'] + '|>' -}}
    {%- if message['role'] == 'assistant' -%}
        {%- generation -%}{{- message['content'] + '<|end|>' -}}{%- endgeneration -%}
    {%- else -%}
        {{- message['content'] + '<|end|>' -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}
"""


def image_processor() -> Mu2ImageProcessor:
    """The demo's geometry: 5 x 4.5 x 4.5 mm, a wide window and a soft-tissue window as channels."""
    return Mu2ImageProcessor(
        spacing=(5.0, 4.5, 4.5),
        size={"height": 72, "width": 72},
        num_slices=16,
        patch_depth=4,
        max_frames=8,
        windows=[(-1000, 400), (-160, 340)],
    )


def config() -> Mu2Config:
    notice = "Demo model trained on synthetic CT only. Not a medical device."
    return Mu2Config.from_preset("tiny", notice=notice, body_region="chest", trained_on_synthetic_only=True)


# ---------------------------------------------------------------------------------------------------------------- data


def training_spacing(seed: int) -> tuple[float, float, float]:
    """Coarser than `random_spacing`, since thousands of studies are rendered; a fifth are as fine as those measured."""
    z, in_plane, _ = random_spacing(seed)
    if seed % 5 == 0:
        return max(z, 3.0), max(in_plane, 2.0), max(in_plane, 2.0)
    return max(z, 4.0), in_plane + 1.3, in_plane + 1.3


def patch_findings(masks: np.ndarray, affine: np.ndarray, grid_affine: np.ndarray, vision) -> np.ndarray:
    """Mark which findings each patch holds, as bit fields.

    Args:
        masks (`np.ndarray` of shape `(depth, height, width)`, uint32): Bit i is finding i.
        affine, grid_affine (`np.ndarray` of shape `(4, 4)`): Voxel (x, y, z) to RAS mm, of the masks and of the grid.

    Returns:
        `np.ndarray` of shape `(slabs, height patches, width patches)`, uint32.
    """
    to_grid = np.linalg.inv(grid_affine) @ affine
    index = [
        np.rint(np.arange(n) * to_grid[i, i] + to_grid[i, 3]).astype(int)
        for i, n in enumerate(masks.shape[::-1])
    ]
    x, y, z = (i // p for i, p in zip(index, vision.patch_size[::-1]))
    _, rows, columns = vision.grid
    slabs = config().tokenizer_config.max_frames * vision.grid[0]
    keep = [(i >= 0) & (i < n) for i, n in zip((z, y, x), (slabs, rows, columns))]
    masks = masks[np.ix_(*keep)]
    z, y, x = z[keep[0]], y[keep[1]], x[keep[2]]
    patch = (z[:, None, None] * rows + y[:, None]) * columns + x
    bits = np.zeros(slabs * rows * columns, dtype=np.uint32)
    voxels = np.bincount(patch.ravel(), minlength=bits.size).clip(min=1)
    for i in range(len(FINDING_LABELS)):
        inside = (masks >> np.uint32(i)) & 1 == 1
        if inside.any():
            share = np.bincount(patch[inside], minlength=bits.size) / voxels
            # A voxel of the grid is 0.4 % of a patch of 4 x 8 x 8; the fullest patch always counts.
            bits[share >= min(0.005, share.max())] |= np.uint32(1 << i)
    return bits.reshape(slabs, rows, columns)


def make_shard(job: tuple[Path, list[int]]) -> None:
    path, seeds = job
    torch.set_num_threads(1)
    processor, vision = image_processor(), config().vision_config
    rows: dict[str, list] = {"pixels": [], "slabs": [], "bits": [], "frames": []}
    texts = []
    for seed in seeds:
        phantom = make_phantom(seed, spacing=training_spacing(seed))
        volume = processor.load(phantom.nifti())
        batch = processor(volume, return_tensors="np")
        pixels, slabs = batch["pixel_values"][0], batch["pixel_attention_mask"][0]
        bits = patch_findings(phantom.masks, phantom.affine, processor.grid(volume).affine(volume), vision)
        rows["frames"].append(len(pixels))
        rows["pixels"].append(np.rint(pixels * 255).astype(np.uint8))
        rows["slabs"].append(slabs)
        rows["bits"].append(bits.reshape(-1, *vision.grid)[: len(pixels)].reshape(len(pixels), -1))
        findings = [asdict(finding) for finding in phantom.findings]
        texts.append({"seed": seed, "findings": findings, "labels": phantom.labels})
    most = max(rows["frames"])
    arrays = {
        key: np.stack(
            [np.concatenate([a, np.zeros((most - len(a), *a.shape[1:]), a.dtype)]) for a in rows[key]]
        )
        for key in ("pixels", "slabs", "bits")
    }
    partial = path.with_name(f".partial_{path.name}")
    with partial.open("wb") as file:
        np.savez(file, **arrays, texts=json.dumps(texts))
    partial.replace(path)


def shard_path(work: Path, first: int, num_train: int) -> Path:
    last = min(first + SHARD, num_train) - 1
    return work / "studies" / f"generator{GENERATOR_VERSION}_{first:06d}-{last:06d}.npz"


def make_data(work: Path, num_train: int, workers: int) -> None:
    folder = work / "studies"
    folder.mkdir(parents=True, exist_ok=True)
    jobs = [
        (shard_path(work, first, num_train), list(range(first, min(first + SHARD, num_train))))
        for first in range(0, num_train, SHARD)
    ]
    jobs = [job for job in jobs if not job[0].exists()]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        list(tqdm(pool.map(make_shard, jobs), total=len(jobs), desc="shards of studies"))


class Studies:
    """The preprocessed studies, in memory."""

    def __init__(self, work: Path, num_train: int):
        shards = [np.load(shard_path(work, first, num_train)) for first in range(0, num_train, SHARD)]
        most = max(shard["slabs"].shape[1] for shard in shards)

        def join(key):
            parts = [shard[key] for shard in shards]
            widths = [[(0, 0), (0, most - p.shape[1])] + [(0, 0)] * (p.ndim - 2) for p in parts]
            return torch.from_numpy(np.concatenate([np.pad(p, w) for p, w in zip(parts, widths)]))

        self.pixels, self.slabs = join("pixels"), join("slabs").bool()
        self.bits = join("bits").to(torch.int64)
        rows = [row for shard in shards for row in json.loads(str(shard["texts"]))]
        self.findings = [[Finding(**finding) for finding in row["findings"]] for row in rows]
        findings = torch.arange(len(FINDING_LABELS))
        sample = self.bits[:: max(1, len(rows) // 200)].flatten()
        self.patch_share = ((sample[:, None] >> findings) & 1).float().mean(0).clamp(min=1e-4)
        self.labels = torch.tensor([[row["labels"][name] for name in FINDING_LABELS] for row in rows]).float()

    def __len__(self) -> int:
        return len(self.findings)

    def answer(self, index: int, draw: int) -> str:
        """One of the many reports that follow from the findings of a study."""
        return write_report(self.findings[index], seed=1_000_003 * draw + index).text


def batches(indices: torch.Tensor, size: int, seed: int) -> list[torch.Tensor]:
    order = torch.randperm(len(indices), generator=torch.Generator().manual_seed(seed))
    return list(indices[order].split(size))


def cosine(step: int, steps: int, warmup: int) -> float:
    return min(1.0, (step + 1) / warmup) * (
        0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))
    )


def digest(path: Path) -> str:
    """A short hash of a file, for the names of what is made from it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]


def save_state(path: Path, **state) -> None:
    partial = path.with_name(f".partial_{path.name}")
    torch.save(state, partial)
    partial.replace(path)


def log(work: Path, **row) -> None:
    row = {key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()}
    with (work / "log.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    tqdm.write(json.dumps(row))


def macro_f1(truth: torch.Tensor, guess: torch.Tensor) -> tuple[float, list[float]]:
    truth, guess = truth.bool(), guess.bool()
    hits = (truth & guess).sum(0)
    f1 = (2 * hits / (truth.sum(0) + guess.sum(0)).clamp(min=1)).tolist()
    return sum(f1) / len(f1), [round(x, 2) for x in f1]


# --------------------------------------------------------------------------------------------------------------- tower


class FindingHead(nn.Module):
    """Per-patch finding logits; a study holds what its most convincing patch holds."""

    def __init__(self, width: int):
        super().__init__()
        self.patch = nn.Linear(width, len(FINDING_LABELS))
        self.scale = nn.Parameter(torch.ones(len(FINDING_LABELS)))
        self.offset = nn.Parameter(torch.zeros(len(FINDING_LABELS)))
        nn.init.constant_(self.patch.bias, -3.0)

    def forward(self, tokens: torch.Tensor, token_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = self.patch(tokens.flatten(1, 2).float())  # (B, T*N, labels)
        best = logits.masked_fill(~token_mask[:, :, None], -1e4).topk(8, dim=1).values.mean(1)
        return logits, best * self.scale + self.offset

    def losses(
        self, tokens: torch.Tensor, studies: "Studies", rows: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Patch loss, study loss and study logits of encoded studies, `(B, T, N, width)`.

        Findings fill between one patch in 3,000 and one in 20. Positives weigh 1/sqrt(share) and each finding's loss
        again so, up to a constant: otherwise the large findings are all that is learned.
        """
        device = tokens.device
        slabs, bits = studies.slabs[rows].to(device), studies.bits[rows].to(device).flatten(1)
        mask = slabs.repeat_interleave(tokens.shape[2] // slabs.shape[2], dim=-1).flatten(1)
        patch_logits, study_logits = self(tokens, mask)
        truth = ((bits[:, :, None] >> torch.arange(len(FINDING_LABELS), device=device)) & 1).float()
        rarity = studies.patch_share.to(device).rsqrt()
        weight = mask[:, :, None] * (0.05 * rarity).clamp(max=5.0)
        patch_loss = F.binary_cross_entropy_with_logits(patch_logits, truth, weight=weight, pos_weight=rarity)
        study_loss = F.binary_cross_entropy_with_logits(study_logits, studies.labels[rows].to(device))
        return patch_loss, study_loss, study_logits


NOISE = torch.randn(2**24, generator=torch.Generator().manual_seed(3))


def to_pixels(pixels: torch.Tensor, device, generator: torch.Generator | None = None) -> torch.Tensor:
    """Back from bytes, with noise and small HU shifts in training (never a flip: reports name sides)."""
    pixels = pixels.to(device).float() / 255
    if generator is not None:
        gain, shift = torch.randn(2, len(pixels), 1, 1, 1, 1, generator=generator).to(device)
        start = int(torch.randint(len(NOISE) - pixels.numel(), (1,), generator=generator))
        noise = NOISE[start : start + pixels.numel()].view(pixels.shape).to(device)
        pixels = pixels * (1 + 0.03 * gain) + 0.015 * shift + 0.02 * noise
    return pixels


def train_tower(work: Path, studies: Studies, device, epochs: int, size: int = 8, rate: float = 2e-3) -> None:
    state_path, cfg = work / "tower.pt", config().vision_config
    cfg.frames_per_chunk = 64
    torch.manual_seed(0)
    tower = Mu2VisionModel._from_config(cfg).to(device)
    head = FindingHead(cfg.hidden_size).to(device)
    optimizer = torch.optim.AdamW([*tower.parameters(), *head.parameters()], lr=rate, weight_decay=0.05)
    first = 0
    if state_path.exists():
        state = torch.load(state_path, map_location=device, weights_only=True)
        tower.load_state_dict(state["tower"]), head.load_state_dict(state["head"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["epoch"]
    held = max(len(studies) // 20, 1)
    train, held_out = torch.arange(held, len(studies)), torch.arange(held)
    steps = epochs * math.ceil(len(train) / size)

    def run(rows: torch.Tensor, generator: torch.Generator | None):
        pixels, slabs = to_pixels(studies.pixels[rows], device, generator), studies.slabs[rows].to(device)
        with torch.autocast(device.type, torch.bfloat16):
            tokens = tower(pixels, slabs).last_hidden_state
        return head.losses(tokens, studies, rows)

    for epoch in range(first, epochs):
        tower.train(), head.train()
        generator = torch.Generator().manual_seed(1000 + epoch)
        start, losses = time.time(), []
        todo = batches(train, size, epoch)
        for i, rows in enumerate(tqdm(todo, desc=f"tower {epoch + 1}/{epochs}", mininterval=10)):
            for group in optimizer.param_groups:
                group["lr"] = rate * cosine(epoch * len(todo) + i, steps, 100)
            patch_loss, study_loss, _ = run(rows, generator)
            loss = patch_loss + 0.3 * study_loss
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(tower.parameters(), 1.0)
            optimizer.step()
            losses.append((patch_loss.item(), study_loss.item()))
        tower.eval(), head.eval()
        with torch.no_grad():
            guess = torch.cat([run(rows, None)[2].cpu() for rows in held_out.split(size)])
        score, per_label = macro_f1(studies.labels[held_out], guess > 0)
        patch_loss, study_loss = np.mean(losses, axis=0).tolist()
        log(
            work, stage="tower", epoch=epoch + 1, patch_loss=patch_loss, study_loss=study_loss, held_out_macro_f1=score,
            per_label=per_label, seconds=time.time() - start,
        )  # fmt: skip
        save_state(
            state_path,
            tower=tower.state_dict(),
            head=head.state_dict(),
            optimizer=optimizer.state_dict(),
            epoch=epoch + 1,
        )


@torch.no_grad()
def cache_features(work: Path, studies: Studies, device) -> torch.Tensor:
    """Encode every study once; the report stage trains from these."""
    path = work / f"features_{digest(work / 'tower.pt')}.pt"
    if path.exists():
        return torch.load(path, weights_only=True, mmap=True)
    tower = Mu2VisionModel._from_config(config().vision_config).to(device).eval()
    tower.load_state_dict(torch.load(work / "tower.pt", map_location=device, weights_only=True)["tower"])
    features = []
    for rows in tqdm(torch.arange(len(studies)).split(8), desc="features", mininterval=10):
        with torch.autocast(device.type, torch.bfloat16):
            hidden = tower(
                to_pixels(studies.pixels[rows], device), studies.slabs[rows].to(device)
            ).last_hidden_state
        features.append(hidden.to(torch.bfloat16).cpu())
    features = torch.cat(features)
    partial = path.with_suffix(".partial")
    torch.save(features, partial)
    partial.replace(path)
    return features


# -------------------------------------------------------------------------------------------------------------- report


def text_tokenizer(work: Path, studies: Studies) -> PreTrainedTokenizerFast:
    folder = work / "text_tokenizer"
    if not folder.exists():
        answers = [studies.answer(i, 0) for i in range(len(studies))]
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(r"\d| ?[^\s\d]+|\s+(?!\S)|\s+"), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        backend.decoder = decoders.ByteLevel()
        backend.post_processor = processors.ByteLevel(trim_offsets=False)
        trainer = trainers.BpeTrainer(
            vocab_size=config().text_config.vocab_size,
            special_tokens=list(SPECIAL_TOKENS),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        backend.train_from_iterator([*answers, *QUESTIONS * 20], trainer)
        PreTrainedTokenizerFast(
            tokenizer_object=backend,
            pad_token="<|pad|>",
            bos_token="<|bos|>",
            eos_token="<|end|>",
            extra_special_tokens=["<|user|>", "<|assistant|>", "<|image|>", "<|system|>"],
            chat_template=CHAT_TEMPLATE,
            padding_side="left",
            model_max_length=1024,
        ).save_pretrained(work / ".partial_text_tokenizer")
        (work / ".partial_text_tokenizer").replace(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def make_processor(tokenizer: PreTrainedTokenizerFast) -> Mu2Processor:
    cfg = config()
    return Mu2Processor(
        image_processor(),
        tokenizer,
        num_query_tokens=cfg.tokenizer_config.num_query_tokens,
        question_end_token_ids=list(cfg.question_end_token_ids),
        chat_template=adapt_chat_template(tokenizer),
    )


def encode_texts(
    processor: Mu2Processor, questions: list[str], answers: list[str]
) -> dict[str, torch.Tensor]:
    """Right-padded rows of prompt and answer; labels on the answer only."""
    rows = []
    for question, answer in zip(questions, answers):
        user = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}
        prompt = processor.apply_chat_template([user], add_generation_prompt=True, tokenize=False)
        prompt = prompt.replace(processor.image_token, processor.image_token * processor.num_query_tokens)
        prompt_ids = processor.tokenizer(prompt, add_special_tokens=False).input_ids
        answer_ids = processor.tokenizer(answer + "<|end|>", add_special_tokens=False).input_ids
        rows.append((prompt_ids + answer_ids, len(prompt_ids)))
    width = max(len(ids) for ids, _ in rows)
    input_ids = torch.zeros(len(rows), width, dtype=torch.long)
    labels = torch.full_like(input_ids, -100)
    mask = torch.zeros_like(input_ids)
    for i, (ids, start) in enumerate(rows):
        input_ids[i, : len(ids)] = torch.tensor(ids)
        labels[i, start : len(ids)] = input_ids[i, start : len(ids)]
        mask[i, : len(ids)] = 1
    return {"input_ids": input_ids, "labels": labels, "attention_mask": mask}


def train_language(work: Path, studies: Studies, device, epochs: int, is_whole: bool, size: int = 16) -> None:
    """Train tokenizer and language model on the reports; with `is_whole` the vision tower too, from the volumes."""
    stage, rate = ("whole", 1e-3) if is_whole else ("report", 2e-3)
    tower_state = torch.load(work / "tower.pt", map_location=device, weights_only=True)
    processor = make_processor(text_tokenizer(work, studies))
    torch.manual_seed(1)
    model = Mu2ForConditionalGeneration(config()).to(device)
    # The soft prompts must say which findings there are: a head that is thrown away reads them from the best query.
    head = nn.Linear(model.config.text_config.hidden_size, len(FINDING_LABELS)).to(device)
    tower = model.model.vision_tower
    patch_head = FindingHead(model.config.vision_config.hidden_size).to(device)
    features = None
    if is_whole:
        report_state = torch.load(work / "report.pt", map_location=device, weights_only=True)
        model.load_state_dict(report_state["model"]), head.load_state_dict(report_state["head"])
        patch_head.load_state_dict(tower_state["head"])
        tower.config.frames_per_chunk = 64
    else:
        features = cache_features(work, studies, device)
        tower.load_state_dict(tower_state["tower"])
        tower.requires_grad_(False)
    trained = [p for p in model.parameters() if p.requires_grad] + [
        *head.parameters(),
        *patch_head.parameters(),
    ]
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.02, betas=(0.9, 0.98))
    state_path, first = work / f"{stage}.pt", 0
    if state_path.exists():
        state = torch.load(state_path, map_location=device, weights_only=True)
        model.load_state_dict(state["model"]), head.load_state_dict(state["head"])
        patch_head.load_state_dict(state["patch_head"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["epoch"]
    held = max(len(studies) // 20, 1)
    train, held_out = torch.arange(held, len(studies)), torch.arange(held)
    steps = epochs * math.ceil(len(train) / size)

    def run(rows: torch.Tensor, draw: int, rng: np.random.Generator, generator: torch.Generator | None):
        questions = [str(rng.choice(QUESTIONS)) for _ in rows]
        batch = encode_texts(processor, questions, [studies.answer(i, draw) for i in rows.tolist()])
        batch["pixel_attention_mask"] = studies.slabs[rows]
        batch = {key: value.to(device) for key, value in batch.items()}
        with torch.autocast(device.type, torch.bfloat16):
            if features is None:
                pixels = to_pixels(studies.pixels[rows], device, generator)
                tokens = tower(pixels, batch["pixel_attention_mask"]).last_hidden_state
            else:
                tokens = features[rows].to(device).float()
            outputs = model(**batch, vision_hidden_states=tokens)
            found = head(outputs.image_hidden_states).float().amax(dim=1)
        finding_loss = F.binary_cross_entropy_with_logits(found, studies.labels[rows].to(device))
        loss = outputs.loss.float() + 0.5 * finding_loss
        if is_whole:
            patch_loss, study_loss, _ = patch_head.losses(tokens, studies, rows)
            loss = loss + patch_loss + 0.3 * study_loss
        return loss, outputs.loss.item(), finding_loss.item(), found

    for epoch in range(first, epochs):
        # Another wording of every report in every epoch, of both stages.
        draw, rng = 1 + epoch + 1000 * is_whole, np.random.default_rng([2000, epoch])
        generator = torch.Generator().manual_seed(3000 + epoch)
        model.train()
        start, losses = time.time(), []
        todo = batches(train, size, 500 + epoch)
        for i, rows in enumerate(tqdm(todo, desc=f"{stage} {epoch + 1}/{epochs}", mininterval=10)):
            for group in optimizer.param_groups:
                group["lr"] = rate * cosine(epoch * len(todo) + i, steps, 100)
            loss, text_loss, finding_loss, _ = run(rows, draw, rng, generator)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            losses.append((text_loss, finding_loss))
        model.eval()
        with torch.no_grad():
            results = [run(rows, 0, rng, None) for rows in held_out.split(size)]
        score, per_label = macro_f1(studies.labels[held_out], torch.cat([r[3].cpu() for r in results]) > 0)
        text_loss, finding_loss = np.mean(losses, axis=0).tolist()
        log(
            work, stage=stage, epoch=epoch + 1, loss=text_loss, finding_loss=finding_loss,
            held_out_loss=float(np.mean([r[1] for r in results])), prompt_macro_f1=score, per_label=per_label,
            seconds=time.time() - start,
        )  # fmt: skip
        save_state(
            state_path,
            model=model.state_dict(),
            head=head.state_dict(),
            patch_head=patch_head.state_dict(),
            optimizer=optimizer.state_dict(),
            epoch=epoch + 1,
        )


# -------------------------------------------------------------------------------------------------------------- export


def export(work: Path, out: Path) -> None:
    """Write the checkpoint under a temporary name, then rename it."""
    processor = make_processor(PreTrainedTokenizerFast.from_pretrained(work / "text_tokenizer"))
    model = Mu2ForConditionalGeneration(config())
    state = torch.load(work / "whole.pt", map_location="cpu", weights_only=True)["model"]
    model.load_state_dict(state)
    model.generation_config = GenerationConfig(
        do_sample=False, max_new_tokens=384, bos_token_id=1, eos_token_id=4, pad_token_id=0
    )
    partial = save_checkpoint(model, processor, out.with_name(f".partial_{out.name}"))
    for path in partial.glob(
        "*.py"
    ):  # inside the package a link to the code, so that there is one copy of it
        target = Path("../../model") / path.name
        if (out.parent / target.relative_to("..")).exists():
            path.unlink()
            path.symlink_to(target)
    if out.exists():
        out.rename(work / f"replaced_{int(time.time())}")
    partial.rename(out)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for studies and training state")
    parser.add_argument("--out", type=Path, default=Path("src/hf_mu2/checkpoints/mu2-phantom"))
    parser.add_argument("--stage", choices=["all", *STAGES], default="all")
    parser.add_argument("--train", type=int, default=2400, help="studies to train on")
    parser.add_argument("--tower-epochs", type=int, default=14)
    parser.add_argument("--report-epochs", type=int, default=4)
    parser.add_argument("--whole-epochs", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    stages = STAGES if args.stage == "all" else [args.stage]
    if "data" in stages:
        make_data(args.work, args.train, args.workers)
    if "tower" in stages:
        train_tower(args.work, Studies(args.work, args.train), device, args.tower_epochs)
    if "report" in stages:
        train_language(args.work, Studies(args.work, args.train), device, args.report_epochs, is_whole=False)
    if "whole" in stages:
        train_language(args.work, Studies(args.work, args.train), device, args.whole_epochs, is_whole=True)
    if "export" in stages:
        export(args.work, args.out)


if __name__ == "__main__":
    main()
