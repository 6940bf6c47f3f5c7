"""Mappings split by the shell's brace expansion are joined again."""

import pytest

from multitask.run.arguments import rejoined


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (
            ["w.weights=left:0.3", "w.weights=right:0.7", "seed=1"],
            ["w.weights={left:0.3,right:0.7}", "seed=1"],
        ),
        (["seed=1", "w.weights=left:-1e-3"], ["seed=1", "w.weights={left:-1e-3}"]),
        (["a=x:1", "b=y:2"], ["a={x:1}", "b={y:2}"]),
        (["w.weights={left:0.3,right:0.7}"], ["w.weights={left:0.3,right:0.7}"]),
        (["paths.logs=/a/b", "task=[x,y]"], ["paths.logs=/a/b", "task=[x,y]"]),
    ],
)
def test_split_mappings_are_rejoined(given: list[str], expected: list[str]) -> None:
    assert rejoined(given) == expected
