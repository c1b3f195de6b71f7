"""Uploads: what is taken, what is refused, and that neither a file nor its name stays."""

import gzip
import struct
import warnings
import zipfile

import nibabel as nib
import numpy as np
import pytest

from hf_mu2.model.volume_mu2 import VolumeError
from hf_mu2.reporting.uploads import UploadLimits, public_message, read_upload
from tests.tiny import tiny_nifti, tiny_volume

SMALL = UploadLimits(upload_bytes=2**20, voxels=2**16, zip_members=20)
NAME = "DOE_JANE_1970.nii.gz"


@pytest.fixture
def uploads(tmp_path):
    folder = tmp_path / "uploads"
    folder.mkdir()
    return folder


def place(folder, content: bytes, name: str = NAME):
    """Store an upload as gradio does: in a folder of its own."""
    path = folder / "0123abcd" / name
    path.parent.mkdir()
    path.write_bytes(content)
    return path


def refusal(path, folder, limits=SMALL, **options) -> str:
    with pytest.raises(VolumeError) as caught:
        read_upload(path, folder, limits, **options)
    return str(caught.value)


def test_a_volume_is_read_and_its_file_is_gone(uploads):
    volume, unusual = read_upload(place(uploads, gzip.compress(tiny_nifti().to_bytes())), uploads, SMALL)
    np.testing.assert_array_equal(volume.array, tiny_volume().array)
    assert unusual == [] and list(uploads.iterdir()) == []


@pytest.mark.parametrize(
    "content",
    [
        b"not a volume at all",
        gzip.compress(tiny_nifti().to_bytes())[:900],
        b"\x89PNG" + bytes(200),
        b"",
        b"PK\x03\x04" + bytes(64),
    ],
    ids=["text", "cut off", "picture", "empty", "broken zip"],
)
def test_what_is_no_volume_is_refused_and_gone_without_its_name(uploads, content):
    message = refusal(place(uploads, content), uploads)
    assert "DOE" not in message and str(uploads) not in message
    assert list(uploads.iterdir()) == []


def test_a_header_that_announces_too_much_is_refused_before_memory_is_taken(uploads):
    header = nib.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape((4096, 4096, 4096))  # 128 GiB
    message = refusal(place(uploads, gzip.compress(header.binaryblock + bytes(4))), uploads)
    assert "voxels" in message and list(uploads.iterdir()) == []


def test_a_file_that_unpacks_beyond_its_header_is_refused(uploads):
    bomb = gzip.compress(tiny_nifti().to_bytes() + bytes(30 * 2**20))
    assert len(bomb) < SMALL.upload_bytes
    assert "longer than its header" in refusal(place(uploads, bomb), uploads)


def test_a_large_file_is_refused(uploads):
    assert "MB" in refusal(place(uploads, bytes(2**20 + 1)), uploads)


def make_zip(path, members: dict[str, bytes]) -> bytes:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path.read_bytes()


@pytest.mark.parametrize(
    "members, says",
    [
        ({"../../etc/cron.d/job": b"x"}, "stay inside"),
        ({"/etc/passwd": b"x"}, "stay inside"),
        ({"..\\..\\job": b"x"}, "stay inside"),
        ({"C:\\job": b"x"}, "stay inside"),
        ({"zeros": bytes(2**19)}, "unpack"),
        ({f"{i}.dcm": b"x" for i in range(21)}, "files"),
        ({"notes.txt": b"x"}, "DICOM"),
    ],
    ids=["parent", "absolute", "windows parent", "drive", "bomb", "many", "no dicom"],
)
def test_a_zip_that_is_no_series_is_refused(uploads, tmp_path, members, says):
    content = make_zip(tmp_path / "made.zip", members)
    assert says in refusal(place(uploads, content, "DOE.zip"), uploads)
    assert list(uploads.iterdir()) == [] and not (tmp_path / "etc").exists()


def test_a_zip_that_lies_about_its_size_gives_no_more_than_it_announced(uploads, tmp_path):
    content = bytearray(make_zip(tmp_path / "made.zip", {"a.dcm": bytes(2**22)}))
    true_size, lie = struct.pack("<I", 2**22), struct.pack("<I", 100)
    assert content.count(true_size) == 2  # in the local header and in the directory
    assert refusal(place(uploads, bytes(content.replace(true_size, lie)), "DOE.zip"), uploads)


def test_nothing_outside_the_folder_of_uploads_is_read_or_deleted(uploads, tmp_path):
    outside = tmp_path / "secret.nii.gz"
    outside.write_bytes(gzip.compress(tiny_nifti().to_bytes()))
    for path in (outside, uploads / ".." / "secret.nii.gz", tmp_path, "/etc/passwd", ""):
        assert "uploaded first" in refusal(path, uploads)
    link = uploads / "0123abcd" / "volume.nii.gz"
    link.parent.mkdir()
    link.symlink_to(outside)
    assert "uploaded first" in refusal(link, uploads)
    assert outside.is_file()


def test_messages_name_no_file_no_series_description_and_no_uid(uploads):
    path = uploads / "0123abcd" / "DOE_JANE.zip"
    listing = (
        f"A volume is one series, `{path.name}` holds 2:\n"
        "  series 3: Jane Doe, thorax, 120 slices of 1.0 mm, 1.2.840.113619.2.55.3\n"
        "  series 4: no description, 8 slices of 5.0 mm, 1.2.840.113619.2.55.4\n"
        "Choose one by its number or UID, e.g. `series=3`."
    )
    message = public_message(ValueError(listing), path)
    assert "series 3: 120 slices of 1.0 mm\n" in message and "series 4: 8 slices of 5.0 mm\n" in message
    for secret in ("DOE", "Doe", "thorax", "1.2.840"):
        assert secret not in message


def test_an_unusual_volume_says_so_without_the_name_of_its_file(uploads):
    thick = tiny_nifti(spacing=(12.0, 2.0, 2.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, unusual = read_upload(place(uploads, gzip.compress(thick.to_bytes())), uploads, SMALL)
    assert len(unusual) == 1 and "12 mm" in unusual[0] and "DOE" not in unusual[0]
