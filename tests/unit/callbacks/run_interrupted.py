"""Trains on two processes, of which the second receives a signal; saves the last step of each."""

import os
import signal
import sys
from typing import Any

import torch
import torch.distributed as dist
from lightning import Callback, Trainer
from torchjd.aggregation import UPGradWeighting

from multitask.callbacks.interruption import Interruption
from multitask.errors import RunInterrupted
from multitask.weighting.adapter import adapt
from tests.conftest import Arrays, arrays, build


class Signalled(Callback):
    """Sends SIGTERM to the second process in its third step."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        if trainer.global_step == 3 and trainer.global_rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    torch.set_num_threads(1)
    module = build(adapt(UPGradWeighting()))
    trainer = Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        precision="64-true",
        max_steps=20,
        callbacks=[Signalled(), Interruption(None)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    stopped = 0
    try:
        trainer.fit(module, datamodule=Arrays(arrays(), 4))
    except RunInterrupted as error:
        stopped = error.number
    torch.save({"number": stopped, "step": trainer.global_step}, f"{sys.argv[1]}.{dist.get_rank()}")
