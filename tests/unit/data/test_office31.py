"""Office-31: a small folder in the same layout."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from multitask.data.office31 import Office31
from multitask.losses.counts import DEFAULT_IGNORE_INDEX


def write_office(root: Path, images: str = "images", classes: tuple[str, ...] = ("mug", "pen")) -> None:
    for d, domain in enumerate(("amazon", "dslr", "webcam")):
        for c, name in enumerate(classes):
            folder = root / domain / images / name
            folder.mkdir(parents=True)
            (folder / "notes.txt").write_text("no image")
            for i in range(5):
                Image.new("RGB", (9, 9), (80 * d, 80 * c, 10 * i)).save(folder / f"frame_{i:04d}.png")


@pytest.mark.parametrize("images", ["images", "."])
def test_each_domain_has_its_own_task(tmp_path: Path, images: str):
    write_office(tmp_path, images)
    module = Office31(str(tmp_path), height=4, width=4, batch_size=100)
    module.setup("fit")
    assert [len(module.splits[name]) for name in ("train", "val", "test")] == [18, 6, 6]
    colours = []
    for loader in (module.train_dataloader(), module.val_dataloader(), module.test_dataloader()):
        (batch,) = loader
        targets = torch.stack([batch[name] for name in ("amazon", "dslr", "webcam")], dim=1)
        assert ((targets != DEFAULT_IGNORE_INDEX).sum(1) == 1).all()
        colour = (batch["inputs"][:, :, 0, 0] * 255).round().long()
        assert torch.equal((targets != DEFAULT_IGNORE_INDEX).long().argmax(1), colour[:, 0] // 80)
        assert torch.equal(targets.max(1).values, colour[:, 1] // 80)
        colours += [tuple(row) for row in colour.tolist()]
    assert len(set(colours)) == len(colours) == 30


def test_missing_and_invalid_office_is_rejected(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"data\.path=.*amazon/images/<class>"):
        Office31(str(tmp_path / "nowhere")).setup("fit")
    write_office(tmp_path)
    (tmp_path / "webcam" / "images" / "chair").mkdir()
    with pytest.raises(ValueError, match="webcam and amazon differ in chair"):
        Office31(str(tmp_path)).setup("fit")
