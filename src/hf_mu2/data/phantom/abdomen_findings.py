"""Paint the findings of the abdomen and pelvis: each function draws, marks its mask bit and says what it drew."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from .abdomen import AbdomenScene, along, gallbladder, paint_spleen
from .abdomen_anatomy import SIDES
from .abdomen_sentences import ABDOMEN
from .anatomy import EVERYWHERE, side_sign
from .draw import Draw, graded, paint_in_turn
from .report import Finding

BIT = {label: bit for bit, label in enumerate(ABDOMEN.labels)}
_POLES = {"upper pole": 34.0, "interpolar region": 0.0, "lower pole": -34.0}  # mm above the kidney's centre


def paint_abdomen_findings(
    scene: AbdomenScene, labels: Sequence[str], draws: Mapping[str, Draw]
) -> list[Finding]:
    """Paint the findings of the labels in an abdomen."""
    return paint_in_turn(scene, PAINTERS, labels, draws, ABDOMEN.labels)


def _steatosis(scene: AbdomenScene, rng: np.random.Generator) -> list[Finding]:
    c = scene.canvas
    drop = rng.uniform(24, 46) * scene.scale
    spared = 1 - 0.12 * np.clip(c.noise_field(rng, 40), -1, 1)
    c.hu -= scene.liver * (drop * spared).astype(np.float32)
    c.mark(EVERYWHERE, scene.liver > 0.5, BIT["Hepatic steatosis"])
    return [Finding("Hepatic steatosis", None, None, 1, None, graded(drop, 31, 39))]


def _splenomegaly(scene: AbdomenScene, rng: np.random.Generator) -> list[Finding]:
    length = max(rng.uniform(135, 190) * scene.draw.shrink, 122.0)
    paint_spleen(scene, length, BIT["Splenomegaly"])
    return [Finding("Splenomegaly", None, None, 1, float(round(length)), graded(length, 150, 170))]


def _ascites(scene: AbdomenScene, rng: np.random.Generator) -> list[Finding]:
    """Fill what lies along the wall of the peritoneal cavity, in the gutters and around the bladder."""
    a, c = scene.anatomy, scene.canvas
    amount = rng.uniform(0, 1)
    thickness = (9 + 15 * amount) * scene.scale
    wobble = 3 * c.noise_field(rng, 30)
    peritoneum = c.y - (a.center_y - 0.35 * a.half_depth) + 4 * wobble
    wall = np.minimum(a.cavity(c.z, c.y, c.x), 0.8 * (a.dome_height(c.y, c.x) - c.z))
    rim = np.minimum(thickness - wall + wobble, peritoneum)
    pelvis = np.minimum(-118 + 26 * amount - c.z, c.y + 28)
    share = np.maximum(c.occupancy(rim), c.occupancy(pelvis) * (c.hu < -40) * (c.hu > -200)) * scene.inside
    c.paint(EVERYWHERE, share, rng.uniform(4, 14), BIT["Ascites"])
    return [Finding("Ascites", None, None, 1, None, graded(amount, 0.35, 0.7))]


def _obstruction(scene: AbdomenScene, rng: np.random.Generator) -> list[Finding]:
    """Blow up the anterior coil of the small bowel, with fluid levels."""
    c = scene.canvas
    radius = max(rng.uniform(16, 23) * scene.scale * scene.draw.shrink, 14.5)
    course = along(scene.loops[-1][: int(rng.integers(14, 20))], 9.0)
    bit = BIT["Bowel obstruction"]
    for bead in course:
        c.ball(bead, radius + 2.2, 70, bit, within=scene.inside)
    level = rng.uniform(-0.3, 0.5)
    for bead in course:
        found = c.ellipsoid(bead, radius)
        if found is not None:
            region, share = found
            share = share * scene.inside[region]
            c.paint(region, share, 14)
            gas = c.occupancy(c.y[:, region[1]] - np.float32(bead[1] + level * radius))
            c.paint(region, share * gas, -985)
    return [Finding("Bowel obstruction", None, None, 1, float(round(2 * radius)), None)]


def _thick_bowel(scene: AbdomenScene, rng: np.random.Generator) -> list[Finding]:
    a, c = scene.anatomy, scene.canvas
    stretches = {
        "ascending colon": (0.05, 0.19),
        "descending colon": (0.58, 0.72),
        "sigmoid colon": (0.74, 0.9),
    }
    region_name = str(rng.choice(list(stretches)))
    start, end = stretches[region_name]
    course = along(a.colon(), 6.0)
    course = course[int(start * len(course)) : int(end * len(course))]
    wall = rng.uniform(8, 15) * scene.scale * scene.draw.shrink
    value = 58 + 0.3 * (a.vein_hu - 40)
    for radius, hu, bit in (((6 + wall), value, BIT["Bowel wall thickening"]), (5.0, 15.0, None)):
        for bead in course:
            c.ball(bead, radius, hu, bit, within=scene.inside)
    return [Finding("Bowel wall thickening", None, region_name, 1, float(round(wall)), None)]


def _liver_lesions(scene: AbdomenScene, rng: np.random.Generator) -> list[Finding]:
    a, c = scene.anatomy, scene.canvas
    count = int(rng.choice([1, 1, 1, 2, 3]))
    kind = "hypodense" if rng.random() < 0.65 else "hyperdense"
    change = -rng.uniform(36, 52) if kind == "hypodense" else rng.uniform(42, 75)
    diameters = sorted((float(rng.uniform(14, 46)) * scene.scale for _ in range(count)), reverse=True)
    z, y, x = rng.uniform(0, 160, 1200), rng.uniform(-70, 90, 1200), rng.uniform(-50, 125, 1200)
    points = np.stack([x, y, z], 1)
    order = np.argsort(-np.minimum(a.liver_depth(z, y, x), diameters[0] / 2 + 3), kind="stable")[:60]
    points = points[order]
    chosen = [points[0]]
    while len(chosen) < count:
        far = np.min([np.linalg.norm(points - other, axis=1) for other in chosen], axis=0)
        chosen.append(points[int(np.argmax(np.minimum(far, diameters[0] + 14)))])
    for point, diameter in zip(chosen, diameters, strict=True):
        found = c.ellipsoid(point, diameter / 2 * scene.draw.shrink)
        assert found is not None  # the liver lies in every field of view
        region, share = found
        value = a.liver_hu + np.float32(change) + np.minimum(c.hu[region] - a.liver_hu, 0).mean()
        c.paint(region, share * scene.liver[region], value, BIT["Liver lesion"])
    place = _segment(chosen[0]) if count == 1 else None
    size = float(round(diameters[0] * scene.draw.shrink))
    return [Finding("Liver lesion", None, place, count, size, None, kind)]


def _segment(point: np.ndarray) -> str:
    """Name the liver segment of a point."""
    x, y, z = point
    if x < 0:
        return "segment II" if z > 105 else "segment III"
    if x < 26:
        return "segment IV"
    right = ("VII", "VI") if y < 8 else ("VIII", "V")
    return f"segment {right[0] if z > 88 else right[1]}"


def _gallstones(scene: AbdomenScene, rng: np.random.Generator) -> list[Finding]:
    a, c = scene.anatomy, scene.canvas
    count = int(rng.choice([1, 1, 2, 3]))
    center = gallbladder(a)
    sizes = sorted((float(rng.uniform(7, 17)) * scene.scale for _ in range(count)), reverse=True)
    for index, size in enumerate(sizes):  # stones sink to the back of the gallbladder
        place = center + (rng.uniform(-3, 3), -5, (index - (count - 1) / 2) * 15)
        value = rng.uniform(250, 700)
        c.ball(place, size / 2 * scene.draw.shrink, value, BIT["Gallstone"])
    return [Finding("Gallstone", None, None, count, float(round(sizes[0] * scene.draw.shrink)), None)]


def _pancreatic_lesion(scene: AbdomenScene, rng: np.random.Generator) -> list[Finding]:
    a, c = scene.anatomy, scene.canvas
    region = str(rng.choice(["pancreatic head", "pancreatic body", "pancreatic tail"]))
    index = {"pancreatic head": 1, "pancreatic body": 3, "pancreatic tail": 4}[region]
    kind = "cystic" if rng.random() < 0.5 else "hypodense"
    diameter = rng.uniform(16, 40) * scene.scale * scene.draw.shrink
    value = rng.uniform(4, 14) if kind == "cystic" else a.pancreas_hu - rng.uniform(28, 38)
    c.ball(a.pancreas()[index] + rng.normal(0, 2, 3), diameter / 2, value, BIT["Pancreatic lesion"])
    return [Finding("Pancreatic lesion", None, region, 1, float(round(diameter)), None, kind)]


def _adrenal_nodule(scene: AbdomenScene, rng: np.random.Generator) -> list[Finding]:
    a, c = scene.anatomy, scene.canvas
    side = scene.draw.side(rng)
    diameter = rng.uniform(14, 34) * scene.scale * scene.draw.shrink
    place = a.kidney_point(side, -14, 8, 60)
    c.ball(place, diameter / 2, rng.uniform(-5, 40), BIT["Adrenal nodule"])
    return [Finding("Adrenal nodule", side, None, 1, float(round(diameter)), None)]


def _renal_cysts(scene: AbdomenScene, rng: np.random.Generator) -> list[Finding]:
    a, c = scene.anatomy, scene.canvas
    side, pole = scene.draw.side(rng), str(rng.choice(list(_POLES)))
    count = int(rng.choice([1, 1, 1, 2]))
    sizes = sorted((float(rng.uniform(16, 52)) * scene.scale for _ in range(count)), reverse=True)
    turn = rng.uniform(-0.7, 0.7)
    value = rng.uniform(0, 12)
    for index, size in enumerate(sizes):
        angle = turn + 1.5 * index
        up = _POLES[pole]
        out = 24 * np.cos(angle) * (1 - 0.35 * (up / 53) ** 2)
        place = a.kidney_point(side, out, 22 * np.sin(angle), up)
        c.ball(place, size / 2 * scene.draw.shrink, value, BIT["Renal cyst"])
    return [Finding("Renal cyst", side, pole, count, float(round(sizes[0] * scene.draw.shrink)), None)]


def _renal_stone(scene: AbdomenScene, rng: np.random.Generator) -> list[Finding]:
    a, c = scene.anatomy, scene.canvas
    side, pole = scene.draw.side(rng), str(rng.choice(list(_POLES)))
    diameter = rng.uniform(6, 16) * scene.scale * scene.draw.shrink
    place = a.kidney_point(side, -6, rng.uniform(-4, 4), 0.62 * _POLES[pole])
    c.ball(place, diameter / 2, rng.uniform(600, 1300), BIT["Renal stone"])
    return [Finding("Renal stone", side, pole, 1, float(round(diameter)), None)]


def _hydronephrosis(scene: AbdomenScene, rng: np.random.Generator) -> list[Finding]:
    a, c = scene.anatomy, scene.canvas
    side = scene.draw.side(rng)
    amount = rng.uniform(0, 1)
    grown = (0.9 + 0.6 * amount) * scene.scale
    bit = BIT["Hydronephrosis"]
    c.ball(a.kidney_point(side, -16, 0, 0), np.array([15.0, 11.0, 17.0]) * grown, 8, bit)
    for up in (-26, -13, 13, 26):  # calyces
        c.ball(a.kidney_point(side, -2, 0, up), np.array([8.5, 7.5, 6.5]) * grown, 8, bit)
        c.line([a.kidney_point(side, -14, 0, 0), a.kidney_point(side, -3, 0, up)], 4 * grown, 8, bit)
    sign = side_sign(side)
    ureter: list[Any] = [
        a.kidney_point(side, -22, 2, -10),
        (sign * 36, a.spine_y + 26, -40),
        (sign * 42, a.spine_y + 32, -100),
    ]
    c.line(ureter, 3.6 + 1.6 * amount, 8, bit)
    return [Finding("Hydronephrosis", side, None, 1, None, graded(amount, 0.35, 0.7))]


def _aneurysm(scene: AbdomenScene, rng: np.random.Generator) -> list[Finding]:
    a, c = scene.anatomy, scene.canvas
    diameter = max(rng.uniform(38, 66) * scene.draw.shrink, 31.0)
    x, y, _ = a.aorta()[5]
    center = (x, y + diameter / 2 - a.aorta_radius, -16.0)
    bit = BIT["Aortic aneurysm"]
    found = c.ellipsoid(center, np.array([0.5, 0.5, 0.75]) * diameter)
    assert found is not None  # the aorta lies in every field of view
    region, share = found
    c.paint(region, share, 45, bit)  # wall and thrombus
    sac = np.zeros(c.shape, np.float32)
    sac[region] = share
    lumen = np.array([0.5, 0.5, 0.8]) * diameter * rng.uniform(0.62, 0.9)
    c.ball(np.array(center) - (0, 0.03 * diameter, 0), lumen, a.artery_hu, within=sac)
    c.line(a.aorta(), a.aorta_radius, a.artery_hu, within=sac)
    return [Finding("Aortic aneurysm", None, "infrarenal", 1, float(round(diameter)), None)]


def _aortic_calcification(scene: AbdomenScene, rng: np.random.Generator) -> list[Finding]:
    """Put plaques on the wall above the place of an aneurysm, and on the iliac arteries."""
    a, c = scene.anatomy, scene.canvas
    amount = rng.uniform(0, 1)
    bit = BIT["Aortic calcification"]
    course = a.aorta()
    for _ in range(int(5 + 9 * amount)):
        height = rng.uniform(30, 140)
        here = np.array([np.interp(height, course[::-1, 2], course[::-1, axis]) for axis in range(3)])
        turn = rng.uniform(0, 2 * np.pi)
        arc = turn + np.linspace(-1, 1, 3) * rng.uniform(0.25, 0.6)
        reach = rng.uniform(2, 9)
        plaque = [
            here + (a.aorta_radius * np.cos(t), a.aorta_radius * np.sin(t), reach * (t - turn)) for t in arc
        ]
        c.line(plaque, rng.uniform(1.7, 2.6) * scene.scale, rng.uniform(600, 1100), bit)
    for side in SIDES:
        if rng.random() < 0.3 + 0.5 * amount:
            place = (side_sign(side) * 30, a.spine_y + 33, -94 + rng.uniform(-4, 4))
            c.ball(place, np.array([2.2, 2.2, 5]) * scene.scale, rng.uniform(600, 1000), bit)
    return [Finding("Aortic calcification", None, None, 1, None, graded(amount, 0.35, 0.7))]


def _lymph_nodes(scene: AbdomenScene, rng: np.random.Generator) -> list[Finding]:
    a, c = scene.anatomy, scene.canvas
    region = str(rng.choice(["para-aortic", "mesenteric", "inguinal"], p=[0.4, 0.25, 0.35]))
    drawn = scene.draw.side(rng)
    side = drawn if region == "inguinal" else None
    y = a.spine_y
    places: dict[str, list[Any]] = {
        "para-aortic": [(-30, y + 28, 8), (-31, y + 26, -26), (4, y + 50, -34), (36, y + 30, -8)],
        "mesenteric": [(14, y + 72, -22), (-16, y + 76, -34), (6, y + 80, -58)],
        "inguinal": [a.groin(drawn, out, z) for out, z in ((60, -190), (74, -172), (50, -166))],
    }
    stations = places[region]
    count = int(rng.integers(1, len(stations) + 1))
    largest = 0.0
    for index in rng.permutation(len(stations))[:count]:
        short = rng.uniform(13, 26) * scene.scale * scene.draw.shrink
        largest = max(largest, short)
        value = rng.uniform(42, 62) + 0.3 * (a.vein_hu - 40)
        c.ball(
            stations[index], np.array([1.0, 1.0, 1.2]) * short / 2, value, BIT["Abdominal lymphadenopathy"]
        )
    return [Finding("Abdominal lymphadenopathy", side, region, count, float(round(largest)), None)]


# In painting order: what fills space first, what lies in it after.
PAINTERS: dict[str, Callable[..., list[Finding]]] = {
    "Hepatic steatosis": _steatosis,
    "Splenomegaly": _splenomegaly,
    "Ascites": _ascites,
    "Bowel obstruction": _obstruction,
    "Bowel wall thickening": _thick_bowel,
    "Liver lesion": _liver_lesions,
    "Gallstone": _gallstones,
    "Pancreatic lesion": _pancreatic_lesion,
    "Hydronephrosis": _hydronephrosis,
    "Adrenal nodule": _adrenal_nodule,
    "Renal cyst": _renal_cysts,
    "Renal stone": _renal_stone,
    "Abdominal lymphadenopathy": _lymph_nodes,
    "Aortic aneurysm": _aneurysm,
    "Aortic calcification": _aortic_calcification,
}
