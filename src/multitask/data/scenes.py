"""Random furnished rooms and their views by an RGB-D camera."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from multitask.data.raycast import Array, Boxes, Camera, Hits, cast

CLASSES = ("floor", "ceiling", "wall", "window", "picture", "table", "cabinet", "crate")
UNLABELLED = -1
# (class, lower and upper bound of the half edges in metres)
FURNITURE = (
    ("table", (0.40, 0.30, 0.30), (0.80, 0.50, 0.40)),
    ("cabinet", (0.25, 0.25, 0.60), (0.50, 0.35, 1.00)),
    ("crate", (0.15, 0.15, 0.15), (0.25, 0.25, 0.25)),
    (None, (0.10, 0.10, 0.20), (0.20, 0.20, 0.60)),  # clutter, unlabelled
)
# One colour per class, perturbed in each room; the last is for clutter.
PALETTE = np.array(
    [
        (0.65, 0.45, 0.30),
        (0.90, 0.90, 0.85),
        (0.75, 0.75, 0.60),
        (0.60, 0.80, 0.95),
        (0.70, 0.40, 0.65),
        (0.45, 0.30, 0.20),
        (0.35, 0.55, 0.40),
        (0.85, 0.65, 0.25),
        (0.60, 0.25, 0.25),
    ]
)
FIELD_OF_VIEW = np.deg2rad(75)
MARGIN = 0.6  # metres between the camera and the nearest furniture


@dataclass(frozen=True)
class Scene:
    """A room with classified furniture, a window and a picture on its walls, colours and a lamp.

    ``panes`` ``[2, 4]`` (window, picture): centre and half width along the wall, lower and upper edge, relative
    to the centre of the room; ``walls`` ``[2]``: the wall of each, 0 to 3; ``colours`` ``[classes + 1, 3]``, the
    last for unlabelled objects.
    """

    room: Boxes
    furniture: Boxes
    classes: NDArray[np.int64]
    panes: Array
    walls: NDArray[np.int64]
    colours: Array
    lamp: Array


def sample(rng: np.random.Generator, height: int, width: int) -> tuple[Scene, Camera]:
    """Draw a room, and a camera of ``height`` × ``width`` pixels in it."""
    half = rng.uniform((2.0, 2.0, 1.2), (3.5, 3.5, 1.5))
    room = Boxes(np.array([[0.0, 0.0, half[2]]]), half[None], np.zeros(1))
    corner = rng.choice([-1.0, 1.0], 2) * rng.uniform(0.5, 0.9, 2)
    position = np.append(corner * half[:2], rng.uniform(1.2, 1.7))
    kinds = rng.integers(len(FURNITURE), size=rng.integers(5, 10))
    halves = np.array([rng.uniform(FURNITURE[kind][1], FURNITURE[kind][2]) for kind in kinds])
    places = rng.uniform(-0.8, 0.8, (len(kinds), 2)) * half[:2]
    yaws = rng.uniform(0, np.pi, len(kinds))
    free = np.hypot(*(places - position[:2]).T) > np.hypot(halves[:, 0], halves[:, 1]) + MARGIN
    furniture = Boxes(np.column_stack([places, halves[:, 2]])[free], halves[free], yaws[free])
    classes = np.array([CLASSES.index(name) if name else UNLABELLED for name, _, _ in FURNITURE])[kinds][free]

    panes = np.column_stack(
        [
            rng.uniform(-0.4, 0.4, 2) * half[:2].min(),
            rng.uniform((0.5, 0.3), (0.9, 0.6)),
            rng.uniform((-0.4, 0.0), (-0.1, 0.2)),
            rng.uniform((0.5, 0.4), (0.9, 0.7)),
        ]
    )
    walls = rng.permutation(4)[:2]
    colours = (PALETTE + rng.uniform(-0.15, 0.15, PALETTE.shape)).clip(0.1, 1)
    lamp = np.array([*rng.uniform(-0.5, 0.5, 2) * half[:2], 2 * half[2] - 0.1])
    scene = Scene(room, furniture, classes, panes, walls, colours, lamp)
    aim = np.append(rng.uniform(-0.3, 0.3, 2) * half[:2], rng.uniform(0.4, 1.4))
    return scene, look(position, aim, height, width)


def look(position: Array, aim: Array, height: int, width: int) -> Camera:
    """Return a camera at ``position`` facing ``aim``, with a horizontal ``FIELD_OF_VIEW`` and a level horizon."""
    forward = (aim - position) / np.linalg.norm(aim - position)
    right = np.array([forward[1], -forward[0], 0.0]) / np.hypot(*forward[:2])
    rotation = np.stack([right, np.cross(forward, right), forward])
    focal = width / 2 / np.tan(FIELD_OF_VIEW / 2)
    return Camera(height, width, float(focal), (width / 2, height / 2), position, rotation)


def render(
    scene: Scene, camera: Camera, rng: np.random.Generator, max_depth: float, dropout: float
) -> dict[str, NDArray]:
    """Return the camera's view.

    ``inputs`` ``[3, h, w]`` in [0, 1]; ``segmentation`` ``[h, w]`` int64, −1 where unlabelled; ``depth``
    ``[1, h, w]`` in metres, 0 where invalid: at the window, beyond ``max_depth``, and at a share ``dropout`` of
    the pixels; ``normals`` ``[3, h, w]``: unit vectors in camera axes, zero where the depth is invalid.
    """
    hits = cast(camera, scene.room, scene.furniture)
    labels = _labels(scene, hits)
    valid = (labels != CLASSES.index("window")) & (hits.depth <= max_depth)
    valid &= rng.random(valid.shape) >= dropout
    normals = hits.normal @ camera.rotation.T
    image = _shade(scene, camera, hits, labels) + rng.normal(0, 0.02, (*labels.shape, 3))
    return {
        "inputs": image.clip(0, 1).transpose(2, 0, 1).astype(np.float32),
        "segmentation": labels,
        "depth": np.where(valid, hits.depth, 0)[None].astype(np.float32),
        "normals": np.where(valid, normals.transpose(2, 0, 1), 0).astype(np.float32),
    }


def _labels(scene: Scene, hits: Hits) -> NDArray[np.int64]:
    """Return the class of each pixel: that of the furniture or of the part of the room."""
    inside = hits.box < 0
    up = hits.normal[..., 2]
    part = np.where(up > 0.5, CLASSES.index("floor"), np.where(up < -0.5, CLASSES.index("ceiling"), -2))
    # The walls 0 to 3 in the directions +x, +y, −x, −y, and the coordinate along each.
    wall = np.where(
        np.abs(hits.normal[..., 0]) > 0.5,
        np.where(hits.normal[..., 0] < 0, 0, 2),
        np.where(hits.normal[..., 1] < 0, 1, 3),
    )
    across = np.where(wall % 2 == 0, hits.point[..., 1], hits.point[..., 0])
    upright = part == -2
    part[upright] = CLASSES.index("wall")
    for name, number, (middle, half, low, high) in zip(
        ("window", "picture"), scene.walls, scene.panes, strict=True
    ):
        in_pane = (np.abs(across - middle) < half) & (hits.point[..., 2] > low) & (hits.point[..., 2] < high)
        part[upright & (wall == number) & in_pane] = CLASSES.index(name)
    if not len(scene.classes):
        return part
    return np.where(inside, part, scene.classes[hits.box])


def _shade(scene: Scene, camera: Camera, hits: Hits, labels: NDArray[np.int64]) -> Array:
    """Shade by Lambert's law, with a 25 cm checkerboard on everything but the window, ``[h, w, 3]``."""
    colour = scene.colours[labels]
    checks = np.floor(hits.point / 0.25 + 1e-6).sum(axis=-1) % 2
    colour = colour * np.where(labels == CLASSES.index("window"), 1.0, 0.85 + 0.15 * checks)[..., None]
    points = camera.position + hits.depth[..., None] * (camera.rays() @ camera.rotation)
    to_lamp = scene.lamp - points
    distance = np.linalg.norm(to_lamp, axis=-1)
    cosine = (to_lamp * hits.normal).sum(axis=-1) / distance
    light = 0.35 + 0.9 * cosine.clip(0) / (1 + 0.1 * distance**2)
    return colour * light[..., None]
