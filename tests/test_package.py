"""The promises of the package as a whole: its layers, what importing it costs, and what its files may not contain."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import hf_mu2

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "hf_mu2"

# How a checkpoint is loaded and answers for many studies.
ANSWERING = {f"reporting.{name}" for name in ("inference", "studies", "environment", "journal", "sampling")}
# What each folder may import from the others; its own files and the package root are always allowed.
LAYERS = {
    "model": set(),
    "scoring": set(),
    "data": {"model.volume_mu2"},
    "reporting": {"model", "data"},
    "explain": {"model", "data", "scoring", *ANSWERING},
    "preference": {"model", "data", "scoring", *ANSWERING},
    "training": {"model", "data", "scoring", "hub.assemble", "explain.value_path"},
    "hub": {"model", "data", "scoring"},
    "serving": {"model", "data", "scoring", "reporting"},
    "demo": {"model", "data", "scoring", "reporting", "explain", "hub"},
}
MORE_FOR_ONE_FILE = {"data/prepare.py": {"model.image_processing_mu2"}}


def imported_modules(path: Path) -> set[str]:
    """Name every module of ours that a file imports, relative to the package; the root is the empty name."""
    here = path.relative_to(PACKAGE).with_suffix("").parts[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ["hf_mu2", *here[: len(here) - node.level + 1]] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            # `from hf_mu2.model import volume_mu2` imports a module too.
            is_package = module.startswith("hf_mu2.") and PACKAGE.joinpath(*module.split(".")[1:]).is_dir()
            names = [f"{module}.{alias.name}" for alias in node.names] if is_package else [module]
        else:
            continue
        found |= {name.removeprefix("hf_mu2").lstrip(".") for name in names if name.split(".")[0] == "hf_mu2"}
    return found


def is_allowed(module: str, folder: str, extra: set[str]) -> bool:
    if not module or not (PACKAGE / module.split(".")[0]).is_dir():
        return (
            module.split(".")[0] != "cli"
        )  # the root or a file in it; the command line is imported by no one
    allowed = LAYERS[folder] | {folder} | extra
    return any(module == name or module.startswith(f"{name}.") for name in allowed)


@pytest.mark.parametrize("folder", [name for name in LAYERS if (PACKAGE / name).is_dir()])
def test_each_layer_imports_only_what_it_may(folder):
    broken = [
        f"{path.relative_to(PACKAGE)} imports {module or 'hf_mu2'}"
        for path in (PACKAGE / folder).rglob("*.py")
        for module in imported_modules(path)
        if not is_allowed(module, folder, MORE_FOR_ONE_FILE.get(f"{folder}/{path.name}", set()))
    ]
    assert not broken


def test_the_layer_rule_notices_a_forbidden_import():
    assert not is_allowed("model.volume_mu2", "scoring", set())
    assert not is_allowed("cli", "reporting", set())
    assert is_allowed("model.volume_mu2", "data", set())
    assert not is_allowed("model.modeling_mu2", "data", set())
    assert "model.volume_mu2" in imported_modules(PACKAGE / "reporting" / "montage.py")


def test_model_files_carry_only_what_a_checkpoint_can_ship():
    """The Hub copier follows `from .sibling import x`, and nothing else; annotations must stay evaluated."""
    for path in (PACKAGE / "model").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert node.level <= 1 and (node.level == 0 or node.module), (
                    f"{path.name}: line {node.lineno}"
                )
                assert node.module != "__future__", f"{path.name} postpones annotations"
                assert node.level or not node.module.startswith("hf_mu2"), f"{path.name}: line {node.lineno}"


def modules_after(*statements: str) -> list[set[str]]:
    """Run statements one after the other in one fresh interpreter; name the modules loaded after each."""
    code = "import json, sys\n" + "\n".join(
        f"{statement}\nprint(json.dumps(sorted(sys.modules)))" for statement in statements
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return [set(json.loads(line)) for line in run.stdout.splitlines() if line.startswith('["')]


@pytest.fixture(scope="module")
def loaded_modules() -> list[set[str]]:
    return modules_after(
        "import torch; from transformers import AutoModel", "import hf_mu2", "import hf_mu2.cli"
    )


HEAVY = {"accelerate", "datasets", "gradio", "matplotlib", "nibabel", "pandas", "peft", "pyarrow", "pydicom"}
HEAVY |= {"scipy", "sklearn", "trl"}


def test_importing_the_package_adds_little_to_importing_an_auto_class(loaded_modules):
    """Modules are counted, not seconds: the count is the same on a busy machine."""
    before, after, _ = loaded_modules
    added = after - before
    heavy = {name.split(".")[0] for name in added} & HEAVY
    assert not heavy and len(added) <= 0.2 * len(before), (
        f"{len(added)} on top of {len(before)}, with {heavy}"
    )
    assert not [
        name for name in added if name.startswith(("hf_mu2.model.modeling", "hf_mu2.model.processing"))
    ]


def test_the_command_line_adds_only_its_own_parser(loaded_modules):
    _, package, command_line = loaded_modules
    added = {name.split(".")[0] for name in command_line - package}
    assert not added & (HEAVY | {"torch", "transformers", "numpy", "PIL"})
    assert not [
        name
        for name in command_line - package
        if name.startswith("hf_mu2.") and not name.startswith(("hf_mu2.cli", "hf_mu2.files"))
    ]


def test_the_version_is_the_one_of_the_changelog():
    released = re.search(
        r"^## \[(\d+\.\d+\.\d+)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M
    )
    assert hf_mu2.__version__ == released[1]


def test_the_package_says_that_it_is_typed():
    assert (PACKAGE / "py.typed").is_file()


# Spelled so that this file does not contain them itself.
FORBIDDEN = {
    "a registry host": r"pypi\.o" r"rg|pythonh" r"osted|download\.pytorch\.o" r"rg/whl|conda\.anacon" r"da",
    "a path of someone's machine": r"(?<![\w.~-])/(?:ro" r"ot|wo" r"rk|ho" r"me/\w+|Us" r"ers/\w+)/",
    "an access token": r"\bhf_[A-Za-z]{34}\b|\bgh[pousr]_\w{36}\b",
}
TEXT = {".py", ".md", ".toml", ".txt", ".yml", ".yaml", ".cff", ".json", ".jinja", ".cfg", ""}


def test_committed_files_name_no_registry_machine_or_token():
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listing.returncode:
        pytest.skip("not a git checkout")
    found = []
    for path in (ROOT / name for name in listing.stdout.splitlines()):
        if path.suffix in TEXT and path.is_file() and path.stat().st_size < 2_000_000:
            text = path.read_text(encoding="utf-8")
            found += [
                f"{path.relative_to(ROOT)}: {what}"
                for what, rule in FORBIDDEN.items()
                if re.search(rule, text)
            ]
    assert not found
