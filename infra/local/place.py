"""A folder in which a set of services lives: their ports, their secrets, and what a client has to know about them."""

import json
import os
import secrets
import shlex
import socket
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from infra.settings import client
from meca.errors import MecaError

__all__ = ["HOST", "PORTS", "SECRETS", "Place", "write_private"]

HOST = "127.0.0.1"

# The ports to start with; a port that somebody else holds is replaced by a free one, which is kept from then on.
PORTS: Mapping[str, int] = {
    "postgres": 55432,
    "s3-proxy": 9000,
    "s3-account": 9012,
    "s3-container": 9011,
    "s3-object": 9010,
    "mlflow": 5000,
    "prefect": 4200,
}

SECRETS = (
    "postgres", "mlflow_database", "prefect_database",
    "s3", "s3_mlflow", "s3_hash",
    "mlflow", "mlflow_session", "prefect",
)  # fmt: skip


@dataclass
class Place:
    """The folder, its ports by process and its secrets by name."""

    folder: Path
    ports: dict[str, int] = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, folder: Path) -> "Place":
        """Read what stands in the folder; an empty one where nothing was ever started."""
        folder = folder.resolve()
        return cls(folder, _read(folder / "ports.json"), _read(folder / "secrets.json"))

    def make(self) -> None:
        """Create the folder and the secrets that it lacks."""
        self.folder.mkdir(parents=True, exist_ok=True)
        # PostgreSQL may run as somebody else, who has to come through; what the others keep is nobody's business.
        for name in ("logs", "run", "s3", "mlflow", "prefect"):
            (self.folder / name).mkdir(exist_ok=True)
            (self.folder / name).chmod(0o700)
        missing = [name for name in SECRETS if name not in self.secrets]
        if missing:
            # Hexadecimal: it stands in addresses, in ini files and in the shell without quoting.
            self.secrets.update({name: secrets.token_hex(24) for name in missing})
            write_private(self.folder / "secrets.json", json.dumps(self.secrets, indent=2))

    def choose_ports(self, names: Iterator[str], any_free: bool) -> None:
        """Give each process a port that can be bound now: the one it had, the usual one, or any.

        Args:
            names: Processes that do not run.
            any_free: Never take the usual ones, so that two places stand side by side.
        """
        taken = set(self.ports.values())
        for name in names:
            wanted = [self.ports[name]] if name in self.ports else []
            wanted += [] if any_free else [PORTS[name]]
            self.ports[name] = next((port for port in wanted if _is_free(port) and port not in taken - {self.ports.get(name)}), 0) or _any_port(taken)
            taken.add(self.ports[name])
        write_private(self.folder / "ports.json", json.dumps(self.ports, indent=2))

    def address(self, process: str) -> str:
        """Return the address of a process without a scheme: host:port."""
        return f"{HOST}:{self.ports[process]}"

    def client(self) -> dict[str, str]:
        """Return the variables with which clients reach what was started here."""
        forms = {"mlflow": ("mlflow", "http://{}"), "prefect": ("prefect", "http://{}/api"), "s3": ("s3-proxy", "http://{}")}
        addresses = {name: form.format(self.address(process)) for name, (process, form) in forms.items() if process in self.ports}
        return client(self.secrets, addresses)

    def write_client(self) -> Path:
        """Write the client's variables for `set -a; . FILE` and return the file."""
        file = self.folder / "client.env"
        write_private(file, "".join(f"{name}={shlex.quote(value)}\n" for name, value in self.client().items()))
        return file


def write_private(file: Path, text: str, owner: tuple[int, int] | None = None) -> None:
    """Write a file that only its owner can read, at no moment anybody else."""
    new = file.with_name(f".{file.name}.new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as stream:
        stream.write(text)
        if owner:
            os.fchown(stream.fileno(), *owner)
    new.replace(file)


def _read(file: Path) -> dict:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise MecaError(f"Expected to read {file}, got: {error}. Stop the services and delete the folder to begin anew.") from None
    return found


def _is_free(port: int) -> bool:
    with closing(socket.socket()) as probe:
        # As the servers do: a port whose connections only wait for their time to run out can be bound.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def _any_port(taken: set[int]) -> int:
    while True:
        with closing(socket.socket()) as probe:
            probe.bind((HOST, 0))
            port = int(probe.getsockname()[1])
        if port not in taken:
            return port
