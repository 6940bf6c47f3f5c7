"""The engines by name."""

from multitask.gradients.features import Features
from multitask.gradients.layerwise import Layerwise
from multitask.gradients.rows import Rows
from multitask.gradients.task_gradients import Engine

ENGINES: dict[str, type[Engine]] = {
    "auto": Layerwise,
    "rows": Rows,
    "layerwise": Layerwise,
    "features": Features,
}


def make_engine(engine: str | Engine) -> Engine:
    """Return the engine of a name; engines pass as they are.

    Raises:
        ValueError: If there is none of this name.
    """
    if isinstance(engine, Engine):
        return engine
    if engine not in ENGINES:
        raise ValueError(f"engine={engine} is unknown; choose one of {', '.join(ENGINES)}.")
    return ENGINES[engine]()
