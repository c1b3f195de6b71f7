"""Derive impressions from findings on OpenI with a language model trained from nothing, against three floors.

    python scripts/openi_impression.py --openi NLMCXR_reports.tgz --work DIR --out docs/results/openi_impression

Reads: OpenI's archive, its reports alone.
Writes: tokenizer, models and texts under DIR, which may hold report text; `OUT.json` and `OUT.md`, which hold none. A
killed run continues with the step it was in.

1. A byte-pair vocabulary and a small Llama, both from the training reports alone; no published weights.
2. Language modelling on the findings and impressions of the training split.
3. The shipped recipe `impression-openi`, twice: all weights, and LoRA with the values of Radiology-Llama2.
4. Impressions of the test split, greedy; ROUGE against the reference, 95 % intervals over groups of equal findings.
"""

import argparse
import json
import os
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed
from trl import SFTConfig, SFTTrainer

from hf_mu2.data.build import load_corpus
from hf_mu2.data.views import report_text, view_dataset
from hf_mu2.files import replace_text
from hf_mu2.hub.merge import merge
from hf_mu2.reporting.impressions import load_writer, write_impressions
from hf_mu2.scoring.impression_floors import FLOORS, impression_floors
from hf_mu2.scoring.lexical import LexicalScorer
from hf_mu2.scoring.published import published_blocks
from hf_mu2.scoring.resampling import bootstrap, interval, paired_randomisation, total
from hf_mu2.training.checkpoints import last_whole_checkpoint
from hf_mu2.training.recipe import train_recipe
from hf_mu2.training.record import describe_hardware

SEED = 0
SIZE = {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 6}
VOCABULARY, MAX_LENGTH, BATCH = 2048, 384, 32
PRETRAIN_EPOCHS, PRETRAIN_RATE = 3, 2e-3
TUNE_EPOCHS, TUNE_RATE = 2, 1e-3
ROUGE = ("rouge1", "rouge2", "rougeL")
SPECIAL = ("<|pad|>", "<|bos|>", "<|user|>", "<|assistant|>", "<|end|>")
CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
    {{- '<|' + message['role'] + '|>' + message['content'] + '<|end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}
"""


def open_rows(openi: Path) -> dict[str, list[dict[str, Any]]]:
    """Read the studies that have both sections, by split."""
    rows = {}
    for split in ("train", "validation", "test"):
        studies = load_corpus("openi", openi, split)
        rows[split] = [
            study for study in studies if study["findings"].strip() and study["impression"].strip()
        ]
    return rows


def make_tokenizer(texts: list[str], out: Path) -> PreTrainedTokenizerFast:
    """Learn a byte-pair vocabulary."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        bos_token="<|bos|>",
        eos_token="<|end|>",
        extra_special_tokens=["<|user|>", "<|assistant|>"],
        chat_template=CHAT_TEMPLATE,
    )
    wrapped.save_pretrained(out)
    return wrapped


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Make a Llama with fresh weights."""
    set_seed(SEED)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            max_position_embeddings=2 * MAX_LENGTH,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            **SIZE,
        )
    )


def pretrain(studies: list[dict[str, Any]], out: Path) -> None:
    """Model the language of the training reports, packed without padding."""
    texts = [report_text(study) for study in studies]
    tokenizer = make_tokenizer(texts, out / "tokenizer")
    settings = SFTConfig(
        output_dir=str(out),
        num_train_epochs=PRETRAIN_EPOCHS,
        learning_rate=PRETRAIN_RATE,
        lr_scheduler_type="cosine",
        warmup_steps=0.1,
        weight_decay=0.1,
        per_device_train_batch_size=BATCH // 2,
        max_length=256,
        packing=True,
        packing_strategy="wrapped",
        gradient_checkpointing=False,
        bf16=True,
        use_cpu=True,
        seed=SEED,
        logging_steps=10,
        save_strategy="epoch",
        save_total_limit=1,
        report_to="none",
    )
    trainer = SFTTrainer(
        model=make_model(tokenizer),
        args=settings,
        train_dataset=Dataset.from_dict({"text": texts}),
        processing_class=tokenizer,
    )
    trainer.train(resume_from_checkpoint=last_whole_checkpoint(out))
    trainer.save_model(str(out))


def tune(openi: Path, start: Path, out: Path, *, with_lora: bool) -> None:
    """Run the shipped recipe on the small model: what it says of LoRA stands, or all weights are trained."""
    own = {
        "model_name_or_path": start,
        "corpus_root": openi,
        "output_dir": out,
        "max_length": MAX_LENGTH,
        "use_cpu": True,
        "bf16": True,
        "gradient_checkpointing": False,
        "save_total_limit": 1,
        "logging_steps": 5,
        "per_device_train_batch_size": BATCH,
        "per_device_eval_batch_size": BATCH,
        "gradient_accumulation_steps": 4 if with_lora else 1,  # 128 in all, the published batch
        "train_sampling_strategy": "group_by_length",  # less padding
        "num_train_epochs": TUNE_EPOCHS,
    }
    if not with_lora:
        own |= {"use_peft": False, "learning_rate": TUNE_RATE}
    train_recipe(
        "impression-openi", [text for name, value in own.items() for text in (f"--{name}", str(value))]
    )


def write(rows: Dataset, folder: Path, out: Path) -> None:
    """Write the impressions of a model."""
    write_impressions(rows, out, load_writer(folder), max_new_tokens=64)


def plain(text: str) -> str:
    """Write texts alike that differ in punctuation, case and spaces alone."""
    return " ".join(re.findall(r"\w+", text.lower()))


def score(systems: dict[str, list[str]], references: list[str], groups: list[str]) -> dict[str, Any]:
    """Measure ROUGE of every system with intervals over groups, and test the trained ones against each floor."""
    scorer = LexicalScorer(references)
    columns = {name: scorer.columns(texts) for name, texts in systems.items()}

    def rouge(sums: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        scores = scorer.scores(sums)
        return {name: scores[name] for name in ROUGE}

    found: dict[str, Any] = {}
    for name, counted in columns.items():
        drawn = bootstrap(counted, groups, rouge, num_resamples=2000, seed=SEED)
        values = rouge(total(counted))
        texts, wanted = [plain(text) for text in systems[name]], [plain(text) for text in references]
        found[name] = {
            key: dict(zip(("value", "low", "high"), (float(values[key]), *interval(drawn[key]))))
            for key in ROUGE
        } | {
            "distinct_texts": len(set(texts)),
            "equal_to_reference": float(np.mean([a == b for a, b in zip(texts, wanted)])),
            "mean_words": float(np.mean([len(text.split()) for text in texts])),
        }
    tests = {
        name: {
            floor: {
                key: {
                    "difference": float(rouge(total(columns[name]))[key] - rouge(total(columns[floor]))[key]),
                    "p": p,
                }
                for key, p in paired_randomisation(
                    columns[name], columns[floor], groups, rouge, seed=SEED
                ).items()
            }
            for floor in FLOORS
        }
        for name in systems
        if name not in FLOORS
    }
    return {"scores": found, "tests": tests, "signatures": {key: scorer.signatures[key] for key in ROUGE}}


def run(openi: Path, work: Path) -> dict[str, Any]:
    """Do every step that is not done yet, and measure."""
    seconds: dict[str, float] = {}

    def step(name: str, is_done: Path, action: Any, *arguments: Any, **options: Any) -> None:
        timing = work / f"{name}.seconds"
        if not is_done.exists():
            started = time.process_time()
            action(*arguments, **options)
            replace_text(timing, f"{time.process_time() - started:.0f}")
        seconds[name] = float(timing.read_text())

    rows = open_rows(openi)
    start = work / "pretrained"
    step("pretrain", start / "config.json", pretrain, rows["train"], start)
    step(
        "all_weights",
        work / "all_weights" / "config.json",
        tune,
        openi,
        start,
        work / "all_weights",
        with_lora=False,
    )
    step("lora", work / "lora" / "adapter_config.json", tune, openi, start, work / "lora", with_lora=True)
    step("merge", work / "merged", merge, work / "lora", work / "merged")
    test = view_dataset(load_corpus("openi", openi, "test"), "impression")
    texts = {}
    for name, folder in (
        ("language modelling", start),
        ("all weights", work / "all_weights"),
        ("LoRA", work / "merged"),
    ):
        out = work / f"{folder.name}.jsonl"
        step(f"write {folder.name}", out, write, test, folder, out)
        texts[name] = [json.loads(line)["candidate"] for line in out.read_text(encoding="utf-8").splitlines()]
    floors = impression_floors(
        [row["findings"] for row in rows["test"]],
        [row["findings"] for row in rows["train"]],
        [row["impression"] for row in rows["train"]],
    )
    groups = [plain(row["findings"]) for row in rows["test"]]
    systems, references = {**floors, **texts}, [row["impression"] for row in rows["test"]]
    measured = score(systems, references, groups)
    known = {plain(row["impression"]) for row in rows["train"]}
    rare = [index for index, text in enumerate(references) if plain(text) not in known]
    of_rare = score(
        {name: [written[index] for index in rare] for name, written in systems.items()},
        [references[index] for index in rare],
        [groups[index] for index in rare],
    )
    records = {
        name: json.loads((work / name / "run.json").read_text(encoding="utf-8"))
        for name in ("all_weights", "lora")
    }
    model = LlamaForCausalLM.from_pretrained(start)
    return {
        "command": "python scripts/openi_impression.py --openi NLMCXR_reports.tgz --work DIR --out OUT",
        "hardware": describe_hardware(),
        "threads": int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)),
        "cpu_seconds": seconds,
        "seed": SEED,
        "studies": {split: len(part) for split, part in rows.items()},
        "test_groups": len(set(groups)),
        "model": {
            "parameters": model.num_parameters(),
            "vocabulary": VOCABULARY,
            **SIZE,
            "pretrain_epochs": PRETRAIN_EPOCHS,
            "pretrain_rate": PRETRAIN_RATE,
            "tune_epochs": TUNE_EPOCHS,
            "tune_rate": TUNE_RATE,
        },
        "runs": {
            name: {
                "steps": record["steps"],
                "epochs": record["epochs"],
                "trained": record["parameters"]["language_model"]["trained"],
                "eval_loss": record["evaluation"]["eval_loss"],
                "versions": record["versions"],
            }
            for name, record in records.items()
        },
        "published": published_blocks()["radiology_llama2/openi"]["rows"][0],
        **measured,
        "unseen": {"studies": len(rare), "scores": of_rare["scores"]},
    }


HEADER = """\
| system | ROUGE-1 | ROUGE-2 | ROUGE-L | distinct texts | equal to the reference | words |
|---|---|---|---|---|---|---|"""


def render(result: dict[str, Any]) -> str:
    """Write the page from the result file."""
    scores, studies, model, runs = (result[name] for name in ("scores", "studies", "model", "runs"))

    def cell(number: dict[str, float]) -> str:
        return f"{number['value']:.3f} ({number['low']:.3f}-{number['high']:.3f})"

    names = {
        "last_sentence": "copy of the last sentence of the findings",
        "most_frequent": "most frequent training impression",
        "nearest_findings": "impression of the nearest training findings (TF-IDF)",
        "language modelling": "small Llama, language modelling alone",
        "all weights": "small Llama, stage `impression`, all weights",
        "LoRA": "small Llama, stage `impression`, LoRA as published",
    }

    def rows(found: dict[str, Any]) -> list[str]:
        return [
            f"| {names[name]} | {' | '.join(cell(row[key]) for key in ROUGE)} | {row['distinct_texts']} | "
            f"{row['equal_to_reference']:.3f} | {row['mean_words']:.1f} |"
            for name, row in found.items()
        ]

    published = " | ".join(f"{result['published'][key]:.4f}" for key in ROUGE)
    table = rows(scores)
    table.append(f"| Radiology-Llama2, as published: Llama-2-7b-chat, another split | {published} | | | |")
    above = [
        names[name]
        for name in FLOORS
        if all(scores[name][key]["value"] > result["published"][key] for key in ROUGE)
    ]
    tests = [
        f"| {names[name]} | {names[floor]} | "
        + " | ".join(f"{row[key]['difference']:+.3f} (p = {row[key]['p']:.4f})" for key in ROUGE)
        + " |"
        for name, by_floor in result["tests"].items()
        for floor, row in by_floor.items()
    ]
    lora, whole = runs["lora"], runs["all_weights"]
    minutes = sum(result["cpu_seconds"].values()) / 60
    trained = f"{lora['trained']:,} parameters trained in {lora['steps']} steps"
    where = f"{result['hardware']}, {result['threads']} thread(s), {minutes:.0f} minutes of CPU time"
    size = f"{model['parameters'] / 1e6:.1f} million parameters, a vocabulary of {model['vocabulary']:,}"
    counts = ", ".join(f"{count:,} {split}" for split, count in studies.items())
    return f"""# OpenI: findings to impression

Research use, not a medical device. `{result["command"]}`,
seed {result["seed"]}; {where}. Rendered from
[openi_impression.json](openi_impression.json). No report text is in this repository.

**What this is not.** The model is a Llama ({size}), trained
from nothing on the training reports alone. Radiology-Llama2 is Llama-2-7b-chat, a chat model pretrained on 2 trillion
tokens; its numbers stand below for scale, from another split, and are no target of this run. It shows that recipe,
LoRA, merge and generation work on real reports, and what costs no learning.

Data: OpenI studies with both sections ({counts}), split by a hash of the
findings: no findings of the test split occur in training. Vocabulary and language modelling
({model["pretrain_epochs"]} epochs) saw the training split alone. No setting was chosen by the test split.

{HEADER}
{lines(table)}

n = {studies["test"]}. rouge-score F1, stemmed; 95 % intervals from 2,000 resamples of the
{result["test_groups"]} groups of equal findings (OpenI names no patients).

All weights: {whole["steps"]} steps of {BATCH}, validation loss {whole["eval_loss"]:.3f}.
LoRA: r 8, alpha 16, dropout .05, q_proj and v_proj, batch 128, lr 3e-4, weight decay .01;
{trained}, validation loss {lora["eval_loss"]:.3f}; merged before it writes.
The published base is a chat model; this one never saw a conversation before, and an adapter of queries and values has
to teach it turns, instruction and when to stop, all at once.

Floors above the published values of a model of 7 billion parameters, by all three: {"; ".join(above) or "none"}.
Most impressions of OpenI say in a few fixed ways that nothing is wrong, and findings that differ in a word or two
are on both sides of the split. ROUGE here measures that more than reading: hence the second table.

## Impressions that training never had

The {result["unseen"]["studies"]} test studies whose impression does not occur in training, whatever its case and stops.

{HEADER}
{lines(rows(result["unseen"]["scores"]))}

## Against the floors

Difference, and p of the paired randomisation test (10,000 swaps of groups).

| system | floor | ROUGE-1 | ROUGE-2 | ROUGE-L |
|---|---|---|---|---|
{lines(tests)}

{verdict(result)}

With all weights it writes {scores["all weights"]["distinct_texts"]} different texts for {studies["test"]} studies:
it has learnt which stock sentence to close with, not to read findings.
"""


def lines(rows: list[str]) -> str:
    """Join rows of a table."""
    return "\n".join(rows)


def verdict(result: dict[str, Any]) -> str:
    """Say plainly which floors are beaten, equalled or not reached, by ROUGE-L at p < .05."""
    sentences = []
    for name, by_floor in result["tests"].items():
        outcome: dict[str, list[str]] = {"beats": [], "does not differ from": [], "stays below": []}
        for floor, row in by_floor.items():
            better = row["rougeL"]["difference"] > 0
            key = (
                "does not differ from" if row["rougeL"]["p"] >= 0.05 else "beats" if better else "stays below"
            )
            outcome[key].append(floor.replace("_", " "))
        parts = [f"{key} {' and '.join(floors)}" for key, floors in outcome.items() if floors]
        sentences.append(f"- {name.capitalize() if name != 'LoRA' else name} {'; '.join(parts)}.")
    return "By ROUGE-L, at p < .05:\n\n" + "\n".join(sentences)


def main() -> None:
    """Run the experiment and write result and page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--openi", type=Path, required=True, help="NLMCXR_reports.tgz, or a folder that holds it"
    )
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument(
        "--out", type=Path, required=True, help="path of the result files without their ending"
    )
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    result = run(arguments.openi.resolve(), arguments.work)
    replace_text(arguments.out.with_suffix(".json"), json.dumps(result, indent=2) + "\n")
    replace_text(arguments.out.with_suffix(".md"), render(result))
    print(render(result))


if __name__ == "__main__":
    main()
