"""The command line, `hf-mu2`. Exit codes: 0 done, 1 failed, 2 bad input. Results on stdout, the rest on stderr.

Heavy imports live inside the commands, so that `hf-mu2 --help` stays as quick as importing the package.
"""

import os
import sys
from pathlib import Path

from hf_mu2.files import PARTIAL

from . import checkpoints, phantom, data, prepare, rewrite, training, plan, negatives, slices  # isort: skip
from . import reports, explain, impressions, labels, evaluate, lookup, judge, publish  # isort: skip
from . import sample, pairs, demo, confidence, serve  # isort: skip
from .shared import app, complain

# The order above is that of `hf-mu2 --help`.
__all__ = [
    "app",
    "checkpoints",
    "confidence",
    "data",
    "demo",
    "evaluate",
    "explain",
    "impressions",
    "judge",
    "labels",
    "lookup",
    "main",
    "negatives",
    "pairs",
    "phantom",
    "plan",
    "prepare",
    "publish",
    "reports",
    "rewrite",
    "sample",
    "serve",
    "slices",
    "training",
]


def main() -> None:
    """Run the command line; bad input ends in one paragraph on stderr and exit code 2."""
    if not sys.stderr.isatty():  # bars are for people; both libraries read this when they are imported
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        app()
    except (ValueError, OSError, ImportError) as error:
        if os.environ.get("HF_MU2_TRACEBACK"):
            raise
        complain(f"Error: {_message(error)}")
        sys.exit(2 if _is_bad_input(error) else 1)
    except Exception as error:  # a defect of this package; what it says may quote a report
        if os.environ.get("HF_MU2_TRACEBACK"):
            raise
        complain(
            f"Error: A command ends with a result or says what is wrong, this one met a {type(error).__name__}. "
            "Run it again with HF_MU2_TRACEBACK=1 and tell the authors what it shows."
        )
        sys.exit(1)


def _is_bad_input(error: Exception) -> bool:
    """Tell what the caller can mend from what the machine refuses, such as a full disk or a missing package."""
    # transformers raises a bare OSError, without errno, for a checkpoint that does not exist.
    is_path = isinstance(error, tuple(_PATHS))
    return isinstance(error, ValueError) or is_path or (isinstance(error, OSError) and error.errno is None)


# What the operating system says of a path, as rule, what arrived, and what to do.
_PATHS = {
    FileNotFoundError: "A path must exist, there is no `{}`. Check its spelling.",
    IsADirectoryError: "A file must be named here, `{}` is a folder. Name a file, or move the folder away.",
    NotADirectoryError: "A folder must be named here, `{}` is a file or lies in one. Name a folder.",
    FileExistsError: "A folder must be named here, `{}` is a file. Name a folder, or move the file away.",
    PermissionError: "Inputs must be readable and outputs writable, `{}` is not. Choose another path.",
}


def _message(error: Exception) -> str:
    """Say what is wrong; of a partial file, by the name it was to get."""
    for kind, sentence in _PATHS.items():
        if isinstance(error, kind) and error.filename is not None:
            path = Path(os.fsdecode(error.filename2 or error.filename))
            return sentence.format(path.with_name(path.name.removeprefix(PARTIAL)))
    return str(error)
