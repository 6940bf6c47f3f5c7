"""Steps on a model sharded by FSDP2 equal those of one process with the whole batch."""

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_tensor

from multitask import Step
from tests.unit.run_sharded import CASES, ON_FOUR, STATEFUL, Model, losses_of, sharded, steps
from tests.unit.step_costs import Encoder
from tests.unit.two_processes import found_by
from tests.unit.weighting.members import make


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    return found_by("tests.unit.run_sharded", tmp_path_factory.mktemp("two") / "found")


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    return found_by("tests.unit.run_sharded", tmp_path_factory.mktemp("four") / "found", 4)


def assert_equal_one(processes: list[dict], case: tuple[str, int]) -> None:
    expected = steps(*case)
    for found in processes:
        for name, value in expected["parameters"].items():
            torch.testing.assert_close(
                found[case]["parameters"][name], value, rtol=1e-12, atol=1e-12, msg=name
            )
        torch.testing.assert_close(found[case]["own"], expected["own"], rtol=1e-12, atol=1e-12)
        if expected["gramians"]:
            torch.testing.assert_close(found[case]["gramians"], expected["gramians"], rtol=1e-12, atol=1e-12)
    kept = sum(found[case]["kept"] for found in processes)
    assert kept == expected["kept"] + (len(processes) - 1) * 10 * (case[0] == "plain head")


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_processes_equal_one(two: list[dict], case: tuple[str, int]) -> None:
    """One task has labels only on one process and in one step; in one case a head is not sharded."""
    assert_equal_one(two, case)


@pytest.mark.slow
@pytest.mark.parametrize(("weighting", "passes"), [("weighted_sum", 1), ("upgrad", 3)])
def test_memory_and_communication_of_two_processes(two: list[dict], weighting: str, passes: int) -> None:
    """As in docs/scaling.md: parameters and gradients of n/p, rows of m·n/p; n gathered and n reduced per pass."""
    model = Encoder(width=16, layers=2)
    n = 4 * sum(p.numel() for p in model.layers.parameters())
    everything = 4 * sum(p.numel() for p in model.parameters())
    for found in two:
        costs = found["costs"][weighting]
        assert costs["parameters"] == costs["gradients"] == pytest.approx(everything / 2, rel=0.01)
        assert costs["rows"] == (0 if passes == 1 else pytest.approx(3 * n / 2, rel=0.01))
        heads = passes * (everything - n)
        assert costs["all_gather"] == pytest.approx(((1 + passes) * n + heads) / 2, rel=0.01)
        assert costs["reduce_scatter"] == pytest.approx((passes * n + everything - n) / 2, rel=0.01)
        assert costs["all_reduce"] < 300


@pytest.mark.slow
@pytest.mark.parametrize("case", ON_FOUR)
def test_four_processes_equal_one(four: list[dict], case: tuple[str, int]) -> None:
    """Some of them hold no shard of a head."""
    assert_equal_one(four, case)


@pytest.fixture
def model() -> Iterator[Model]:
    """Yield a sharded model on one process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    torch.manual_seed(0)
    yield sharded(Model(3).double(), plain=False)
    dist.destroy_process_group()


def losses(model: Model) -> torch.Tensor:
    targets = torch.ones(3, 4, 2, dtype=torch.float64)
    return losses_of(model, torch.ones(4, 5, dtype=torch.float64), targets, halves=False)[0]


def test_one_process_holds_whole_rows(model: Model) -> None:
    result = Step(make("upgrad", 3), model).backward(losses(model))
    assert result.gradients is not None
    jacobian = result.gradients.jacobian()
    assert jacobian.shape == (3, sum(p.numel() for p in model.blocks.parameters()))
    torch.testing.assert_close(jacobian @ jacobian.T, result.gradients.gramian())


def test_a_step_can_be_created_between_passes(model: Model) -> None:
    """After a forward pass, FSDP2 exposes the unsharded parameters of a root module."""
    found = losses(model)
    result = Step(make("upgrad", 3), model).backward(found)
    assert result.gradients is not None
    assert result.gradients.gramian().diagonal().min() > 0


def test_gradients_accumulate(model: Model) -> None:
    step = Step(make("upgrad", 3), model)
    step.backward(losses(model))
    once = [p.grad.full_tensor().clone() for p in model.parameters()]
    step.backward(losses(model))
    for p, gradient in zip(model.parameters(), once, strict=True):
        torch.testing.assert_close(p.grad.full_tensor(), 2 * gradient)


def test_a_module_without_a_backward_pass_uses_updated_weights(model: Model) -> None:
    """FSDP2 keeps the unsharded parameters of a root module from a forward to a backward pass."""
    apart = sharded(Model(3).double(), plain=False)
    step = Step(make("upgrad", 3), nn.ModuleList([model, apart]))
    unused = apart(torch.ones(4, 5, dtype=torch.float64))[0].square().mean()
    step.backward(torch.stack([*losses(model), unused]), torch.tensor([4, 4, 4, 0]))
    with torch.no_grad():
        for p in apart.parameters():
            p.zero_()
    assert not apart(torch.ones(4, 5, dtype=torch.float64))[0].any()


@pytest.mark.parametrize("name", sorted(STATEFUL))
def test_weightings_that_store_rows_are_rejected(model: Model, name: str) -> None:
    with pytest.raises(ValueError, match="remembers a gradient of each task"):
        Step(make(name, 3), model)


@pytest.mark.parametrize("engine", ["features", "layerwise"])
def test_engines_without_rows_are_rejected(model: Model, engine: str) -> None:
    with pytest.raises(ValueError, match=f"engine={engine}"):
        Step(make("upgrad", 3), model, engine=engine)


def test_instance_wise_weightings_are_rejected(model: Model) -> None:
    with pytest.raises(ValueError, match="all examples"):
        Step(make("iwmtl", 3), model)


def test_a_loss_scaler_is_rejected(model: Model) -> None:
    step = Step(make("upgrad", 3), model, scaler=torch.amp.GradScaler("cpu"))
    with pytest.raises(ValueError, match="bf16-mixed"):
        step.backward(losses(model))


def test_losses_stacked_by_a_sharded_module_are_rejected(model: Model) -> None:
    class Stacks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(5, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.stack([y.square() for y in self.net(x)])

    net = fully_shard(Stacks(), mesh=init_device_mesh("cpu", (1,)))
    with pytest.raises(ValueError, match="one by one"):
        Step(make("upgrad", 3).float(), net).backward(net(torch.ones(5)))


def test_parameters_outside_of_a_forward_pass_are_rejected(model: Model) -> None:
    penalty = model.blocks[0][0].weight.square().sum().full_tensor()
    with pytest.raises(ValueError, match="outside of its module's forward pass"):
        Step(make("upgrad", 3), model).backward([*losses(model)[:2], penalty])


def test_other_shards_are_rejected() -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    split = distribute_tensor(torch.ones(4, 2), init_device_mesh("cpu", (1,)), [Shard(0)])
    net = nn.Linear(2, 4)
    net.weight = nn.Parameter(split)
    with pytest.raises(ValueError, match="weight is in 1 parts on 1 processes"):
        Step(make("upgrad", 3), net)
    dist.destroy_process_group()


def test_names_without_the_module_are_rejected(model: Model) -> None:
    with pytest.raises(ValueError, match="pass the module"):
        Step(make("upgrad", 3), dict(model.named_parameters()))
