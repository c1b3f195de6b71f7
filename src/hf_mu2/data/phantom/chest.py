"""Render the normal chest of PhantomCT, with the normal variants and benign things that no label covers."""

from dataclasses import dataclass

import numpy as np

from ..study import FINDING_LABELS
from .anatomy import EVERYWHERE, Anatomy, Canvas, Region, stream
from .draw import AS_THE_SEED_SAYS, Draw

BIT = {label: bit for bit, label in enumerate(FINDING_LABELS)}


@dataclass
class Scene:
    """A chest being painted: the canvas, its patient and what the findings need to know about every voxel."""

    anatomy: Anatomy
    canvas: Canvas
    lung: np.ndarray  # occupancy by aerated lung, float32
    lung_depth: np.ndarray  # mm below the pleura
    cavity: np.ndarray  # mm inside the rib cage
    lobe: np.ndarray  # lobe number, uint8
    airways: dict[int, list[np.ndarray]]
    scale: float = 1.0  # easy phantoms have larger findings
    draw: Draw = AS_THE_SEED_SAYS  # how the finding being painted departs from what its seed draws

    def fill_lung(self, region: Region, share: np.ndarray, hu: float, bit: int) -> None:
        """Replace a share of each voxel's lung part, so that no dark line stays along the wall."""
        lung = self.lung[region]
        share = share * lung
        view = self.canvas.hu[region]
        filled = np.minimum(
            view + share * np.float32(hu - self.anatomy.lung_hu), np.maximum(view, np.float32(hu))
        )
        view[...] = np.where((view > hu) | (lung > 0.9), view + share * (hu - view), filled)
        self.canvas.mark(region, share > 0.5, bit)


def render_chest(anatomy: Anatomy, canvas: Canvas) -> Scene:
    """Paint the chest of a patient without findings."""
    c, a = canvas, anatomy
    z, y, x = c.z, c.y, c.x
    cavity = a.cavity(z, y, x)
    _soft_tissue(a, c, cavity)
    _bones(a, c, cavity)
    heart, mediastinum, spine = (f(z, y, x) for f in (a.heart_depth, a.mediastinum_depth, a.spine_depth))
    below = a.dome_height(y, x) - z
    depth = np.minimum(cavity, -0.8 * below)
    for solid in (mediastinum, heart, spine):
        depth = np.minimum(depth, -solid)
    lung = c.occupancy(depth)
    inside = c.occupancy(cavity)
    c.paint(EVERYWHERE, inside * c.occupancy(np.maximum(mediastinum, heart + 5)), a.fat_hu + 4)
    _abdomen(a, c, inside, below)
    _lung(a, c, lung)
    scene = Scene(a, c, lung, depth, cavity, a.lobe(z, y, x), a.airways())
    _lung_vessels(scene)
    _heart(a, c, heart, inside)
    _great_vessels(a, c)
    _spine(a, c)
    return scene


def _soft_tissue(a: Anatomy, c: Canvas, cavity: np.ndarray) -> None:
    paint_table(a.field_of_view()[0], a.table_curve, a.table_hu, c)
    body = a.body(c.z, c.y, c.x)
    c.paint(EVERYWHERE, c.occupancy(body), 10)
    if a.breast:
        for side in (1, -1):
            reach = np.array([48.0, a.breast, 52.0]) * (1, 1, 0.8 + a.breast / 200)
            front = a.center_y + a.half_depth + (a.muscle + a.fat) * 0.6
            center = np.array([side * 0.55 * a.half_width, front, -45.0 - 0.2 * a.breast])
            c.ball(center, reach + 3, 20)
            c.ball(center, reach, a.fat_hu)
            rng = stream(a.seed, f"breast{side}")
            for _ in range(7):  # glandular tissue
                offset = rng.normal(0, 0.28, 3) * reach + (0, 0.25 * a.breast, 0)
                c.ball(
                    center + offset, reach * rng.uniform(0.1, 0.32, 3) * (0.5 + a.gland), -30 + 70 * a.gland
                )
    rng = stream(a.seed, "clothes")
    if rng.random() < 0.35:  # metal outside the body: buttons, a zip, coins in a pocket, underwires
        front = a.center_y + a.half_depth + (a.muscle + a.fat + 11) * 0.92 + 3
        if a.breast > 25:
            t = np.linspace(0.15, np.pi - 0.15, 7)
            for side in (1, -1):
                wire = [
                    (side * 0.55 * a.half_width + 44 * np.cos(s), front + 8 * np.sin(s), -62 - 42 * np.sin(s))
                    for s in t
                ]
                c.line(wire, 1.5, 2400)
        for k in range(rng.integers(1, 7)):
            c.ball((rng.normal(0, 4), front + 2, 40 - 28 * k), (4.5, 2.5, 4.5), rng.uniform(1500, 2900))
    if a.arms_down:
        for side in (1, -1):
            width = a.half_width + a.muscle + a.fat + 50
            c.line(
                [(side * width, a.center_y - 30, 60.0), (side * width, a.center_y - 20, -180.0)],
                38,
                a.muscle_hu - 30,
            )
            c.line([(side * width, a.center_y - 30, 60.0), (side * width, a.center_y - 20, -180.0)], 11, 500)
    c.paint(EVERYWHERE, c.occupancy(body - 2), a.fat_hu)
    wobble = c.noise_field(stream(a.seed, "muscle"), 40)
    c.paint(
        EVERYWHERE, c.occupancy(np.minimum(body - a.fat + 2.5 * wobble, 8 - cavity + a.muscle)), a.muscle_hu
    )
    rng = stream(a.seed, "fat planes")
    for side in (1, -1):  # axillary and neck fat
        wall = a.half_width + 0.5 * a.muscle
        c.ball((side * (wall - 6), a.center_y - 4, 62), (20, 30, 34), a.fat_hu + 5)
        c.ball((side * 24, a.center_y - 2, a.apex + 6), (12, 26, 22), a.fat_hu + 10)
        for _ in range(3):
            c.ball((side * (wall - 8), a.center_y, 60) + rng.normal(0, 9, 3), rng.uniform(2, 3), 30)
    if rng.random() < 0.25:  # thyroid nodule
        c.ball((rng.choice([-15, 15]), 2, a.apex + 6), rng.uniform(6, 12), rng.uniform(20, 140))


def paint_table(low: np.ndarray, curve: float, hu: float, c: Canvas) -> None:
    """Paint a curved table top and its foam under the patient; `low` is the corner of the field of view."""
    top = low[1] + 20
    height = c.y - top - np.float32(curve) * c.x**2 + np.float32(12)
    c.paint(EVERYWHERE, c.occupancy(2.0 - np.abs(height)), hu + 200)
    c.paint(EVERYWHERE, c.occupancy(np.minimum(-height, height + 16)), -920)


def _bones(a: Anatomy, c: Canvas, cavity: np.ndarray) -> None:
    rng = stream(a.seed, "ribs")
    wall = np.flatnonzero(
        (np.abs(cavity + 6) < 5.5 + c.edge).ravel() & (c.z < a.apex - 6).repeat(cavity[0].size)
    )
    iz, iy, ix = np.unravel_index(wall, c.shape)
    z, y, x = c.axes[0][iz], c.axes[1][iy], c.axes[2][ix]
    pitch, slope = rng.uniform(24, 29), rng.uniform(0.35, 0.55)
    phase = (z + slope * (y - a.center_y)) / pitch + rng.random()
    off = np.abs(phase - np.round(phase)) * pitch
    rib = np.minimum(5.2 - off, 4.2 - np.abs(cavity.ravel()[wall] + 6))
    front = y > a.center_y + 0.55 * a.half_depth
    value = np.where(front, 95, np.where(rib > 2.2, a.bone_hu + 60, 520)).astype(np.float32)
    share = c.occupancy(rib) * (np.abs(x) > 16)
    flat = c.hu.reshape(-1)
    flat[wall] += share * (value - flat[wall])
    if rng.random() < 0.2:  # callus of a healed rib fracture
        angle = rng.uniform(-0.9, 0.9)
        side = rng.choice([-1, 1])
        spot = (
            side * np.cos(angle) * (a.half_width + 6),
            a.center_y + np.sin(angle) * a.half_depth,
            rng.uniform(-60, 30),
        )
        c.ball(spot, (6, 8, 7), 450)
    c.line([(0, a.sternum_y, 62), (0, a.sternum_y + 6, -10), (0, a.sternum_y - 2, -70)], 8, 380)
    c.line([(0, a.sternum_y, 62), (0, a.sternum_y + 6, -10), (0, a.sternum_y - 2, -70)], 5.5, a.bone_hu)
    for side in (1, -1):
        x = a.half_width
        c.line(
            [
                (side * 16, a.center_y + 52, 72),
                (side * 60, a.center_y + 52, 86),
                (side * x, a.center_y + 10, 92),
            ],
            6,
            420,
        )
        blade = [(side * (x * 0.62 + 12), a.center_y - a.half_depth - 9, 70 - 25 * k) for k in range(5)]
        for k, point in enumerate(blade):
            c.ball(point, (26 - 3 * k, 3.2, 17), 330)


def _spine(a: Anatomy, c: Canvas) -> None:
    rng = stream(a.seed, "spine")
    found = c.box((-55, a.spine_y - 52, -300), (55, a.spine_y + 24, 300))
    assert found is not None  # every field of view holds the spine
    region, z, y, x = found
    dx, dy = x - a.midline(z), y - np.float32(a.spine_y)
    pitch = 27.0
    phase = (z + 7) / pitch
    disc = np.abs(phase - np.round(phase)) * pitch  # mm from the middle of the nearest disc
    waist = 1 - 0.08 * np.cos(2 * np.pi * phase)
    body = (1 - np.sqrt((dx / (17 * waist)) ** 2 + (dy / (14 * waist)) ** 2)) * 15
    c.paint(region, c.occupancy(body), np.where(disc < 3, 85, 380))
    c.paint(region, c.occupancy(np.minimum(body - 2, disc - 4)), a.bone_hu)
    arch = np.minimum(13 - np.abs(dx) * 0.75, np.minimum(-dy - 10, dy + 31))
    c.paint(region, c.occupancy(np.minimum(arch, disc - 1.5)), 330)
    process = np.minimum(4.5 - np.abs(dx), np.minimum(-dy - 28, dy + 46))
    c.paint(region, c.occupancy(np.minimum(process, disc - 5)), 280)
    across = np.minimum(5 - np.abs(dy + 17), np.minimum(36 - np.abs(dx), disc - 7))
    c.paint(region, c.occupancy(across), 280)
    c.paint(region, c.occupancy(8 - np.sqrt(dx**2 + (dy + 21) ** 2)), 22)
    if rng.random() < 0.4:  # osteophytes
        for _ in range(rng.integers(2, 6)):
            level = (round(rng.uniform(-5, 3)) - 0.26) * pitch
            side = rng.choice([-1, 1])
            c.ball(
                (float(a.midline(level)) + side * 15, a.spine_y + rng.uniform(2, 12), level), (5, 4, 5), 520
            )


def _abdomen(a: Anatomy, c: Canvas, inside: np.ndarray, below: np.ndarray) -> None:
    rng = stream(a.seed, "abdomen")
    under = inside * c.occupancy(below)
    c.paint(EVERYWHERE, under, a.fat_hu)
    c.paint(EVERYWHERE, inside * c.occupancy(np.minimum(below, 3.5 - below)), a.muscle_hu - 5)
    edge = rng.uniform(-45, -5)
    texture = 6 * c.noise_field(rng, 30)
    liver = np.minimum(below - 3, c.x - edge - 0.35 * (c.y - a.center_y) * -1 - texture)
    c.paint(EVERYWHERE, inside * c.occupancy(liver), a.liver_hu + 0.4 * a.contrast_hu)
    organ = inside * c.occupancy(below - 4)
    for _ in range(rng.integers(0, 4)):  # simple liver cysts
        center = (
            rng.uniform(20, 90),
            a.center_y + rng.uniform(-40, 40),
            a.dome["right"] - rng.uniform(20, 50),
        )
        c.ball(center, rng.uniform(4, 12), 8, within=organ)
    x, low = -0.62 * a.half_width, a.dome["left"]
    c.ball((x - 14, a.center_y - 44, low - 34), (28, 34, 30), 48 + 0.5 * a.contrast_hu, within=organ)
    stomach = np.array([x + 22, a.center_y + 14, low - 30]) + rng.uniform(-8, 8, 3)
    size = np.array([30.0, 34.0, 26.0]) * rng.uniform(0.7, 1.15)
    c.ball(stomach, size, 40, within=organ)
    c.ball(stomach, size - 4, rng.uniform(5, 60), within=organ)
    found = c.ellipsoid(stomach, size - 4)
    if found is not None and rng.random() < 0.75:  # gas rises to the front of a supine patient
        region, share = found
        level = stomach[1] + rng.uniform(-0.6, 0.5) * size[1]
        c.paint(region, share * organ[region] * c.occupancy(c.y[:, region[1]] - np.float32(level)), -980)
    if rng.random() < 0.15:  # gallstone
        c.ball((45, a.center_y + 30, low - 45), rng.uniform(4, 8), rng.uniform(120, 500), within=organ)


def _lung(a: Anatomy, c: Canvas, lung: np.ndarray) -> None:
    rng = stream(a.seed, "lung")
    texture = c.noise_field(rng, 45) + 0.7 * c.noise_field(rng, 14)
    dependent = np.clip((a.center_y - c.y) / a.half_depth, -1, 1)
    value = a.lung_hu + a.gradient_hu * dependent + a.texture_hu * texture
    height, slope, horizontal = a.fissure
    oblique = c.z - (height - slope * (c.y - a.center_y) * (85 / a.half_depth) - 15)
    warp = 3 * c.noise_field(rng, 60)
    flat = np.where((c.x > 0) & (oblique > 0), np.abs(c.z - horizontal + 6 + warp), 99)
    line = np.minimum(np.abs(oblique + warp) * 0.78, flat)
    value += 110 * np.clip(1 - line / max(1.2, c.edge), 0, 1) * min(1.0, 1.2 / c.edge)
    c.paint(EVERYWHERE, lung, value)
    if rng.random() < 0.06:  # azygos lobe: an extra fissure at the right apex
        found = c.box((10, -60, 30), (70, 40, a.apex))
        if found is not None:
            region, z, y, x = found
            sheet = 1.2 - np.abs(x - 34 - 0.004 * (y + 10) ** 2 - 0.05 * (z - 40))
            c.paint(region, lung[region] * c.occupancy(sheet) * min(1.0, 2.4 / c.edge), -100)


def _lung_vessels(scene: Scene) -> None:
    a, c = scene.anatomy, scene.canvas
    rng = stream(a.seed, "vessels")
    value = min(a.blood_hu, 110.0)

    def branch(start: np.ndarray, end: np.ndarray, radius: float, generation: int) -> None:
        middle = (start + end) / 2 + rng.normal(0, 0.07, 3) * np.linalg.norm(end - start)
        c.line([start, middle, end] if generation else [start, end], radius, value, within=scene.lung)
        if generation == 0:
            return
        reach = np.linalg.norm(end - start)
        direction = (end - start) / (reach + 1e-6)
        for origin in (middle, end, end):
            turn = direction + rng.normal(0, 0.5, 3)
            branch(
                origin,
                origin + turn / np.linalg.norm(turn) * reach * rng.uniform(0.65, 1.1),
                radius * 0.66,
                generation - 1,
            )

    for lobe, bronchi in scene.airways.items():
        hilum = a.hilum("right" if lobe <= 3 else "left")
        for bronchus in bronchi:
            beside = rng.normal(0, 1, 3)
            beside *= 5.5 / np.linalg.norm(beside)
            branch(hilum + beside, hilum + 0.6 * (bronchus[-1] - hilum) + beside, rng.uniform(2.9, 3.9), 2)
        for bronchus in bronchi[:4]:  # normal bronchi: thin walls, visible near the hilum only
            inner = bronchus[:3]
            c.line(inner, 3.1, -200, within=scene.lung)
            c.line(inner, 2.2, -960, within=scene.lung)


def _heart(a: Anatomy, c: Canvas, heart: np.ndarray, inside: np.ndarray) -> None:
    c.paint(EVERYWHERE, c.occupancy(heart) * inside, 48 + 0.45 * a.contrast_hu)
    basis = a.heart_basis
    for shift, scale in ((-0.42, 0.4), (0.28, 0.46)):  # atria, ventricles
        for lateral in (0.42, -0.42):
            center = a.heart + (np.array([shift, lateral, 0.05]) * a.heart_axes) @ basis
            c.ball(center, float(scale * a.heart_axes[1]), a.blood_hu)
    t = np.linspace(0, 1, 7)
    for name in ("LAD", "LCx", "RCA"):
        course = a.coronary(name, t)
        c.line(course, 4.5, a.fat_hu + 8)
        c.line(course, 1.7, a.blood_hu)


def _great_vessels(a: Anatomy, c: Canvas) -> None:
    blood = a.blood_hu
    r = a.aorta_radius
    c.line([(22, 14, -38), (23, 16, 0), (20, 14, 42)], 8, blood + 0.2 * a.contrast_hu)
    c.line([(20, 14, 42), (34, 4, 80)], 6.5, blood)
    c.line([(20, 16, 42), (-10, 22, 46), (-34, 6, 82)], 6, blood)
    c.line([(-12, 34, -32), (-15, 22, -10)], 13, blood)
    c.line([(-15, 18, -8), (8, 2, -9), (30, -8, -14)], 9.5, blood)
    c.line([(-15, 20, -6), (-32, -8, -4), (-38, -14, -14)], 9.5, blood)
    c.line([(24, 8, -60), (24, a.spine_y + 42, -150)], 10, blood)  # inferior vena cava
    for x, y in ((12, 8), (-8, -2), (-16, -10)):  # arch branches
        c.line([(x * 0.8, y, 34), (x * 1.6, y + 2, a.apex + 20)], 4.5, blood)
    aorta = a.aorta()
    c.line(aorta, r + 1.2, 42)
    c.line(aorta, r, blood)
    c.line(a.esophagus(), 6.5, 36)
    rng = stream(a.seed, "airway")
    if rng.random() < 0.3:
        c.line(a.esophagus()[:3], 2.5, -700)
    trachea = [(1 + 0.4 * float(a.midline(110)), -4, a.apex + 25), (2, -6, 40), (2, -12, 1)]
    for radius, value in ((9.8, 20), (8.2, -985)):
        c.line(trachea, radius, value)
        c.line([(2, -12, 1), a.hilum("right")], radius * 0.78, value)
        c.line([(2, -12, 1), (-24, -13, -12), a.hilum("left")], radius * 0.7, value)
    for _ in range(rng.integers(0, 4)):  # small normal lymph nodes
        c.ball((rng.uniform(-22, 22), rng.uniform(-8, 14), rng.uniform(-24, 34)), rng.uniform(1.5, 2.6), 35)
