"""The normal chest of PhantomCT: a parametric body in millimetres, rendered on any voxel grid.

Points and boxes are (x, y, z) in RAS millimetres (x to the patient's right, y anterior, z superior) with the carina
near the origin; arrays are (depth, height, width). Every shape is a signed depth (positive inside, mm), so one
definition serves both the voxel grid and the placement of lesions, and a seed shows the same chest at every spacing.
"""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

Point = Sequence[float] | np.ndarray  # x, y, z in mm
Region = tuple[slice, ...]  # z, y, x index of a box of the grid
EVERYWHERE: Region = (slice(None),) * 3  # the region of the whole grid

FIELD_EXTENT_MM = np.array(
    [[-240.0, 240.0], [-200.0, 200.0], [-220.0, 200.0]]
)  # x, y, z of every random field
LOBES = {
    ("right", "upper lobe"): 1,
    ("right", "middle lobe"): 2,
    ("right", "lower lobe"): 3,
    ("left", "upper lobe"): 4,
    ("left", "lingula"): 5,
    ("left", "lower lobe"): 6,
}


def stream(seed: int, name: str) -> np.random.Generator:
    """Return the random stream of one component, independent of every other component of the same seed."""
    return np.random.default_rng(np.random.SeedSequence([seed, zlib.crc32(name.encode())]))


def side_sign(side: str) -> float:
    """Return the sign of x on a side of the patient."""
    return 1.0 if side == "right" else -1.0


class Canvas:
    """A voxel grid in HU with soft-edged painting and one bit of ground truth per finding label."""

    def __init__(self, low: Point, high: Point, spacing: Sequence[float]) -> None:
        self.spacing = tuple(float(s) for s in spacing)  # (z, y, x)
        axes = []
        for lo, hi, step in zip(low[::-1], high[::-1], self.spacing, strict=True):
            count = max(1, round((hi - lo) / step))
            start = (lo + hi) / 2 - step * (count - 1) / 2
            axes.append((start + step * np.arange(count)).astype(np.float32))
        self.axes = axes
        self.z, self.y, self.x = axes[0][:, None, None], axes[1][None, :, None], axes[2][None, None, :]
        self.shape = tuple(len(axis) for axis in axes)
        self.edge = float(np.cbrt(np.prod(self.spacing)))  # mm over which a border blends: one voxel
        self.hu = np.full(self.shape, -1000.0, np.float32)
        self.masks = np.zeros(self.shape, np.uint32)

    @property
    def affine(self) -> np.ndarray:
        affine = np.diag([*self.spacing[::-1], 1.0])
        affine[:3, 3] = [axis[0] for axis in self.axes[::-1]]
        return affine

    def box(self, low: Point, high: Point) -> tuple[Region, np.ndarray, np.ndarray, np.ndarray] | None:
        """Return the index of a box in mm, a voxel larger, and its open z, y, x coordinates; None outside the grid."""
        index = []
        for axis, step, lo, hi in zip(self.axes, self.spacing, low[::-1], high[::-1], strict=True):
            start = max(0, int(np.floor((lo - axis[0]) / step)))
            stop = min(len(axis), int(np.ceil((hi - axis[0]) / step)) + 1)
            if start >= stop:
                return None
            index.append(slice(start, stop))
        region = tuple(index)
        return (region, self.z[region[0]], self.y[:, region[1]], self.x[:, :, region[2]])

    def occupancy(self, depth: np.ndarray) -> np.ndarray:
        """Turn a signed depth in mm into the share of the voxel that lies inside."""
        share = depth * np.float32(1 / self.edge)
        share += np.float32(0.5)
        np.minimum(share, 1, out=share)
        return np.maximum(share, 0, out=share)  # in place: np.clip costs more than the rest of a small tube

    def paint(
        self,
        region: Region,
        occupancy: np.ndarray,
        hu: np.ndarray | np.floating | float,
        bit: int | None = None,
    ) -> None:
        """Blend `hu` over a region and, for a finding, mark its label bit where it dominates the voxel."""
        view = self.hu[region]
        view += occupancy * (hu - view)
        if bit is not None and occupancy.size:
            self.mark(region, occupancy > min(0.5, 0.6 * float(occupancy.max())), bit)

    def mark(self, region: Region, inside: np.ndarray, bit: int) -> None:
        self.masks[region] |= np.where(inside, np.uint32(1 << bit), np.uint32(0))

    def tube(self, start: Point, end: Point, radius: float) -> tuple[Region, np.ndarray] | None:
        """Return the region and occupancy of a capsule; thinner than a voxel, it keeps its cross-section in HU."""
        start, end = np.asarray(start, np.float32), np.asarray(end, np.float32)
        drawn = max(radius, 0.56 * self.edge)
        reach = drawn + 0.5 * self.edge
        found = self.box(np.minimum(start, end) - reach, np.maximum(start, end) + reach)
        if found is None:
            return None
        region, z, y, x = found
        dx, dy, dz = (end - start).tolist()
        x, y, z = x - start[0], y - start[1], z - start[2]
        length2 = dx * dx + dy * dy + dz * dz + 1e-6
        along = (x * (dx / length2) + y * (dy / length2)) + z * (dz / length2)
        np.minimum(along, 1, out=along)
        np.maximum(along, 0, out=along)
        # |p - along * d|^2, expanded so that only two terms fill the box
        distance = along * (along * length2 - 2 * ((x * dx + y * dy) + z * dz))
        distance += (x * x + y * y) + z * z
        np.maximum(distance, 0, out=distance)
        np.sqrt(distance, out=distance)
        occupancy = self.occupancy(drawn - distance)
        if radius < drawn:
            occupancy *= (radius / drawn) ** 2
        return region, occupancy

    def ellipsoid(self, center: Point, semi_axes: Point | float) -> tuple[Region, np.ndarray] | None:
        """Return the region and occupancy of an axis-aligned ellipsoid; a sphere for one semi-axis."""
        semi = np.broadcast_to(np.asarray(semi_axes, np.float32), 3)
        center = np.asarray(center, np.float32)
        drawn = np.maximum(semi, np.float32(0.62 * self.edge))
        found = self.box(center - drawn - self.edge, center + drawn + self.edge)
        if found is None:
            return None
        region, z, y, x = found
        rho = np.sqrt(
            ((x - center[0]) / drawn[0]) ** 2
            + ((y - center[1]) / drawn[1]) ** 2
            + ((z - center[2]) / drawn[2]) ** 2
        )
        occupancy = self.occupancy((1 - rho) * np.float32(np.cbrt(np.prod(drawn))))
        return region, occupancy * np.float32(np.prod(semi / drawn))

    def line(
        self,
        points: Sequence[Point] | np.ndarray,
        radius: float,
        hu: float,
        bit: int | None = None,
        within: np.ndarray | None = None,
    ) -> None:
        """Paint a polyline of capsules, optionally only `within` an occupancy of the whole grid."""
        for start, end in pairwise(points):
            found = self.tube(start, end, radius)
            if found is not None:
                region, occupancy = found
                self.paint(region, occupancy if within is None else occupancy * within[region], hu, bit)

    def ball(
        self,
        center: Point,
        semi_axes: Point | float,
        hu: float,
        bit: int | None = None,
        within: np.ndarray | None = None,
    ) -> None:
        """Paint an ellipsoid, optionally only `within` an occupancy of the whole grid."""
        found = self.ellipsoid(center, semi_axes)
        if found is not None:
            region, occupancy = found
            self.paint(region, occupancy if within is None else occupancy * within[region], hu, bit)

    def noise_field(
        self, rng: np.random.Generator, cell_mm: float, region: Region | None = None
    ) -> np.ndarray:
        """Return a smooth random field of unit variance, the same at every spacing (cubic B-splines on a lattice)."""
        region = region or (slice(None),) * 3
        low, high = FIELD_EXTENT_MM[::-1].T
        counts = np.ceil((high - low) / cell_mm).astype(int) + 4
        lattice = rng.standard_normal(counts, dtype=np.float32)
        weights = []
        for axis, lo, count, part in zip(self.axes, low, counts, region, strict=True):
            t = np.abs((axis[part, None] - lo) / cell_mm + 1.5 - np.arange(count))
            near, far = 2 / 3 - t**2 + t**3 / 2, np.clip(2 - t, 0, None) ** 3 / 6
            weights.append(np.where(t < 1, near, far).astype(np.float32))
        rows = lattice @ weights[2].T
        slabs = np.tensordot(weights[0], rows, axes=1)
        return (weights[1] @ slabs) * np.float32(
            1 / 0.332
        )  # 0.332: root of (151/315)^3, the variance lost by smoothing


@dataclass
class Anatomy:
    """The sizes of one patient in mm and HU, drawn from the seed."""

    seed: int
    easy: bool = False
    enlarged_heart: float | None = None  # cardiothoracic ratio of a cardiomegaly, None for a normal heart

    def __post_init__(self) -> None:
        rng = stream(self.seed, "anatomy")
        u = rng.uniform
        self.half_width, self.half_depth = u(112, 140), u(76, 98)  # of the rib cage, inside
        self.fat = u(5, 14) if rng.random() < 0.5 else u(12, 32)
        self.muscle = u(7, 14)
        self.apex, self.shoulder = u(92, 112), u(0.70, 0.9)
        self.bottom = u(-160, -138)
        right = u(-92, -62)
        self.dome = {"right": right, "left": right - u(3, 15)}
        self.center_y = 4.0
        self.spine_y = self.center_y - self.half_depth + 13
        self.sternum_y = self.center_y + self.half_depth + 4
        self.curve, self.curve_phase = (u(6, 17) if rng.random() < 0.2 else u(0, 3)), u(0, 6.3)
        self.female = rng.random() < 0.5
        self.breast = u(18, 62) if self.female else (u(5, 14) if rng.random() < 0.15 else 0.0)
        self.gland = u(0.1, 0.9)
        self.lung_hu, self.gradient_hu, self.texture_hu = u(-885, -785), u(10, 65), u(8, 42)
        self.contrast_hu = u(70, 190) if rng.random() < 0.35 else 0.0
        self.blood_hu, self.liver_hu, self.bone_hu = u(34, 52) + self.contrast_hu, u(15, 68), u(110, 260)
        self.muscle_hu, self.fat_hu = u(44, 62), u(-112, -90)
        normal_ratio = u(0.39, 0.475)  # drawn in any case: the draws after it stay the same
        self.ratio = self.enlarged_heart or normal_ratio
        self.mediastinum = u(27, 35)
        self.aorta_radius = u(11.5, 15.5)
        self.fissure = (
            u(-8, 8),
            u(0.68, 0.85),
            u(-14, 8),
        )  # height and slope of the oblique fissure, height of the horizontal
        self.arms_down = rng.random() < 0.12
        self.margin = u(8, 45)
        self.table_gap, self.table_curve, self.table_hu = u(2, 12), u(0.0006, 0.0025), u(-250, 60)
        self._heart(u)

    def _heart(self, u: Callable[[float, float], float]) -> None:
        axes = np.array([1.0, 0.80, 0.74])
        long = np.array([-0.76, 0.48, -0.44]) + np.array([u(-0.08, 0.08), u(-0.08, 0.08), u(-0.1, 0.1)])
        long /= np.linalg.norm(long)
        second = np.cross(long, [0.0, 0.0, 1.0])
        second /= np.linalg.norm(second)
        self.heart_basis = np.stack([long, second, np.cross(long, second)])
        half = np.sqrt(
            ((self.heart_basis * axes[:, None]) ** 2).sum(0)
        )  # half extent in x, y, z for unit scale
        scale = self.ratio * self.half_width / half[0]
        axes *= scale * np.array([1.0, 1.0, (0.44 / self.ratio) ** 0.35])
        self.heart_axes = axes.astype(np.float32)
        reach = np.sqrt(((self.heart_basis * axes[:, None]) ** 2).sum(0))
        self.heart = np.array(
            [
                -0.17 * 2 * reach[0] + 3,
                self.center_y + self.half_depth - 8 - reach[1],
                self.dome["left"] + reach[2] - 14,
            ]
        )
        self.heart_reach = reach
        self.heart[2] = np.clip(self.heart[2], -16 - reach[2], -6 - 0.75 * reach[2])
        self.heart = self.heart.astype(np.float32)  # float64 here would make every grid of the heart float64

    # Depths (mm, positive inside). z, y, x are open grids or flat points.

    def midline(self, z: np.ndarray | float) -> np.ndarray | np.floating:
        """Return x of the spine at a height: straight, or curved in scoliosis."""
        return self.curve * np.sin(z * np.float32(0.016) + np.float32(self.curve_phase))

    def _profile(self, z: np.ndarray) -> np.ndarray:
        rise = np.clip((z - 15) / (self.apex - 15), 0, 1)
        shape = np.sqrt(np.clip(1 - rise**2, 0, 1)) ** np.float32(0.75)
        return np.maximum(shape, np.float32(0.02)) * (1 - 0.04 * np.clip(-z / 120, 0, 1))

    def _rho(
        self, z: np.ndarray, y: np.ndarray, x: np.ndarray, width: np.ndarray, depth: np.ndarray, power: float
    ) -> np.ndarray:
        term = np.abs(x / width) ** np.float32(power) + np.abs((y - self.center_y) / depth) ** np.float32(
            power
        )
        return term ** np.float32(1 / power)

    def cavity(self, z: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Return the depth inside the rib cage (outer border of the pleural space)."""
        profile = self._profile(z).astype(np.float32)
        rho = self._rho(z, y, x, self.half_width * profile, self.half_depth * profile, 2.3)
        radius = np.float32(np.sqrt(self.half_width * self.half_depth)) * profile
        return np.minimum((1 - rho) * radius, self.apex - z)

    def body(self, z: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Return the depth below the skin."""
        taper = 1 - (1 - self.shoulder) * np.clip((z - 45) / 75, 0, 1) ** np.float32(1.5)
        wall = self.muscle + self.fat + 11
        width, depth = (self.half_width + wall) * taper, (self.half_depth + wall * 0.92) * taper
        rho = self._rho(z, y, x, width, depth, 2.5)
        return (1 - rho) * np.float32(np.sqrt(self.half_width * self.half_depth) + wall) * taper

    def mediastinum_depth(self, z: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        low = np.clip((-z - 10) / 60, 0, 1)
        width = self.mediastinum * (1 - 0.25 * np.clip(z / 90, 0, 1)) * (1 - 0.2 * low)
        front, back = self.sternum_y, self.spine_y
        rho = ((x - self.midline(z) * 0.4) / width) ** 2 + (
            (y - (front + back) / 2) / ((front - back) / 2)
        ) ** 2
        return (1 - np.sqrt(rho)) * width

    def heart_coordinates(self, z: np.ndarray, y: np.ndarray, x: np.ndarray) -> list[np.ndarray]:
        """Return the coordinates along the heart's own axes, in mm."""
        dx, dy, dz = x - self.heart[0], y - self.heart[1], z - self.heart[2]
        return [
            np.float32(b[0]) * dx + np.float32(b[1]) * dy + np.float32(b[2]) * dz for b in self.heart_basis
        ]

    def heart_depth(self, z: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        a, b, c = self.heart_coordinates(z, y, x)
        e = self.heart_axes
        return (1 - np.sqrt((a / e[0]) ** 2 + (b / e[1]) ** 2 + (c / e[2]) ** 2)) * np.float32(
            np.cbrt(np.prod(e))
        )

    def dome_height(self, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Return z of the diaphragm."""
        heights = []
        for side in ("right", "left"):
            dx = (x * side_sign(side) - 0.5 * self.half_width) / self.half_width
            dy = (y - self.center_y - 10) / self.half_depth
            fall = (
                78 * np.where(dx > 0, 1.5 * dx, 0.55 * dx) ** 2 + 38 * dy**2 + 22 * np.clip(-dy, 0, None) ** 2
            )
            heights.append(self.dome[side] - fall)
        return np.maximum(*heights)

    def spine_depth(self, z: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        rho = ((x - self.midline(z)) / 20) ** 2 + ((y - self.spine_y) / 17) ** 2
        return (1 - np.sqrt(rho)) * 18

    def lung_depth(self, z: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Return the depth below the pleura, of either lung."""
        depth = np.minimum(self.cavity(z, y, x), (z - self.dome_height(y, x)) * np.float32(0.8))
        for solid in (self.mediastinum_depth, self.heart_depth, self.spine_depth):
            depth = np.minimum(depth, -solid(z, y, x))
        return depth

    def lobe(self, z: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Return the lobe number (values of LOBES) of lung points."""
        height, slope, horizontal = self.fissure
        above = z > height - slope * (y - self.center_y) * (85 / self.half_depth) - 15
        right = np.where(above, np.where(z > horizontal - 6, 1, 2), 3)
        left = np.where(above, np.where(z > horizontal - 14, 4, 5), 6)
        return np.where(x > 0, right, left).astype(np.uint8)

    # Curves shared by anatomy and findings.

    def aorta(self) -> np.ndarray:
        """Return points of the aortic centre line from the root over the arch to the hiatus."""
        y, r = self.spine_y, self.aorta_radius
        rise = [[8, 24, -34], [13, 28, -8], [13, 24, 14]]
        arch = [[5, 12, 30], [-8, -8, 33], [-19, y + 30, 22]]
        fall: list[list[float]] = [[-23, 18, 0], [-23, 17, -60], [-14, 18, -120], [-10, 20, -175]]
        fall = [
            [x, y + dy + r * share, z] for (x, dy, z), share in zip(fall, (0.4, 0.5, 0.6, 0.6), strict=True)
        ]
        return np.array(rise + arch + fall)

    def esophagus(self) -> np.ndarray:
        y = self.spine_y
        return np.array(
            [[-1, -20, 110], [-4, -26, 20], [-6, y + 34, -40], [-9, y + 38, -95], [-22, y + 45, -150]]
        )

    def coronary(self, name: str, t: np.ndarray) -> np.ndarray:
        """Return points of a coronary artery on the heart's surface; t runs from 0 (origin) to 1."""
        start, end = {"LAD": ((-0.75, 0.15, -0.65), (0.8, 0.45, -0.4)), "LCx": ((-0.7, 0.1, -0.7), (0.1, -0.9, -0.42)),
                      "RCA": ((-0.5, 0.75, -0.45), (0.1, 0.75, 0.66))}[name]  # fmt: skip
        unit = np.outer(1 - t, start) + np.outer(t, end)
        unit /= np.linalg.norm(unit, axis=1, keepdims=True)
        return self.heart + (unit * 1.03 * self.heart_axes) @ self.heart_basis

    def hilum(self, side: str) -> np.ndarray:
        return np.array([36.0, -10.0, -20.0]) if side == "right" else np.array([-38.0, -10.0, -16.0])

    def field_of_view(self) -> tuple[np.ndarray, np.ndarray]:
        wall = self.muscle + self.fat + 11
        width = self.half_width + wall + self.margin * 0.5
        front = self.center_y + self.half_depth + wall * 0.92 + 6 + 0.9 * self.breast
        back = self.center_y - self.half_depth - wall * 0.92 - self.table_gap - 22
        return np.array([-width, back, self.bottom]), np.array([width, front, self.apex + 14])

    def airways(self) -> dict[int, list[np.ndarray]]:
        """Return, per lobe number, the segmental bronchi as polylines from the hilum outwards."""
        rng = stream(self.seed, "airways")
        tree = {}
        for (side, _), number in LOBES.items():
            targets = self.points_in_lobe(rng, number, 5, margin_mm=12)
            hilum = self.hilum(side)
            lines = []
            for target in targets:
                bend = rng.normal(0, 5, 3)
                t = np.linspace(0, 1, 4)[:, None]
                lines.append(hilum + (target - hilum) * t * 0.8 + np.sin(np.pi * t) * bend)
            tree[number] = lines
        return tree

    def points_in_lobe(
        self,
        rng: np.random.Generator,
        number: int,
        count: int,
        margin_mm: float,
        accept: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> np.ndarray:
        """Draw lung points of a lobe at least `margin_mm` below the pleura; deepest points when the lobe is too thin.

        Args:
            accept (`Callable`): Takes points (N, 3) and returns which of them are wanted.
        """
        x = rng.uniform(0, self.half_width, 1500) * (1 if number <= 3 else -1)
        y = rng.uniform(self.center_y - self.half_depth, self.center_y + self.half_depth, 1500)
        z = rng.uniform(-150, self.apex, 1500)
        points = np.stack([x, y, z], 1)
        score = np.minimum(self.lung_depth(z, y, x), margin_mm) - 1000.0 * (self.lobe(z, y, x) != number)
        for dz, dy in (
            (margin_mm, 0),
            (-margin_mm, 0),
            (0, margin_mm),
            (0, -margin_mm),
        ):  # away from the fissures
            score = score - 4.0 * (self.lobe(z + dz, y + dy, x) != number)
        if accept is not None:
            score = score - 500.0 * ~accept(points)
        return points[np.argsort(-score, kind="stable")[:count]]
