"""Write one HTML page about the run, readable offline, the same bytes for the same run."""

import sys
from pathlib import Path

from meca.files import atomic_write
from meca.report.page import ReportParams, read_run, render
from meca.stages.graph import Output
from meca.stages.runtime import Context, main


def run(
    ctx: Context,
    store: Path,
    published: Path,
    partition: Path,
    enhance: Path,
    relabel_finetune: Path,
    evaluate: Path,
    out: Output,
    *,
    report: ReportParams,
) -> None:
    """Write `report.html` into `out`."""
    page = render(read_run(store, published, partition, enhance, relabel_finetune, evaluate), ctx.seed, report)
    atomic_write(out / "report.html", page)
    ctx.metrics["bytes"] = len(page.encode())


if __name__ == "__main__":
    main(sys.modules[__name__])
