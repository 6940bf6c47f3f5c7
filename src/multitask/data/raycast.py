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

    ``focal`` and ``centre`` (x, y) in pixels, the centre of the first pixel being (0.5, 0.5); ``position``
    ``[3]`` in metres; ``rotation`` ``[3, 3]``, its rows are the camera's axes in the world.
    """

    height: int
    width: int
    focal: float
    centre: tuple[float, float]
    position: Array
    rotation: Array

    def rays(self) -> Array:
        """Directions through the pixels' centres in camera axes, with z = 1: ``[height, width, 3]``."""
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
        """Axes of each box in the world, as rows: ``[k, 3, 3]``."""
        c, s, zero, one = np.cos(self.yaw), np.sin(self.yaw), np.zeros_like(self.yaw), np.ones_like(self.yaw)
        return np.stack([c, s, zero, -s, c, zero, zero, zero, one], axis=-1).reshape(-1, 3, 3)


@dataclass(frozen=True)
class Hits:
    """The first hit of each ray, all ``[height, width, …]``.

    ``depth``: metres along the camera's axis; ``normal``: unit, in the world, towards the camera; ``box``:
    the number of the box, −1 for the room; ``point``: where, in the axes of the box or of the room, from
    its centre.
    """

    depth: Array
    normal: Array
    box: NDArray[np.int64]
    point: Array


def cast(camera: Camera, room: Boxes, boxes: Boxes) -> Hits:
    """Nearest surface along every ray.

    The faces of ``boxes`` are met from outside, those of the one ``room`` from inside. The camera has to be
    inside of the room and outside of every box.
    """
    directions = camera.rays() @ camera.rotation
    _, leave, _, exit_axis = _slabs(room, camera.position, directions)
    depth, axis = leave[0], exit_axis[0]
    box = np.full(depth.shape, -1)
    if len(boxes.yaw):
        enter, leave, enter_axis, _ = _slabs(boxes, camera.position, directions)
        entered = np.where((enter < leave) & (enter > 0), enter, np.inf)
        nearest = entered.argmin(axis=0)
        found = np.take_along_axis(entered, nearest[None], axis=0)[0]
        covered = found < depth
        box = np.where(covered, nearest, box)
        axis = np.where(covered, np.take_along_axis(enter_axis, nearest[None], axis=0)[0], axis)
        depth = np.where(covered, found, depth)

    # The room comes last, so that number −1 finds it.
    frames = np.concatenate([boxes.frames(), room.frames()])[box]
    centres = np.concatenate([boxes.centre, room.centre])[box]
    normal = np.take_along_axis(frames, axis[..., None, None], axis=-2)[..., 0, :]
    facing = (normal * directions).sum(axis=-1, keepdims=True)
    point = camera.position + depth[..., None] * directions - centres
    return Hits(depth, -np.sign(facing) * normal, box, np.einsum("hwij,hwj->hwi", frames, point))


def _slabs(boxes: Boxes, origin: Array, directions: Array) -> tuple[Array, Array, NDArray, NDArray]:
    """Ray parameters of entering and leaving each box, and through which axis: ``[k, height, width]``."""
    frames = boxes.frames()
    start = np.einsum("kij,kj->ik", frames, origin - boxes.centre)[..., None, None]
    along = np.moveaxis(frames @ directions.reshape(-1, 3).T, 1, 0).reshape(3, -1, *directions.shape[:2])
    half = boxes.half.T[..., None, None]
    # A ray parallel to a face meets it at ±infinity; a start on the face itself would give 0/0.
    along = np.where(np.abs(along) < 1e-12, 1e-12, along)
    first, second = (-half - start) / along, (half - start) / along
    near, far = np.minimum(first, second), np.maximum(first, second)
    return near.max(axis=0), far.min(axis=0), near.argmax(axis=0), far.argmin(axis=0)
