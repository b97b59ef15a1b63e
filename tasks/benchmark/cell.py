"""One cell of a benchmark: a planted attack, the bare pipeline or its detection alone, and the row of figures that comes out of it.

    python -m tasks.benchmark.cell FOLDER     reads FOLDER/cell.json, runs in FOLDER/run, writes FOLDER/row.json

A process of its own for each cell: torch fixes its threads when it starts, and a cell that dies takes no other with it.
Started again in the same folder it resumes where it was, stage by stage.
"""

import argparse
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from meca.errors import MecaError
from meca.files import atomic_write, canonical_json, read_json
from meca.params import Params
from tasks.benchmark.seen import Seen, cost, plain_training

__all__ = [
    "COLUMNS",
    "DETECTED",
    "DETECTION",
    "OWN_OUTPUT",
    "REFERENCES",
    "detected",
    "evidence",
    "flags",
    "measure",
    "own_output",
    "p_values",
    "poison_share",
    "row_of",
    "taken_over",
    "undefended",
]

# What came out of a cell. Of a cell that failed all of them are null: unknown is never left out.
COLUMNS = (
    "dataset", "n_train", "n_test", "network", "stem", "poison_rate", "acc", "asr_k", "asr_n", "asr_per_trigger", "ra", "recall", "tpr", "fpr",
    "fpr_flagged", "auroc", "auroc_target", "poison_left", "removed", "relabelled", "verdict", "target_class", "leak", "leak_power",
    "clean_acc", "clean_asr", "no_defence_acc", "no_defence_asr", "oracle_acc", "oracle_asr", "oracle_recall", "equal_passes", "evidence",
    "separation", "references", "p_values", "poison_share", "samples", "cost", "taken_over", "peak_mib", "stage_seconds",
    "hardware", "torch", "python", "seconds",
)  # fmt: skip
DETECTION = "split"  # the last stage of a cell that detects alone
# What comes out of one.
DETECTED = (
    "dataset", "n_train", "poison_rate", "tpr", "fpr", "fpr_flagged", "flagged", "flagged_share", "flagged_classes", "verdict", "target_class",
    "evidence", "p_values", "poison_share", "samples", "cost", "taken_over", "peak_mib", "stage_seconds",
    "hardware", "torch", "python", "seconds",
)  # fmt: skip
# What the detection says of what a run has published.
OWN_OUTPUT = ("n_train", "verdict", "flagged", "flagged_share", "flagged_classes", "evidence", "p_values", "cost", "stage_seconds", "seconds")
REFERENCES = ("no_defence", "oracle")
EVIDENCE_CLASSES, EVIDENCE_LENGTH = 5, 900  # classes whose evidence a row tells, and characters of all of it
DIGITS = 3  # of a p-value in a row
WEAKER = ("valley", "p", "p_value", "q", "q_value")  # evidence that is the stronger the smaller it is
P_OF_VIEW = ": p"  # ends the name of a view: its p-value, which is the stronger the smaller it is
NO_SHARES = ("range", "separation", "spread", "foreign_spread")  # all other evidence is a share, and classes are told in its order
NO_EVIDENCE = ("label", "n", "suspects", "middle", "threshold")  # numbers of an entry that say where, not how much


def measure(folder: Path, params: Params, references: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Run the pipeline in `folder`, in this process, and return the keys of `COLUMNS`.

    Args:
        folder: Gets what the stages write; what is finished there is not run again.
        params: Every parameter of the run; `poison.attack: none` plants nothing.
        references: `plain` and `tuned` (docs/files.md) of `no_defence` and `oracle` as another run with the same data, attack, seed and recipes
            measured them; they are then not trained again. None trains them.

    Raises:
        MecaError: A stage failed; what is finished stays in `folder`.
    """
    from meca.params import with_settings
    from meca.pipeline import run

    started = time.perf_counter()
    if references is not None:
        params = with_settings(params, {"evaluate.references": False})
    with Seen(folder) as seen:
        summary = run(folder, params, told=seen.finished)
    work = folder / "work"
    found = read_json(work / "evaluate" / "evaluation.json")
    receipts = {path.stem: read_json(path) for path in sorted((work / "receipts").glob("*.json"))}
    references = dict(references or found["references"] or {})
    split = flags(work / "split")
    if not found["known"] and not any(flagged for flagged, _ in split.values()):
        # Nothing was planted and nothing was flagged: the clean model is both references, bit for bit.
        references["plain"] = dict.fromkeys(REFERENCES, found["clean"])
    elif not found["known"] and not references.get(found["passes"]) and found["clean"]:
        references = undefended(folder, params)  # a false alarm must not go without what it cost
    references = {way: {name: _short(of[name]) for name in REFERENCES} for way, of in references.items() if of}
    found |= references.get(found["passes"]) or dict.fromkeys(REFERENCES)
    info, verdict = read_json(folder / "data" / "store" / "store.json"), read_json(work / "relabel_finetune" / "verdict.json")
    return {
        **row_of(found, summary, info, read_json(work / "train_clean" / "model.json")["network"], verdict, split),
        "equal_passes": True if found["passes"] in references else None,
        "references": references,
        "p_values": p_values(verdict, len(info["class_names"])),
        "poison_share": poison_share(folder),
        "taken_over": taken_over(work / DETECTION, params),
        **_spent(params, receipts, seen, info["n_train"], started),
    }


def detected(folder: Path, params: Params) -> dict[str, Any]:
    """Run the pipeline in `folder` until `split`, in this process, and return the keys of `DETECTED`.

    Args:
        folder: Gets what the stages write; what is finished there is not run again, what was begun begins anew, so that its cost is known.
        params: Every parameter of the run; `poison.attack: none` plants nothing.

    Raises:
        MecaError: A stage failed; what is finished stays in `folder`.
    """
    from meca.data.store import read_parquet
    from meca.metrics import detection
    from meca.pipeline import run

    started = time.perf_counter()
    shutil.rmtree(folder / ".meca" / "checkpoints", ignore_errors=True)
    with Seen(folder) as seen:
        run(folder, params, told=seen.finished, until=DETECTION)
    info, split = read_json(folder / "data" / "store" / "store.json"), folder / "work" / DETECTION
    receipts = {path.stem: read_json(path) for path in sorted((folder / "work" / "receipts").glob("*.json"))}
    verdict, attack = read_json(split / "verdict.json"), read_json(folder / "data" / "truth" / "attack.json")
    decisions, by_class = read_parquet(split / "decisions.parquet"), flags(split)
    flagged, n = sum(count for count, _ in by_class.values()), info["n_train"]
    if (marks := _marks(folder)) is None:  # nothing was planted: every flag is a false alarm
        told: dict[str, Any] = {"tpr": None, "fpr": flagged / n, "fpr_flagged": _share(each for each in by_class.values() if each[0])}
    else:
        words, suspicion = decisions["verdict"].to_numpy(zero_copy_only=False), decisions["suspicion"].to_numpy()
        labels = decisions["label"].to_numpy()
        told = detection(words != "clean", suspicion, marks["is_poisoned"], marks["is_cover"], labels, attack.get("targets"), marks["is_noise"])
    return {
        "dataset": info["source"].get("name"),
        "n_train": n,
        "poison_rate": attack.get("poison_rate", 0.0),
        **{key: told[key] for key in ("tpr", "fpr", "fpr_flagged")},
        "flagged": flagged,
        "flagged_share": flagged / n,
        "flagged_classes": [label for label, (count, _) in by_class.items() if count],
        "verdict": verdict["verdict"],
        "target_class": verdict["target_class"],
        "evidence": evidence(verdict, by_class),
        "p_values": p_values(verdict, len(info["class_names"])),
        "poison_share": poison_share(folder),
        "taken_over": taken_over(split, params),
        **_spent(params, receipts, seen, n, started),
    }


def taken_over(split: Path, params: Params) -> bool:
    """Tell whether `train_clean` takes its network over from detection, so that it costs nothing more.

    Args:
        split: Folder of that stage.
        params: Of the run.
    """
    from meca.models import NetworkParams, read_description
    from meca.models.weights import IMAGENET
    from meca.stages.tensors import KEPT

    network = params.group("network", NetworkParams)
    if network.weights or not (split / KEPT).is_dir():
        return False
    kept = read_description(split / KEPT)
    return kept.network == network.built(kept.height, kept.width) and (kept.mean == IMAGENET[0]) == (network.normalize == "imagenet")


def own_output(run: Path, folder: Path, params: Params) -> dict[str, Any] | None:
    """Ask the detection once more, of the sanitized data that a run has published, and return the keys of `OWN_OUTPUT`; None without such data.

    What meca has cleaned, meca must not find poisoned: else either what it left or what it did looks like an attack.

    Args:
        run: The folder of a whole run, see `measure`.
        folder: Gets what the stages write this time; what is finished there is not run again.
        params: Of that run. Nothing is planted now, nothing left out, and what was published is read as it is.

    Raises:
        MecaError: A stage failed; what is finished stays in `folder`.
    """
    from meca.params import with_settings

    data = run / "published" / "data"
    if not data.is_dir():  # an inconclusive run publishes none
        return None
    as_it_is = {"source": str(data.resolve()), "origin": "", "format": "auto", "label_column": "auto", "train_limit": 0, "test_limit": 0}
    nothing = {"attack": "none", "label_noise": 0.0, "imbalance": 1.0}
    settings = {f"ingest.{key}": value for key, value in as_it_is.items()} | {f"poison.{key}": value for key, value in nothing.items()}
    found = detected(folder, with_settings(params, settings))
    return {key: found[key] for key in OWN_OUTPUT}


def _spent(params: Params, receipts: Mapping[str, Any], seen: Seen, n: int, started: float) -> dict[str, Any]:
    seconds, first = {name: receipt["seconds"] for name, receipt in receipts.items()}, receipts["partition"]
    counted, plain = {name: seen.stages.get(name) for name in receipts}, plain_training(params, n)
    return {
        "samples": {"plain_training": plain, **counted},
        "cost": cost(counted, plain),
        "peak_mib": max(receipt["peak_mib"] for receipt in receipts.values()),
        "stage_seconds": seconds,
        "hardware": hardware(params, first["hardware"]["processor"]),
        "torch": first["versions"]["torch"],
        "python": platform.python_version(),
        # Of a run that was resumed the stages say more than our clock.
        "seconds": round(max(time.perf_counter() - started, sum(seconds.values())), 1),
    }


def _marks(folder: Path) -> dict[str, Any] | None:
    """Return which samples the truth marks as poison, cover or wrong label, bool [n] each; None where nothing was planted."""
    from meca.data.store import read_parquet

    file = folder / "data" / "truth" / "truth.parquet"
    if not file.is_file():
        return None
    table = read_parquet(file)
    return {name: table[name].to_numpy(zero_copy_only=False) for name in ("is_poisoned", "is_cover", "is_noise")}


def poison_share(folder: Path) -> float | None:
    """Return the largest share of a class, as its labels are given, that is poison; None where nothing was planted."""
    from meca.data.store import read_parquet

    marks = _marks(folder)
    if marks is None or not marks["is_poisoned"].any():
        return None
    labels = read_parquet(folder / "work" / DETECTION / "decisions.parquet")["label"].to_numpy()
    return max(float(marks["is_poisoned"][labels == label].mean()) for label in set(labels.tolist()))


def p_values(verdict: Mapping[str, Any], classes: int) -> list[float | None] | None:
    """Return for each class the p-value that it holds no trigger, to three digits; None where a class, or all of the verdict, has none.

    Args:
        verdict: verdict.json; in older ones no entry of its evidence has a p-value.
        classes: Number of classes.
    """
    found: list[float | None] = [None] * classes
    for entry in verdict.get("evidence", ()):
        if isinstance(value := entry.get("p"), int | float) and not isinstance(value, bool):
            found[int(entry["label"])] = float(f"{value:.{DIGITS}g}")
    return None if all(value is None for value in found) else found


def flags(split: Path) -> dict[int, tuple[int, int]]:
    """Return how many samples of each class `split` flagged, and how many there are."""
    from meca.data.store import read_parquet

    table = read_parquet(split / "decisions.parquet")
    found: dict[int, tuple[int, int]] = {}
    for label, word in zip(table["label"].to_pylist(), table["verdict"].to_pylist(), strict=True):
        flagged, n = found.get(label, (0, 0))
        found[label] = flagged + (word != "clean"), n + 1
    return dict(sorted(found.items()))


def undefended(folder: Path, params: Params) -> dict[str, dict[str, Any]]:
    """Train the references of a set in which nothing was planted, where both are trained on everything, and return them."""
    import numpy as np
    import torch

    from meca.method.relabel import RelabelParams
    from meca.metrics import ATTACK_KEYS, accuracy
    from meca.models import NetworkParams
    from meca.stages.evaluate import references
    from meca.stages.tensors import hold, open_train
    from meca.training.device import EngineParams, prepare
    from meca.training.engine import Session, predict
    from meca.training.trainer import Recipe

    device = prepare(params.group("engine", EngineParams))
    data, images, labels = open_train(folder / "data" / "store", device)
    test, classes = hold(data.images[data.test], device), len(data.info.class_names)

    def measured(model: torch.nn.Module) -> dict[str, Any]:
        return accuracy(predict(model, test).argmax(1).cpu().numpy(), data.labels[data.test], classes) | dict.fromkeys(ATTACK_KEYS)

    recipes = (params.group("train_clean", Recipe), params.group("relabel_finetune", RelabelParams).recipe)
    everything = {"no_defence": np.ones(len(labels), dtype=bool)}
    network = params.group("network", NetworkParams)
    found = references(everything, (data, images, labels), network, recipes, device, lambda *_: Session(params.seed, device), measured)
    return {way: dict.fromkeys(REFERENCES, of["no_defence"]) for way, of in found.items()}


def _short(figures: Mapping[str, Any] | None) -> dict[str, Any] | None:
    # A row is kept for good: the counts of a hundred classes by a hundred would be most of it.
    if figures is None:
        return None
    each = _per_trigger(figures)
    return {key: value for key, value in figures.items() if key not in ("confusion", "per_trigger")} | ({"asr_per_trigger": each} if each else {})


def _per_trigger(figures: Mapping[str, Any]) -> dict[str, float] | None:
    """Return the ASR of each trigger by its target class, where there are several: the headline is the largest."""
    return {str(each["target_class"]): each["asr"] for each in figures.get("per_trigger", ())} or None


def evidence(verdict: Mapping[str, Any], flagged: Mapping[int, tuple[int, int]]) -> dict[str, Any]:
    """Return in less than 1 kB how near a decision was.

    Args:
        verdict: verdict.json.
        flagged: See `flags`.

    Returns:
        `verdict`; `flagged`: samples of each flagged class, by its number; `doubtful`: classes; `strongest`: of the flagged classes and those next to
        them the strongest value of each kind of evidence that `split` wrote down, and `left_out`, how many classes are not told.
    """
    strongest: dict[int, dict[str, float]] = {label: {} for label, (count, _) in flagged.items() if count}
    for entry in (*verdict.get("evidence", ()), *verdict.get("second_look", ())):
        of = strongest.setdefault(int(entry["label"]), {})
        for key, value in (*entry.items(), *_of_views(entry.get("views") or {})):
            if isinstance(value, int | float) and not isinstance(value, bool) and key not in NO_EVIDENCE:
                of[key] = (min if key in WEAKER or key.endswith(P_OF_VIEW) else max)(of.get(key, value), value)

    def near(label: int) -> tuple[bool, bool, float, float]:
        values = strongest[label]
        shares = [value for key, value in values.items() if key not in WEAKER and key not in NO_SHARES and not key.endswith(P_OF_VIEW)]
        p = [value for key, value in values.items() if key in WEAKER[1:]]
        return bool(flagged.get(label, (0,))[0]), label in verdict.get("doubtful", ()), -min(p, default=1.0), max(shares, default=0.0)

    order = sorted(strongest, key=near, reverse=True)
    most = sorted((label for label in order if flagged.get(label, (0,))[0]), key=lambda label: -flagged[label][0])

    def told(shown: int) -> dict[str, Any]:
        return {
            "verdict": verdict["verdict"],
            "flagged": {str(label): flagged[label][0] for label in most[: 4 * shown]},
            "doubtful": list(verdict.get("doubtful", ()))[: 4 * shown],
            "strongest": [{"label": label, **{key: float(f"{value:.4g}") for key, value in strongest[label].items()}} for label in order[:shown]],
            "left_out": {"flagged": max(0, len(most) - 4 * shown), "strongest": max(0, len(order) - shown)},
        }

    every = (told(shown) for shown in range(EVIDENCE_CLASSES, 0, -1))
    return next((each for each in every if len(canonical_json(each, indent=None)) <= EVIDENCE_LENGTH), told(0))


def _of_views(views: Mapping[str, Mapping[str, float | None]]) -> Iterable[tuple[str, float | None]]:
    """Return the values of the views of a class, and their p-values, under names of their own."""
    for name, of in views.items():
        yield name, of.get("value")
        yield f"{name}{P_OF_VIEW}", of.get("p")


def row_of(
    found: Mapping[str, Any],
    summary: Mapping[str, Any],
    info: Mapping[str, Any],
    network: Mapping[str, Any],
    verdict: Mapping[str, Any],
    flagged: Mapping[int, tuple[int, int]],
) -> dict[str, Any]:
    """Return the part of a row that says what came out; fractions are in [0, 1].

    Args:
        found: evaluation.json (docs/files.md), with the references in force.
        summary: summary.json.
        info: store.json.
        network: Of the model that goes out, from its model.json.
        verdict: verdict.json of relabel_finetune.
        flagged: See `flags`. Where nothing was planted all of them are false alarms.
    """
    final, oracle, bare, told = found["final"] or {}, found["oracle"] or {}, found["no_defence"] or {}, found["detection"] or {}
    clean, counts = found["clean"] or {}, summary["counts"]

    return {
        "dataset": info["source"].get("name"),
        "n_train": info["n_train"],
        "n_test": info["n_test"],
        "network": network["name"],
        "stem": network["stem"],
        "poison_rate": found["attack"].get("poison_rate", 0.0),
        **{key: final.get(key) for key in ("acc", "asr_k", "asr_n", "ra", "recall")},
        "asr_per_trigger": _per_trigger(final),
        "tpr": told.get("tpr"),
        "fpr": told.get("fpr") if told else _share(flagged.values()),
        "fpr_flagged": told.get("fpr_flagged") if told else _share(each for each in flagged.values() if each[0]),
        **{key: told.get(key) for key in ("auroc", "auroc_target", "poison_left")},
        "removed": counts["removed"],
        "relabelled": counts["relabelled"],
        "verdict": summary["verdict"],
        "target_class": verdict["target_class"],
        "leak": verdict["leak"],
        "leak_power": verdict.get("leak_power"),
        "clean_acc": clean.get("acc"),
        "clean_asr": clean.get("asr"),
        "no_defence_acc": bare.get("acc"),
        "no_defence_asr": bare.get("asr"),
        "oracle_acc": oracle.get("acc"),
        "oracle_asr": oracle.get("asr"),
        "oracle_recall": oracle.get("recall"),
        "evidence": evidence(verdict, flagged),
        "separation": found.get("separation"),
    }


def _share(classes: Iterable[tuple[int, int]]) -> float | None:
    sums = [sum(each) for each in zip(*classes, strict=True)]
    return sums[0] / sums[1] if sums else None


def hardware(params: Params, processor: str) -> str:
    """Return what this process computed on: the GPU, or the processor with the threads that it used."""
    from meca.training.device import EngineParams, prepare

    device = prepare(params.group("engine", EngineParams))
    if device.name.startswith("cuda"):
        import torch

        return f"{torch.cuda.get_device_name()}, {os.cpu_count()} cores"
    return f"{processor}, {device.threads} of {os.cpu_count()} cores"


def main() -> None:
    """Run the cell of a folder as a program; its last line on stderr says why it failed."""
    from meca.machine import die_with_parent

    die_with_parent()
    parser = argparse.ArgumentParser(prog="python -m tasks.benchmark.cell", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="with cell.json")
    folder = parser.parse_args().folder
    try:
        given = read_json(folder / "cell.json")
        params = Params(given["params"], "params.yaml")
        row = detected(folder / "run", params) if given["until"] else measure(folder / "run", params, given["references"])
        if given.get("again"):
            row["own_output"] = own_output(folder / "run", folder / "again", params)
        atomic_write(folder / "row.json", canonical_json(row))
    except MecaError as error:
        print(error, file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except Exception as error:  # whatever it is, the grid needs it as one line
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        raise SystemExit(MecaError.exit_code) from None


if __name__ == "__main__":
    main()
