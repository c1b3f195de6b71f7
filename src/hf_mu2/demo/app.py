"""The page and its events: a thin layer of gradio over `Desk`.

Reads: loaded checkpoints.
Writes: nothing but what `Sessions` keeps. No telemetry, nothing fetched from elsewhere.
"""

import os
import signal
import sys
import time
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported

import gradio as gr
from starlette.middleware import Middleware

from .api import add_endpoints
from .desk import Desk
from .downloads import available
from .niivue import find_niivue
from .page import downloads_html, talk_html, viewer_value
from .phantoms import CASES
from .problems import describe
from .routes import PrivateHeaders, make_routes

_STATIC = Path(__file__).parent / "static"
_FRAME_S = 0.08  # between two pictures of a growing answer
_NO_MODEL = "None"


def build_app(desk: Desk) -> gr.Blocks:
    """Build the page and the endpoints."""
    # gradio stores uploads where this says; it has no other way to be told.
    os.environ["GRADIO_TEMP_DIR"] = str(desk.sessions.uploads)
    niivue = find_niivue()
    has_niivue = niivue is not None
    source_value: dict[str, Any] = {
        "status": "",
        "kind": "",
        "upload_bytes": desk.limits.upload_bytes,
        "cases": [{"name": case.name, "title": case.title} for case in CASES],
    }
    nobody = desk.sessions.blank()

    with gr.Blocks(title="hf_mu2", analytics_enabled=False, fill_width=True) as app:
        gr.HTML(_header(desk), elem_classes="mu2-header-box", apply_default_css=False)
        with gr.Row(elem_classes="mu2-columns"):
            with gr.Column(scale=11, min_width=320, elem_classes="mu2-left"):
                source = gr.HTML(
                    source_value,
                    html_template=_read("source.html"),
                    js_on_load=_read("source.js"),
                    apply_default_css=False,
                )
                viewer = gr.HTML(
                    viewer_value(nobody, has_niivue),
                    html_template=_read("viewer.html"),
                    js_on_load=_read("viewer.js"),
                    head='<script src="niivue.umd.js"></script>' if has_niivue else None,
                    apply_default_css=False,
                )
            with gr.Column(scale=9, min_width=320, elem_classes="mu2-right"):
                talk = gr.HTML(
                    talk_html(nobody),
                    js_on_load=_read("talk.js"),
                    apply_default_css=False,
                )
                with gr.Row(visible=len(desk.models) > 1, elem_classes="mu2-models"):
                    model = gr.Dropdown(desk.models, value=desk.models[0], label="Model")
                    beside = gr.Dropdown([_NO_MODEL, *desk.models], value=_NO_MODEL, label="Beside it")
                with gr.Row(elem_classes="mu2-ask"):
                    question = gr.Textbox(
                        placeholder="Ask about this CT",
                        label="Question",
                        show_label=False,
                        lines=1,
                        max_lines=4,
                        max_length=desk.limits.question_chars,
                        scale=8,
                        min_width=160,
                    )
                    send = gr.Button("Ask", variant="primary", scale=1, min_width=84, elem_classes="mu2-send")
                    stop = gr.Button("Stop", scale=1, min_width=84, elem_classes="mu2-stop")
                downloads = gr.HTML("", apply_default_css=False)

        def on_open(event: gr.EventData, request: gr.Request) -> Any:
            session, data = desk.sessions.of(_visitor(request)), event._data
            status, kind = "", ""
            try:
                if "case" in data:
                    desk.open_case(session, str(data["case"]))
                else:
                    desk.open_upload(session, str(data.get("path", "")), str(data.get("series", "")).strip())
            except Exception as error:
                status, kind = describe(error), "error"
            return (
                source_value | {"status": status, "kind": kind, "revision": session.revision},
                viewer_value(session, has_niivue),
                talk_html(session),
                downloads_html(session, available(session)),
            )

        def on_ask(text: str, first: str, second: str, request: gr.Request) -> Iterator[Any]:
            session = desk.sessions.of(_visitor(request))
            models = [first] if second in (_NO_MODEL, first) else [first, second]

            def frame(working: str = "", problem: str = "", viewed: Any = gr.skip()) -> Any:  # noqa: B008
                links = downloads_html(session, available(session))
                return talk_html(session, working, problem), links, "", viewed

            had_heat = session.heat is not None  # of the last answer: it goes when the next one comes
            drawn = 0.0
            try:
                for _ in desk.ask(session, text, models):
                    if time.monotonic() - drawn > _FRAME_S:
                        viewed = viewer_value(session, has_niivue) if had_heat else gr.skip()
                        yield frame("Reading the CT under this question", viewed=viewed)
                        drawn, had_heat = time.monotonic(), False
                for doing in desk.explain(session):
                    yield frame(doing)
                yield frame()
            except Exception as error:
                yield frame(problem=describe(error))

        def on_suggestion(event: gr.EventData) -> str:
            return str(event._data.get("question", ""))

        def on_sentence(event: gr.EventData, request: gr.Request) -> Any:
            session, data = desk.sessions.of(_visitor(request)), event._data
            try:
                place = [int(data.get(name, -1)) for name in ("turn", "reply", "sentence")]
                _, focus = desk.select(session, place[0], place[1], place[2])
            except Exception as error:
                return talk_html(session, problem=describe(error)), gr.skip(), gr.skip()
            return (
                talk_html(session),
                viewer_value(session, has_niivue, focus),
                downloads_html(session, available(session)),
            )

        def on_stop(request: gr.Request) -> None:
            desk.sessions.of(_visitor(request)).stop.set()  # the answer ends at its next word, and says so

        def on_leave(request: gr.Request) -> None:
            desk.sessions.leave(_visitor(request))

        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        source.opened(
            on_open,
            None,
            [source, viewer, talk, downloads],
            concurrency_id="open",
            concurrency_limit=2,
            **quiet,
        )
        asking: dict[str, Any] = {
            "fn": on_ask,
            "inputs": [question, model, beside],
            "outputs": [talk, downloads, question, viewer],
            "concurrency_id": "model",
            "concurrency_limit": 1,
        } | quiet
        gr.on([send.click, question.submit], **asking)
        talk.suggestion(on_suggestion, None, question, **quiet).then(**asking)
        talk.sentence(on_sentence, None, [talk, viewer, downloads], **quiet)
        stop.click(on_stop, None, None, queue=False, **quiet)
        app.unload(on_leave)
        add_endpoints(desk)

    app.queue(max_size=desk.limits.queue, default_concurrency_limit=4)
    return app


def launch_options(desk: Desk) -> dict[str, Any]:
    """Return what `gr.Blocks.launch` must be told for this app, wherever it runs."""
    return {
        "theme": gr.themes.Base(
            primary_hue="teal",
            neutral_hue="slate",
            font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"],
            font_mono=["ui-monospace", "SFMono-Regular", "Consolas", "monospace"],
        ),
        "css": _read("style.css"),
        "max_file_size": desk.limits.upload_bytes,
        # gradio keeps what it knows of a session for an hour after it ends, 10,000 sessions by default.
        "state_session_capacity": desk.limits.sessions,
        "run_history": False,  # else the browser keeps answers after the page is closed
        "app_kwargs": {
            "routes": make_routes(desk, find_niivue()),
            "middleware": [Middleware(PrivateHeaders)],
        },
        "footer_links": ["api"],
        "share": False,
        "ssr_mode": False,
        "enable_monitoring": False,
        "show_error": True,
    }


def serve(desk: Desk, host: str | None = None, port: int | None = None, open_browser: bool = False) -> None:
    """Serve until interrupted or told to end; every visitor's files are deleted on the way out."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        build_app(desk).launch(
            server_name=host, server_port=port, inbrowser=open_browser, **launch_options(desk)
        )
    finally:
        desk.close()


def _header(desk: Desk) -> str:
    models = ", ".join(escape(name) for name in desk.models)
    return (
        '<header class="mu2-header"><h1>hf_mu2 <small>CT reports, sentence by sentence</small></h1>'
        f'<p class="mu2-model">{models}</p></header>'
        f'<p class="mu2-notice" role="note"><b>Research use only.</b> {escape(desk.notice)}</p>'
    )


def _visitor(request: gr.Request) -> str:
    return str(request.session_hash)


def _read(name: str) -> str:
    return (_STATIC / name).read_text(encoding="utf-8")
