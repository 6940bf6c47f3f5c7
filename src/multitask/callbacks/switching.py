"""Checks for callbacks that switch losses off during a run."""

from lightning import LightningModule

from multitask.errors import ConfigError
from multitask.lightning.module import MultiLossModule
from multitask.weighting.base import JacobianMethod


def check_switching(key: str, module: LightningModule) -> None:
    """Refuse a weighting that needs every loss; tell the module that losses may be absent.

    Args:
        key: The callback's key.
        module: The module to train.

    Raises:
        ConfigError: If the weighting weighs the losses of single examples.
    """
    assert isinstance(module, MultiLossModule)
    if isinstance(module.weighting, JacobianMethod) and module.weighting.rows == "example":
        raise ConfigError(
            f"{key} switches tasks off, and the weighting weighs the losses of all examples and tasks against one "
            f"another; set {key}=null, or choose another weighting."
        )
    module.switchable = True
