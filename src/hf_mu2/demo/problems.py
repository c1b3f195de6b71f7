"""Say what went wrong: bad input in its own words, a defect of ours without its innards, which may hold a path."""

from collections.abc import Iterator
from contextlib import contextmanager
from html import escape

import gradio as gr

from hf_mu2.reporting.host import describe_defect


def describe(error: Exception) -> str:
    """Return the sentence a visitor reads."""
    if isinstance(error, ValueError | ImportError):
        return str(error)
    return describe_defect(error)


@contextmanager
def told_to_clients() -> Iterator[None]:
    """Turn errors into those that gradio hands to its clients."""
    try:
        yield
    except Exception as error:
        raise gr.Error(escape(describe(error), quote=False), print_exception=False) from None
