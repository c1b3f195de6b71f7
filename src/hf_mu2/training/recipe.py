"""Train what a recipe says: `hf-mu2 train RECIPE.yaml [--field value ...]`.

Reads: a recipe, a starting checkpoint (or the parts to assemble one), a corpus or a folder that `load_dataset` opens.
Writes: `output_dir` with checkpoints, the trained model or adapter, and `run.json`, the record of the run.

A recipe is a YAML file of the fields of [`RecipeArguments`], of TRL's `ModelConfig` and of the configuration of its
objective (TRL's `SFTConfig` for SFT), parsed by TRL's own parser: whatever TRL's command line understands, a recipe
does too. Several processes: `accelerate launch -m hf_mu2.cli train RECIPE.yaml`, or torchrun.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib import import_module
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_mu2 import embedded_checkpoint

from .stages import Stage, complete_lora, describe_parts, freeze, stage_of

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, ProcessorMixin, TrainingArguments
    from trl import ModelConfig

    from .trainer import StageTrainer

RECIPES = Path(__file__).resolve().parents[1] / "recipes"


@dataclass
class RecipeArguments:
    """What a recipe says beside the fields of TRL's configurations.

    Args:
        objective (`str`): A row of `OBJECTIVES`: what is minimised.
        stage (`str`): A row of `hf_mu2.training.stages.STAGES`: what is frozen, what is trained, at which rate.
        init (`dict`, *optional*): Arguments of `hf_mu2.hub.assemble.assemble` without `output`, or with `model` those
            of `slices_start.add_slices`: a Qwen-VL model that reads CT as slices. The starting checkpoint is then made
            in `<output_dir>/start`; `model_name_or_path` must be left out.
        corpus (`str`, *optional*): A corpus of `hf_mu2.data.build.CORPORA`, read from `corpus_root`.
        corpus_root (`str`, *optional*): Folder of the corpus.
        corpus_options (`dict`, *optional*): Options of its builder.
        view (`str`): What is made of a study: `"sft"`, `"impression"` or `"vqa"`.
        view_options (`dict`, *optional*): Options of the view, e.g. `{"target": "findings"}`.
        dataset_name (`str`, *optional*): Instead of a corpus, a folder or Hub id that `load_dataset` opens and that has
            the view's columns already, e.g. one of `hf-mu2 phantom`, `data build` or `data prepare`.
        train_split, eval_split (`str`): Splits to train on and to choose settings by.
        max_train_studies, max_eval_studies (`int`, *optional*): Use the first so many studies.
        monitor_studies (`int`): Evaluation studies on which image dependence is measured, see `training/monitor.py`.
        sample_steps (`int`): Write the report of a fixed evaluation study every so many steps; 0 for never.
        cache_features (`str`, *optional*): Folder of cached features, for stages with a frozen tower: it runs once per
            volume, in this run or an earlier one, and training reads its output. In bfloat16 where `bf16` is set.
        evidence_weight (`float`): Weight of the loss on where the tokenizer looks, of the objectives `sft` and
            `negative`; studies need masks of their lesions, see `training/evidence_loss.py`. 0 reads none.
    """

    objective: str = "sft"
    stage: str = "full"
    init: dict[str, Any] | None = None
    corpus: str | None = None
    corpus_root: str | None = None
    corpus_options: dict[str, Any] | None = field(default_factory=dict)
    view: str = "sft"
    view_options: dict[str, Any] | None = field(default_factory=dict)
    dataset_name: str | None = None
    train_split: str = "train"
    eval_split: str = "validation"
    max_train_studies: int | None = None
    max_eval_studies: int | None = None
    monitor_studies: int = 32
    sample_steps: int = 0
    cache_features: str | None = None
    evidence_weight: float = 0.0

    def __post_init__(self) -> None:
        stage = stage_of(self.stage)
        is_possible = (
            stage.uses_volumes and self.objective in ("sft", "negative") and self.evidence_weight > 0
        )
        if self.evidence_weight and not is_possible:
            raise ValueError(
                "`evidence_weight` is not negative and belongs to `sft` and `negative` in a stage that reads volumes, "
                f"got {self.evidence_weight} for `{self.objective}` in `{self.stage}`. Remove the field."
            )
        if self.cache_features is not None and (stage.tower is not None or not stage.uses_volumes):
            raise ValueError(
                f"`cache_features` needs a stage that reads volumes with a frozen tower, got `{self.stage}`. Remove "
                "the field, or choose `stage: tokenizer`."
            )


@dataclass(frozen=True)
class Objective:
    """What one objective has of its own; its module holds one as `OBJECTIVE`.

    Args:
        arguments (`type`): `RecipeArguments`, or a subclass with the fields of this objective.
        config (`type`): The configuration of its trainer.
        make_trainer (`Callable`): Called with the arguments of TRL's trainers (`model`, `args`, `train_dataset`,
            `eval_dataset`, `processing_class`) and with `stage` and `arguments`, the parsed `RecipeArguments`.
    """

    arguments: type[RecipeArguments]
    config: type[TrainingArguments]
    make_trainer: Callable[..., StageTrainer]


# Which module of this folder holds the objective.
OBJECTIVES = {"sft": "sft", "dpo": "dpo", "grpo": "grpo", "rloo": "rloo", "negative": "negative"}


def objective_of(name: str) -> Objective:
    """Look up an objective by name.

    Raises:
        ValueError: if there is none of that name.
    """
    if name not in OBJECTIVES:
        raise ValueError(
            f"`objective` must be one of {', '.join(OBJECTIVES)}, got `{name}`. Check the spelling."
        )
    return import_module(f"hf_mu2.training.{OBJECTIVES[name]}").OBJECTIVE


def find_recipe(name: str | Path) -> Path:
    """Find a recipe: a file, or the name of one that ships with the package.

    Raises:
        ValueError: if there is none; names those that ship.
    """
    for path in (Path(name), RECIPES / f"{name}", RECIPES / f"{name}.yaml"):
        if path.is_file():
            return path
    shipped = ", ".join(sorted(path.stem for path in RECIPES.glob("*.yaml")))
    raise ValueError(f"A recipe is a YAML file or one that ships ({shipped}), got `{name}`. Check the name.")


def parse_recipe(
    recipe: str | Path, overrides: Sequence[str] = ()
) -> tuple[RecipeArguments, Any, ModelConfig]:
    """Read a recipe; `overrides` such as `["--learning_rate", "1e-5"]` win over the file.

    Returns:
        `tuple`: the arguments and the trainer's configuration, of the classes of the recipe's objective, and TRL's
        `ModelConfig`.

    Raises:
        ValueError: for a field that nothing knows, or a value that does not fit its field.
    """
    from trl import ModelConfig, TrlParser

    path = find_recipe(recipe)
    objective = objective_of(_read_field(path, overrides, "objective"))
    fields: Any = (objective.arguments, objective.config, ModelConfig)
    parser = TrlParser(fields, prog="hf-mu2 train", exit_on_error=False)
    arguments, training, model = parser.parse_args_and_config(["--config", str(path), *overrides])
    given = {word.split("=")[0] for word in overrides}
    # What is named on the command line takes the place of its alternative in the file.
    if "--dataset_name" in given and "--corpus" not in given:
        arguments.corpus = None
    if "--corpus" in given and "--dataset_name" not in given:
        arguments.dataset_name = None
    if "--model_name_or_path" in given and "--init" not in given:
        arguments.init = None
    if "--init" in given and "--model_name_or_path" not in given:
        model.model_name_or_path = None
    if (arguments.corpus is None) == (arguments.dataset_name is None):
        raise ValueError(
            f"A recipe names exactly one of `corpus` and `dataset_name`, `{path}` names "
            f"{'both' if arguments.corpus else 'neither'}. Remove or add one."
        )
    if (arguments.init is None) == (model.model_name_or_path is None):
        raise ValueError(
            f"A recipe names exactly one of `model_name_or_path` and `init`, `{path}` names "
            f"{'both' if arguments.init else 'neither'}. Remove or add one, e.g. `--model_name_or_path DIR`."
        )
    return arguments, training, model


def train_recipe(recipe: str | Path, overrides: Sequence[str] = ()) -> Path:
    """Train what a recipe says and return the folder of the result.

    A run that was killed continues from its last whole checkpoint when the same command is given again.

    Raises:
        ValueError: if the recipe, the data or the checkpoint cannot be trained as asked; the message says why.
    """
    if _read_field(find_recipe(recipe), overrides, "stage") == "tower":
        from .tower import train_tower

        return train_tower(recipe, overrides)

    from hf_mu2.model.volume_mu2 import OutOfDomainWarning

    from .checkpoints import last_whole_checkpoint
    from .curve import draw_curve
    from .monitor import VolumeMonitor
    from .record import RunRecord
    from .slices_budget import check_budget
    from .slices_video import SliceVideoProcessor

    arguments, training, model_arguments = parse_recipe(recipe, overrides)
    stage = stage_of(arguments.stage)
    record = RunRecord(
        training.output_dir,
        {"name": str(recipe), **asdict(arguments), **training.to_dict(), **asdict(model_arguments)},
    )
    train_dataset, eval_dataset = open_datasets(arguments, training, stage)
    model, processor = open_model(arguments, training, model_arguments, stage)
    if arguments.evidence_weight:  # before features stand where the volumes are
        train_dataset, eval_dataset = (
            None if rows is None else _with_lesions(rows, split, arguments, training, model, processor)
            for rows, split in (
                (train_dataset, arguments.train_split),
                (eval_dataset, arguments.eval_split),
            )
        )
    train_dataset, eval_dataset = (
        None if rows is None else _with_features(rows, arguments, training, model, processor)
        for rows in (train_dataset, eval_dataset)
    )
    training.disable_tqdm = not sys.stderr.isatty()  # a line per log off a terminal
    training.model_init_kwargs = None  # used up by `open_model`; the trainer warns about them otherwise
    # `hf-mu2 data check` lists unusual volumes; a line per volume and epoch would bury the losses.
    warnings.simplefilter("ignore", OutOfDomainWarning)
    trainer = objective_of(arguments.objective).make_trainer(
        model=model,
        args=training,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=processor,
        stage=stage,
        arguments=arguments,
    )
    if stage.uses_volumes and eval_dataset is not None:
        trainer.add_callback(
            VolumeMonitor(trainer, eval_dataset, arguments.monitor_studies, arguments.sample_steps)
        )
    trainer.accelerator.print(describe_training(model))
    if isinstance(processor, SliceVideoProcessor):
        first = islice(trainer.train_dataset or (), 16)
        max_length = training.to_dict().get("max_length")
        trainer.accelerator.print(check_budget(processor, first, model.config, max_length))
    record.begin(trainer)
    trainer.train(resume_from_checkpoint=last_whole_checkpoint(training.output_dir))
    trainer.save_model(training.output_dir)
    record.end(trainer)
    if find_spec("matplotlib") and trainer.is_world_process_zero():
        draw_curve(
            trainer.state.log_history, Path(training.output_dir) / "curve.png", find_recipe(recipe).stem
        )
    trainer.end()
    return Path(training.output_dir)


def open_datasets(
    arguments: RecipeArguments, training: TrainingArguments, stage: Stage
) -> tuple[Dataset, Dataset | None]:
    """Open the training rows, and the evaluation rows when the run evaluates."""
    from hf_mu2.data.views import view_dataset

    from .trainer import check_volume_column

    def rows(split: str, limit: int | None) -> Dataset:
        dataset = open_studies(arguments, split, limit)
        if arguments.corpus is not None:
            dataset = view_dataset(dataset, arguments.view, **arguments.view_options or {})
        check_volume_column(dataset, stage.uses_volumes)
        return dataset

    train = rows(arguments.train_split, arguments.max_train_studies)
    if training.eval_strategy == "no":
        return train, None
    return train, rows(arguments.eval_split, arguments.max_eval_studies)


def open_studies(arguments: RecipeArguments, split: str, limit: int | None = None) -> Dataset:
    """Open a split of the recipe's corpus or folder, the first `limit` rows of it."""
    from datasets import load_dataset

    from hf_mu2.data.build import load_corpus

    if arguments.corpus is not None:
        options = arguments.corpus_options or {}
        dataset = load_corpus(arguments.corpus, arguments.corpus_root or ".", split, **options)
    else:
        dataset = load_dataset(arguments.dataset_name, split=split)
    dataset = with_paths(dataset)
    return dataset if limit is None else dataset.select(range(min(limit, len(dataset))))


def with_paths(dataset: Dataset) -> Dataset:
    """Let rows hold the paths of NIfTI files, left to our reader, whose errors name the rule and the file."""
    from datasets import List, Nifti

    for name, feature in (dataset.features or {}).items():
        if "Nifti" in repr(feature):
            paths = Nifti(decode=False)
            dataset = dataset.cast_column(name, paths if isinstance(feature, Nifti) else List(paths))
    return dataset


def _with_lesions(
    dataset: Dataset,
    split: str,
    arguments: RecipeArguments,
    training: TrainingArguments,
    model: PreTrainedModel,
    processor: ProcessorMixin,
) -> Dataset:
    """Lay the masks of lesions on the patches of every study, for the evidence loss."""
    from accelerate import PartialState

    from hf_mu2.model.configuration_mu2 import Mu2Config

    from .evidence_loss import add_lesion_shares, find_lesion_masks

    if not isinstance(model.config, Mu2Config):
        raise ValueError(
            f"`evidence_weight` needs a mu2 model, got a {type(model).__name__}. Remove the field."
        )
    with PartialState().main_process_first():  # which computes; the others find it in the cache of `datasets`
        return add_lesion_shares(
            find_lesion_masks(dataset, arguments, split),
            processor.image_processor,
            model.config.vision_config.patch_size,
            training.dataloader_num_workers,
        )


def _with_features(
    dataset: Dataset,
    arguments: RecipeArguments,
    training: TrainingArguments,
    model: PreTrainedModel,
    processor: ProcessorMixin,
) -> Dataset:
    """Cache features where the recipe asks for it, and refuse any that this run may not train from."""
    import torch
    from accelerate import PartialState

    from .features import cache_features, check_features

    if arguments.cache_features is not None:
        with PartialState().main_process_first():  # which writes; the others find everything there
            dataset = cache_features(
                model,
                processor,
                dataset,
                arguments.cache_features,
                batch_size=training.per_device_eval_batch_size,
                dtype=torch.bfloat16 if training.bf16 else torch.float32,
                num_workers=training.dataloader_num_workers,
                device=training.device,
            )
    check_features(dataset, model, processor)
    return dataset


def open_model(
    arguments: RecipeArguments, training: TrainingArguments, model_arguments: ModelConfig, stage: Stage
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Load the starting checkpoint, freeze it for the stage, and wrap it in an adapter when LoRA is asked for."""
    import torch
    from peft import get_peft_model
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
        AutoProcessor,
        AutoTokenizer,
        set_seed,
    )
    from trl import get_peft_config, get_quantization_config

    set_seed(training.seed)  # adapters start from random numbers
    source = model_arguments.model_name_or_path
    if source == "embedded":
        source = str(embedded_checkpoint())
    if arguments.init is not None:
        source = str(_assemble_once(arguments.init, Path(training.output_dir) / "start"))
    auto_model, auto_processor = (
        (AutoModelForImageTextToText, AutoProcessor)
        if stage.uses_volumes
        else (AutoModelForCausalLM, AutoTokenizer)
    )
    options: dict[str, Any] = {
        "revision": model_arguments.model_revision,
        "trust_remote_code": training.trust_remote_code,
    }
    initial: dict[str, Any] = training.model_init_kwargs or {}
    model = auto_model.from_pretrained(
        source,
        dtype=model_arguments.dtype
        if model_arguments.dtype in ("auto", None)
        else getattr(torch, model_arguments.dtype),
        attn_implementation=model_arguments.attn_implementation,
        quantization_config=get_quantization_config(model_arguments),
        **options,
        **initial,
    )
    processor = auto_processor.from_pretrained(source, **options)
    freeze(model, stage)
    lora = get_peft_config(model_arguments)
    if lora is not None:
        model = get_peft_model(model, complete_lora(lora, model, stage))
    return model, processor


def _read_field(path: Path, overrides: Sequence[str], name: str) -> str:
    """Read one field alone: which other fields there are depends on it."""
    import yaml

    if f"--{name}" in overrides[:-1]:
        return overrides[list(overrides).index(f"--{name}") + 1]
    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        fields = None
    if not isinstance(fields, dict):
        raise ValueError(
            f"A recipe is YAML in UTF-8 with one `field: value` per line, `{path}` is something else. Start from one "
            "that ships."
        )
    default = RecipeArguments.__dataclass_fields__[name].default
    return str(fields.get(name, default))


def _assemble_once(init: dict[str, Any], start: Path) -> Path:
    from accelerate import PartialState

    from hf_mu2.hub.assemble import assemble

    from .slices_start import add_slices

    build = add_slices if "model" in init else assemble
    with PartialState().main_process_first():
        if not start.exists():
            build(output=start, **init)
    return start


def describe_training(model: PreTrainedModel) -> str:
    """Say in one line per part how much of it is trained."""
    return "\n".join(
        f"{part:<16}{total:>14,} parameters, {trained:,} trained"
        for part, total, trained in describe_parts(model)
    )
