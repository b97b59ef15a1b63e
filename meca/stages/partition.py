"""Give every training sample a score, and choose the part that is almost surely clean."""

import sys
from pathlib import Path

import numpy as np

from meca.data.store import write_parquet
from meca.method.partition import PartitionParams, choose, principal_axis, signals, suspicion
from meca.models import DetectorParams, NetworkParams, save_model
from meca.models.weights import start
from meca.stages.graph import Output
from meca.stages.runtime import Context, main
from meca.stages.tensors import describe_network, epoch_notes, open_train, scores_table
from meca.training.device import EngineParams, prepare
from meca.training.engine import Data, Session, features

TIED = 1e-7  # divergences up to here are zero but for rounding, and their order says nothing; counted, changes no score


def run(
    ctx: Context, store: Path, out: Output, *, engine: EngineParams, network: NetworkParams, detector: DetectorParams, partition: PartitionParams
) -> None:
    """Write the scores, and the model that gave them."""
    params, device = partition, prepare(engine)
    data, images, labels = open_train(store, device)
    chosen = detector.resolve(network)
    begun = start(describe_network(data, images, chosen), chosen)
    if network.weights and not chosen.weights:
        # What goes out starts from them much later: weights that do not fit show now.
        start(describe_network(data, images, network), network)
    description = begun.description
    session = Session(ctx.seed, device, ctx.checkpoints, epoch_notes(ctx, "train", params.recipe.passes(len(labels))))
    model = begun.build(session.draws("partition", "init")).to(device.name)
    with ctx.timed("train"):
        session.train(model, Data(images, labels), params.recipe, "partition")
    with ctx.timed("score"):
        raw = signals(model, images, labels, params, session.draws("partition", "masks"))
    suspicious = suspicion(raw, params.signals)
    likely_clean = choose(suspicious, labels, params.alpha, params.alpha_of)
    axis = principal_axis(features(model, images), labels, raw.loss)
    columns = {"suspicion": suspicious, "likely_clean": likely_clean, "kl": raw.kl, "loss": raw.loss, "axis": axis}
    write_parquet(scores_table(data, {name: tensor.cpu().numpy() for name, tensor in columns.items()}), out / "scores.parquet")
    save_model(model, description, out)
    ctx.metrics = {
        "train_accuracy": float((raw.logits.argmax(1) == labels).float().mean()),
        "likely_clean": int(likely_clean.sum()),
        "kl_median": float(np.median(raw.kl.cpu().numpy())),
        "kl_tied_at_zero": float((raw.kl.abs() < TIED).float().mean()),
    }


if __name__ == "__main__":
    main(sys.modules[__name__])
