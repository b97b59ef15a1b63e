"""Train the model in which a backdoor stands out, and rescore every sample with it."""

import sys
from functools import partial
from pathlib import Path

import torch

from meca.data.store import write_parquet
from meca.method.enhance import SIDES, EnhanceParams, TwoOutputs, suspects_first, two_outputs, unlearn
from meca.method.partition import PartitionParams, choose, signals, suspicion
from meca.models import load_model, read_description, save_model
from meca.stages.graph import Output
from meca.stages.runtime import Context, main
from meca.stages.tensors import column, open_train, scores_table
from meca.training.device import EngineParams, prepare
from meca.training.engine import predict, side_by_side
from meca.training.seeds import generator


def run(
    ctx: Context, store: Path, partition: Path, out: Output, *, engine: EngineParams, partition_params: PartitionParams, enhance: EnhanceParams
) -> None:
    """Write the enhanced model and its scores."""
    params, detector, device = enhance, partition_params, prepare(engine)
    data, images, labels = open_train(store, device)
    description = read_description(partition)
    model = load_model(partition).to(device.name)
    scores = partition / "scores.parquet"
    suspicious, axis = (torch.from_numpy(column(scores, name, len(labels)).copy()).to(device.name) for name in ("suspicion", "axis"))
    if params.method == "two_outputs":
        orders = suspects_first(suspicious, axis)
        told: dict[str, list[tuple[int, float, float]]] = {side: [] for side in SIDES}

        def judge(side: str) -> TwoOutputs:
            def note(number: int, loss: float, accuracy: float) -> None:
                told[side].append((number, loss, accuracy))
                ctx.progress(f"enhance: {side}", number, 2 * params.rounds, f"loss {loss:.3f}")

            return two_outputs(model, description, images, labels, orders[side], params, ctx.seed, side, ctx.checkpoints, note, device)

        with ctx.timed("train"):
            both = side_by_side([partial(judge, side) for side in SIDES], device)
        results = dict(zip(SIDES, both, strict=True))
        columns: dict[str, torch.Tensor] = {}
        spans: dict[str, float] = {}
        for side, found in results.items():
            for number, loss, accuracy in told[side]:
                ctx.curve(phase=f"enhance {side}", step=number, loss=round(loss, 6), accuracy=round(accuracy, 6))
            columns |= {f"margin_{side}": found.margin, f"called_{side}": found.called}
            spans[side] = max(float(found.margin[labels == c].quantile(0.96) - found.margin[labels == c].quantile(0.04)) for c in labels.unique())
        chosen = max(SIDES, key=lambda side: spans[side])
        columns["suspicion"] = columns[f"margin_{chosen}"].sigmoid()
        save_model(results[chosen].model, results[chosen].description, out)
        ctx.metrics = {f"range_{side}": spans[side] for side in SIDES}
    else:
        loss = 0.0
        for number in range(1, params.rounds + 1):
            share = params.alpha_start + (params.alpha_end - params.alpha_start) * (number - 1) / max(1, params.rounds - 1)
            clean = choose(suspicious, labels, share, detector.alpha_of)
            model, loss = unlearn(model, images, labels, clean, params, ctx.seed, number, ctx.checkpoints / f"{number}.safetensors", device)
            suspicious = suspicion(signals(model, images, labels, detector, generator(ctx.seed, "enhance", "masks", number)), detector.signals)
            fitted = float((predict(model, images).argmax(1) == labels).float().mean())
            ctx.curve(phase="enhance", step=number, alpha=round(share, 6), loss=round(loss, 6), accuracy=round(fitted, 6))
            ctx.progress("enhance", number, params.rounds, f"loss {loss:.3f} fitted {fitted:.3f}")
        logits = predict(model, images)
        given = logits.softmax(1).gather(1, labels[:, None])[:, 0]
        columns = {"suspicion": given, "kl_suspicion": suspicious.float(), "predicted": logits.argmax(1)}
        save_model(model, description, out)
        ctx.metrics = {"train_accuracy": float((logits.argmax(1) == labels).float().mean()), "loss": loss}
    write_parquet(scores_table(data, {name: tensor.cpu().numpy() for name, tensor in columns.items()}), out / "scores.parquet")


if __name__ == "__main__":
    main(sys.modules[__name__])
