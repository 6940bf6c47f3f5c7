"""Train one network on several losses: any weighting turns losses into the ``.grad`` of every parameter.

``Step`` does this in a plain training loop; ``MultiLossModule`` does it in a LightningModule. Names are imported
lazily: the library needs torch and torchjd, and Lightning only for ``MultiLossModule``. Names not listed here are
private.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING

from multitask.aliases import Finder

if TYPE_CHECKING:
    from multitask.gradients.task_gradients import TaskGradients
    from multitask.lightning.module import MultiLossModule
    from multitask.step import Step, StepResult
    from multitask.weighting.base import Combiner, JacobianMethod, Scalarization, WeightedMethod
    from multitask.weighting.cagrad import CAGrad
    from multitask.weighting.famo import FAMO
    from multitask.weighting.mgda import MGDA
    from multitask.weighting.pcgrad import PCGrad
    from multitask.weighting.upgrad import UPGrad

__all__ = [
    "FAMO",
    "MGDA",
    "CAGrad",
    "Combiner",
    "JacobianMethod",
    "MultiLossModule",
    "PCGrad",
    "Scalarization",
    "Step",
    "StepResult",
    "TaskGradients",
    "UPGrad",
    "WeightedMethod",
]

_HOMES = {
    "multitask.gradients.task_gradients": ("TaskGradients",),
    "multitask.lightning.module": ("MultiLossModule",),
    "multitask.step": ("Step", "StepResult"),
    "multitask.weighting.base": ("Combiner", "JacobianMethod", "Scalarization", "WeightedMethod"),
    "multitask.weighting.cagrad": ("CAGrad",),
    "multitask.weighting.famo": ("FAMO",),
    "multitask.weighting.mgda": ("MGDA",),
    "multitask.weighting.pcgrad": ("PCGrad",),
    "multitask.weighting.upgrad": ("UPGrad",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

sys.meta_path.append(Finder())


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
