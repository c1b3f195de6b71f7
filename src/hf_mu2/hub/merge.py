"""Merge an adapter and its base into one checkpoint.

Reads: the folder or Hub id of a PEFT adapter, whose configuration names the base.
Writes: a checkpoint that loads without PEFT, with processor and code.
"""

from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

from hf_mu2.files import check_new_folder, new_folder
from hf_mu2.model.modeling_mu2 import Mu2ForConditionalGeneration

from .assemble import save_checkpoint


def merge(adapter: str | Path, output: str | Path, *, base: str | Path | None = None) -> dict[str, Any]:
    """Merge an adapter into its base and save the whole as one checkpoint.

    Modules that the adapter carries whole (mu2's tokenizer, the vision tower) replace those of the base.

    Args:
        adapter (`str` or `Path`): Folder or Hub id of the adapter.
        output (`str` or `Path`): Folder to write; must not exist or be empty.
        base (`str` or `Path`, *optional*): Checkpoint to merge into, in place of the one the adapter names.

    Returns:
        `dict`: `checkpoint`, `adapter`, `base`.

    Raises:
        ValueError: if `adapter` is not one, or its base is not found.
        ImportError: if PEFT is not installed.
    """
    try:
        from peft import PeftConfig, PeftModel
    except ImportError as error:
        raise ImportError('Merging needs PEFT: pip install "hf_mu2[train]"') from error
    output = Path(output)
    check_new_folder(output)
    try:
        config = PeftConfig.from_pretrained(str(adapter))
    except ValueError as error:
        raise ValueError(
            f"An adapter is a folder or Hub id with `adapter_config.json`, `{adapter}` has none. "
            "Pass the output of a run with `use_peft: true`; a whole checkpoint needs no merging."
        ) from error
    base = str(base or config.base_model_name_or_path)
    try:
        model = AutoModelForImageTextToText.from_pretrained(base)
    except ValueError:  # text alone
        model = AutoModelForCausalLM.from_pretrained(base)
    merged = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    with new_folder(output) as partial:
        if isinstance(merged, Mu2ForConditionalGeneration):
            save_checkpoint(merged, AutoProcessor.from_pretrained(str(adapter)), partial)
        else:
            merged.save_pretrained(partial)
            AutoTokenizer.from_pretrained(str(adapter)).save_pretrained(partial)
    return {"checkpoint": str(output), "adapter": str(adapter), "base": base}
