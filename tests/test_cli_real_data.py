"""The command line on real CT, where it is at hand: what is CT gets a report, what is not gets a reason."""

import json
import re

import pytest

from tests.paths import shared_data, shared_data_or_skip

DATA = shared_data()
CT = None if DATA is None else DATA / "ct"
REAL = (
    []
    if CT is None
    else sorted([*CT.glob("*.nii.gz"), *CT.glob("tiny/*.nii.gz"), CT / "dicom/jpeg2000_20slices"])
)
EDGE = [] if CT is None else sorted(CT.glob("edge/*"))


def name_of(path) -> str:
    return path.name


@pytest.mark.slow
@pytest.mark.parametrize("volume", REAL, ids=name_of)
def test_a_real_volume_gets_a_report(cli, checkpoint, volume, tmp_path):
    result = cli("report", volume, "--model", checkpoint, "--out", tmp_path, "--json", "--max-new-tokens", 4)
    assert result.code == 0, result.err
    record = json.loads(result.out)
    assert volume.name not in json.dumps({**record, "files": None})
    assert (tmp_path / "montage.png").stat().st_size > 10_000


@pytest.mark.parametrize("volume", EDGE, ids=name_of)
def test_what_is_not_ct_is_refused_in_one_paragraph(cli, checkpoint, volume):
    result = cli("report", volume, "--model", checkpoint)
    assert (result.code, result.out) == (2, "")
    message = result.err.strip().splitlines()[-1]
    assert message.startswith("Error: ") and volume.name in message and "Traceback" not in result.err


def test_several_series_are_listed_and_one_can_be_chosen(cli, checkpoint):
    folder = shared_data_or_skip("ct", "dicom", "two_series_one_folder")
    refused = cli("report", folder, "--model", checkpoint)
    listed = re.findall(r"^  series (\d+):", refused.err, re.M)
    assert refused.code == 2 and len(listed) == 2 and "Traceback" not in refused.err
    chosen = cli("report", folder, "--model", checkpoint, "--series", listed[0], "--max-new-tokens", 4)
    assert chosen.code == 0, chosen.err
