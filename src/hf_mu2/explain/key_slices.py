"""The slices an answer rests on most, as pictures with the sentence that each speaks for.

Reads: an [`Explanation`].
Writes: nothing; pictures and captions for documents.
"""

from PIL import Image

from .evidence import Explanation
from .evidence_figure import SOFT_TISSUE, overlay

LUNG = (-600.0, 1500.0)  # level and width in HU
_AERATED_HU = -400.0


def picture_key_slices(
    explanation: Explanation, count: int = 4
) -> tuple[list[int], list[tuple[Image.Image, str]]]:
    """Draw the axial slices with the most evidence, in the order of the body from above.

    Each is shown in the window of what the evidence lies on, lung or soft tissue, and its caption is the sentence that
    draws most from it.

    Returns:
        The slices as indices of `explanation.volume`, and a picture with its caption for each.
    """
    slices = sorted(explanation.key_slices[:count], reverse=True)
    heat = explanation.heat.clip(min=0)
    volume, maximum = explanation.volume, float(heat.max(initial=0))
    maps = [(sentence.text, sentence.heat) for sentence in explanation.sentences]
    pictures = []
    for z in slices:
        weight = heat[z] / max(float(heat[z].sum()), 1e-12)
        window = LUNG if float((weight * volume.array[z]).sum()) < _AERATED_HU else SOFT_TISSUE
        sentence = max(maps, key=lambda item: float(item[1][z].clip(min=0).sum()))[0]
        position = (volume.affine @ [0, 0, z, 1])[2]
        picture = overlay(volume, heat, "axial", z, window, maximum=maximum)
        pictures.append((picture, f"z {position:+.0f} mm. {sentence}"))
    return slices, pictures
