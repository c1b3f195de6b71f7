"""Pre-training the tower: both losses learn, equal reports are no negatives, the result starts a checkpoint."""

import math

import pytest
import torch
import torch.nn.functional as F

from hf_mu2.data.study import FINDING_LABELS, make_study
from hf_mu2.model.modeling_mu2_vision import Mu2VisionModel
from hf_mu2.training.tower import TowerArguments, assemble_tower, contrastive
from tests.tiny import tiny_volume

SMALL = TowerArguments(
    preset="tiny",
    vision_config={
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "frame_size": [8, 32, 32],
        "patch_size": [4, 8, 8],
    },
    projection_size=16,
)


def make_batch(num_studies: int = 4):
    model, collator = assemble_tower(SMALL)
    studies = [
        make_study(
            f"study-{i}",
            corpus="phantom_ct",
            split="train",
            egress=True,
            findings=f"Nodule of {i} mm." if i else "Normal.",
            labels={"Lung nodule": int(i > 0), "Emphysema": None},
        )
        | {"images": [tiny_volume(i)]}
        for i in range(num_studies)
    ]
    return model, collator(studies)


def test_the_loss_of_matching_pairs_is_that_of_clip():
    image, text = (F.normalize(torch.randn(3, 8), dim=-1) for _ in range(2))
    scale = torch.tensor(math.log(5.0))
    logits, target = 5.0 * image @ text.T, torch.arange(3)
    expected = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    torch.testing.assert_close(contrastive(image, text, torch.tensor([5, 6, 7]), scale), expected)


def test_two_studies_with_one_report_are_not_each_others_negatives():
    image = F.normalize(torch.randn(2, 8), dim=-1)
    text = image[:1].expand(2, -1)
    scale = torch.tensor(0.0)
    same, different = torch.tensor([1, 1]), torch.tensor([1, 2])
    lowest = math.log(2)  # equal texts cannot be told apart, and need not be
    torch.testing.assert_close(contrastive(text, text, same, scale), torch.tensor(lowest), atol=1e-6, rtol=0)
    assert contrastive(image, text, different, scale) > 0


def test_labels_that_are_all_known_are_numbers_the_loss_takes():
    """Python's whole numbers would make a tensor of integers."""
    model, collator = assemble_tower(SMALL)
    known = make_study(
        "study",
        corpus="phantom_ct",
        split="train",
        egress=True,
        findings="Normal.",
        labels=dict.fromkeys(FINDING_LABELS, 0),
    )
    batch = collator([known | {"images": [tiny_volume(i)]} for i in range(2)])
    assert batch["labels"].dtype == torch.float32
    assert torch.isfinite(model(**batch)["loss"])


def test_unknown_labels_give_no_gradient_and_known_ones_do():
    model, batch = make_batch()
    model(**batch)["loss"].backward()
    gradient = model.finding_bias.grad
    assert gradient[FINDING_LABELS.index("Lung nodule")] != 0
    assert gradient[FINDING_LABELS.index("Emphysema")] == 0


def test_every_trainable_parameter_moves_and_the_text_model_does_not():
    model, batch = make_batch()
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for _ in range(2):
        optimizer.zero_grad()
        model(**batch)["loss"].backward()
        optimizer.step()
    still = {name for name, value in model.state_dict().items() if torch.equal(value, before[name])}
    assert still == {name for name in before if name.startswith("text_model.")}


def test_the_loss_depends_on_the_volume():
    model, batch = make_batch()
    model.eval()
    loss = model(**batch)["loss"]
    other = model(**{**batch, "pixel_values": batch["pixel_values"].flip(0)})["loss"]
    assert not torch.isclose(loss, other)


@pytest.mark.parametrize("setting", ["contrastive_weight", "label_weight"])
def test_a_weight_of_zero_leaves_a_loss_out(setting):
    model, batch = make_batch()
    model.weights = (0.0, 1.0) if setting == "contrastive_weight" else (1.0, 0.0)
    out = model(**batch)
    kept = "label_loss" if setting == "contrastive_weight" else "contrastive_loss"
    torch.testing.assert_close(out["loss"], out[kept])


def test_the_saved_tower_starts_a_checkpoint(tmp_path):
    from hf_mu2.hub.assemble import load_vision_tower

    model, _ = make_batch(1)
    model.vision_tower.save_pretrained(tmp_path)
    fields, state, processor = load_vision_tower(tmp_path)
    assert fields["hidden_size"] == 32 and processor is None
    tower = Mu2VisionModel.from_pretrained(tmp_path)
    assert all(torch.equal(value, state[name]) for name, value in tower.state_dict().items())


def test_pretraining_goes_on_from_a_saved_tower_and_its_image_processor(tmp_path):
    model, collator = assemble_tower(SMALL)
    model.vision_tower.save_pretrained(tmp_path)
    collator.image_processor.save_pretrained(tmp_path)
    again, its = assemble_tower(
        TowerArguments(vision_tower=str(tmp_path), preset="tiny", image_processor={"windows": [[-900, 300]]})
    )
    assert again.vision_tower.config.hidden_size == 32
    for name, value in model.vision_tower.state_dict().items():
        torch.testing.assert_close(again.vision_tower.state_dict()[name], value)
    kept, replaced = collator.image_processor.to_dict(), its.image_processor.to_dict()
    assert replaced.pop("windows") == [[-900, 300]] != kept.pop("windows")
    assert replaced == kept


def test_a_tower_to_go_on_from_keeps_its_sizes(tmp_path):
    model, _ = assemble_tower(SMALL)
    model.vision_tower.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="Leave the sizes"):
        assemble_tower(
            TowerArguments(vision_tower=str(tmp_path), preset="tiny", vision_config={"hidden_size": 64})
        )
