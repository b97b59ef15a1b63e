"""Train a model on the samples that are not flagged, from scratch or from the weights that params.yaml names."""

import json
import sys
from pathlib import Path

import torch

from meca.models import Description, NetworkParams, load_model, read_description, save_model
from meca.models.weights import start
from meca.stages.graph import Output
from meca.stages.runtime import Context, main
from meca.stages.tensors import KEPT, describe_network, epoch_notes, open_train, read_rows, rows_digest
from meca.training.device import EngineParams, prepare
from meca.training.engine import Data, Session
from meca.training.trainer import Recipe


def run(ctx: Context, store: Path, split: Path, out: Output, *, engine: EngineParams, network: NetworkParams, train_clean: Recipe) -> None:
    """Write the clean model."""
    recipe, device = train_clean, prepare(engine)
    data, images, labels = open_train(store, device)
    begun = start(describe_network(data, images, network), network)
    description = begun.description
    verdicts = read_rows(split / "decisions.parquet", ["verdict"], len(labels))["verdict"].to_pylist()
    keep = torch.tensor([verdict == "clean" for verdict in verdicts], device=device.name)
    session = Session(ctx.seed, device, ctx.checkpoints, epoch_notes(ctx, "train", recipe.passes(int(keep.sum()))))
    model = begun.build(session.draws("train_clean", "init")).to(device.name)
    if int(keep.sum()) < 2:
        # Rule 5 of the paper can flag everything. Then there is nothing to learn from, and the model says so by its accuracy.
        ctx.progress("train_clean", 0, 1, f"{int(keep.sum())} samples are left: the model stays untrained")
        save_model(model.eval(), description, out)
        ctx.metrics = {"kept": int(keep.sum())}
        return
    if _is_trained(split / KEPT, description, keep):
        # Detection ended with this network: the same one would come out.
        ctx.progress("train_clean", 1, 1, "taken over from split")
        for line in (split / KEPT / "curve.jsonl").read_text(encoding="utf-8").splitlines():
            ctx.curve(phase="train", **json.loads(line))
        model = load_model(split / KEPT)
    else:
        with ctx.timed("train"):
            session.train(model, Data(images, labels), recipe, "train_clean", keep)
    save_model(model, description, out)
    ctx.metrics = {"kept": int(keep.sum())}


def _is_trained(folder: Path, description: Description, keep: torch.Tensor) -> bool:
    """Tell whether `split` has trained this network on just these samples, from the draws that would be made here."""
    if not folder.is_dir() or read_description(folder) != description:
        return False
    return (folder / "rows.sha256").read_text(encoding="utf-8") == rows_digest(keep.cpu().numpy())


if __name__ == "__main__":
    main(sys.modules[__name__])
