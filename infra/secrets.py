"""python -m infra.secrets FOLDER: the passwords of compose.yaml and of the cluster, made once, each in a file of its own.

The folder is closed to other users of this machine. The files in `files/` are not, because the containers read them as a user
of their own; what is missing is made, what is there stays.
"""

import argparse
import secrets
import shlex
from pathlib import Path

from infra.local.place import SECRETS, write_private
from infra.settings import client

__all__ = ["main", "make"]

NAMES = (*SECRETS, "redis")


def make(folder: Path) -> dict[str, str]:
    """Write the secrets that are missing, and the variables of clients; return the secrets by name."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    files = folder / "files"
    files.mkdir(exist_ok=True)
    for name in NAMES:
        if not (files / name).is_file():
            write_private(files / name, secrets.token_hex(24))
            (files / name).chmod(0o444)
    found = {name: (files / name).read_text(encoding="utf-8").strip() for name in NAMES}
    here = {"mlflow": "http://127.0.0.1:5000", "prefect": "http://127.0.0.1:4200/api", "s3": "http://127.0.0.1:9000"}
    there = {"mlflow": "http://mlflow:5000", "prefect": "http://prefect:4200/api", "s3": "http://s3:9000"}
    write_private(folder / "client.env", "".join(f"{name}={shlex.quote(value)}\n" for name, value in client(found, here).items()))
    write_private(folder / "cluster.env", "".join(f"{name}={value}\n" for name, value in client(found, there).items()))
    return found


def main() -> None:
    """Make the folder and say how it is used."""
    parser = argparse.ArgumentParser(prog="python -m infra.secrets", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    make(folder)
    print(f"{folder / 'files'}: {len(NAMES)} secrets for the servers")
    print(f"{folder / 'client.env'}: for clients on this machine; {folder / 'cluster.env'}: for clients beside the servers")


if __name__ == "__main__":
    main()
