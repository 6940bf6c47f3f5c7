"""Error messages of one sentence that name the config key and the fix."""

import difflib
import errno
import re
import signal
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from multitask.evaluation.errors import ComparisonError
from multitask.places import CONFIGS

# Errors of the operating system for a folder that is full, read-only, not permitted, or not a folder.
_UNWRITABLE = {
    getattr(errno, name)
    for name in ("ENOSPC", "EDQUOT", "EROFS", "EACCES", "EPERM", "EFBIG", "ENOTDIR", "EISDIR", "ENAMETOOLONG")
    if hasattr(errno, name)
}


class ConfigError(Exception):
    """A config that cannot work; the message is one sentence for the user."""


class RunFailed(Exception):
    """A run that ended without results; its ``run.json`` has the reason."""


class RunInterrupted(BaseException):
    """A run that a signal stopped, and the checkpoint to resume from; ``None`` if nothing was saved yet.

    Like ``KeyboardInterrupt`` it is not an ``Exception``, so that library code that handles its own errors does not
    catch it.
    """

    def __init__(self, number: int, checkpoint: str | None) -> None:
        self.number = number
        resume = f"resume with ckpt_path={checkpoint} and the same overrides"
        more = resume if checkpoint else "nothing was saved yet"
        super().__init__(f"stopped by {signal.Signals(number).name}; {more}")


def choices(wrong: str, known: Iterable[str], most: int = 1) -> str:
    """Return ``did you mean …? Choices: …``, with at most ``most`` suggestions, or the choices alone."""
    names = sorted(known)
    close = [f"'{name}'" for name in difflib.get_close_matches(wrong, names, n=most)]
    listed = f"hoices: {', '.join(names)}."
    return f"did you mean {' or '.join(close)}? C{listed}" if close else f"c{listed}"


def one_sentence(error: BaseException) -> str | None:
    """Return the message of an error caused by the user's config; ``None`` for any other error."""
    match error:
        case ConfigError() | ComparisonError() | RunFailed() | RunInterrupted() | FloatingPointError():
            return str(error)
        case OverrideParseException():
            return _unparsable(error)
        case MissingConfigException():
            return _missing_group(error)
        case InstantiationException():
            return _instantiation(error)
        case ConfigCompositionException() if isinstance(error.__cause__, OmegaConfBaseException):
            return _unknown_key(error.__cause__) or on_one_line(f"{error} {error.__cause__}")
        case OmegaConfBaseException():
            return _unknown_key(error) or on_one_line(error)
        case HydraException():
            return on_one_line(error)
        case Exception() if type(error).__name__ == "MisconfigurationException":
            return on_one_line(error)  # Lightning's, matched by name since importing it takes seconds
        case OSError() if error.errno in _UNWRITABLE:
            return (
                f"cannot write {error.filename or 'a file'}: {error.strerror}; choose another folder with "
                "hydra.run.dir=… or paths.logs=…"
            )
    return None


def explained(error: BaseException, *library: type[Exception]) -> str | None:
    """Return :func:`one_sentence`, or the message of an error that libraries raise for values that they cannot use."""
    return one_sentence(error) or (on_one_line(error) if isinstance(error, library) else None)


def _instantiation(error: InstantiationException) -> str:
    cause: BaseException = error
    # An error says more than its cause, unless it is an import error.
    while isinstance(cause, InstantiationException | ImportError) and cause.__cause__ is not None:
        cause = cause.__cause__
    if isinstance(cause, ConfigError):
        return str(cause)
    _, marked, key = str(error).partition("full_key: ")
    sentence = on_one_line(cause)
    return f"{key.strip()}: {sentence}" if marked and not sentence.startswith(key.strip()) else sentence


def _missing_group(error: MissingConfigException) -> str:
    name = error.missing_cfg_file or ""
    if error.options is not None:
        group, _, choice = name.rpartition("/")
        return f"{group}={choice} is unknown; {choices(choice, error.options)}"
    group, _, choice = name.partition("/")
    # Hydra does not list the choices of a group that takes several, but it lists the search path.
    folders = [Path(root) / group for root in re.findall(r"path=file://([^\n]+)", str(error))]
    known = {
        file.relative_to(folder).with_suffix("").as_posix()
        for folder in folders
        for file in folder.rglob("*.yaml")
    }
    if not choice or not known:
        return on_one_line(str(error).partition("Config search path")[0])
    beside = {file for file in known if file.rpartition("/")[0] == choice.rpartition("/")[0]}
    return f"{group}=[{choice}] is unknown; {choices(choice, beside or known)}"


def _unparsable(error: OverrideParseException) -> str:
    what = on_one_line(error.message).partition(" See https")[0]
    return f"the override {error.override} cannot be read ({what}); write key=value, and quote special characters."


def _unknown_key(error: OmegaConfBaseException) -> str | None:
    parent: Any = error.parent_node
    if error.key is None or not isinstance(parent, DictConfig):
        return None
    full_key = error.full_key or str(error.key)
    where = full_key.rpartition(".")[0]
    if str(error.key) in parent:
        return None
    keys = {str(k) for k in parent if str(k) != "hydra"}
    if not where:  # also groups such as task, whose choices are merged under another key
        keys |= {folder.name for folder in CONFIGS.iterdir() if folder.is_dir()} - {"hydra", full_key}
    target = parent.get("_target_")
    return (
        f"{full_key} is not a key of {where or 'the config'}; {choices(str(error.key), keys, 1 if where else 2)} "
        f"Write +{full_key}=… to add it{f', if {target} takes it' if target else ''}."
    )


def on_one_line(said: object) -> str:
    """Return a library's message, or another text, without line breaks."""
    return " ".join(str(said).split())


def check_names(key: str, names: Iterable[str], known: Sequence[str]) -> None:
    """Raise :class:`ConfigError` for the first unknown name."""
    for name in names:
        if name not in known:
            raise ConfigError(f"{key}.{name}: there is no task '{name}'; {choices(name, known)}")
