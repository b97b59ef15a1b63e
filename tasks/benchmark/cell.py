"""One cell of a benchmark: a planted attack, the bare pipeline, and the row of figures that comes out of it.

    python -m tasks.benchmark.cell FOLDER     reads FOLDER/cell.json, runs in FOLDER/run, writes FOLDER/row.json

A process of its own for each cell: torch fixes its threads when it starts, and a cell that dies takes no other with it.
Started again in the same folder it resumes where it was, stage by stage.
"""

import argparse
import os
import platform
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from meca.errors import MecaError
from meca.files import atomic_write, canonical_json, read_json
from meca.params import Params

__all__ = ["COLUMNS", "measure", "row_of"]

# What came out of a cell. Of a cell that failed all of them are null: unknown is never left out.
COLUMNS = (
    "dataset", "n_train", "n_test", "network", "stem", "poison_rate", "acc", "asr_k", "asr_n", "ra", "recall", "tpr", "fpr", "auroc", "auroc_target",
    "poison_left", "removed", "relabelled", "verdict", "target_class", "leak", "leak_power", "clean_acc", "clean_asr", "no_defence_acc",
    "no_defence_asr", "oracle_acc", "oracle_asr", "oracle_recall", "separation", "references", "peak_mib", "stage_seconds", "hardware", "torch",
    "python", "seconds",
)  # fmt: skip
REFERENCES = ("no_defence", "oracle")


def measure(folder: Path, params: Params, references: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Run the pipeline in `folder`, in this process, and return the keys of `COLUMNS`.

    Args:
        folder: Gets what the stages write; what is finished there is not run again.
        params: Every parameter of the run; `poison.attack: none` plants nothing.
        references: `no_defence` and `oracle` as another run with the same data, attack, seed and recipe measured them; they
            are then not trained again. None trains them.

    Raises:
        MecaError: A stage failed; what is finished stays in `folder`.
    """
    from meca.params import with_settings
    from meca.pipeline import run

    started = time.perf_counter()
    if references is not None:
        params = with_settings(params, {"evaluate.references": False})
    summary = run(folder, params)
    work = folder / "work"
    found = read_json(work / "evaluate" / "evaluation.json")
    receipts = {path.stem: read_json(path) for path in sorted((work / "receipts").glob("*.json"))}
    if not found["known"] and summary["counts"]["kept"] == summary["counts"]["input"]:
        # Nothing was planted and nothing was taken out: the clean model is both references, bit for bit.
        references = dict.fromkeys(REFERENCES, found["clean"])
    found |= references or {}
    seconds = {name: receipt["seconds"] for name, receipt in receipts.items()}
    return {
        **row_of(
            found,
            summary,
            read_json(folder / "data" / "store" / "store.json"),
            read_json(work / "train_clean" / "model.json")["network"],
            read_json(work / "relabel_finetune" / "verdict.json"),
        ),
        "references": {name: found.get(name) for name in REFERENCES},
        "peak_mib": max(receipt["peak_mib"] for receipt in receipts.values()),
        "stage_seconds": seconds,
        "hardware": hardware(params, receipts["train_clean"]["hardware"]["processor"]),
        "torch": receipts["train_clean"]["versions"]["torch"],
        "python": platform.python_version(),
        # Of a run that was resumed the stages say more than our clock.
        "seconds": round(max(time.perf_counter() - started, sum(seconds.values())), 1),
    }


def row_of(
    found: Mapping[str, Any], summary: Mapping[str, Any], info: Mapping[str, Any], network: Mapping[str, Any], verdict: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the part of a row that says what came out; fractions are in [0, 1].

    Args:
        found: evaluation.json (docs/files.md), with the references in force.
        summary: summary.json.
        info: store.json.
        network: Of the model that goes out, from its model.json.
        verdict: verdict.json of relabel_finetune.
    """
    final, oracle, bare, flags = found["final"] or {}, found["oracle"] or {}, found["no_defence"] or {}, found["detection"] or {}
    clean, counts = found["clean"] or {}, summary["counts"]
    return {
        "dataset": info["source"].get("name"),
        "n_train": info["n_train"],
        "n_test": info["n_test"],
        "network": network["name"],
        "stem": network["stem"],
        "poison_rate": found["attack"].get("poison_rate", 0.0),
        **{key: final.get(key) for key in ("acc", "asr_k", "asr_n", "ra", "recall")},
        "tpr": flags.get("tpr"),
        "fpr": flags.get("fpr") if flags else (counts["removed"] + counts["relabelled"]) / counts["input"],
        **{key: flags.get(key) for key in ("auroc", "auroc_target", "poison_left")},
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
        "separation": found.get("separation"),
    }


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
        row = measure(folder / "run", Params(given["params"], "params.yaml"), given["references"])
        atomic_write(folder / "row.json", canonical_json(row))
    except MecaError as error:
        print(error, file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except Exception as error:  # whatever it is, the grid needs it as one line
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        raise SystemExit(MecaError.exit_code) from None


if __name__ == "__main__":
    main()
