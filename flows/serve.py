"""A schedule: keeps a process running that starts the flow by a cron line, against a Prefect server.

    PREFECT_API_URL=http://127.0.0.1:4200/api python -m flows.serve --cron "0 3 * * *"

Run it in the workspace: flows started by it work in its directory. `infra/prefect.yaml` is the same for work pools.
"""

import argparse
import os
import sys

from tasks import environment

__all__ = ["main"]


def main() -> None:
    """Serve the flow until interrupted."""
    parser = argparse.ArgumentParser(prog="python -m flows.serve", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--cron", default=os.environ.get("MECA_CRON"), help="when to start the flow, as five cron fields (MECA_CRON); without it only by hand"
    )
    parser.add_argument("--name", default="sanitize", help="name of the deployment")
    parser.add_argument("--push", action="store_true", help="send the results to the DVC remote after each run")
    arguments = parser.parse_args()
    environment.prepare()
    from tasks.prefect.slots import server_url

    if server_url() is None:
        print("meca: Expected the address of a Prefect server in PREFECT_API_URL, found none; `make services` starts one.", file=sys.stderr)
        raise SystemExit(4)
    from flows.sanitize import sanitize

    # limit=1: two runs in one directory would wait for each other's locks.
    sanitize.serve(name=arguments.name, cron=arguments.cron, parameters={"push_after": arguments.push}, limit=1, tags=["meca"])


if __name__ == "__main__":
    main()
