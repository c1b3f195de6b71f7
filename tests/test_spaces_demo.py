"""The folder of the Space: its header, its notice, its requirements, and an app that is a thin door to the package."""

import ast
import re
import tomllib
from pathlib import Path

from huggingface_hub import RepoCard
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
SPACE = ROOT / "spaces_demo"


def test_the_header_is_that_of_a_gradio_space():
    card = RepoCard.load(SPACE / "README.md")
    header = card.data.to_dict()
    assert header["sdk"] == "gradio" and (SPACE / header["app_file"]).is_file()
    assert re.fullmatch(r"\d+\.\d+\.\d+", header["sdk_version"]) and header["license"] == "apache-2.0"
    assert len(header["short_description"]) <= 60  # the Hub refuses more
    colours = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
    assert {header["colorFrom"], header["colorTo"]} <= colours
    assert "Not a medical device" in card.text


def test_the_requirements_are_the_package_with_extras_it_has():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (SPACE / "requirements.txt").read_text(encoding="utf-8").split()
    requirements = [Requirement(line) for line in lines]
    assert [requirement.name for requirement in requirements] == [project["name"]]
    assert requirements[0].extras <= set(project["optional-dependencies"])


def test_the_app_of_the_space_imports_the_package_and_nothing_else():
    tree = ast.parse((SPACE / "app.py").read_text(encoding="utf-8"))
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert all(module.startswith("hf_mu2.") for module in modules)
    assert not any(
        path.suffix in (".js", ".npy", ".gz") for path in SPACE.rglob("*")
    )  # NiiVue is not copied in
