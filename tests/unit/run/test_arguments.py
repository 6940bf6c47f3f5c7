"""Command-line arguments with paths and tags."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from multitask.errors import ConfigError
from multitask.run.arguments import asked, prepared, quoted

PATHS = st.text(st.sampled_from("ab'\"\\ ,=${}[]()~:#é\t"), max_size=8)


@given(PATHS)
def test_hydra_parses_a_quoted_string_unchanged(path: str) -> None:
    assert OverridesParser.create().parse_override(f"key={quoted(path)}").value() == path


@pytest.mark.parametrize("key", ["hydra.run.dir", "ckpt_path", "+data.path"])
def test_paths_need_no_quotes(key: str) -> None:
    path = "a b/c=1, (d)"
    (argument,) = prepared([f"{key}={path}"])
    assert OverridesParser.create().parse_override(argument).value() == path
    assert prepared([argument]) == [argument]


@pytest.mark.parametrize(
    "argument", ["seed=0,1", "ckpt_path=null", "weighting=upgrad", "-m", "hydra.run.dir="]
)
def test_other_arguments_are_unchanged(argument: str) -> None:
    assert prepared([argument]) == [argument]


def test_files_can_be_swept_over_but_not_folders() -> None:
    assert prepared(["-m", "init_from=a,b"]) == ["-m", "init_from=a,b"]
    assert prepared(["-m", "hydra.sweep.dir=a,b"]) == ["-m", "hydra.sweep.dir='a,b'"]


def test_tags_are_read_from_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    given = ["-m", "tags=ask", "seed=0,1"]
    with pytest.raises(ConfigError, match=r"^tags=ask asks at the terminal, and there is none; set tags=\["):
        asked(given)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("builtins.input", lambda prompt: " first try, it's, ")
    flag, tags, seed = asked(given)
    assert (flag, seed) == ("-m", "seed=0,1")
    assert OverridesParser.create().parse_override(tags).value() == ["first try", "it's"]
    assert asked(["seed=0"]) == ["seed=0"]
