"""Real CT volumes, where they are at hand: the good ones are read, the bad ones refused."""

import numpy as np
import pytest

from hf_mu2.model.image_processing_mu2 import Mu2ImageProcessor
from hf_mu2.model.volume_mu2 import OutOfDomainWarning, VolumeError, guess_body_region, load_volume
from tests.paths import shared_data, shared_data_or_skip

REGIONS = {
    "abd_crlm1004.nii.gz": "abdomen",
    "abdpel_ts_example.nii.gz": "abdomen",
    "chest_dxA0001_a_1.nii.gz": "chest",
    "chest_dxA0001_a_2.nii.gz": "chest",
    "chest_lidc0314_r125.nii.gz": "chest",
    "tiny/abd_crlm1004_4mm.nii.gz": "abdomen",
    "tiny/abdpel_ts_4mm.nii.gz": "abdomen",
    "tiny/chest_dxA0001_4mm.nii.gz": "chest",
    "tiny/chest_dxA0002_4mm.nii.gz": "chest",
    "tiny/chest_lidc0314_4mm.nii.gz": "chest",
}
REFUSED = {
    "rgb24_ct_perfusion.nii.gz": "is RGB",
    "uint8_sclslope_ct_avm.nii.gz": "no air",
    "uint8_oblique_ct_pitch.nii.gz": "8-bit grey",
    "mr_not_ct.nii.gz": "an MR",
}


@pytest.mark.parametrize("name", REGIONS)
def test_real_volumes_are_read_in_hu_and_their_region_is_told(name):
    volume = load_volume(shared_data_or_skip("ct", name))
    assert guess_body_region(volume) == REGIONS[name]
    assert volume.array.dtype == np.int16 and volume.array.min() >= -1024
    assert (np.diag(volume.affine)[:3] > 0).all()


def test_every_file_that_is_no_ct_is_refused():
    folder = shared_data_or_skip("ct", "edge")
    assert {path.name for path in folder.iterdir()} == set(REFUSED)
    for name, reason in REFUSED.items():
        with pytest.raises(VolumeError, match=reason):
            load_volume(folder / name)


def test_a_real_jpeg_2000_series_overlaps_by_its_positions_not_its_thickness():
    pytest.importorskip("pydicom")
    volume = load_volume(shared_data_or_skip("ct", "dicom", "jpeg2000_20slices"))
    assert volume.array.shape == (20, 512, 512)
    assert volume.spacing[0] == pytest.approx(2.0)
    assert volume.provenance["slice_thickness_mm"] == 3.0


def test_two_real_reconstructions_in_one_folder_need_a_choice():
    pytest.importorskip("pydicom")
    folder = shared_data_or_skip("ct", "dicom", "two_series_one_folder")
    with pytest.raises(VolumeError, match=r"(?s)holds 2:.*B70f.*B40f"):
        load_volume(folder)
    with pytest.warns(OutOfDomainWarning, match="8 mm apart"):
        sharp, soft = load_volume(folder, series=2), load_volume(folder, series=3)
    assert sharp.provenance["kernel"] == "B70f" and soft.provenance["kernel"] == "B40f"
    assert sharp.array.std() > soft.array.std()


def test_two_real_reconstructions_of_one_chest_agree_in_the_mean():
    processor = Mu2ImageProcessor(spacing=(5, 4, 4), size={"height": 96, "width": 96})
    first, second = (
        processor.resample(str(shared_data_or_skip("ct", f"chest_dxA0001_a_{n}.nii.gz")))[0] for n in (1, 2)
    )
    soft = (first > -100) & (first < 200)
    assert abs(first[soft].mean() - second[soft].mean()) < 10


@pytest.mark.slow
def test_official_mode_equals_monai_on_real_volumes():
    monai = pytest.importorskip("monai.transforms")
    import nibabel as nib
    import torch

    for name, size, frames in (("abdpel_ts_4mm", 64, 2), ("chest_dxA0002_4mm", 96, 8)):
        path = shared_data_or_skip("ct", "tiny", f"{name}.nii.gz")
        stored = torch.tensor(nib.load(path).get_fdata().transpose(2, 0, 1)[None])
        scale = monai.ScaleIntensityRangePercentiles(0.5, 99.5, 0, 1, clip=True)
        cropped = monai.CropForeground()(scale(stored))[0].permute(1, 2, 0)
        ratio = min(size / cropped.shape[0], size / cropped.shape[1])
        shape = [
            int(cropped.shape[0] * ratio),
            int(cropped.shape[1] * ratio),
            min(cropped.shape[2], 32 * frames),
        ]
        resize = monai.Resize(shape, mode="trilinear", align_corners=True, anti_aliasing=True)
        resized = resize(cropped[None])[0].as_tensor()
        expected = torch.zeros(32 * frames, size, size)
        expected[: shape[2], : shape[0], : shape[1]] = resized.permute(2, 0, 1)
        processor = Mu2ImageProcessor(
            mode="official", size={"height": size, "width": size}, max_frames=frames
        )
        ours = processor(str(path), return_tensors="pt")["pixel_values"][0]
        torch.testing.assert_close(ours.flatten(0, 1), expected, atol=5e-5, rtol=0)


def test_the_sample_data_are_where_the_other_tests_expect_them():
    if shared_data() is not None:
        assert shared_data_or_skip("ct").is_dir()
