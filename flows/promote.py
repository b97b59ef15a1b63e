"""Promotion as a Prefect flow: the gates decide, the alias moves, a text says what happened.

python -m flows.promote        in a workspace with a finished run
"""

import argparse
import contextlib
import json
import sys
from pathlib import Path
from typing import Any

from tasks import environment

environment.prepare()  # before the first import of Prefect, which reads its settings then

from prefect import flow, tags  # noqa: E402
from prefect.artifacts import create_markdown_artifact  # noqa: E402

from meca.errors import Inconclusive, MecaError  # noqa: E402
from meca.text import plain  # noqa: E402
from tasks.mlflow import registry  # noqa: E402
from tasks.prefect import dead_runs, notify, server, summary  # noqa: E402

__all__ = ["promote", "run"]


@flow(
    name="promote",
    persist_result=False,
    on_running=[dead_runs.mark],
    on_completion=[notify.completed],
    on_failure=[notify.failed],
    on_crashed=[notify.crashed],
)
def promote(why: str = "") -> dict[str, Any]:
    """Register the clean model of the workspace (the working directory) and move the alias, if every gate holds.

    Args:
        why: Goes into the record in the registry.
    """
    try:
        outcome = registry.promote(why=why)
    except Inconclusive as refusal:
        create_markdown_artifact(summary.text(str(refusal), 2000), key="promotion", description="Refused")
        raise
    create_markdown_artifact(summary.promotion(outcome), key="promotion", description="Promoted")
    return outcome


def run(workspace: Path = Path(), why: str = "") -> dict[str, Any]:
    """Run the flow in a workspace and return what `tasks.mlflow.registry.promote` says.

    Raises:
        Inconclusive: A gate does not hold.
    """
    with contextlib.chdir(workspace), tags("meca"):
        server.ensure()
        return promote(why=why)


def main() -> None:
    """Run the flow in the working directory; exits 5 when a gate does not hold."""
    parser = argparse.ArgumentParser(prog="python -m flows.promote", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--why", default="", help="the reason, for the record in the registry")
    arguments = parser.parse_args()
    try:
        outcome = run(why=arguments.why)
    except MecaError as error:
        print(f"meca: {plain(error, 2000)}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    print(json.dumps(outcome, indent=2))


if __name__ == "__main__":
    main()
