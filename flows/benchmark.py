"""The benchmark as a Prefect flow: a task for each cell of a grid that has no row yet, as many at a time as there are cores.

Which cells there are, what they depend on and where rows go is `tasks.benchmark.grid`; Prefect starts them and shows them. Started
again, it measures what is missing.
"""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from tasks import environment

environment.prepare()  # before the first import of Prefect, which reads its settings then

from prefect import allow_failure, flow, get_run_logger, tags, task  # noqa: E402
from prefect.artifacts import create_markdown_artifact  # noqa: E402
from prefect.cache_policies import NO_CACHE  # noqa: E402
from prefect.futures import wait  # noqa: E402
from prefect.task_runners import ThreadPoolTaskRunner  # noqa: E402

from meca.errors import MecaError, UsageError  # noqa: E402
from tasks.benchmark import tables  # noqa: E402
from tasks.benchmark.grid import Grid, Plan, work_folder  # noqa: E402
from tasks.prefect import dead_runs, notify, server, slots, summary  # noqa: E402

__all__ = ["benchmark", "run"]


@task(name="cell", task_run_name="{name}", cache_policy=NO_CACHE, persist_result=False)
def cell(name: str, key: str, grid: Any) -> str:
    """Measure one cell; its row is in the results file when this returns, and when it fails."""
    with slots.gpu_slot() if environment.has_gpu() and os.environ.get("MECA_DEVICE") != "cpu" else contextlib.nullcontext():
        told = tables.line(grid.run(key))
    get_run_logger().info("%s: %s", name, told)
    return told


@flow(
    name="benchmark",
    flow_run_name="{results}",
    persist_result=False,
    on_running=[dead_runs.mark],
    on_completion=[notify.completed],
    on_failure=[notify.failed],
    on_crashed=[notify.crashed],
)
def benchmark(results: str) -> dict[str, int]:
    """Measure the missing cells of the grid that was saved beside a results file of the working directory.

    Args:
        results: Name of the file.

    Raises:
        UsageError: No grid lies beside the file.
        MecaError: Cells failed; the others have their rows.
    """
    if not (work_folder(Path(results)) / "plan.json").is_file():
        raise UsageError(f"Expected a grid beside {results}, found none; `meca benchmark --output {results}` makes one.")
    grid = Grid.load(Path(results))
    with grid.locked(), server.without_tags():
        futures: dict[str, Any] = {}
        first: dict[str, Any] = {}  # of the cells that share their references: the one that trains them
        submit: Any = cell.submit  # its overloads know no wait_for
        for chosen in (missing := grid.missing()):
            before = [allow_failure(first[chosen.recipe])] if chosen.recipe in first and not chosen.until else []
            futures[chosen.key] = submit(chosen.name, chosen.key, grid, wait_for=before)
            first.setdefault(chosen.recipe, futures[chosen.key])
        try:
            wait(list(futures.values()))
        except BaseException:  # an interrupt, a cancellation: the threads would wait for their cells to the end
            grid.stop()
            raise
        page = tables.render([row for chosen in grid.cells if (row := grid.rows.get(chosen.key))])
        with server.optional(get_run_logger().warning):
            create_markdown_artifact(page, key=summary.key(f"benchmark-{results}"), description="The paper's tables")
        failed = grid.missing()
        grid.tidy()
    if failed:
        raise MecaError(f"{len(failed)} of {len(grid.cells)} cells failed; their rows in {results} say why, and the same command tries them again.")
    return {"cells": len(grid.cells), "measured": len(missing)}


def run(plan: Plan, output: Path, workers: int = 0, keep: bool = False, say: Callable[[str], object] = print) -> dict[str, Any]:
    """Measure what a plan lacks, write the tables beside the results file, and return what was done.

    Args:
        plan: The grid.
        output: The results file, JSON lines.
        workers: Cells at a time; 0: one for each core, with a thread each, and one on a GPU.
        keep: Do not delete the folders of finished runs.
        say: Told what is going to happen.

    Raises:
        UsageError: The plan is not possible.
        MecaError: Cells failed.
    """
    on_gpu = environment.has_gpu() and os.environ.get("MECA_DEVICE") != "cpu"
    cores = os.cpu_count() or 1
    workers = workers or (1 if on_gpu else cores)
    # More threads a cell change the last bits, so the threads do not follow the workers on a CPU: one each.
    grid = Grid(plan, output, cores if on_gpu else 1, keep)
    missing = grid.missing()
    say(f"{len(grid.cells)} cells, {len(grid.cells) - len(missing)} measured, {len(missing)} to run, {workers} at a time.")
    try:
        if missing:
            grid.output.parent.mkdir(parents=True, exist_ok=True)
            grid.save()
            if data := os.environ.get("MECA_DATA"):
                os.environ["MECA_DATA"] = str(Path(data).resolve())  # the working directory changes
            with contextlib.chdir(grid.output.parent):
                server.ensure()
                runner = cast(Any, ThreadPoolTaskRunner(max_workers=workers))
                with tags("meca"), server.outlived(lambda: not grid.missing()):
                    benchmark.with_options(task_runner=runner)(grid.output.name)
    finally:
        written = tables.write(grid.output)
    return {"cells": len(grid.cells), "measured": len(missing), "results": str(grid.output), "tables": [str(path) for path in written]}
