"""The record of a run in MLflow: one parent run per result of the pipeline, one nested run per stage, each logged once.

    python -m tasks.mlflow.tracking --receipts work/receipts/ingest.json ... --out work/track     the stage `track`

What ran stands in the receipts; MLflow is told, never asked. Runs are found by stage key, so that logging again finds the
run of before: a finished one is left alone, a half-logged one is completed, and nothing is there twice. A stage whose
result two pipeline results share has one run, nested in the first; every parent names the runs of its stages in tags.

A server that is away, slow or refuses never fails a run: what it was not told is kept in `.meca/spool`, whole and sealed, and
told by the next run that reaches it, or by `meca track`. What this user's meca did not put there is not told.
"""

import csv
import json
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from meca import state
from meca.errors import MecaError
from meca.files import atomic_write, canonical_json, fresh_folder, own_folder, read_json, replace_folder
from meca.params import read_params
from meca.text import plain, sheet_cell
from tasks import environment
from tasks.environment import without_secrets
from tasks.mlflow.client import TrackingUnavailable, locks, open_client, patience, patient_lock
from tasks.mlflow.recorder import Recorder, experiment_id, owner_of
from tasks.mlflow.result import Result, read_result, result_key, sha256_text
from tasks.mlflow.spool import SPOOL, SPOOLED, drop, foreign, spool, untold

__all__ = ["is_recorded", "record", "replay"]


def is_recorded(workspace: Path = Path()) -> bool:
    """Tell, without importing MLflow, whether the result that stands here was told to the MLflow in force."""
    result = read_result(workspace)
    try:
        told = read_json(result.out / "track.json")
        keys = result_key([read_json(path) for path in result.receipts])
    except MecaError:
        return False
    uri = environment.tracking_uri(workspace)
    if untold(workspace):
        return False
    there = not uri.startswith("sqlite:///") or Path(uri.removeprefix("sqlite:///")).is_file()
    return there and told.get("uri_sha256") == sha256_text(without_secrets(uri)) and told.get("result_key") == keys


def record(workspace: Path = Path(), result: Result | None = None, seconds: float | None = None) -> dict[str, Any]:
    """Tell MLflow about the result of a workspace and return the names of its runs. Calling it again changes nothing.

    Args:
        workspace: Whose record it is.
        result: What is told, if it lies elsewhere.
        seconds: After which it gives up; never if None.

    Returns:
        `experiment`, `parent` (run id), `runs` (run id per stage), `models` (model URI per stage), `result_key`.

    Raises:
        TrackingUnavailable: MLflow could not be told all of it. What it was told is found again by the next call.
    """
    result = result or read_result(workspace)
    receipts = [read_json(path) for path in result.receipts]
    settings = read_params(result.params).raw("track")
    with open_client(workspace, seconds) as client:
        owner = owner_of(workspace)
        recorder = Recorder(client, experiment_id(client, str(settings["experiment"]), workspace), result, owner)
        told = recorder.record(receipts)
        recorder.close_abandoned({told["parent"], *told["runs"].values()})
        return told | {"experiment": str(settings["experiment"])}


def replay(workspace: Path = Path(), seconds: float | None = None) -> int:
    """Tell MLflow what is in the spool, oldest first, and return how many results that were. Each is dropped once it is told.

    Raises:
        TrackingUnavailable: One of them could not be told; those behind it were tried unless nobody answered.
    """
    done, failures = 0, list[TrackingUnavailable]()
    deadline = None if seconds is None else time.monotonic() + seconds
    if strangers := foreign(workspace):
        why = state.lasts() or f"{strangers[0]} was not written by this user's meca, so MLflow is not told of it; remove it."
        print(f"meca track: {plain(why, 2000)}", file=sys.stderr)
    with patient_lock(own_folder(locks(workspace), workspace / SPOOL.parent) / "spool", "The spool of MLflow's record"):
        for folder in untold(workspace):
            kept = read_json(folder / SPOOLED)
            places = {name: folder / place for name, place in kept["places"].items() if name != "receipts"}  # its workspace is the folder
            receipts = tuple(folder / place for place in kept["places"]["receipts"])
            result = Result(**places, receipts=receipts, when=float(kept["when"]))
            left = None if deadline is None else max(1.0, deadline - time.monotonic())
            try:
                record(workspace, result, left)
            except TrackingUnavailable as error:
                failures.append(error)
                if deadline is not None and time.monotonic() > deadline:
                    break
                continue
            drop(folder)
            done += 1
    if failures:
        raise failures[0]
    return done


def _write_curves(result: Result, folder: Path) -> None:
    """Write the curves of every stage as CSV (phase, step, and a column per number) for `dvc plots`."""
    folder.mkdir(parents=True)
    for source in sorted(result.work.glob("*/curves.jsonl")):
        lines = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
        names = sorted({name for line in lines for name in line if name not in ("phase", "epoch", "step")})
        with open(folder / f"{source.parent.name}.csv", "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["phase", "step", *map(sheet_cell, names)])
            for number, line in enumerate(lines):
                step = next((line[name] for name in ("epoch", "step") if name in line), number)
                writer.writerow([sheet_cell(value) for value in (line.get("phase", ""), step, *(line.get(name, "") for name in names))])


def _tell(workspace: Path, result: Result) -> dict[str, Any]:
    """Tell MLflow about a result and about what it was not told before; keep what it cannot be told. Return what track.json says.

    No failure of MLflow's gets out: what the run has found does not depend on who hears of it.
    """
    for path in result.receipts:
        read_json(path)  # a result that is not there is an error, and no failure of MLflow's
    seconds, started, told, why = patience(), time.monotonic(), dict[str, Any](), ""
    try:
        told = record(workspace, result, seconds)
        drop(workspace / SPOOL / told["result_key"][:24])
        if replayed := replay(workspace, None if seconds is None else max(1.0, seconds - (time.monotonic() - started))):
            print(f"meca track: told MLflow about {replayed} earlier results, too.")
        return told
    except MecaError as error:
        why = without_secrets(str(error))
    except Exception:
        why = without_secrets(traceback.format_exc())
    if told:
        print(f"meca track: earlier results stay in {SPOOL}: {plain(why, 2000)}", file=sys.stderr)
        return told
    print(f"meca track: {why}", file=sys.stderr)
    try:
        kept = f"kept in {spool(workspace, result, why)}, told by the next run or by `meca track`"
    except OSError as error:
        kept = f"not kept either ({error.strerror}); `meca track` tells it from the workspace"
    print(f"meca track: MLflow was not told; {kept}.", file=sys.stderr)
    return {"told": False, "why": plain(why, 2000)}


def main() -> None:
    """Run the stage."""
    from meca.machine import die_with_parent

    die_with_parent()
    result = read_result(Path(), sys.argv[1:])
    try:
        told = _tell(Path(), result)
        temporary = fresh_folder(result.out.with_name(result.out.name + ".tmp"))
        _write_curves(result, temporary / "curves")
        uri = environment.tracking_uri(Path())
        place = without_secrets(uri)
        atomic_write(temporary / "track.json", canonical_json({"schema": "meca.track/1", "uri": place, "uri_sha256": sha256_text(place), **told}))
        replace_folder(temporary, result.out)
    except MecaError as error:
        print(f"meca track: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except Exception:
        print(without_secrets(traceback.format_exc()), file=sys.stderr)
        raise SystemExit(MecaError.exit_code) from None


if __name__ == "__main__":
    main()
