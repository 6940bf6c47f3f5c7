"""Differences between configs that matter on resume."""

from multitask.run.resume import differences

SAVED = {
    "seed": 0,
    "optimizer": {"_target_": "torch.optim.Adam", "lr": 0.1},
    "scheduler": {},
    "data": {"path": "/old/place.npz", "batch_size": 8},
    "trainer": {"max_epochs": 3, "accumulate_grad_batches": 1, "gradient_clip_val": None},
    "logger": {"wandb": {"mode": "offline"}},
}


def changed(**sections: dict) -> list[tuple]:
    current = dict(SAVED)
    for key, values in sections.items():
        current[key] = {**SAVED[key], **values}
    return list(differences(SAVED, current))


def test_same_config_has_no_differences() -> None:
    assert changed() == []


def test_irrelevant_keys_may_differ() -> None:
    free = {"max_epochs": 9, "gradient_clip_val": 1.0, "devices": 2, "log_every_n_steps": 1}
    assert changed(trainer=free, data={"path": "/new"}, logger={"wandb": None}) == []


def test_keys_that_a_checkpoint_overrides_must_not_differ() -> None:
    assert changed(optimizer={"lr": 0.2}) == [("optimizer.lr", 0.1, 0.2)]
    assert changed(scheduler={"_target_": "StepLR"}) == [("scheduler._target_", None, "StepLR")]
    assert changed(data={"batch_size": 4}) == [("data.batch_size", 8, 4)]
    assert changed(trainer={"accumulate_grad_batches": 2}) == [("trainer.accumulate_grad_batches", 1, 2)]


def test_new_boolean_key_defaults_to_false() -> None:
    old = {"data": {"batch_size": 3}}
    assert not list(differences(old, {"data": {"batch_size": 3, "drop_last": False}}))
    assert list(differences(old, {"data": {"batch_size": 3, "drop_last": True}})) == [
        ("data.drop_last", None, True)
    ]
