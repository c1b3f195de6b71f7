"""Where the lesions of a study are: which masks a corpus has of it, and how they are read.

Reads: the masks of PhantomCT (`<root>_masks`, every drawn finding), the region masks of RadGenome-ChestCT, and for
CT-RATE those of TotalSegmentator (`ts_seg/ts_total`).

Only PhantomCT outlines lesions. The other two outline anatomy: of a study they give the regions that its positive
labels point to (`REGIONS`), e.g. the lungs for a nodule.
"""

import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hf_mu2.model.volume_mu2 import OutOfDomainWarning, VolumeError, load_volume, source_path

_LUNGS = ("lung",)
# Regions of RadGenome-ChestCT in which a label of CT-RATE is seen; material and vessels are in none of the ten.
REGIONS: dict[str, tuple[str, ...]] = {
    "Cardiomegaly": ("heart",),
    "Pericardial effusion": ("heart",),
    "Coronary artery wall calcification": ("heart",),
    "Hiatal hernia": ("esophagus",),
    "Lymphadenopathy": ("mediastinum",),
    "Emphysema": _LUNGS,
    "Atelectasis": _LUNGS,
    "Lung nodule": _LUNGS,
    "Lung opacity": _LUNGS,
    "Pulmonary fibrotic sequela": _LUNGS,
    "Pleural effusion": ("pleura",),
    "Mosaic attenuation pattern": _LUNGS,
    "Peribronchial thickening": ("trachea and bronchie",),
    "Consolidation": _LUNGS,
    "Bronchiectasis": ("trachea and bronchie",),
    "Interlobular septal thickening": _LUNGS,
}
# Values of TotalSegmentator's task `total`, version 2, for what `REGIONS` names.
CLASSES: dict[str, tuple[int, ...]] = {
    "heart": (51,),
    "esophagus": (15,),
    "lung": (10, 11, 12, 13, 14),
    "trachea and bronchie": (10, 11, 12, 13, 14, 16),
}


def mask_reference(path: str | Path, values: Iterable[int] | None = None) -> str:
    """Name a mask as one line of text: its path, or with the `values` that count JSON. All but 0 counts otherwise."""
    if values is None:
        return str(path)
    return json.dumps({"mask": str(path), "values": sorted(values)}, sort_keys=True, separators=(",", ":"))


def mask_path(reference: str) -> Path:
    """Return the file that a reference to a mask names."""
    return _parse(reference)[0]


def _parse(reference: str) -> tuple[Path, list[int] | None]:
    if not reference.startswith("{"):
        return Path(reference), None
    fields = json.loads(reference)
    return Path(fields["mask"]), fields["values"]


def study_masks(study: Mapping[str, Any], root: str | Path, present: Iterable[str]) -> list[str]:
    """Find the masks of a study of a corpus: references, together what is abnormal. None, where the corpus has none.

    Args:
        study (`Mapping`): A row of the study schema.
        root (`str` or `Path`): The folder of the corpus.
        present (`Iterable[str]`): Labels of the study that are positive. PhantomCT needs none.

    Raises:
        ValueError: for a corpus whose masks are not known here.
    """
    metadata = json.loads(study["metadata"])
    regions = sorted({region for label in present for region in REGIONS.get(label, ())})
    if study["corpus"] == "phantom_ct":
        return [metadata["mask"]] if "mask" in metadata else []
    if study["corpus"] == "radgenome":
        folder = Path(root) / metadata["masks"] if "masks" in metadata else None
        paths = [] if folder is None else [folder / f"{region}.nii.gz" for region in regions]
        return [mask_reference(path) for path in paths if path.is_file()]
    if study["corpus"] == "ct_rate":
        values = {value for region in regions for value in CLASSES.get(region, ())}
        volumes = [Path(path) for path in map(source_path, study["images"]) if path]
        paths = [path.parents[3] / "ts_seg" / "ts_total" / Path(*path.parts[-4:]) for path in volumes]
        return [mask_reference(path, values) for path in paths if values and path.is_file()]
    raise ValueError(
        "Masks are known of phantom_ct, radgenome and ct_rate, got a study of "
        f"`{study['corpus']}`. Give the rows a column `lesion_masks` of your own: a list of NIfTI files per study."
    )


def phantom_masks(volume: Any) -> list[str]:
    """Find the masks of a volume that lies in a folder of phantoms; none, where nothing is beside the folder."""
    named = source_path(volume)
    if named is None:
        return []
    path = Path(named)
    mask = Path(f"{path.parents[1]}_masks") / path.parent.name / path.name
    return [mask_reference(mask)] if mask.is_file() else []


def load_masks(references: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Read masks and join them: what any of them marks.

    Returns:
        A boolean array (depth, height, width) in canonical RAS order, and its affine from voxels (x, y, z) to RAS mm.

    Raises:
        VolumeError: if a file is missing or damaged, or the masks of the study lie on different grids.
    """
    joined: np.ndarray | None = None
    affine = np.eye(4)
    for reference in references:
        path, values = _parse(reference)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", OutOfDomainWarning)  # said of the volume itself
            stored = load_volume(path, clamp=False, check_hu=False)
        inside = stored.array != 0 if values is None else np.isin(stored.array, values)
        if joined is None:
            joined, affine = inside, stored.affine
        elif joined.shape == inside.shape and np.allclose(affine, stored.affine, atol=1e-3):
            joined = joined | inside
        else:
            raise VolumeError(
                f"The masks of a study lie on one grid, `{path.name}` has the shape {inside.shape}, "
                f"those before it {joined.shape}, or another affine. Resample them to the volume."
            )
    if joined is None:
        raise VolumeError("A study with lesions names at least one mask, got none. Leave the study out.")
    return joined, affine
