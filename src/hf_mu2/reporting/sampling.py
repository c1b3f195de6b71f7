"""Sample several answers per conversation from one pass of the vision tower and one prefill.

Reads: a checkpoint, a prepared batch.
Writes: nothing.
"""

import math
from collections.abc import Mapping

import torch
from transformers import GenerationConfig

from hf_mu2.reporting.inference import Answer, Reader, read_answers


def sampling_config(
    reader: Reader, *, temperature: float = 1.0, top_p: float = 0.9, max_new_tokens: int = 512
) -> GenerationConfig:
    """Write the generation settings: nucleus sampling and nothing else, whatever the checkpoint's own settings say."""
    if not (temperature > 0 and math.isfinite(temperature) and 0 < top_p <= 1):
        raise ValueError(
            f"Sampling needs a temperature above 0 and `top_p` above 0 and at most 1, got {temperature} and {top_p}. "
            "The official code of mu2 samples at 1.0 and 0.9; greedy reports come from `hf-mu2 predict`."
        )
    own = reader.model.generation_config
    return GenerationConfig(
        do_sample=True,
        temperature=float(temperature),
        top_p=float(top_p),
        top_k=0,
        max_new_tokens=max_new_tokens,
        bos_token_id=own.bos_token_id,
        eos_token_id=own.eos_token_id,
        pad_token_id=reader.processor.tokenizer.pad_token_id,
    )


@torch.inference_mode()
def sample_candidates(
    reader: Reader, inputs: Mapping[str, torch.Tensor], num_candidates: int, config: GenerationConfig
) -> list[list[Answer]]:
    """Sample candidates for a left-padded batch of conversations, from the global generator.

    The volumes are encoded and the prompts run once; what the language model keeps of them is then repeated. The
    candidates are those of `generate` with `num_return_sequences`, up to rounding.

    Returns:
        `list[list[Answer]]`: `num_candidates` answers per conversation.
    """
    model = reader.model
    volumes = dict(inputs)
    input_ids, attention_mask = volumes.pop("input_ids"), volumes.pop("attention_mask")
    embeds, _ = model.model.embed_inputs(input_ids, **volumes)
    positions = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)
    # All but the last token, which `generate` runs for every candidate.
    prefix = model.model(
        inputs_embeds=embeds[:, :-1],
        attention_mask=attention_mask[:, :-1],
        position_ids=positions[:, :-1],
        use_cache=True,
    ).past_key_values
    prefix.batch_repeat_interleave(num_candidates)
    # Its penalties would apply where ours are silent.
    own, model.generation_config = model.generation_config, config
    try:
        generated = model.generate(
            input_ids=input_ids.repeat_interleave(num_candidates, dim=0),
            attention_mask=attention_mask.repeat_interleave(num_candidates, dim=0),
            past_key_values=prefix,
        )
    finally:
        model.generation_config = own
    answers = read_answers(model, reader.processor, generated[:, input_ids.shape[1] :])
    return [answers[start : start + num_candidates] for start in range(0, len(answers), num_candidates)]


def sample_seeded(
    reader: Reader,
    inputs: Mapping[str, torch.Tensor],
    num_candidates: int,
    config: GenerationConfig,
    seed: int,
) -> list[list[Answer]]:
    """Sample candidates from a seed, in a fork that leaves the global generator as it was."""
    device = reader.model.device
    devices = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(devices, device_type="cuda" if device.type == "cpu" else device.type):
        torch.manual_seed(seed)
        return sample_candidates(reader, inputs, num_candidates, config)
