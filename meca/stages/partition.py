"""Give every training sample a score, and choose the part that is almost surely clean."""

import sys
from pathlib import Path

import numpy as np
import torch

from meca.data.store import write_parquet
from meca.method.partition import PartitionParams, choose, main_axis, signals, suspicion
from meca.models import DetectorParams, NetworkParams, build, save_model
from meca.stages.graph import Output
from meca.stages.runtime import Context, main
from meca.stages.tensors import describe_network, epoch_notes, open_train, scores_table
from meca.training.device import EngineParams, prepare
from meca.training.engine import features, train
from meca.training.seeds import generator


def run(
    ctx: Context, store: Path, out: Output, *, engine: EngineParams, network: NetworkParams, detector: DetectorParams, partition: PartitionParams
) -> None:
    """Write the scores, and the model that gave them."""
    params, device = partition, prepare(engine)
    data, images, labels = open_train(store, device)
    description = describe_network(data, images, detector.resolve(network))
    model = build(description, generator(ctx.seed, "partition", "init")).to(device.name)
    everything = torch.ones(len(labels), dtype=torch.bool, device=device.name)
    with ctx.timed("train"):
        note = epoch_notes(ctx, "train", params.recipe.passes(len(labels)))
        train(model, images, labels, everything, params.recipe, ctx.seed, "partition", ctx.checkpoints / "model.safetensors", note, device)
    with ctx.timed("score"):
        found = signals(model, images, labels, params, generator(ctx.seed, "partition", "masks"))
    suspicious = suspicion(found, params.signals)
    likely_clean = choose(suspicious, labels, params.alpha, params.alpha_of)
    axis = main_axis(features(model, images), labels, found.loss)
    columns = {"suspicion": suspicious, "likely_clean": likely_clean, "kl": found.kl, "loss": found.loss, "axis": axis}
    write_parquet(scores_table(data, {name: tensor.cpu().numpy() for name, tensor in columns.items()}), out / "scores.parquet")
    save_model(model, description, out)
    ctx.metrics = {
        "train_accuracy": float((found.logits.argmax(1) == labels).float().mean()),
        "likely_clean": int(likely_clean.sum()),
        "kl_median": float(np.median(found.kl.cpu().numpy())),
        "kl_tied_at_zero": float((found.kl.abs() < 1e-7).float().mean()),
    }


if __name__ == "__main__":
    main(sys.modules[__name__])
