"""Data sets on the user's disk: small ones in the same layout, written here."""

import csv
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from multitask.data.augmentation import DenseAugmentation
from multitask.data.celeba import CelebA
from multitask.data.mtan import Cityscapes, NYUv2
from multitask.data.office31 import MISSING, Office31
from multitask.data.qm9 import QM9
from multitask.data.sdf import read_molecules

# NYUv2 and Cityscapes


def write_mtan(
    root: Path,
    normals: bool,
    label: str = "label",
    width: type = np.float64,
    train: int = 10,
    size: tuple[int, int] = (6, 8),
) -> None:
    """Pictures whose content names their split and number."""
    for split, count in (("train", train), ("val", 3)):
        kinds = ("image", label, "depth", *(["normal"] if normals else []))
        for kind in kinds:
            (root / split / kind).mkdir(parents=True)
        for i in range(count):
            rng = np.random.default_rng([split == "val", i])
            picture = rng.random((*size, 3)).astype(width)
            picture[0, 0, 0] = i / 100
            np.save(root / split / "image" / f"{i}.npy", picture)
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
def test_cityscapes_of_both_trees(tmp_path: Path, label: str):
    write_mtan(tmp_path, normals=False, label=label)
    module = Cityscapes(str(tmp_path), validation=0, batch_size=5)
    module.setup("fit")
    assert set(module.splits) == {"train", "test"}
    example = module.splits["train"][7]
    assert set(example) == {"inputs", "segmentation", "depth"}
    assert example["depth"].shape == (1, 6, 8)
    assert np.array_equal(example["segmentation"], np.load(tmp_path / "train" / label / "7.npy"))


def test_validation_pictures_are_none_of_the_training_ones(tmp_path: Path):
    write_mtan(tmp_path, normals=False)
    module = Cityscapes(str(tmp_path), validation=0.3, batch_size=20, augmentation=None)
    module.setup("fit")

    def numbers(loader) -> set[int]:
        return {round(100 * float(value)) for batch in loader for value in batch["inputs"][:, 0, 0, 0]}

    train, val = numbers(module.train_dataloader()), numbers(module.val_dataloader())
    assert len(train) == 7
    assert train | val == set(range(10))


def test_only_training_pictures_are_augmented(tmp_path: Path):
    write_mtan(tmp_path, normals=True)
    module = NYUv2(str(tmp_path), batch_size=20, augmentation=DenseAugmentation(scales=[2.0], flip=0.0))
    module.setup("fit")
    (batch,) = module.train_dataloader()
    # Each value stands twice in a row and twice in a column.
    assert torch.equal(batch["depth"][..., ::2, ::2], batch["depth"][..., 1::2, 1::2])
    (seen,) = module.test_dataloader()
    assert not torch.equal(seen["depth"][..., ::2, ::2], seen["depth"][..., 1::2, 1::2])


def test_pictures_in_worker_processes_are_the_same(tmp_path: Path):
    write_mtan(tmp_path, normals=True, train=6)
    augmentation = DenseAugmentation()
    alone = NYUv2(str(tmp_path), batch_size=3, augmentation=augmentation)
    helped = NYUv2(str(tmp_path), batch_size=3, augmentation=augmentation, num_workers=2)
    for one, other in zip(alone.train_dataloader(), helped.train_dataloader(), strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_missing_dense_data_is_answered_with_the_layout(tmp_path: Path):
    expected = r"data\.path=.*\{train,val\}/\{image,label,depth,normal\}/\{0,1,…\}\.npy"
    with pytest.raises(FileNotFoundError, match=expected):
        NYUv2(str(tmp_path / "nowhere")).setup("fit")
    with pytest.raises(FileNotFoundError, match=r"label_7\|label"):
        Cityscapes(str(tmp_path / "nowhere")).setup("fit")
    write_mtan(tmp_path, normals=True)
    (tmp_path / "train" / "depth" / "4.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"train/depth/4\.npy is missing"):
        NYUv2(str(tmp_path)).setup("fit")


def test_pickles_are_refused(tmp_path: Path):
    write_mtan(tmp_path, normals=False)
    np.save(tmp_path / "val" / "depth" / "1.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    module = Cityscapes(str(tmp_path))
    module.setup("fit")
    with pytest.raises(ValueError, match=r"val/depth/1\.npy cannot be read"):
        module.splits["test"][1]


def test_pictures_in_bytes_are_refused(tmp_path: Path):
    write_mtan(tmp_path, normals=False)
    np.save(tmp_path / "val" / "image" / "0.npy", np.zeros((6, 8, 3), dtype=np.uint8))
    module = Cityscapes(str(tmp_path))
    module.setup("fit")
    with pytest.raises(ValueError, match=r"image/0\.npy is of type uint8"):
        module.splits["test"][0]


@pytest.mark.parametrize(
    ("kind", "shape", "wanted"),
    [("image", (3, 6, 8), r"\[h, w\] or \[h, w, channels\]"), ("label", (6, 8, 1), r"\[h, w\]\.")],
)
def test_axes_in_another_order_are_refused(tmp_path: Path, kind: str, shape: tuple[int, ...], wanted: str):
    write_mtan(tmp_path, normals=False)
    np.save(tmp_path / "val" / kind / "0.npy", np.zeros(shape))
    module = Cityscapes(str(tmp_path))
    module.setup("fit")
    with pytest.raises(ValueError, match=rf"{kind}/0\.npy has the shape .* and must be {wanted}"):
        module.splits["test"][0]


@pytest.mark.parametrize("validation", [1.0, 1.5, -0.1, 0.99])
def test_share_to_validate_on_leaves_something_to_train_on(tmp_path: Path, validation: float):
    write_mtan(tmp_path, normals=False)
    with pytest.raises(ValueError, match=rf"data\.validation={validation} must be a share of the 10"):
        Cityscapes(str(tmp_path), validation=validation).setup("fit")


def test_a_share_of_less_than_a_picture_gives_no_validation(tmp_path: Path):
    write_mtan(tmp_path, normals=False, train=3)
    module = Cityscapes(str(tmp_path), validation=0.1)
    module.setup("fit")
    assert set(module.splits) == {"train", "test"}


# CelebA

ATTRIBUTES = ("Bald", "Male", "Smiling")


def write_celeba(root: Path, tree: bool, attributes: Sequence[str] = ATTRIBUTES) -> np.ndarray:
    places = {name: root / name if tree else root for name in ("Anno", "Eval", "Img")}
    for folder in (*places.values(), places["Img"] / "img_align_celeba"):
        folder.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(0).choice([-1, 1], (7, len(attributes)))
    files = [f"{i + 1:06d}.jpg" for i in range(7)]
    rows = [f"{file} " + " ".join(f"{v:2d}" for v in row) for file, row in zip(files, values, strict=True)]
    lists = {"Anno": "list_attr_celeba.txt", "Eval": "list_eval_partition.txt"}
    (places["Anno"] / lists["Anno"]).write_text("\n".join(["7", " ".join(attributes) + " ", *rows]) + "\n")
    partition = [f"{file} {split}" for file, split in zip(files, [0, 0, 0, 0, 1, 2, 2], strict=True)]
    (places["Eval"] / lists["Eval"]).write_text("\n".join(partition) + "\n")
    for i, file in enumerate(files):
        Image.new("RGB", (178, 218), (10 * i, 100, 200)).save(
            places["Img"] / "img_align_celeba" / file, quality=95
        )
    return values


@pytest.mark.parametrize("tree", [True, False])
def test_celeba_of_both_trees(tmp_path: Path, tree: bool):
    values = write_celeba(tmp_path, tree)
    module = CelebA(str(tmp_path), targets=["Smiling", "Bald"], height=12, width=8, batch_size=4)
    module.setup("fit")
    assert [len(module.splits[name]) for name in ("train", "val", "test")] == [4, 1, 2]
    (batch,) = module.test_dataloader()
    assert set(batch) == {"inputs", "Smiling", "Bald"}
    assert batch["inputs"].shape == (2, 3, 12, 8)
    assert batch["Smiling"].tolist() == [float(v > 0) for v in values[5:, 2]]
    assert batch["Bald"].tolist() == [float(v > 0) for v in values[5:, 0]]
    colour = torch.tensor([[50, 100, 200], [60, 100, 200]]) / 255
    torch.testing.assert_close(batch["inputs"].mean((2, 3)), colour, atol=0.01, rtol=0)


def test_celeba_reads_all_attributes_unless_told(tmp_path: Path):
    write_celeba(tmp_path, tree=False)
    module = CelebA(str(tmp_path))
    module.setup("fit")
    assert set(module.splits["train"][0]) == {"inputs", *ATTRIBUTES}


def test_celeba_that_is_not_there_or_not_right(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"data\.path=.*Anno/list_attr_celeba\.txt"):
        CelebA(str(tmp_path / "nowhere")).setup("fit")
    write_celeba(tmp_path, tree=False)
    with pytest.raises(ValueError, match="Tall is no attribute"):
        CelebA(str(tmp_path), targets=["Tall"]).setup("fit")
    attributes = tmp_path / "list_attr_celeba.txt"
    attributes.write_text(attributes.read_text().replace("7\n", "8\n", 1))
    with pytest.raises(ValueError, match="must have 8 lines"):
        CelebA(str(tmp_path)).setup("fit")


# Office-31


def write_office(root: Path, images: str = "images", classes: tuple[str, ...] = ("mug", "pen")) -> None:
    for d, domain in enumerate(("amazon", "dslr", "webcam")):
        for c, name in enumerate(classes):
            folder = root / domain / images / name
            folder.mkdir(parents=True)
            (folder / "notes.txt").write_text("no picture")
            for i in range(5):
                Image.new("RGB", (9, 9), (80 * d, 80 * c, 10 * i)).save(folder / f"frame_{i:04d}.png")


@pytest.mark.parametrize("images", ["images", "."])
def test_office_gives_each_domain_its_own_task(tmp_path: Path, images: str):
    write_office(tmp_path, images)
    module = Office31(str(tmp_path), height=4, width=4, batch_size=100)
    module.setup("fit")
    assert [len(module.splits[name]) for name in ("train", "val", "test")] == [18, 6, 6]
    seen = []
    for loader in (module.train_dataloader(), module.val_dataloader(), module.test_dataloader()):
        (batch,) = loader
        targets = torch.stack([batch[name] for name in ("amazon", "dslr", "webcam")], dim=1)
        assert ((targets != MISSING).sum(1) == 1).all()
        colour = (batch["inputs"][:, :, 0, 0] * 255).round().long()
        assert torch.equal((targets != MISSING).long().argmax(1), colour[:, 0] // 80)
        assert torch.equal(targets.max(1).values, colour[:, 1] // 80)
        seen += [tuple(row) for row in colour.tolist()]
    assert len(set(seen)) == len(seen) == 30


def test_office_that_is_not_there_or_not_right(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"data\.path=.*amazon/images/<class>"):
        Office31(str(tmp_path / "nowhere")).setup("fit")
    write_office(tmp_path)
    (tmp_path / "webcam" / "images" / "chair").mkdir()
    with pytest.raises(ValueError, match="webcam and amazon differ in chair"):
        Office31(str(tmp_path)).setup("fit")


# QM9

METHANE = [
    ("C", 0.0, 0.0, 0.0),
    *(("H", x, y, z) for x, y, z in ((1, 1, 1), (1, -1, -1), (-1, 1, -1), (-1, -1, 1))),
]
WATER = [("O", 0.0, 0.0, 0.1), ("H", 0.0, 0.75, -0.5), ("H", 0.0, -0.75, -0.5)]
COLUMNS = [
    "mol_id",
    "A",
    "B",
    "C",
    "mu",
    "alpha",
    "homo",
    "lumo",
    "gap",
    "r2",
    "zpve",
    "u0",
    "u298",
    "h298",
    "g298",
    "cv",
    "u0_atom",
    "u298_atom",
    "h298_atom",
    "g298_atom",
]


def molecule(name: str, atoms: list, bonds: int) -> str:
    lines = [name, "  some program", "", f"{len(atoms):3d}{bonds:3d}  0  0  0  0  0  0  0  0999 V2000"]
    lines += [
        f"{x:10.4f}{y:10.4f}{z:10.4f} {e:<3} 0  0  0  0  0  0  0  0  0  0  0  0" for e, x, y, z in atoms
    ]
    lines += [f"  1{i + 2:3d}  1  0  0  0  0" for i in range(bonds)]
    return "\n".join([*lines, "M  END", "$$$$", ""])


def write_qm9(root: Path, count: int = 20, doubtful: tuple[int, ...] = (3, 11)) -> None:
    root.mkdir(parents=True, exist_ok=True)
    kinds = [molecule(f"gdb_{i + 1}", WATER if i % 2 else METHANE, 2 if i % 2 else 4) for i in range(count)]
    (root / "gdb9.sdf").write_text("".join(kinds))
    with (root / "gdb9.sdf.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(
            [[f"gdb_{i + 1}", *(i + k / 100 for k in range(len(COLUMNS) - 1))] for i in range(count)]
        )
    body = [f"{n:6d}  CC  C1C  0.5" for n in doubtful]
    (root / "uncharacterized.txt").write_text(
        "\n".join([*["header 1"] * 9, *body, "", f"{len(doubtful)} compounds"]) + "\n"
    )


@pytest.mark.parametrize("place", [".", "raw"])
def test_qm9(tmp_path: Path, place: str):
    write_qm9(tmp_path / place)
    module = QM9(str(tmp_path), targets=["mu", "homo", "u0"], split=(0.5, 0.25, 0.25), batch_size=4)
    module.setup("fit")
    whole = {key: torch.cat([part[key] for part in module.splits.values()]) for key in module.splits["train"]}
    assert whole["inputs"].shape == (18, 29, 4)
    number = (whole["mu"] - 0.03).round().long()
    assert sorted(number.tolist()) == [i for i in range(20) if i + 1 not in (3, 11)]
    methane = torch.tensor([[6.0, 0, 0, 0], [1, 1, 1, 1], [1, 1, -1, -1], [1, -1, 1, -1], [1, -1, -1, 1]])
    for atoms, which in zip(whole["inputs"], number.tolist(), strict=True):
        assert (atoms[:, 0] > 0).sum() == (3 if which % 2 else 5)
        assert torch.equal(atoms[:5], methane) is (which % 2 == 0)
    # Hartree and kcal/mol to eV.
    torch.testing.assert_close(whole["homo"], (number.double() + 0.05) * 27.2113862, rtol=1e-6, atol=0)
    torch.testing.assert_close(whole["u0"], (number.double() + 0.15) * 0.0433641, rtol=1e-5, atol=0)


def test_qm9_that_is_not_there_or_not_right(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"data\.path=.*gdb9\.sdf, gdb9\.sdf\.csv"):
        QM9(str(tmp_path / "nowhere")).setup("fit")
    with pytest.raises(ValueError, match="gap is no property"):
        QM9(str(tmp_path), targets=["gap"]).setup("fit")
    write_qm9(tmp_path)
    (tmp_path / "gdb9.sdf").write_text(molecule("gdb_1", WATER, 2))
    with pytest.raises(ValueError, match="1 molecules"):
        QM9(str(tmp_path)).setup("fit")


def _iron(text: str) -> str:
    return text.replace(" O  ", " Fe ")


def _cut(text: str) -> str:
    return text[: text.index("M  END")]


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [(_iron, "an atom Fe"), (_cut, "ends inside of molecule 1"), (lambda text: text, "5 atoms, more than 4")],
)
def test_molecules_that_cannot_be_read_are_named(tmp_path: Path, spoil: Callable[[str], str], complaint: str):
    file = tmp_path / "some.sdf"
    good = molecule("gdb_1", WATER, 2)
    file.write_text(good + (spoil(good) if complaint[0] != "5" else molecule("gdb_2", METHANE, 4)))
    with pytest.raises(ValueError, match=complaint):
        read_molecules(file, largest=4)
