"""TRL's own scripts with the classes of this package registered, so that no checkpoint needs `--trust_remote_code`.

    python -m hf_mu2.training.trl sft --model_name_or_path DIR --dataset_name DIR --output_dir OUT
    torchrun --nproc_per_node 2 -m hf_mu2.training.trl dpo ...

Arguments are those of `trl sft|dpo|kto|grpo|rloo`. `trl` itself starts a child process, in which an import of this
package in the parent does nothing; this module is the child. A dataset whose volumes are in a column of another name
than `images` is refused: TRL would train on text alone.
"""

import sys
from importlib import import_module
from typing import Any

import hf_mu2  # noqa: F401  registers the Auto classes

SCRIPTS = ("sft", "dpo", "kto", "grpo", "rloo")


def main(arguments: list[str] | None = None) -> None:
    """Run a script of TRL in this process.

    Raises:
        ValueError: if the first argument is not one of `SCRIPTS`, or the volumes would be ignored.
        ImportError: if TRL is not installed.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] not in SCRIPTS:
        raise ValueError(
            f"The first argument is the script of TRL, one of {', '.join(SCRIPTS)}, got {arguments[:1] or 'nothing'}. "
            "Example: python -m hf_mu2.training.trl sft --model_name_or_path DIR --dataset_name DIR --output_dir OUT"
        )
    script = import_module(f"trl.scripts.{arguments[0]}")
    # GRPO's and RLOO's scripts take what they do not know as options of a loader, the others refuse it.
    parsed = script.make_parser(prog=f"hf_mu2.training.trl {arguments[0]}").parse_args_and_config(
        arguments[1:]
    )
    _check_dataset(parsed[0])
    script.main(*parsed)


def _check_dataset(script_arguments: Any) -> None:
    """Look at the columns of `--dataset_name`, without reading a volume."""
    from datasets import load_dataset

    from .trainer import check_volume_column

    if script_arguments.dataset_name:
        splits = load_dataset(
            script_arguments.dataset_name, name=script_arguments.dataset_config, streaming=True
        )
        check_volume_column(splits[script_arguments.dataset_train_split])


if __name__ == "__main__":
    main()
