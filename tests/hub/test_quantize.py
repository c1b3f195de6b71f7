"""Quantized loading: the language model, and nothing else."""

import pytest
import torch
from torch import nn
from transformers import AutoModelForImageTextToText
from transformers.quantizers.quantizers_utils import should_convert_module

from hf_mu2.hub.quantize import quantization_config
from tests.tiny import make_tiny_checkpoint, tiny_model, tiny_processor, tiny_volume


@pytest.mark.parametrize("bits", [4, 8])
def test_only_linear_layers_of_the_language_model_are_converted(bits):
    patterns = quantization_config(bits).llm_int8_skip_modules
    whole = tiny_model()
    for model in (whole, whole.model):
        linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
        assert linear
        for name in linear:
            assert should_convert_module(name, patterns) == ("language_model." in name), name


def test_other_numbers_of_bits_are_refused():
    with pytest.raises(ValueError, match="4 or 8 bits"):
        quantization_config(16)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantized_checkpoint_stays_close(tmp_path, bits):
    pytest.importorskip("bitsandbytes")
    make_tiny_checkpoint(tmp_path, text_config={"intermediate_size": 128})  # 4-bit blocks are 64 wide
    model = AutoModelForImageTextToText.from_pretrained(
        tmp_path, quantization_config=quantization_config(bits, torch.float32), dtype=torch.float32
    )
    full = AutoModelForImageTextToText.from_pretrained(tmp_path)
    processor = tiny_processor()
    batch = processor.apply_chat_template(
        [processor.build_messages(tiny_volume())],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    with torch.inference_mode():
        features = model.model.embed_inputs(**without_mask(batch))[1].cpu()
        torch.testing.assert_close(features, full.model.embed_inputs(**without_mask(batch))[1])
        logits, expected = model(**batch).logits.cpu().float(), full(**batch).logits
    assert (logits - expected).abs().max() < 0.25 * expected.abs().max()
    model.generate(**batch, max_new_tokens=2)


def without_mask(batch):
    return {name: value for name, value in batch.items() if name != "attention_mask"}
