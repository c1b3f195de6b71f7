"""What programs share that keep a model running for others: the demo and the endpoint.

Reads: nothing.
Writes: the log.
"""

import ctypes
import logging
from contextlib import suppress

logger = logging.getLogger(__name__)


def describe_defect(error: Exception) -> str:
    """Say that something broke, without its innards, which may hold a path."""
    logger.error("A request met a %s.", type(error).__name__, exc_info=logger.isEnabledFor(logging.DEBUG))
    return (
        f"A request ends with a result or says what is wrong, this one met a {type(error).__name__}. Try again; if it "
        "comes back, tell the authors."
    )


def return_memory() -> None:
    """Hand freed memory back to the system: glibc keeps what its many threads freed, which large volumes make much."""
    with suppress(OSError, AttributeError):  # of another system or C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)
