"""Prepares the command line for Hydra, so that paths need no Hydra quoting."""

import re
import sys
from collections.abc import Sequence
from itertools import groupby

from multitask.errors import ConfigError

# Paths that are never swept over: a comma is part of the path.
FOLDERS = ("hydra.run.dir", "hydra.sweep.dir", "replace", "output")
# Paths that -m can sweep over: a comma separates values.
FILES = ("ckpt_path", "init_from", "data.path", "paths.data", "paths.logs")

# One entry of a mapping, `name:number`, as the whole value of a key.
_ENTRY = re.compile(r"(\+{0,2}[\w.]+)=\w+:[-+.\deE]+")


def prepared(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with paths quoted, so that Hydra takes them literally.

    Hydra's grammar gives ``=``, ``,``, brackets and ``~`` in a value a meaning of their own. ``-m`` is moved to the
    front: between overrides, Hydra's parser would reject the overrides after it as unknown options.
    """
    flags = [argument for argument in arguments if argument in ("-m", "--multirun")]
    rest = rejoined([argument for argument in arguments if argument not in flags])
    return flags + [_quoted_path(argument, bool(flags)) for argument in rest]


def asked(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with ``tags=ask`` replaced by an answer from the terminal, one for all jobs of a sweep."""
    if "tags=ask" not in arguments:
        return list(arguments)
    if not sys.stdin.isatty():
        raise ConfigError("tags=ask asks at the terminal, and there is none; set tags=[…].")
    words = [word.strip() for word in input("tags, separated by commas: ").split(",")]
    answer = f"tags=[{','.join(quoted(word) for word in words if word)}]"
    return [answer if argument == "tags=ask" else argument for argument in arguments]


def rejoined(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with mappings joined again that the shell's brace expansion has split.

    bash turns ``weighting.weights={left:0.3,right:0.7}`` into ``weighting.weights=left:0.3`` and
    ``weighting.weights=right:0.7``; Hydra would keep only the last.
    """
    found: list[str] = []
    for key, group in groupby(arguments, key=lambda argument: (m := _ENTRY.fullmatch(argument)) and m[1]):
        if key is None:
            found += group
        else:
            found.append(f"{key}={{{','.join(argument.partition('=')[2] for argument in group)}}}")
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
    """Return a string quoted by the rules of Hydra's grammar."""
    # Within quotes, only a backslash before a quote is an escape, the closing quote included.
    ending = len(value) - len(value.rstrip("\\"))
    body = re.sub(r"(\\*)'", lambda found: found[1] * 2 + r"\'", value)
    return f"'{body}{chr(92) * ending}'"
