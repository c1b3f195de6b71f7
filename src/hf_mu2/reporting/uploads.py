"""Take what a visitor uploads: one CT volume, or a sentence that says why not. The file is gone either way.

Reads: a NIfTI, a DICOM file, or a zip of one DICOM series, as gradio stored it.
Writes: nothing. Names of files and DICOM tags, which may be a patient's, are in no message.
"""

import re
import shutil
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from hf_mu2.model.volume_mu2 import OutOfDomainWarning, Volume, VolumeError, load_volume
from hf_mu2.reporting.report import without_name


@dataclass(frozen=True)
class UploadLimits:
    """What one upload may be.

    Args:
        upload_bytes (`int`): Largest file taken; a larger one is refused while it arrives.
        voxels (`int`): Largest volume; a larger one is refused from its header, before memory is taken.
        zip_members (`int`): Most files in a DICOM zip.
        question_chars (`int`): Longest question or report text.
    """

    upload_bytes: int = 512 * 2**20
    voxels: int = 2**28  # 512 x 512 x 1024
    zip_members: int = 5000
    question_chars: int = 4000


# In a list of series: the description, which people fill with words of their own, and the UID.
_DESCRIPTION = re.compile(r"^(\s*series [^:]*): .*?, (\d+ slices of .*?)(?:, [\d.]+)?$", re.MULTILINE)
_UID = re.compile(r"\b[0-2](?:\.\d+){5,}\b")


def read_upload(
    path: str | Path,
    folder: str | Path,
    limits: UploadLimits,
    *,
    series: str | None = None,
    clamp: bool = True,
) -> tuple[Volume, list[str]]:
    """Read one uploaded volume and delete the upload, whether it could be read or not.

    Args:
        path (`str` or `Path`): Where the upload lies, as the browser or client says: not to be trusted.
        folder (`str` or `Path`): Where uploads are stored; nothing outside it is read or deleted.
        limits (`UploadLimits`): What one visitor may take.
        series (`str`, *optional*): Number of the DICOM series, where a zip holds several.
        clamp (`bool`): As in `load_volume`.

    Returns:
        The volume, and what is unusual about it.

    Raises:
        VolumeError: if it is not one readable CT volume within the limits; the message names no file and no tag.
    """
    folder = Path(folder).resolve()
    upload = Path(path).resolve()
    if not upload.is_relative_to(folder) or not upload.is_file():
        raise VolumeError("A volume must be uploaded first, nothing has arrived. Drop the file again.")
    try:
        _refuse_large(upload, limits)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", OutOfDomainWarning)
            volume = load_volume(upload, series=series or None, clamp=clamp, max_voxels=limits.voxels)
        unusual = [str(warning.message) for warning in caught if warning.category is OutOfDomainWarning]
        return volume, [public_message(message, upload) for message in unusual]
    except (ValueError, OSError, MemoryError) as error:
        raise VolumeError(public_message(error, upload)) from None  # the cause knows the path
    except ImportError as error:
        raise VolumeError(str(error)) from None
    except Exception as error:  # damaged input meets a parser that did not expect it
        raise VolumeError(
            f"A volume file must be undamaged, reading this one failed ({type(error).__name__}). Export it again."
        ) from None
    finally:
        forget_upload(upload, folder)


def forget_upload(upload: Path, folder: Path) -> None:
    """Delete an upload with the folder that gradio made for it."""
    if upload.parent != folder and upload.is_relative_to(folder):
        shutil.rmtree(folder / upload.relative_to(folder).parts[0], ignore_errors=True)
    else:
        upload.unlink(missing_ok=True)


def public_message(error: Exception | str, upload: Path) -> str:
    """Say what an error says, without the name of the file, the UIDs and the series descriptions."""
    if isinstance(error, MemoryError):
        return "A volume must fit into the memory of this machine, this one does not. Use a coarser reconstruction."
    message = without_name(str(error), upload)
    return _UID.sub("(UID)", _DESCRIPTION.sub(r"\1: \2", message))


def _refuse_large(upload: Path, limits: UploadLimits) -> None:
    """Refuse by size, and by the directory of a zip, before anything is unpacked."""
    size = upload.stat().st_size
    if size > limits.upload_bytes:
        raise VolumeError(
            f"An upload may have {limits.upload_bytes / 2**20:.0f} MB, this one has {size / 2**20:.0f} MB. "
            "Upload one series, compressed."
        )
    if not zipfile.is_zipfile(upload):
        return
    with zipfile.ZipFile(upload) as archive:
        members = archive.infolist()
    if len(members) > limits.zip_members:
        raise VolumeError(
            f"A zip may hold {limits.zip_members:,} files, this one holds {len(members):,}. Zip one series only."
        )
    unpacked = sum(member.file_size for member in members)
    if unpacked > 4 * limits.voxels:
        raise VolumeError(
            f"A zip may unpack to {4 * limits.voxels / 2**20:.0f} MB, this one announces {unpacked / 2**20:,.0f} MB. "
            "Zip one series only."
        )
    # Nothing is ever extracted to disk; a name that leaves its folder still tells what the archive was made for.
    if any(_leaves_folder(member.filename) for member in members):
        raise VolumeError(
            "Names in a zip must stay inside it, this one holds a name that leads elsewhere. Zip the series again."
        )


def _leaves_folder(name: str) -> bool:
    path = PurePosixPath(name.replace("\\", "/"))
    return path.is_absolute() or ".." in path.parts or bool(re.match(r"[A-Za-z]:", name))
