"""Upload the demo to the Hub as a Space: its page, its door to this package, and what to install.

Reads: the files of `demo/space/` (`spaces_demo/` in the repository is links to them).
Writes: a Space repository, and its variable `HF_MU2_MODELS` where models are named.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import hf_mu2

from .upload import CARD, PublishError, UploadPlan, refuse, upload
from .upload_checks import find_secrets, list_files

FOLDER = Path(hf_mu2.__file__).parent / "demo" / "space"
REQUIREMENTS, MODELS_VARIABLE = "requirements.txt", "HF_MU2_MODELS"
_REPO = re.compile(r"[\w.-]+/[\w.-]+")


def plan_space(*, models: Sequence[str] = (), wheel: str | Path | None = None) -> UploadPlan:
    """List what a Space would be made of. Touches no network.

    Args:
        models (`Sequence[str]`): Hub ids of the models that answer, linked from its page; the embedded checkpoint when
            there is none.
        wheel (`str` or `Path`, *optional*): Wheel of this package, sent along; by default the release of this version
            is installed.

    Raises:
        PublishError: if a model is no Hub id, or the wheel is none of this package.
    """
    if unknown := [name for name in models if not _REPO.fullmatch(name)]:
        raise PublishError(
            f"A Space loads models from the Hub, `{unknown[0]}` is no Hub id such as name/model."
        )
    files, left = list_files(FOLDER, FOLDER.parents[1])
    replaced = {REQUIREMENTS: _requirements(wheel), CARD: _card(models)}
    if wheel is not None:
        replaced[Path(wheel).name] = Path(wheel).read_bytes()
    refuse(FOLDER, find_secrets(FOLDER, files))
    names = sorted({*files, *replaced})
    sizes = tuple(
        (name, len(replaced[name]) if name in replaced else (FOLDER / name).stat().st_size) for name in names
    )
    return UploadPlan(FOLDER, sizes, tuple(left), replaced[CARD].decode(), replaced)


def upload_space(
    plan: UploadPlan,
    repo_id: str,
    *,
    models: Sequence[str] = (),
    private: bool = True,
    token: str | None = None,
) -> str:
    """Send a planned Space, name its models, and return its address."""
    from huggingface_hub import HfApi

    url = upload(plan, repo_id, "space", private=private, token=token, space_sdk="gradio")
    if models:
        HfApi(token=token).add_space_variable(repo_id, MODELS_VARIABLE, " ".join(models))
    return url


def _requirements(wheel: str | Path | None) -> bytes:
    lines = (FOLDER / REQUIREMENTS).read_text(encoding="utf-8").split()
    package, extras = lines[0].split("[", 1)
    if wheel is None:
        return f"{package}[{extras}=={hf_mu2.__version__}\n".encode()
    name = Path(wheel).name
    if not name.startswith("hf_mu2-") or not name.endswith(".whl"):
        raise PublishError(
            f"A wheel of this package is named `hf_mu2-VERSION-...whl`, got `{name}`. `make wheel` makes it."
        )
    return f"./{name}[{extras}\n".encode()  # pip's own form, relative to the file


def _card(models: Sequence[str]) -> bytes:
    from huggingface_hub import RepoCard

    card = RepoCard((FOLDER / CARD).read_text(encoding="utf-8"))
    if models:
        card.data.models = list(models)
    return str(card).encode()
