"""Write the card of a checkpoint from its configuration and from result files; no number on it is typed.

Reads: a checkpoint folder; `evaluation.json` of `hf-mu2 evaluate`, `run.json` of `hf-mu2 train`,
`confidence_measured.json` of `hf-mu2 confidence measure`, the JSON of `hf-mu2 image-dependence`.
Writes: `README.md`, copies of the result files in `results/`, `.eval_results/hf_mu2.yaml`, and `NOTICE` where a base
model's licence asks for one.
"""

import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from hf_mu2 import __version__
from hf_mu2.files import replace_file, replace_text
from hf_mu2.scoring.evaluate_report import eval_results_yaml

from .terms import NOTICE_FILE, corpora_of, licence_warnings, terms_of
from .upload import CARD, PublishError

TEMPLATE = (
    "templates/model_card.md.jinja"  # `hub_cards/model_card.md.jinja` in the repository is a link to it
)
RESULTS = "results"
HEADLINE = (
    *("macro_f1", "micro_f1", "crg", "coverage", "accuracy", "side_agreement", "size_agreement"),
    *("bleu1", "bleu4", "rouge1", "rougeL", "meteor", "chrf"),
)
_FLOORS = {
    "constant_normal": "constant normal",
    "random": "random report",
    "nearest_by_labels": "nearest by labels",
}


def write_model_card(
    folder: str | Path,
    repo_id: str,
    *,
    licence: str,
    description: str = "",
    evaluations: Mapping[str, str | Path] | None = None,
    runs: Sequence[str | Path] = (),
    dependence: str | Path | None = None,
    confidence: str | Path | None = None,
    corpora: Sequence[str] = (),
    base_models: Sequence[str] = (),
) -> Path:
    """Write the card of a checkpoint, with the result files beside it, and return its path.

    Args:
        repo_id (`str`): Where it will be published; its snippet loads it from there.
        licence (`str`): Identifier as the Hub writes it.
        description (`str`): What to say first, Markdown.
        evaluations (`Mapping[str, str | Path]`, *optional*): Files of `hf-mu2 evaluate` by the name of what they
            measured, e.g. `{"PhantomCT, test": "eval/evaluation.json"}`. A name that is a Hub id of a data set goes to
            `.eval_results`.
        runs (`Sequence[str | Path]`): Files `run.json` in the order of training; by default that of the folder.
        dependence, confidence (`str` or `Path`, *optional*): Result files.
        corpora (`Sequence[str]`): What it was trained on, beside what the runs say.
        base_models (`Sequence[str]`): What it was made from, beside what the runs say.

    Raises:
        PublishError: if the folder is no checkpoint, or a result file is something else than its name says.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise PublishError(
            f"A card is of a checkpoint, `{folder}` holds no `config.json`. Name the folder of one; an adapter becomes "
            "one with `hf-mu2 merge`."
        )
    kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    if kind != "mu2":
        raise PublishError(
            f"A card describes a mu2 checkpoint, `{folder}` is a {kind} model. Write its card by hand."
        )
    runs = list(runs) or [path for path in (folder / "run.json",) if path.is_file()]
    read_runs = [_read(path, "recipe") for path in runs]
    corpora = list(dict.fromkeys([*corpora, *_named(read_runs, "corpus")]))
    bases = list(dict.fromkeys([*base_models, *_named(read_runs, "base")]))
    measured = {title: _read(path, "signatures") for title, path in (evaluations or {}).items()}
    read_dependence = None if dependence is None else _read(dependence, "image_dependence")
    read_confidence = None if confidence is None else _read(confidence, "ece")
    sources = _copy_results(folder, evaluations or {}, runs, dependence, confidence)
    text = render_model_card(
        folder,
        repo_id,
        licence=licence,
        description=description,
        evaluations=measured,
        runs=read_runs,
        dependence=read_dependence,
        confidence=read_confidence,
        corpora=corpora,
        base_models=bases,
        sources=sources,
    )
    for title, result in measured.items():
        if title.count("/") == 1 and " " not in title:
            replace_text(folder / ".eval_results" / "hf_mu2.yaml", eval_results_yaml(result, title))
    notices = [terms.notice for base in bases if (terms := terms_of(base)) and terms.notice]
    if notices:
        replace_text(folder / NOTICE_FILE, "\n".join(dict.fromkeys(notices)) + "\n")
    replace_text(folder / CARD, text)
    return folder / CARD


def render_model_card(
    folder: Path,
    repo_id: str,
    *,
    licence: str,
    description: str,
    evaluations: Mapping[str, dict[str, Any]],
    runs: Sequence[dict[str, Any]],
    dependence: dict[str, Any] | None,
    confidence: dict[str, Any] | None,
    corpora: Sequence[str],
    base_models: Sequence[str],
    sources: Sequence[str],
) -> str:
    """Render the card from what was read; see [`write_model_card`]."""
    from huggingface_hub import ModelCard, ModelCardData

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    infos = corpora_of(corpora)
    data = ModelCardData(
        license=licence,
        language="en",
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        tags=["medical", "ct", "radiology", "report-generation", "hf_mu2"],
        base_model=list(base_models) or None,
        datasets=[info.url.split("/datasets/")[-1] for info in infos if "/datasets/" in info.url] or None,
        corpora=list(corpora) or None,
    )
    notice = config.get("notice", "Research use only. Not a medical device.")
    card = ModelCard.from_template(
        data,
        template_str=resources.files(__package__).joinpath(TEMPLATE).read_text(encoding="utf-8"),
        name=repo_id.rsplit("/", 1)[-1],
        repo_id=repo_id,
        notice=notice,
        description=description
        or "A mu2 model: a question-conditioned tokenizer between a 3-D vision tower and a language model.",
        credits=dict.fromkeys(
            terms.credit for base in base_models if (terms := terms_of(base)) and terms.credit
        ),
        usage=usage_snippet(repo_id),
        preprocessing=_preprocessing(folder),
        num_parameters=count_parameters(folder),
        evaluations=[_evaluation(title, result) for title, result in evaluations.items()],
        dependence=dependence
        and {
            "value": f"{dependence['image_dependence']:.3f}",
            "error": f"{1.96 * dependence['image_dependence_se']:.3f}",
            "source": f"{dependence['studies']} studies",
        },
        confidence=confidence and _confidence(confidence),
        runs=[_run(run) for run in runs],
        corpora=infos,
        bases=base_models,
        limits=_limits(config, evaluations, infos),
        sources=sources,
        version=__version__,
    )
    return f"{card.content.strip()}\n"


def usage_snippet(repo_id: str) -> str:
    """Write the code of the card, which `publish` runs before it uploads."""
    return f'''from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained("{repo_id}", trust_remote_code=True)
processor = AutoProcessor.from_pretrained("{repo_id}", trust_remote_code=True)
messages = processor.build_messages("ct.nii.gz", question="Write the findings and impression of this chest CT.")
inputs = processor.apply_chat_template(
    [messages], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
)
output = model.generate(**inputs, max_new_tokens=256)
print(processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))'''


def count_parameters(folder: Path) -> int:
    """Count the numbers in the weights of a checkpoint, from the headers of its files."""
    from math import prod

    from safetensors import safe_open

    total = 0
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="np") as weights:
            total += sum(prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118
    return total


def _read(path: str | Path, key: str) -> dict[str, Any]:
    """Read a result file, known by a key that it must have."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        if isinstance(found, dict) and key in found:
            return found
    except (OSError, ValueError, TypeError):
        pass
    raise PublishError(
        f"A number on a card comes from a result file, `{path}` is none with `{key}` in it. Name the file that the "
        "command wrote."
    )


def _copy_results(
    folder: Path,
    evaluations: Mapping[str, str | Path],
    runs: Sequence[str | Path],
    dependence: str | Path | None,
    confidence: str | Path | None,
) -> list[str]:
    """Copy result files beside the weights under names of their own, and name them."""
    named = {f"evaluation_{number}.json": path for number, path in enumerate(evaluations.values(), start=1)}
    named |= {f"run_{number}.json": path for number, path in enumerate(runs, start=1)}
    named |= {"image_dependence.json": dependence} if dependence else {}
    named |= {"confidence_measured.json": confidence} if confidence else {}
    for name, path in named.items():
        target = folder / RESULTS / name
        if Path(path).resolve() != target.resolve():
            replace_file(target, Path(path).read_bytes())
    return [f"{RESULTS}/{name}" for name in named]


def _named(runs: Sequence[dict[str, Any]], what: str) -> list[str]:
    """Name the corpora or the base models of runs; folders of this machine stay unnamed."""
    names = []
    for run in runs:
        recipe = run["recipe"]
        init = recipe.get("init") or {}
        given = (
            [recipe.get("corpus")]
            if what == "corpus"
            else [recipe.get("model_name_or_path"), init.get("language_model"), init.get("vision_tower")]
        )
        names += [str(name) for name in given if name and name != "embedded" and not Path(name).exists()]
    return names


def _preprocessing(folder: Path) -> dict[str, Any]:
    """Describe what the image processor does, from its configuration."""
    fields = json.loads((folder / "processor_config.json").read_text(encoding="utf-8"))["image_processor"]
    spacing, size, windows = fields.get("spacing"), fields["size"], fields.get("windows", [])
    grid = f"{size['height']} x {size['width']} pixels"
    if spacing:
        grid += f" of {spacing[1]:g} x {spacing[2]:g} mm and slices {spacing[0]:g} mm apart"
    shown = ", ".join(f"{low:g} to {high:g} HU" for low, high in windows) or "percentiles of each volume"
    return {
        "grid": grid,
        "windows": f"the windows {shown}" if windows else shown,
        "frames": fields["max_frames"],
        "slices": fields["num_slices"],
    }


def _evaluation(title: str, result: dict[str, Any]) -> dict[str, str]:
    """Lay out an evaluation: the headline scores beside the floors, and the findings that were not learnt."""
    settings, floors = (
        result["settings"],
        {name: result["floors"][name] for name in _FLOORS if result["floors"].get(name)},
    )
    head = ["metric", "measured", *(f"*{_FLOORS[name]}*" for name in floors)]
    rows = [head, ["---"] * len(head)]
    for name in HEADLINE:
        if score := _known(result["scores"], name):
            cells = [f"{score['value']:.3f}" + _between(score)]
            cells += [
                f"{floor[name]['value']:.3f}" if _known(floor, name) else "-" for floor in floors.values()
            ]
            rows.append([f"`{name}`", *cells])
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    degeneracy = (result.get("degeneracy") or {}).get("candidate", {})
    about = f"{settings['studies']:,} studies of {settings['patients']:,} patients, labeler `{settings['labeler']}`."
    if degeneracy:
        about += (
            f" {degeneracy['unique_share']:.0%} of the reports are different texts, of "
            f"{degeneracy['mean_words']:.0f} words in the mean."
        )
    return {"title": title, "about": about, "table": "\n".join(lines), "findings": _unlearnt(result)}


def _known(scores: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    """Return a score that was computed."""
    score = scores.get(name)
    return score if score and score["value"] is not None else None


def _between(score: dict[str, Any]) -> str:
    return "" if score.get("low") is None else f" [{score['low']:.3f}, {score['high']:.3f}]"


def _unlearnt(result: dict[str, Any]) -> str:
    """Name the findings whose F1 may be that of a random report."""
    names = [
        label
        for label, row in result["labels"].items()
        if row["support"] and row.get("f1_low") is not None and row["f1_low"] <= row.get("f1_random", 0.0)
    ]
    if not names:
        return "Every finding that occurs is reported better than by a random report."
    return f"Not above a random report (the interval of F1 reaches its F1): {', '.join(names)}."


def _confidence(measured: dict[str, Any]) -> str:
    auroc, ece = measured["auroc"]["all"]["confidence"], measured["ece"]
    separation = f"{auroc['value']:.3f} [{auroc['low']:.3f}, {auroc['high']:.3f}]"
    return (
        f"`hf-mu2 report --confidence` says how sure to be of each sentence. On {measured['sentences']:,} sentences of "
        f"{measured['studies']:,} studies, {measured['share_right']:.1%} of them right, the confidence of right ones "
        f"is above that of wrong ones with probability {separation} (AUROC); expected calibration error "
        f"{ece['value']:.3f} [{ece['low']:.3f}, {ece['high']:.3f}]."
    )


def _run(run: dict[str, Any]) -> dict[str, str]:
    """Say in two sentences what a run did."""
    recipe = run["recipe"]
    parts = ", ".join(
        f"{part.replace('_', ' ')} {counts['trained']:,} of {counts['total']:,}"
        for part, counts in (run.get("parameters") or {}).items()
    )
    about = (
        f"{run.get('num_train_rows', 0):,} rows, {run.get('steps', 0):,} steps, {run.get('epochs') or 0:.3g} epochs at "
        f"learning rate {recipe.get('learning_rate')}; {run['hardware']}, {run['num_processes']} process(es), "
        f"{run.get('seconds', 0) / 3600:.2f} h. Trained parameters: {parts or 'not recorded'}."
    )
    title = f"{recipe.get('objective', 'sft')}, stage {recipe.get('stage')}"
    return {"title": title, "about": about, "command": " ".join(Path(word).name for word in run["command"])}


def _limits(
    config: dict[str, Any], evaluations: Mapping[str, dict[str, Any]], corpora: Sequence[Any]
) -> list[str]:
    region = config.get("body_region")
    limits = (
        [f"It was trained on the {region}; of other regions it says nothing that means anything."]
        if region
        else []
    )
    if config.get("trained_on_synthetic_only"):
        limits.append("It has seen synthetic CT only: what it says of a real CT means nothing.")
    for title, result in evaluations.items():
        floor = _known(result["floors"].get("nearest_by_labels") or {}, "macro_f1")
        score = _known(result["scores"], "macro_f1")
        if floor and score and score["value"] <= floor["value"]:
            limits.append(
                f"On {title} its label macro-F1 does not clear that of the training report nearest by true labels."
            )
    return [
        *limits,
        "English reports. Findings are read by rules, which err too; a finding that is not named counts as absent.",
        *licence_warnings(corpora),
    ]
