"""Exact resume: the state of a trainer after an epoch, with its SHA-256."""

from pathlib import Path

import torch

from meca.training.trainer import Trainer

__all__ = ["resume", "save_checkpoint"]


def resume(trainer: Trainer, checkpoint: Path | None) -> int:
    """Load the last checkpoint into the trainer and return the number of finished epochs: 0 if there is none as this user's meca wrote it."""
    if checkpoint is None:
        return 0
    from safetensors.torch import load

    from meca.state import of_checkpoint, read

    data = read(checkpoint, *of_checkpoint(checkpoint))
    if data is None:
        return 0
    state = load(data)
    epoch = int(state.pop("epoch"))
    trainer.load(state)
    return epoch


def save_checkpoint(trainer: Trainer, checkpoint: Path | None, epoch: int) -> None:
    """Write the state after an epoch; a kill during the write leaves the one before."""
    if checkpoint is None:
        return
    from safetensors.torch import save

    from meca.state import of_checkpoint, write

    state = {**trainer.state(), "epoch": torch.tensor(epoch)}
    write(checkpoint, save(state), *of_checkpoint(checkpoint))
