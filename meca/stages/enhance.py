"""Train the model in which a backdoor stands out, and rescore every sample with it."""

import dataclasses
import sys
from functools import partial
from pathlib import Path

import torch

from meca.data.store import write_parquet
from meca.method.enhance import SIDES, TAILS, EnhanceParams, TwoOutputs, in_rounds, suspects_first, two_outputs
from meca.method.partition import PartitionParams
from meca.models import Network, load_model, read_description, save_model
from meca.stages.graph import Output
from meca.stages.runtime import Context, main
from meca.stages.tensors import column, open_train, scores_table
from meca.training.device import EngineParams, prepare
from meca.training.engine import Data, Session, predict, side_by_side


def run(
    ctx: Context, store: Path, partition: Path, out: Output, *, engine: EngineParams, partition_params: PartitionParams, enhance: EnhanceParams
) -> None:
    """Write the enhanced model and its scores."""
    params, detector, device = enhance, partition_params, prepare(engine)
    held, images, labels = open_train(store, device)
    data, session = Data(images, labels), Session(ctx.seed, device, ctx.checkpoints)
    network = Network(load_model(partition).to(device.name), read_description(partition))
    scores = partition / "scores.parquet"
    suspicious, axis = (torch.from_numpy(column(scores, name, len(labels)).copy()).to(device.name) for name in ("suspicion", "axis"))
    if params.method == "two_outputs":
        orders = suspects_first(suspicious, axis)
        notes: dict[str, list[tuple[int, float, float]]] = {side: [] for side in SIDES}

        def judge(side: str) -> TwoOutputs:
            def note(number: int, loss: float, accuracy: float) -> None:
                notes[side].append((number, loss, accuracy))
                ctx.progress(f"enhance: {side}", number, 2 * params.rounds, f"loss {loss:.3f}")

            return two_outputs(dataclasses.replace(session, note=note), network, data, orders[side], params, side)

        with ctx.timed("train"):
            both = side_by_side([partial(judge, side) for side in SIDES], device)
        results = dict(zip(SIDES, both, strict=True))
        columns: dict[str, torch.Tensor] = {}
        spans: dict[str, float] = {}
        for side, result in results.items():
            for number, loss, accuracy in notes[side]:
                ctx.curve(phase=f"enhance {side}", step=number, loss=round(loss, 6), accuracy=round(accuracy, 6))
            columns |= {f"margin_{side}": result.margin, f"called_{side}": result.called}
            spans[side] = max(_span(result.margin[labels == c]) for c in labels.unique())
        chosen = max(SIDES, key=lambda side: spans[side])
        columns["suspicion"] = columns[f"margin_{chosen}"].sigmoid()
        save_model(results[chosen].model, results[chosen].description, out)
        ctx.metrics = {f"range_{side}": spans[side] for side in SIDES}
    else:
        loss, model = 0.0, network.model
        for done in in_rounds(session, model, data, suspicious, params, detector):
            suspicious, loss = done.suspicion, done.loss
            ctx.curve(phase="enhance", step=done.number, alpha=round(done.alpha, 6), loss=round(loss, 6), accuracy=round(done.fitted, 6))
            ctx.progress("enhance", done.number, params.rounds, f"loss {loss:.3f} fitted {done.fitted:.3f}")
        logits = predict(model, images)
        of_label = logits.softmax(1).gather(1, labels[:, None])[:, 0]
        columns = {"suspicion": of_label, "kl_suspicion": suspicious.float(), "predicted": logits.argmax(1)}
        save_model(model, network.description, out)
        ctx.metrics = {"train_accuracy": float((logits.argmax(1) == labels).float().mean()), "loss": loss}
    write_parquet(scores_table(held, {name: tensor.cpu().numpy() for name, tensor in columns.items()}), out / "scores.parquet")


def _span(margin: torch.Tensor) -> float:
    low, high = TAILS
    return float(margin.quantile(high) - margin.quantile(low))


if __name__ == "__main__":
    main(sys.modules[__name__])
