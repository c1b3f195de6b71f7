"""One training step on study rows, as stock trainers take it: from the volume's file to moved weights."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from hf_mu2.data.views import sft_rows
from tests.tiny import tiny_model, tiny_processor


def take_training_step(studies: Sequence[Mapping[str, Any]], num_studies: int = 2) -> float:
    """Train a tiny model on the reports of the first studies; return the loss. Asserts that it learned."""
    model = tiny_model().train()
    processor = tiny_processor(model.config)
    conversations = []
    for study in [studies[index] for index in range(num_studies)]:
        (row,) = sft_rows(study)
        messages = processor.build_messages(*row["images"], question=row["prompt"][0]["content"])
        report = row["completion"][0]["content"][:100]  # the tiny model reads bytes
        conversations.append(
            [*messages, {"role": "assistant", "content": [{"type": "text", "text": report}]}]
        )
    batch = processor.apply_chat_template(
        conversations,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True},
    )
    assert batch["pixel_values"].shape[0] == num_studies and batch["pixel_values"].std() > 0.05
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = model(**batch, labels=batch["input_ids"]).loss
    loss.backward()
    optimizer.step()
    assert torch.isfinite(loss)
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    for part in ("vision_tower", "mu2_tokenizer", "language_model"):
        assert any(part in name for name in moved), part
    return loss.item()
