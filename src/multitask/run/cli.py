"""The entry point of every script: ``hydra.main`` with one-sentence errors and an exit code for each outcome."""

import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial, wraps
from typing import Any

import hydra
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override
from omegaconf import DictConfig

from multitask.errors import ConfigError, RunInterrupted, one_sentence
from multitask.places import CONFIGS
from multitask.private import compose_once
from multitask.run.arguments import asked, prepared
from multitask.run.resolvers import register


def command(
    name: str, before: Callable[[], None] | None = None
) -> Callable[[Callable[[DictConfig], Any]], Callable[[], None]]:
    """Make a command from a function of a config; it reads ``sys.argv`` and prints errors as one sentence.

    Args:
        name: The name of the file in ``configs``.
        before: Called before Hydra composes the config.
    """

    def decorated(job: Callable[[DictConfig], Any]) -> Callable[[], None]:
        @hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=name)
        @wraps(job)
        def main(config: DictConfig) -> Any:
            # Inside hydra.main too: Hydra would print a line of its own above the sentence.
            with errors_as_sentences():
                return job(config)

        return partial(launch, main, before)

    return decorated


def launch(main: Callable[[], None], before: Callable[[], None] | None = None) -> None:
    """Run a ``hydra.main`` function, after ``before``; print an error of the config as one sentence and exit with 1."""
    register()
    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # it logs its font cache on import
    # With this, Hydra raises instead of printing the error and exiting.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    compose_once(check_groups)
    with errors_as_sentences():
        sys.argv[1:] = asked(prepared(sys.argv[1:]))
        if before is not None:
            before()
        main()


def check_groups(loader: ConfigLoader, overrides: Sequence[str]) -> None:
    """Refuse overrides that choose something other than a name from a group, such as ``scheduler=null``."""
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        group = override.key_or_group
        if "." in group or override.is_delete() or _chooses(override):
            continue
        # Groups with subfolders, such as task, have no options of their own.
        names, folders = loader.get_group_options(group), loader.list_groups(group)
        if names or folders:
            listed = ", ".join(names or [f"{folder}/…" for folder in folders])
            raise ConfigError(
                f"{override.input_line} chooses nothing from the group {group}; leave it out, or choose one of "
                f"{listed}."
            )


def _chooses(override: Override) -> bool:
    """Return whether all values can be names; mappings, and sweeps that are not lists, are left to Hydra."""
    value = override.value()
    values = value.list if isinstance(value, ChoiceSweep) else (isinstance(value, list) and value) or [value]
    return not any(isinstance(each, bool | int | float | None) for each in values)


@contextmanager
def errors_as_sentences() -> Iterator[None]:
    """Turn an error that one sentence explains into that sentence and an exit code.

    Raises:
        SystemExit: With code 128 + the signal's number if a signal stopped the run, else with 1.
    """
    try:
        yield
    except RunInterrupted as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":  # the other processes stop for the same reason
            print(f"error: {error}", file=sys.stderr)
        sys.exit(128 + error.number)
    except KeyboardInterrupt:
        sys.exit("error: stopped by Ctrl-C")
    except Exception as error:
        sentence = one_sentence(error)
        if sentence is None:
            raise
        sys.exit(f"error: {sentence}")
