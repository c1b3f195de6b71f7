"""DICOM series: read whole, evenly spaced and alone, or refused."""

import zipfile
from pathlib import Path

import numpy as np
import pytest

from hf_mu2.model.volume_mu2 import OutOfDomainWarning, VolumeError, load_volume
from tests.model.analytic_body import sample_body

pydicom = pytest.importorskip("pydicom")
from pydicom.dataset import FileDataset, FileMetaDataset  # noqa: E402
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid  # noqa: E402

SPACING = (8.0, 8.0, 5.0)  # x, y, z
PATIENT = "Somebody^Private"


def write_series(
    folder: Path, *, number: int = 3, tags: dict | None = None, only: slice = slice(None)
) -> list[Path]:
    """Write the analytic body as one axial CT series (LPS, as scanners do), in shuffled file order."""
    folder.mkdir(parents=True, exist_ok=True)
    voxels, affine = sample_body(SPACING)
    series_uid = generate_uid(entropy_srcs=[f"series {number}"])
    paths = []
    for index in range(voxels.shape[2])[only]:
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        slice_file = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        corner = affine @ (
            voxels.shape[0] - 1,
            voxels.shape[1] - 1,
            index,
            1,
        )  # right front in RAS = first in LPS
        for name, value in {
            "SOPClassUID": CTImageStorage,
            "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
            "PatientName": PATIENT,
            "PatientID": "ID-4711",
            "Modality": "CT",
            "SeriesInstanceUID": series_uid,
            "SeriesNumber": number,
            "SeriesDescription": f"Thorax {number}",
            "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
            "InstanceNumber": index,
            "ImagePositionPatient": [float(-corner[0]), float(-corner[1]), float(corner[2])],
            "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
            "PixelSpacing": [SPACING[1], SPACING[0]],
            "SliceThickness": SPACING[2],
            "ConvolutionKernel": "B40f",
            "Rows": voxels.shape[1],
            "Columns": voxels.shape[0],
            "SamplesPerPixel": 1,
            "PhotometricInterpretation": "MONOCHROME2",
            "BitsAllocated": 16,
            "BitsStored": 16,
            "HighBit": 15,
            "PixelRepresentation": 0,
            "RescaleSlope": 1,
            "RescaleIntercept": -1024,
            **(tags or {}),
        }.items():
            setattr(slice_file, name, value)
        rows = voxels[::-1, ::-1, index].T  # rows to the back, columns to the patient's left
        slice_file.PixelData = np.round(rows + 1024).astype(np.uint16).tobytes()
        path = folder / f"{number}_{(index * 7) % 64:03d}.dcm"
        slice_file.save_as(path)
        paths.append(path)
    return paths


def edit(path: Path, **tags: object) -> None:
    dataset = pydicom.dcmread(path)
    for name, value in tags.items():
        setattr(dataset, name, value)
    dataset.save_as(path)


def test_folder_zip_and_bytes_give_the_body_where_it_lies(tmp_path):
    paths = write_series(tmp_path / "series")
    (tmp_path / "series" / "README.txt").write_text("not DICOM")
    voxels, affine = sample_body(SPACING)
    with zipfile.ZipFile(tmp_path / "series.zip", "w") as archive:
        for path in paths:
            archive.write(path, path.name)
    for source in (tmp_path / "series", tmp_path / "series.zip", (tmp_path / "series.zip").read_bytes()):
        volume = load_volume(source)
        np.testing.assert_array_equal(volume.array, np.round(voxels + 1024).transpose(2, 1, 0) - 1024)
        np.testing.assert_allclose(volume.affine, affine, atol=1e-6)
        assert volume.array.dtype == np.int16
    assert load_volume(paths[10]).array.shape == (1, 40, 40)


def test_provenance_names_kernel_and_thickness_but_no_patient(tmp_path):
    write_series(tmp_path / PATIENT)
    provenance = load_volume(tmp_path / PATIENT).provenance
    assert provenance["kernel"] == "B40f" and provenance["slice_thickness_mm"] == 5.0
    assert provenance["orientation_on_disk"] == "LPS"
    assert "Private" not in str(provenance) and "4711" not in str(provenance)


def test_several_series_are_listed_and_one_can_be_chosen(tmp_path):
    write_series(tmp_path, number=3)
    write_series(tmp_path, number=4, only=slice(10))
    with pytest.raises(
        VolumeError, match=r"(?s)holds 2.*series 3: Thorax 3, 32 slices.*series 4.*series=3"
    ) as error:
        load_volume(tmp_path)
    assert "Private" not in str(error.value)
    assert len(load_volume(tmp_path, series=4).array) == 10
    assert len(load_volume(tmp_path, series=generate_uid(entropy_srcs=["series 3"])).array) == 32
    assert len(load_volume(tmp_path, series="Thorax 3").array) == 32
    with pytest.raises(VolumeError, match="matches none"):
        load_volume(tmp_path, series=7)


def test_localizers_and_other_modalities_beside_a_series_are_left_out(tmp_path):
    write_series(tmp_path)
    write_series(tmp_path, number=1, tags={"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, only=slice(1))
    write_series(tmp_path, number=9, tags={"Modality": "SR"}, only=slice(1))
    assert len(load_volume(tmp_path).array) == 32


def test_missing_slices_are_counted_and_located(tmp_path):
    paths = write_series(tmp_path)
    paths[12].unlink()
    paths[13].unlink()
    with pytest.raises(VolumeError, match=r"lacks 2 slices of 5 mm \(between -22.5 and -7.5 mm\)"):
        load_volume(tmp_path)


def test_uneven_gaps_are_refused(tmp_path):
    for index, path in enumerate(write_series(tmp_path)):
        x, y, _ = pydicom.dcmread(path).ImagePositionPatient
        edit(path, ImagePositionPatient=[x, y, float(index**1.1 * 4)])
    with pytest.raises(VolumeError, match=r"evenly spaced.* mm apart"):
        load_volume(tmp_path)


@pytest.mark.parametrize("step", [0.4, 0.625, 0.75, 1.25, 2.5])
def test_rounded_positions_are_even_enough_but_a_missing_slice_is_refused(tmp_path, step):
    paths = write_series(tmp_path)
    for index, path in enumerate(paths):
        x, y, _ = pydicom.dcmread(path).ImagePositionPatient
        edit(path, ImagePositionPatient=[x, y, round(index * step, 1)])
    assert load_volume(tmp_path).spacing[0] == pytest.approx(step, abs=0.01)
    paths[12].unlink()
    with pytest.raises(VolumeError, match="lacks 1 slices of"):
        load_volume(tmp_path)


def test_a_slice_alone_needs_a_thickness(tmp_path):
    path = write_series(tmp_path, only=slice(1))[0]
    assert load_volume(path).spacing[0] == 5.0
    edit(path, SliceThickness=None)
    with pytest.raises(VolumeError, match=r"no SliceThickness.*`spacing="):
        load_volume(path)


def test_two_phases_under_one_series_are_refused(tmp_path):
    write_series(tmp_path / "a")
    write_series(tmp_path / "b")
    with pytest.raises(VolumeError, match="32 positions twice"):
        load_volume(tmp_path)


@pytest.mark.parametrize(
    ("tag", "value"),
    [
        ("ConvolutionKernel", "B70f"),
        ("PixelSpacing", [0.9, 0.9]),
        ("ImageOrientationPatient", [0, 1, 0, 0, 0, 1]),
    ],
)
def test_a_series_that_mixes_geometry_or_kernels_is_refused(tmp_path, tag, value):
    edit(write_series(tmp_path)[5], **{tag: value})
    with pytest.raises(VolumeError, match=f"mixes 2 values of {tag}"):
        load_volume(tmp_path)


def test_a_tilted_gantry_is_refused_by_its_tag_and_by_its_positions(tmp_path):
    write_series(tmp_path / "tag", tags={"GantryDetectorTilt": 18.5})
    with pytest.raises(VolumeError, match=r"tilted by 18\.5 degrees"):
        load_volume(tmp_path / "tag")
    for index, path in enumerate(write_series(tmp_path / "positions")):
        x, y, z = pydicom.dcmread(path).ImagePositionPatient
        edit(path, ImagePositionPatient=[x, float(y + index * 5.0 * np.tan(np.radians(12))), z])
    with pytest.raises(VolumeError, match=r"tilted by 12\.0 degrees"):
        load_volume(tmp_path / "positions")


def test_another_modality_is_refused_by_name(tmp_path):
    write_series(tmp_path, tags={"Modality": "MR"}, only=slice(3))
    with pytest.raises(VolumeError, match="holds modality MR"):
        load_volume(tmp_path)


def test_multi_frame_and_colour_files_are_refused(tmp_path):
    write_series(tmp_path / "frames", tags={"NumberOfFrames": 2}, only=slice(1))
    with pytest.raises(VolumeError, match="multi-frame"):
        load_volume(tmp_path / "frames")
    write_series(tmp_path / "colour", tags={"SamplesPerPixel": 3}, only=slice(1))
    with pytest.raises(VolumeError, match="is RGB"):
        load_volume(tmp_path / "colour")


def test_slices_that_do_not_say_where_they_lie_are_refused(tmp_path):
    paths = write_series(tmp_path)
    dataset = pydicom.dcmread(paths[0])
    del dataset.ImagePositionPatient
    dataset.save_as(paths[0])
    with pytest.raises(VolumeError, match="lacks ImagePositionPatient"):
        load_volume(tmp_path)


def test_a_slice_without_all_its_pixels_is_refused(tmp_path):
    paths = write_series(tmp_path)
    dataset = pydicom.dcmread(paths[0])
    dataset.PixelData = dataset.PixelData[:100]
    dataset.save_as(paths[0])
    with pytest.raises(VolumeError, match="no complete pixels"):
        load_volume(tmp_path)


def test_folders_without_dicom_are_refused_with_a_hint(tmp_path):
    with pytest.raises(VolumeError, match="none was found"):
        load_volume(tmp_path)
    (tmp_path / "ct.nii.gz").write_bytes(b"")
    with pytest.raises(VolumeError, match="holds NIfTI files"):
        load_volume(tmp_path)


def test_padding_that_looks_like_tissue_becomes_air(tmp_path):
    for path in write_series(tmp_path):
        dataset = pydicom.dcmread(path)
        pixels = dataset.pixel_array.copy()
        pixels[:4] = 200  # -824 HU, lung
        dataset.PixelData = pixels.tobytes()
        dataset.add_new("PixelPaddingValue", "US", 200)
        dataset.save_as(path)
    assert (load_volume(tmp_path).array[:, -4:] == -1024).all()


def test_thick_dicom_slices_warn(tmp_path):
    for index, path in enumerate(write_series(tmp_path, only=slice(6))):
        x, y, _ = pydicom.dcmread(path).ImagePositionPatient
        edit(path, ImagePositionPatient=[x, y, 8.0 * index])
    with pytest.warns(OutOfDomainWarning, match="8 mm apart"):
        load_volume(tmp_path)
