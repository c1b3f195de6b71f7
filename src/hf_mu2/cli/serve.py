"""Commands that keep running: serve, watch."""

import os
from pathlib import Path
from typing import Annotated

import typer

from .shared import MaxNewTokens, Model, Question, app, complain

KEY, DICOMWEB_TOKEN = "HF_MU2_API_KEY", "HF_MU2_DICOMWEB_TOKEN"
LOOPBACK = ("127.0.0.1", "::1", "localhost")


@app.command()
def serve(
    model: Model = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; others than loopback need an API key.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on.")] = 8000,
    waiting: Annotated[int, typer.Option(min=0, help="Requests that may wait for the model.")] = 16,
    upload_mb: Annotated[int, typer.Option(min=1, help="Largest volume taken.")] = 512,
    dicomweb: Annotated[
        str | None, typer.Option(metavar="URL", help="DICOMweb server to fetch series from.")
    ] = None,
    max_new_tokens: MaxNewTokens = 512,
) -> None:
    """Serve a checkpoint to OpenAI clients.

    HF_MU2_API_KEY holds the key that clients must send, HF_MU2_DICOMWEB_TOKEN that for the DICOMweb server.
    """
    try:
        import uvicorn

        from hf_mu2.serving.app import make_app
    except ImportError as error:
        raise ImportError(f'Serving needs `pip install "hf_mu2[serve]"` ({error}).') from error
    from hf_mu2.reporting.inference import load_reader
    from hf_mu2.reporting.uploads import UploadLimits
    from hf_mu2.serving.dicomweb import DicomWeb
    from hf_mu2.serving.limits import ServingLimits

    key = os.environ.get(KEY) or None
    if host not in LOOPBACK and key is None:
        raise ValueError(
            f"A server that others can reach must ask for a key, got `--host {host}` without one. Set {KEY}, and put a "
            "proxy with TLS before it."
        )
    reader = load_reader(model)
    complain(f"{reader.notice} Serving {reader.name} on http://{host}:{port}/v1")
    source = None if dicomweb is None else DicomWeb(dicomweb, os.environ.get(DICOMWEB_TOKEN) or None)
    limits = ServingLimits(volumes=UploadLimits(upload_bytes=upload_mb << 20), waiting=waiting)
    application = make_app(reader, limits=limits, api_key=key, max_new_tokens=max_new_tokens, dicomweb=source)
    uvicorn.run(application, host=host, port=port, log_level="warning", access_log=False)


@app.command()
def watch(
    inbox: Annotated[
        Path, typer.Argument(help="Folder in which NIfTI files, zips and DICOM folders arrive.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the reports, one folder per volume.")],
    model: Model = None,
    question: Question = None,
    also: Annotated[
        list[str] | None,
        typer.Option(help="Also write pdf, dicom-sr, dicom-pdf, fhir-r4 or fhir-r5; may be repeated."),
    ] = None,
    allow_demo: Annotated[
        bool, typer.Option("--allow-demo", help="Clinical formats of a model that knows synthetic CT only.")
    ] = False,
    settle_s: Annotated[
        float, typer.Option(min=0, help="Seconds without a change before a volume is read.")
    ] = 5.0,
    once: Annotated[bool, typer.Option("--once", help="Do what is there and return.")] = False,
    max_new_tokens: MaxNewTokens = 512,
) -> None:
    """Report every volume that arrives in a folder."""
    try:
        from hf_mu2.serving.watch import watch_folder
    except ImportError as error:
        raise ImportError(f'Watching needs `pip install "hf_mu2[serve]"` ({error}).') from error
    from hf_mu2.reporting.inference import load_reader
    from hf_mu2.reporting.report import Request

    reader = load_reader(model)
    complain(reader.notice)
    watch_folder(
        inbox,
        out,
        reader,
        request=Request(question=question, max_new_tokens=max_new_tokens),
        formats=tuple(also or ()),
        allow_demo=allow_demo,
        settle_s=settle_s,
        once=once,
        told=lambda arrival: typer.echo(
            f"{arrival.volume.name}: {arrival.refusal or arrival.folder}", err=arrival.refusal is not None
        ),
    )
