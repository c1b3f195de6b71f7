"""The dual-path loss: equal to its formula however it is accumulated, exactly flat at the cap, SFT at beta 0."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset, load_dataset
from transformers import AutoModelForImageTextToText, AutoProcessor

from hf_mu2.data.negatives_rows import GaussianVolumes, GivenVolumes
from hf_mu2.training.negative import NegativeConfig, NegativeLossTrainer
from hf_mu2.training.sft import StageSFTTrainer
from hf_mu2.training.stages import STAGES, freeze
from tests.tiny import make_tiny_checkpoint
from tests.tiny_qwen import make_tiny_qwen
from tests.training.rows import write_sft_folder

STAGE = STAGES["full"]
NUM_ROWS = 8
COMMON = {
    "max_length": 512,
    "max_steps": 1,
    "per_device_train_batch_size": 8,
    "learning_rate": 1e-2,
    "lr_scheduler_type": "constant",
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "save_strategy": "no",
    "logging_steps": 1,
    "gradient_checkpointing": False,
    "disable_tqdm": True,
    "max_loss": 100.0,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    base = tmp_path_factory.mktemp("negative")
    make_tiny_checkpoint(base / "mu2")
    make_tiny_qwen(base / "qwen")
    write_sft_folder(base / "data", NUM_ROWS)
    return base


@pytest.fixture(scope="module")
def rows(base) -> Dataset:
    return load_dataset(str(base / "data"), split="train")


@pytest.fixture(scope="module")
def shifted(rows) -> GivenVolumes:
    """Each row's negative is the next row's volume."""
    images = [rows[(i + 1) % NUM_ROWS]["images"] for i in range(NUM_ROWS)]
    return GivenVolumes(images)


def open_model(base: Path, name: str = "mu2"):
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_pretrained(base / name)
    freeze(model, STAGE)
    return model, AutoProcessor.from_pretrained(base / name)


def make_trainer(base, rows, volumes_of, out, name="mu2", trainer=NegativeLossTrainer, **options):
    model, processor = open_model(base, name)
    fields = {**COMMON, **options}
    extra = {"volumes_of": volumes_of} if issubclass(trainer, NegativeLossTrainer) else {}
    return trainer(
        model=model,
        args=NegativeConfig(str(out), **fields),
        train_dataset=rows,
        processing_class=processor,
        stage=STAGE,
        **extra,
    )


def by_hand(trainer) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the token mean of each row's answer from the model's own logits: positives, negatives."""
    losses = []
    for number in range(NUM_ROWS):
        batch = trainer.data_collator([trainer.pairs[number]])
        labels = batch.pop("labels")
        with torch.no_grad():
            logits = trainer.model(**batch).logits.float()
        for row, answer in zip(logits, labels):
            kept = answer[1:] != -100
            losses.append(F.cross_entropy(row[:-1][kept], answer[1:][kept]))
    return torch.stack(losses[::2]), torch.stack(losses[1::2])


def logged(trainer, name: str = "loss") -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


@pytest.mark.parametrize("accumulation", [1, 8])
@pytest.mark.parametrize("cap", [100.0, "half"])
def test_the_loss_is_the_formula_capped_or_not_accumulated_or_not(
    base, rows, shifted, tmp_path, accumulation, cap
):
    options = {
        "gradient_accumulation_steps": accumulation,
        "per_device_train_batch_size": 8 // accumulation,
        "alpha": 0.7,
        "beta": 0.3,
    }
    trainer = make_trainer(base, rows, shifted, tmp_path, **options)
    positive, negative = by_hand(trainer)
    if cap == "half":
        trainer.args.max_loss = cap = negative.sort().values[3:5].mean().item()  # half of them
    expected = (0.7 * positive - 0.3 * negative.clamp(max=cap)).mean()
    trainer.train()
    assert logged(trainer) == pytest.approx([expected.item()], abs=1e-6)
    assert logged(trainer, "loss_positive") == pytest.approx([positive.mean().item()], abs=1e-6)
    assert logged(trainer, "loss_negative") == pytest.approx([negative.mean().item()], abs=1e-6)
    assert logged(trainer, "loss_gap") == pytest.approx([(negative - positive).mean().item()], abs=2e-6)
    capped = (negative >= cap).float().mean().item()
    assert logged(trainer, "capped_share") == pytest.approx([capped])


def test_accumulation_does_not_change_the_step(base, rows, shifted, tmp_path):
    """Also where the last step of the epoch has fewer pairs: 8 rows in batches of 3."""
    weights, losses = [], []
    for size, accumulation in ((6, 1), (3, 2)):
        trainer = make_trainer(
            base, rows, shifted, tmp_path / str(size), max_steps=2, per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation, optim="sgd",
        )  # fmt: skip
        trainer.train()
        weights.append(torch.cat([p.detach().flatten() for p in trainer.model.parameters()]))
        losses.append(logged(trainer))
    assert losses[0] == pytest.approx(losses[1], abs=2e-6)
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=1e-5)


def test_a_capped_negative_has_a_gradient_of_exactly_zero(base, rows, shifted, tmp_path):
    trainer = make_trainer(base, rows, shifted, tmp_path, max_loss=0.5)
    batch = trainer.data_collator([trainer.pairs[i] for i in range(3)])
    losses = trainer.answer_losses(trainer.model, batch)
    assert (losses > 0.5).all()
    term = trainer.negative_term(losses[::2], losses[1::2])
    parameters = [p for p in trainer.model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(term.sum(), parameters, retain_graph=True, allow_unused=True)
    assert all(gradient is None or not gradient.any() for gradient in gradients)
    trainer.args.max_loss = 100.0
    term = trainer.negative_term(losses[::2], losses[1::2])
    assert any(
        gradient is not None and gradient.any()
        for gradient in torch.autograd.grad(term.sum(), parameters, allow_unused=True)
    )


def test_the_cap_is_applied_to_each_pair_before_the_mean(base, rows, shifted, tmp_path):
    trainer = make_trainer(base, rows, shifted, tmp_path, max_loss=2.0, beta=1.0)
    negative = torch.tensor([1.0, 9.0], requires_grad=True)
    term = trainer.negative_term(torch.zeros(2), negative)
    term.mean().backward()
    assert term.tolist() == [-1.0, -2.0] and negative.grad.tolist() == [-0.5, 0.0]


class RowMeanTrainer(StageSFTTrainer):
    """SFT in which each report weighs the same, by the model's own logits."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        losses = [
            F.cross_entropy(logits[:-1].float(), answer[1:], ignore_index=-100)
            for logits, answer in zip(model(**inputs).logits, labels)
        ]
        return torch.stack(losses).sum() / 4  # pairs of a step below

    def _get_num_items_in_batch(self, batch_samples, device):
        return torch.tensor(1)


def test_beta_0_is_sft_with_the_same_normalisation_step_by_step(base, rows, tmp_path):
    def unread(number, epoch):
        raise AssertionError("a negative was read")

    runs = []
    for trainer in (NegativeLossTrainer, RowMeanTrainer):
        made = make_trainer(
            base, rows, unread, tmp_path / trainer.__name__, trainer=trainer, beta=0.0, max_steps=4,
            per_device_train_batch_size=2, gradient_accumulation_steps=2,
        )  # fmt: skip
        made.model_accepts_loss_kwargs = True
        made.train()
        runs.append((logged(made), {k: v.clone() for k, v in made.model.state_dict().items()}))
    assert len(runs[0][0]) == 4 and runs[0][0][-1] < runs[0][0][0]
    assert runs[0][0] == pytest.approx(runs[1][0], abs=2e-5)
    for name, value in runs[0][1].items():
        torch.testing.assert_close(value, runs[1][1][name], rtol=0, atol=2e-4, msg=name)


def test_beta_0_runs_the_rows_alone(base, rows, shifted, tmp_path):
    trainer = make_trainer(base, rows, shifted, tmp_path, beta=0.0)
    sizes = []
    trainer.model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    trainer.train()
    assert sizes == [NUM_ROWS]


def test_pairs_stay_together_and_every_study_comes_once_an_epoch(base, rows, shifted, tmp_path):
    trainer = make_trainer(
        base, rows, shifted, tmp_path, max_steps=4, per_device_train_batch_size=2,
        gradient_accumulation_steps=2, dataloader_num_workers=0,
    )  # fmt: skip
    seen, inner = [], trainer.data_collator.collate_rows
    object.__setattr__(
        trainer.data_collator,
        "collate_rows",
        lambda rows: (seen.append([row["study_id"] for row in rows]), inner(rows))[1],
    )
    trainer.train()
    assert all(batch[::2] == batch[1::2] and len(batch) == 4 for batch in seen)
    studies = [study for batch in seen for study in batch[::2]]
    assert len(studies) == 16 and sorted(studies[:8]) == sorted(studies[8:]) == sorted(set(studies))


@pytest.mark.parametrize("name", ["mu2", "qwen"])
def test_the_loss_depends_on_both_volumes(name, base, rows, shifted, tmp_path):
    trainer = make_trainer(base, rows, shifted, tmp_path, name=name)
    losses = []
    for number, given in ((0, 1), (0, 2)):
        row = rows[number]
        pair = [row, {**row, "images": rows[given]["images"]}]
        batch = trainer.data_collator([pair])
        with torch.no_grad():
            losses.append(trainer.answer_losses(trainer.model.eval(), batch))
    (positive, first), (again, second) = losses
    assert positive == again and first != second and positive != first


def test_the_weight_follows_its_schedule(base, rows, shifted, tmp_path):
    trainer = make_trainer(base, rows, shifted, tmp_path, beta=0.4, margin=2.0)
    positive, negative = torch.tensor([1.0, 1.0, 1.0]), torch.tensor([0.5, 2.0, 4.0])
    assert trainer.negative_weight(positive, negative).tolist() == pytest.approx([0.4] * 3)
    trainer.args.beta_schedule = "adaptive"
    assert trainer.negative_weight(positive, negative).tolist() == pytest.approx([0.4, 0.2, 0.0])
    trainer.args.beta_schedule = "linear"
    trainer.state.max_steps, weights = 4, []
    for trainer.state.global_step in range(4):
        weights.append(trainer.negative_weight(positive, negative)[0].item())
    assert weights == pytest.approx([0.1, 0.2, 0.3, 0.4])


def test_scaled_gradients_of_negatives_leave_the_loss_as_it_is(base, rows, shifted, tmp_path):
    trainer = make_trainer(base, rows, shifted, tmp_path, beta=1.0, negative_gradient=0.25)
    negative = torch.tensor([1.5, 3.0], requires_grad=True)
    term = trainer.negative_term(torch.zeros(2), negative)
    assert term.tolist() == [-1.5, -3.0]
    term.sum().backward()
    assert negative.grad.tolist() == [-0.25, -0.25]


def test_evaluation_is_that_of_sft_and_reports_are_measured(base, rows, shifted, tmp_path):
    from hf_mu2.training.negative import LengthWatch

    losses = []
    for kind in (NegativeLossTrainer, StageSFTTrainer):
        options = {"per_device_eval_batch_size": 4, "length_studies": 1}
        trainer = make_trainer(base, rows, shifted, tmp_path, trainer=kind, **options)
        if kind is NegativeLossTrainer:
            trainer.add_callback(LengthWatch(trainer, rows))
        losses.append(trainer.evaluate(rows))
    assert losses[0]["eval_loss"] == pytest.approx(losses[1]["eval_loss"], abs=1e-6)
    assert losses[0]["eval_report_words"] >= 0 and losses[0]["eval_length_ratio"] >= 0


def test_settings_that_cannot_work_are_refused(base, rows, shifted, tmp_path):
    for options, word in (
        ({"beta_schedule": "cosine"}, "beta_schedule"),
        ({"beta": -0.1}, "beta"),
        ({"max_loss": 0.0}, "max_loss"),
        ({"remove_unused_columns": True}, "remove_unused_columns"),
    ):
        with pytest.raises(ValueError, match=word):
            NegativeConfig(str(tmp_path), **{**COMMON, **options})
    with pytest.raises(ValueError, match="needs negatives"):
        make_trainer(base, rows, None, tmp_path)


def test_an_adapter_trains_under_clipping_and_the_base_does_not_move(base, rows, tmp_path):
    from peft import LoraConfig, get_peft_model

    from hf_mu2.training.stages import complete_lora

    model, processor = open_model(base)
    model = get_peft_model(model, complete_lora(LoraConfig(r=2), model, STAGE))
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    trainer = NegativeLossTrainer(
        model=model,
        args=NegativeConfig(str(tmp_path), **{**COMMON, "max_steps": 2, "max_grad_norm": 0.1}),
        train_dataset=rows,
        processing_class=processor,
        stage=STAGE,
        volumes_of=GaussianVolumes(rows),
    )
    trainer.train()
    for name, value in model.named_parameters():
        assert torch.equal(value, before[name]) != value.requires_grad, name
    assert all(entry > 0.1 for entry in logged(trainer, "grad_norm"))  # the norm before clipping
