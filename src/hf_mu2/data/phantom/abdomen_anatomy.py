"""The sizes and shapes of the abdomen and pelvis of one patient of PhantomCT.

Points are (x, y, z) in RAS millimetres as in `anatomy.py`, with the origin before the third lumbar vertebra: the
domes of the diaphragm lie near z = 155, the pubic symphysis near z = -195.
"""

from dataclasses import dataclass

import numpy as np

from .anatomy import side_sign, stream

SIDES = ("right", "left")


@dataclass
class AbdomenAnatomy:
    """The sizes of one patient in mm and HU, drawn from the seed."""

    seed: int

    def __post_init__(self) -> None:
        rng = stream(self.seed, "abdomen anatomy")
        u = rng.uniform
        self.half_width, self.half_depth = u(112, 138), u(78, 98)  # of the abdominal cavity
        self.center_y = 8.0
        self.fat = u(8, 22) if rng.random() < 0.5 else u(18, 42)
        self.muscle = u(8, 13)
        self.spine_y = self.center_y - self.half_depth + 16
        self.curve, self.curve_phase = (u(6, 14) if rng.random() < 0.2 else u(0, 3)), u(0, 6.3)
        right = u(148, 166)
        self.dome = {"right": right, "left": right - u(4, 16)}
        self.top, self.bottom = right + u(2, 30), -208.0
        self.is_female = rng.random() < 0.5
        self.phase = str(rng.choice(["native", "arterial", "portal"], p=[0.35, 0.15, 0.5]))
        strength = {"native": 0.0, "arterial": 0.35, "portal": 1.0}[self.phase]
        artery = {"native": 0.0, "arterial": u(180, 260), "portal": u(85, 130)}[self.phase]
        self.artery_hu = u(36, 48) + artery
        self.vein_hu = u(36, 48) + strength * u(95, 135)
        self.liver_hu = u(50, 65) + strength * u(45, 65)
        self.spleen_hu = u(44, 54) + max(strength, 0.8 * (artery > 150)) * u(55, 75)
        self.pancreas_hu = u(36, 46) + max(strength, 0.9 * (artery > 0)) * u(40, 60)
        self.cortex_hu = u(30, 38) + (u(120, 160) if artery else 0)
        self.medulla_hu = u(30, 36) + strength * u(90, 140)
        self.muscle_hu, self.fat_hu, self.bone_hu = u(46, 60), u(-112, -92), u(120, 250)
        self.oral_hu = u(180, 350) if rng.random() < 0.3 else 0.0
        self.aorta_radius = u(8, 10.5)
        self.liver_low, self.liver_slope, self.liver_left = u(-8, 26), u(0.7, 0.95), u(-58, -22)
        self.spleen_length = u(85, 112)
        self.kidney = {  # center of each
            side: np.array([side_sign(side) * u(54, 63), self.center_y - 0.61 * self.half_depth, z])
            for side, z in (("right", u(14, 28)), ("left", u(26, 42)))
        }
        self.kidney_axes = np.array([26.0, 24.0, 53.0]) * u(0.92, 1.1)
        self.bladder = np.array([u(36, 48), u(26, 34), u(20, 32)])
        self.margin = u(6, 40)
        self.table_gap, self.table_curve, self.table_hu = u(2, 12), u(0.0006, 0.0025), u(-250, 60)

    # Depths (mm, positive inside). z, y, x are open grids or flat points.

    def midline(self, z: np.ndarray | float) -> np.ndarray | np.floating:
        """Return x of the spine at a height."""
        return self.curve * np.sin(z * np.float32(0.014) + np.float32(self.curve_phase))

    def body(self, z: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Return the depth below the skin."""
        hips = np.clip((-z - 70) / 80, 0, 1)
        waist = 1 - 0.05 * np.exp(-(((z + 10) / 55) ** 2)) + 0.07 * hips
        width = (self.half_width + self.muscle + self.fat + 6) * waist
        depth = (self.half_depth + 22 + 0.8 * self.fat) * (1 + 0.03 * hips)
        rho = (
            np.abs(x / width) ** np.float32(2.3) + np.abs((y + 6) / depth) ** np.float32(2.3)
        ) ** np.float32(1 / 2.3)
        return (1 - rho) * np.float32(self.half_depth + 22 + self.fat)

    def cavity(self, z: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Return the depth inside the muscles of the wall, domes and pelvic floor not counted."""
        pelvis = np.clip((-z - 70) / 90, 0, 1)
        width, depth = self.half_width * (1 - 0.42 * pelvis), self.half_depth * (1 - 0.1 * pelvis)
        rho = np.sqrt((x / width) ** 2 + ((y - self.center_y) / depth) ** 2)
        return (1 - rho) * np.float32(np.sqrt(self.half_width * self.half_depth))

    def dome_height(self, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Return z of the diaphragm."""
        heights = []
        for side in SIDES:
            dx = (x * side_sign(side) - 0.5 * self.half_width) / self.half_width
            dy = (y - self.center_y - 10) / self.half_depth
            fall = 78 * np.where(dx > 0, 1.5 * dx, 0.55 * dx) ** 2 + 38 * dy**2
            heights.append(self.dome[side] - fall)
        return np.maximum(*heights)

    def liver_depth(self, z: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Return the depth inside the liver: a wedge under the right dome, its left lobe thin and in front."""
        depth = np.minimum(self.cavity(z, y, x) - 4, 0.8 * (self.dome_height(y, x) - z - 5))
        depth = np.minimum(depth, 0.7 * (z - self.liver_bottom(y, x)))
        depth = np.minimum(
            depth, np.minimum(x - self.liver_left, 0.8 * (y + 52 + 1.1 * np.minimum(x - 20, 0)))
        )
        return np.minimum(depth, -self.spine_depth(z, y, x) - 8)

    def liver_bottom(self, y: np.ndarray | float, x: np.ndarray | float) -> np.ndarray | float:
        """Return z of the liver's lower surface: higher towards the left and the back, lower in front."""
        towards_left = self.liver_slope * np.clip(0.72 * self.half_width - x, 0, None)
        return self.liver_low + towards_left + 0.45 * np.clip(-y - 5, 0, None) - 0.5 * np.clip(y, 0, None)

    def spine_depth(self, z: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        rho = ((x - self.midline(z)) / 23) ** 2 + ((y - self.spine_y) / 18) ** 2
        return (1 - np.sqrt(rho)) * 20

    def kidney_coordinates(
        self, side: str, z: np.ndarray, y: np.ndarray, x: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return mm along the kidney's own axes: lateral, anterior, superior; its upper pole leans in and back."""
        center = self.kidney[side]
        sign = np.float32(side_sign(side))
        up = z - np.float32(center[2])
        out = (x - np.float32(center[0])) * sign + np.float32(0.2) * up
        return out, y - np.float32(center[1]) + np.float32(0.14) * up, up

    def kidney_point(self, side: str, out: float, front: float, up: float) -> np.ndarray:
        """Return the point at these coordinates of a kidney."""
        offset = np.array([side_sign(side) * (out - 0.2 * up), front - 0.14 * up, up])
        return self.kidney[side] + offset

    def groin(self, side: str, out: float, z: float) -> np.ndarray:
        """Return the point under the skin of the groin, before the muscles, `out` mm beside the midline."""
        y = np.arange(0.0, 130.0)
        deep = self.cavity(np.full_like(y, z), y, np.full_like(y, out)) > -self.muscle - 15
        return np.array([side_sign(side) * out, y[~deep & (y > 30)][0], z])

    # Curves shared by anatomy and findings.

    def aorta(self) -> np.ndarray:
        """Return points of the aortic centre line from the hiatus to the bifurcation."""
        y = self.spine_y + 20 + self.aorta_radius
        z = np.array([185.0, 140, 100, 60, 20, -20, -56])
        return np.stack([-9 + np.asarray(self.midline(z)) * 0.8, np.full(7, y) - 0.02 * (z > 100) * z, z], 1)

    def pancreas(self) -> np.ndarray:
        """Return points from the head to the tail."""
        y = self.spine_y + 50
        return np.array([[30, y - 4, 14], [28, y, 34], [6, y + 10, 46], [-26, y + 4, 54], [-60, y - 18, 74]])

    def colon(self) -> np.ndarray:
        """Return points from the cecum to the rectum."""
        w = self.half_width
        back = self.center_y - 0.3 * self.half_depth
        front = self.center_y + 0.62 * self.half_depth
        return np.array(
            [
                [0.52 * w, 12, -98], [0.62 * w, back, -55], [0.66 * w, back, -10], [0.62 * w, back + 16, 24],
                [0.4 * w, front - 8, 8], [0.05 * w, front, -14], [-0.38 * w, front - 8, 14],
                [-0.68 * w, back + 8, 60], [-0.74 * w, back, 15], [-0.72 * w, back, -45], [-0.55 * w, 8, -92],
                [-40, 24, -122], [-10, 6, -108], [10, -22, -132], [0, -46, -152], [0, -52, -190],
            ]
        )  # fmt: skip

    def field_of_view(self) -> tuple[np.ndarray, np.ndarray]:
        width = (self.half_width + self.muscle + self.fat + 6) * 1.03 + self.margin * 0.5
        depth = self.half_depth + 22 + 0.8 * self.fat
        low = np.array([-width, -6 - depth * 1.03 - self.table_gap - 20, self.bottom])
        return low, np.array([width, -6 + depth * 1.03 + 8, self.top])
