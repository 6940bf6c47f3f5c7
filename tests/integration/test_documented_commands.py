"""Every command in the README, the docs and the configs composes, and the README's training commands run."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

from multitask.run.resolvers import register
from tests.integration.script_runner import QUICK, ROOT, Scripts

CONFIGS = ROOT / "configs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = re.compile(r"python scripts/(\w+)\.py(.*)")
# Placeholders for the reader's choice, and an existing choice for each.
CHOICES = {
    "experiment=<name>": "experiment=abalone",
    "experiment=<a dense one>": "experiment=rooms",
    "experiment=<data set> task=[<data set>/<name>]": "experiment=abalone task=[abalone/sex]",
    "<the run's overrides>": "",
    "…/": "x/",
    "…": "",
}
# Keys of a script in addition to those of the run.
SCRIPT_KEYS = {"predict": ("split", "ids", "output"), "export": ("format", "dynamic", "output")}


def commands(text: str) -> Iterator[tuple[str, str]]:
    """Yield each command's script and its arguments, with placeholders replaced."""
    text = re.sub(r"\\\n *(# *)?", "", text)
    text = re.sub(r"`(python scripts/[^`]*)`", lambda code: "\n" + code[1].replace("\n", " ") + "\n", text)
    for line in text.splitlines():
        found = COMMAND.search(line)
        if found is None or not re.fullmatch(r"(#|\s|\.venv/bin/)*", line[: found.start()]):
            continue
        arguments = found[2]
        for written, meant in CHOICES.items():
            arguments = arguments.replace(written, meant)
        yield found[1], re.sub(r"<[^>]*>", "x", arguments)


def examples(folder: Path) -> list[str]:
    """Write the YAML files shown on the pages to ``folder``; return the override that adds it to the search path."""
    shown = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    for block in re.findall(r"```yaml\n(.*?)```", shown, re.DOTALL):
        task = re.search(r"^# @package tasks\.(\w+)\n.*?task=\[(?:.*,)?(\w+)/\1\]", block)
        named = re.match(r"# /my/configs/(\S+)\n", block)
        if task or named:
            path = folder / (f"task/{task[2]}/{task[1]}.yaml" if task else named[1])  # type: ignore[index]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block, encoding="utf-8")
    return [f"hydra.searchpath=[file://{folder}]"]


def choices(override: Override) -> list[str]:
    """Return one override per value of a sweep override."""
    if not override.is_sweep_override():
        return [override.input_line or ""]
    key = override.get_key_element()
    if override.is_choice_sweep() or override.is_range_sweep():
        return [f"{key}={value}" for value in override.sweep_string_iterator()]
    return [f"{key}={override.value().start}"]  # type: ignore[union-attr]


def check(script: str, arguments: str, searched: list[str], composed: set[tuple[str, ...]]) -> None:
    """Compose a command's configs: all first values, then all second ones, until each value has been used."""
    given = shlex.split(arguments, comments=True)
    if "--help" in given:
        return
    if "--config-dir" in given:
        at = given.index("--config-dir")
        del given[at : at + 2]
    if script in SCRIPT_KEYS:
        given = ["data=npz", *(a for a in given if a.partition("=")[0] not in SCRIPT_KEYS[script])]
    overrides = [
        choices(each) for each in OverridesParser.create().parse_overrides([a for a in given if a != "-m"])
    ]
    # These scripts take the keys of a run.
    name = "train" if script in ("eval", "trace", *SCRIPT_KEYS) else script
    for i in range(max(map(len, overrides), default=1)):
        job = (name, *(values[min(i, len(values) - 1)] for values in overrides))
        if job not in composed:
            compose(name, overrides=[*searched, *job[1:]])
            composed.add(job)


def documented(*files: Path) -> list[tuple[str, str]]:
    found = {command for file in files for command in commands(file.read_text(encoding="utf-8"))}
    return sorted(found)


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    register()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        yield examples(tmp_path_factory.mktemp("configs"))


@pytest.fixture(scope="module")
def composed() -> set[tuple[str, ...]]:
    """The configs composed so far, shared by all commands."""
    return set()


def page_commands() -> list[Any]:
    """Return the commands of the pages; those not in the README are slow."""
    first = documented(PAGES[0])
    return [
        pytest.param(*command, marks=() if command in first else pytest.mark.slow)
        for command in documented(*PAGES)
    ]


@pytest.mark.parametrize(("script", "arguments"), page_commands())
def test_page_commands_compose(
    script: str, arguments: str, searched: list[str], composed: set[tuple[str, ...]]
) -> None:
    assert (ROOT / "scripts" / f"{script}.py").is_file()
    check(script, arguments, searched, composed)


@pytest.mark.slow
@pytest.mark.parametrize(
    "file", sorted(CONFIGS.rglob("*.yaml")), ids=lambda file: str(file.relative_to(CONFIGS))
)
def test_config_opens_with_a_command_that_composes(
    file: Path, searched: list[str], composed: set[tuple[str, ...]]
) -> None:
    lines = file.read_text(encoding="utf-8").splitlines()
    opening = lines[1] if lines[0].startswith("# @package") else lines[0]
    assert list(commands(opening)), f"{file} opens with no command"
    for script, arguments in documented(file):
        check(script, arguments, searched, composed)


def runnable() -> list[str]:
    """Return the README's single runs on embedded data."""
    found = [arguments for script, arguments in documented(ROOT / "README.md") if script == "train"]
    return [each for each in found if not re.search(r"-m |\.npz|ckpt_path|/my/configs|left_again", each)]


@pytest.mark.slow
@pytest.mark.parametrize("arguments", runnable())
def test_readme_commands_run(arguments: str, scripts: Scripts) -> None:
    ran = scripts.run(*QUICK, *shlex.split(arguments, comments=True))
    assert ran.code == 0, ran.err
    assert ran.record["status"] == "completed"


@pytest.mark.parametrize(("weighting", "files", "changes"), [("upgrad", 12, 45), ("weighted_sum", 10, 30)])
def test_a_step_runs_through_few_files(weighting: str, files: int, changes: int, scripts: Scripts) -> None:
    ran = scripts.run(f"weighting={weighting}", script="trace")
    assert ran.code == 0, ran.err
    printed = ran.out.splitlines()[-1]
    assert printed in (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    found = [int(number) for number in re.findall(r"\d+", printed)]
    assert found[0] <= files
    assert found[1] <= changes
