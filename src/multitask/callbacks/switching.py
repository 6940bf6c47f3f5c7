"""Checks for callbacks that switch losses off during a run."""

from lightning import LightningModule

from multitask.errors import ConfigError
from multitask.lightning.module import MultiLossModule
from multitask.weighting.base import JacobianMethod


def check_switching(key: str, module: LightningModule) -> None:
    """Allow the module to switch losses off; raise ``ConfigError`` if the weighting needs every loss.

    ``key`` is the callback's key in the config.
    """
    assert isinstance(module, MultiLossModule)
    if isinstance(module.weighting, JacobianMethod) and module.weighting.rows == "example":
        raise ConfigError(
            f"{key} switches tasks off, and the weighting weighs the losses of all examples and tasks against one "
            f"another; set {key}=null, or choose another weighting."
        )
    module.switchable = True
