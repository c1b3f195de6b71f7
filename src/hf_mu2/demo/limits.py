"""What one visitor may take of the machine."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Limits of a running demo.

    Args:
        upload_bytes (`int`): Largest file taken; a larger one is refused while it arrives.
        voxels (`int`): Largest volume; a larger one is refused from its header, before memory is taken.
        zip_members (`int`): Most files in a DICOM zip.
        question_chars (`int`): Longest question or report text.
        max_new_tokens (`int`): Longest answer.
        confidence_samples (`int`): Reports sampled to see which sentences come back; a checkpoint's calibration has a
            number of its own.
        faithfulness_draws (`int`): Random sets of blocks in the check of every heat map; 9 are the fewest that can
            confirm one.
        queue (`int`): Requests that may wait; one more is told to come back.
        sessions (`int`): Visitors whose volumes are kept; one more, and the longest idle is forgotten.
        idle_s (`float`): Volumes, answers and unused uploads are deleted after this many seconds without a request.
    """

    upload_bytes: int = 512 * 2**20
    voxels: int = 2**28  # 512 x 512 x 1024
    zip_members: int = 5000
    question_chars: int = 4000
    max_new_tokens: int = 512
    confidence_samples: int = 8
    faithfulness_draws: int = 9
    queue: int = 64
    sessions: int = 64
    idle_s: float = 1800.0
