"""The command line of a resumed sweep."""

from multitask.sweep.command import merged


def test_later_value_of_a_key_takes_precedence() -> None:
    before = ["-m", "weighting=upgrad", "seed=0,1", "--config-dir=there", "sweep=x"]
    assert merged(before, ["sweep=x"]) == [
        "-m",
        "weighting=upgrad",
        "seed=0,1",
        "--config-dir=there",
        "sweep=x",
    ]
    assert merged(before, ["--multirun", "sweep=x", "seed=0,1,2", "hydra/launcher=joblib"]) == [
        "-m",
        "weighting=upgrad",
        "--config-dir=there",
        "sweep=x",
        "seed=0,1,2",
        "hydra/launcher=joblib",
    ]


def test_same_command_is_unchanged() -> None:
    command = ["-m", "weighting=upgrad", "+alpha=1,2", "sweep=x"]
    assert merged(command, command) == command
