"""The evidence loss: masks where the volume puts them, gradient to all that looks, nothing at weight 0."""

import json
import math
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from datasets import load_dataset
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl import SFTConfig

from hf_mu2.data.negatives_rows import GivenVolumes
from hf_mu2.explain.value_path import trace_values, watch_reading
from hf_mu2.model.volume_mu2 import VolumeError, load_volume
from hf_mu2.training.evidence_loss import (
    LESION_SHARE,
    add_lesion_shares,
    evidence_losses,
    lesion_blocks,
)
from hf_mu2.training.features import cache_features
from hf_mu2.training.negative import NegativeConfig, NegativeLossTrainer
from hf_mu2.training.recipe import RecipeArguments, train_recipe
from hf_mu2.training.sft import StageSFTTrainer
from hf_mu2.training.stages import STAGES, freeze
from tests.data.volume_rows import prepare_here
from tests.explain.test_evidence_path import FORMS
from tests.tiny import make_tiny_checkpoint, tiny_model, tiny_nifti, tiny_processor
from tests.tiny_qwen import make_tiny_qwen
from tests.training.rows import write_sft_folder
from tests.training.test_engines import run
from tests.training.test_recipes import write_recipe

NUM_ROWS, NO_LESION = 4, 2
PATCH = (4, 8, 8)
LESION = (slice(4, 10), slice(12, 24), slice(26, 36))  # (depth, height, width), on the right of an RAS volume
COMMON = {
    "max_length": 512,
    "max_steps": 1,
    "per_device_train_batch_size": NUM_ROWS,
    "learning_rate": 1e-2,
    "lr_scheduler_type": "constant",
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "save_strategy": "no",
    "logging_steps": 1,
    "gradient_checkpointing": False,
    "disable_tqdm": True,
    "max_grad_norm": 0.0,
}


def lesion(shape=(12, 40, 44)) -> np.ndarray:
    mask = np.zeros(shape, np.uint32)
    mask[LESION] = 1 << 5
    return mask


def save(path: Path, array: np.ndarray, like: nib.Nifti1Image | None = None) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = (tiny_nifti() if like is None else like).affine
    nib.save(nib.Nifti1Image(array.transpose(2, 1, 0), affine), path)
    return str(path)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A tiny checkpoint and rows in the manner of PhantomCT, masks beside; one study has no lesion."""
    base = tmp_path_factory.mktemp("evidence")
    make_tiny_checkpoint(base / "mu2")
    write_sft_folder(base / "data", NUM_ROWS)
    for i in range(NUM_ROWS):
        mask = np.zeros((12, 40, 44), np.uint32) if i == NO_LESION else np.roll(lesion(), -4 * i, axis=2)
        save(base / "data_masks" / "train" / f"{i}.nii.gz", mask)
    return base


@pytest.fixture(scope="module")
def rows(base):
    """Rows with `lesion_share`, and the paths of their volumes."""
    found = load_dataset(str(base / "data"), split="train").cast_column("images", _paths())
    masks = [[str(base / "data_masks" / "train" / f"{i}.nii.gz")] for i in range(NUM_ROWS)]
    return add_lesion_shares(found.add_column("lesion_masks", masks), tiny_processor().image_processor, PATCH)


def _paths():
    from datasets import List, Nifti

    return List(Nifti(decode=False))


def make_trainer(base, rows, out, weight=0.5, stage="full", trainer=StageSFTTrainer, extra=None, **options):
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_pretrained(base / "mu2")
    freeze(model, STAGES[stage])
    config = NegativeConfig if trainer is NegativeLossTrainer else SFTConfig
    return trainer(
        model=model,
        args=config(str(out), **{**COMMON, **options}),
        train_dataset=rows,
        processing_class=AutoProcessor.from_pretrained(base / "mu2"),
        stage=STAGES[stage],
        evidence_weight=weight,
        **(extra or {}),
    )


def logged(trainer, name="loss") -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def weights_of(trainer) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in trainer.model.named_parameters()}


# ------------------------------------------------------------------------------------------------- where the masks lie


@pytest.mark.parametrize("case", ["as it is", "cropped", "several frames", "coarser", "LPS", "prepared"])
def test_a_mask_lies_where_the_processor_puts_its_voxels(tmp_path, case):
    """A volume of bone in air where the mask is: what the processor makes of it is the mask on the patches."""
    depth = 40 if case == "several frames" else 12
    image = tiny_nifti(0, (depth, 40, 44))
    settings = {"cropped": {"spacing": (3.0, 1.0, 1.0)}, "coarser": {"spacing": (7.0, 6.0, 5.0)}}.get(
        case, {}
    )
    processor = tiny_processor().image_processor._with(settings)
    mask = lesion((depth, 40, 44))
    volume, drawn = tmp_path / "ct.nii.gz", tmp_path / "mask.nii.gz"
    nib.save(image, volume)
    save(drawn, mask)
    if case == "LPS":
        ornt = nib.orientations
        flip = ornt.ornt_transform(ornt.axcodes2ornt("RAS"), ornt.axcodes2ornt("LPS"))
        for path in (volume, drawn):
            nib.save(nib.load(path).as_reoriented(flip), path)
    source = load_volume(volume)
    # The grid follows the body, so it is that of the real volume; the windowed values of the mask are its shares.
    grid = processor.grid(source)
    painted = replace(source, array=np.where(mask > 0, 1000, -1000).astype(np.int16))
    resampled = processor._resample(painted, grid)
    resampled[resampled < -1000] = -1000  # outside the field of view
    frames = -(-len(resampled) // 8) * 8
    inside = np.zeros((frames, 32, 32), np.float32)
    inside[: len(resampled)] = (resampled + 1000) / 2000
    expected = inside.reshape(frames // 4, 4, 4, 8, 4, 8).mean((1, 3, 5))
    used = str(volume)
    if case == "prepared":
        (used,) = prepare_here([{"study_id": "study", "images": [used]}], tmp_path / "prepared", processor)
    found = lesion_blocks(used, [str(drawn)], processor, PATCH)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert found.max() > 0.05


def test_left_stays_left(tmp_path):
    """A lesion on the right of the patient is in the last columns of patches, as the volume's own right is."""
    image = tiny_nifti()
    nib.save(image, tmp_path / "ct.nii.gz")
    blocks = lesion_blocks(
        str(tmp_path / "ct.nii.gz"),
        [save(tmp_path / "mask.nii.gz", lesion())],
        tiny_processor().image_processor,
        PATCH,
    )
    assert blocks[..., 2:].sum() > 0 and blocks[..., :2].sum() == 0


def test_masks_of_another_geometry_are_refused(tmp_path):
    nib.save(tiny_nifti(), tmp_path / "ct.nii.gz")
    processor, volume = tiny_processor().image_processor, str(tmp_path / "ct.nii.gz")
    small = save(tmp_path / "small.nii.gz", lesion()[:, :-1])
    with pytest.raises(
        VolumeError, match=r"`small.nii.gz` has the shape \(12, 39, 44\).*the volume \(12, 40, 44\)"
    ):
        lesion_blocks(volume, [small], processor, PATCH)
    moved = tiny_nifti()
    moved.affine[0, 3] += 2.0
    with pytest.raises(VolumeError, match=r"origin \(2, 0, 0\) mm"):
        lesion_blocks(volume, [save(tmp_path / "moved.nii.gz", lesion(), moved)], processor, PATCH)
    good = save(tmp_path / "mask.nii.gz", lesion())
    with pytest.raises(ValueError, match="`mode='official'`"):
        lesion_blocks(volume, [good], processor._with({"mode": "official"}), PATCH)
    with pytest.raises(ValueError, match="cache then"):
        lesion_blocks('{"features":"x","volume":"y","key":"z"}', [good], processor, PATCH)


def test_shares_belong_to_one_volume(base):
    rows = load_dataset(str(base / "data"), split="train").cast_column("images", _paths()).select([0])
    mask = [[str(base / "data_masks" / "train" / "0.nii.gz")]]
    rows = rows.add_column("lesion_masks", mask).map(lambda row: {"images": row["images"] * 2})
    with pytest.raises(ValueError, match="one volume, got 2 in study `study-0`"):
        add_lesion_shares(rows, tiny_processor().image_processor, PATCH)


# ---------------------------------------------------------------------------------------------------- what is read


def study(model, frames=2, length=5):
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randn(3, frames, 32, model.config.vision_config.hidden_size, generator=generator)
    question = torch.randn(3, length, model.config.text_config.hidden_size, generator=generator)
    slab_mask = torch.ones(3, frames, 2, dtype=torch.bool)
    slab_mask[1, -1, -1] = False
    question_mask = torch.ones(3, length, dtype=torch.bool)
    question_mask[2, -2:] = False
    return tokens, question, slab_mask, question_mask


@pytest.mark.parametrize("form", FORMS)
def test_what_is_read_is_the_path_of_explain_and_sums_to_one(form):
    model = tiny_model(tokenizer_config=FORMS[form])
    tokenizer = model.model.mu2_tokenizer
    inputs = study(model)
    with watch_reading(model) as readings:
        tokenizer(*inputs)
    (reading,) = readings
    assert reading.shape == (3, 2, 32) and reading.requires_grad and reading.min() >= 0
    torch.testing.assert_close(reading.sum((1, 2)), torch.ones(3), atol=1e-6, rtol=0)
    for number in range(3):
        path, _ = trace_values(tokenizer, *(x[number : number + 1] for x in inputs))
        composed = path.compose()
        expected = path.patches((composed / composed.sum(-1, keepdim=True)).mean((0, 1)))
        torch.testing.assert_close(reading[number].detach(), expected, atol=1e-5, rtol=0)
    tokenizer(*inputs)
    assert len(readings) == 1  # nothing is left on the model


def test_padding_is_not_read():
    model = tiny_model()
    with watch_reading(model) as readings:
        model.model.mu2_tokenizer(*study(model))
    assert readings[0][1, -1, -16:].abs().max() == 0 and readings[0][0].min() > 0


def test_shares_sum_to_one_under_half_precision():
    model = tiny_model()
    with torch.autocast("cpu", torch.bfloat16), watch_reading(model) as readings:
        model.model.mu2_tokenizer(*study(model))
    assert readings[0].dtype == torch.float32
    torch.testing.assert_close(readings[0].sum((1, 2)), torch.ones(3), atol=1e-5, rtol=0)


def test_the_loss_is_its_formula():
    reading = torch.tensor([[[0.1, 0.2, 0.3, 0.4]], [[0.25, 0.25, 0.25, 0.25]], [[0.7, 0.1, 0.1, 0.1]]])
    lesions = torch.tensor([[[0.0, 0.2, 0.1, 0.0]], [[0.0, 0.0, 0.0, 0.0]], [[0.05, 0.0, 0.0, 0.0]]])
    expected = [-math.log((0.2 * 0.2 + 0.3 * 0.1) / 0.2), -math.log(0.7)]
    torch.testing.assert_close(evidence_losses(reading, lesions), torch.tensor(expected))
    assert evidence_losses(reading[1:2], lesions[1:2]).shape == (0,)


# ------------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("form", ["pixels", "cached", "checkpointed"])
def test_gradient_reaches_queries_selection_refiner_and_tower(base, rows, tmp_path, form):
    stage = "tokenizer" if form == "cached" else "full"
    trainer = make_trainer(base, rows, tmp_path, stage=stage)
    if form == "cached":
        rows = cache_features(
            trainer.model, trainer.processing_class, rows, tmp_path / "f", dtype=torch.float32
        )
    model = trainer.model.train()
    if form == "checkpointed":
        model.gradient_checkpointing_enable({"use_reentrant": False})
    batch = trainer.data_collator([rows[i] for i in range(NUM_ROWS)])
    lesions = batch.pop(LESION_SHARE)
    batch.pop("labels")
    with watch_reading(model) as readings:
        model(**batch)
    losses = evidence_losses(readings[0], lesions)
    assert len(losses) == NUM_ROWS - 1
    losses.sum().backward()
    reached = {
        name for name, value in model.named_parameters() if value.grad is not None and value.grad.any()
    }
    looks = [
        "aggregator.query_tokens",
        "selection.score.weight",
        "refiner.layers.0.spatial_attention.query.weight",
    ]
    assert {f"model.mu2_tokenizer.{name}" for name in looks} <= reached
    assert any("vision_tower" in name for name in reached) == (form != "cached")
    assert not any("language_model.layers" in name for name in reached)


def test_training_reads_more_of_the_lesion(base, rows, tmp_path):
    trainer = make_trainer(base, rows, tmp_path, weight=1.0, stage="tokenizer", max_steps=12)
    trainer.train()
    masses = logged(trainer, "evidence_mass")
    assert masses[-1] > 2 * masses[0]


def test_the_logged_loss_is_that_of_the_reports_and_the_weighted_one(base, rows, tmp_path):
    plain = make_trainer(base, rows, tmp_path, weight=0.0)
    plain.train()
    trainer = make_trainer(base, rows, tmp_path, weight=0.25)
    trainer.train()
    added = 0.25 * logged(trainer, "evidence_loss")[0]
    assert logged(trainer)[0] == pytest.approx(logged(plain)[0] + added, abs=1e-4)
    assert logged(trainer, "evidence_mass")[0] == pytest.approx(math.exp(-4 * added), rel=1e-5)


def test_weight_zero_takes_the_same_step_as_rows_without_masks(base, rows, tmp_path):
    trainer = make_trainer(base, rows, tmp_path, weight=0.0, max_steps=2)
    bare = make_trainer(base, rows.remove_columns(LESION_SHARE), tmp_path, weight=0.0, max_steps=2)
    assert type(trainer.data_collator) is type(bare.data_collator)
    for one in (trainer, bare):
        one.train()
    ours, theirs = weights_of(trainer), weights_of(bare)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert not logged(trainer, "evidence_loss")


def test_a_step_is_the_same_however_it_is_accumulated(base, rows, tmp_path):
    """One of four studies has no lesion: a mean per batch would weigh the other three unequally."""
    found = []
    for accumulation in (1, 4):
        trainer = make_trainer(
            base,
            rows,
            tmp_path,
            gradient_accumulation_steps=accumulation,
            per_device_train_batch_size=NUM_ROWS // accumulation,
            optim="sgd",
        )
        trainer.train()
        found.append(weights_of(trainer))
    start = dict(AutoModelForImageTextToText.from_pretrained(base / "mu2").named_parameters())
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name] - start[name], value - start[name], atol=1e-6, rtol=1e-3)


def test_studies_without_a_lesion_change_nothing(base, rows, tmp_path):
    normal = rows.select([NO_LESION] * 2)
    trainers = [
        make_trainer(base, normal, tmp_path, weight, per_device_train_batch_size=2) for weight in (0.0, 0.5)
    ]
    for trainer in trainers:
        trainer.train()
    plain, supervised = map(weights_of, trainers)
    assert all(torch.equal(plain[name], supervised[name]) for name in plain)
    assert not logged(trainers[1], "evidence_loss")


def test_evaluation_measures_but_does_not_add(base, rows, tmp_path):
    losses = []
    for weight in (0.0, 0.5):
        trainer = make_trainer(base, rows, tmp_path, weight, per_device_eval_batch_size=2)
        losses.append(trainer.evaluate(rows)["eval_loss"])
    assert losses[0] == losses[1]
    assert 0 < logged(trainer, "eval_evidence_mass")[0] < 1


def test_negatives_are_not_supervised(base, rows, tmp_path):
    """The pairs' loss gains the evidence of positives alone, however the negatives' volumes are read."""
    shifted = GivenVolumes([rows[(i + 1) % NUM_ROWS]["images"] for i in range(NUM_ROWS)])
    options = {"trainer": NegativeLossTrainer, "extra": {"volumes_of": shifted}, "beta": 0.1}
    plain = make_trainer(base, rows, tmp_path, 0.0, **options)
    trainer = make_trainer(base, rows, tmp_path, 0.25, **options)
    batch = trainer.data_collator([trainer.pairs[i] for i in range(NUM_ROWS)])
    has_lesion = batch[LESION_SHARE].flatten(1).amax(1) > 0
    assert has_lesion.tolist() == [True, False, True, False, False, False, True, False]
    for one in (plain, trainer):
        one.train()
    assert logged(trainer)[0] == pytest.approx(
        logged(plain)[0] + 0.25 * logged(trainer, "evidence_loss")[0], abs=1e-4
    )
    sft = make_trainer(base, rows, tmp_path, 0.25)
    sft.train()
    assert logged(trainer, "evidence_loss") == pytest.approx(logged(sft, "evidence_loss"), abs=1e-4)


def test_what_cannot_be_supervised_is_refused(base, rows, tmp_path):
    with pytest.raises(
        ValueError, match="a column `lesion_share`, got a Mu2ForConditionalGeneration and columns"
    ):
        make_trainer(base, rows.remove_columns(LESION_SHARE), tmp_path)
    with pytest.raises(ValueError, match="belongs to `sft` and `negative`"):
        RecipeArguments(objective="dpo", evidence_weight=0.1)
    with pytest.raises(ValueError, match="is not negative"):
        RecipeArguments(evidence_weight=-0.1)
    with pytest.raises(ValueError, match="Use a mu2 model"), watch_reading(torch.nn.Linear(1, 1)):
        pass


@pytest.mark.parametrize("cached", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_recipe_finds_masks_beside_a_folder_of_phantoms(base, tmp_path, cached):
    features = (
        {"cache_features": str(tmp_path / "features"), "stage": "tokenizer"} if cached else {"stage": "full"}
    )
    recipe = write_recipe(
        tmp_path / "recipe.yaml",
        model_name_or_path=str(base / "mu2"),
        output_dir=str(tmp_path / "out"),
        evidence_weight=0.5,
        **{"dataset_name": str(base / "data"), "save_strategy": "no"},
        **features,
    )
    run = json.loads((train_recipe(recipe) / "run.json").read_text())
    assert "evidence_weight" in json.dumps(run)


def test_a_recipe_without_masks_or_without_mu2_is_refused(base, tmp_path):
    write_sft_folder(tmp_path / "data", 2)
    fields = {"output_dir": str(tmp_path / "out"), "stage": "full", "evidence_weight": 0.5}
    recipe = write_recipe(tmp_path / "recipe.yaml", model_name_or_path=str(base / "mu2"), **fields)
    with pytest.raises(ValueError, match="found none for the 2 studies of `train`"):
        train_recipe(recipe)
    make_tiny_qwen(tmp_path / "qwen")
    recipe = write_recipe(tmp_path / "recipe.yaml", model_name_or_path=str(tmp_path / "qwen"), **fields)
    with pytest.raises(ValueError, match="needs a mu2 model, got a Qwen"):
        train_recipe(recipe)


@pytest.mark.slow
def test_two_processes_take_the_step_of_one(base, tmp_path):
    """Of the three studies with a lesion one process has two, the other one."""
    fields = {
        "evidence_weight": 0.5,
        "stage": "tokenizer",
        "max_steps": 1,
        "optim": "sgd",
        "learning_rate": 0.1,
    }
    fields |= {"dataset_name": str(base / "data"), "eval_strategy": "no", "save_strategy": "no"}
    found = []
    for processes in (1, 2):
        out = tmp_path / f"out-{processes}"
        size = {"per_device_train_batch_size": NUM_ROWS // processes, "output_dir": str(out)}
        recipe = write_recipe(tmp_path / "r.yaml", model_name_or_path=str(base / "mu2"), **fields, **size)
        run(tmp_path, processes, "hf_mu2.cli", "train", str(recipe))
        found.append(dict(AutoModelForImageTextToText.from_pretrained(out).named_parameters()))
    start = dict(AutoModelForImageTextToText.from_pretrained(base / "mu2").named_parameters())
    assert any((found[0][name] - start[name]).abs().max() > 1e-4 for name in start)
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, atol=1e-6, rtol=1e-5)
