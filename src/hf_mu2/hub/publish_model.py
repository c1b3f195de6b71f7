"""Upload a checkpoint to the Hub, after looking at what is in it and running its card's snippet.

Reads: a checkpoint folder with its card in `README.md`.
Writes: a model repository with weights, processor, generation config, remote code, card and result files.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hf_mu2
from hf_mu2.data.phantom import make_phantom

from .terms import NOTICE_FILE, corpora_of, licence_problems, licence_warnings
from .upload import CARD, PublishError, UploadPlan, card_data, refuse, upload
from .upload_checks import find_patient_data, find_secrets, list_files

# What training leaves beside a model: not part of it.
_LEFT = re.compile(
    r"(checkpoint-\d+|start|runs|features|samples|global_step\d+|local_only)/.*|optimizer\.(pt|bin)|scheduler\.pt"
    r"|rng_state.*\.pth|trainer_state\.json|training_args\.bin|.*\.journal|curve\.png"
)
_REQUIRED = ("config.json", "processor_config.json", "generation_config.json", "tokenizer_config.json")
_SNIPPET = re.compile(r"```python\n(.*?)```", re.DOTALL)
SNIPPET_TIMEOUT_S = 900


def plan_model(folder: str | Path, repo_id: str, *, run_snippet: bool = True) -> UploadPlan:
    """List what an upload of a checkpoint would send, and refuse what must not be sent. Touches no network.

    Tokenizer files that TRL changed in passing are sent as they were before: without the padding and truncation of a
    training batch and without where they were loaded from.

    Args:
        run_snippet (`bool`): Run the card's first Python block on this folder, where this package cannot be seen.

    Raises:
        PublishError: naming every reason: no card or licence, a file missing, pickled weights, credentials, what names
            patients, terms of base models or corpora, a snippet that does not run.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise PublishError(f"A model to publish is a folder, `{folder}` is none. Check the path.")
    # The code of the embedded checkpoint is linked to the package's own.
    is_embedded = folder.resolve() == hf_mu2.embedded_checkpoint().resolve()
    home = Path(hf_mu2.__file__).parent if is_embedded else None
    files, left = list_files(folder, home)
    left += [name for name in files if _LEFT.fullmatch(name)]
    files = [name for name in files if not _LEFT.fullmatch(name)]
    problems = [*_missing(folder, files), *find_secrets(folder, files), *find_patient_data(folder, files)]
    warnings: list[str] = []
    card = (folder / CARD).read_text(encoding="utf-8") if (folder / CARD).is_file() else ""
    if card:
        header = card_data(folder / CARD)
        corpora = corpora_of(
            [*_listed(header, "corpora"), *_listed(header, "datasets"), *_from_runs(folder, files)]
        )
        notice = (
            (folder / NOTICE_FILE).read_text(encoding="utf-8") if (folder / NOTICE_FILE).is_file() else ""
        )
        licence = str(header.get("license", ""))
        bases = [*_listed(header, "base_model"), *_base_of(folder)]
        problems += licence_problems(repo_id, licence, card, notice, dict.fromkeys(bases), corpora)
        warnings += licence_warnings(corpora)
    refuse(folder, problems)
    if run_snippet and (problem := check_snippet(folder, card, repo_id)):
        refuse(folder, [problem])
    replaced = {name: text for name in files if (text := plain_tokenizer_file(folder / name)) is not None}
    sizes = tuple((name, len(replaced.get(name, b"")) or (folder / name).stat().st_size) for name in files)
    return UploadPlan(folder, sizes, tuple(sorted(left)), card, replaced, tuple(warnings))


def publish_model(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = True,
    token: str | None = None,
    run_snippet: bool = True,
) -> str:
    """Upload a checkpoint and return its address; see [`plan_model`] for what is refused."""
    plan = plan_model(folder, repo_id, run_snippet=run_snippet)
    return upload(plan, repo_id, "model", private=private, token=token)


def plain_tokenizer_file(path: Path) -> bytes | None:
    """Undo what training left in a tokenizer file; `None` where there is nothing to undo."""
    if path.name not in ("tokenizer.json", "tokenizer_config.json"):
        return None
    fields = json.loads(path.read_text(encoding="utf-8"))
    if path.name == "tokenizer.json":
        passing = {"padding": None, "truncation": None}
        changed = {name for name in passing if fields.get(name) is not None}
        fields |= dict.fromkeys(changed)
    else:
        changed = {"is_local", "local_files_only"} & set(fields)
        fields = {name: value for name, value in fields.items() if name not in changed}
    return json.dumps(fields, indent=2, ensure_ascii=False).encode() if changed else None


def check_snippet(folder: Path, card: str, repo_id: str) -> str | None:
    """Run the first Python block of a card on a folder; return what is wrong, or `None`.

    The block runs in an empty folder with a phantom as `ct.nii.gz`, offline, and cannot import this package: what it
    loads is what a stranger would.
    """
    found = _SNIPPET.search(card)
    if found is None or repo_id not in found[1]:
        return f"its card has no Python block that loads `{repo_id}`: write the card with `hf-mu2 publish model-card`"
    with tempfile.TemporaryDirectory() as scratch:
        plain = Path(scratch) / "checkpoint"
        shutil.copytree(
            folder, plain, ignore=shutil.ignore_patterns("checkpoint-*", "*.pt"), copy_function=_link
        )
        from hf_mu2.data.nifti import save_nifti

        save_nifti(make_phantom(0, spacing=(10.0, 7.0, 7.0)).nifti(), Path(scratch) / "ct.nii.gz")
        blocked = "import sys\nsys.modules['hf_mu2'] = None\n"
        code = blocked + found[1].replace(repo_id, str(plain)).replace(
            "max_new_tokens=256", "max_new_tokens=8"
        )
        environment = {
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "HF_MODULES_CACHE": str(Path(scratch) / "modules"),
        }
        environment.pop("PYTHONPATH", None)
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=scratch,
            env=environment,
            capture_output=True,
            text=True,
            timeout=SNIPPET_TIMEOUT_S,
            check=False,
        )
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit code {done.returncode}"
        return f"the Python block of its card does not run: {last.replace(str(plain), repo_id)}"
    return None


def _link(source: str, target: str) -> None:
    """Link a file instead of copying it; weights are large."""
    Path(target).symlink_to(Path(source).resolve())


def _missing(folder: Path, files: list[str]) -> Iterator[str]:
    if CARD not in files:
        yield f"it has no card: write `{CARD}` with `hf-mu2 publish model-card`"
    elif not card_data(folder / CARD).get("license"):
        yield f"its card `{CARD}` names no `license` in its header"
    for name in _REQUIRED:
        if name not in files:
            yield f"it has no `{name}`: save model and processor with `save_pretrained`"
    if not any(name.endswith(".safetensors") for name in files):
        yield "it has no weights in safetensors"
    for name in files:
        if name.endswith((".bin", ".pt", ".pth", ".pkl", ".ckpt")):
            yield f"`{name}` is pickled, which runs code when it is loaded: convert it to safetensors"
    if "config.json" in files:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        modules = {f"{entry.split('.')[0]}.py" for entry in (config.get("auto_map") or {}).values()}
        for name in sorted(modules - set(files)):
            yield f"its configuration names code in `{name}`, which is not there: save it again with this package"


def _listed(header: dict[str, Any], key: str) -> list[str]:
    value = header.get(key) or []
    return [value] if isinstance(value, str) else [str(item) for item in value]


def _from_runs(folder: Path, files: list[str]) -> list[str]:
    """Name the corpora that records of training name."""
    named = []
    for name in files:
        if re.fullmatch(r"(results/)?run(_\d+)?\.json", name):
            recipe = json.loads((folder / name).read_text(encoding="utf-8")).get("recipe", {})
            named.append(str(recipe.get("corpus") or ""))
    return named


def _base_of(folder: Path) -> list[str]:
    """Name the language model that the configuration says it came from."""
    config = (
        json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if (folder / "config.json").is_file()
        else {}
    )
    name = (config.get("text_config") or {}).get("_name_or_path") or ""
    return [name] if name else []
