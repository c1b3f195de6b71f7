"""Read a CT volume from a NIfTI, a DICOM series or an array into Hounsfield units, canonical RAS order and mm."""

import io
import math
import sys
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from .prepared_mu2 import (
    is_prepared,
    preparation_key,
    prepared_reference,
    read_prepared,
    shard_metadata,
)
from .volume_checks_mu2 import (
    MAX_VOXELS,
    OutOfDomainWarning,
    Stored,
    VolumeError,
    canonical_hu,
    refuse_shape,
)
from .volume_reference_mu2 import VolumeReference, parse_reference, volume_reference

try:  # half the time of zlib, same interface
    from isal import isal_zlib as inflate
except ImportError:
    import zlib as inflate

__all__ = [
    "OutOfDomainWarning",
    "Volume",
    "VolumeError",
    "guess_body_region",
    "load_volume",
    "preparation_key",
    "prepared_reference",
    "shard_metadata",
    "source_path",
    "volume_reference",
]

_GZIP, _ZIP, _LFS = b"\x1f\x8b", b"PK\x03\x04", b"version https://git-lfs"
_PICTURES = {b"\x89PNG": "PNG", b"\xff\xd8\xff": "JPEG", b"GIF8": "GIF", b"II*\0": "TIFF", b"MM\0*": "TIFF"}


@dataclass(frozen=True, eq=False)
class Volume:
    """A CT volume in canonical RAS order.

    Args:
        array (`np.ndarray` of shape `(depth, height, width)`): HU, int16 where the stored rescale is integral, float32
            otherwise. Depth runs inferior to superior, height posterior to anterior, width left to right. May be a
            view with negative strides: `np.ascontiguousarray` it before `torch.from_numpy`.
        affine (`np.ndarray` of shape `(4, 4)`): Maps voxel indices (x, y, z) = (width, height, depth) to RAS mm.
        spacing (`tuple`): Millimetres per voxel along (depth, height, width).
        provenance (`dict`): JSON-able facts about the source and what was done to it. Never patient data.
    """

    array: np.ndarray
    affine: np.ndarray
    spacing: tuple[float, float, float]
    provenance: dict[str, Any] = field(default_factory=dict)


def load_volume(
    source: Any,
    *,
    spacing: Sequence[float] | None = None,
    orientation: str | None = None,
    series: int | str | None = None,
    channel: int | None = None,
    clamp: bool = True,
    check_hu: bool = True,
    max_voxels: int = MAX_VOXELS,
) -> Volume:
    """Load one CT volume.

    Args:
        source: A NIfTI (`.nii`, `.nii.gz`) as path, bytes, nibabel image or the `{"bytes", "path"}` of
            `datasets.Nifti`; a DICOM folder, file or zip; an array or tensor (depth, height, width) in HU; a PIL image
            (one slice, 8-bit grey mapped to -1000..1000 HU, for probes); a reference of [`volume_reference`] or to a
            prepared volume; or a [`Volume`], returned as it is. Relative paths are relative to the working directory.
        spacing (`Sequence[float]`, *optional*): Millimetres along (depth, height, width) in canonical order. Needed
            for arrays and for files with a blank header; corrects the header otherwise.
        orientation (`str`, *optional*): Where the stored axes (x, y, z) = (width, height, depth) point, e.g. `"LPS"`.
            Only for arrays and blank headers, which are taken as `"RAS"` otherwise.
        series (`int` or `str`, *optional*): Series number, UID or description, for DICOM sources with several.
        channel (`int`, *optional*): Which volume of a 4-D source.
        clamp (`bool`): Raise scanner padding to -1024 HU.
        check_hu (`bool`): Refuse values that cannot be HU. Turn off only for values you know.
        max_voxels (`int`): Refuse larger volumes before any memory is taken.

    What a reference says holds where the caller gives no other `spacing`, `orientation`, `series` or `channel`.

    Raises:
        VolumeError: if the source cannot be read as one CT volume: nothing there, damaged, 2-D or several volumes, not
            in HU, without spacing, or a DICOM series that is incomplete, mixed or tilted. A `ValueError`.
        ImportError: if nibabel or pydicom is missing.
    """
    if isinstance(source, Volume):
        return source
    if is_prepared(source):
        if (spacing, orientation, series, channel) != (None, None, None, None):
            raise VolumeError(
                "A prepared volume lies on its grid already: it takes no `spacing`, `orientation`, `series` or "
                "`channel`. Give them when preparing, in a volume reference."
            )
        prepared = read_prepared(source)
        return Volume(prepared.array, prepared.affine, prepared.spacing, prepared.provenance)
    reference = parse_reference(source)
    if reference is None:
        stored = _read(source, series, channel, max_voxels)
    else:
        stored = _read_reference(reference, series, channel, max_voxels)
        spacing = reference.spacing if spacing is None else spacing
        orientation = reference.orientation if orientation is None else orientation
    is_picture = stored.kind == "picture"
    if is_picture and spacing is None:
        spacing = (1.0, 1.0, 1.0)
    if stored.kind in ("array", "picture") and orientation is None:
        orientation = "RAS" if stored.kind == "array" else "LPS"
    return Volume(*canonical_hu(stored, spacing, orientation, clamp, check_hu and not is_picture))


def guess_body_region(volume: Volume) -> str:
    """Guess "chest", "abdomen", "head" or "unknown" from the share of lung in the body, slice by slice.

    Air in the body is what lies between tissue both along its row and along its column. Works on a grid of about 6 mm
    in a few milliseconds: a guess for warnings, not a segmentation.
    """
    steps = [max(1, round(6.0 / mm)) for mm in volume.spacing]
    grid = volume.array[:: steps[0], :: steps[1], :: steps[2]]
    tissue = grid > -300
    inside = _between(tissue, axis=1) & _between(tissue, axis=2)
    area = np.maximum(inside.sum((1, 2)), 1)
    area_cm2 = area * math.prod(steps[1:]) * math.prod(volume.spacing[1:]) / 100
    body = area_cm2 > 50  # a neck has about 80 cm2
    if not body.any():
        return "unknown"
    slice_mm = steps[0] * volume.spacing[0]
    lung = (inside & (grid < -500)).sum((1, 2)) / area
    bone = (inside & (grid > 300)).sum((1, 2)) / area
    # Lung bases reach into abdomen volumes: 56 and 75 mm above .25 in the sample volumes, 120 to 190 mm in chests.
    lung_mm = slice_mm * (lung[body] > 0.25).sum()
    if lung_mm >= 90 or lung_mm >= 0.5 * slice_mm * body.sum():
        return "chest"
    if np.median(area_cm2[body]) < 350 and np.median(bone[body]) > 0.08:
        return "head"
    return "abdomen" if np.median(area_cm2[body]) > 300 else "unknown"


def _between(mask: np.ndarray, axis: int) -> np.ndarray:
    """Mark what lies between the first and the last true element along one axis."""
    after = np.logical_or.accumulate(mask, axis)
    before = np.flip(np.logical_or.accumulate(np.flip(mask, axis), axis), axis)
    return after & before


def _read(source: Any, series: int | str | None, channel: int | None, max_voxels: int) -> Stored:
    """Tell what a source is and read it."""
    name = "bytes"
    if isinstance(source, dict):
        content, path = source.get("bytes"), source.get("path")
        if content is None and path is None:
            raise VolumeError(
                f"A volume dict holds `bytes` or `path`, both are missing among {sorted(source)}."
            )
        name = Path(path).name if path else name
        source = path if content is None else content
    if isinstance(source, (str, Path)):
        path = Path(str(source).split("::")[-1])  # datasets writes "gzip://ct.nii::/data/ct.nii.gz"
        if path.is_dir():
            return _read_dicom(path, path.name, series, max_voxels)
        if not path.is_file():
            raise VolumeError(
                f"A volume must exist on this machine, nothing is at `{source}`. Check the path."
            )
        with path.open("rb") as stream:
            return _read_stream(stream, path, path.name, series, channel, max_voxels)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _read_stream(io.BytesIO(source), source, name, series, channel, max_voxels)
    if isinstance(source, np.ndarray):
        return _read_array(source, channel, max_voxels)
    if _is_instance(source, "torch", "Tensor"):
        tensor = source.detach().cpu()
        return _read_array(
            (tensor.float() if tensor.is_floating_point() else tensor).numpy(), channel, max_voxels
        )
    if _is_instance(source, "PIL.Image", "Image"):
        return _read_picture(source)
    if _is_instance(source, "nibabel.spatialimages", "SpatialImage"):
        return _read_nibabel(source, channel, max_voxels)
    raise VolumeError(
        "A volume is a NIfTI path, bytes or nibabel image, a DICOM folder or zip, or an array with `spacing`; got "
        f"{type(source).__name__}. Convert it to one of these."
    )


def _read_reference(
    reference: VolumeReference, series: int | str | None, channel: int | None, max_voxels: int
) -> Stored:
    """Read what a reference names, with its rescale and its geometry in place of the header's."""
    series = reference.series if series is None else series
    channel = reference.channel if channel is None else channel
    if reference.member is None:
        stored = _read(reference.path, series, channel, max_voxels)
    else:
        stored = _read_member(reference, channel, max_voxels)
    if stored.kind != "nifti" and (reference.rescale or reference.orientation):
        raise VolumeError(
            f"`rescale` and `orientation` replace what a NIfTI header says, `{reference.name}` is a {stored.kind} "
            "source, which states its own. Leave them out of the reference."
        )
    if reference.rescale is not None:
        stored.slope, stored.inter = reference.rescale
        stored.steps.append("rescale given by the reference, the header's left out")
    if reference.orientation is not None:
        stored.affine, stored.blank = None, "a header that its reference replaces"
        stored.steps.append("geometry given by the reference, the header's left out")
    return stored


def _read_member(reference: VolumeReference, channel: int | None, max_voxels: int) -> Stored:
    """Read a NIfTI out of a tar archive."""
    path = Path(reference.path)
    if not path.is_file():
        raise VolumeError(
            f"A volume must exist on this machine, nothing is at `{reference.path}`. Check the path."
        )
    try:
        with tarfile.open(path) as archive:
            # `getmember` reads the headers of the whole archive; most volumes need a part of them.
            member = next((info for info in archive if info.name == reference.member), None)
            stream = archive.extractfile(member) if member is not None else None
            if stream is None:
                raise VolumeError(
                    f"An archive must hold the volume it is asked for, `{path.name}` has no file `{reference.name}`. "
                    "List the names with `tar -tf`; the download may be incomplete."
                )
            with _explain_damage(reference.name):
                is_gzip = stream.read(2) == _GZIP
                stream.seek(0)
                return _read_nifti(
                    _gunzip(stream) if is_gzip else stream, reference.name, channel, max_voxels
                )
    except tarfile.TarError as error:
        raise VolumeError(
            f"`member` names a file inside a tar archive, `{path.name}` is none or is damaged ({error}). Download it "
            "again."
        ) from error


def source_path(source: Any) -> str | None:
    """Return the path that a text, path or `datasets` source names, its reference unpacked; else `None`."""
    reference = None if is_prepared(source) else parse_reference(source)
    if reference is not None:
        return reference.path
    source = source.get("path") if isinstance(source, dict) else source
    return str(source) if isinstance(source, (str, Path)) else None


def _is_instance(source: Any, module: str, name: str) -> bool:
    """Test for a class of an optional library without importing it: its objects exist only once it is imported."""
    return module in sys.modules and isinstance(source, vars(sys.modules[module])[name])


def _read_stream(
    stream: BinaryIO, source: Any, name: str, series: int | str | None, channel: int | None, max_voxels: int
) -> Stored:
    head = stream.read(132)
    stream.seek(0)
    if head.startswith(_LFS):
        raise VolumeError(
            f"A volume must be the file itself, `{name}` is a git-LFS pointer. Fetch the content: `git lfs pull` or "
            "`hf download`."
        )
    for magic, kind in _PICTURES.items():
        if head.startswith(magic):
            raise VolumeError(
                f"A volume is 3-D, `{name}` is a 2-D {kind} picture. Pass the NIfTI or the DICOM series it came from."
            )
    if head.startswith(_ZIP) or head[128:] == b"DICM":
        return _read_dicom(source, name, series, max_voxels)
    with _explain_damage(name):
        return _read_nifti(_gunzip(stream) if head.startswith(_GZIP) else stream, name, channel, max_voxels)


def _read_nifti(stream: BinaryIO, name: str, channel: int | None, max_voxels: int) -> Stored:
    nibabel = _import_nibabel()
    head = stream.read(540)
    kinds = {348: nibabel.Nifti1Header, 540: nibabel.Nifti2Header}
    size = head[:4]
    kind = kinds.get(int.from_bytes(size, "little")) or kinds.get(int.from_bytes(size, "big"))
    if kind is None or len(head) < kind.sizeof_hdr:
        raise VolumeError(
            f"A volume file is NIfTI (.nii, .nii.gz), DICOM or a zip of DICOM; `{name}` is none of these. Convert it, "
            "e.g. with dcm2niix or SimpleITK."
        )
    try:
        header = kind.from_fileobj(io.BytesIO(head), check=False)
        shape, dtype, offset = header.get_data_shape(), header.get_data_dtype(), header.get_data_offset()
        slope, inter = header.get_slope_inter()
        affine = header.get_best_affine()
    except (nibabel.spatialimages.HeaderDataError, ValueError, KeyError, OverflowError) as error:
        raise VolumeError(
            f"A NIfTI header must be readable, that of `{name}` is not ({error}). Export it again."
        ) from error
    refuse_shape(shape, name, channel, max_voxels)
    offset = int(offset) or kind.single_vox_offset  # some writers leave it 0
    voxels = _read_voxels(stream, head, shape, dtype, offset, name)
    return _stored_nifti(voxels, header, affine, slope, inter, name, channel, is_ours=True)


def _read_nibabel(image: Any, channel: int | None, max_voxels: int) -> Stored:
    nibabel = _import_nibabel()
    proxy, name = image.dataobj, Path(image.get_filename() or "nibabel image").name
    refuse_shape(image.shape, name, channel, max_voxels)
    if not isinstance(proxy, nibabel.arrayproxy.ArrayProxy):
        return _stored_nifti(
            np.asanyarray(proxy), image.header, image.affine, 1.0, 0.0, name, channel, is_ours=False
        )
    with _explain_damage(name):
        if isinstance(proxy.file_like, (str, Path)):  # still on disk: we read faster than nibabel
            with Path(proxy.file_like).open("rb") as stream:
                is_gzip = stream.read(2) == _GZIP
                stream.seek(0)
                plain = _gunzip(stream) if is_gzip else stream
                voxels = _read_voxels(plain, b"", proxy.shape, proxy.dtype, proxy.offset, name)
        else:
            voxels = proxy.get_unscaled()
    return _stored_nifti(
        voxels, image.header, image.affine, proxy.slope, proxy.inter, name, channel, is_ours=False
    )


def _read_voxels(
    stream: BinaryIO, head: bytes, shape: Sequence[int], dtype: np.dtype, offset: int, name: str
) -> np.ndarray:
    """Read exactly the voxels a header announces into one buffer; `head` was already taken from the stream."""
    if not 0 <= offset <= 2**24:
        raise VolumeError(
            f"Voxels must follow the header, `{name}` puts them at byte {offset}. Export it again."
        )
    size = math.prod(shape) * dtype.itemsize
    buffer = np.empty(size, np.uint8)
    stream.read(max(0, offset - len(head)))
    early = head[offset : offset + size]
    view = memoryview(buffer)
    view[: len(early)] = early
    filled = len(early)
    while filled < size and (count := stream.readinto(view[filled:])):
        filled += count
    if filled < size:
        raise VolumeError(
            f"A file must hold all its voxels, `{name}` ends after {filled:,} of {size:,} bytes. It was cut off: "
            "download or export it again."
        )
    if stream.read(1) or len(head) > offset + size:
        raise VolumeError(
            f"A file must not be longer than its header says, `{name}` goes on after {size:,} bytes of voxels. The "
            "header is wrong or the file is a decompression bomb: export it again."
        )
    return buffer.view(dtype).reshape(shape, order="F")


def _stored_nifti(
    voxels: np.ndarray,
    header: Any,
    affine: Any,
    slope: Any,
    inter: Any,
    name: str,
    channel: int | None,
    is_ours: bool,
) -> Stored:
    """Choose the channel, and drop an affine that only looks like one."""
    if voxels.ndim == 4:
        voxels = voxels[..., channel or 0]
    slope, inter = (1.0 if slope is None else float(slope)), (0.0 if inter is None else float(inter))
    blank = ""
    is_nifti = _is_instance(header, "nibabel.nifti1", "Nifti1Header")
    if affine is None or (is_nifti and int(header["sform_code"]) == 0 and int(header["qform_code"]) == 0):
        blank = "no orientation (sform and qform are unset)"
    elif np.allclose(affine, np.eye(4)) and sorted(voxels.shape)[1] >= 512:
        blank = "an identity affine on a CT matrix"  # 512 mm of field of view at 1 mm: nobody scans that
    return Stored(voxels, None if blank else affine, name, "nifti", slope, inter, is_ours, blank)


def _read_dicom(source: Any, name: str, series: int | str | None, max_voxels: int) -> Stored:
    from .volume_dicom_mu2 import read_dicom  # pydicom costs a quarter of a second to import

    return read_dicom(source, name, series, max_voxels)


def _read_array(array: np.ndarray, channel: int | None, max_voxels: int) -> Stored:
    name = f"array of shape {array.shape}"
    if array.ndim not in (3, 4):
        raise VolumeError(
            f"An array volume has 3 axes (depth, height, width), the {name} has {array.ndim}. Pass one volume at a "
            "time, without batch or channel axes."
        )
    refuse_shape(array.shape[::-1], name, channel, max_voxels)
    if array.ndim == 4:
        array = array[channel or 0]
    return Stored(array.transpose(2, 1, 0), None, name, "array", blank="no header")


def _read_picture(image: Any) -> Stored:
    grey = np.asarray(image.convert("L"), np.float32) * (2000 / 255) - 1000
    name = f"picture of {image.size[0]} x {image.size[1]} pixels"
    steps = ["8-bit grey mapped to -1000..1000 HU: a probe, not a CT"]
    return Stored(grey.T[:, :, None], None, name, "picture", is_ours=True, steps=steps)


def _import_nibabel() -> Any:
    try:
        import nibabel
    except ImportError as error:
        raise ImportError("Reading NIfTI needs nibabel: `pip install nibabel`.") from error
    return nibabel


class _Gunzip(io.RawIOBase):
    """A gzip stream read straight into the caller's buffer; Python's GzipFile copies every byte twice."""

    def __init__(self, stream: BinaryIO):
        self._stream, self._member = stream, inflate.decompressobj(31)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        while True:
            if self._member.eof:
                data = self._member.unused_data or self._stream.read(2**16)
                if not data.strip(b"\0"):
                    return 0
                self._member = inflate.decompressobj(31)  # a gzip file may have several members
            else:
                data = self._member.unconsumed_tail or self._stream.read(2**16)
            plain = self._member.decompress(data, min(len(buffer), 2**18))
            if plain:
                buffer[: len(plain)] = plain
                return len(plain)
            if not data and not self._member.eof:
                raise EOFError("no end-of-stream marker")


def _gunzip(stream: BinaryIO) -> io.BufferedReader:
    return io.BufferedReader(_Gunzip(stream))


@contextmanager
def _explain_damage(name: str) -> Iterator[None]:
    try:
        yield
    except (EOFError, OSError, inflate.error) as error:
        raise VolumeError(
            f"A compressed file must be complete, `{name}` ends early or is damaged ({error}). Download or export it "
            "again."
        ) from error
