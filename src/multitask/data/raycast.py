"""Ray casting of boxes in a box: exact depth and normals of furnished rooms.

Axes. World: x and y along the floor, z up, metres. Camera: x right, y down, z forward. Depth is the z
coordinate in the camera, as depth cameras give it, not the distance.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Camera:
    """A pinhole camera.

    ``focal`` and ``centre`` (x, y) are in pixels, with the centre of the first pixel at (0.5, 0.5); ``position``
    ``[3]`` is in metres; the rows of ``rotation`` ``[3, 3]`` are the camera's axes in world coordinates.
    """

    height: int
    width: int
    focal: float
    centre: tuple[float, float]
    position: Array
    rotation: Array

    def rays(self) -> Array:
        """Return ray directions through the pixel centres in camera axes, z = 1, ``[height, width, 3]``."""
        x = (np.arange(self.width) + 0.5 - self.centre[0]) / self.focal
        y = (np.arange(self.height) + 0.5 - self.centre[1]) / self.focal
        return np.stack([*np.meshgrid(x, y), np.ones((self.height, self.width))], axis=-1)


@dataclass(frozen=True)
class Boxes:
    """Upright boxes: ``centre`` and ``half`` (half the edges) ``[k, 3]``, ``yaw`` ``[k]`` in radians."""

    centre: Array
    half: Array
    yaw: Array

    def frames(self) -> Array:
        """Return the axes of each box in world coordinates, as rows, ``[k, 3, 3]``."""
        c, s, zero, one = np.cos(self.yaw), np.sin(self.yaw), np.zeros_like(self.yaw), np.ones_like(self.yaw)
        return np.stack([c, s, zero, -s, c, zero, zero, zero, one], axis=-1).reshape(-1, 3, 3)


@dataclass(frozen=True)
class Hits:
    """The first hit of each ray, all ``[height, width, …]``.

    ``depth``: metres along the camera's axis; ``normal``: unit vector in world coordinates, towards the camera;
    ``box``: index of the box, −1 for the room; ``point``: position relative to the centre of the box or room, in
    its axes.
    """

    depth: Array
    normal: Array
    box: NDArray[np.int64]
    point: Array


def cast(camera: Camera, room: Boxes, boxes: Boxes) -> Hits:
    """Return the nearest surface along every ray.

    Rays hit ``boxes`` from outside and the single ``room`` from inside. The camera must be inside the room and
    outside every box.
    """
    directions = camera.rays() @ camera.rotation
    _, leave, _, exit_axis = _slabs(room, camera.position, directions)
    depth, axis = leave[0], exit_axis[0]
    box = np.full(depth.shape, -1)
    if len(boxes.yaw):
        enter, leave, enter_axis, _ = _slabs(boxes, camera.position, directions)
        entered = np.where((enter < leave) & (enter > 0), enter, np.inf)
        nearest = entered.argmin(axis=0)
        distance = np.take_along_axis(entered, nearest[None], axis=0)[0]
        covered = distance < depth
        box = np.where(covered, nearest, box)
        axis = np.where(covered, np.take_along_axis(enter_axis, nearest[None], axis=0)[0], axis)
        depth = np.where(covered, distance, depth)

    # The room is last, so that index −1 selects it.
    frames = np.concatenate([boxes.frames(), room.frames()])[box]
    centres = np.concatenate([boxes.centre, room.centre])[box]
    normal = np.take_along_axis(frames, axis[..., None, None], axis=-2)[..., 0, :]
    facing = (normal * directions).sum(axis=-1, keepdims=True)
    point = camera.position + depth[..., None] * directions - centres
    return Hits(depth, -np.sign(facing) * normal, box, np.einsum("hwij,hwj->hwi", frames, point))


def _slabs(boxes: Boxes, origin: Array, directions: Array) -> tuple[Array, Array, NDArray, NDArray]:
    """Return where rays enter and leave each box, as ray parameters and face axes, ``[k, height, width]``."""
    frames = boxes.frames()
    start = np.einsum("kij,kj->ik", frames, origin - boxes.centre)[..., None, None]
    along = np.moveaxis(frames @ directions.reshape(-1, 3).T, 1, 0).reshape(3, -1, *directions.shape[:2])
    half = boxes.half.T[..., None, None]
    # A ray parallel to a face meets it at ±infinity; a start on the face itself would give 0/0.
    along = np.where(np.abs(along) < 1e-12, 1e-12, along)
    first, second = (-half - start) / along, (half - start) / along
    near, far = np.minimum(first, second), np.maximum(first, second)
    return near.max(axis=0), far.min(axis=0), near.argmax(axis=0), far.argmin(axis=0)
