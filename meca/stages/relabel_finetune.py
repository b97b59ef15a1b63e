"""Give the flagged samples the label that the clean model sees in them, fine-tune, and test the result for a leak."""

import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from meca.data.store import write_parquet
from meca.errors import MecaError
from meca.files import canonical_json, read_json
from meca.method.leak import cases, measure
from meca.method.proofs import CONFIRMED, Proof
from meca.method.relabel import Relabelled, RelabelParams, relabel
from meca.metrics import share
from meca.models import load_model, read_description, save_model
from meca.stages.graph import Output
from meca.stages.runtime import Context, main
from meca.stages.tensors import EVERYTHING, epoch_notes, open_train, read_rows
from meca.training.device import EngineParams, prepare
from meca.training.engine import Data, Session, predict


def run(
    ctx: Context,
    store: Path,
    partition: Path,
    split: Path,
    train_clean: Path,
    out: Output,
    *,
    engine: EngineParams,
    relabel_finetune: RelabelParams,
) -> None:
    """Write the final model, the final decisions and the final verdict."""
    params, device = relabel_finetune, prepare(engine)
    _, images, labels = open_train(store, device)
    earlier = read_rows(split / "decisions.parquet", ["verdict", "action", "new_label", "clean_pred", "reasons", "suspicion", "proof"], len(labels))
    verdict: dict[str, Any] = read_json(split / "verdict.json")
    flagged = torch.tensor([word != "clean" for word in earlier["verdict"].to_pylist()], device=device.name)
    model, description = load_model(train_clean).to(device.name), read_description(train_clean)
    probabilities = predict(model, images).softmax(1)
    suspicion = torch.from_numpy(earlier["suspicion"].to_numpy().copy()).to(device.name)
    decided = relabel(probabilities, labels, flagged, suspicion, _proofs(earlier), params)
    # What waits for a person stays out, whatever the clean model says of it.
    waits = torch.tensor([word == "review" for word in earlier["verdict"].to_pylist()], device=device.name)
    decided = Relabelled(torch.where(waits, labels, decided.labels), decided.keep & ~waits, decided.changed & ~waits)
    passes = 0
    if not torch.equal(decided.keep, ~flagged) and verdict["verdict"] != "inconclusive":
        passes = params.recipe.passes(int(decided.keep.sum()))
        with ctx.timed("train"):
            session = Session(ctx.seed, device, ctx.checkpoints, epoch_notes(ctx, "finetune", passes))
            session.train(model, Data(images, decided.labels), params.recipe, "relabel_finetune", decided.keep)
    save_model(model, description, out)
    content = probabilities.argmax(1)
    # A short training may not have learnt what a full one has.
    learnt = load_model(split / EVERYTHING if (split / EVERYTHING).is_dir() else partition).to(device.name)
    tests = [] if verdict["target_class"] is None else cases(Data(images, labels), flagged, content, ctx.seed, params.probe)
    leak = {"leak": measure(model, tests).worst, "leak_power": measure(learnt, tests).weakest}
    final = _final(earlier, decided, content, verdict["verdict"])
    write_parquet(final, out / "decisions.parquet")
    believed = final["verdict"].to_pylist().count("poisoned")  # without the flags that were taken back
    verdict["estimated_rate"] = share(believed, len(labels)) if believed else None
    (out / "verdict.json").write_text(canonical_json(verdict | leak), encoding="utf-8")
    actions: list[str] = final["action"].to_pylist()
    relabelled = actions.count("relabel")
    ctx.metrics = {"relabelled": relabelled, "kept": actions.count("keep") + relabelled, "passes": passes, **leak}


def _proofs(earlier: pa.Table) -> list[Proof | None]:
    """Return how the class of each flagged sample was proven; a word that says nothing could hand poison back."""
    proofs, words = earlier["proof"].to_pylist(), earlier["verdict"].to_pylist()
    for row, (proof, word) in enumerate(zip(proofs, words, strict=True)):
        if (word != "clean" or proof is not None) and proof not in CONFIRMED:
            raise MecaError(f"Expected a proof of {', '.join(CONFIRMED)} for row {row}, which is flagged, got {proof!r}; run stage split again.")
    return proofs


def _final(earlier: pa.Table, decided: Relabelled, content: torch.Tensor, verdict: str) -> pa.Table:
    changed, keep = decided.changed.cpu().numpy(), decided.keep.cpu().numpy()
    new, seen = decided.labels.cpu().numpy(), content.cpu().numpy()
    actions, reasons, words = earlier["action"].to_pylist(), earlier["reasons"].to_pylist(), earlier["verdict"].to_pylist()
    if verdict != "inconclusive":
        held = [word == "review" for word in words]
        actions = ["quarantine" if h else "relabel" if c else "keep" if k else "remove" for h, c, k in zip(held, changed, keep, strict=True)]
        # A flag that the clean model takes back: the sample stood at the border and looks like its label.
        confirmed = [word != "clean" and action == "keep" for word, action in zip(words, actions, strict=True)]
        reasons = [
            [*codes, *(["contradicted"] if action == "relabel" else ["not-relabelled"] if action == "remove" else ["confirmed"] * taken_back)]
            for codes, action, taken_back in zip(reasons, actions, confirmed, strict=True)
        ]
        words = ["clean" if taken_back else word for word, taken_back in zip(words, confirmed, strict=True)]
    replaced = {
        "verdict": pa.array(words),
        "action": pa.array(actions),
        "new_label": pa.array([int(label) if a == "relabel" else None for label, a in zip(new, actions, strict=True)], pa.int64()),
        "clean_pred": pa.array(seen, pa.int64()),
        "reasons": pa.array(reasons, pa.list_(pa.string())),
    }
    table = earlier
    for name, values in replaced.items():
        table = table.set_column(table.column_names.index(name), name, values)
    return table


if __name__ == "__main__":
    main(sys.modules[__name__])
