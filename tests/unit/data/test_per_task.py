"""One data set per task: sampling rules, missing labels, processes and resumption."""

import math
from collections import Counter
from itertools import chain, islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import Tensor
from torch.utils.data import Dataset

from multitask.data.base import DataModule, Split
from multitask.data.images import LabelledImages
from multitask.data.joint_loader import JointLoader, Rule
from multitask.data.loading import Arrays
from multitask.data.per_task import PerTask
from multitask.run.build import build_data
from multitask.run.resolvers import register
from tests.unit.data.test_office31 import write_office

NAN = torch.nan


class Source(DataModule):
    """Examples ``first``, ``first + 1``, …, each labelled by its number."""

    def __init__(
        self,
        first: int,
        count: int,
        lazy: bool = False,
        splits: tuple[str, ...] = ("train", "val"),
        **more: Any,
    ):
        super().__init__()
        self.first, self.count, self.lazy, self.names, self.more = first, count, lazy, splits, more

    def load(self) -> dict[str, Split]:
        numbers = torch.arange(self.first, self.first + self.count)
        arrays = {"inputs": numbers[:, None].float(), "y": numbers} | self.more
        return {name: Lazy(arrays) if self.lazy else arrays for name in self.names}


class Lazy(Dataset[Arrays]):
    def __init__(self, arrays: dict[str, Tensor]) -> None:
        self.arrays = arrays
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.arrays["inputs"])

    def __getitem__(self, index: int) -> Arrays:
        return {name: values[index] for name, values in self.arrays.items()}


def joint(rule: Any, sizes: tuple[int, ...] = (10, 4), lazy: bool = False, **options: Any) -> PerTask:
    sources = {f"s{i}": Source(100 * i, size, lazy) for i, size in enumerate(sizes)}
    data = PerTask(sources, rule, **({"batch_size": 3} | options))
    data.setup()
    return data


def numbers(batch: Arrays) -> list[int]:
    return batch["inputs"].flatten().int().tolist()


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("rule", get_args(Rule))
def test_examples_are_labelled_for_their_own_task_only(rule: str, lazy: bool):
    for batch in joint(rule, lazy=lazy).train_dataloader():
        for x, first, second in zip(numbers(batch), batch["s0"].tolist(), batch["s1"].tolist(), strict=True):
            assert (first, second) == ((x, -100) if x < 100 else (-100, x))


def test_cycle_ends_with_the_longest_source_and_repeats_others_evenly():
    loader = joint("cycle").train_dataloader()
    batches = [numbers(batch) for batch in loader]
    assert len(batches) == len(loader) == 4
    drawn = Counter(x for batch in batches for x in batch)
    assert all(drawn[x] == 1 for x in range(10))
    assert [sum(x >= 100 for x in batch) for batch in batches] == [3, 3, 3, 3]
    assert sorted(drawn[x] for x in range(100, 104)) == [3, 3, 3, 3]


def test_shortest_source_ends_the_epoch():
    loader = joint("shortest").train_dataloader()
    batches = [numbers(batch) for batch in loader]
    assert len(batches) == len(loader) == 2
    assert sorted(x for batch in batches for x in batch if x >= 100) == [100, 101, 102, 103]
    assert [sum(x < 100 for x in batch) for batch in batches] == [3, 3]


def test_proportional_shows_every_example_once():
    loader = joint("proportional").train_dataloader()
    batches = [numbers(batch) for batch in loader]
    assert [len(batch) for batch in batches] == [6, 6, 2]
    assert sorted(x for batch in batches for x in batch) == [*range(10), *range(100, 104)]


@pytest.mark.parametrize(
    ("options", "shares"),
    [
        ({}, (2000.0, 500.0, 250.0)),
        ({"temperature": 2.0}, (2000**0.5, 500**0.5, 250**0.5)),
        ({"temperature": 1e9}, (1.0, 1.0, 1.0)),
        ({"temperature": 1e-9}, (1.0, 0.0, 0.0)),  # although 2000 ** 1e9 overflows
        ({"ratios": {"s0": 1, "s1": 2, "s2": 1}}, (1.0, 2.0, 1.0)),
    ],
)
def test_sources_are_sampled_by_temperature_or_ratios(options: dict[str, Any], shares: tuple[float, ...]):
    loader = joint("sampled", sizes=(2000, 500, 250), **options).train_dataloader()
    drawn: Counter[int] = Counter()
    for epoch in range(3):
        loader.set_epoch(epoch)
        batches = [batch["inputs"].flatten() for batch in loader]
        assert len(batches) == len(loader) == -(-2750 // 9)
        labels = [[int(batch[f"s{i}"].ge(0).sum()) for batch in loader] for i in range(3)]
        drawn += Counter({i: sum(counts) for i, counts in enumerate(labels)})
        # Examples are drawn one by one, so the shares vary between batches.
        assert len(set(labels[0])) > 3 or not all(shares)
    assert drawn.total() == 3 * 2750
    for i, share in enumerate(shares):
        p = share / sum(shares)
        # Five standard deviations of a binomial distribution.
        assert abs(drawn[i] - 8250 * p) <= 5 * (8250 * p * (1 - p)) ** 0.5


def test_oversampled_source_repeats_its_examples_evenly():
    loader = joint("sampled", sizes=(90, 7), ratios={"s0": 1, "s1": 3}).train_dataloader()
    drawn = Counter(x for batch in loader for x in numbers(batch))
    assert {drawn[x] for x in range(100, 107)} <= {
        (few := min(drawn[x] for x in range(100, 107))),
        few + 1,
    }
    assert max(drawn[x] for x in range(90)) == 1


@pytest.mark.parametrize(
    ("rule", "options", "message"),
    [
        ("cycle", {"temperature": 2.0}, r"data\.temperature does nothing with data\.rule=cycle"),
        (
            "proportional",
            {"ratios": {"s0": 1, "s1": 1}},
            r"data\.ratios does nothing with data\.rule=proportional",
        ),
        ("sampled", {"temperature": 0.0}, r"data\.temperature=0\.0 must be positive"),
        ("sampled", {"ratios": {"s0": 1}}, r"data\.ratios names s0; give a number for each of s0, s1"),
        ("sampled", {"temperature": math.nan}, r"data\.temperature=nan must be positive"),
        ("sampled", {"temperature": "high"}, r"data\.temperature=high must be positive"),
        ("sampled", {"ratios": {"s0": 1, "s1": 0}}, r"each must be a positive number"),
        ("sampled", {"ratios": {"s0": 1, "s1": math.inf}}, r"each must be a positive number"),
        ("sampled", {"ratios": {"s0": 1, "s1": "a"}}, r"each must be a positive number"),
        ("sampled", {"ratios": {"s0": 1, "s1": 1}, "temperature": 2.0}, r"give only one"),
        ("proportional", {"batch_sizes": {"s0": 1}}, r"data\.batch_sizes does nothing with data\.rule=prop"),
        ("cycle", {"batch_sizes": {"s7": 1}}, r"data\.batch_sizes names s7; the sources are s0, s1"),
        (
            "turns",
            {"batch_sizes": {"s1": 0}},
            r"data\.batch_sizes\.s1=0 must be a whole number of at least 1",
        ),
    ],
)
def test_unused_and_invalid_sampling_options_are_rejected(rule: Rule, options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        joint(rule, **options)


def test_sources_take_turns():
    data = joint("turns", sizes=(10, 4, 5), batch_sizes={"s1": 2})
    batches = [numbers(batch) for batch in data.train_dataloader()]
    assert len(batches) == len(data.train_dataloader()) == 12
    assert [{x // 100 for x in batch} for batch in batches] == [{0}, {1}, {2}] * 4
    assert [len(batch) for batch in batches] == [3, 2, 3, 3, 2, 3, 3, 2, 3, 1, 2, 3]
    # The examples of each round are those of a batch of cycle.
    rounds = [
        numbers(batch) for batch in joint("cycle", (10, 4, 5), batch_sizes={"s1": 2}).train_dataloader()
    ]
    assert rounds == [[*chain(*batches[i : i + 3])] for i in range(0, 12, 3)]


def test_sources_can_have_different_batch_sizes():
    batches = [numbers(batch) for batch in joint("cycle", batch_sizes={"s0": 5, "s1": 1}).train_dataloader()]
    # The second source is the longest, and the first repeats its ten examples.
    assert [Counter(x >= 100 for x in batch) for batch in batches] == [{False: 5, True: 1}] * 4
    shortest = joint("shortest", batch_sizes={"s0": 5, "s1": 1}).train_dataloader()
    assert [Counter(x >= 100 for x in numbers(batch)) for batch in shortest] == [{False: 5, True: 1}] * 2


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("each", [(4, 4), (5, 2), (1, 7)])
@pytest.mark.parametrize("sizes", [(23, 9), (12, 12), (13, 40)])
@pytest.mark.parametrize("rule", ["cycle", "shortest", "proportional", "turns"])
def test_smallest_batch_is_computed_in_advance(
    rule: Any, sizes: tuple[int, ...], each: tuple[int, ...], drop_last: bool, processes: int
):
    data = joint(rule, sizes=sizes).splits["train"]
    options = {"drop_last": drop_last, "world_size": processes}
    lengths = [
        len(batch["inputs"])
        for rank in range(processes)
        for batch in JointLoader(data, sizes, rule, each, rank=rank, **options)
    ]
    if lengths:
        assert JointLoader(data, sizes, rule, each, drop_last=drop_last).smallest(processes) == min(lengths)


@pytest.mark.parametrize("rule", ["cycle", "shortest", "proportional"])
def test_null_batch_size_gives_whole_sources(rule: str):
    (batch,) = joint(rule, batch_size=None).train_dataloader()
    assert sorted(numbers(batch)) == [*range(10), *range(100, 104)]


@pytest.mark.parametrize("rule", get_args(Rule))
def test_order_depends_on_seed_and_epoch_alone(rule: str):
    def order(seed: int, epoch: int) -> list[list[int]]:
        loader = joint(rule, seed=seed).train_dataloader()
        loader.set_epoch(epoch)
        return [numbers(batch) for batch in loader]

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)


@pytest.mark.parametrize("rule", get_args(Rule))
def test_overfit_batches_repeat_each_epoch_and_contain_every_source(rule: Any):
    data = joint(rule)
    data.trainer = SimpleNamespace(
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
        overfit_batches=1,
        global_rank=0,
        world_size=1,
    )
    loader = data.train_dataloader()
    firsts = []
    for epoch in range(3):
        loader.set_epoch(epoch)
        batches = islice(loader, 2 if rule == "turns" else 1)
        firsts.append([number for batch in batches for number in numbers(batch)])
    assert firsts[0] == firsts[1] == firsts[2]
    assert {x >= 100 for x in firsts[0]} == {False, True}


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("rule", get_args(Rule))
def test_resumes_in_the_middle_of_an_epoch(rule: str, lazy: bool):
    whole = joint(rule, lazy=lazy).train_dataloader()
    whole.set_epoch(3)
    expected = [numbers(batch) for batch in whole]
    first = joint(rule, lazy=lazy).train_dataloader()
    first.set_epoch(3)
    iterator = iter(first)
    started = [numbers(next(iterator))]
    second = joint(rule, lazy=lazy).train_dataloader()
    second.load_state_dict(first.state_dict())
    second.set_epoch(3)
    assert started + [numbers(batch) for batch in second] == expected


@pytest.mark.parametrize("rule", get_args(Rule))
def test_processes_share_the_batch_of_one_process(rule: Any):
    data = joint(rule, sizes=(23, 9)).splits["train"]
    whole = JointLoader(data, [23, 9], rule, [4, 4], shares=[23, 9], seed=5)
    halves = [
        JointLoader(data, [23, 9], rule, [2, 2], shares=[23, 9], seed=5, rank=rank, world_size=2)
        for rank in range(2)
    ]
    assert len(whole) == len(halves[0])
    for batch, *parts in zip(whole, *halves, strict=True):
        assert sorted(numbers(batch)) == sorted(numbers(parts[0]) + numbers(parts[1]))
        if rule == "turns":
            assert len({x >= 100 for x in numbers(batch)}) == 1
        if rule in ("cycle", "shortest"):
            assert (
                abs(sum(x >= 100 for x in numbers(parts[0])) - sum(x >= 100 for x in numbers(parts[1]))) <= 1
            )


@pytest.mark.parametrize("lazy", [False, True])
def test_validation_visits_every_example_once(lazy: bool):
    loader = joint("cycle", lazy=lazy).val_dataloader()
    assert [x for batch in loader for x in numbers(batch)] == [*range(10), *range(100, 104)]


@pytest.mark.parametrize("lazy", [False, True])
def test_targets_and_masks_are_prefixed_by_a_source_with_several(lazy: bool):
    more = {"depth": torch.ones(4, 2), "mask/depth": torch.ones(4, 2, dtype=torch.bool)}
    data = PerTask({"a": Source(0, 10), "b": Source(100, 4, lazy, **more)}, batch_size=2)
    batch = next(iter(data.train_dataloader()))
    assert set(batch) == {"inputs", "a", "b/y", "b/depth", "mask/b/depth"}
    of_b = batch["inputs"].flatten() >= 100
    assert (batch["b/depth"][of_b] == 1).all()
    assert batch["b/depth"][~of_b].isnan().all()
    assert torch.equal(batch["mask/b/depth"].all(1), of_b)


def test_sources_without_a_requested_target_are_omitted():
    assert joint("cycle", sizes=(10, 4, 7), targets=["s0", "s2"]).splits["train"].keys() == {
        "inputs",
        "s0",
        "s2",
    }
    with pytest.raises(ValueError, match=r"none of the targets nothing; it has s0, s1"):
        joint("cycle", targets=["nothing"])


def test_sources_receive_the_epoch():
    data = joint("cycle", lazy=True)
    data.train_dataloader().set_epoch(4)
    assert [source.splits["train"].epoch for source in data.sources.values()] == [4, 4]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            Source(0, 4, splits=("train",)),
            r"data\.sources\.b has the splits train and data\.sources\.a train, val",
        ),
        (Source(0, 4, inputs=torch.zeros(4, 2)), r"data\.sources\.b has inputs \[2\] .* \[1\]"),
        (Source(0, 4, y=torch.zeros(4, dtype=torch.uint8)), r"data\.sources\.b: 'y' is torch\.uint8"),
    ],
)
def test_incompatible_sources_are_rejected(other: Source, message: str):
    with pytest.raises(ValueError, match=message):
        PerTask({"a": Source(0, 10), "b": other}).setup()


def test_missing_source_file_is_reported():
    digits = LabelledImages("nowhere.npz")
    with pytest.raises(FileNotFoundError, match=r"^data\.sources\.b\.path=nowhere\.npz does not exist"):
        PerTask({"a": Source(0, 10), "b": digits}).setup()


def test_invalid_arguments_are_rejected():
    with pytest.raises(ValueError, match=r"data\.sources is empty"):
        PerTask({})
    with pytest.raises(
        ValueError,
        match=r"data\.rule=longest is unknown; choose one of cycle, shortest, proportional, sampled, turns",
    ):
        joint("longest")


def test_office31_with_one_source_per_domain(tmp_path: Path):
    pytest.importorskip("PIL")
    write_office(tmp_path / "office31")
    register()
    with initialize_config_dir(str(Path(__file__).parents[3] / "configs"), version_base="1.3"):
        config = compose(
            "train",
            overrides=[
                "experiment=office31",
                "data=office31_per_task",
                f"paths.data={tmp_path}",
                "data.batch_size=2",
            ],
        )
    data = build_data(config)
    batch = next(iter(data.train_dataloader()))
    assert set(batch) == {"inputs", "amazon", "dslr", "webcam"}
    assert [int((batch[domain] >= 0).sum()) for domain in ("amazon", "dslr", "webcam")] == [2, 2, 2]


def test_single_images_are_standardized_by_the_training_split():
    data = LabelledImages("data/mnist_5k.npz")
    data.setup()
    train, test = data.splits["train"], data.splits["test"]
    assert train["inputs"].shape == (3500, 1, 28, 28)
    assert len(test["label"]) == 1000
    torch.testing.assert_close(train["inputs"].mean(), torch.tensor(0.0), atol=1e-4, rtol=0)
    torch.testing.assert_close(train["inputs"].std(), torch.tensor(1.0), atol=1e-4, rtol=0)
