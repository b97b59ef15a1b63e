"""Measure the result: against the truth where there is one, and without it otherwise. No other stage reads the truth."""

import copy
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from meca.data.store import Store
from meca.errors import MecaError
from meca.files import canonical_json, read_json
from meca.method.relabel import RelabelParams
from meca.metrics import ATTACK_KEYS, accuracy, attack_figures, detection, separation
from meca.models import NetworkParams, load_model
from meca.models.weights import start
from meca.stages.graph import Output
from meca.stages.runtime import Context, main
from meca.stages.tensors import column, describe_network, hold, open_train, read_rows
from meca.training.device import Device, EngineParams, prepare
from meca.training.engine import Data, Session, predict, side_by_side
from meca.training.images import Images
from meca.training.trainer import Recipe

NO_TRUTH = "true and false positive rate (no truth is known)"
UNKNOWN = [
    "attack success rate (no trigger is known)",
    NO_TRUTH,
    "accuracy of a model trained on the truly clean part",
]

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Figures = dict[str, Any]
PASSES = ("plain", "tuned")  # of a reference: those of train_clean, and those of relabel_finetune after them


@dataclass(frozen=True)
class EvaluateParams:
    """Group `evaluate` of params.yaml."""

    references: bool


def run(
    ctx: Context,
    store: Path,
    truth: Path,
    partition: Path,
    enhance: Path,
    split: Path,
    train_clean: Path,
    relabel_finetune: Path,
    out: Output,
    *,
    engine: EngineParams,
    network: NetworkParams,
    train_clean_params: Recipe,
    relabel_finetune_params: RelabelParams,
    evaluate: EvaluateParams,
) -> None:
    """Write every measure that can be known, beside two references of the same recipes: no defence, and the oracle."""
    recipes, device = (train_clean_params, relabel_finetune_params.recipe), prepare(engine)
    data, images, labels = open_train(store, device)
    classes = len(data.info.class_names)
    attack = read_json(truth / "attack.json")
    known = attack["attack"] != "none"
    marked = known or "noise" in attack  # wrong labels without an attack have a truth, too
    test_labels: Ints = data.labels[data.test]
    views = [truth / name for name in attack["views"]] if known else []
    tested = [data.images[data.test], *(_triggered(view, data.images[data.test].shape) for view in views)]
    test, *triggered = (hold(pixels, device, len(tested)) for pixels in tested)
    targets: list[int] = attack["targets"] if known else []
    triggers: list[dict[str, Any]] = attack["triggers"] if known else []
    # A trigger that leads classes to different ones is held against the class of each image.
    leads: list[int | list[int]] = [each["target_of"] if each["target_class"] is None else each["target_class"] for each in triggers]
    sources: list[list[int] | None] = [each["source_classes"] for each in triggers]
    names: list[str] = [each["attack"] for each in triggers]

    def measure(model: torch.nn.Module) -> Figures | None:
        if len(test) == 0:
            return None
        # The enhanced model has two outputs a class.
        clean, *answers = (predict(model, images).argmax(1).cpu().numpy() % classes for images in (test, *triggered))
        found = accuracy(clean, test_labels, classes)
        if not known:
            return found | dict.fromkeys(ATTACK_KEYS)
        return found | attack_figures(answers, clean, test_labels, classes, leads, sources, names)

    models = {"enhanced": enhance, "clean": train_clean, "final": relabel_finetune}
    result: dict[str, Any] = {name: measure(load_model(folder).to(device.name)) for name, folder in models.items()}
    for i, name in enumerate(models):
        if result[name] is not None:
            ctx.curve(phase="rounds", step=i, model=name, acc=result[name]["acc"], **({"asr": result[name]["asr"]} if known else {}))
    result |= {"known": known, "attack": attack, "detection": None, "separation": None, "no_defence": None, "oracle": None}
    # What goes out is compared with references that have had as many passes as it has.
    result |= {"references": None, "passes": PASSES[_tuned(relabel_finetune)]}
    n = len(labels)
    final = read_rows(relabel_finetune / "decisions.parquet", ["action", "suspicion"], n)
    flagged = np.array([word != "clean" for word in read_rows(split / "decisions.parquet", ["verdict"], n)["verdict"].to_pylist()])
    actions = np.array(final["action"].to_pylist(), dtype=object)
    kept = {"no_defence": np.ones(len(labels), dtype=bool)}
    if marked:
        marks = ("is_poisoned", "is_cover", "is_noise")
        table = read_rows(truth / "truth.parquet", marks, n)
        poisoned, covers, noise = (table[name].to_numpy(zero_copy_only=False) for name in marks)
        suspicion = final["suspicion"].to_numpy().astype(np.float64)
        given: Ints = labels.cpu().numpy()
        result["detection"] = detection(flagged, suspicion, poisoned, covers, given, targets, noise)
        early = column(partition / "scores.parquet", "suspicion", n).astype(np.float64)
        result["detection"]["auroc_partition"] = detection(flagged, early, poisoned, covers, given, targets, noise)["auroc"]
        chosen = column(partition / "scores.parquet", "likely_clean", n).astype(bool)
        result["detection"]["poison_in_likely_clean"] = int((chosen & poisoned).sum())
        result["detection"]["removed"] = int((actions == "remove").sum())
        # What counts in the end is poison that goes out under its given label, also where a flag was taken back.
        result["detection"]["poison_left"] = int((poisoned & (actions == "keep")).sum())
        clean = ~poisoned & ~covers & ~noise
        result["separation"] = {"partition": separation(early, poisoned, clean), "final": separation(suspicion, poisoned, clean)}
        kept["oracle"] = ~poisoned  # covers and wrong labels stay: they are no backdoor
    if not known:
        unknown = [line for line in UNKNOWN if not (marked and line == NO_TRUTH)]
        result["unknown"] = [*unknown, *(["accuracy (there is no test split)"] if len(test) == 0 else [])]
    if known and evaluate.references:
        told: dict[str, list[tuple[int, float, float]]] = {f"{name}{more}": [] for name in kept for more in ("", "_tuned")}

        def session(name: str, passes: int) -> Session:
            def note(epoch: int, loss: float, fitted: float) -> None:
                told[name].append((epoch, loss, fitted))
                ctx.progress(f"evaluate: {name}", epoch, passes, f"loss {loss:.3f} accuracy {fitted:.3f}")

            return Session(ctx.seed, device, ctx.checkpoints, note, name=f"{name}-")

        with ctx.timed("references"):
            result["references"] = references(kept, (data, images, labels), network, recipes, device, session, measure)
        for name, points in told.items():
            for epoch, loss, fitted in points:
                ctx.curve(phase=name, epoch=epoch, loss=round(loss, 6), accuracy=round(fitted, 6))
        result |= result["references"][result["passes"]]
    (out / "evaluation.json").write_text(canonical_json(result), encoding="utf-8")
    ctx.metrics = _scalars(result, read_json(relabel_finetune / "verdict.json"))


def references(
    kept: Mapping[str, Bools],
    given: tuple[Store, Images, torch.Tensor],
    network: NetworkParams,
    recipes: tuple[Recipe, Recipe],
    device: Device,
    session: Callable[[str, int], Session],
    measure: Callable[[torch.nn.Module], Figures | None],
) -> dict[str, dict[str, Figures | None]]:
    """Train a network on each of some sets of samples, with their given labels, and return what `measure` says of it.

    Both ways are always trained: runs that share their references differ in whether their final model was tuned.

    Args:
        kept: bool [n] for each reference, by name: the samples that it is trained on.
        given: The store, its training images uint8 [n h w c] and labels int64 [n] on the device.
        network: What to train, and the weights that it starts from.
        recipes: Of train_clean and of relabel_finetune.
        device: From `prepare`.
        session: Makes the session of a training from its name and the number of its passes.
        measure: Figures of a trained network.

    Returns:
        `plain` and `tuned` (see `PASSES`), each by the names of `kept`. `plain` is comparable with the clean model, `tuned` with a final one that
        relabel_finetune has trained further.
    """
    data, images, labels = given
    from_here = start(describe_network(data, images, network), network)

    def train(name: str) -> tuple[torch.nn.Module, torch.nn.Module]:
        mine = torch.from_numpy(kept[name]).to(device.name)
        first, further = (recipe.passes(int(mine.sum())) for recipe in recipes)
        begun = session(name, first)
        plain = begun.train(
            from_here.build(begun.draws("train_clean", "init")).to(device.name), Data(images, labels), recipes[0], "train_clean", mine
        )
        again = session(f"{name}_tuned", further)
        return plain, again.train(copy.deepcopy(plain), Data(images, labels), recipes[1], "relabel_finetune", mine)

    trained = side_by_side([partial(train, name) for name in kept], device)
    return {way: {name: measure(models[at]) for name, models in zip(kept, trained, strict=True)} for at, way in enumerate(PASSES)}


def _tuned(relabel_finetune: Path) -> bool:
    """Tell whether relabel_finetune has trained the clean model further."""
    passes = read_json(relabel_finetune / "metrics.json").get("passes")
    if type(passes) is not int:
        raise MecaError(f"Expected the number of passes in {relabel_finetune / 'metrics.json'}, got {passes!r}; run stage relabel_finetune again.")
    return passes > 0


def _triggered(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    try:
        images: NDArray[np.uint8] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise MecaError(f"{path} cannot be read ({error}); run stage poison again.") from None
    if images.dtype != np.uint8 or images.shape != shape:
        raise MecaError(f"Expected uint8 {list(shape)} in {path}, got {images.dtype} {list(images.shape)}; run stage poison again.")
    return images


def _scalars(result: dict[str, Any], verdict: dict[str, Any]) -> dict[str, float | int | None]:
    """Return the flat figures that trackers and gates read."""
    scalars: dict[str, float | int | None] = {}
    for prefix, name in (("", "final"), ("clean_", "clean"), ("enhanced_", "enhanced"), ("no_defence_", "no_defence"), ("oracle_", "oracle")):
        found = result[name]
        if found is None:
            if name == "final":
                scalars |= {"acc": None, "min_recall": None}
            continue
        scalars[prefix + "acc"] = found["acc"]
        if result["known"]:
            figures = ("asr", "asr_k", "asr_n", "ra", "target_recall", "predicted_target", "asr_all", "asr_leak")
            scalars |= {prefix + key: found[key] for key in figures if key in found}
            scalars |= {f"{prefix}asr_{each['target_class']}": each["asr"] for each in found.get("per_trigger", ())}
        if name == "final":
            recalls = [r for r in found["recall"] if r is not None]
            scalars["min_recall"] = min(recalls) if recalls else None
            scalars |= {f"recall_{c}": r for c, r in enumerate(found["recall"])}
    if result["detection"] is not None:
        scalars |= {
            key: result["detection"][key]
            for key in ("tpr", "fpr", "fpr_flagged", "auroc", "auroc_target", "poison_left", "removed", "flagged", "covers_flagged", "noise_flagged")
        }
    return scalars | {"leak": verdict["leak"], "leak_power": verdict.get("leak_power")}


if __name__ == "__main__":
    main(sys.modules[__name__])
