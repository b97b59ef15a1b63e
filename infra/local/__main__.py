"""python -m infra.local start|stop|restart|status|env|pause|resume [service …]: `make services` from the command line."""

import argparse
import json
import os
import shlex
import sys
from pathlib import Path

from infra.local import services
from infra.local.place import Place
from meca.errors import MecaError, UsageError

VERBS = ("start", "stop", "restart", "status", "env", "pause", "resume")


def main() -> int:
    """Do what the command line says; 0 when it is done (status: when everything answers)."""
    parser = argparse.ArgumentParser(prog="python -m infra.local", description="PostgreSQL, S3, MLflow and Prefect as processes of this machine.")
    parser.add_argument("verb", choices=VERBS)
    parser.add_argument("services", nargs="*", help=f"out of {', '.join(services.SERVICES)}; all without a name")
    parser.add_argument(
        "--folder", type=Path, default=Path(os.environ.get("MECA_SERVICES", ".meca/services")), help="where they live (MECA_SERVICES)"
    )
    parser.add_argument("--free-ports", action="store_true", help="take any free ports, beside other services of this machine")
    parser.add_argument("--json", action="store_true", help="status and env: one JSON document")
    given = parser.parse_args()
    try:
        return _do(given)
    except MecaError as error:
        print(f"meca: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("meca: interrupted; `start` goes on, `stop` ends what was started.", file=sys.stderr)
        return 130


def _do(given: argparse.Namespace) -> int:
    folder, names = given.folder, given.services
    if given.verb == "status":
        return _status(folder, given.json)
    if given.verb == "env":
        return _env(folder, given.json)
    if given.verb in ("pause", "resume"):
        (services.pause if given.verb == "pause" else services.resume)(folder, names)
        return 0
    if given.verb in ("stop", "restart"):
        services.stop(folder, names)
    if given.verb in ("start", "restart"):
        services.start(folder, names, given.free_ports)
        print(f"\nFor this shell:  set -a; . {shlex.quote(str(folder / 'client.env'))}; set +a")
    return 0


def _status(folder: Path, as_json: bool) -> int:
    found = services.status(folder)
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        for line in found:
            print(f"{line['service']:<9} {line['state']:<10} {line['address']:<34} {line['logs'][-1]}")
    return 0 if all(line["state"] == "answers" for line in found) else 1


def _env(folder: Path, as_json: bool) -> int:
    place = Place.of(folder)
    if not place.secrets or not place.ports:
        raise UsageError(f"Expected services in {folder.resolve()}, found none; start them first.")
    variables = place.client()
    if as_json:
        print(json.dumps(variables, indent=2))
    else:
        print("\n".join(f"export {name}={shlex.quote(value)}" for name, value in variables.items()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
