"""One row of the results: the cost of one method on one problem."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from typing import Self

from multitask.benchmark.methods import Make
from multitask.benchmark.problems import Problem
from multitask.benchmark.reference import Reference
from multitask.benchmark.timing import Effort, interleaved, peak_mib


@dataclass(frozen=True)
class Cell:
    """The measurements of one method.

    ``ratio``: time relative to the first method of the problem; ``ms``: milliseconds per step; ``peak_mib``: peak
    memory of the first step in MiB; ``max_error``: see :meth:`~multitask.benchmark.reference.Reference.error`.
    """

    case: str
    trunk: str
    tasks: int
    batch: int
    method: str
    ratio: float
    ms: float
    peak_mib: float
    max_error: float

    def row(self) -> list[str]:
        """Return the values as they are written to the CSV file."""
        numbers = (f"{self.ratio:.3f}", f"{self.ms:.4g}", f"{self.peak_mib:.4g}", f"{self.max_error:.2g}")
        return [*map(str, astuple(self)[: -len(numbers)]), *numbers]

    @classmethod
    def read(cls, row: Mapping[str, str]) -> Self:
        """Return the cell of a row of the CSV file."""
        return cls(**{field.name: field.type(row[field.name]) for field in fields(cls)})  # type: ignore[operator]


COLUMNS = tuple(field.name for field in fields(Cell))


def measure(
    case: str,
    problem: Problem,
    methods: Mapping[str, Sequence[Make]],
    effort: Effort,
    by_example: bool = False,
) -> Iterator[Cell]:
    """Measure all methods on one problem; of several settings of a method, the fastest counts."""
    reference = Reference(problem, by_example)
    made = {name: [make(problem.copy()) for make in settings] for name, settings in methods.items()}

    def error(name: str, setting: int) -> float:
        method = made[name][setting]
        return reference.error(method.problem, method.meaning)

    steps = {name: [method.step for method in settings] for name, settings in made.items()}
    return compare((case, problem.name, len(problem.heads), problem.examples), steps, error, effort)


def compare(
    problem: tuple[str, str, int, int],
    steps: Mapping[str, Sequence[Callable[[], object]]],
    error: Callable[[str, int], float],
    effort: Effort,
) -> Iterator[Cell]:
    """Measure memory, then time, of each method.

    ``problem``: case, trunk, number of tasks and batch size. ``steps``: the settings of each method; ratios are
    relative to the first method. ``error`` gets the name of a method and the index of its setting.
    """
    peaks = {name: [peak_mib(step) for step in settings] for name, settings in steps.items()}
    times = interleaved(steps, effort)
    unit, _ = next(iter(times.values()))
    for name, (seconds, setting) in times.items():
        cost = seconds / unit, seconds * 1e3, peaks[name][setting]
        yield Cell(*problem, name, *cost, error(name, setting))
