"""The command line before Hydra sees it: paths need no quotes of Hydra's."""

import re
import sys
from collections.abc import Sequence

from multitask.errors import ConfigError

# A path or an address is one value even with a comma in it: these keys are never swept over.
FOLDERS = ("hydra.run.dir", "hydra.sweep.dir", "replace", "output")
# These can be swept over with -m, where a comma separates values.
FILES = ("ckpt_path", "init_from", "data.path", "paths.data", "paths.logs")

# A number by name, as in a mapping, where the whole value of a key should be.
_ENTRY = re.compile(r"(\+{0,2}[\w.]+)=(\w+:[-+.\deE]+)")


def prepared(arguments: Sequence[str]) -> list[str]:
    """Return the arguments, paths among them quoted so that Hydra takes them as they are.

    Hydra's grammar reads ``=``, ``,``, brackets and ``~`` in a value as its own signs. ``-m`` comes first:
    between overrides, Hydra's parser would take those behind it for options that it does not know.
    """
    flags = [argument for argument in arguments if argument in ("-m", "--multirun")]
    rest = rejoined([argument for argument in arguments if argument not in flags])
    return flags + [_quoted_path(argument, bool(flags)) for argument in rest]


def asked(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with ``tags=ask`` answered at the terminal: once, also for the jobs of a sweep.

    Raises:
        ConfigError: If there is no terminal.
    """
    if "tags=ask" not in arguments:
        return list(arguments)
    if not sys.stdin.isatty():
        raise ConfigError("tags=ask asks at the terminal, and there is none; set tags=[…].")
    words = [word.strip() for word in input("tags, separated by commas: ").split(",")]
    answer = f"tags=[{','.join(quoted(word) for word in words if word)}]"
    return [answer if argument == "tags=ask" else argument for argument in arguments]


def rejoined(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with those put together again that a shell made of one with braces.

    bash turns ``weighting.weights={left:0.3,right:0.7}`` into ``weighting.weights=left:0.3`` and
    ``weighting.weights=right:0.7``, of which Hydra would keep the last.
    """
    found: list[str] = []
    entries: list[str] = []
    last = ""
    for argument in [*arguments, ""]:
        entry = _ENTRY.fullmatch(argument)
        if entries and (entry is None or entry[1] != last):
            found.append(f"{last}={{{','.join(entries)}}}")
            entries = []
        if entry is not None:
            last = entry[1]
            entries.append(entry[2])
        elif argument:
            found.append(argument)
    return found


def _quoted_path(argument: str, sweeping: bool) -> str:
    key, sign, value = argument.partition("=")
    name = key.lstrip("+")
    if not sign or value in ("", "null") or re.fullmatch(r"(['\"]).*\1", value, re.DOTALL):
        return argument
    if name in FOLDERS or (name in FILES and not (sweeping and "," in value)):
        return f"{key}={quoted(value)}"
    return argument


def quoted(value: str) -> str:
    """Return a string as Hydra's grammar quotes it."""
    # Within quotes a backslash counts only before a quote, and so at the end.
    ending = len(value) - len(value.rstrip("\\"))
    body = re.sub(r"(\\*)'", lambda found: found[1] * 2 + r"\'", value)
    return f"'{body}{chr(92) * ending}'"
