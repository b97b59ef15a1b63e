"""What holds for every stage of the method: declared inputs, finished-or-nothing outputs, the same bytes, resume."""

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from meca.data.store import read_parquet
from meca.errors import MecaError, UsageError
from meca.files import lock, sha256_tree
from meca.params import PRESETS
from meca.stages.graph import graph
from meca.stages.runtime import describe, execute, main, stage_key
from meca.training import engine
from tests.stages.chain import METHOD, MODULES, outputs, paths, quick, run, step, with_inputs

ROOT = Path(__file__).parents[2]
Finished = Callable[..., Path]

every_stage = pytest.mark.parametrize("name", METHOD)
every_preset = pytest.mark.parametrize("preset", PRESETS)


@every_preset
@every_stage
def test_a_stage_needs_its_declared_inputs_only_and_gives_the_same_bytes_twice(name: str, preset: str, finished: Finished, tmp_path: Path) -> None:
    folder = with_inputs(name, finished(preset), tmp_path / "elsewhere")
    before = {path: sha256_tree(folder / path) for path in graph()[name][0]}
    torch.manual_seed(99)
    np.random.seed(99)
    receipt = step(name, folder, quick(preset))
    assert outputs(name, folder) == outputs(name, finished(preset))
    assert {path: sha256_tree(folder / path) for path in before} == before, "a stage changes no input"
    assert set(receipt["outputs"].values()) == set(outputs(name, folder).values())
    assert not list(folder.rglob("*.tmp")) and not list((folder / "scratch" / "checkpoints").iterdir())


@every_stage
def test_another_seed_gives_other_bytes(name: str, finished: Finished, tmp_path: Path) -> None:
    folder = with_inputs(name, finished(), tmp_path)
    step(name, folder, quick(seed=7))
    assert outputs(name, folder) != outputs(name, finished())


def test_only_evaluate_reads_the_truth() -> None:
    assert [name for name in METHOD if "truth" in describe(MODULES[name]).inputs] == ["evaluate"]


@every_preset
def test_without_the_truth_every_other_stage_writes_the_same_bytes(preset: str, finished: Finished, tmp_path: Path) -> None:
    others = [name for name in METHOD if name not in ("poison", "evaluate")]
    shutil.copytree(finished(preset) / "data", tmp_path / "data")
    shutil.rmtree(tmp_path / "data" / "truth")
    run(tmp_path, quick(preset), others)
    assert all(outputs(name, tmp_path) == outputs(name, finished(preset)) for name in others)
    with pytest.raises(MecaError, match=r"Expected a file or a folder at .*truth"):
        step("evaluate", tmp_path, quick(preset))


def test_another_truth_changes_the_bytes_of_evaluate_alone(finished: Finished, tmp_path: Path) -> None:
    others = [name for name in METHOD if name not in ("poison", "evaluate")]
    shutil.copytree(finished() / "data", tmp_path / "data")
    truth = tmp_path / "data" / "truth" / "truth.parquet"
    table = read_parquet(truth)
    swapped = pa.array(np.roll(table["is_poisoned"].to_numpy(zero_copy_only=False), 1))
    pq.write_table(table.set_column(1, "is_poisoned", swapped), truth)
    run(tmp_path, quick(), [*others, "evaluate"])
    assert all(outputs(name, tmp_path) == outputs(name, finished()) for name in others)
    assert outputs("evaluate", tmp_path) != outputs("evaluate", finished())


@every_stage
def test_a_missing_input_is_named_and_nothing_is_written(name: str, finished: Finished, tmp_path: Path) -> None:
    for k, path in enumerate(graph()[name][0]):
        folder = with_inputs(name, finished(), tmp_path / str(k))
        shutil.rmtree(folder / path)
        with pytest.raises(MecaError, match=rf"Expected a file or a folder at .*{path}, found neither"):
            step(name, folder, quick())
        assert not any((folder / out).exists() for out in graph()[name][1])


def halve(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))


def drop_columns(file: Path) -> None:
    pq.write_table(read_parquet(file).select(["row"]), file)


def drop_rows(file: Path) -> None:
    pq.write_table(read_parquet(file).slice(0, 50), file)


def empty_object(file: Path) -> None:
    file.write_text("{}")


TAMPERED = [
    *((name, f"data/{'ingested' if name == 'poison' else 'store'}/images.npy", flip) for name in METHOD),
    *((name, f"data/{'ingested' if name == 'poison' else 'store'}/store.json", halve) for name in METHOD),
    ("enhance", "work/partition/model.safetensors", halve),
    ("enhance", "work/partition/model.json", empty_object),
    *((name, file, tamper)
      for tamper in (Path.unlink, halve, drop_columns, drop_rows)
      for name, file in [
          ("enhance", "work/partition/scores.parquet"),
          ("split", "work/partition/scores.parquet"),
          ("split", "work/enhance/scores.parquet"),
          ("train_clean", "work/split/decisions.parquet"),
          ("relabel_finetune", "work/split/decisions.parquet"),
          ("evaluate", "work/split/decisions.parquet"),
          ("evaluate", "work/relabel_finetune/decisions.parquet"),
          ("evaluate", "data/truth/truth.parquet"),
      ]),
    *((name, file, tamper)
      for tamper in (Path.unlink, halve)
      for name, file in [
          ("relabel_finetune", "work/split/verdict.json"),
          ("relabel_finetune", "work/train_clean/model.json"),
          ("relabel_finetune", "work/split/everything/model.safetensors"),
          ("evaluate", "work/train_clean/model.safetensors"),
          ("evaluate", "work/enhance/model.json"),
          ("evaluate", "work/relabel_finetune/model.safetensors"),
          ("evaluate", "data/truth/attack.json"),
          ("evaluate", "data/truth/triggered.npy"),
      ]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "file", "tamper"), TAMPERED, ids=lambda v: getattr(v, "__name__", str(v)))
def test_a_tampered_input_is_named(name: str, file: str, tamper: Callable[[Path], Any], finished: Finished, tmp_path: Path) -> None:
    folder = with_inputs(name, finished(), tmp_path)
    tamper(folder / file)
    with pytest.raises(MecaError, match=Path(file).name.replace(".", r"\.")):
        step(name, folder, quick(evaluate__references=False))
    assert not any((folder / out).exists() for out in graph()[name][1])


@every_stage
def test_what_a_killed_run_left_behind_is_removed_and_an_older_result_replaced(name: str, finished: Finished, tmp_path: Path) -> None:
    folder = with_inputs(name, finished(), tmp_path)
    for out in graph()[name][1]:
        for path in (folder / out, (folder / out).with_name(Path(out).name + ".tmp")):
            path.mkdir(parents=True)
            (path / "curves.jsonl").write_text("rubbish\n")
            (path / "rubbish").write_text("rubbish")
    step(name, folder, quick())
    assert outputs(name, folder) == outputs(name, finished())


@every_stage
def test_a_curve_is_made_of_lines_with_a_phase_and_a_place(name: str, finished: Finished) -> None:
    for out in graph()[name][1]:
        file = finished() / out / "curves.jsonl"
        for line in file.read_text().splitlines() if file.exists() else []:
            point = json.loads(line)
            assert isinstance(point["phase"], str) and isinstance(point.get("step", point.get("epoch")), int)
            assert all(isinstance(value, int | float) for key, value in point.items() if key not in ("phase", "model"))


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "MECA_THREADS": "1", "OMP_NUM_THREADS": "1", "MECA_DEVICE": "cpu"}


def write_params(folder: Path, **changes: Any) -> Path:
    path = folder / "params.yaml"
    path.write_text(json.dumps(quick(**changes).tree))  # JSON is YAML
    return path


def command(name: str, folder: Path, params: Path) -> list[str]:
    options = [part for key, path in paths(name, folder).items() for part in (f"--{key.replace('_', '-')}", str(path))]
    return [sys.executable, "-m", f"meca.stages.{name}", *options, "--params", str(params), "--receipt", str(folder / "receipt.json")]


def test_a_program_that_is_killed_continues_and_ends_in_the_bytes_of_an_uninterrupted_run(finished: Finished, tmp_path: Path) -> None:
    whole, parts = (with_inputs("train_clean", finished(), tmp_path / name) for name in ("whole", "parts"))
    changes = {"train_clean.epochs": 100}
    step("train_clean", whole, quick(**changes))
    params = write_params(tmp_path, **changes)
    process = subprocess.Popen(command("train_clean", parts, params), cwd=parts, env=environment(), stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 60
        while not list(parts.glob(".meca/checkpoints/train_clean-*/train_clean.safetensors")):
            assert process.poll() is None and time.monotonic() < deadline, "no checkpoint appeared"
            time.sleep(0.001)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (parts / "work" / "train_clean").exists() and not (parts / "receipt.json").exists()
    again = subprocess.run(command("train_clean", parts, params), cwd=parts, env=environment(), capture_output=True, text=True, timeout=120)
    assert again.returncode == 0, again.stderr
    files = {path.name for path in (whole / "work" / "train_clean").iterdir()}
    assert files == {"model.safetensors", "model.json", "curves.jsonl", "metrics.json"}
    for file in files:
        assert (whole / "work" / "train_clean" / file).read_bytes() == (parts / "work" / "train_clean" / file).read_bytes(), file
    assert json.loads((parts / "receipt.json").read_text())["stage"] == "train_clean"
    assert not list(parts.glob(".meca/checkpoints/*"))


def killed_after_a_checkpoint(folder: Path, monkeypatch: pytest.MonkeyPatch, params: Any) -> Path:
    """Let `train_clean` end after its first checkpoint, and return the folder of that."""

    real = engine.save_checkpoint

    def then_die(*given: Any) -> None:
        real(*given)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(engine, "save_checkpoint", then_die)
        step("train_clean", folder, params)
    (left,) = (folder / "scratch" / "checkpoints").iterdir()
    assert sorted(path.name for path in left.iterdir()) == ["train_clean.safetensors", "train_clean.safetensors.seal"]
    return left


@pytest.mark.parametrize("whose", ["mine", "of a supplier", "forged"])
def test_a_checkpoint_is_taken_up_if_it_is_mine_alone_and_else_it_is_said(
    whose: str, finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from meca.progress import Progress

    whole, parts = (with_inputs("train_clean", finished(), tmp_path / name) for name in ("whole", "parts"))
    step("train_clean", whole, quick())
    left = killed_after_a_checkpoint(parts, monkeypatch, quick())
    if whose == "of a supplier":
        monkeypatch.setenv("MECA_STATE_DIR", str(tmp_path / "another"))
    elif whose == "forged":
        flip(left / "train_clean.safetensors")
    trained: list[int] = []

    real = engine.resume
    monkeypatch.setattr(engine, "resume", lambda *given: (trained.append(real(*given)), trained[-1])[1])
    step("train_clean", parts, quick(), progress=Progress())
    assert trained == [1 if whose == "mine" else 0] and outputs("train_clean", parts) == outputs("train_clean", whole)
    sentence = f"{left / 'train_clean.safetensors'} was not written by this user's meca; its training begins anew."
    assert (sentence in capsys.readouterr().err) == (whose != "mine")


@pytest.mark.parametrize(
    "name", ["scratch", "scratch/locks", "scratch/checkpoints", "scratch/checkpoints/x", "work/split.tmp", "work/split", "receipts"]
)
@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_a_stage_follows_no_link_where_it_writes(name: str, kind: str, finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, mine = with_inputs("split", finished(), tmp_path / "run"), tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis").write_text("mine")
    if name.endswith("/x"):
        key = stage_key(describe(MODULES["split"]), {path.split("/")[1]: sha256_tree(folder / path) for path in graph()["split"][0]}, quick())
        owner = hashlib.sha256(str(folder / "work" / "split").encode()).hexdigest()[:16]
        name = f"scratch/checkpoints/split-{owner}-{key[:24]}"
    place = folder / name
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(mine) if kind == "link" else os.mkfifo(place)
    with pytest.raises(UsageError, match=rf"{Path(name).name} is (a link, which meca does not follow|no folder)\. Remove it, or choose another"):
        step("split", folder, quick(), receipt=folder / "receipts" / "split.json")
    assert [path.name for path in mine.iterdir()] == ["thesis"]
    if name == "scratch" and kind == "link":  # what the user names themself may be one
        monkeypatch.setenv("MECA_SCRATCH", str(place))
        execute(MODULES["split"], paths("split", folder), quick())
        assert (mine / "locks").is_dir()


def arguments(name: str, folder: Path, params: Path) -> list[str]:
    return command(name, folder, params)[3:]


@pytest.fixture
def own_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    """`main` asks the kernel to die with its parent and takes over SIGTERM: both are for programs."""
    monkeypatch.setattr("meca.machine.die_with_parent", lambda: None)
    monkeypatch.setattr(signal, "signal", lambda *_: None)


@pytest.mark.usefixtures("own_signals")
def test_a_program_exits_with_the_code_of_its_error_and_names_the_stage(
    finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MECA_SCRATCH", str(tmp_path / "scratch"))
    folder = with_inputs("split", finished(), tmp_path / "run")
    main(MODULES["split"], arguments("split", folder, write_params(tmp_path)))
    receipt = json.loads((folder / "receipt.json").read_text())
    assert receipt["stage"] == "split" and receipt["schema"] == "meca.receipt/1"
    assert set(receipt["params"]) == {"seed", "preset", *describe(MODULES["split"]).groups}
    assert outputs("split", folder) == outputs("split", finished())
    with pytest.raises(SystemExit) as unknown:
        main(MODULES["split"], arguments("split", folder, tmp_path / "none.yaml"))
    shutil.rmtree(folder / "work" / "enhance")
    with pytest.raises(SystemExit) as missing:
        main(MODULES["split"], arguments("split", folder, write_params(tmp_path)))
    assert (unknown.value.code, missing.value.code) == (UsageError.exit_code, MecaError.exit_code)
    said = capsys.readouterr().err
    assert "meca split: Expected a parameter file at" in said and "meca split: Expected a file or a folder at" in said


def hold(path: Path, ready: Any, done: Any) -> None:
    with lock(path, "x"):
        ready.set()
        done.wait(30)


def test_a_second_run_of_one_output_fails_at_once(finished: Finished, tmp_path: Path) -> None:
    folder = with_inputs("split", finished(), tmp_path)
    step("split", folder, quick())
    (path,) = (folder / "scratch" / "locks").iterdir()
    context = multiprocessing.get_context("fork")
    ready, done = context.Event(), context.Event()
    other = context.Process(target=hold, args=(path, ready, done))
    other.start()
    try:
        assert ready.wait(30)
        with pytest.raises(MecaError, match=rf"output of stage split is being written by process {other.pid}"):
            step("split", folder, quick())
    finally:
        done.set()
        other.join()
    step("split", folder, quick())


def test_the_key_of_a_result_depends_on_inputs_and_the_parameters_in_force() -> None:
    stage, hashes = describe(MODULES["train_clean"]), {"store": "a", "split": "b"}
    key = stage_key(stage, hashes, quick())
    assert key == stage_key(stage, hashes, quick())
    assert key == stage_key(stage, hashes, quick(**{"partition.alpha": 0.3})), "another stage's number"
    changed = [
        stage_key(stage, {**hashes, "split": "c"}, quick()),
        stage_key(stage, hashes, quick(seed=1)),
        stage_key(stage, hashes, quick(**{"train_clean.epochs": 4})),
        stage_key(describe(MODULES["split"]), hashes, quick()),
    ]
    assert len({key, *changed}) == len(changed) + 1


@every_stage
def test_a_stage_is_described_by_its_run(name: str) -> None:
    stage = describe(MODULES[name])
    assert stage.name == name and stage.outputs == (("store", "truth") if name == "poison" else ("out",))
    assert stage.inputs == tuple(Path(path).name for path in graph()[name][0])


def test_values_that_json_lacks_are_refused_by_the_curve(tmp_path: Path) -> None:
    from meca.progress import Progress
    from meca.stages.runtime import Context

    ctx = Context("x", quick(), tmp_path, Progress(quiet=True), tmp_path)
    ctx.curve(phase="a", step=1, loss=0.5)
    with pytest.raises(ValueError, match="JSON compliant"):
        ctx.curve(phase="a", step=2, loss=float("nan"))
    assert (tmp_path / "curves.jsonl").read_text() == '{"loss": 0.5, "phase": "a", "step": 1}\n'
