"""Rooms: targets and augmentations are consistent with the geometry."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from multitask.data.augmentation import Augmented, DenseAugmentation
from multitask.data.loading import Made
from multitask.data.raycast import Boxes, Camera, cast
from multitask.data.rooms import Rooms, room
from multitask.data.scenes import CLASSES, FIELD_OF_VIEW, render, sample

HEIGHT, WIDTH = 48, 64
FOCAL = WIDTH / 2 / math.tan(FIELD_OF_VIEW / 2)
CENTRE = (WIDTH / 2, HEIGHT / 2)


def images(count: int = 8, **changes) -> Made:
    settings = {"size": (HEIGHT, WIDTH), "seed": 3, "stream": 0, "max_depth": 6.0, "dropout": 0.02}
    return Made(count, lambda index: room(**(settings | changes), index=index))


def backproject(depth: Tensor, focal: float, centre: tuple[float, float]) -> Tensor:
    """Return points ``[h, w, 3]`` in camera coordinates."""
    height, width = depth.shape[-2:]
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    rays = torch.stack([(x - centre[0]) / focal, (y - centre[1]) / focal, torch.ones(height, width)], dim=-1)
    return depth.squeeze(0).unsqueeze(-1).double() * rays


def normals_from(depth: Tensor, focal: float, centre: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Return normals from differences of back-projected depth, and a mask of valid points."""
    points = backproject(depth, focal, centre)
    right, down = points[:-1, 1:] - points[:-1, :-1], points[1:, :-1] - points[:-1, :-1]
    normal = torch.nn.functional.normalize(torch.linalg.cross(down, right), dim=-1)
    valid = (depth[0, :-1, :-1] > 0) & (depth[0, :-1, 1:] > 0) & (depth[0, 1:, :-1] > 0)
    return normal, valid


def one_surface(normals: Tensor, depth: Tensor) -> Tensor:
    """Return a mask of pixels that lie on one plane with the pixels to the right and below."""
    points = backproject(depth, FOCAL, CENTRE)
    plane = torch.cat(
        [normals.double().movedim(0, -1), (normals.double().movedim(0, -1) * points).sum(-1, True)], -1
    )
    here = plane[:-1, :-1]
    same_right = (plane[:-1, 1:] - here).abs().amax(-1) < 1e-4
    return same_right & ((plane[1:, :-1] - here).abs().amax(-1) < 1e-4)


def test_shapes_and_dtypes():
    example = images()[0]
    assert example["inputs"].shape == (3, HEIGHT, WIDTH)
    assert example["inputs"].dtype == torch.float32
    assert example["inputs"].min() >= 0
    assert example["inputs"].max() <= 1
    assert example["segmentation"].dtype == torch.int64
    assert example["segmentation"].shape == (HEIGHT, WIDTH)
    assert example["depth"].shape == (1, HEIGHT, WIDTH)
    assert example["normals"].shape == (3, HEIGHT, WIDTH)


def test_all_classes_and_kinds_of_invalid_pixels_occur():
    rooms = images(count=40)
    examples = [rooms[i] for i in range(40)]
    seen = torch.cat([example["segmentation"].unique() for example in examples]).unique()
    assert seen.tolist() == [-1, *range(len(CLASSES))]
    for example in examples:
        depth, length = example["depth"][0], example["normals"].norm(dim=0)
        assert (depth == 0).any()
        assert torch.equal(depth == 0, length == 0)
        assert torch.allclose(length[depth > 0], torch.ones(()), atol=1e-6)
        assert depth.max() <= 6.0
        assert depth[depth > 0].min() > 0.1
        assert (depth[example["segmentation"] == CLASSES.index("window")] == 0).all()


def test_normals_agree_with_back_projected_depth():
    compared = 0
    for index in range(8):
        example = images()[index]
        found, valid = normals_from(example["depth"], FOCAL, CENTRE)
        valid &= one_surface(example["normals"], example["depth"])
        expected = example["normals"][:, :-1, :-1].movedim(0, -1).double()
        assert (found - expected)[valid].abs().max() < 1e-3
        compared += int(valid.sum())
    assert compared > 8 * 0.6 * HEIGHT * WIDTH


def test_normals_face_the_camera():
    example = images()[1]
    rays = backproject(torch.ones(1, HEIGHT, WIDTH), FOCAL, CENTRE).movedim(-1, 0)
    valid = example["depth"][0] > 0
    assert ((example["normals"] * rays).sum(0)[valid] < 0).all()


def test_depth_and_normals_of_a_known_box():
    camera = Camera(3, 3, 3.0, (1.5, 1.5), np.zeros(3), np.array([[0.0, -1, 0], [0, 0, -1], [1, 0, 0]]))
    room = Boxes(np.zeros((1, 3)), np.array([[5.0, 4.0, 3.0]]), np.zeros(1))
    box = Boxes(np.array([[3.0, 0.0, 0.0]]), np.array([[1.0, 0.5, 0.5]]), np.zeros(1))
    hits = cast(camera, room, box)
    assert hits.depth[1, 1] == pytest.approx(2.0)
    assert hits.depth[0, 0] == pytest.approx(5.0)
    assert hits.box.tolist() == [[-1, -1, -1], [-1, 0, -1], [-1, -1, -1]]
    assert hits.normal[1, 1] == pytest.approx([-1, 0, 0])
    assert hits.normal[0, 0] == pytest.approx([-1, 0, 0])
    assert hits.point[1, 1] == pytest.approx([-1, 0, 0])


def test_depth_and_normal_of_a_rotated_box():
    camera = Camera(1, 1, 1.0, (0.5, 0.5), np.zeros(3), np.array([[0.0, -1, 0], [0, 0, -1], [1, 0, 0]]))
    room = Boxes(np.zeros((1, 3)), np.array([[5.0, 5.0, 5.0]]), np.zeros(1))
    box = Boxes(np.array([[3.0, 0.1, 0.0]]), np.array([[1.0, 1.0, 1.0]]), np.array([math.pi / 4]))
    hits = cast(camera, room, box)
    assert hits.depth[0, 0] == pytest.approx(3 - math.sqrt(2) + 0.1)
    assert hits.normal[0, 0] == pytest.approx([-math.sqrt(0.5), -math.sqrt(0.5), 0])


def test_images_depend_on_seed_stream_and_index_alone():
    rooms = images()
    again = {name: values.clone() for name, values in rooms[2].items()}
    rooms[5], rooms[0]
    assert all(torch.equal(again[name], values) for name, values in images()[2].items())
    for other in (images(seed=4)[2], images(stream=1)[2], rooms[3]):
        assert not torch.equal(other["depth"], again["depth"])


def test_image_size_is_arbitrary():
    example = images(size=(17, 130))[0]
    assert example["normals"].shape == (3, 17, 130)


def test_image_size_does_not_change_the_room():
    coarse, fine = images(dropout=0.0)[0], images(dropout=0.0, size=(3 * HEIGHT, 3 * WIDTH))[0]
    # The centre of each block of 3×3 fine pixels has the ray of the coarse pixel.
    assert torch.equal(coarse["segmentation"], fine["segmentation"][1::3, 1::3])
    assert torch.allclose(coarse["depth"], fine["depth"][:, 1::3, 1::3], atol=1e-5)


# Augmentation


def test_flipped_normals_are_consistent_with_depth():
    example = images()[0]
    flipped = DenseAugmentation().mirror(example)
    found, valid = normals_from(flipped["depth"], FOCAL, CENTRE)
    valid &= one_surface(flipped["normals"], flipped["depth"])
    expected = flipped["normals"][:, :-1, :-1].movedim(0, -1).double()
    assert valid.sum() > 0.6 * HEIGHT * WIDTH
    assert (found - expected)[valid].abs().max() < 1e-3
    assert torch.equal(flipped["segmentation"], example["segmentation"].flip(-1))
    assert torch.equal(flipped["inputs"], example["inputs"].flip(-1))
    back = DenseAugmentation().mirror(flipped)
    assert all(torch.equal(back[name], example[name]) for name in example)


def test_zoom_matches_a_longer_focal_length():
    """The zoom matches a rendering of the window with s times the focal length."""
    rng = np.random.default_rng(5)
    scene, camera = sample(rng, 51, 63)
    example = render(scene, camera, np.random.default_rng(0), 6.0, 0.0)
    example = {name: torch.from_numpy(values.copy()) for name, values in example.items()}
    top, left, scale = 20, 11, 3
    zoomed = DenseAugmentation().zoom(example, top, left, 17, 21)
    close = Camera(
        51,
        63,
        scale * camera.focal,
        (scale * (camera.centre[0] - left), scale * (camera.centre[1] - top)),
        camera.position,
        camera.rotation,
    )
    expected = render(scene, close, np.random.default_rng(0), 6.0, 0.0)
    # Every third pixel has exactly the same ray in both.
    at = (..., slice(1, None, 3), slice(1, None, 3))
    assert np.array_equal(zoomed["segmentation"][at], expected["segmentation"][at])
    assert np.allclose(zoomed["depth"][at], expected["depth"][at] / scale, atol=1e-5)
    assert np.allclose(zoomed["normals"][at], expected["normals"][at], atol=1e-5)
    # With s times the focal length, depths and points shrink by s, and normals do not change.
    points = backproject(zoomed["depth"], close.focal, close.centre)[at[1:]]
    original = backproject(example["depth"], camera.focal, camera.centre)
    original = original[top : top + 17, left : left + 21]
    assert torch.allclose(points * scale, original, atol=1e-4)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([1.0, 1.2, 1.5, 2.0, 3.3]))
def test_augmentation_creates_no_new_classes_or_depths(seed: int, scale: float):
    example = images()[0]
    augmentation = DenseAugmentation(scales=[scale], flip=0.5)
    out = augmentation(example, torch.Generator().manual_seed(seed))
    assert {name: (v.shape, v.dtype) for name, v in out.items()} == {
        name: (v.shape, v.dtype) for name, v in example.items()
    }
    assert set(out["segmentation"].unique().tolist()) <= set(example["segmentation"].unique().tolist())
    assert torch.equal(out["depth"][0] == 0, (out["normals"] == 0).all(0))
    length = out["normals"].norm(dim=0)
    assert torch.allclose(length[length > 0], torch.ones(()), atol=1e-6)
    true_scale = HEIGHT / int(HEIGHT / scale)
    originals = torch.cat([torch.zeros(1), example["depth"].flatten()]).unique()
    nearest = (out["depth"].flatten()[:, None] * true_scale - originals).abs().amin(1)
    assert nearest.max() < 1e-5


def test_zoom_scales_inverse_depth():
    example = {"inputs": torch.rand(3, 6, 6), "depth": torch.full((1, 6, 6), 0.2)}
    augmentation = DenseAugmentation(depth=(), inverse_depth=("depth",))
    assert torch.allclose(augmentation.zoom(example, 0, 0, 3, 3)["depth"], torch.tensor(0.4))


def test_augmentation_depends_on_seed_epoch_and_example():
    examples = Rooms(examples=(3, 0, 0)).load()["train"]
    augmented = Augmented(examples, DenseAugmentation(scales=(1.0, 1.2, 1.5, 2.0)), seed=1)
    first = [augmented[i]["inputs"] for i in range(3)]
    assert all(torch.equal(a, augmented[i]["inputs"]) for i, a in enumerate(first))
    augmented.set_epoch(1)
    assert not all(torch.equal(a, augmented[i]["inputs"]) for i, a in enumerate(first))
    augmented.set_epoch(0)
    assert all(torch.equal(a, augmented[i]["inputs"]) for i, a in enumerate(first))


def test_invalid_augmentation_is_rejected():
    with pytest.raises(ValueError, match=r"data\.augmentation\.scales"):
        DenseAugmentation(scales=[0.5])
    with pytest.raises(ValueError, match=r"data\.augmentation\.flip"):
        DenseAugmentation(flip=2)


# DataModule


@pytest.mark.parametrize("in_memory", [True, False])
def test_batches_from_memory_and_on_demand_are_the_same(in_memory: bool):
    module = Rooms(examples=(6, 3, 2), batch_size=4, in_memory=in_memory)
    module.setup("fit")
    reference = images(seed=0, stream=1, count=3)
    (batch,) = list(module.val_dataloader())
    assert torch.equal(batch["depth"][2], reference[2]["depth"])
    assert [len(batch["inputs"]) for batch in module.train_dataloader()] == [4, 2]
    assert [len(batch["inputs"]) for batch in module.test_dataloader()] == [2]


def test_only_training_examples_are_augmented_and_differently_in_each_epoch():
    module = Rooms(examples=(4, 4, 0), batch_size=4, augmentation=DenseAugmentation(scales=(1.3, 1.7, 2.0)))
    plain = Rooms(examples=(4, 4, 0), batch_size=4)
    module.setup("fit")
    plain.setup("fit")
    loader = module.train_dataloader()
    passes = []
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        passes.append(next(iter(loader))["depth"])
    assert not torch.equal(passes[0].sum((1, 2, 3)).sort()[0], passes[1].sum((1, 2, 3)).sort()[0])
    (found,), (expected,) = module.val_dataloader(), plain.val_dataloader()
    assert torch.equal(found["depth"], expected["depth"])
    assert module.test_dataloader() == []


def test_invalid_counts_are_rejected():
    with pytest.raises(ValueError, match=r"data\.examples"):
        Rooms(examples=(0, 1, 1))


def test_resumed_epoch_has_the_batches_of_the_whole_epoch():
    module = Rooms(examples=(8, 1, 0), batch_size=2, augmentation=DenseAugmentation())
    whole, resumed = module.train_dataloader(), module.train_dataloader()
    whole.set_epoch(3)
    expected = list(whole)
    resumed.load_state_dict({"position": 2})
    resumed.set_epoch(3)
    for batch, other in zip(list(resumed), expected[2:], strict=True):
        assert all(torch.equal(batch[name], other[name]) for name in batch)
