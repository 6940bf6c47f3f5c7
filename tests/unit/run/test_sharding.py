"""trainer=fsdp: settings that need whole parameters are rejected in one sentence that names the key."""

from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from torch.nn.functional import mse_loss

from multitask.errors import ConfigError
from multitask.run.callbacks import build_callbacks
from multitask.run.resolvers import register
from multitask.run.sharding import check_sharded, check_strategy, is_sharded
from multitask.task.penalty import Penalty
from multitask.task.terms import Term
from tests.conftest import regression
from tests.unit.run_sharded import STATEFUL
from tests.unit.weighting.members import make

CONFIGS = Path(__file__).parents[3] / "configs"


def config(*overrides: str) -> DictConfig:
    register()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("train", overrides=["trainer=fsdp", *overrides])


def test_trainer_fsdp_shards_over_all_devices() -> None:
    made = config("trainer.devices=4", "trainer.num_nodes=2")
    check_strategy(made)
    assert is_sharded(made)
    assert made.trainer.strategy.data_parallel_size == 8


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trainer.strategy=fsdp"], "trainer.strategy=fsdp splits the parameters"),
        (["trainer.strategy=deepspeed_stage_3"], "use trainer=fsdp"),
        (["trainer.devices=auto"], "set trainer.devices=<number>"),
        (["trainer.precision=16-mixed"], "trainer.precision=16-mixed does not work with trainer=fsdp"),
        (["trainer.precision=64-true"], "use 32-true or bf16-mixed"),
        (["trainer.strategy.tensor_parallel_size=2"], "tensor_parallel_size"),
        (["trainer.strategy.save_distributed_checkpoint=true"], "set it to false"),
        (["compile=true"], "set compile=false"),
        (["callbacks.conflict.probe_every=5"], "callbacks.conflict.probe_every"),
    ],
)
def test_unsupported_keys_are_rejected(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_strategy(config(*overrides))


def test_callbacks_on_whole_parameters_are_rejected() -> None:
    made = config()
    made.callbacks = {"update": {"_target_": "multitask.callbacks.update.UpdateDirection"}}
    with pytest.raises(ConfigError, match=r"callbacks\.update \(UpdateDirection\) works on whole parameters"):
        build_callbacks(made, automatic=False)


@pytest.mark.parametrize("name", sorted(STATEFUL))
def test_weightings_that_store_gradients_are_rejected(name: str) -> None:
    with pytest.raises(ConfigError, match=f"weighting={name} remembers a gradient of each task"):
        check_sharded(config(f"method={name}"), make(name, 3), {})


def test_ntk_weighting_is_rejected() -> None:
    with pytest.raises(ConfigError, match="weighting=ntk needs whole gradients of single points"):
        check_sharded(config("method=ntk"), make("ntk", 3), {})


@pytest.mark.parametrize("engine", ["layerwise", "features"])
def test_engines_on_whole_parameters_are_rejected(engine: str) -> None:
    with pytest.raises(ConfigError, match=rf"weighting\.engine={engine} needs whole parameters"):
        check_sharded(config(f"weighting.engine={engine}"), make("upgrad", 3), {})


def test_penalties_and_derivatives_are_rejected() -> None:
    tasks: Any = {"a": regression("a"), "b": Penalty()}
    with pytest.raises(ConfigError, match=r"tasks\.b is a penalty on whole parameters"):
        check_sharded(config(), make("mean", 2), tasks)
    tasks["b"] = Term(mse_loss, derivatives=True)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"tasks\.b differentiates the trunk"):
        check_sharded(config(), make("mean", 2), tasks)
