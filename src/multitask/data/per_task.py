"""One data set per task: batches mix their examples, each labelled only for the tasks of its own data set."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from multitask.data.base import Batches, DataModule, Lazy, Split
from multitask.data.joint_loader import JointLoader, Rule, check_rule
from multitask.data.loading import Arrays, count_of, example_of, missing_label


@dataclass(eq=False)
class PerTask(Lazy):
    """Several data sets combined into one, each with its own targets.

    A target has the name of its source if it is the source's only one, otherwise ``<source>/<target>``. In examples
    of other sources it is missing (NaN, or −100 for classes), so its task needs ``missing: true``. Validation and
    test use every example once. All inputs must have the same shape, or all be texts
    (:class:`multitask.data.text.Text`) of the same tokenizer.

    Args:
        sources: The data sets by name.
        rule: How training batches are drawn. ``cycle``: ``batch_size`` examples of each source, repeating shorter
            sources until the longest ends; ``shortest``: the same, until the shortest ends; ``proportional``: batches
            of the same total size, drawn from all sources together, each example once per epoch; ``sampled``: as many
            batches as ``proportional``, the source of each example drawn by ``ratios`` or ``temperature``; ``turns``:
            like ``cycle``, but each batch comes from one source, in turn.
        targets: The targets of the tasks; sources without any of them are omitted. ``None`` for all.
        batch_size: Examples per source, process and training batch; ``None`` for all examples.
        batch_sizes: Batch sizes of single sources, by name; not for ``proportional`` and ``sampled``.
        temperature: T of ``sampled``: a source of n training examples is drawn with probability ∝ n^(1/T). 1 draws in
            proportion to size; larger values draw more evenly.
        ratios: For ``sampled``, unnormalized probabilities of the sources by name, in place of a temperature.

    The other arguments are those of :class:`~multitask.data.base.DataModule`.

    Raises:
        ValueError: If there is no source, the rule is unknown, or an argument does not fit the rule.
    """

    sources: Mapping[str, DataModule]
    rule: Rule = "cycle"
    targets: Sequence[str] | None = None
    temperature: float = 1.0
    ratios: Mapping[str, float] | None = None
    batch_sizes: Mapping[str, int] | None = None
    _: KW_ONLY
    batch_size: int | None = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sources:
            raise ValueError("data.sources is empty; name at least one data set.")
        check_rule(self.rule, self.temperature, self.ratios, self.batch_sizes, list(self.sources))
        self._each: list[int | None] = []
        self._sizes: list[int] = []
        self._shares: list[float] = []

    def load(self) -> dict[str, Split]:
        """Load the sources and join them split by split."""
        for name, source in self.sources.items():
            try:
                source.setup()
            except (FileNotFoundError, ValueError) as error:
                raise type(error)(str(error).replace("data.", f"data.sources.{name}.", 1)) from error
        train = [_Part(name, source.splits["train"]) for name, source in self.sources.items()]
        kept = [part for part in train if self.targets is None or part.blanks.keys() & set(self.targets)]
        if not kept:
            raise ValueError(
                f"data.sources has none of the targets {', '.join(self.targets or [])}; it has "
                + ", ".join(key for part in train for key in part.blanks)
            )
        names = [part.name for part in kept]
        splits = self.sources[names[0]].splits
        for name in names:
            if (own := self.sources[name].splits).keys() != splits.keys():
                raise ValueError(
                    f"data.sources.{name} has the splits {', '.join(own)} and data.sources.{names[0]} "
                    f"{', '.join(splits)}; give them the same."
                )
        self._sizes = [part.size for part in kept]
        self._each = [(self.batch_sizes or {}).get(name, self.batch_size) for name in names]
        largest = max(self._sizes)  # the shares are relative to it, which no temperature is too small for
        self._shares = [(size / largest) ** (1 / self.temperature) for size in self._sizes]
        if self.ratios is not None:
            self._shares = [float(self.ratios[name]) for name in names]
        return {
            split: join([_Part(name, self.sources[name].splits[split]) for name in names]) for split in splits
        }

    def collate(self, examples: list[Any]) -> Any:
        """Collate examples as the first source does."""
        return next(iter(self.sources.values())).collate(examples)

    def loader(self, split: str, *, training: bool = False) -> Batches:
        """Return a loader of one split, which follows the rule if ``training``."""
        if not training:
            return super().loader(split)
        self.setup()
        options = {"collate": self.collate_fn or self.collate, **self.order(training)}
        return JointLoader(
            self.placed(split), self._sizes, self.rule, self._each, shares=self._shares, **options
        )


class _Part:
    """One source's examples of one split, with its targets' names in the joint batch."""

    def __init__(self, name: str, split: Split) -> None:
        self.name = name
        self.split = split
        first = example_of(split, 0)
        self.size = count_of(split)
        self.inputs = first.pop("inputs")
        # Text batches are padded: targets with one entry per token have the length of the text.
        tokens = len(self.inputs["input_ids"]) if isinstance(self.inputs, Mapping) else None
        first = {k: v[:0] if v.ndim == 1 and len(v) == tokens else v for k, v in first.items()}
        targets = [key for key in first if not key.startswith("mask/")]
        self._names = {key: name if len(targets) == 1 else f"{name}/{key}" for key in targets}
        self._names |= {
            key: f"mask/{self._names[key.removeprefix('mask/')]}" for key in first if key not in targets
        }
        self.blanks = {self._names[key]: _blank(name, key, value) for key, value in first.items()}
        """The missing value of each target, for examples of other sources."""

    def renamed(self, arrays: Mapping[str, Tensor]) -> Arrays:
        """Return inputs and targets by their names in the joint batch."""
        return {self._names.get(key, key): value for key, value in arrays.items()}


def join(parts: Sequence[_Part]) -> Split:
    """Concatenate the examples of all sources: as tensors if all are in memory, otherwise as a data set.

    Raises ``ValueError`` if the inputs differ in shape or dtype.
    """
    first = parts[0]
    for part in parts:
        if _kind(part.inputs) != _kind(first.inputs):
            raise ValueError(
                f"data.sources.{part.name} has inputs {_kind(part.inputs)} and data.sources.{first.name} "
                f"{_kind(first.inputs)}; give them the same."
            )
    if not all(isinstance(part.split, Mapping) for part in parts):
        return Joined(parts)
    blanks = {key: blank for part in parts for key, blank in part.blanks.items()}
    joined: dict[str, list[Tensor]] = {key: [] for key in ("inputs", *blanks)}
    for part in parts:
        assert isinstance(part.split, Mapping)
        missing = {key: blank.expand(part.size, *blank.shape) for key, blank in blanks.items()}
        for key, values in (missing | part.renamed(part.split)).items():
            joined[key].append(values)
    return {key: torch.cat(tensors) for key, tensors in joined.items()}


def _kind(inputs: Tensor | Mapping[str, Tensor]) -> str:
    """Describe inputs by shape and dtype, or several by name and dtype, since the lengths of texts vary."""
    if isinstance(inputs, Mapping):
        return ", ".join(f"{name} of {value.dtype}" for name, value in sorted(inputs.items()))
    return f"{list(inputs.shape)} of {inputs.dtype}"


class Joined(Dataset[Arrays]):
    """The concatenated examples of several sources, read on demand."""

    def __init__(self, parts: Sequence[_Part]) -> None:
        self._parts = list(parts)
        self._ends = list(accumulate(part.size for part in parts))
        self._blanks = {key: blank for part in parts for key, blank in part.blanks.items()}

    def __len__(self) -> int:
        return self._ends[-1]

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the sources that depend on it."""
        for part in self._parts:
            if hasattr(part.split, "set_epoch"):
                part.split.set_epoch(epoch)

    def __getitem__(self, index: int) -> Arrays:
        number = bisect_right(self._ends, index)
        part = self._parts[number]
        given = part.renamed(example_of(part.split, index - (self._ends[number] - part.size)))
        return {"inputs": given.pop("inputs")} | self._blanks | given


def _blank(source: str, key: str, value: Tensor) -> Tensor:
    if value.dtype == torch.bool:
        return torch.zeros_like(value)
    if not value.is_floating_point() and value.dtype not in (torch.int16, torch.int32, torch.int64):
        raise ValueError(
            f"data.sources.{source}: '{key}' is {value.dtype}, which cannot mark missing values."
        )
    return torch.full_like(value, missing_label(value))
