"""Hooks whose overrides must call ``super()``."""

from inspect import unwrap
from types import FunctionType

HOOKS = (
    "configure_callbacks",
    "training_step",
    "on_before_optimizer_step",
    "optimizer_step",
    "lr_scheduler_step",
    "on_train_batch_start",
    "on_train_batch_end",
    "on_train_epoch_end",
    "on_validation_start",
    "on_validation_epoch_end",
    "on_validation_end",
    "on_test_epoch_end",
    "on_save_checkpoint",
    "on_load_checkpoint",
)
"""The hooks that ``MultiLossModule`` needs for training."""


def replaced_hook(cls: type, base: type) -> str | None:
    """Return an error message if a class overrides a hook without calling ``super()``; otherwise ``None``.

    Lightning's own hooks are empty, so overrides often omit that call, which would silently disable ``base``.
    """
    bases = {"super", *(c.__name__ for c in cls.__mro__[1:])}
    for owner in cls.__mro__[: cls.__mro__.index(base)]:
        for name in HOOKS:
            own = unwrap(owner.__dict__[name]) if name in owner.__dict__ else None
            if isinstance(own, FunctionType) and not bases & set(own.__code__.co_names):
                hook = f"{owner.__name__}.{name}"
                return f"{hook} overrides {base.__name__}'s hook; call super().{name}(…) in it."
    return None
