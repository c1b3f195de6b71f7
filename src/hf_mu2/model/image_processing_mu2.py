"""CT volumes to `pixel_values`: RAS order, spacing in mm, HU window, crop or pad, frames of K slices."""

import math
import zlib
from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
import torch
from transformers import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor

from .features_mu2 import is_features, parse_features, stack_features
from .official_transform_mu2 import official_frames
from .prepared_mu2 import is_prepared
from .resample_mu2 import Grid, plan_grid, resample
from .volume_mu2 import Volume, VolumeError, guess_body_region, load_volume, preparation_key

MAX_ROTATION_DEGREES = 7.0
MAX_HU_SHIFT = 15.0
MAX_NOISE_HU = 15.0


class Mu2ImageProcessorKwargs(TypedDict, total=False):
    """Fields of [`Mu2ImageProcessor`], saved with it; each may be overridden in a call."""

    mode: str
    spacing: Sequence[float]
    size: dict[str, int]
    num_slices: int
    patch_depth: int
    max_frames: int
    intensity: str
    windows: Sequence[Sequence[float]]
    antialias: bool
    array_spacing: Sequence[float] | None


class Mu2ImageProcessor(BaseImageProcessor):
    """Turn CT volumes into frames.

    Args:
        mode (`str`, defaults to `"default"`): `"official"` reproduces the published preprocessing for converted
            weights: spacing, orientation and `intensity` are ignored and every frame counts as anatomy.
        spacing (`Sequence[float]`, defaults to `(2.0, 1.5, 1.5)`): Target spacing (z, y, x) in mm.
        size (`dict`, defaults to `{"height": 256, "width": 256}`): In-plane voxels; cropped or padded, never squeezed.
        num_slices (`int`, defaults to 32): Slices K per frame.
        patch_depth (`int`, defaults to 4): Slices per slab of the vision tower, the unit of the mask.
        max_frames (`int`, defaults to 8): A volume that needs more is resampled in z to fit.
        intensity (`str`, defaults to `"window"`): `"window"` maps each of `windows` to [0, 1]; `"percentile"` maps the
            volume's percentiles 0.5 and 99.5, `"minmax"` its extremes.
        windows (`Sequence`, defaults to `((-1000, 1000),)`): (low, high) in HU, one channel each.
        antialias (`bool`, defaults to `True`): Triangle filter along axes that get coarser, else plain trilinear. It
            averages what would be skipped: less noise, and the same anatomy from thin and thick reconstructions.
        array_spacing (`Sequence[float]`, *optional*): Spacing (z, y, x) of bare arrays, which carry none. They are
            refused without; prefer `load_volume(array, spacing=...)`.
    """

    model_input_names = ["pixel_values", "pixel_attention_mask"]
    valid_kwargs = Mu2ImageProcessorKwargs

    mode = "default"
    spacing = (2.0, 1.5, 1.5)
    size = {"height": 256, "width": 256}
    num_slices = 32
    patch_depth = 4
    max_frames = 8
    intensity = "window"
    windows = ((-1000.0, 1000.0),)
    antialias = True
    array_spacing = None

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self._set_attributes(**kwargs)
        self._validate()

    def _validate(self) -> None:
        if self.mode not in ("default", "official"):
            raise ValueError(f'`mode` is "default" or "official", got {self.mode!r}.')
        if self.intensity not in ("window", "percentile", "minmax"):
            raise ValueError(f'`intensity` is "window", "percentile" or "minmax", got {self.intensity!r}.')
        if len(self.spacing) != 3 or min(self.spacing) <= 0:
            raise ValueError(f"`spacing` is (z, y, x) in mm, three positive numbers, got {self.spacing}.")
        if self.num_slices % self.patch_depth:
            raise ValueError(
                f"`num_slices` must be a multiple of `patch_depth`, got {self.num_slices} and {self.patch_depth}."
            )
        if not self.windows or any(len(window) != 2 or window[0] >= window[1] for window in self.windows):
            raise ValueError(f"`windows` is a list of (low, high) in HU with low < high, got {self.windows}.")
        if self.intensity != "window" and len(self.windows) > 1:
            raise ValueError(
                f"`intensity={self.intensity!r}` gives one channel, got {len(self.windows)} `windows`."
            )
        if self.mode == "official" and self.size.height != self.size.width:
            raise ValueError(f"`mode='official'` needs a square `size`, got {dict(self.size)}.")

    @property
    def num_channels(self) -> int:
        """Channels C of `pixel_values` per slice: one per window."""
        return len(self.windows)

    @property
    def preparation(self) -> dict[str, Any]:
        """The settings that a prepared volume depends on; windows, frames and augmentation come after."""
        return {
            "spacing": [float(mm) for mm in self.spacing],
            "size": [int(self.size.height), int(self.size.width)],
            "max_slices": int(self.max_frames * self.num_slices),
            "antialias": bool(self.antialias),
        }

    @property
    def pixel_settings(self) -> dict[str, Any]:
        """All settings that `pixel_values` of a file depend on, and so what a vision tower makes of them."""
        return self.preparation | {
            "mode": self.mode,
            "num_slices": int(self.num_slices),
            "patch_depth": int(self.patch_depth),
            "max_frames": int(self.max_frames),
            "intensity": self.intensity,
            "windows": [[float(edge) for edge in window] for window in self.windows],
        }

    def fetch_images(self, image_url_or_urls: Any) -> Any:
        """Return volumes as they came: they are opened here, not by Pillow."""
        return image_url_or_urls

    def load(self, source: Any) -> Volume:
        """Load any source of `load_volume` the way this processor needs it."""
        is_array = isinstance(source, (np.ndarray, torch.Tensor))
        return load_volume(
            source, spacing=self.array_spacing if is_array else None, clamp=self.mode != "official"
        )

    def grid(self, volume: Volume) -> Grid:
        """Lay the grid of the default mode over a volume, without resampling; a prepared volume lies on it already."""
        if "prepared" in volume.provenance:
            self._check_prepared(volume)
            return Grid((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), volume.array.shape)
        return plan_grid(
            volume, self.spacing, (self.size.height, self.size.width), self.max_frames * self.num_slices
        )

    def resample(self, source: Any) -> tuple[np.ndarray, np.ndarray]:
        """Resample one volume: HU (depth, height, width) before windows and frames, and its affine to RAS mm.

        The affine maps grid indices (x, y, z) = (width, height, depth), so what is computed on the grid can be saved as
        NIfTI (transposed to x, y, z) or brought back to the original voxels.
        """
        if self.mode == "official":
            raise ValueError(
                "`resample` gives HU, `mode='official'` has none. Use a processor in default mode."
            )
        volume = self.load(source)
        grid = self.grid(volume)
        return self._resample(volume, grid), grid.affine(volume)

    def prepare(self, source: Any, form: str = "tensors") -> tuple[np.ndarray, dict[str, Any]]:
        """Bring one volume into a form that is quick to read later.

        Args:
            source: Any source of `load_volume`.
            form (`str`): `"tensors"` is HU on this processor's grid, int16: off by at most 0.5 HU. `"whole"` keeps the
                whole field of view at this processor's spacing, HU as float32.

        Returns:
            The HU (depth, height, width), and `affine`, `spacing` and `provenance` as JSON can hold them.
        """
        if self.mode == "official":
            raise ValueError(
                "Volumes are prepared as HU on a grid, `mode='official'` scales and pads each by its own values. Use a "
                "processor in default mode, or train on the volumes themselves."
            )
        volume = self.load(source)
        if form == "whole":
            shape = [
                max(1, round(n * own / mm))
                for n, own, mm in zip(volume.array.shape, volume.spacing, self.spacing)
            ]
            step = [mm / own for own, mm in zip(volume.spacing, self.spacing)]
            start = [(n - 1) / 2 - s * (m - 1) / 2 for n, s, m in zip(volume.array.shape, step, shape)]
            grid = Grid(tuple(start), tuple(step), tuple(shape))
        else:
            grid = self.grid(volume)
        hu = self._resample(volume, grid)
        if form == "tensors":
            hu = np.clip(np.rint(hu, out=hu), -32768, 32767, out=hu).astype(np.int16)
        spacing = [step * mm for step, mm in zip(grid.step, volume.spacing)]
        facts = {"affine": grid.affine(volume).tolist(), "spacing": spacing, "provenance": volume.provenance}
        return hu, facts

    def preprocess(
        self,
        images: Any,
        return_tensors: str | None = None,
        *,
        augment: bool = False,
        seed: int = 0,
        epoch: int = 0,
        study_ids: Sequence[int | str] | None = None,
        return_provenance: bool = False,
        **overrides: Any,
    ) -> BatchFeature:
        """Preprocess volumes into one batch.

        Args:
            images: One source of `load_volume`, a list, or nested lists (flattened in order). An object that appears
                twice is processed once, under augmentation once per study id. Or references to cached features.
            return_tensors (`str`, *optional*): `"pt"` or `"np"`; numpy arrays by default.
            augment (`bool`): Add noise, a HU shift and a small in-plane rotation; never a flip. Training only.
            seed, epoch (`int`), study_ids (`Sequence`, *optional*): What the augmentation is drawn from, one id per
                volume; the position in the batch stands in for missing ids.
            return_provenance (`bool`): Add `provenance`, one dict per volume: source, what was done, body region, and
                the grid with its affine.
            overrides: Any field of the processor, for this call.

        Returns:
            `BatchFeature`: `pixel_values` (batch, frames, channels * slices, height, width), channel-major, and
            `pixel_attention_mask` (batch, frames, slices / patch_depth), True where a slab holds anatomy. Shorter
            volumes are padded with zeros. Cached features give `vision_hidden_states` (batch, frames, patches, width)
            in place of `pixel_values`.
        """
        if overrides:
            return self._with(overrides).preprocess(
                images,
                return_tensors,
                augment=augment,
                seed=seed,
                epoch=epoch,
                study_ids=study_ids,
                return_provenance=return_provenance,
            )
        sources = _flatten(images)
        if not sources:
            raise ValueError(
                "`images` holds no volume. Pass at least one, or no `images` at all for text alone."
            )
        if study_ids is not None and len(study_ids) != len(sources):
            raise ValueError(
                f"`study_ids` names one study per volume, got {len(study_ids)} for {len(sources)}."
            )
        if any(map(is_features, sources)):
            if augment:
                raise ValueError(
                    "Cached features were made without augmentation: `augment` must be False for them, got True. Train "
                    "on the volumes, or without augmentation."
                )
            slabs = self.num_slices // self.patch_depth
            stacked = stack_features(sources, self.pixel_settings, slabs)
            if return_tensors != "pt":  # numpy has no bfloat16
                stacked = {
                    name: value.float().numpy() if value.is_floating_point() else value.numpy()
                    for name, value in stacked.items()
                }
            features = BatchFeature(stacked)
            if return_provenance:
                features["provenance"] = [parse_features(source) for source in sources]
            return features
        keys = [source if isinstance(source, str) else id(source) for source in sources]
        batch = None
        # One volume, or prepared ones, are loaded at once and written straight into the batch.
        if len(set(keys)) == 1 or all(map(is_prepared, sources)):
            loaded = {key: self.load(source) for key, source in dict(zip(keys, sources)).items()}
            sources = [loaded[key] for key in keys]
            batch = self._allocate(len(sources), max(map(self._num_frames, loaded.values())))
        first: dict[Any, int] = {}
        rows: list[tuple[np.ndarray, np.ndarray, dict]] = []
        for index, source in enumerate(sources):
            study = index if study_ids is None else study_ids[index]
            key = keys[index], study if augment else None
            if key not in first:
                first[key] = index
                rng = np.random.default_rng([seed, epoch, _number(study)]) if augment else None
                out = None if batch is None else batch.numpy()[index]
                rows.append(self._process(self.load(source), rng, return_provenance, out))
            else:
                rows.append(rows[first[key]])
                if batch is not None:
                    batch[index] = batch[first[key]]
        if batch is None:
            batch = self._allocate(len(rows), max(len(pixels) for pixels, _, _ in rows))
            _stack([pixels for pixels, _, _ in rows], out=batch.numpy())
        mask = np.zeros((*batch.shape[:2], self.num_slices // self.patch_depth), bool)
        features = BatchFeature(
            {
                "pixel_values": batch if return_tensors == "pt" else batch.numpy(),
                "pixel_attention_mask": _stack([row[1] for row in rows], out=mask),
            },
            tensor_type=return_tensors,
        )
        if return_provenance:
            features["provenance"] = [row[2] for row in rows]
        return features

    def _with(self, overrides: dict[str, Any]) -> "Mu2ImageProcessor":
        names = self.valid_kwargs.__annotations__
        unknown = sorted(set(overrides) - set(names))
        if unknown:
            raise TypeError(
                f"Unknown option {', '.join(unknown)}. The image processor takes {', '.join(names)}."
            )
        return type(self)(**{name: overrides.get(name, getattr(self, name)) for name in names})

    def _num_frames(self, volume: Volume) -> int:
        if self.mode == "official":
            return self.max_frames
        return math.ceil(self.grid(volume).shape[0] / self.num_slices)

    def _allocate(self, num_rows: int, num_frames: int) -> torch.Tensor:
        """Return memory for a batch; in a `DataLoader` worker memory that the training process sees without a copy."""
        shape = (num_rows, num_frames, self.num_channels * self.num_slices, self.size.height, self.size.width)
        if torch.utils.data.get_worker_info() is None:
            return torch.empty(shape)
        shared = torch.UntypedStorage._new_shared(4 * math.prod(shape))  # as torch's own collator
        return torch.empty(0).set_(shared, 0, shape)

    def _process(
        self, volume: Volume, rng: np.random.Generator | None, with_provenance: bool, out: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray, dict]:
        """Return the frames, the slab mask and the provenance of one volume; the frames in `out` if there is one."""
        provenance = {**volume.provenance, "mode": self.mode}
        num_slices, slabs = self.num_slices, self.num_slices // self.patch_depth
        if self.mode == "official":
            self._check_prepared(volume)
            pixels, affine = official_frames(volume, self.size.height, self.max_frames, num_slices)
            pixels = pixels if out is None else _stack([pixels], out=out[None])[0]
            mask = np.ones((self.max_frames, slabs), bool)  # the published model knows no padding
            depth = self.max_frames * num_slices
        else:
            grid = self.grid(volume)
            depth, affine = grid.shape[0], grid.affine(volume)
            num_frames, plane = math.ceil(depth / num_slices), grid.shape[1:]
            if out is None:
                out = np.empty((num_frames, self.num_channels * num_slices, *plane), np.float32)
            pixels, out[num_frames:] = out[:num_frames], 0
            source = volume.array  # prepared HU are windowed straight from the file
            if rng is not None or "prepared" not in volume.provenance:
                in_place = pixels.reshape(-1, *plane)[:depth] if self.num_channels == 1 else None
                source = self._resample(volume, grid, out=in_place)
            if rng is not None:
                provenance["augmentation"] = _augment(source, self.spacing, rng)
            windows = self._windows(source)
            for number, frame in enumerate(pixels.reshape(num_frames, self.num_channels, num_slices, *plane)):
                hu = source[number * num_slices : (number + 1) * num_slices]
                for window, channel in zip(windows, frame):
                    _apply_window(hu, *window, out=channel[: len(hu)])
                    channel[len(hu) :] = 0
            mask = (np.arange(num_frames * slabs) * self.patch_depth < depth).reshape(num_frames, slabs)
            provenance["windows_hu"] = [[round(float(edge), 2) for edge in window] for window in windows]
        if with_provenance:
            provenance["body_region"] = guess_body_region(volume)
            provenance["grid"] = {
                "shape": [depth, self.size.height, self.size.width],
                "spacing_mm": [round(float(mm), 4) for mm in np.linalg.norm(affine[:3, :3], axis=0)[::-1]],
                "affine": affine.tolist(),
            }
        return pixels, mask, provenance

    def _resample(self, volume: Volume, grid: Grid, out: np.ndarray | None = None) -> np.ndarray:
        if "prepared" not in volume.provenance:
            return resample(volume.array, grid, self.antialias, out=out)
        out = np.empty(grid.shape, np.float32) if out is None else out
        np.copyto(out, volume.array)
        return out

    def _check_prepared(self, volume: Volume) -> None:
        """Refuse a volume that was prepared for a processor with other settings."""
        if "prepared" not in volume.provenance:
            return
        if self.mode == "official":
            raise VolumeError(
                "A prepared volume holds HU on a grid, `mode='official'` reads volumes as they were scanned. Pass the "
                "volumes themselves."
            )
        own, its = self.preparation, volume.provenance["preparation"]
        if volume.provenance["prepared"] != preparation_key(own):
            differ = [
                f"{name} {its.get(name)}, not {own.get(name)}"
                for name in {**own, **its}
                if its.get(name) != own.get(name)
            ]
            raise VolumeError(
                f"A prepared volume must come from this processor's settings, it was made with {'; '.join(differ)}. "
                "Prepare the volumes again with `hf-mu2 data prepare`, or load the processor they were prepared with."
            )

    def _windows(self, hu: np.ndarray) -> list[tuple[float, float]]:
        if self.intensity == "window":
            return [(float(low), float(high)) for low, high in self.windows]
        low, high = np.percentile(hu, (0.5, 99.5)) if self.intensity == "percentile" else (hu.min(), hu.max())
        return [(float(low), float(max(high, low + 1)))]


def _flatten(images: Any) -> list[Any]:
    if isinstance(images, (list, tuple)):
        return [source for item in images for source in _flatten(item)]
    return [images]


def _number(study: int | str) -> int:
    return study if isinstance(study, int) else zlib.crc32(str(study).encode())


def _stack(rows: list[np.ndarray], out: np.ndarray) -> np.ndarray:
    """Copy rows into `out`, zeros behind the shorter ones."""
    for target, row in zip(out, rows):
        target[: len(row)], target[len(row) :] = row, 0
    return out


def _apply_window(hu: np.ndarray, low: float, high: float, out: np.ndarray) -> None:
    """Map [low, high] to [0, 1], a few slices at a time so that they stay in cache."""
    if hu.dtype == np.int16 and low == int(low) and high == int(high) and max(abs(low), abs(high)) <= 16000:
        _apply_window_int16(hu, int(low), int(high), out)
        return
    for first in range(0, len(hu), 16):
        piece = slice(first, first + 16)
        np.subtract(hu[piece], np.float32(low), out=out[piece])
        np.multiply(out[piece], np.float32(1 / (high - low)), out=out[piece])
        np.clip(out[piece], 0, 1, out=out[piece])


def _apply_window_int16(hu: np.ndarray, low: int, high: int, out: np.ndarray) -> None:
    """Do the same with 16-bit arithmetic until the last step: half the time, equal values."""
    clipped = np.empty(hu.shape[1:], np.int16)
    for stored, pixels in zip(hu, out):
        np.clip(stored, low, high, out=clipped)
        np.subtract(clipped, np.int16(low), out=clipped)
        np.copyto(pixels, clipped)
        np.multiply(pixels, np.float32(1 / (high - low)), out=pixels)


def _augment(hu: np.ndarray, spacing: Sequence[float], rng: np.random.Generator) -> dict[str, float]:
    """Rotate in plane, shift and add noise, in place on our own grid.

    What turns in from outside is air of -1024 HU, shifted and noisy as the rest; nothing falls below -1024 HU.
    """
    degrees = rng.uniform(-MAX_ROTATION_DEGREES, MAX_ROTATION_DEGREES)
    shift = rng.uniform(-MAX_HU_SHIFT, MAX_HU_SHIFT)
    noise = rng.uniform(0, MAX_NOISE_HU)
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    aspect = (
        hu.shape[1] * spacing[1] / (hu.shape[2] * spacing[2])
    )  # grid_sample counts in half sizes, we turn in mm
    theta = torch.tensor([[[cos, -sin * aspect, 0], [sin / aspect, cos, 0]]], dtype=torch.float32)
    where = torch.nn.functional.affine_grid(theta, [1, 1, *hu.shape[1:]], align_corners=False)
    above_air = torch.from_numpy(hu)[None] + 1024
    turned = torch.nn.functional.grid_sample(above_air, where, align_corners=False)[0].numpy()
    np.add(turned, np.float32(shift - 1024), out=hu)
    hu += np.float32(noise) * rng.standard_normal(hu.shape, np.float32)
    np.maximum(hu, -1024, out=hu)
    return {"rotation_degrees": round(degrees, 3), "hu_shift": round(shift, 3), "noise_hu": round(noise, 3)}


# Every `save_pretrained` of a processor then writes the code beside it.
Mu2ImageProcessor.register_for_auto_class()

__all__ = ["Mu2ImageProcessor"]
