"""Office-31: one task per domain, each with its own images."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path

import torch

from multitask.data.base import Lazy, Split
from multitask.data.files import ImageFiles
from multitask.data.loading import SPLITS, split_indices
from multitask.losses.counts import DEFAULT_IGNORE_INDEX
from multitask.randomness import derived_seed

DOMAINS = ("amazon", "dslr", "webcam")
_ENDINGS = {".jpg", ".jpeg", ".png"}


@dataclass(eq=False)
class Office31(Lazy):
    """4110 images of 31 classes of office objects in three domains (Adapting Visual Category Models, 2010).

    ``inputs`` ``[3, h, w]`` in [0, 1]; each domain ``[]``: the class, or −100 for images of other domains. A
    batch mixes the domains in proportion to their size, and each task learns from its own images.

    Args:
        path: The folder that contains ``<domain>/images/<class>/*.jpg`` or ``<domain>/<class>/*.jpg``.
        domains: The domains to read, each the target of a task; ``None`` for all.
        split: Shares of each domain for train, validation and test.
        split_seed: Seed of the split: fixed, so that runs of all seeds share one test set.
        height, width: The size of the images in pixels.
    """

    path: str
    domains: Sequence[str] | None = None
    split: Sequence[float] = (0.6, 0.2, 0.2)
    split_seed: int = 0
    height: int = 224
    width: int = 224
    _: KW_ONLY
    batch_size: int | None = 64
    eval_batch_size: int = 64

    def load(self) -> dict[str, Split]:
        """List the images, which are read on demand."""
        parts: dict[str, list[tuple[Path, str, int]]] = {name: [] for name in SPLITS}
        expected: list[str] | None = None
        domains = list(DOMAINS if self.domains is None else self.domains)
        for domain in domains:
            classes, files = self._domain(domain)
            expected = expected or classes
            if classes != expected:
                odd = sorted(set(classes) ^ set(expected))
                raise ValueError(
                    f"data.path={self.path}: {domain} and {domains[0]} differ in {', '.join(odd)}."
                )
            seed = derived_seed(domain, self.split_seed)
            for name, chosen in split_indices(len(files), self.split, seed).items():
                parts[name] += [files[i] for i in chosen.tolist()]
        return {name: self._images(files, domains) for name, files in parts.items() if files}

    def _images(self, files: Sequence[tuple[Path, str, int]], domains: Sequence[str]) -> ImageFiles:
        """Return images, each labelled only for the task of its domain."""
        targets = {
            name: torch.tensor(
                [label if name == domain else DEFAULT_IGNORE_INDEX for _, domain, label in files]
            )
            for name in domains
        }
        return ImageFiles([file for file, _, _ in files], targets, (self.height, self.width))

    def _domain(self, domain: str) -> tuple[list[str], list[tuple[Path, str, int]]]:
        """Return the class names, and each image with its domain and class, sorted by name."""
        folder = Path(self.path) / domain
        folder = folder / "images" if (folder / "images").is_dir() else folder
        classes = (
            sorted(entry.name for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else []
        )
        files = [
            (file, domain, label)
            for label, name in enumerate(classes)
            for file in sorted((folder / name).iterdir())
            if file.suffix.lower() in _ENDINGS
        ]
        if not files:
            raise FileNotFoundError(
                f"data.path={self.path} has no images of {domain}; it must hold "
                f"{domain}/images/<class>/*.jpg."
            )
        return classes, files
