"""The engines by name."""

from multitask.gradients.auto_memory import AutoMemory
from multitask.gradients.features import Features
from multitask.gradients.layerwise import Layerwise
from multitask.gradients.rows import Rows
from multitask.gradients.stream import Streamed
from multitask.gradients.task_gradients import Engine

ENGINES: dict[str, type[Engine]] = {
    "auto": Layerwise,
    "rows": Rows,
    "layerwise": Layerwise,
    "features": Features,
}


def make_engine(engine: str | Engine, memory: str = "rows") -> Engine:
    """Return the engine of a name; engines pass as they are.

    Args:
        engine: A name among ``ENGINES``.
        memory: ``stream`` for the one that keeps no rows, ``auto`` for the one that keeps them where they fit into
            memory, ``rows`` for any other.

    Raises:
        ValueError: If there is none of this name, or it keeps rows.
    """
    if memory in ("stream", "auto"):
        if engine != "auto":
            raise ValueError(
                f"weighting.memory={memory} is a way to compute gradients; leave weighting.engine=auto."
            )
        return Streamed() if memory == "stream" else AutoMemory()
    if memory != "rows":
        raise ValueError(f"memory={memory} is unknown; choose rows, stream or auto.")
    if isinstance(engine, Engine):
        return engine
    if engine not in ENGINES:
        raise ValueError(f"engine={engine} is unknown; choose one of {', '.join(ENGINES)}.")
    return ENGINES[engine]()
