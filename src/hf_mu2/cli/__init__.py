"""The command line, `hf-mu2`. Exit codes: 0 done, 1 failed, 2 bad input. Results on stdout, the rest on stderr.

Heavy imports live inside the commands, so that `hf-mu2 --help` stays as quick as importing the package.
"""

import os
import sys

from . import checkpoints, phantom, data, prepare, training  # isort: skip
from . import reports, impressions, labels, evaluate, judge, publish  # isort: skip
from .shared import app, complain

# The order above is that of `hf-mu2 --help`.
__all__ = [
    "app",
    "checkpoints",
    "data",
    "evaluate",
    "impressions",
    "judge",
    "labels",
    "main",
    "phantom",
    "prepare",
    "publish",
    "reports",
    "training",
]


def main() -> None:
    """Run the command line; bad input ends in one paragraph on stderr and exit code 2."""
    try:
        app()
    except (ValueError, OSError, ImportError) as error:
        if os.environ.get("HF_MU2_TRACEBACK"):
            raise
        complain(f"Error: {error}")
        sys.exit(2 if _is_bad_input(error) else 1)


def _is_bad_input(error: Exception) -> bool:
    """Tell what the caller can mend from what the machine refuses, such as a full disk or a missing package."""
    # transformers raises a bare OSError, without errno, for a checkpoint that does not exist.
    is_path = isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError | PermissionError)
    return isinstance(error, ValueError) or is_path or (isinstance(error, OSError) and error.errno is None)
