"""Register our classes with the Auto classes of transformers without importing models.

The configurations are registered with the public calls. Importing the model and processor classes would cost half as
much again as `import torch; from transformers import AutoModel`, so both wait: a registered class is imported when an
Auto class first asks for it (the registered values of a `_LazyAutoMapping` live in its dictionary `_extra_content`, and
ours resolves our entries), and the processor mappings, which are expensive modules themselves, are filled when they are
imported.
"""

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
)

from .model.configuration_mu2 import Mu2Config, Mu2TokenizerConfig, Mu2VisionConfig


class _Loader:
    """A value that is imported when it is first read."""

    def __init__(self, load: Callable[[], Any]):
        self.load = load


class _Entries(dict[Any, Any]):
    def __getitem__(self, key: Any) -> Any:
        value = super().__getitem__(key)
        if isinstance(value, _Loader):
            value = self[key] = value.load()
        return value

    def values(self) -> list[Any]:  # type: ignore[override]
        return [self[key] for key in self]

    def items(self) -> list[tuple[Any, Any]]:  # type: ignore[override]
        return [(key, self[key]) for key in self]


class _AfterImport:
    """An import hook that calls a function once the module of that name has run."""

    def __init__(self, name: str, call: Callable[[ModuleType], None]):
        self.name, self.call = name, call

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != self.name:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_call(module: ModuleType) -> None:
                execute(module)
                self.call(module)

            spec.loader.exec_module = execute_and_call  # type: ignore[method-assign]
        return spec


def _after_import(name: str, call: Callable[[ModuleType], None]) -> None:
    if name in sys.modules:
        call(sys.modules[name])
    else:
        sys.meta_path.insert(0, _AfterImport(name, call))


class SliceVideo:
    """The key of the processor that shows volumes to Qwen-VL models, which have a configuration of their own.

    Checkpoints name their processor's class; the Auto classes look that name up among what is registered.
    """


def _own(module: str, name: str, folder: str = "model") -> Any:
    return getattr(import_module(f".{folder}.{module}", __package__), name)


def _add(mapping: Any, config: type, load: Callable[[], Any]) -> None:
    if not isinstance(mapping._extra_content, _Entries):
        mapping._extra_content = _Entries(mapping._extra_content)
    mapping.register(config, _Loader(load), exist_ok=True)


def register() -> None:
    """Make `AutoConfig`, the `AutoModel` family, `AutoProcessor` and `AutoImageProcessor` know mu2."""
    for config in (Mu2Config, Mu2VisionConfig, Mu2TokenizerConfig):
        AutoConfig.register(config.model_type, config, exist_ok=True)

    models = AutoModel._model_mapping
    _add(models, Mu2Config, lambda: _own("modeling_mu2", "Mu2Model"))
    _add(models, Mu2VisionConfig, lambda: _own("modeling_mu2_vision", "Mu2VisionModel"))
    _add(models, Mu2TokenizerConfig, lambda: _own("modeling_mu2_tokenizer", "Mu2Tokenizer"))
    for auto_class in (AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM):
        _add(
            auto_class._model_mapping, Mu2Config, lambda: _own("modeling_mu2", "Mu2ForConditionalGeneration")
        )

    auto = "transformers.models.auto"
    _after_import(f"{auto}.processing_auto", lambda module: _add_processors(module.PROCESSOR_MAPPING))
    _after_import(
        f"{auto}.image_processing_auto", lambda module: _add_image_processors(module.IMAGE_PROCESSOR_MAPPING)
    )


def _add_processors(mapping: Any) -> None:
    _add(mapping, Mu2Config, lambda: _own("processing_mu2", "Mu2Processor"))
    _add(mapping, SliceVideo, lambda: _own("slices_video", "SliceVideoProcessor", "training"))


def _add_image_processors(mapping: Any) -> None:
    _add(mapping, Mu2Config, lambda: {"pil": _own("image_processing_mu2", "Mu2ImageProcessor")})
    _add(mapping, SliceVideo, lambda: {"pil": _own("slices_image", "SliceImageProcessor", "training")})


__all__ = ["register"]
