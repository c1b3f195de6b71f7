"""The running app on loopback: endpoints for programs, addresses behind keys, nothing from elsewhere, nothing left."""

import base64
import gzip
import re
from pathlib import Path

import httpx
import nibabel as nib
import pytest

pytest.importorskip("gradio")
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

from hf_mu2.demo.app import build_app, launch_options
from hf_mu2.reporting.uploads import forget_upload


@pytest.fixture(scope="module")
def server(desk):
    app = build_app(desk)
    _, url, _ = app.launch(
        server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, **launch_options(desk)
    )
    yield url
    app.close(verbose=False)


@pytest.fixture(scope="module")
def client(server, tmp_path_factory):
    return Client(
        server, verbose=False, download_files=str(tmp_path_factory.mktemp("client")), analytics_enabled=False
    )


@pytest.fixture
def volume(tmp_path, phantom_bytes):
    path = tmp_path / "DOE_JANE_1970.nii"
    path.write_bytes(phantom_bytes)
    return handle_file(path)


def test_the_endpoints_are_report_labels_and_explain_and_no_other(client):
    assert set(client.view_api(return_format="dict")["named_endpoints"]) == {"/report", "/labels", "/explain"}


def test_a_report_streams_to_a_program_and_ends_with_its_record(desk, client, volume):
    job = client.submit(volume=volume, api_name="/report")
    result = job.result(timeout=120)
    partial = [output["report"] for output in job.outputs()]
    assert len(partial) > 2 and result["report"].startswith(partial[0].strip())
    assert result["finish_reason"] in ("eos", "length") and result["notice"] == desk.notice
    assert set(result["labels"].values()) <= {"positive", "uncertain", "negative"}
    assert "DOE" not in str(result) and str(desk.sessions.root) not in str(result)
    assert list(desk.sessions.uploads.iterdir()) == []
    assert [path for path in desk.sessions.root.iterdir() if path != desk.sessions.uploads] == []


def test_an_explanation_has_key_slices_and_a_map_on_the_grid_of_the_file(desk, client, volume, phantom_bytes):
    answer = "The heart is enlarged. No pleural effusion."
    result = client.predict(volume=volume, answer=answer, api_name="/explain")
    assert [sentence["text"] for sentence in result["sentences"]] == [
        "The heart is enlarged.",
        "No pleural effusion.",
    ]
    heat = nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(result["heat_map_nii_gz_base64"])))
    assert heat.shape == nib.Nifti1Image.from_bytes(phantom_bytes).shape
    assert list(desk.sessions.uploads.iterdir()) == []


def test_labels_are_read_from_any_report(client):
    result = client.predict(report="Pleural effusion on the right. No nodule.", api_name="/labels")
    assert result == {"Pleural effusion": "positive", "Lung nodule": "negative"}


def test_a_broken_upload_is_an_error_in_words_without_a_name_and_leaves_nothing(desk, client, tmp_path):
    path = tmp_path / "DOE_JANE_1970.nii.gz"
    path.write_bytes(b"\x1f\x8b" + bytes(100))
    with pytest.raises(AppError) as caught:
        client.predict(volume=handle_file(path), api_name="/report")
    assert "VOLUME" in str(caught.value) and "DOE" not in str(caught.value)
    assert str(desk.sessions.root) not in str(caught.value)
    assert list(desk.sessions.uploads.iterdir()) == []


def test_a_file_of_the_server_cannot_be_named_as_an_upload(server, desk):
    data = [{"path": "/etc/hostname", "meta": {"_type": "gradio.FileData"}}, "", "", ""]
    event = httpx.post(f"{server}gradio_api/call/report", json={"data": data}).json()["event_id"]
    stream = httpx.get(f"{server}gradio_api/call/report/{event}", timeout=60).text
    assert "event: error" in stream and "complete" not in stream


def test_an_upload_beyond_the_limit_is_refused_while_it_arrives(server, desk):
    files = {"files": ("volume.nii", bytes(desk.limits.upload_bytes + 2**20))}
    assert httpx.post(f"{server}gradio_api/upload", files=files, timeout=60).status_code == 413
    assert not any(path.is_file() for path in desk.sessions.uploads.rglob("*"))


def test_the_same_file_of_two_visitors_is_two_files_and_keeps_no_name(server, desk):
    paths = [
        httpx.post(f"{server}gradio_api/upload", files={"files": ("DOE_JANE.NII.GZ", b"same")}).json()[0]
        for _ in "12"
    ]
    assert paths[0] != paths[1] and all(path.endswith("/volume.nii.gz") for path in paths)
    assert len(list(desk.sessions.uploads.iterdir())) == 2
    for path in desk.sessions.uploads.iterdir():
        forget_upload(path / "volume.nii.gz", desk.sessions.uploads)


def test_a_name_that_leads_elsewhere_leads_nowhere(server, desk):
    files = {"files": ("../../../evil.sh", b"x")}
    path = httpx.post(f"{server}gradio_api/upload", files=files).json()[0]
    assert path.startswith(str(desk.sessions.uploads)) and path.endswith("/volume")
    forget_upload(Path(path), desk.sessions.uploads)


def test_the_page_names_no_other_host_and_forbids_to_fetch_from_one(server):
    answer = httpx.get(server)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'self'" in policy and "http" not in policy
    fetched = re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=\"(https?://[^\"]+)", answer.text)
    assert [address for address in fetched if not address.startswith(server)] == []
    assert "Not a medical device" in answer.text


def test_studies_are_behind_their_keys_and_never_cached(server, desk, upload):
    session = desk.sessions.of("somebody")
    desk.open_upload(session, upload())
    query = "slice.png?plane=axial&index=3&preset=Lung"
    picture = httpx.get(f"{server}files/{session.key}/{query}")
    assert picture.status_code == 200 and picture.headers["cache-control"] == "no-store"
    assert httpx.get(f"{server}files/{session.key}/volume.nii.gz").status_code == 200
    for address in (
        f"x/{query}",
        f"{session.key}/run.json",
        f"{session.key}/volume.npy",
        f"{session.key}/heat.nii.gz",
    ):
        assert httpx.get(f"{server}files/{address}").status_code == 404
    assert httpx.get(f"{server}files/{session.key}/slice.png?plane=axial&index=no").status_code == 400
    desk.sessions.leave("somebody")
    assert httpx.get(f"{server}files/{session.key}/{query}").status_code == 404


def test_files_of_visitors_are_not_served_by_path(server, desk, upload):
    session = desk.sessions.of("somebody")
    desk.open_upload(session, upload())
    answer = httpx.get(f"{server}gradio_api/file={session.folder}/volume.npy")
    assert answer.status_code in (403, 404)
    desk.sessions.leave("somebody")
