"""An error in a config is shown as the one sentence that was written for it."""

import pytest
from hydra.errors import InstantiationException
from hydra.utils import instantiate

from multitask.errors import one_sentence


def fails() -> None:
    try:
        raise OSError("an error of a library")
    except OSError as error:
        raise ValueError("trunk.folder=/x has no model.") from error


@pytest.mark.parametrize("nested", [False, True])
def test_the_sentence_is_that_of_the_original_error(nested: bool) -> None:
    node = {"_target_": f"{__name__}.fails"}
    with pytest.raises(InstantiationException) as caught:
        instantiate({"trunk": {"_target_": "builtins.dict", "inner": node} if nested else node})
    assert (one_sentence(caught.value) or "").endswith("trunk.folder=/x has no model.")
