"""Paint the lung findings of PhantomCT: each function draws, marks its mask bit and says what it drew."""

import numpy as np

from .anatomy import EVERYWHERE, LOBES, Point, Region, stream
from .chest import BIT, Scene
from .draw import OTHER_SIDE, graded
from .report import Finding

Lobe = tuple[str, str]  # side, lobe
OPPOSITE_LOBE = {"middle lobe": "lingula", "lingula": "middle lobe"}  # the others keep their name


def lesion_sites(seed: int) -> dict[str, Lobe]:
    """Draw the lobe of every focal lung finding, different lobes where they could hide each other."""
    rng = stream(seed, "sites")
    lobes = list(LOBES)
    order = [lobes[i] for i in rng.permutation(len(lobes))]
    lower = [lobe for lobe in order if lobe[1] != "upper lobe"]
    upper = [lobe for lobe in order if lobe[1] == "upper lobe"]
    basal = [lobe for lobe in order if lobe[1] == "lower lobe"]
    atelectasis = lower[0]
    rest = [lobe for lobe in order if lobe != atelectasis]
    fibrosis = upper[0] if rng.random() < 0.7 else basal[0]
    rest = [lobe for lobe in rest if lobe != fibrosis] + [fibrosis]
    return {
        "Atelectasis": atelectasis,
        "Pulmonary fibrotic sequela": fibrosis,
        "Consolidation": rest[0],
        "Lung nodule": rest[1],
        "Lung opacity": rest[2],
        "Bronchiectasis": rest[3],
    }


def site_of(label: str, scene: Scene) -> Lobe:
    """Return the lobe of a focal finding, as the seed or the finding's own draw says."""
    site = lesion_sites(scene.anatomy.seed)[label]
    return mirrored(site) if scene.draw.is_mirrored else site


def mirrored(site: Lobe) -> Lobe:
    """Return the lobe opposite to a lobe."""
    side, region = site
    return OTHER_SIDE[side], OPPOSITE_LOBE.get(region, region)


def mosaic(scene: Scene, rng: np.random.Generator) -> list[Finding]:
    c = scene.canvas
    patches = c.noise_field(rng, rng.uniform(26, 38)) + 0.25 * c.noise_field(rng, 12)
    dark = np.clip(0.5 + patches * 5, 0, 1)  # geographic: sharp borders
    difference = rng.uniform(110, 190) * scene.scale
    c.hu += scene.lung * ((1 - dark) * difference * 0.75 - dark * difference * 0.25)
    c.mark(EVERYWHERE, (scene.lung > 0.5) & (dark < 0.5), BIT["Mosaic attenuation pattern"])
    return [Finding("Mosaic attenuation pattern", "bilateral", None, 1, None, graded(difference, 135, 165))]


def emphysema(scene: Scene, rng: np.random.Generator) -> list[Finding]:
    a, c = scene.anatomy, scene.canvas
    amount = rng.uniform(0, 1)
    kind = "centrilobular" if rng.random() < 0.65 else "paraseptal"
    upper = np.clip((c.z + 35) / 70, 0, 1.2)
    holes = c.noise_field(rng, 8.5 + 3 * amount) + 0.35 * c.noise_field(rng, 5)
    where = upper if kind == "centrilobular" else upper * np.clip(1.7 - scene.lung_depth / 12, 0.1, 1.6)
    excess = holes + (1.3 + 0.8 * amount) * where - 2.2
    share = scene.lung * np.clip(excess * 3, 0, 1) * (scene.lung_depth > 1) * (where > 0.1)
    c.paint(EVERYWHERE, share * (c.hu < -300), np.float32(-992), BIT["Emphysema"])
    for _ in range(int(rng.integers(1, 4) * (kind == "paraseptal"))):  # bullae at the apex
        (point,) = a.points_in_lobe(rng, int(rng.choice([1, 4])), 1, 9)
        c.ball(point, rng.uniform(9, 18), -995, BIT["Emphysema"], within=scene.lung)
    return [Finding("Emphysema", "bilateral", "upper lobe", 1, None, graded(amount, 0.35, 0.7), kind)]


def opacity(scene: Scene, rng: np.random.Generator) -> list[Finding]:
    a, c = scene.anatomy, scene.canvas
    site = site_of("Lung opacity", scene)
    sites = [site]
    if rng.random() < 0.4:
        sites.append((OTHER_SIDE[site[0]], "lower lobe"))
    largest, total = 0.0, 0
    for side, region in sites:
        count = int(rng.integers(1, 3))
        total += count
        for point in a.points_in_lobe(rng, LOBES[side, region], count, 8):
            radius = rng.uniform(16, 34) * scene.scale
            largest = max(largest, 2 * radius * scene.draw.shrink)
            box, depth = _blob(scene, rng, point, radius * np.array([1, 1, 0.85]), 0.3)
            same = scene.lobe[box] == LOBES[side, region]
            share = np.clip(depth / 9 + 0.5, 0, 1) * scene.lung[box] * (0.35 + 0.65 * same)
            share *= np.clip(0.85 + 0.15 * c.noise_field(rng, 7, box), 0, 1)
            lifted = c.hu[box] + np.clip(-560 - c.hu[box], 0, None) + 60
            c.paint(box, share * (c.hu[box] < -400), lifted, BIT["Lung opacity"])
    side, where = site if len(sites) == 1 else ("bilateral", None)
    return [Finding("Lung opacity", side, where, total, float(round(largest)), None)]


def fibrosis(scene: Scene, rng: np.random.Generator) -> list[Finding]:
    a, c = scene.anatomy, scene.canvas
    site = site_of("Pulmonary fibrotic sequela", scene)
    side, region = site
    sites = [site] + [mirrored(site)] * (rng.random() < 0.35)
    apical = region == "upper lobe"
    high = a.apex - 48
    accept = (lambda p: p[:, 2] > high) if apical else (lambda p: p[:, 2] < -30)
    for each in sites:
        points = a.points_in_lobe(rng, LOBES[each], 6, 9, accept)
        anchor = points[0]
        for point in points:
            outward = point - a.hilum(each[0])
            outward /= np.linalg.norm(outward)
            bend = rng.normal(0, 5, (2, 3))
            course = [
                anchor + 0.5 * (point - anchor),
                point + bend[0],
                point + outward * 14 + bend[1],
                point + outward * 28,
            ]
            c.line(
                course,
                rng.uniform(1.4, 2.4) * scene.scale,
                0,
                BIT["Pulmonary fibrotic sequela"],
                within=scene.lung,
            )
        c.ball(anchor, rng.uniform(5, 8, 3), 30, BIT["Pulmonary fibrotic sequela"], within=scene.lung)
        found = c.box(anchor - 34, anchor + 34)  # pleural thickening nearby
        assert found is not None  # lung points lie in the field of view
        box, z, y, x = found
        near = 26 - np.sqrt((x - anchor[0]) ** 2 + (y - anchor[1]) ** 2 + (z - anchor[2]) ** 2)
        cap = np.minimum(4.5 - scene.lung_depth[box], near)
        c.paint(box, c.occupancy(cap) * scene.lung[box], 20, BIT["Pulmonary fibrotic sequela"])
    side = side if len(sites) == 1 else "bilateral"
    return [
        Finding("Pulmonary fibrotic sequela", side, region, 1, None, None, "apical" if apical else "basal")
    ]


def septal(scene: Scene, rng: np.random.Generator) -> list[Finding]:
    """Thicken the walls of the secondary lobules: the borders of a jittered Voronoi tiling, basal and subpleural."""
    c = scene.canvas
    side = "bilateral" if rng.random() < 0.7 else scene.draw.side(rng)
    border = np.float32(7) * c.noise_field(rng, 24)
    where = (scene.lung > 0.3) & (scene.lung_depth < 19 + border) & (c.z + 2 * border < rng.uniform(10, 60))
    if side != "bilateral":
        where &= (c.x > 0) == (side == "right")
    flat = np.flatnonzero(where)
    iz, iy, ix = np.unravel_index(flat, c.shape)
    cell = rng.uniform(17, 22)
    points = np.stack([c.axes[2][ix], c.axes[1][iy], c.axes[0][iz]]).astype(np.float32) / np.float32(cell)
    jitter = rng.random((48, 48, 48, 3), dtype=np.float32) * 0.8 + 0.1
    home = np.floor(points).astype(np.int32)
    first = np.full(flat.size, 9, np.float32)
    second = first.copy()
    for shift in np.ndindex(3, 3, 3):
        i, j, k = home + (np.array(shift, np.int32)[:, None] - 1)
        seed_point = jitter[i % 48, j % 48, k % 48]
        distance = (i + seed_point[:, 0] - points[0]) ** 2
        distance += (j + seed_point[:, 1] - points[1]) ** 2
        distance += (k + seed_point[:, 2] - points[2]) ** 2
        second = np.minimum(second, np.maximum(first, distance))
        first = np.minimum(first, distance)
    thickness = rng.uniform(1.3, 2.0) * scene.scale
    to_wall = (np.sqrt(second) - np.sqrt(first)) * np.float32(cell / 2)
    drawn = max(thickness, 0.7 * c.edge)
    share = np.clip((drawn / 2 - to_wall) / (0.5 * c.edge) + 0.5, 0, 1) * (thickness / drawn)
    share *= scene.lung.ravel()[flat]
    hu, masks = c.hu.reshape(-1), c.masks.reshape(-1)
    hu[flat] += share * (-40 - hu[flat]) * (hu[flat] < -100)
    masks[flat[share > 0.45 * share.max()]] |= np.uint32(1 << BIT["Interlobular septal thickening"])
    return [Finding("Interlobular septal thickening", side, None, 1, None, graded(thickness, 1.55, 1.78))]


def atelectasis(scene: Scene, rng: np.random.Generator) -> list[Finding]:
    a, c = scene.anatomy, scene.canvas
    site = site_of("Atelectasis", scene)
    side, region = site
    wedge = rng.random() < 0.4
    accept = (lambda p: p[:, 1] > a.spine_y + 25) if region == "lower lobe" else None
    (point,) = a.points_in_lobe(rng, LOBES[site], 1, 13, accept)
    hilum = a.hilum(side)
    inward = hilum - point
    reach = np.linalg.norm(inward)
    inward /= reach
    size = rng.uniform(44, 66) * scene.scale
    thickness = rng.uniform(4.5, 7) * scene.scale
    found = c.box(point - size, point + size)
    assert found is not None  # lung points lie in the field of view
    box, z, y, x = found
    dx, dy, dz = x - np.float32(point[0]), y - np.float32(point[1]), z - np.float32(point[2])
    along = dx * np.float32(inward[0]) + dy * np.float32(inward[1]) + dz * np.float32(inward[2])
    distance = np.sqrt(dx**2 + dy**2 + dz**2)
    bow = np.float32(1.6) * c.noise_field(rng, 28, box)
    rough = np.float32(3.5) * c.noise_field(rng, 9, box)
    if wedge:  # base on the pleura, tip towards the hilum
        across = np.sqrt(np.clip(distance**2 - along**2, 0, None))
        depth = np.minimum((14 - along) * 0.55 - across * 0.9 + bow, along + 40)
        depth = np.minimum(depth, size * 0.62 - distance + rough)
    else:  # a plate through the pleura
        normal = np.array([0.45, 0.55, 0.8]) * rng.choice([-1, 1], 3) + rng.normal(0, 0.2, 3)
        normal = (normal - inward * (normal @ inward)).astype(np.float32)
        normal /= np.linalg.norm(normal)
        plane = dx * normal[0] + dy * normal[1] + dz * normal[2]
        depth = np.minimum(thickness / 2 - np.abs(plane + bow), size / 2 - distance + rough)
    same = scene.lobe[box] == LOBES[site]
    scene.fill_lung(box, c.occupancy(depth) * same, 35, BIT["Atelectasis"])
    kind = "subsegmental" if wedge else "linear"
    return [Finding("Atelectasis", side, region, 1, None, None, kind)]


def consolidation(scene: Scene, rng: np.random.Generator) -> list[Finding]:
    a, c = scene.anatomy, scene.canvas
    site = site_of("Consolidation", scene)
    side, region = site
    radius = rng.uniform(20, 36) * scene.scale
    (point,) = a.points_in_lobe(rng, LOBES[site], 1, 17)
    outward = (point - a.hilum(side)) / np.linalg.norm(point - a.hilum(side))
    box, depth = _blob(scene, rng, point + outward * 6, radius * np.array([1, 1, 0.9]), 0.22)
    radius *= scene.draw.shrink
    share = np.clip(depth / 5 + 0.5, 0, 1) * (scene.lobe[box] == LOBES[site])
    halo = np.clip(depth / 14 + 0.9, 0, 1) * scene.lung[box] * 0.25
    c.paint(box, halo, -350)
    scene.fill_lung(box, share, rng.uniform(25, 50), BIT["Consolidation"])
    solid = np.zeros(c.shape, np.float32)
    solid[box] = np.clip((depth - 4) / 4, 0, 1) * scene.lung[box]
    start = point - outward * radius * 0.85
    for _ in range(int(rng.integers(3, 5))):  # air bronchograms
        turn = outward + rng.normal(0, 0.45, 3)
        turn *= 1.7 * radius / np.linalg.norm(turn)
        c.line(
            [start, start + turn * 0.5, start + turn * 0.95 + rng.normal(0, 3, 3)],
            rng.uniform(1.9, 2.8),
            -930,
            within=solid,
        )
    return [Finding("Consolidation", side, region, 1, float(round(2 * radius)), None)]


def thick_bronchi(scene: Scene, rng: np.random.Generator) -> list[Finding]:
    c = scene.canvas
    wall = rng.uniform(2.2, 3.5) * scene.scale
    spread = rng.random()
    lobes = (
        list(LOBES.values())
        if spread < 0.5
        else [3, 6]
        if spread < 0.8
        else ([4, 5, 6] if scene.draw.side(rng) == "right" else [1, 2, 3])  # either side is as likely
    )
    lines = [bronchus for lobe in lobes for bronchus in scene.airways[lobe]]
    for bronchus in lines:
        c.line(bronchus, 2.4 + wall, 0, BIT["Peribronchial thickening"], within=scene.lung)
    for bronchus in lines:
        c.line(bronchus, 2.6, -940, within=scene.lung)
    side = "bilateral" if 3 in lobes and 6 in lobes else "right" if 3 in lobes else "left"
    region = "lower lobe" if lobes == [3, 6] else None
    return [Finding("Peribronchial thickening", side, region, 1, None, graded(wall, 2.65, 3.1))]


def bronchiectasis(scene: Scene, rng: np.random.Generator) -> list[Finding]:
    a, c = scene.anatomy, scene.canvas
    site = site_of("Bronchiectasis", scene)
    side, region = site
    sites = [site] + [mirrored(site)] * (rng.random() < 0.3)
    kind = "cylindrical" if rng.random() < 0.6 else "cystic"
    lumen = rng.uniform(3.8, 5.6) * scene.scale
    for each in sites:
        hilum = a.hilum(each[0])
        tubes = []
        for target in a.points_in_lobe(rng, LOBES[each], 6, 9):
            t = np.linspace(0.35, 1.05, 5)[:, None]
            tubes.append(hilum + (target - hilum) * t + np.sin(t * 9) * rng.normal(0, 2.5, 3))
        for radius, value, bit in ((lumen + 1.9, 20, BIT["Bronchiectasis"]), (lumen, -985, None)):
            for tube in tubes:
                if kind == "cylindrical":
                    c.line(tube, radius, value, bit, within=scene.lung)
                else:
                    for bead in tube[1:]:
                        c.ball(bead, radius * 1.35, value, bit, within=scene.lung)
    whole = len(sites) == 1
    same = whole or sites[1][1] == region
    return [
        Finding(
            "Bronchiectasis", side if whole else "bilateral", region if same else None, 1, None, None, kind
        )
    ]


def nodules(scene: Scene, rng: np.random.Generator) -> list[Finding]:
    a, c = scene.anatomy, scene.canvas
    site = site_of("Lung nodule", scene)
    side, region = site
    count = int(rng.choice([1, 1, 1, 2, 3]))
    accept = (lambda p: p[:, 1] > a.spine_y + 45) if region == "lower lobe" else None
    diameters = sorted((float(rng.uniform(9, 28)) * scene.scale for _ in range(count)), reverse=True)
    points = a.points_in_lobe(rng, LOBES[site], 60, diameters[0] / 2 + 4, accept)
    chosen = [points[0]]
    while len(chosen) < count:
        far = np.min([np.linalg.norm(points - other, axis=1) for other in chosen], axis=0)
        chosen.append(points[int(np.argmax(np.minimum(far, diameters[0] + 12 + rng.uniform(0, 8))))])
    for point, diameter in zip(chosen, diameters, strict=True):
        if diameter > 16 and rng.random() < 0.5:
            box, depth = _blob(scene, rng, point, diameter / 2, 0.12, 6.0)
            c.paint(box, c.occupancy(depth) * np.maximum(scene.lung[box], 0.3), 42, BIT["Lung nodule"])
        else:
            value = rng.choice([35.0, 45.0, 60.0, 350.0], p=[0.4, 0.3, 0.2, 0.1])
            c.ball(point, diameter / 2 * scene.draw.shrink, float(value), BIT["Lung nodule"])
    return [Finding("Lung nodule", side, region, count, float(round(diameters[0] * scene.draw.shrink)), None)]


def _blob(
    scene: Scene,
    rng: np.random.Generator,
    center: Point,
    radius: Point | float,
    roughness: float = 0.25,
    cell_mm: float | None = None,
) -> tuple[Region, np.ndarray]:
    """Return region and signed depth of an irregular ellipsoid, shrunken as the scene's draw says."""
    radius = np.broadcast_to(np.asarray(radius, np.float32), 3)
    center = np.asarray(center, np.float32)
    grow = radius * (1 + 1.6 * roughness) + scene.canvas.edge
    found = scene.canvas.box(center - grow, center + grow)
    if found is None:
        raise ValueError(
            "A lesion was placed outside the field of view; lesions are placed inside the lungs."
        )
    region, z, y, x = found
    rho = np.sqrt(
        ((x - center[0]) / radius[0]) ** 2
        + ((y - center[1]) / radius[1]) ** 2
        + ((z - center[2]) / radius[2]) ** 2
    )
    size = float(radius.mean())
    wave = scene.canvas.noise_field(rng, cell_mm or max(8.0, 0.7 * size), region)
    shrink = np.float32(scene.draw.shrink)
    return region, (1 - rho / shrink + np.float32(roughness) * wave) * (np.float32(size) * shrink)
