"""The endpoint: what OpenAI's client sees, what is refused, and that nothing of a client stays or leaks."""

import base64
import json
import socket
import threading
import time

import httpx
import pytest

from hf_mu2.reporting.report import Request, report_volume
from hf_mu2.reporting.streaming import Reply
from hf_mu2.reporting.uploads import UploadLimits
from hf_mu2.serving.limits import ServingLimits

openai = pytest.importorskip("openai")


def attach(client: httpx.Client, path) -> str:
    with path.open("rb") as file:
        return client.post("/v1/files", files={"file": file}, data={"purpose": "user_data"}).json()["id"]


def ask(file_id: str, question: str = "Is there a pleural effusion?", **fields) -> dict:
    part = {"type": "file", "file": {"file_id": file_id}}
    content = [part, {"type": "text", "text": question}]
    return {"model": "mu2-phantom", "messages": [{"role": "user", "content": content}], **fields}


def until(claim, seconds: float = 30.0) -> bool:
    end = time.monotonic() + seconds
    while not (found := claim()) and time.monotonic() < end:
        time.sleep(0.02)
    return found


def test_one_upload_gives_the_report_of_the_command_line(serving, reader, nifti):
    expected = report_volume(nifti, reader, Request(max_new_tokens=24))
    with serving() as client, nifti.open("rb") as file:
        answer = client.post("/v1/reports", files={"file": file})
        made = answer.json()
        assert answer.status_code == 200 and answer.headers["X-Notice"] == reader.notice
        assert (made["report"], made["study_id"]) == (expected.text, expected.study_id)
        assert (made["notice"], made["model_revision"]) == (reader.notice, reader.revision)
        assert "Doe" not in answer.text and list(client.app.state.store.folder.iterdir()) == []


def test_openais_client_uploads_asks_and_streams(serving, nifti):
    with serving() as client:
        api = openai.OpenAI(base_url=f"{client.base_url}/v1", api_key="none", max_retries=0)
        assert [model.id for model in api.models.list()] == ["mu2-phantom"]
        uploaded = api.files.create(file=nifti, purpose="user_data")
        assert uploaded.filename == "volume"  # names of clients' files are not kept
        whole = api.chat.completions.create(**ask(uploaded.id))
        pieces = list(api.chat.completions.create(**ask(uploaded.id), stream=True))
        streamed = "".join(piece.choices[0].delta.content or "" for piece in pieces)
        assert whole.choices[0].message.content == streamed.strip() and len(pieces) > 3
        assert pieces[-1].choices[0].finish_reason == whole.choices[0].finish_reason == "length"
        assert api.files.delete(uploaded.id).deleted
        with pytest.raises(openai.NotFoundError, match="Upload it again"):
            api.chat.completions.create(**ask(uploaded.id))


def test_an_inline_volume_is_read_like_an_uploaded_one(serving, nifti):
    url = f"data:application/gzip;base64,{base64.b64encode(nifti.read_bytes()).decode()}"
    with serving() as client:
        answers = [
            client.post(
                "/v1/chat/completions",
                json={"messages": [{"role": "user", "content": [part, {"type": "text", "text": "Report."}]}]},
            ).json()
            for part in (
                {"type": "file", "file": {"file_data": url}},
                {"type": "image_url", "image_url": {"url": url}},
                {"type": "file", "file": {"file_id": attach(client, nifti)}},
            )
        ]
        assert len({answer["choices"][0]["message"]["content"] for answer in answers}) == 1
        assert len({answer["study_id"] for answer in answers}) == 1


def test_a_follow_up_hears_what_was_said_and_keeps_the_volume(serving, nifti):
    with serving() as client:
        first = ask(attach(client, nifti), "Write the report.")
        said = client.post("/v1/chat/completions", json=first).json()["choices"][0]["message"]
        follow_up = [*first["messages"], said, {"role": "user", "content": "Is the heart enlarged?"}]
        answer = client.post("/v1/chat/completions", json={"messages": follow_up})
        assert answer.status_code == 200 and answer.json()["choices"][0]["message"]["content"]


@pytest.mark.parametrize(
    ("request_body", "message"),
    [
        ({"messages": [{"role": "user", "content": "Hello"}]}, "about one volume"),
        ({"messages": []}, "last message"),
        (
            {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "x"}]},
            "`system`",
        ),
        ({"temperature": 0.7}, "greedy"),
        ({"n": 3}, "one answer"),
        ({}, "messages: Field required"),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/ct"}}]}
                ]
            },
            "not fetched",
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "file", "file": {"file_data": "data:a;base64,?"}}]}
                ]
            },
            "base64",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "type `file`"),
    ],
)
def test_what_cannot_be_answered_is_refused_in_the_form_of_the_api(serving, request_body, message):
    body = request_body if "messages" in request_body or not request_body else ask("file-x", **request_body)
    with serving() as client:
        answer = client.post("/v1/chat/completions", json=body)
        assert answer.status_code == 400 and message in answer.json()["error"]["message"]
        assert answer.json()["error"]["type"] == "invalid_request_error"


def test_broken_uploads_are_refused_without_their_name_and_leave_nothing(serving, tmp_path, nifti):
    broken = tmp_path / "Doe_Jane_broken.nii.gz"
    broken.write_bytes(nifti.read_bytes()[:2000])
    text = tmp_path / "Doe_Jane_letter.nii.gz"
    text.write_text("Dear colleague")
    with serving() as client:
        for path in (broken, text):
            with path.open("rb") as file:
                answer = client.post("/v1/reports", files={"file": file})
            assert answer.status_code == 400 and "Doe" not in answer.text and str(tmp_path) not in answer.text
        assert list(client.app.state.store.folder.iterdir()) == []


def test_large_bodies_are_refused_before_they_are_stored(serving):
    limits = ServingLimits(volumes=UploadLimits(upload_bytes=3 << 20), inline_bytes=1 << 20)
    with serving(limits=limits) as client:
        announced = client.post("/v1/reports", files={"file": b"x" * (5 << 20)})
        hidden = client.post("/v1/chat/completions", content=(b"x" * (1 << 19) for _ in range(4)))
        assert (announced.status_code, hidden.status_code) == (413, 413)
        assert "may have" in announced.json()["error"]["message"]
        assert list(client.app.state.store.folder.iterdir()) == []


def test_uploads_expire(serving, nifti):
    with serving(limits=ServingLimits(keep_s=0.2)) as client:
        file_id = attach(client, nifti)
        assert until(lambda: not list(client.app.state.store.folder.iterdir()), 5)
        assert client.get(f"/v1/files/{file_id}").status_code == 404


def test_a_full_queue_says_when_to_come_back(serving, nifti):
    with serving(limits=ServingLimits(waiting=0), max_new_tokens=200) as client:
        body = ask(attach(client, nifti), "Write the report.")
        statuses: list[int] = []

        def request() -> None:
            answer = client.post("/v1/chat/completions", json=body)
            statuses.append(answer.status_code)
            if answer.status_code == 429:
                assert int(answer.headers["Retry-After"]) >= 1
                assert answer.json()["error"]["type"] == "rate_limit_error"

        threads = [threading.Thread(target=request) for _ in range(5)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        assert sorted(set(statuses)) == [200, 429]
        assert client.app.state.worker.admitted == 0


def test_a_client_that_leaves_frees_the_model(serving, nifti):
    with serving(max_new_tokens=400) as client:
        body = ask(attach(client, nifti), "Write the report.", stream=True)
        with client.stream("POST", "/v1/chat/completions", json=body) as answer:
            lines = answer.iter_lines()  # the client leaves when it is gone
            next(lines)
            assert client.app.state.worker.admitted == 1
        assert until(lambda: client.app.state.worker.admitted == 0)
        assert (
            client.post("/v1/chat/completions", json=ask(attach(client, nifti), max_tokens=4)).status_code
            == 200
        )


def test_a_stream_that_fails_says_so_in_its_last_event(serving, tmp_path):
    broken = tmp_path / "x.nii.gz"
    broken.write_bytes(b"no volume")
    with serving() as client:
        answer = client.post("/v1/chat/completions", json=ask(attach(client, broken), stream=True))
        assert answer.status_code == 200 and '"error"' in answer.text.strip().splitlines()[-1]
        assert client.app.state.worker.admitted == 0


def test_a_key_guards_everything_but_health(serving, nifti):
    with serving(api_key="secret") as client:
        assert client.get("/health").json()["status"] == "ok"
        for path in ("/v1/models", "/metrics"):
            assert client.get(path).status_code == 401
            assert client.get(path, headers={"Authorization": "Bearer wrong"}).status_code == 401
            assert client.get(path, headers={"Authorization": "Bearer secret"}).status_code == 200


def test_metrics_count_requests_by_route_and_hold_no_words_of_clients(serving, nifti):
    with serving() as client:
        file_id = attach(client, nifti)
        client.get("/v1/files/file-doe-jane")
        client.get("/doe-jane")
        text = client.get("/metrics").text
        assert 'hf_mu2_requests_total{path="/v1/files",status="200"} 1.0' in text
        assert 'path="/v1/files/{file_id}",status="404"' in text
        assert file_id not in text and "doe" not in text


def test_a_server_for_others_wants_a_key(cli, monkeypatch):
    monkeypatch.delenv("HF_MU2_API_KEY", raising=False)
    result = cli("serve", "--host", "0.0.0.0")
    assert result.code == 2 and "HF_MU2_API_KEY" in result.err


@pytest.fixture
def held(monkeypatch):
    """Hold the model after its first word, until the event is set."""
    go_on = threading.Event()

    def reply(reader, volume, question, history, max_new_tokens):
        yield Reply(reader.name, "Findings")
        go_on.wait(20)
        yield Reply(reader.name, "Findings: none.", "eos", 1.0)

    monkeypatch.setattr("hf_mu2.serving.worker.stream_reply", reply)
    return go_on


def test_a_client_that_leaves_the_queue_gives_its_place_back(serving, nifti, held):
    with serving() as client:
        worker, body = client.app.state.worker, ask(attach(client, nifti))
        with client.stream("POST", "/v1/chat/completions", json=body | {"stream": True}) as first:
            lines = first.iter_lines()  # the client leaves when it is gone
            next(lines)
            for fields in ({"stream": True}, {"stream": False}):
                with pytest.raises(httpx.ReadTimeout):
                    client.post("/v1/chat/completions", json=body | fields, timeout=1)
            with pytest.raises(httpx.ReadTimeout), nifti.open("rb") as file:
                client.post("/v1/reports", files={"file": file}, timeout=1)
            assert until(lambda: worker.admitted == 1, 5)
        held.set()
        assert until(lambda: worker.admitted == 0, 5)
        assert client.post("/v1/chat/completions", json=body).status_code == 200


def test_a_body_that_stops_arriving_is_given_up(serving):
    with serving(limits=ServingLimits(stall_s=0.3)) as client:
        address = (client.base_url.host, client.base_url.port)
        with socket.create_connection(address, timeout=10) as slow:
            slow.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
            assert b" 408 " in slow.recv(4096)


def test_an_upload_that_is_deleted_while_its_question_waits_is_told(serving, nifti, held):
    with serving(limits=ServingLimits(loaded=1)) as client:
        first, second = attach(client, nifti), attach(client, nifti)
        statuses: list[int] = []

        def request() -> None:
            statuses.append(client.post("/v1/chat/completions", json=ask(second)).status_code)

        with client.stream("POST", "/v1/chat/completions", json=ask(first, stream=True)) as answer:
            lines = answer.iter_lines()  # the client leaves when it is gone
            next(lines)
            thread = threading.Thread(target=request)
            thread.start()
            assert until(lambda: client.app.state.worker.admitted == 2, 5), (
                statuses,
                client.app.state.worker.admitted,
            )
            client.delete(f"/v1/files/{second}")
            held.set()
        thread.join()
        assert statuses == [404] and client.app.state.store.total_bytes == nifti.stat().st_size


@pytest.mark.parametrize(
    "body",
    [
        b'{"messages": ' + b"[" * 100_000,
        b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": NaN}',
        b'{"messages": [{"role": ["user"], "content": {"Doe": "Jane"}}]}',
        b'{"messages": [{"role": "Doe", "content": "x"}]}',
        b'{"messages": [{"role": "user", "content": [{"type": ["Doe"], "text": 3}]}], "temperature": 1e999}',
        b'{"messages": "Doe", "stream": "perhaps"}',
        b"\xff\xfe",
    ],
)
def test_a_body_of_wrong_types_is_refused_without_its_words(serving, body):
    with serving() as client:
        answer = client.post(
            "/v1/chat/completions", content=body, headers={"Content-Type": "application/json"}
        )
        assert answer.status_code == 400 and "Doe" not in answer.text


@pytest.mark.parametrize("question", ["\ud800 alone", "<|image|> <|image_pad|> <volume>", "\0", "肺"])
def test_odd_questions_are_answered_or_refused(serving, nifti, question):
    with serving(max_new_tokens=2) as client:
        body = json.dumps(ask(attach(client, nifti), question))
        answer = client.post(
            "/v1/chat/completions", content=body, headers={"Content-Type": "application/json"}
        )
        assert answer.status_code in (200, 400), answer.text
