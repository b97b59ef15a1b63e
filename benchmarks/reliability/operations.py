"""The rows about running meca, not about what it finds: time to a first result, overhead of the platform, kills, idle reruns.

    python -m benchmarks.reliability.operations newcomer   a fresh clone, an empty home: `make demo`, again, `make test`
    python -m benchmarks.reliability.operations demo       `make demo` here, from nothing but the environment
    python -m benchmarks.reliability.operations overhead   the flow over the bare stages, against a running server and with the temporary one
    python -m benchmarks.reliability.operations idle       `dvc repro` and the flow again where nothing has changed
    python -m benchmarks.reliability.operations kill       SIGKILL in the middle of `train_clean`, then again: the same bytes?
    python -m benchmarks.reliability.operations twice      every stage of the method a second time: the same bytes?
    python -m benchmarks.reliability.operations inspect    `meca inspect` of 20,000 small images in a folder, all decoded in confined processes

`newcomer` times what a person waits for. The others use small settings: they are about everything around the training.
"""

import argparse
import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.rows import ROOT, provenance, speed, write
from infra.local.servers import answers
from meca.params import PACKAGED, Params, read_params, with_settings

SMALL = {
    "ingest.source": "shapes",
    "ingest.shapes_train": 400,
    "ingest.shapes_test": 200,
    "network.width": 8,
    "detector.width": 8,
    "promote.min_acc": 0.0,
    "control.when": "never",
}
FEW = {"partition.recipe.min_steps": 30, "train_clean.epochs": 6, "train_clean.min_steps": 30}
COMMAND = "python -m benchmarks.reliability.operations"


def params_of(settings: Mapping[str, Any]) -> Params:
    """Return the parameters of a workspace with these settings."""
    return with_settings(read_params(PACKAGED), settings)


def program(workspace: Path, *arguments: str, check: bool = True, **variables: str) -> tuple[float, str]:
    """Run `python -m ...` in a workspace, and return its seconds and what it printed."""
    from tasks import environment

    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=workspace,
        env={**environment.child_environment(), **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(arguments)} ended with {done.returncode}: {(done.stdout + done.stderr)[-2000:]}")
    return time.perf_counter() - started, done.stdout + done.stderr


@contextlib.contextmanager
def prefect_server(home: Path) -> Iterator[str]:
    """Run a Prefect server and give its address."""
    from tasks import environment

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    home.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with open(home / "log", "wb") as log:
        process = subprocess.Popen(
            command, env={**environment.child_environment(), "PREFECT_HOME": str(home)}, stdout=log, stderr=log, process_group=0
        )
    try:
        deadline = time.monotonic() + 120
        while not answers(f"http://127.0.0.1:{port}/api/health", 2):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"Prefect's server did not answer: {(home / 'log').read_text()[-2000:]}")
            time.sleep(0.3)
        yield f"http://127.0.0.1:{port}/api"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def overhead(room: Path, repeats: int) -> None:
    """Measure the flow over the bare stage programs, each on a workspace of its own."""
    from tasks.dvc.stage import Pipeline
    from tasks.dvc.workspace import create

    times: dict[str, list[float]] = {"bare": [], "server": [], "ephemeral": []}
    with prefect_server(room / "server") as address:
        for i in range(repeats):
            for arm in times:
                place = create(room / f"{arm}-{i}", SMALL | FEW)
                if arm == "bare":
                    started = time.perf_counter()
                    for stage in Pipeline(place).stages:
                        command = stage_command(place, stage.name)
                        program(place, *command)
                    times[arm].append(time.perf_counter() - started)
                else:
                    extra = {"PREFECT_API_URL": address} if arm == "server" else {"PREFECT_HOME": str(room / f"home-{i}")}
                    times[arm].append(program(place, "flows.sanitize", **extra)[0])
                print(arm, round(times[arm][-1], 1), flush=True)
    middle = {arm: sorted(values)[len(values) // 2] for arm, values in times.items()}
    for arm, words in (("server", "against a running Prefect server"), ("ephemeral", "with the temporary Prefect server")):
        speed(
            f"overhead of the flow over bare stages, {words}",
            middle[arm] - middle["bare"],
            f"{COMMAND} overhead",
            repeats,
            params_of(SMALL | FEW),
            arms={k: v for k, v in times.items()},
        )


def stage_command(workspace: Path, name: str) -> list[str]:
    """Return the arguments of a stage's program, from dvc.yaml."""
    import yaml

    command: str = yaml.safe_load((workspace / "dvc.yaml").read_text())["stages"][name]["cmd"]
    return command.split()[2:]  # without `python -m`


def idle(room: Path) -> None:
    """Count what runs where nothing has changed: repro twice, the flow twice, repro after the flow; and the MLflow runs."""
    from tasks.dvc.workspace import create

    place = create(room / "idle", SMALL | FEW)
    program(place, "dvc", "repro")
    before = mlflow_runs(place)
    tried = ran = 0
    seconds = {}
    for name, arguments in (
        ("dvc repro", ("dvc", "repro")),
        ("flow", ("flows.sanitize",)),
        ("flow again", ("flows.sanitize",)),
        ("dvc repro after the flow", ("dvc", "repro")),
    ):
        took, said = program(place, *arguments)
        tried += 1
        again = said.count("Running stage")
        ran += again > 0
        seconds[name] = round(took, 1)
    after = mlflow_runs(place)
    notes = f"seconds {seconds}; MLflow runs before {before}, after {after}"
    write(
        "reliability.jsonl",
        {"name": "nothing runs that needs not", "tried": tried + 1, "as_specified": tried - ran + (before == after), "lost": 0, "notes": notes}
        | provenance(f"{COMMAND} idle", sum(seconds.values()), params=params_of(SMALL | FEW)),
    )


def mlflow_runs(workspace: Path) -> int:
    """Count the runs in the workspace's MLflow."""
    import sqlite3

    with contextlib.closing(sqlite3.connect(workspace / "mlflow.db")) as database:
        return int(database.execute("select count(*) from runs where lifecycle_stage = 'active'").fetchone()[0])


def kill(room: Path, times: int) -> None:
    """Kill `train_clean` at `times` moments of its training, start it again, and compare every byte."""
    from meca.files import sha256_tree
    from tasks.dvc.workspace import create

    started = time.perf_counter()
    settings = SMALL | FEW | {"ingest.shapes_train": 2000, "train_clean.epochs": 12}
    place = create(room / "kill", settings)
    program(place, "dvc", "repro", "train_clean")
    out = place / "work" / "train_clean"
    expected, command = sha256_tree(out), stage_command(place, "train_clean")
    alike = resumed = killed = 0
    for i in range(times):
        shutil.rmtree(out)
        checkpoints = place / ".meca" / "checkpoints"
        shutil.rmtree(checkpoints, ignore_errors=True)
        from tasks import environment

        process = subprocess.Popen([sys.executable, "-m", *command], cwd=place, env=environment.child_environment(), stderr=subprocess.DEVNULL)
        wanted = 1 + i * 10 // max(1, times - 1)  # the epoch after which it dies, from the first to the last but one
        while process.poll() is None and epochs_done(checkpoints) < wanted:
            time.sleep(0.01)
        time.sleep(0.05)  # into the next epoch
        killed += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
        resumed += epochs_done(checkpoints) > 0
        program(place, *command)
        alike += sha256_tree(out) == expected
    if killed < times or resumed < times:
        raise RuntimeError(f"of {times} trainings {killed} were killed and {resumed} had a checkpoint: nothing was shown")
    notes = "each killed after a checkpoint, from the first epoch to the last but one, and continued from it"
    write(
        "reliability.jsonl",
        {"name": "SIGKILL in train_clean, then again: same bytes", "tried": times, "as_specified": alike, "lost": 0, "notes": notes}
        | provenance(f"{COMMAND} kill", time.perf_counter() - started, params=params_of(settings)),
    )


def twice(room: Path) -> None:
    """Run every stage of the method a second time on the same input, and compare every byte of its output."""
    from meca.files import sha256_tree
    from tasks.dvc.workspace import create

    started = time.perf_counter()
    place = create(room / "twice", SMALL | FEW)
    program(place, "dvc", "repro", "evaluate")
    stages = ("partition", "enhance", "split", "train_clean", "relabel_finetune", "evaluate")
    alike = 0
    for name in stages:
        expected = sha256_tree(place / "work" / name)
        shutil.rmtree(place / "work" / name)
        program(place, *stage_command(place, name))
        alike += sha256_tree(place / "work" / name) == expected
    write(
        "reliability.jsonl",
        {"name": "each stage of the method twice: same bytes", "tried": len(stages), "as_specified": alike, "lost": 0, "notes": ", ".join(stages)}
        | provenance(f"{COMMAND} twice", time.perf_counter() - started, params=params_of(SMALL | FEW)),
    )


def epochs_done(checkpoints: Path) -> int:
    """Return how many epochs the checkpoint has."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    for file in checkpoints.glob("train_clean-*/model.safetensors"):
        with contextlib.suppress(OSError, SafetensorError):
            return int(load(file.read_bytes())["epoch"])
    return 0


def inspect(room: Path, repeats: int) -> None:
    """Time `meca inspect` from start to end, imports and all."""
    import numpy as np

    from meca.data.store import png_bytes

    n, draw = 20_000, np.random.default_rng(0)
    for at in range(n):
        folder = room / "photos" / f"class {at % 10}"
        folder.mkdir(parents=True, exist_ok=True)
        # Eight shades, repeated: about as well compressed as a photograph, at 1.5 bytes a pixel.
        (folder / f"{at}.png").write_bytes(png_bytes(draw.integers(0, 8, (32, 32, 3), np.uint8) * 32))
    times: list[float] = []
    for _ in range(repeats):
        started = time.perf_counter()
        done = subprocess.run(
            [str(Path(sys.executable).with_name("meca")), "inspect", "photos"], cwd=room, capture_output=True, text=True, check=True
        )
        times.append(time.perf_counter() - started)
        assert "20,000" in done.stdout or "20000" in done.stdout, done.stdout
    middle = sorted(times)[len(times) // 2]
    speed("meca inspect, 32 px, PNG in a folder", n / middle, f"{COMMAND} inspect", n, unit="img/s", target=2000, arms={"seconds": times})


def newcomer(room: Path, tests: bool) -> None:
    """Time the README's two commands in a fresh clone with an empty home."""
    clone, home = room / "meca", room / "home"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    home.mkdir()
    keep = (
        "PATH",
        "SSL_CERT_FILE",
        "REQUESTS_CA_BUNDLE",
        "PIP_CERT",
        "PIP_INDEX_URL",
        "UV_INDEX_URL",
        "HTTPS_PROXY",
        "NO_PROXY",
        "PYENV_ROOT",
        "MECA_DATA",
    )
    variables = {name: os.environ[name] for name in keep if name in os.environ} | {"HOME": str(home), "LANG": "C.UTF-8", "CI": "true"}

    def make(target: str, name: str) -> None:
        started = time.perf_counter()
        with open(room / "log", "ab") as log:
            subprocess.run(["make", target], cwd=clone, env=variables, stdout=log, stderr=log, stdin=subprocess.DEVNULL, check=True)
        speed(name, time.perf_counter() - started, f"{COMMAND} newcomer")

    make("demo", "make demo, fresh clone, with installation")
    make("demo", "make demo, again, nothing to do")
    if tests:
        make("test", "make test, after installation")
    left = subprocess.run(["git", "status", "--porcelain"], cwd=clone, capture_output=True, text=True, check=True).stdout
    if left:
        raise RuntimeError(f"the commands left something in the tree: {left}")


def scripted(script: Path) -> None:
    """Take the times from a script that acts as the newcomer; it must end well."""
    done = subprocess.run([str(script)], cwd=ROOT, capture_output=True, text=True, check=False)
    print(done.stdout, done.stderr, flush=True)
    if done.returncode:
        raise RuntimeError(f"{script.name} ended with {done.returncode}")
    names = iter(("make demo, fresh clone, with installation", "make demo, again, nothing to do", "make test, after installation"))
    for seconds in re.findall(r"^make \w+ +exit 0 +(\d+) s$", done.stdout, re.MULTILINE):
        speed(next(names), float(seconds), f"{COMMAND} newcomer")


def main() -> None:
    """Measure one thing."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reliability.operations", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("newcomer", "demo", "overhead", "idle", "kill", "twice", "inspect"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-tests", action="store_true", help="newcomer: the demo alone")
    parser.add_argument("--script", type=Path, help="newcomer: a script that clones, runs both commands and prints `make NAME exit 0 SECONDS s`")
    arguments = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    from tasks import environment

    environment.prepare()
    room = Path(tempfile.mkdtemp(prefix="meca-operations-"))
    try:
        match arguments.what:
            case "newcomer":
                scripted(arguments.script) if arguments.script else newcomer(room, not arguments.no_tests)
            case "demo":
                shutil.rmtree(ROOT / ".demo" / "shapes", ignore_errors=True)
                started = time.perf_counter()
                subprocess.run(["make", "demo"], cwd=ROOT, check=True, stdin=subprocess.DEVNULL)
                speed("make demo, without installation", time.perf_counter() - started, f"{COMMAND} demo")
            case "overhead":
                overhead(room, arguments.repeats)
            case "idle":
                idle(room)
            case "twice":
                twice(room)
            case "inspect":
                inspect(room, arguments.repeats)
            case _:
                kill(room, arguments.repeats)
    finally:
        shutil.rmtree(room, ignore_errors=True)


if __name__ == "__main__":
    main()
