"""Keys accepted by a ``_target_``, including those that its constructor passes to its base."""

import pytest

from multitask.data.abalone import Abalone
from multitask.errors import ConfigError
from multitask.run.targets import check_targets

ABALONE = "multitask.data.abalone.Abalone"


def check(target: str, **arguments: object) -> None:
    check_targets({"data": {"_target_": target, **arguments}})


def test_keys_of_the_base_class_are_accepted() -> None:
    check(ABALONE, path="x.csv", split=[0.5, 0.5, 0.0], split_seed=3, batch_size=5, eval_batch_size=7, seed=1)
    made = Abalone("x.csv", batch_size=5, eval_batch_size=7, seed=1)
    assert (made.batch_size, made.eval_batch_size, made.seed) == (5, 7, 1)


def test_unknown_keys_are_rejected() -> None:
    with pytest.raises(
        ConfigError, match=r"^data\.batch_sise is not an argument of .*; did you mean 'batch_size'\?"
    ):
        check(ABALONE, path="x.csv", batch_sise=5)
    with pytest.raises(
        ConfigError, match=r"^data\.num_workers is not an argument of "
    ):  # the data set is in memory
        check(ABALONE, path="x.csv", num_workers=2)
    check("multitask.data.celeba.CelebA", path="x", num_workers=2)


def test_constructor_with_arbitrary_keywords_accepts_all_keys() -> None:
    check("builtins.dict", anything=1)


def test_weighting_accepts_its_own_keys_and_those_of_the_training_loop() -> None:
    node = {"_target_": "multitask.weighting.famo.FAMO", "lr": 0.1, "engine": "auto", "every": 2}
    check_targets({"weighting": node})
    for wrong in ("lrr", "tasks"):  # tasks come from the config
        with pytest.raises(ConfigError, match=rf"^weighting\.{wrong} is not an argument of .*FAMO; "):
            check_targets({"weighting": {**node, wrong: 1}})
