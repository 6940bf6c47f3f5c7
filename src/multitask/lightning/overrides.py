"""Hooks that a subclass may extend, but not replace."""

from inspect import unwrap
from types import FunctionType


def check_extends(cls: type, base: type, hooks: tuple[str, ...]) -> None:
    """Check that a class which defines one of its base's hooks calls the base's.

    Lightning's own hooks are empty, so that few call them; a hook in which training takes place would be lost
    in silence.

    Args:
        cls: The class.
        base: The class whose hooks do something.
        hooks: Their names.

    Raises:
        TypeError: If it does not.
    """
    bases = {"super", *(c.__name__ for c in cls.__mro__[1:])}
    for name in hooks:
        own = unwrap(cls.__dict__[name]) if name in cls.__dict__ else None
        if isinstance(own, FunctionType) and not bases & set(own.__code__.co_names):
            raise TypeError(
                f"{cls.__name__}.{name} replaces a hook that {base.__name__} needs; call super().{name}(...) in it."
            )
