"""Paint the findings of PhantomCT outside the lungs, and all findings of a study in the right order."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ..study import FINDING_LABELS
from . import lungs
from .anatomy import EVERYWHERE, Point, side_sign
from .chest import BIT, Scene
from .draw import Draw, graded, paint_in_turn
from .report import Finding


def paint_findings(scene: Scene, labels: Sequence[str], draws: Mapping[str, Draw]) -> list[Finding]:
    """Paint the findings of the labels in a chest."""
    return paint_in_turn(scene, PAINTERS, labels, draws, FINDING_LABELS)


def _cardiomegaly(scene: Scene, rng: np.random.Generator) -> list[Finding]:
    a, c = scene.anatomy, scene.canvas
    c.mark(EVERYWHERE, a.heart_depth(c.z, c.y, c.x) > 0, BIT["Cardiomegaly"])
    return [Finding("Cardiomegaly", None, None, 1, None, graded(a.ratio, 0.59, 0.62))]


def _pericardial_effusion(scene: Scene, rng: np.random.Generator) -> list[Finding]:
    a, c = scene.anatomy, scene.canvas
    thickness = rng.uniform(9, 22) * scene.scale * scene.draw.shrink
    heart = a.heart_depth(c.z, c.y, c.x)
    dependent = np.clip((a.heart[1] - c.y) / 60, -0.35, 0.5)  # fluid gathers behind and below
    rim = np.minimum(heart + thickness * (0.85 + dependent), -heart)
    share = c.occupancy(rim) * c.occupancy(scene.cavity - 2) * c.occupancy(-8 - c.z)
    share *= c.occupancy(np.float32(a.sternum_y - 10) - c.y) * c.occupancy(-a.spine_depth(c.z, c.y, c.x) - 3)
    c.paint(EVERYWHERE, share, rng.uniform(4, 14), BIT["Pericardial effusion"])
    scene.lung *= 1 - c.occupancy(heart + thickness)
    size = round(float(thickness))
    return [Finding("Pericardial effusion", None, None, 1, float(size), graded(size, 12, 18))]


def _pleural_effusion(scene: Scene, rng: np.random.Generator) -> list[Finding]:
    a, c = scene.anatomy, scene.canvas
    sides = ["right", "left"] if rng.random() < 0.35 else [scene.draw.side(rng)]
    thickness = {side: float(rng.uniform(18, 55)) * scene.scale * scene.draw.shrink for side in sides}
    top = {side: rng.uniform(-30, 35) for side in sides}
    for side in sides:
        # Thickness from the posterior wall: full at the base, thinning upwards; the meniscus climbs the lateral wall.
        sign = side_sign(side)
        share_z = np.clip((top[side] - c.z) / 70, -0.3, 1)
        back = a.center_y - a.half_depth * (1 - 0.25 * (c.x / a.half_width) ** 2)
        level = back + thickness[side] * share_z
        meniscus = (
            0.45 * thickness[side] * np.exp(-np.clip(scene.cavity, 0, None) / 9) * np.clip(share_z * 3, 0, 1)
        )
        depth = np.minimum(level + meniscus - c.y, sign * c.x)
        share = c.occupancy(depth)
        scene.fill_lung(EVERYWHERE, share, rng.uniform(2, 16), BIT["Pleural effusion"])
        scene.lung *= 1 - share
        # compressed lung along the fluid
        c.paint(EVERYWHERE, scene.lung * np.clip(1 + depth / 9, 0, 1) * (depth < 0), -120)
    widest = round(max(thickness.values()))
    side = "bilateral" if len(sides) == 2 else sides[0]
    return [Finding("Pleural effusion", side, None, len(sides), float(widest), graded(widest, 27, 42))]


def _hiatal_hernia(scene: Scene, rng: np.random.Generator) -> list[Finding]:
    a, c = scene.anatomy, scene.canvas
    radius = rng.uniform(23, 37) * scene.scale * scene.draw.shrink
    kind = "sliding" if rng.random() < 0.75 else "paraesophageal"
    center = np.array(
        [-10 + rng.uniform(-6, 8), a.spine_y + 20 + radius * 0.85, a.dome["left"] + radius * 0.7]
    )
    shape = np.array([1.1, 0.85, 1.0]) * radius
    wall, inside = c.ellipsoid(center, shape), c.ellipsoid(center, shape - 4.5)
    assert wall is not None and inside is not None  # the hiatus lies in every field of view
    region, share = wall
    c.paint(region, share, 45, BIT["Hiatal hernia"])
    scene.lung[region] *= 1 - share
    region, share = inside
    mixed = c.noise_field(rng, 9, region)
    c.paint(region, share, rng.uniform(10, 45) + 22 * mixed)
    if rng.random() < 0.85:
        level = np.float32(center[1] + rng.uniform(-0.35, 0.35) * radius)
        c.paint(region, share * c.occupancy(c.y[:, region[1]] - level), -960)
    return [Finding("Hiatal hernia", None, None, 1, float(round(2 * radius)), graded(radius, 27, 33), kind)]


def _lymph_nodes(scene: Scene, rng: np.random.Generator) -> list[Finding]:
    a, c = scene.anatomy, scene.canvas
    region = str(rng.choice(["mediastinal", "hilar", "axillary"], p=[0.5, 0.25, 0.25]))
    side = None if region == "mediastinal" else scene.draw.side(rng)
    sign = 1.0 if side == "right" else -1.0
    stations: list[Point]
    if side is None:
        stations = [(19, -2, 34), (15, 2, 54), (-20, 6, 14), (0, -20, -18), (4, 30, 34)]
    elif region == "hilar":
        hilum = a.hilum(side)
        stations = [hilum + (sign * 2, 9, 8), hilum + (sign * 4, -8, -8), hilum + (sign * 1, 12, -14)]
    else:
        x = sign * (a.half_width + 0.5 * a.muscle - 6)
        stations = [(x, a.center_y + dy, 62 + dz) for dy, dz in ((0, 0), (17, 10), (-16, -10))]
    count = int(rng.integers(1, len(stations) + 1))
    largest = 0.0
    for index in rng.permutation(len(stations))[:count]:
        short = rng.uniform(16 if region == "hilar" else 13, 25) * scene.scale * scene.draw.shrink
        largest = max(largest, short)
        c.ball(
            stations[index],
            np.array([1.0, 1.0, 1.15]) * short / 2,
            rng.uniform(38, 60),
            BIT["Lymphadenopathy"],
        )
    return [Finding("Lymphadenopathy", side, region, count, float(round(largest)), None)]


def _arterial_calcification(scene: Scene, rng: np.random.Generator) -> list[Finding]:
    a, c = scene.anatomy, scene.canvas
    course = a.aorta()
    stretch = str(rng.choice(["aortic arch", "descending aorta", "thoracic aorta"]))
    first, last = {"aortic arch": (2, 5), "descending aorta": (5, 8), "thoracic aorta": (2, 8)}[stretch]
    amount = rng.uniform(0, 1)
    for _ in range(int(4 + 7 * amount) + 2 * (stretch == "thoracic aorta")):
        at = rng.uniform(first, last)
        index = int(at)
        here = course[index] + (at - index) * (course[index + 1] - course[index])
        axis = course[index + 1] - course[index]
        axis /= np.linalg.norm(axis)
        out = np.cross(axis, rng.normal(0, 1, 3))
        out /= np.linalg.norm(out)
        across = np.cross(axis, out)
        arc = np.linspace(-1, 1, 3) * rng.uniform(0.25, 0.55)
        slide = axis * rng.uniform(-5, 5)
        shell = [here + a.aorta_radius * (np.cos(t) * out + np.sin(t) * across) + slide * t for t in arc]
        c.line(
            shell,
            rng.uniform(2.0, 2.9) * scene.scale,
            rng.uniform(650, 1150),
            BIT["Arterial wall calcification"],
        )
    return [Finding("Arterial wall calcification", None, stretch, 1, None, graded(amount, 0.35, 0.7))]


def _coronary_calcification(scene: Scene, rng: np.random.Generator) -> list[Finding]:
    a, c = scene.anatomy, scene.canvas
    amount = rng.uniform(0, 1)
    names = ["LAD", "LCx", "RCA"][: 1 + int(amount * 2.99)]
    for name in names:
        for start in rng.uniform(0.08, 0.7, int(rng.integers(2, 4))):
            course = a.coronary(name, np.linspace(start, start + rng.uniform(0.12, 0.22), 4))
            c.line(
                course,
                rng.uniform(1.9, 2.7) * scene.scale,
                rng.uniform(700, 1200),
                BIT["Coronary artery wall calcification"],
            )
    return [Finding("Coronary artery wall calcification", None, None, 1, None, graded(amount, 0.34, 0.67))]


def _medical_material(scene: Scene, rng: np.random.Generator) -> list[Finding]:
    a, c = scene.anatomy, scene.canvas
    bit = BIT["Medical material"]
    kind = str(
        rng.choice(
            ["central venous catheter", "pacemaker", "sternal wires", "nasogastric tube", "valve prosthesis"]
        )
    )
    side = None
    chest_y = a.center_y + 0.8 * (a.half_depth + a.muscle)
    if kind == "central venous catheter":
        side = "right"
        c.ball((0.55 * a.half_width, chest_y, 52), (13, 7, 13), 2200, bit)
        c.line(
            [(0.55 * a.half_width, chest_y, 60), (44, 50, 84), (28, 14, 62), (22, 16, 20), (22, 14, -34)],
            2.2,
            1500,
            bit,
        )
    elif kind == "pacemaker":
        side = "left"
        box = (-0.55 * a.half_width, chest_y, 50)
        c.ball(box, (22, 6.5, 20), 2900, bit)
        tip = a.heart + (np.array([0.35, 0.35, -0.35]) * a.heart_axes) @ a.heart_basis
        c.line([box, (-44, 44, 82), (4, 20, 44), (22, 16, 20), (22, 14, -34), tip], 2.0, 2400, bit)
        c.ball(tip, 3.2, 2800, bit)
    elif kind == "sternal wires":
        for z in np.linspace(48, -48, int(rng.integers(4, 7))):
            loop = [
                (9 * np.cos(t), a.sternum_y + 10 * np.sin(t), z + 3 * np.sin(2 * t))
                for t in np.linspace(0, 2 * np.pi, 9)
            ]
            c.line(np.array(loop), 1.5, 2600, bit)
    elif kind == "nasogastric tube":
        c.line(a.esophagus(), 2.6, 900, bit)
    else:
        center = a.heart + (np.array([-0.25, 0.1, -0.35]) * a.heart_axes) @ a.heart_basis
        t = np.linspace(0, 2 * np.pi, 13)[:, None]
        plane = np.linalg.qr(rng.normal(0, 1, (3, 2)))[0]
        c.line(center + 14 * (np.cos(t) * plane[:, 0] + np.sin(t) * plane[:, 1]), 2.4, 2200, bit)
    return [Finding("Medical material", side, None, 1, None, None, kind)]


# In painting order: what displaces lung first, what lies in it after.
PAINTERS: dict[str, Callable[..., list[Finding]]] = {
    "Cardiomegaly": _cardiomegaly,
    "Pericardial effusion": _pericardial_effusion,
    "Pleural effusion": _pleural_effusion,
    "Hiatal hernia": _hiatal_hernia,
    "Mosaic attenuation pattern": lungs.mosaic,
    "Emphysema": lungs.emphysema,
    "Lung opacity": lungs.opacity,
    "Interlobular septal thickening": lungs.septal,
    "Pulmonary fibrotic sequela": lungs.fibrosis,
    "Atelectasis": lungs.atelectasis,
    "Consolidation": lungs.consolidation,
    "Peribronchial thickening": lungs.thick_bronchi,
    "Bronchiectasis": lungs.bronchiectasis,
    "Lung nodule": lungs.nodules,
    "Lymphadenopathy": _lymph_nodes,
    "Arterial wall calcification": _arterial_calcification,
    "Coronary artery wall calcification": _coronary_calcification,
    "Medical material": _medical_material,
}
