"""Batches depend on seed and epoch alone, can be resumed anywhere, and are split over ranks."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import Dataset

from multitask.data.loading import Loader, resident, split_indices
from multitask.randomness import derived_seed


class Squares(Dataset):
    def __len__(self) -> int:
        return 11

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"x": torch.tensor(index**2)}


def batches_of(loader: Loader) -> list[list[int]]:
    return [batch["x"].tolist() for batch in loader]


def whole(count: int) -> dict[str, torch.Tensor]:
    return {"x": torch.arange(count)}


@given(count=st.integers(1, 40), batch=st.integers(1, 12), stop=st.integers(0, 40), epoch=st.integers(0, 3))
def test_resumes_after_any_batch(count: int, batch: int, stop: int, epoch: int) -> None:
    loader = Loader(whole(count), batch, shuffle=True, seed=3)
    loader.set_epoch(epoch)
    complete = batches_of(loader)
    stop = stop % len(complete)
    first = []
    for i, found in enumerate(loader):
        if i == stop:
            break
        first.append(found["x"].tolist())
        state = loader.state_dict()
    if not first:
        state = {"position": 0}
    resumed = Loader(whole(count), batch, shuffle=True, seed=3)
    resumed.load_state_dict(state)
    resumed.set_epoch(epoch)
    assert first + batches_of(resumed) == complete
    resumed.set_epoch(epoch + 1)
    loader.set_epoch(epoch + 1)
    assert batches_of(resumed) == batches_of(loader)


def test_order_depends_on_seed_and_epoch() -> None:
    orders = set()
    for seed in range(2):
        for epoch in range(2):
            loader = Loader(whole(20), 20, shuffle=True, seed=seed)
            loader.set_epoch(epoch)
            orders.add(tuple(batches_of(loader)[0]))
    assert len(orders) == 4


@given(count=st.integers(1, 40), batch=st.integers(1, 6), world=st.integers(1, 4))
def test_ranks_share_the_batches_of_one_process(count: int, batch: int, world: int) -> None:
    ranks = [Loader(whole(count), batch, shuffle=True, rank=r, world_size=world) for r in range(world)]
    alone = Loader(whole(count), batch * world, shuffle=True)
    joined = [
        [x for part in parts for x in part] for parts in zip(*(batches_of(r) for r in ranks), strict=True)
    ]
    assert joined == batches_of(alone)
    assert len(alone) == len(joined)


def test_lazy_data_set_gives_the_same_batches() -> None:
    lazy = Loader(Squares(), 4, shuffle=True, seed=1)
    tensors = Loader({"x": torch.arange(11) ** 2}, 4, shuffle=True, seed=1)
    assert batches_of(lazy) == batches_of(tensors)


@given(count=st.integers(3, 200), seed=st.integers(0, 5))
def test_splits_are_disjoint_and_complete(count: int, seed: int) -> None:
    parts = split_indices(count, (0.7, 0.1, 0.2), seed)
    assert sorted(torch.cat(list(parts.values())).tolist()) == list(range(count))


@pytest.mark.parametrize("fractions", [(0.5, 0.5, 0.5), (1.2, -0.2, 0.0)])
def test_invalid_fractions_are_rejected(fractions: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match=r"data\.split"):
        split_indices(10, fractions, 0)


def test_derived_seeds_do_not_collide_by_concatenation() -> None:
    assert derived_seed("a", "bc") != derived_seed("ab", "c")
    assert derived_seed("a", 1) == derived_seed("a", 1)


def test_arrays_move_to_the_device_if_they_fit_a_quarter_of_its_memory() -> None:
    """The meta device represents any device other than the CPU."""
    arrays = {"inputs": torch.zeros(10, 3), "y": torch.zeros(10, dtype=torch.int64)}
    device = torch.device("meta")
    assert {v.device.type for v in resident(arrays, device, 4 * 200 - 1).values()} == {"cpu"}
    moved = resident(arrays, device, 4 * 200)
    assert {v.device.type for v in moved.values()} == {"meta"}
    batches = list(Loader(moved, 4, shuffle=True))
    assert [len(batch["y"]) for batch in batches] == [4, 4, 2]
    assert all(v.device.type == "meta" for batch in batches for v in batch.values())


@given(
    count=st.integers(1, 60),
    batch=st.integers(1, 12),
    ranks=st.integers(1, 3),
    drop=st.booleans(),
    epoch=st.integers(0, 2),
)
def test_drop_last_drops_only_a_partial_batch(
    count: int, batch: int, ranks: int, drop: bool, epoch: int
) -> None:
    def of(rank: int, drop_last: bool) -> Loader:
        loader = Loader(
            whole(count), batch, drop_last=drop_last, shuffle=True, seed=1, rank=rank, world_size=ranks
        )
        loader.set_epoch(epoch)
        return loader

    full = count // (batch * ranks)
    smallest = []
    for rank in range(ranks):
        complete, found = batches_of(of(rank, False)), batches_of(of(rank, drop))
        assert found == (complete[:full] if drop else complete)
        assert len(of(rank, drop)) == len(found)
        smallest += [len(one) for one in found]
    if smallest:
        assert Loader(whole(count), batch, drop_last=drop).smallest(ranks) == min(smallest)
