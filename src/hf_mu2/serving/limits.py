"""What a client may take of the machine."""

from dataclasses import dataclass, field

from hf_mu2.reporting.uploads import UploadLimits


@dataclass(frozen=True)
class ServingLimits:
    """UploadLimits of a running endpoint.

    Args:
        volumes (`UploadLimits`): Of one volume, its size, voxels and zip members, and of a question.
        inline_bytes (`int`): Largest JSON body, which is held in memory; larger volumes are uploaded.
        waiting (`int`): Requests that may wait for the model; one more is told when to come back.
        loaded (`int`): Volumes in memory at once: one being answered, others being read.
        stored_bytes (`int`): All uploads together.
        keep_s (`float`): An upload is deleted after this many seconds.
        stall_s (`float`): A body of which nothing arrives for so many seconds is given up.
    """

    volumes: UploadLimits = field(default_factory=UploadLimits)
    inline_bytes: int = 96 * 2**20
    waiting: int = 16
    loaded: int = 2
    stored_bytes: int = 4 * 2**30
    keep_s: float = 3600.0
    stall_s: float = 60.0
