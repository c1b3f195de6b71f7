"""Load the language model of a checkpoint in 4 or 8 bits; what turns volumes into soft prompts keeps its precision.

    model = AutoModelForImageTextToText.from_pretrained(folder, quantization_config=quantization_config(4))

Needs `pip install bitsandbytes`.
"""

import torch
from transformers import BitsAndBytesConfig

# Patterns of module names, matched from their start, of `Mu2Model` with and without a head around it.
UNQUANTIZED = (r"(model\.)?vision_tower", r"(model\.)?mu2_tokenizer", "lm_head")


def quantization_config(bits: int, compute_dtype: torch.dtype = torch.bfloat16) -> BitsAndBytesConfig:
    """Describe how to load the language model in fewer bits.

    Args:
        bits (`int`): 4 (normal float, double quantization) or 8.
        compute_dtype (`torch.dtype`, *optional*, defaults to `torch.bfloat16`): What 4-bit weights are multiplied in.

    Raises:
        ValueError: for another number of bits.
    """
    if bits not in (4, 8):
        raise ValueError(
            f"The language model loads in 4 or 8 bits, got {bits}. For 16 pass `dtype=torch.bfloat16`."
        )
    return BitsAndBytesConfig(
        load_in_4bit=bits == 4,
        load_in_8bit=bits == 8,
        llm_int8_skip_modules=list(UNQUANTIZED),
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
    )


__all__ = ["UNQUANTIZED", "quantization_config"]
