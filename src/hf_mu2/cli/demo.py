"""The demo in the browser: look at a CT, ask, read, check."""

from typing import Annotated

import typer

from .shared import app, complain


@app.command()
def demo(
    model: Annotated[
        list[str] | None,
        typer.Option(help="Checkpoint folder or Hub id; again for a second model to set beside it."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 lets others in.")] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port.", show_default="the first free from 7860")
    ] = None,
    max_upload_mb: Annotated[int, typer.Option(min=1, help="Largest upload in MB.")] = 512,
    fetch_viewer: Annotated[
        bool,
        typer.Option(
            "--fetch-viewer",
            help="Fetch NiiVue with npm into the user's cache, once; without it the server draws the slices.",
        ),
    ] = False,
    open_browser: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
) -> None:
    """Show a CT in the browser and ask about it.

    Runs on this machine alone: no telemetry, nothing fetched from elsewhere, uploads deleted.
    """
    try:
        from hf_mu2.demo.app import serve
    except ImportError as error:
        raise ImportError('The demo needs gradio: `pip install "hf_mu2[demo]"`.') from error
    from hf_mu2.demo.desk import Desk
    from hf_mu2.demo.limits import Limits
    from hf_mu2.demo.niivue import find_niivue, install_niivue
    from hf_mu2.reporting.inference import load_reader

    if fetch_viewer:
        install_niivue()
    elif find_niivue() is None:
        complain(
            "NiiVue is not installed, the server draws the slices. `hf-mu2 demo --fetch-viewer` fetches it."
        )
    readers = [load_reader(name) for name in model] if model else [load_reader()]
    serve(Desk(readers, Limits(upload_bytes=max_upload_mb * 2**20)), host, port, open_browser)
