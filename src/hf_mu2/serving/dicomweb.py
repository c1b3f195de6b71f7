"""Fetch a CT series from a DICOMweb server (WADO-RS, DICOM PS3.18), as the zip that the loader reads.

Reads: the server that the operator named, and no other.
Writes: nothing.
"""

import io
import re
import zipfile
from dataclasses import dataclass
from typing import BinaryIO

from hf_mu2.reporting.uploads import UploadLimits

from .errors import Refusal

_UID = re.compile(r"[0-2](\.(0|[1-9][0-9]*))+")  # DICOM PS3.5, section 9


@dataclass(frozen=True)
class DicomWeb:
    """A DICOMweb server.

    Args:
        url (`str`): Its base, e.g. `"http://pacs:8042/dicom-web"`.
        token (`str`, *optional*): Bearer token.
    """

    url: str
    token: str | None = None

    def fetch(self, study_uid: str, series_uid: str, limits: UploadLimits) -> BinaryIO:
        """Fetch all instances of a series, stored in one zip.

        Raises:
            Refusal: 400 for what is no UID, 404 if there is no such series, 413 if it is too large, 502 if the server
                fails.
            ImportError: if dicomweb-client is not installed.
        """
        try:
            from dicomweb_client.api import DICOMwebClient
            from requests.exceptions import HTTPError, RequestException
        except ImportError as error:
            raise ImportError(
                'Fetching a series needs dicomweb-client: `pip install "hf_mu2[serve]"`.'
            ) from error

        for uid in (study_uid, series_uid):
            if len(uid) > 64 or not _UID.fullmatch(uid):
                raise Refusal(
                    400, "A series is named by UIDs of digits and points, got something else. Check them."
                )
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else None
        client = DICOMwebClient(self.url, headers=headers)
        client.set_http_retry_params(max_attempts=2, wait_exponential_multiplier=100)  # the asker is waiting
        stream, total, count = io.BytesIO(), 0, 0
        try:
            with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
                for instance in client.iter_series(study_uid, series_uid):
                    part = io.BytesIO()
                    instance.save_as(part, enforce_file_format=True)
                    total, count = total + part.tell(), count + 1
                    if total > limits.upload_bytes or count > limits.zip_members:
                        raise Refusal(
                            413,
                            f"A series may have {limits.upload_bytes >> 20} MB and {limits.zip_members:,} instances, "
                            "this one has more. Ask for a thicker reconstruction.",
                        )
                    archive.writestr(f"{count:06d}.dcm", part.getvalue())
        except HTTPError as error:
            if error.response is not None and error.response.status_code == 404:
                raise Refusal(404, "The DICOMweb server knows no such series. Check both UIDs.") from None
            raise Refusal(
                502, "The DICOMweb server refused to hand the series over. Tell its operator."
            ) from None
        except RequestException:
            raise Refusal(502, "The DICOMweb server does not answer. Come back later.", 30) from None
        if not count:
            raise Refusal(404, "The DICOMweb server knows no such series. Check both UIDs.")
        stream.seek(0)
        return stream
