"""One row of the table: a method at one problem."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from multitask.benchmark.methods import Make, Method
from multitask.benchmark.problems import Problem
from multitask.benchmark.reference import Reference
from multitask.benchmark.timing import Effort, interleaved, peak_mib

COLUMNS = ("case", "trunk", "tasks", "batch", "method", "ratio", "ms", "peak_mib", "max_error")


@dataclass(frozen=True)
class Cell:
    """One measurement."""

    case: str
    trunk: str
    tasks: int
    batch: int
    method: str
    ratio: float
    """Of the time to that of the case's first method."""
    ms: float
    peak_mib: float
    max_error: float

    def row(self) -> list[str]:
        """Return the numbers as they stand in the CSV."""
        numbers = (f"{self.ratio:.3f}", f"{self.ms:.4g}", f"{self.peak_mib:.4g}", f"{self.max_error:.2g}")
        return [self.case, self.trunk, str(self.tasks), str(self.batch), self.method, *numbers]


def measure(
    case: str,
    problem: Problem,
    methods: Mapping[str, Sequence[Make]],
    effort: Effort,
    by_example: bool = False,
) -> Iterator[Cell]:
    """Measure all methods at one problem; the first is what the others' times are relative to."""
    reference = Reference(problem, by_example)
    made: dict[str, list[Method]] = {}
    peaks: dict[str, list[float]] = {}
    for name, settings in methods.items():
        made[name] = [make(problem.copy()) for make in settings]
        peaks[name] = [peak_mib(method.step) for method in made[name]]
    times = interleaved({name: [m.step for m in of_name] for name, of_name in made.items()}, effort)
    unit = times[next(iter(methods))][0]
    for name, (seconds, best) in times.items():
        yield Cell(
            case,
            problem.name,
            len(problem.heads),
            problem.examples,
            name,
            seconds / unit,
            seconds * 1e3,
            peaks[name][best],
            reference.error(made[name][best].problem, made[name][best].meaning),
        )
