"""Series from a DICOMweb server: fetched whole from the one that was named, and only by UIDs."""

import io
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from fastapi import FastAPI, Response

from hf_mu2.reporting.uploads import UploadLimits
from hf_mu2.serving.dicomweb import DicomWeb
from hf_mu2.serving.errors import Refusal
from tests.model.test_volume_dicom import write_series

pytest.importorskip("dicomweb_client")
STUDY, SERIES = "1.2.3", "1.2.3.4"


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Iterator[str]:
    """A DICOMweb server with one series, as far as WADO-RS of a series goes."""
    paths: list[Path] = write_series(
        tmp_path_factory.mktemp("series"), tags={"StudyInstanceUID": STUDY, "SeriesInstanceUID": SERIES}
    )
    app = FastAPI()

    @app.get("/dicom-web/studies/{study}/series/{series}")
    def series(study: str, series: str) -> Response:
        if (study, series) != (STUDY, SERIES):
            return Response(status_code=404)
        body = b"".join(
            b"--part\r\nContent-Type: application/dicom\r\n\r\n" + path.read_bytes() + b"\r\n"
            for path in paths
        )
        kind = 'multipart/related; type="application/dicom"; boundary=part'
        return Response(body + b"--part--\r\n", media_type=kind)

    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/dicom-web"
    server.should_exit = True
    thread.join(10)


def test_a_series_is_fetched_and_reported(serving, archive):
    with serving(dicomweb=DicomWeb(archive), max_new_tokens=4) as client:
        uids = {"study_uid": STUDY, "series_uid": SERIES}
        answer = client.post("/v1/reports/dicomweb", json=uids)
        assert answer.status_code == 200 and answer.json()["study_id"].startswith("ct-")
        assert list(client.app.state.store.folder.iterdir()) == []
        missing = client.post("/v1/reports/dicomweb", json=uids | {"series_uid": "1.2.9"})
        assert missing.status_code == 404 and "both UIDs" in missing.json()["error"]["message"]


def test_the_series_is_whole(archive):
    from hf_mu2.model.volume_mu2 import load_volume
    from tests.model.analytic_body import sample_body

    stream = DicomWeb(archive).fetch(STUDY, SERIES, UploadLimits())
    assert isinstance(stream, io.BytesIO)
    assert load_volume(stream.getvalue()).array.shape[0] == sample_body((8.0, 8.0, 5.0))[0].shape[2]


@pytest.mark.parametrize("uid", ["../../etc", "1.2.3/rendered", "1.2.3?x=1", "1" * 65, "", "1.02"])
def test_what_is_no_uid_is_not_sent(uid):
    with pytest.raises(Refusal, match="digits and points"):
        DicomWeb("http://127.0.0.1:9").fetch(uid, SERIES, UploadLimits())


def test_a_server_that_does_not_answer_is_named_as_such():
    with pytest.raises(Refusal, match="does not answer"):
        DicomWeb("http://127.0.0.1:9").fetch(STUDY, SERIES, UploadLimits())


def test_a_series_beyond_the_limits_is_cut_off(archive):
    with pytest.raises(Refusal, match="may have"):
        DicomWeb(archive).fetch(STUDY, SERIES, UploadLimits(zip_members=2))


def test_without_a_server_there_is_nothing_to_fetch_from(serving):
    with serving() as client:
        answer = client.post("/v1/reports/dicomweb", json={"study_uid": STUDY, "series_uid": SERIES})
        assert answer.status_code == 404 and "Upload" in answer.json()["error"]["message"]
