import json
import subprocess
import sys
from pathlib import Path

import torch


def test_info_names_versions_devices_and_extras(cli):
    result = cli("info", "--json")
    facts = json.loads(result.out)
    assert result.code == 0 and next(iter(facts)) == "notice"
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["devices"][-1].startswith("cpu")
    assert {"train", "score", "dicom", "report", "demo", "scale", "dev", "all"} <= set(facts["extras"])
    assert facts["embedded_checkpoint"]["name"] == "mu2-phantom"


def test_info_for_people_says_the_same(cli):
    result = cli("info")
    assert result.code == 0 and "Not a medical device" in result.out and torch.__version__ in result.out


def test_help_lists_every_command(cli):
    result = cli("--help")
    assert result.code == 0
    for command in ("info", "init", "convert", "phantom", "report", "predict", "embed"):
        assert f"  {command}" in result.out


def test_the_console_script_and_the_module_are_the_same_command():
    script = Path(sys.executable).with_name("hf-mu2")
    outputs = [
        subprocess.run([*command, "info", "--json"], capture_output=True, text=True, check=True).stdout
        for command in ([str(script)], [sys.executable, "-m", "hf_mu2.cli"])
    ]
    assert outputs[0] == outputs[1]
