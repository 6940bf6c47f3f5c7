"""NYUv2 and Cityscapes as "End-to-End Multi-Task Learning with Attention" (MTAN, 2019) prepared them."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import ClassVar

from torch.utils.data import Subset

from multitask.data.augmentation import Augmented, DenseAugmentation
from multitask.data.base import Lazy, Split
from multitask.data.loading import held_out
from multitask.data.npy_folder import NpyFolder


@dataclass(eq=False)
class Mtan(Lazy):
    """The folders ``train`` and ``val``; the papers test on ``val``.

    Args:
        path: The folder that contains ``train`` and ``val``.
        validation: Share of ``train`` to validate on; 0 for no validation split, as in the papers.
        split_seed: Seed of the validation split.
        augmentation: Augmentation of the training examples; ``None`` for none.
    """

    kinds: ClassVar[dict[str, Sequence[str]]]

    path: str
    validation: float = 0.1
    split_seed: int = 0
    augmentation: DenseAugmentation | None = None
    _: KW_ONLY
    batch_size: int | None = 8
    eval_batch_size: int = 8

    def load(self) -> dict[str, Split]:
        """Find the files; images are read on demand."""
        train = self._folder("train")
        splits: dict[str, Split] = {"train": train, "test": self._folder("val")}
        parts = held_out(len(train), self.validation, self.split_seed)
        if "val" in parts:
            splits |= {name: Subset(train, indices.tolist()) for name, indices in parts.items()}
        if self.augmentation is not None:
            splits["train"] = Augmented(splits["train"], self.augmentation, self.seed)
        return splits

    def _folder(self, split: str) -> NpyFolder:
        folder = Path(self.path) / split
        if not folder.is_dir():
            layout = ",".join("|".join(names) for names in self.kinds.values())
            raise FileNotFoundError(
                f"data.path={self.path} has no folder {split}; it must hold "
                f"{{train,val}}/{{{layout}}}/{{0,1,…}}.npy as MTAN prepared them."
            )
        # Folder names differ between distributions: take the first that exists.
        kinds = {
            key: next((name for name in names if (folder / name).is_dir()), names[0])
            for key, names in self.kinds.items()
        }
        return NpyFolder(folder, kinds)


class NYUv2(Mtan):
    """NYUv2: 795 training and 654 test images of indoor scenes, 288×384.

    ``inputs`` ``[3, h, w]`` in [0, 1]; ``segmentation`` ``[h, w]``: 13 classes, −1 where unlabelled; ``depth``
    ``[1, h, w]`` in metres, 0 where invalid; ``normals`` ``[3, h, w]``: unit vectors, zero where invalid. (Indoor
    Segmentation and Support Inference from RGBD Images, 2012.) The arguments are those of :class:`Mtan`.
    """

    kinds: ClassVar[dict[str, Sequence[str]]] = {
        "inputs": ["image"],
        "segmentation": ["label"],
        "depth": ["depth"],
        "normals": ["normal"],
    }


class Cityscapes(Mtan):
    """Cityscapes: 2975 training and 500 test images of street scenes, 128×256.

    ``inputs`` ``[3, h, w]`` in [0, 1]; ``segmentation`` ``[h, w]``: 7 classes, −1 where unlabelled; ``depth``
    ``[1, h, w]``: inverse depth from 0 to about 0.49, 0 where invalid. (The Cityscapes Dataset, 2016.) The
    arguments are those of :class:`Mtan`.
    """

    kinds: ClassVar[dict[str, Sequence[str]]] = {
        "inputs": ["image"],
        "segmentation": ["label_7", "label"],
        "depth": ["depth"],
    }
