"""A running endpoint: uvicorn on loopback in a thread, with the embedded checkpoint."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")
import httpx
import uvicorn

from hf_mu2.reporting.inference import Reader, load_reader
from hf_mu2.serving.app import make_app


@pytest.fixture(scope="session")
def reader() -> Reader:
    return load_reader(device="cpu")


@pytest.fixture(scope="session")
def nifti(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small phantom under a name that must never come back."""
    from hf_mu2.data.nifti import save_nifti
    from hf_mu2.data.phantom import make_phantom

    path = tmp_path_factory.mktemp("volume") / "Doe_Jane_1950.nii.gz"
    save_nifti(make_phantom(7, spacing=(10.0, 7.0, 7.0)).nifti(), path)
    return path


@pytest.fixture
def serving(reader: Reader) -> Callable:
    """Return a context manager that runs the endpoint and gives a client of it."""

    @contextmanager
    def run(**options: object) -> Iterator[httpx.Client]:
        app = make_app(reader, **{"max_new_tokens": 24} | options)
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
            client.app = app
            yield client
        server.should_exit = True
        thread.join(20)
        assert not app.state.store.folder.exists()  # nothing of a client outlives the server

    return run
