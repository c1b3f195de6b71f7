"""What one visitor may take of the machine."""

from dataclasses import dataclass

from hf_mu2.reporting.uploads import UploadLimits


@dataclass(frozen=True)
class Limits(UploadLimits):
    """Limits of a running demo, beside those of an upload.

    Args:
        max_new_tokens (`int`): Longest answer.
        confidence_samples (`int`): Reports sampled to see which sentences come back; a checkpoint's calibration has a
            number of its own.
        faithfulness_draws (`int`): Random sets of blocks in the check of every heat map; 9 are the fewest that can
            confirm one.
        queue (`int`): Requests that may wait; one more is told to come back.
        sessions (`int`): Visitors whose volumes are kept; one more, and the longest idle is forgotten.
        idle_s (`float`): Volumes, answers and unused uploads are deleted after this many seconds without a request.
    """

    max_new_tokens: int = 512
    confidence_samples: int = 8
    faithfulness_draws: int = 9
    queue: int = 64
    sessions: int = 64
    idle_s: float = 1800.0
