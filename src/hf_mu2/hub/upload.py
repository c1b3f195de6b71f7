"""What every upload to the Hub has in common: a plan that can be looked at, a card, one commit, and a count at the end.

Reads: a folder.
Writes: a repository.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CARD = "README.md"


class PublishError(ValueError):
    """A folder that may not, or should not, be uploaded as it is."""


@dataclass(frozen=True)
class UploadPlan:
    """What an upload would send.

    Args:
        files (`tuple`): Name in the repository and bytes of every file.
        left (`tuple[str, ...]`): Files of the folder that stay, such as unfinished ones.
        card (`str`): The card as it will be shown.
        replaced (`Mapping[str, bytes]`): Files that are sent with other bytes than those on disk, or are not on disk.
        warnings (`tuple[str, ...]`): What to settle before it is public.
    """

    folder: Path
    files: tuple[tuple[str, int], ...]
    left: tuple[str, ...]
    card: str
    replaced: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    warnings: tuple[str, ...] = ()

    @property
    def num_bytes(self) -> int:
        return sum(size for _, size in self.files)


def refuse(folder: Path, problems: Sequence[str]) -> None:
    """Refuse an upload that has problems, naming them.

    Raises:
        PublishError: if there is any.
    """
    if problems:
        shown = "\n".join(f"- {problem}" for problem in problems[:20])
        more = f"\n- and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise PublishError(f"`{folder}` is not uploaded, and nothing was sent:\n{shown}{more}")


def upload(
    plan: UploadPlan, repo_id: str, repo_type: str, *, private: bool, token: str | None = None, **options: Any
) -> str:
    """Send what is planned in one commit and return the address. A broken upload continues when it is run again.

    Args:
        private (`bool`): Make the repository private. One that exists must already be what is asked for.
        options: Of `create_repo`, e.g. `space_sdk`.

    Raises:
        PublishError: if the repository is public where a private one was asked for, or the reverse.
        OSError: if a file did not arrive.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi(token=token)
    url = api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True, **options)
    is_private = bool(api.repo_info(url.repo_id, repo_type=repo_type).private)
    if is_private != private:
        raise PublishError(
            f"`{url.repo_id}` exists and is {'private' if is_private else 'public'}, asked for was "
            f"{'private' if private else 'public'}. Change its visibility in its settings, or ask for what it is."
        )
    operations = [
        CommitOperationAdd(name, plan.replaced.get(name) or str((plan.folder / name).resolve()))
        for name, _ in plan.files
    ]
    api.create_commit(
        url.repo_id, operations, commit_message=f"Upload {len(plan.files)} files", repo_type=repo_type
    )
    missing = {name for name, _ in plan.files} - set(api.list_repo_files(url.repo_id, repo_type=repo_type))
    if missing:
        raise OSError(
            f"Every file must arrive, {len(missing)} of {len(plan.files)} did not, e.g. `{min(missing)}`. Run the "
            "command again: what is there is not sent twice."
        )
    return str(url)


def card_data(path: Path) -> dict[str, Any]:
    """Return the header of a card.

    Raises:
        PublishError: if it is no YAML.
    """
    import yaml
    from huggingface_hub import RepoCard

    try:
        return RepoCard(path.read_text(encoding="utf-8"), ignore_metadata_errors=True).data.to_dict()
    except (yaml.YAMLError, ValueError) as error:
        raise PublishError(
            f"The header of a card is YAML, that of `{path}` is not: {error}. Mend it."
        ) from error


def describe_plan(plan: UploadPlan) -> dict[str, Any]:
    """Return a plan as JSON."""
    return {
        "folder": str(plan.folder),
        "num_files": len(plan.files),
        "num_bytes": plan.num_bytes,
        "files": [{"path": name, "bytes": size} for name, size in plan.files],
        "left": list(plan.left),
        "replaced": sorted(plan.replaced),
        "warnings": list(plan.warnings),
        "card": plan.card,
    }
