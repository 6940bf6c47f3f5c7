"""CelebA: small folders in both layouts."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from multitask.data.celeba import CelebA

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
def test_celeba_in_both_layouts(tmp_path: Path, tree: bool):
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


def test_celeba_reads_all_attributes_by_default(tmp_path: Path):
    write_celeba(tmp_path, tree=False)
    module = CelebA(str(tmp_path))
    module.setup("fit")
    assert set(module.splits["train"][0]) == {"inputs", *ATTRIBUTES}


def test_missing_and_invalid_celeba_is_rejected(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"data\.path=.*Anno/list_attr_celeba\.txt"):
        CelebA(str(tmp_path / "nowhere")).setup("fit")
    write_celeba(tmp_path, tree=False)
    with pytest.raises(ValueError, match="Tall is not an attribute"):
        CelebA(str(tmp_path), targets=["Tall"]).setup("fit")
    attributes = tmp_path / "list_attr_celeba.txt"
    attributes.write_text(attributes.read_text().replace("7\n", "8\n", 1))
    with pytest.raises(ValueError, match="must have 8 lines"):
        CelebA(str(tmp_path)).setup("fit")
