"""NYUv2 and Cityscapes: small folders in the layout of MTAN."""

from pathlib import Path

import numpy as np
import pytest
import torch

from multitask.data.augmentation import DenseAugmentation
from multitask.data.mtan import Cityscapes, NYUv2


def write_mtan(
    root: Path,
    normals: bool,
    label: str = "label",
    width: type = np.float64,
    train: int = 10,
    size: tuple[int, int] = (6, 8),
) -> None:
    """Write images that encode their split and number."""
    for split, count in (("train", train), ("val", 3)):
        kinds = ("image", label, "depth", *(["normal"] if normals else []))
        for kind in kinds:
            (root / split / kind).mkdir(parents=True)
        for i in range(count):
            rng = np.random.default_rng([split == "val", i])
            image = rng.random((*size, 3)).astype(width)
            image[0, 0, 0] = i / 100
            np.save(root / split / "image" / f"{i}.npy", image)
            np.save(root / split / label / f"{i}.npy", rng.integers(-1, 7, size).astype(width))
            depth = rng.random(size) * (rng.random(size) > 0.3)
            np.save(
                root / split / "depth" / f"{i}.npy", (depth[..., None] if normals else depth).astype(width)
            )
            if normals:
                vectors = rng.normal(size=(*size, 3))
                vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
                np.save(root / split / "normal" / f"{i}.npy", vectors.astype(width))


@pytest.mark.parametrize("width", [np.float32, np.float64])
def test_nyuv2(tmp_path: Path, width: type):
    write_mtan(tmp_path, normals=True, width=width)
    module = NYUv2(str(tmp_path), batch_size=4, eval_batch_size=2)
    module.setup("fit")
    assert [len(module.splits[name]) for name in ("train", "val", "test")] == [9, 1, 3]
    batches = list(module.train_dataloader())
    assert [len(batch["inputs"]) for batch in batches] == [4, 4, 1]
    batch = batches[0]
    assert {name: (v.shape[1:], v.dtype) for name, v in batch.items()} == {
        "inputs": ((3, 6, 8), torch.float32),
        "segmentation": ((6, 8), torch.int64),
        "depth": ((1, 6, 8), torch.float32),
        "normals": ((3, 6, 8), torch.float32),
    }
    for i, example in enumerate([module.splits["test"][i] for i in range(3)]):
        for name, kind in (("inputs", "image"), ("depth", "depth"), ("normals", "normal")):
            saved = np.load(tmp_path / "val" / kind / f"{i}.npy").reshape(6, 8, -1).transpose(2, 0, 1)
            assert np.array_equal(example[name].numpy(), saved.astype(np.float32))
        saved = np.load(tmp_path / "val" / "label" / f"{i}.npy")
        assert np.array_equal(example["segmentation"].numpy(), saved.astype(np.int64))


@pytest.mark.parametrize("label", ["label_7", "label"])
def test_cityscapes_with_both_label_folders(tmp_path: Path, label: str):
    write_mtan(tmp_path, normals=False, label=label)
    module = Cityscapes(str(tmp_path), validation=0, batch_size=5)
    module.setup("fit")
    assert set(module.splits) == {"train", "test"}
    example = module.splits["train"][7]
    assert set(example) == {"inputs", "segmentation", "depth"}
    assert example["depth"].shape == (1, 6, 8)
    assert np.array_equal(example["segmentation"], np.load(tmp_path / "train" / label / "7.npy"))


def test_validation_and_training_images_are_disjoint(tmp_path: Path):
    write_mtan(tmp_path, normals=False)
    module = Cityscapes(str(tmp_path), validation=0.3, batch_size=20, augmentation=None)
    module.setup("fit")

    def numbers(loader) -> set[int]:
        return {round(100 * float(value)) for batch in loader for value in batch["inputs"][:, 0, 0, 0]}

    train, val = numbers(module.train_dataloader()), numbers(module.val_dataloader())
    assert len(train) == 7
    assert train | val == set(range(10))


def test_only_training_images_are_augmented(tmp_path: Path):
    write_mtan(tmp_path, normals=True)
    module = NYUv2(str(tmp_path), batch_size=20, augmentation=DenseAugmentation(scales=[2.0], flip=0.0))
    module.setup("fit")
    (batch,) = module.train_dataloader()
    # Each value occurs twice in a row and twice in a column.
    assert torch.equal(batch["depth"][..., ::2, ::2], batch["depth"][..., 1::2, 1::2])
    (test_batch,) = module.test_dataloader()
    assert not torch.equal(test_batch["depth"][..., ::2, ::2], test_batch["depth"][..., 1::2, 1::2])


def test_worker_processes_load_the_same_images(tmp_path: Path):
    write_mtan(tmp_path, normals=True, train=6)
    augmentation = DenseAugmentation()
    alone = NYUv2(str(tmp_path), batch_size=3, augmentation=augmentation)
    parallel = NYUv2(str(tmp_path), batch_size=3, augmentation=augmentation, num_workers=2)
    for one, other in zip(alone.train_dataloader(), parallel.train_dataloader(), strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_missing_data_is_reported_with_the_layout(tmp_path: Path):
    expected = r"data\.path=.*\{train,val\}/\{image,label,depth,normal\}/\{0,1,…\}\.npy"
    with pytest.raises(FileNotFoundError, match=expected):
        NYUv2(str(tmp_path / "nowhere")).setup("fit")
    with pytest.raises(FileNotFoundError, match=r"label_7\|label"):
        Cityscapes(str(tmp_path / "nowhere")).setup("fit")
    write_mtan(tmp_path, normals=True)
    (tmp_path / "train" / "depth" / "4.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"train/depth/4\.npy is missing"):
        NYUv2(str(tmp_path)).setup("fit")


def test_pickles_are_rejected(tmp_path: Path):
    write_mtan(tmp_path, normals=False)
    np.save(tmp_path / "val" / "depth" / "1.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    module = Cityscapes(str(tmp_path))
    module.setup("fit")
    with pytest.raises(ValueError, match=r"val/depth/1\.npy cannot be read"):
        module.splits["test"][1]


def test_images_of_bytes_are_rejected(tmp_path: Path):
    write_mtan(tmp_path, normals=False)
    np.save(tmp_path / "val" / "image" / "0.npy", np.zeros((6, 8, 3), dtype=np.uint8))
    module = Cityscapes(str(tmp_path))
    module.setup("fit")
    with pytest.raises(ValueError, match=r"image/0\.npy is of type uint8"):
        module.splits["test"][0]


@pytest.mark.parametrize(
    ("kind", "shape", "message"),
    [("image", (3, 6, 8), r"\[h, w\] or \[h, w, channels\]"), ("label", (6, 8, 1), r"\[h, w\]\.")],
)
def test_axes_in_another_order_are_rejected(tmp_path: Path, kind: str, shape: tuple[int, ...], message: str):
    write_mtan(tmp_path, normals=False)
    np.save(tmp_path / "val" / kind / "0.npy", np.zeros(shape))
    module = Cityscapes(str(tmp_path))
    module.setup("fit")
    with pytest.raises(ValueError, match=rf"{kind}/0\.npy has the shape .* and must be {message}"):
        module.splits["test"][0]


@pytest.mark.parametrize("validation", [1.0, 1.5, -0.1, 0.99])
def test_validation_share_without_training_images_is_rejected(tmp_path: Path, validation: float):
    write_mtan(tmp_path, normals=False)
    with pytest.raises(ValueError, match=rf"data\.validation={validation} must be a share of the 10"):
        Cityscapes(str(tmp_path), validation=validation).setup("fit")


def test_validation_share_below_one_image_gives_no_validation(tmp_path: Path):
    write_mtan(tmp_path, normals=False, train=3)
    module = Cityscapes(str(tmp_path), validation=0.1)
    module.setup("fit")
    assert set(module.splits) == {"train", "test"}
