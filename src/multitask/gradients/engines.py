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


def make_engine(engine: str | Engine, memory: str = "rows", sharded: bool = False) -> Engine:
    """Return an engine.

    Args:
        engine: An engine, or a key of ``ENGINES``.
        memory: ``rows``, ``stream`` for the engine without rows, or ``auto`` to choose by free memory.
        sharded: Whether parameters are sharded, so that only rows remain of an engine.

    Raises:
        ValueError: If a name is unknown, an engine is given for ``stream`` or ``auto``, or it has others than rows.
    """
    if memory in ("stream", "auto"):
        if engine != "auto":
            raise ValueError(
                f"weighting.memory={memory} is a way to compute gradients; leave weighting.engine=auto."
            )
        return Streamed() if memory == "stream" else AutoMemory()
    if memory != "rows":
        raise ValueError(f"memory={memory} is unknown; choose rows, stream or auto.")
    if isinstance(engine, str) and engine not in ENGINES:
        raise ValueError(f"engine={engine} is unknown; choose one of {', '.join(ENGINES)}.")
    made = engine if isinstance(engine, Engine) else ENGINES[engine]()
    if sharded and (engine == "layerwise" or isinstance(made, Features)):
        raise ValueError(
            f"sharded parameters have rows alone, and weighting.engine={engine} has others; take auto."
        )
    return made
