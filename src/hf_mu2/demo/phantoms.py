"""The synthetic studies that the demo offers: made in code, with the truth at hand."""

from dataclasses import dataclass

from hf_mu2.data.phantom import make_phantom
from hf_mu2.model.volume_mu2 import Volume, load_volume

SPACING_MM = (2.5, 1.5, 1.5)


@dataclass(frozen=True)
class Case:
    """A phantom to pick: its name in the API, what its button says, and what is drawn into it."""

    name: str
    title: str
    seed: int
    labels: tuple[str, ...]


# Seeds of the test range: no checkpoint of ours has trained on them.
CASES = (
    Case("effusion", "Pleural effusion", 300_000_010, ("Pleural effusion", "Interlobular septal thickening")),
    Case("heart", "Large heart", 300_000_011, ("Cardiomegaly", "Pericardial effusion")),
    Case("emphysema", "Emphysema", 300_000_012, ("Emphysema", "Hiatal hernia")),
    Case("normal", "No finding", 300_000_001, ()),
)


def make_case(name: str) -> tuple[Volume, str]:
    """Make a phantom by name: its volume, and the report that is true of it.

    Raises:
        ValueError: if there is no such phantom.
    """
    case = next((case for case in CASES if case.name == name), None)
    if case is None:
        raise ValueError(
            f"A phantom must be one of {', '.join(case.name for case in CASES)}, got `{name}`. Choose one of these."
        )
    phantom = make_phantom(case.seed, spacing=SPACING_MM, labels=case.labels)
    truth = f"Findings: {phantom.report.findings}\nImpression: {phantom.report.impression}"
    return load_volume(phantom.nifti()), truth
