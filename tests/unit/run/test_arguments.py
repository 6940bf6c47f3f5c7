"""Paths on the command line."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from multitask.run.arguments import prepared, quoted

PATHS = st.text(st.sampled_from("ab'\"\\ ,=${}[]()~:#é\t"), max_size=8)


@given(PATHS)
def test_hydra_reads_a_quoted_string_as_it_was(path: str) -> None:
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
def test_everything_else_stays(argument: str) -> None:
    assert prepared([argument]) == [argument]


def test_files_can_be_swept_over_and_folders_cannot() -> None:
    assert prepared(["-m", "init_from=a,b"]) == ["-m", "init_from=a,b"]
    assert prepared(["-m", "hydra.sweep.dir=a,b"]) == ["-m", "hydra.sweep.dir='a,b'"]
