"""Runs a module on several processes."""

import os
import runpy
import socket
import sys
from pathlib import Path

import torch

from tests.forks import into, server


def found_by(module: str, out: Path, processes: int = 2) -> list[dict]:
    """Run a module on several processes, and return what each saved at ``<out>.<rank>``."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = range(processes)
    started = [server().Process(target=_run, args=(module, out, rank, processes, port)) for rank in ranks]
    for process in started:
        process.start()
    try:
        for rank, process in zip(ranks, started, strict=True):
            process.join(300)
            assert process.exitcode == 0, Path(f"{out}.{rank}.err").read_text(errors="replace")[-3000:]
    finally:
        for process in started:
            process.kill()
    return [torch.load(f"{out}.{rank}", weights_only=True) for rank in ranks]


def _run(module: str, out: Path, rank: int, processes: int, port: int) -> None:
    """Run the module as one of the processes of a launcher."""
    into(Path(f"{out}.{rank}"))
    os.environ.update(
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        NODE_RANK="0",
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(processes),
    )
    sys.argv = [module, str(out)]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
