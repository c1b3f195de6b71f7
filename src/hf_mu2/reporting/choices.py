"""Answer multiple-choice questions by the likelihood of their options, with the floor of answering without the volume.

Reads: a dataset with the columns of the `vqa` view (`images`, `prompt`, `completion`, `options`, `study_id`).
Writes: one JSON object per question, and a summary with accuracies and intervals.

An option's score is the log-likelihood of its tokens after the prompt; the best-scored option is the answer. The same
is done for the question alone: what a model gets right without looking is not visual question answering.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from hf_mu2.files import replace_file
from hf_mu2.reporting.inference import Reader, digest, to_json
from hf_mu2.reporting.journal import Journal


def answer_choices(
    rows: Sequence[dict[str, Any]],
    out: str | Path,
    reader: Reader,
    *,
    num_bootstraps: int = 1000,
    seed: int = 0,
    show_progress: bool = False,
) -> dict[str, Any]:
    """Answer every question that has options, with and without its volume, and summarise.

    The vision tower runs once per study, however many questions the study has. A killed run continues.

    Args:
        rows: Rows of the `vqa` view in study order; those without options are left out.
        out (`str` or `Path`): JSONL file to write; the summary goes beside it as `<stem>.summary.json`.
        reader (`Reader`): From `load_reader`.

    Returns:
        `dict`: `questions`, `studies`, and for `with_volume`, `text_only`, `most_frequent_letter` and `chance` the
        `accuracy` with its 95 % interval (bootstrap over patients); `difference` of the first two, likewise.

    Raises:
        ValueError: if no row has options, or `out` belongs to another model or other questions.
    """
    out = Path(out)
    asked = [index for index, row in enumerate(rows) if row["options"]]
    if not asked:
        raise ValueError(
            f"Multiple choice needs options, none of {len(rows)} questions has any. Use `hf-mu2 predict` for open ones."
        )
    keys = {index: f"{index}:{rows[index]['study_id']}" for index in asked}
    settings = {"model_digest": reader.digest, "questions_digest": digest(list(keys.values()))}
    journal = Journal(out, settings)
    vision: tuple[Any, Any] = (None, None)
    for index in tqdm(asked, unit="question", disable=not show_progress):
        if keys[index] in journal.finished:
            continue
        row = rows[index]
        if vision[0] != row["study_id"]:
            vision = (row["study_id"], _see(reader, row))
        journal.add({keys[index]: _answer(reader, row, vision[1])})
    results = [journal.finished[key] for key in keys.values()]
    summary = _summarise(results, num_bootstraps, seed) | {"model": reader.name, **settings}
    replace_file(out.with_name(f"{out.stem}.summary.json"), to_json(summary))
    journal.close(keys.values())
    return summary


@torch.inference_mode()
def option_scores(
    reader: Reader, question: str, options: Sequence[str], vision: dict[str, torch.Tensor] | None
) -> list[float]:
    """Return the log-likelihood of each option after the question.

    Args:
        vision (`dict`, *optional*): `vision_hidden_states` and `pixel_attention_mask` of the volume; without it the
            question is asked alone.
    """
    processor, model = reader.processor, reader.model
    blocks = [{"type": "image"}] if vision is not None else []
    messages = [{"role": "user", "content": [*blocks, {"type": "text", "text": question}]}]
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    if vision is not None:
        prompt = prompt.replace(processor.image_token, processor.image_token * processor.num_query_tokens)
    encode = processor.tokenizer
    prompt_ids = encode(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"].to(model.device)
    tails = [encode(option, add_special_tokens=False)["input_ids"] for option in options]
    width = max(map(len, tails))
    pad = encode.pad_token_id
    answer_ids = torch.tensor([tail + [pad] * (width - len(tail)) for tail in tails], device=model.device)
    valid = torch.tensor([[1] * len(tail) + [0] * (width - len(tail)) for tail in tails], device=model.device)

    embed = model.get_input_embeddings()
    prompt_embeds = embed(prompt_ids) if vision is None else model.model.embed_inputs(prompt_ids, **vision)[0]
    embeds = torch.cat([prompt_embeds.expand(len(tails), -1, -1), embed(answer_ids)], dim=1)
    mask = torch.cat([torch.ones_like(prompt_ids).expand(len(tails), -1), valid], dim=1)
    logits = model(inputs_embeds=embeds, attention_mask=mask, logits_to_keep=width + 1).logits[:, :-1]
    losses = F.cross_entropy(logits.float().transpose(1, 2), answer_ids, reduction="none")
    return (-(losses * valid).sum(1)).tolist()


@torch.inference_mode()
def _see(reader: Reader, row: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Run the vision tower on the volume of a study."""
    volume = reader.load_volume(row["images"][0])
    pixels = reader.processor.image_processor([volume], return_tensors="pt").to(reader.model.device)
    mask = pixels["pixel_attention_mask"]
    states = reader.model.model.vision_tower(
        pixels["pixel_values"].to(reader.model.dtype), mask
    ).last_hidden_state
    return {"vision_hidden_states": states, "pixel_attention_mask": mask}


def _answer(reader: Reader, row: dict[str, Any], vision: dict[str, torch.Tensor]) -> dict[str, Any]:
    question = row["prompt"][-1]["content"]
    options = [f"{chr(ord('A') + index)}. {option}" for index, option in enumerate(row["options"])]
    truth = options.index(row["completion"][-1]["content"])
    seen = option_scores(reader, question, options, vision)
    blind = option_scores(reader, question, options, None)
    return {
        "study_id": row["study_id"],
        "patient_id": row["patient_id"],
        "kind": row["kind"],
        "answer": truth,
        "num_options": len(options),
        "with_volume": int(np.argmax(seen)),
        "text_only": int(np.argmax(blind)),
        "scores": [round(score, 4) for score in seen],
    }


def _summarise(results: list[dict[str, Any]], num_bootstraps: int, seed: int) -> dict[str, Any]:
    truth = np.array([result["answer"] for result in results])
    right = {
        "with_volume": np.array([result["with_volume"] for result in results]) == truth,
        "text_only": np.array([result["text_only"] for result in results]) == truth,
        "most_frequent_letter": truth == np.bincount(truth).argmax(),
        "chance": np.array([1 / result["num_options"] for result in results]),
    }
    right = {name: values.astype(float) for name, values in right.items()}
    right["difference"] = right["with_volume"] - right["text_only"]
    _, patients = np.unique([result["patient_id"] for result in results], return_inverse=True)
    sizes = np.bincount(patients)
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(len(sizes), np.full(len(sizes), 1 / len(sizes)), size=num_bootstraps)  # patients
    summary: dict[str, Any] = {"questions": len(results), "studies": len({r["study_id"] for r in results})}
    for name, values in right.items():
        sums = np.bincount(patients, weights=values)
        low, high = np.percentile((draws @ sums) / (draws @ sizes), [2.5, 97.5])
        summary[name] = {"accuracy": float(values.mean()), "low": float(low), "high": float(high)}
    return summary
