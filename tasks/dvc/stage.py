"""One stage of dvc.yaml at a time: what there is, in which order, whether it is stale, and running it.

    python -m tasks.dvc.stage partition     `dvc repro --single-item partition`, with the exit code of the stage itself

DVC decides what is stale and keeps the results; nothing is cached here. Walking its graph in topological order with
`--single-item` reruns exactly what `dvc repro` would, and lets independent stages run side by side, which two plain
`dvc repro` refuse.
"""

import argparse
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meca.errors import InputRefused, MecaError, UsageError
from tasks import environment

__all__ = ["TEMPORARY_FAILURE", "Pipeline", "Stage", "StageFailed", "chain", "end_group", "lock_remedy", "reproduce"]

TEMPORARY_FAILURE = 75  # EX_TEMPFAIL: a network was away; the only exit code that is worth another try
LAST_LINES = 20  # lines of a failed stage that its error repeats


@dataclass(frozen=True)
class Stage:
    """A stage as dvc.yaml has it."""

    name: str
    upstream: tuple[str, ...]  # stages whose outputs it reads
    needs_gpu: bool
    cmd: str
    outs: tuple[str, ...]  # paths, relative to the workspace


class StageFailed(MecaError):  # noqa: N818 - the name says what happened
    """A stage ended with a code other than 0."""

    def __init__(self, name: str, code: int, lines: list[str]) -> None:
        """Put the stage's last lines into the message; its exit code becomes ours where it is one of meca's."""
        said = "\n".join(lines) or "(it printed nothing)"
        super().__init__(f"Stage {name} ended with exit code {code}. Its last lines:\n{said}")
        self.stage, self.code = name, code
        self.exit_code = code if code in (InputRefused.exit_code, UsageError.exit_code) else MecaError.exit_code

    @property
    def is_temporary(self) -> bool:
        """Whether another try may help."""
        return self.code == TEMPORARY_FAILURE


def lock_remedy(error: BaseException) -> str:
    """Return what to do where DVC cannot read its lock file, as after a kill or on a damaged disk; nothing where it is something else."""
    if "dvc.lock" not in str(error):
        return ""
    # Without the lock DVC's run cache still knows the results of commands whose inputs it has seen.
    return ". Bring it back with `git checkout -- dvc.lock`, or go on without it: `rm dvc.lock`; what DVC's cache holds is not computed again."


class Pipeline:
    """The graph of a workspace's dvc.yaml, read from DVC's own index."""

    def __init__(self, workspace: Path = Path()) -> None:
        """Open the workspace (imports DVC)."""
        environment.prepare()
        from dvc.exceptions import DvcException
        from dvc.repo import Repo

        self.workspace = workspace.resolve()
        try:
            # With _wait_for_lock a check waits for a stage that is being saved instead of failing after three seconds.
            self._repo: Any = Repo(str(self.workspace), _wait_for_lock=True)
            self.stages = self._read()
        except DvcException as error:
            raise UsageError(f"Expected a DVC project in {self.workspace}: {error}{lock_remedy(error)}") from None
        self._one_at_a_time = threading.Lock()  # DVC's objects know nothing of threads
        self._running: set[subprocess.Popen[str]] = set()
        self._stopped = False

    def _read(self) -> tuple[Stage, ...]:
        import networkx

        graph = self._repo.index.graph  # an edge points from a stage to the one it reads
        position = {stage: place for place, stage in enumerate(self._repo.index.stages)}  # ties as dvc.yaml has them
        order = networkx.lexicographical_topological_sort(graph.reverse(copy=True), key=position.__getitem__)
        return tuple(
            Stage(
                stage.name,
                tuple(sorted(s.name for s in graph.successors(stage))),
                bool((stage.meta or {}).get("gpu")),
                stage.cmd,
                tuple(str(out.def_path) for out in stage.outs),
            )
            for stage in order
            if stage.cmd
        )

    def __getitem__(self, name: str) -> Stage:
        """Return a stage by name."""
        return next(stage for stage in self.stages if stage.name == name)

    def folder(self, name: str) -> Path:
        """Return the folder that a stage writes (its first output)."""
        return self.workspace / self[name].outs[0]

    def is_stale(self, name: str) -> bool:
        """Tell whether DVC would run the stage: a changed command, dependency, parameter or output."""
        with self._one_at_a_time:
            # DVC reads a target from the working directory, which need not be the workspace.
            return bool(self._repo.status([f"{os.path.relpath(self.workspace)}/dvc.yaml:{name}"]))

    def run(self, name: str, force: bool = False, log: Callable[[str], None] = print) -> dict[str, Any]:
        """Bring one stage up to date and return what was done: `unchanged`, `restored` from DVC's run cache, or `ran`.

        Args:
            name: The stage; what it reads is up to date already.
            force: Run it even if nothing changed.
            log: Told every line that the stage prints.

        Raises:
            StageFailed: The stage ended with a code other than 0.
        """
        started = time.perf_counter()
        outcome = "unchanged"
        if self._stopped:
            raise MecaError(f"Stage {name} was not started, because the run was interrupted.")
        if force or self.is_stale(name):
            lines = self._subprocess([name, *["--force"] * force], log)
            outcome = "restored" if any("is cached - skipping run" in line for line in lines) else "ran"
        return {"stage": name, "outcome": outcome, "seconds": round(time.perf_counter() - started, 2)}

    def stop(self) -> None:
        """End what is running and start nothing more."""
        self._stopped = True
        for process in list(self._running):
            end_group(process)

    def _subprocess(self, arguments: list[str], log: Callable[[str], None]) -> deque[str]:
        # A process group of its own: an interrupt reaches the flow first, which then ends the whole group (`stop`). When
        # the flow is killed, the kernel tells the child, which asked for that at its start and ends its group.
        process = subprocess.Popen(  # noqa: S603 - our own interpreter; names of stages come from dvc.yaml
            [sys.executable, "-m", "tasks.dvc.stage", *arguments],
            cwd=self.workspace,
            env=environment.child_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            process_group=0,
        )
        assert process.stdout is not None
        self._running.add(process)
        lines: deque[str] = deque(maxlen=LAST_LINES)
        try:
            for line in process.stdout:
                if line := environment.without_secrets(line.rstrip()):
                    lines.append(line)
                    log(line)
            code = process.wait()
        finally:
            self._running.discard(process)
            end_group(process)
            process.stdout.close()
        if code:
            raise StageFailed(arguments[0], code, list(lines))
        return lines


def end_group(process: "subprocess.Popen[str]", patience: float = 10.0) -> None:
    """End a child and all it started: politely, so that outputs are cleaned up, then not."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def reproduce(name: str, force: bool = False) -> int:
    """Run `dvc repro --single-item` in the working directory and return the exit code of the stage.

    The `dvc` command itself answers 255 to every failure, which hides what kind it was.
    """
    environment.prepare()
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        repo: Any = Repo(_wait_for_lock=True)
        repo.reproduce(name, single_item=True, force=force)
    except DvcException as error:
        causes = chain(error)
        print(f"ERROR: {': '.join(dict.fromkeys(str(cause) for cause in causes))}", file=sys.stderr)
        codes = [int(match[1]) for cause in causes if (match := re.search(r", exited with (-?\d+)$", str(cause)))]
        return codes[0] if codes and 0 < codes[0] < 128 else MecaError.exit_code
    return 0


def chain(error: BaseException) -> list[BaseException]:
    """Return an error and what caused it, outermost first."""
    links: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in links:
        links.append(link)
        link = link.__cause__ or link.__context__
    return links


def _end_own_group() -> None:
    """End this process, and all that it started if it leads a group of its own."""
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def main() -> None:
    """Run the stage named on the command line."""
    from meca.machine import die_with_parent

    # A shell that DVC puts between this process and the stage (dash does not replace itself) is told nothing by the kernel.
    signal.signal(signal.SIGHUP, lambda *_: _end_own_group())
    die_with_parent(signal.SIGHUP)
    parser = argparse.ArgumentParser(prog="python -m tasks.dvc.stage", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", help="a stage of dvc.yaml")
    parser.add_argument("--force", action="store_true", help="run it even if nothing changed")
    arguments = parser.parse_args()
    raise SystemExit(reproduce(arguments.name, arguments.force))


if __name__ == "__main__":
    main()
