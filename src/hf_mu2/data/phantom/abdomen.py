"""Render the normal abdomen and pelvis of PhantomCT, with the normal variants that no label covers."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from .abdomen_anatomy import SIDES, AbdomenAnatomy
from .anatomy import EVERYWHERE, Canvas, side_sign, stream
from .chest import paint_table
from .draw import AS_THE_SEED_SAYS, Draw


@dataclass
class AbdomenScene:
    """An abdomen being painted, and what the findings need to know about every voxel."""

    anatomy: AbdomenAnatomy
    canvas: Canvas
    inside: np.ndarray  # occupancy by the abdominal cavity below the diaphragm, float32
    liver: np.ndarray  # occupancy by the liver
    loops: list[np.ndarray]  # the small bowel's courses
    scale: float = 1.0
    draw: Draw = AS_THE_SEED_SAYS


def along(points: np.ndarray, step_mm: float) -> np.ndarray:
    """Return points every `step_mm` along a polyline."""
    lengths = np.r_[0, np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))]
    at = np.arange(0, lengths[-1], step_mm)
    return np.stack([np.interp(at, lengths, column) for column in points.T], 1)


def render_abdomen(anatomy: AbdomenAnatomy, canvas: Canvas) -> AbdomenScene:
    """Paint the abdomen and pelvis of a patient without findings."""
    a, c = anatomy, canvas
    z, y, x = c.z, c.y, c.x
    cavity = a.cavity(z, y, x)
    _walls(a, c, cavity)
    below = a.dome_height(y, x) - z
    inside = c.occupancy(np.minimum(cavity, np.minimum(0.8 * below, z + 198)))
    c.paint(EVERYWHERE, c.occupancy(cavity), a.fat_hu)
    _lung_bases(a, c, cavity, below)
    loops = _bowel(a, c, inside)
    _pancreas(a, c)
    wobble = c.noise_field(stream(a.seed, "liver"), 34)
    liver = c.occupancy(a.liver_depth(z, y, x) + 1.5 * wobble)
    c.paint(EVERYWHERE, liver, a.liver_hu)
    scene = AbdomenScene(a, c, inside, liver, loops)
    paint_spleen(scene, a.spleen_length)
    _gallbladder(a, c)
    for side in SIDES:
        _kidney(a, c, side)
    _vessels(a, c, liver)
    _spine(a, c)
    _pelvis(a, c)
    return scene


def _walls(a: AbdomenAnatomy, c: Canvas, cavity: np.ndarray) -> None:
    """Paint table, skin, fat, muscles and the lower ribs."""
    paint_table(a.field_of_view()[0], a.table_curve, a.table_hu, c)
    body = a.body(c.z, c.y, c.x)
    c.paint(EVERYWHERE, c.occupancy(body), 10)
    c.paint(EVERYWHERE, c.occupancy(body - 2), a.fat_hu)
    wobble = 2.5 * c.noise_field(stream(a.seed, "abdominal wall"), 40)
    thick = a.muscle + 26 * np.clip((-c.z - 80) / 50, 0, 1) * np.clip((25 - c.y) / 30, 0, 1)
    c.paint(EVERYWHERE, c.occupancy(np.minimum(body - 0.62 * a.fat + wobble, cavity + thick)), a.muscle_hu)
    for side in SIDES:  # erector spinae
        across = (c.x * side_sign(side) - 29) / 26
        rho = np.sqrt(across**2 + ((c.y - (a.spine_y - 34)) / 19) ** 2)
        c.paint(EVERYWHERE, c.occupancy(np.minimum((1 - rho) * 22, body - 6)), a.muscle_hu)
    rng = stream(a.seed, "lower ribs")
    pitch, phase = rng.uniform(25, 30), rng.random()
    turn = (c.z + 0.45 * c.y) / pitch + phase
    off = np.abs(turn - np.round(turn)) * pitch
    rib = np.minimum(5.0 - off, 4.0 - np.abs(cavity + 5))
    margin = c.z - 25 - 75 * np.clip((c.y - 0.1 * a.half_depth) / a.half_depth, 0, 1)
    rib = np.minimum(np.minimum(rib, margin), np.abs(c.x) - 18)
    c.paint(EVERYWHERE, c.occupancy(rib), np.where(rib > 2, a.bone_hu + 60, 480).astype(np.float32))


def _lung_bases(a: AbdomenAnatomy, c: Canvas, cavity: np.ndarray, below: np.ndarray) -> None:
    rng = stream(a.seed, "lung bases")
    lung = c.occupancy(np.minimum(np.minimum(cavity, -0.8 * below), -a.spine_depth(c.z, c.y, c.x) - 3))
    c.paint(EVERYWHERE, lung, rng.uniform(-870, -790))
    c.ball(
        (-28, a.center_y + 30, a.dome["left"] + 34), (52, 44, 42), 45 + 0.4 * (a.vein_hu - 40), within=lung
    )
    rim = np.minimum(np.minimum(below, 3.5 - below), cavity)
    c.paint(EVERYWHERE, c.occupancy(rim), a.muscle_hu - 5)


def _bowel(a: AbdomenAnatomy, c: Canvas, inside: np.ndarray) -> list[np.ndarray]:
    """Paint small bowel, colon, duodenum and stomach; return the courses of the small bowel."""
    rng = stream(a.seed, "bowel")
    wall = 42 + 0.35 * (a.vein_hu - 40)
    grain = c.noise_field(rng, 8)
    loops = []
    for front in a.center_y + np.array([-0.16, 0.2, 0.52]) * a.half_depth:
        points = []
        for row, height in enumerate(np.arange(-14, -112, -24.0)):
            for x in np.linspace(-66, 66, 6) * (-1) ** row:
                points.append((x + rng.normal(0, 5), front + rng.normal(0, 7), height + rng.normal(0, 6)))
        loops.append(np.array(points))
    for loop in loops:
        c.line(loop, 11, wall, within=inside)
        first = 0
        while first < len(loop) - 1:  # what fills the lumen changes along the way
            last = min(first + int(rng.integers(2, 6)), len(loop) - 1)
            filling = rng.choice([15.0, 30.0, a.oral_hu or 25.0, -700.0], p=[0.35, 0.25, 0.3, 0.1])
            c.line(loop[first : last + 1], rng.uniform(6.5, 8.8), float(filling), within=inside)
            first = last
    for _ in range(14):  # mesenteric vessels
        start = np.array([rng.normal(0, 8), a.spine_y + 45, rng.uniform(-60, 10)])
        c.line([start, start + rng.normal(0, 1, 3) * (30, 14, 24)], 1.6, a.vein_hu, within=inside)
    beads = along(a.colon(), 11.0)
    radius = np.interp(
        np.arange(len(beads)) / len(beads), [0, 0.2, 0.45, 0.7, 0.9, 1], [23, 21, 18, 14, 14, 18]
    )
    radius = radius * rng.uniform(0.86, 1.14, len(beads))
    beads[:-3] += rng.normal(0, 2.0, (len(beads) - 3, 3))
    gas = rng.random(len(beads)) < 0.55
    stool = rng.uniform(10, 70)
    for bead, size in zip(beads, radius, strict=True):
        c.ball(bead, size, wall, within=inside)
    for bead, size, has_gas in zip(beads, radius - 3.0, gas, strict=True):
        found = c.ellipsoid(bead, size)
        if found is None:
            continue
        region, share = found
        share = share * inside[region]
        c.paint(region, share, stool + 45 * grain[region] - 140 * (grain[region] > 1.1))
        if has_gas:
            level = np.float32(bead[1] + rng.uniform(-0.5, 0.5) * size)
            c.paint(region, share * c.occupancy(c.y[:, region[1]] - level), -985)
    y = a.spine_y
    duodenum = [(24, y + 66, 54), (44, y + 50, 44), (46, y + 38, 8), (22, y + 38, -4), (-14, y + 40, 2)]
    c.line(duodenum, 11.5, wall)
    c.line(duodenum, 8, 20)
    low, front = a.dome["left"], a.center_y
    parts = [
        ((-58, front - 18, low - 38), (34, 34, 30)),
        ((-56, front + 22, low - 74), (27, 26, 38)),
        ((-18, front + 38, low - 104), (36, 18, 17)),
    ]
    size = rng.uniform(0.75, 1.1)
    for center, reach in parts:
        c.ball(center, np.array(reach) * size + 1, wall + 5, within=inside)
    filling = rng.choice([15.0, 35.0, a.oral_hu or 25.0])
    level = np.float32(front + rng.uniform(-10, 34))
    for center, reach in parts:
        found = c.ellipsoid(center, np.array(reach) * size - 4)
        if found is not None:
            region, share = found
            share = share * inside[region]
            c.paint(region, share, float(filling) + 12 * grain[region])
            c.paint(region, share * c.occupancy(c.y[:, region[1]] - level), -985)
    return loops


def _pancreas(a: AbdomenAnatomy, c: Canvas) -> None:
    rng = stream(a.seed, "pancreas")
    for index, bead in enumerate(along(a.pancreas(), 7.0)):
        radius = (12.5 if index < 4 else 8.8) * rng.uniform(0.85, 1.12)
        c.ball(bead + rng.normal(0, 1.2, 3), radius, a.pancreas_hu)


def paint_spleen(scene: AbdomenScene, length_mm: float, bit: int | None = None) -> None:
    """Paint a spleen of a length; a long one reaches further down and in."""
    a, c = scene.anatomy, scene.canvas
    grown = length_mm / 100
    reach = np.array([27.0, 42.0, 50.0]) * (grown**0.5, grown**0.5, grown)
    center = (-(a.half_width - 6 - 0.85 * reach[0]), a.center_y - 34, a.dome["left"] - 22 - 42 * grown)
    c.ball(center, reach, a.spleen_hu, bit, within=scene.inside)


def _gallbladder(a: AbdomenAnatomy, c: Canvas) -> None:
    center = gallbladder(a)
    c.ball(center, (15, 15, 26), 35)
    c.ball(center, (13, 13, 24), 10)


def gallbladder(a: AbdomenAnatomy) -> np.ndarray:
    """Return its centre, under the liver's lower surface."""
    x, y = 48.0, a.center_y + 0.36 * a.half_depth
    return np.array([x, y, float(a.liver_bottom(y, x)) + 3])


def _kidney(a: AbdomenAnatomy, c: Canvas, side: str) -> None:
    rng = stream(a.seed, f"kidney {side}")
    center = a.kidney[side]
    found = c.box(center - 76, center + 76)
    assert found is not None  # the kidneys lie in every field of view
    region, z, y, x = found
    out, front, up = a.kidney_coordinates(side, z, y, x)
    wide, deep, long = a.kidney_axes.astype(np.float32)
    depth = (1 - np.sqrt((out / wide) ** 2 + (front / deep) ** 2 + (up / long) ** 2)) * np.float32(30)
    sinus = 1 - np.sqrt(((out + 13) / 14) ** 2 + (front / 8) ** 2 + (up / 27) ** 2)
    pyramids = np.cos(up * np.float32(0.42) + np.float32(rng.uniform(0, 6))) > -0.2
    inner = np.where((depth > 7) & pyramids, a.medulla_hu, a.cortex_hu).astype(np.float32)
    c.paint(region, c.occupancy(depth + 9), a.fat_hu)  # perirenal fat
    c.paint(region, c.occupancy(depth), inner)
    c.paint(region, c.occupancy(sinus * 12), a.fat_hu + 15)
    c.ball(a.kidney_point(side, -16, 0, 0), (9, 6, 9), 12)  # renal pelvis
    sign = side_sign(side)
    ureter: list[Any] = [
        a.kidney_point(side, -24, 2, -8),
        (sign * 36, a.spine_y + 26, -40),
        (sign * 42, a.spine_y + 32, -100),
    ]
    c.line(ureter, 2.2, 15)
    vein: list[Any] = [a.kidney_point(side, -14, 4, 4), (sign * 12, a.spine_y + 30, center[2] + 4)]
    c.line(vein, 4.2, a.vein_hu)
    adrenal = a.kidney_point(side, -14, 6, 58)
    for lean in (-1, 1):  # the two limbs of the adrenal gland
        c.line([adrenal + (0, 4, 3), adrenal + (lean * 6, -10, -7)], 2.6, 35 + 0.3 * (a.vein_hu - 40))


def _vessels(a: AbdomenAnatomy, c: Canvas, liver: np.ndarray) -> None:
    rng = stream(a.seed, "abdominal vessels")
    y = a.spine_y
    aorta = a.aorta()
    x, y_aorta, low = aorta[-1]
    cava = [(22, y + 34, 168), (20, y + 34, 110), (18, y + 28, 40), (16, y + 27, -62)]
    c.line(cava, 9.5, a.vein_hu)
    for side in SIDES:
        sign = side_sign(side)
        course = [
            (x, y_aorta, low),
            (sign * 34, y + 30, -100),
            (sign * 54, a.center_y + 12, -160),
            (sign * 60, 42, -205),
        ]
        c.line(
            [(p[0] + sign * 4 + 6 * (i == 0), p[1] - 10, p[2]) for i, p in enumerate(course)], 6.2, a.vein_hu
        )
        c.line(course, 5.0, a.artery_hu)
    c.line(aorta, a.aorta_radius + 1.2, 42)
    c.line(aorta, a.aorta_radius, a.artery_hu)
    mesenteric = [(-8, y_aorta + 8, 44), (-6, y_aorta + 22, 20), (-2, y_aorta + 34, -50)]
    c.line(mesenteric, 3.6, a.artery_hu)
    c.line([(p[0] + 14, p[1] + 2, p[2]) for p in mesenteric], 5.2, a.vein_hu)
    portal = np.array([[8, y + 56, 46], [26, y + 58, 72], [42, y + 62, 92]])
    c.line(portal, 6.8, a.vein_hu)
    for start, count, radius in (
        (portal[-1], 5, 3.4),
        (np.array([24, y + 44, 128]), 4, 3.0),
    ):  # portal, hepatic
        for _ in range(count):
            end = start + np.array([rng.uniform(15, 62), rng.uniform(-38, 48), rng.uniform(-34, 26)])
            c.line([start, (start + end) / 2 + rng.normal(0, 5, 3), end], radius, a.vein_hu + 8, within=liver)
    splenic = [(8, y + 56, 46), (-30, y + 46, 58), (-74, y + 22, 88)]
    c.line(splenic, 4.2, a.vein_hu)


def _spine(a: AbdomenAnatomy, c: Canvas) -> None:
    rng = stream(a.seed, "lumbar spine")
    found = c.box((-60, a.spine_y - 58, -92), (60, a.spine_y + 28, 300))
    assert found is not None  # every field of view holds the spine
    region, z, y, x = found
    dx, dy = x - a.midline(z), y - np.float32(a.spine_y)
    pitch = 35.0
    phase = z / pitch
    disc = np.abs(phase - np.round(phase)) * pitch  # mm from the middle of the nearest disc
    waist = 1 - 0.09 * np.cos(2 * np.pi * phase)
    body = (1 - np.sqrt((dx / (22 * waist)) ** 2 + (dy / (16 * waist)) ** 2)) * 18
    c.paint(region, c.occupancy(body), np.where(disc < 4.5, 88, 380))
    c.paint(region, c.occupancy(np.minimum(body - 2, disc - 5.5)), a.bone_hu)
    c.paint(region, c.occupancy(np.minimum(14 - np.abs(dx) * 0.7, np.minimum(-dy - 13, dy + 34))), 320)
    c.paint(
        region,
        c.occupancy(np.minimum(4.5 - np.abs(dx), np.minimum(-dy - 30, np.minimum(dy + 54, disc - 6)))),
        300,
    )
    across = np.minimum(5 - np.abs(dy + 18), np.minimum(42 - np.abs(dx), disc - 9))
    c.paint(region, c.occupancy(across), 280)
    c.paint(region, c.occupancy(8.5 - np.sqrt(dx**2 + (dy + 23) ** 2)), 24)
    for side in SIDES:
        sign = side_sign(side)
        course = [(26, 4, 44), (33, 6, -10), (42, 12, -70), (56, 44, -130), (74, 60, -185)]
        psoas = [(sign * px, a.spine_y + py, pz) for px, py, pz in course]
        for first, radius in enumerate((9, 16, 19, 16)):
            c.line(psoas[first : first + 2], radius, a.muscle_hu + 3)
    if rng.random() < 0.4:  # osteophytes
        for _ in range(rng.integers(2, 6)):
            level = round(rng.uniform(-2, 4)) * pitch
            sign = rng.choice([-1, 1])
            c.ball(
                (float(a.midline(level)) + sign * 20, a.spine_y + rng.uniform(0, 12), level), (5, 4, 5), 520
            )


def _pelvis(a: AbdomenAnatomy, c: Canvas) -> None:
    """Paint sacrum, hip bones, femoral heads, gluteal muscles, bladder and the organs behind it."""
    y = a.spine_y
    wide = a.half_width / 125
    for side in SIDES:
        sign = side_sign(side)
        c.ball((sign * 84 * wide, y - 6, -130), (40 * wide, 32, 56), a.muscle_hu)
        crest = np.array([[50, y - 4, -72], [84, y + 22, -52], [112, 22, -62], [116, 44, -80]])
        socket = np.array([[58, y + 16, -128], [82, y + 42, -140], [92, 0, -150], [98, 30, -140]])
        for t in np.linspace(0, 1, 14):
            blade = (crest + t * (socket - crest)) * (sign * wide, 1, 1)
            c.line(blade, 6.5, 420)
        for t in np.linspace(0.06, 0.95, 14):
            c.line((crest + t * (socket - crest)) * (sign * wide, 1, 1), 3.6, a.bone_hu)
        hip = np.array([sign * 90 * wide, -2, -168])
        c.ball(hip, 30, 380)
        c.ball(hip, 27, 40)
        c.ball(hip, 24, 480)
        c.ball(hip, 21.5, a.bone_hu + 80)
        trochanter = hip + (sign * 44, -18, -24)
        c.line([hip, trochanter], 16, 480)
        c.line([hip, trochanter], 13, a.bone_hu + 30)
        c.line([hip + (-sign * 14, 18, -8), (sign * 6, 52, -194)], 7.5, 400)
        c.line([hip + (-sign * 10, -22, -8), hip + (-sign * 24, -40, -40)], 12, 360)
    for step in range(6):
        center = (0, y - 4 - 5.5 * step + 0.9 * max(0, step - 3) ** 2, -92 - 15.5 * step)
        size = (50 - 6.5 * step, 15 - step, 11)
        c.ball(center, size, 400)
        c.ball(center, np.array(size) - 2.5, a.bone_hu)
    behind = (0, -16, -158)
    if a.is_female:
        c.ball(behind, (24, 20, 28), 55 + 0.4 * (a.vein_hu - 40))
    else:
        c.ball((0, 2, -196), (22, 17, 18), 45 + 0.2 * (a.vein_hu - 40))
        c.ball((0, -14, -176), (28, 7, 8), 40)
    bladder = np.array([0.0, a.center_y + 14, -166])
    c.ball(bladder, a.bladder + 3, 40)
    c.ball(bladder, a.bladder, 6)
