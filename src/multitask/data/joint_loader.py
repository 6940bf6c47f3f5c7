"""Training batches drawn from several data sets."""

import math
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from multitask.data.base import Split
from multitask.data.loading import Loader
from multitask.randomness import derived_seed

Rule = Literal["cycle", "shortest", "proportional", "sampled", "turns"]
# Rules that draw each batch from all sources together; an epoch has as many examples as all sources.
_TOGETHER = ("proportional", "sampled")


class JointLoader(Loader):
    """Loader that mixes several concatenated sources by a rule.

    Args:
        data: The examples of all sources, source by source.
        sizes: Number of examples per source.
        rule: See :class:`~multitask.data.per_task.PerTask`.
        each: Number of examples per rank and batch for each source; ``None`` for all of its examples.
        shuffle: Whether to draw a new order each epoch; otherwise every epoch has that of the first.
        shares: Unnormalized probability of each source, for the rule ``sampled``.
        options: See :class:`~multitask.data.loading.Loader`.
    """

    def __init__(
        self,
        data: Split,
        sizes: Sequence[int],
        rule: Rule,
        each: Sequence[int | None],
        *,
        shuffle: bool = True,
        shares: Sequence[float] = (),
        **options: Any,
    ) -> None:
        given = [count for count in each if count is not None]
        whole = (max if rule == "turns" else sum)(given) if len(given) == len(each) else None
        # shuffle=False keeps one order, which is still mixed so that the first batches have all sources.
        super().__init__(data, whole, shuffle=True, **options)
        self._reshuffled = shuffle
        self._sizes = list(sizes)
        self._rule = rule
        self._shares = list(shares)
        self._each = list(each)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, which the order depends on."""
        super().set_epoch(epoch if self._reshuffled else 0)

    def __len__(self) -> int:
        if self._rule in _TOGETHER:
            return super().__len__()
        rounds = self._rounds(self.world_size)
        return rounds * len(self._sizes) if self._rule == "turns" else rounds

    def _chunks(self, processes: int) -> list[int]:
        """Return the number of examples of each source per batch, over all processes."""
        pairs = zip(self._each, self._sizes, strict=True)
        return [size if each is None else each * processes for each, size in pairs]

    def _rounds(self, processes: int) -> int:
        """Return how many chunks of each source an epoch has."""
        pairs = zip(self._sizes, self._chunks(processes), strict=True)
        lengths = [self.batches_of(size, chunk) for size, chunk in pairs]
        return min(lengths) if self._rule == "shortest" else max(lengths)

    def _wanted(self, source: int, processes: int) -> int:
        """Return how many examples of a source an epoch uses; the longest source's last chunk may be incomplete."""
        size, chunk, rounds = self._sizes[source], self._chunks(processes)[source], self._rounds(processes)
        return size if -(-size // chunk) == rounds and not self.drop_last else rounds * chunk

    def smallest(self, processes: int) -> int:
        """Return the size of the smallest batch of a process, which is in the last round."""
        if self._rule in _TOGETHER:
            return super().smallest(processes)
        before = self._rounds(processes) - 1
        last = [
            (self._wanted(i, processes) - before * chunk) // processes
            for i, chunk in enumerate(self._chunks(processes))
        ]
        return min(last) if self._rule == "turns" else sum(last)

    def _batches(self) -> list[Tensor]:
        if self._rule == "proportional":
            return super()._batches()
        if self._rule == "sampled":
            return [whole.tensor_split(self.world_size)[self.rank] for whole in self._sampled()]
        chunks = []
        for i, size in enumerate(self._chunks(self.world_size)):
            order = self._order(i, self._wanted(i, self.world_size))
            whole = order.split(size) if len(order) else ()
            chunks.append([chunk.tensor_split(self.world_size)[self.rank] for chunk in whole])
        rounds = zip(*chunks, strict=True)
        return list(chain(*rounds)) if self._rule == "turns" else [torch.cat(of_batch) for of_batch in rounds]

    def _sampled(self) -> list[Tensor]:
        """Return the indices of each batch of this epoch, over all processes."""
        generator = torch.Generator().manual_seed(derived_seed("sources", self.seed, self.epoch))
        count = min(self.examples, len(self) * self.batch_size * self.world_size)
        drawn = torch.tensor(self._shares, dtype=torch.float64).multinomial(count, True, generator=generator)
        indices = torch.empty(count, dtype=torch.long)
        for source in range(len(self._sizes)):
            places = (drawn == source).nonzero().flatten()
            indices[places] = self._order(source, len(places))
        return list(indices.split(self.batch_size * self.world_size))

    def _order(self, source: int, count: int) -> Tensor:
        """Return ``count`` indices of a source's examples, one random order of them after another."""
        size = self._sizes[source]
        order = torch.empty(0, dtype=torch.long)
        for number in range(-(-count // size)):
            seed = derived_seed("order", self.seed, self.epoch, source, number)
            permutation = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
            order = torch.cat([order, permutation])
        return sum(self._sizes[:source]) + order[:count]


def check_rule(
    rule: Rule,
    temperature: float,
    ratios: Mapping[str, float] | None,
    batch_sizes: Mapping[str, int] | None,
    sources: Sequence[str],
) -> None:
    """Raise ``ValueError`` if the rule is unknown, or an argument is invalid or has no effect with it."""
    if rule not in get_args(Rule):
        raise ValueError(f"data.rule={rule} is unknown; choose one of {', '.join(get_args(Rule))}.")
    if batch_sizes and rule in _TOGETHER:
        raise ValueError(
            f"data.batch_sizes does nothing with data.rule={rule}, which draws from all sources together; set "
            "data.batch_size, or another rule."
        )
    for name, count in (batch_sizes or {}).items():
        if name not in sources:
            raise ValueError(f"data.batch_sizes names {name}; the sources are {', '.join(sources)}.")
        if not isinstance(count, int) or count < 1:
            raise ValueError(f"data.batch_sizes.{name}={count} must be a whole number of at least 1.")
    if rule != "sampled" and (temperature != 1.0 or ratios is not None):
        key = "ratios" if ratios is not None else "temperature"
        raise ValueError(f"data.{key} does nothing with data.rule={rule}; set data.rule=sampled.")
    if not isinstance(temperature, int | float) or not temperature > 0:
        raise ValueError(f"data.temperature={temperature} must be positive.")
    if ratios is None:
        return
    if temperature != 1.0:
        raise ValueError("data.ratios and data.temperature both set how sources are drawn; give only one.")
    if set(ratios) != set(sources):
        raise ValueError(
            f"data.ratios names {', '.join(ratios)}; give a number for each of {', '.join(sources)}."
        )
    if not all(isinstance(ratio, int | float) and 0 < ratio < math.inf for ratio in ratios.values()):
        raise ValueError(
            f"data.ratios={dict(ratios)}: each must be a positive number; to exclude a source, omit its tasks."
        )
