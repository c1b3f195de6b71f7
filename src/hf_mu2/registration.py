"""Register mu2 with the Auto classes of transformers without importing its models.

The configurations are registered with the public calls. Model and processor classes would cost half as much again as
`import torch; from transformers import AutoModel`, so they are imported when an Auto class first asks for them: the
registered values of a `_LazyAutoMapping` live in its dictionary `_extra_content`, and ours resolves our entries.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from transformers import AutoConfig, AutoModel
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

from .model.configuration_mu2 import Mu2Config, Mu2TokenizerConfig, Mu2VisionConfig


class _Entries(dict):
    """A dictionary whose values may be loaders, called once, when the value is first read."""

    def __getitem__(self, key: Any) -> Any:
        value = super().__getitem__(key)
        if isinstance(value, _Loader):
            value = self[key] = value.load()
        return value

    def values(self):
        return [self[key] for key in self]

    def items(self):
        return [(key, self[key]) for key in self]


class _Loader:
    def __init__(self, load: Callable[[], Any]):
        self.load = load


def _class(module: str, name: str) -> _Loader:
    return _Loader(lambda: getattr(import_module(f".model.{module}", __package__), name))


def register() -> None:
    """Make `AutoConfig`, the `AutoModel` family, `AutoProcessor` and `AutoImageProcessor` know mu2."""
    for config in (Mu2Config, Mu2VisionConfig, Mu2TokenizerConfig):
        AutoConfig.register(config.model_type, config, exist_ok=True)

    generation = _class("modeling_mu2", "Mu2ForConditionalGeneration")
    image_processor = _Loader(
        lambda: {"pil": import_module(".model.image_processing_mu2", __package__).Mu2ImageProcessor}
    )
    entries = [
        (AutoModel._model_mapping, Mu2Config, _class("modeling_mu2", "Mu2Model")),
        (AutoModel._model_mapping, Mu2VisionConfig, _class("modeling_mu2_vision", "Mu2VisionModel")),
        (AutoModel._model_mapping, Mu2TokenizerConfig, _class("modeling_mu2_tokenizer", "Mu2Tokenizer")),
        (AutoModelForCausalLM._model_mapping, Mu2Config, generation),
        (AutoModelForImageTextToText._model_mapping, Mu2Config, generation),
        (AutoModelForMultimodalLM._model_mapping, Mu2Config, generation),
        (PROCESSOR_MAPPING, Mu2Config, _class("processing_mu2", "Mu2Processor")),
        (IMAGE_PROCESSOR_MAPPING, Mu2Config, image_processor),
    ]
    for mapping, config, loader in entries:
        if not isinstance(mapping._extra_content, _Entries):
            mapping._extra_content = _Entries(mapping._extra_content)
        mapping.register(config, loader, exist_ok=True)


__all__ = ["register"]
