"""The application object, the options that several commands share, and how a command speaks."""

import json
import math
from typing import Annotated, Any

import typer

app = typer.Typer(
    name="hf-mu2",
    help="Reports from CT volumes. Research software, not a medical device.",
    epilog="Exit codes: 0 done, 1 failed, 2 bad input. HF_MU2_TRACEBACK=1 shows where an error came from.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
Model = Annotated[
    str | None, typer.Option(help="Checkpoint folder or Hub id.", show_default="the embedded demo checkpoint")
]
Question = Annotated[
    str | None, typer.Option(help="What to ask of the volume.", show_default="write the report")
]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Longest answer in tokens.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Studies generated together.")]
Split = Annotated[str | None, typer.Option(help="Split of the dataset, where it has several.")]
SpacingMm = tuple[float, float, float]


def refuse_failed(failed: dict[str, str]) -> None:
    for study_id, reason in failed.items():
        complain(f"{study_id}: {reason}")
    if failed:
        raise ValueError(f"{len(failed)} studies were refused and left out; see above for why.")


def print_result(facts: dict[str, Any], line: str, as_json: bool) -> None:
    if as_json:
        print_json(facts)
    else:
        typer.echo(line)


def print_json(facts: dict[str, Any]) -> None:
    typer.echo(json.dumps(_without_nan(facts), indent=2, ensure_ascii=False))


def _without_nan(value: Any) -> Any:
    """Put null for what JSON has no word for."""
    if isinstance(value, dict):
        return {key: _without_nan(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def brief(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def complain(message: str) -> None:
    typer.echo(message, err=True)
