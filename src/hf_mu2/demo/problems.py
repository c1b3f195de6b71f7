"""Say what went wrong: bad input in its own words, a defect of ours without its innards, which may hold a path."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape

import gradio as gr

logger = logging.getLogger(__name__)


def describe(error: Exception) -> str:
    """Return the sentence a visitor reads."""
    if isinstance(error, ValueError | ImportError):
        return str(error)
    logger.error("A request met a %s.", type(error).__name__, exc_info=logger.isEnabledFor(logging.DEBUG))
    return (
        f"A request ends with a result or says what is wrong, this one met a {type(error).__name__}. Try again; if it "
        "comes back, tell the authors."
    )


@contextmanager
def told_to_clients() -> Iterator[None]:
    """Turn errors into those that gradio hands to its clients."""
    try:
        yield
    except Exception as error:
        raise gr.Error(escape(describe(error), quote=False), print_exception=False) from None
