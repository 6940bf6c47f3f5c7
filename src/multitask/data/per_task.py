"""One data set per task: batches that hold examples of each, labelled for the tasks of their own set."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from itertools import accumulate
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.utils.data import Dataset

from multitask.data.base import Batches, DataModule, Lazy, Split
from multitask.data.loading import Arrays, Loader
from multitask.randomness import derived_seed

Rule = Literal["cycle", "shortest", "proportional", "sampled"]
MISSING = -100
# A batch is drawn from all sources, and an epoch has as many as there are in all examples.
_TOGETHER = ("proportional", "sampled")


@dataclass(eq=False)
class PerTask(Lazy):
    """Several data sets in one, each with targets of its own.

    A target is called as its source where the source has only that one, ``<source>/<target>``
    elsewhere. In examples of other sources it is missing: NaN, or −100 for classes, so that its task
    wants ``missing: true``. Validation and test go through every example once.

    Args:
        sources: The data sets by name.
        rule: How training batches are made. ``cycle``: ``batch_size`` examples of each source, the
            shorter ones gone through again until the longest ends; ``shortest``: the same until the
            shortest ends; ``proportional``: as many in all, drawn from all sources together, each
            example once per epoch; ``sampled``: as many in all, each from a source that is drawn by ``ratios`` or
            ``temperature``, in as many batches as ``proportional`` makes of them.
        targets: The targets that tasks want: sources that have none of them are left out; ``None``
            for all.
        batch_size: Examples of each source, process and training batch; ``None`` for all at once.
        eval_batch_size: See :class:`~multitask.data.base.DataModule`.
        seed: See there.
        num_workers: See there.
        temperature: Of ``sampled``: a source of n training examples is drawn with probability ∝ n^(1/T), so that 1 is
            in proportion to the sizes, and the larger, the more evenly.
        ratios: Of ``sampled``, in place of a temperature: what each source's probability is proportional to, by name.

    Raises:
        ValueError: If there is no source, the rule is not known, or the others do not fit it.
    """

    sources: Mapping[str, DataModule]
    rule: Rule = "cycle"
    targets: Sequence[str] | None = None
    temperature: float = 1.0
    ratios: Mapping[str, float] | None = None
    _: KW_ONLY
    batch_size: int | None = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sources:
            raise ValueError("data.sources is empty; name at least one data set.")
        if self.rule not in get_args(Rule):
            raise ValueError(
                f"data.rule={self.rule} is not known; choose one of {', '.join(get_args(Rule))}."
            )
        _check_sampling(self.rule, self.temperature, self.ratios, list(self.sources))
        self._sizes: list[int] = []
        self._shares: list[float] = []

    def load(self) -> dict[str, Split]:
        """Load the sources and join them split by split.

        Raises:
            ValueError: If the sources have not the same splits or inputs, or none has a target in demand.
        """
        for name, source in self.sources.items():
            try:
                source.setup()
            except (FileNotFoundError, ValueError) as error:
                raise type(error)(str(error).replace("data.", f"data.sources.{name}.", 1)) from error
        kept = {name: s for name, s in self.sources.items() if self._wanted(_Part(name, s.splits["train"]))}
        if not kept:
            raise ValueError(
                f"data.sources has none of the targets {', '.join(self.targets or [])}; it has "
                + ", ".join(
                    key for n, s in self.sources.items() for key in _Part(n, s.splits["train"]).blanks
                )
            )
        first, *others = kept
        for name in others:
            if set(kept[name].splits) != set(kept[first].splits):
                raise ValueError(
                    f"data.sources.{name} has the splits {', '.join(kept[name].splits)} and data.sources.{first} "
                    f"{', '.join(kept[first].splits)}; give them the same."
                )
        parts = {
            split: [_Part(name, source.splits[split]) for name, source in kept.items()]
            for split in kept[first].splits
        }
        self._sizes = [part.size for part in parts["train"]]
        self._shares = [
            part.size ** (1 / self.temperature) if self.ratios is None else float(self.ratios[part.name])
            for part in parts["train"]
        ]
        return {split: join(of_split) for split, of_split in parts.items()}

    def _wanted(self, part: "_Part") -> bool:
        return self.targets is None or any(key in self.targets for key in part.blanks)

    def loader(self, split: str, *, training: bool = False) -> Batches:
        """Return batches of one split; by the rule where ``training`` is set."""
        if not training:
            return super().loader(split)
        self.setup()
        collate = self.collate_fn or self.collate
        options = {"collate": collate, **self.order(training)}
        return JointLoader(
            self.placed(split), self._sizes, self.rule, self.batch_size, shares=self._shares, **options
        )


class JointLoader(Loader):
    """Batches of several sources that lie one after the other, made by a rule; resumable as any loader.

    Args:
        data: All sources' examples, source by source.
        sizes: How many examples each source has.
        rule: See :class:`PerTask`.
        each: Examples of each source, rank and batch; ``None`` for all at once.
        shuffle: Whether to draw a new order each epoch, or to keep that of the first.
        shares: What the probability of each source is proportional to, where the rule is ``sampled``.
    """

    def __init__(
        self,
        data: Split,
        sizes: Sequence[int],
        rule: Rule,
        each: int | None,
        *,
        shuffle: bool = True,
        shares: Sequence[float] = (),
        **options: Any,
    ) -> None:
        # Without a new order each epoch it is still mixed: its first batches have examples of all sources.
        super().__init__(data, each and each * len(sizes), shuffle=True, **options)
        self._reshuffled = shuffle
        self._sizes = list(sizes)
        self._rule = rule
        self._shares = list(shares)
        self._chunks = [each * self.world_size if each else size for size in sizes]

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next pass."""
        super().set_epoch(epoch if self._reshuffled else 0)

    def __len__(self) -> int:
        if self._rule in _TOGETHER:
            return super().__len__()
        lengths = [
            self.batches_of(size, chunk) for size, chunk in zip(self._sizes, self._chunks, strict=True)
        ]
        return max(lengths) if self._rule == "cycle" else min(lengths)

    def smallest(self, processes: int) -> int:
        """Return how many examples a process's smallest batch has; all but the longest source fill theirs."""
        if self._rule in _TOGETHER or len(self._sizes) == 1:
            return super().smallest(processes)
        return self.batch_size // len(self._sizes)

    def _batches(self) -> list[Tensor]:
        if self._rule == "proportional":
            return super()._batches()
        if self._rule == "sampled":
            return [whole.tensor_split(self.world_size)[self.rank] for whole in self._sampled()]
        chunks = [self._of_source(i) for i in range(len(self._sizes))]
        return [
            torch.cat([chunk.tensor_split(self.world_size)[self.rank] for chunk in of_batch])
            for of_batch in zip(*chunks, strict=True)
        ]

    def _sampled(self) -> list[Tensor]:
        """Return the indices of each batch of this epoch, on all processes together."""
        generator = torch.Generator().manual_seed(derived_seed("sources", self.seed, self.epoch))
        count = min(self.examples, len(self) * self.batch_size * self.world_size)
        drawn = torch.tensor(self._shares, dtype=torch.float64).multinomial(count, True, generator=generator)
        indices = torch.empty(count, dtype=torch.long)
        for source, size in enumerate(self._sizes):
            places = (drawn == source).nonzero().flatten()
            rounds = -(-len(places) // size)
            order = [self._permutation(source, i) for i in range(rounds)]
            if order:
                indices[places] = sum(self._sizes[:source]) + torch.cat(order)[: len(places)]
        return list(indices.split(self.batch_size * self.world_size))

    def _of_source(self, source: int) -> list[Tensor]:
        """Return the indices that a source gives to each batch of this epoch."""
        size, chunk, start = self._sizes[source], self._chunks[source], sum(self._sizes[:source])
        rounds = -(-len(self) * chunk // size)
        order = torch.cat([start + self._permutation(source, i) for i in range(rounds)])
        # The longest source ends where its examples end; the others fill their part of every batch.
        ends = -(-size // chunk) == len(self) and not self.drop_last
        wanted = size if ends else len(self) * chunk
        return list(order[:wanted].split(chunk))

    def _permutation(self, source: int, number: int) -> Tensor:
        seed = derived_seed("order", self.seed, self.epoch, source, number)
        return torch.randperm(self._sizes[source], generator=torch.Generator().manual_seed(seed))


def _check_sampling(
    rule: Rule, temperature: float, ratios: Mapping[str, float] | None, sources: Sequence[str]
) -> None:
    if rule != "sampled" and (temperature != 1.0 or ratios is not None):
        key = "ratios" if ratios is not None else "temperature"
        raise ValueError(f"data.{key} does nothing with data.rule={rule}; set data.rule=sampled.")
    if temperature <= 0:
        raise ValueError(f"data.temperature={temperature} has to be positive.")
    if ratios is None:
        return
    if temperature != 1.0:
        raise ValueError("data.ratios and data.temperature both say how sources are drawn; give one of them.")
    if set(ratios) != set(sources):
        raise ValueError(
            f"data.ratios names {', '.join(ratios)}; give a number for each of {', '.join(sources)}."
        )
    if min(ratios.values()) <= 0:
        raise ValueError(
            f"data.ratios={dict(ratios)}: each has to be positive; leave out the tasks of a source."
        )


class _Part:
    """One source's examples of one split, with its targets' names in the joint batch."""

    def __init__(self, name: str, split: Split) -> None:
        self.name = name
        self.split = split
        first: Arrays = {k: v[0] for k, v in split.items()} if isinstance(split, Mapping) else split[0]
        self.size = len(split["inputs"]) if isinstance(split, Mapping) else len(split)  # type: ignore[arg-type]
        self.inputs = first.pop("inputs")
        targets = [key for key in first if not key.startswith("mask/")]
        self._names = {key: name if len(targets) == 1 else f"{name}/{key}" for key in targets}
        self._names |= {
            key: f"mask/{self._names[key.removeprefix('mask/')]}" for key in first if key not in targets
        }
        self.blanks = {self._names[key]: _blank(name, key, value) for key, value in first.items()}
        """The missing value of each target in an example of another source."""

    def renamed(self, arrays: Mapping[str, Tensor]) -> Arrays:
        """Return inputs and targets under their names in the joint batch."""
        return {self._names.get(key, key): value for key, value in arrays.items()}


def join(parts: Sequence[_Part]) -> Split:
    """Return all examples, source by source: tensors where all lie in memory, else a data set.

    Raises:
        ValueError: If the inputs are not of one shape and type.
    """
    first = parts[0]
    for part in parts:
        if part.inputs.shape != first.inputs.shape or part.inputs.dtype != first.inputs.dtype:
            raise ValueError(
                f"data.sources.{part.name} has inputs {list(part.inputs.shape)} of {part.inputs.dtype} and "
                f"data.sources.{first.name} {list(first.inputs.shape)} of {first.inputs.dtype}; give them the same."
            )
    if not all(isinstance(part.split, Mapping) for part in parts):
        return Joined(parts)
    joined: dict[str, list[Tensor]] = {}
    for part in parts:
        assert isinstance(part.split, Mapping)
        given = part.renamed(part.split)
        joined.setdefault("inputs", []).append(given["inputs"])
        for other in parts:
            for key, blank in other.blanks.items():
                joined.setdefault(key, []).append(
                    given[key] if other is part else blank.expand(part.size, *blank.shape)
                )
    return {key: torch.cat(tensors) for key, tensors in joined.items()}


class Joined(Dataset[Arrays]):
    """Examples of several sources, one after the other, read when they are needed."""

    def __init__(self, parts: Sequence[_Part]) -> None:
        self._parts = list(parts)
        self._ends = list(accumulate(part.size for part in parts))

    def __len__(self) -> int:
        return self._ends[-1]

    def set_epoch(self, epoch: int) -> None:
        """Tell the sources that change from epoch to epoch."""
        for part in self._parts:
            if hasattr(part.split, "set_epoch"):
                part.split.set_epoch(epoch)

    def __getitem__(self, index: int) -> Arrays:
        number = bisect_right(self._ends, index)
        part = self._parts[number]
        own = index - (self._ends[number] - part.size)
        item = (
            {k: v[own] for k, v in part.split.items()} if isinstance(part.split, Mapping) else part.split[own]
        )
        blanks = {key: blank for other in self._parts for key, blank in other.blanks.items()}
        given = part.renamed(item)
        return {"inputs": given.pop("inputs")} | blanks | given


def _blank(source: str, key: str, value: Tensor) -> Tensor:
    if value.dtype == torch.bool:
        return torch.zeros_like(value)
    if value.is_floating_point():
        return torch.full_like(value, torch.nan)
    if value.dtype not in (torch.int16, torch.int32, torch.int64):
        raise ValueError(
            f"data.sources.{source}: '{key}' is {value.dtype}, which cannot mark what is missing."
        )
    return torch.full_like(value, MISSING)
