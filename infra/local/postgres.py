"""PostgreSQL from the system's packages: one cluster, a role and a database for each server that stands on it."""

import os
import pwd
import re
import shutil
import signal
import subprocess
from pathlib import Path

from infra.local.place import HOST, Place, write_private
from infra.local.process import Program, run_as
from infra.stores import DATABASES, address, make_databases
from meca.errors import MecaError

__all__ = ["complete", "database", "find", "is_ready", "prepare", "programs"]

OLDEST = 14  # what MLflow and Prefect ask for


def find() -> Path:
    """Return the folder of PostgreSQL's programs.

    Raises:
        MecaError: There are none, or they are too old.
    """
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: _number(folder.parent.name), reverse=True)
    on_path = shutil.which("initdb")
    folders += [Path(on_path).resolve().parent] if on_path else []
    for folder in folders:
        if (folder / "initdb").is_file() and (folder / "postgres").is_file():
            text = subprocess.run([folder / "postgres", "--version"], capture_output=True, text=True, check=False).stdout  # noqa: S603
            if _number(text) >= OLDEST:
                return folder
    raise MecaError(f"Expected PostgreSQL {OLDEST} or newer (initdb, postgres), found none; on Debian: apt install postgresql.")


def prepare(place: Place) -> None:
    """Create the cluster, if there is none: whole or not at all."""
    folder = place.folder / "postgres"
    folder.mkdir(exist_ok=True)
    user = _user()
    if user:
        os.chown(folder, *user)
        # postgres refuses to run as root, and whoever it runs as must come through every folder above.
        if subprocess.run(["test", "-w", str(folder)], check=False, **run_as(user)).returncode:  # noqa: S603, S607 - part of every system
            name = pwd.getpwuid(user[0]).pw_name
            raise MecaError(
                f"Expected a folder that the user {name} can reach, because PostgreSQL does not run as root, got {folder}: "
                "choose another one with --folder or MECA_SERVICES, or start the services as an ordinary user."
            )
    if (folder / "data").is_dir():
        return
    new, password = folder / "data.new", folder / "password"
    shutil.rmtree(new, ignore_errors=True)
    write_private(password, place.secrets["postgres"], user)
    try:
        # Passwords on every connection, those of this machine too: other users of it can reach the port.
        arguments = ["--username=postgres", f"--pwfile={password}", "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", f"--pgdata={new}"]
        done = subprocess.run([find() / "initdb", *arguments], capture_output=True, text=True, check=False, cwd=folder, **run_as(user))  # noqa: S603
    finally:
        password.unlink(missing_ok=True)
    if done.returncode:
        raise MecaError(f"initdb failed in {folder}: {_last(done.stderr or done.stdout)}")
    new.rename(folder / "data")


def programs(place: Place) -> list[Program]:
    """Return the one process."""
    settings = {
        "listen_addresses": HOST,
        "port": place.ports["postgres"],
        "unix_socket_directories": "",  # a path would have to be shorter than 108 bytes
        "log_min_error_statement": "panic",  # a statement that fails may hold a password
        "log_timezone": "UTC",
    }
    options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    data = place.folder / "postgres" / "data"
    # SIGINT is its fast shutdown: it ends its connections instead of waiting for them.
    return [Program("postgres", place.folder, [str(find() / "postgres"), "-D", str(data), *options], {}, _user(), signal.SIGINT)]


def is_ready(place: Place) -> bool:
    """Tell whether it takes connections."""
    arguments = [find() / "pg_isready", "--quiet", f"--host={HOST}", f"--port={place.ports['postgres']}", "--timeout=3"]
    return subprocess.run(arguments, check=False).returncode == 0  # noqa: S603


def complete(place: Place) -> None:
    """Create the roles and databases that are missing and set the passwords.

    Raises:
        MecaError: It refuses, as when the secrets are not those that the cluster was made with.
    """
    passwords = {role: place.secrets[f"{role}_database"] for role in DATABASES.values()}
    try:
        make_databases(HOST, place.ports["postgres"], place.secrets["postgres"], passwords)
    except MecaError as error:
        lost = "password authentication failed" in str(error)
        help_ = f"; {place.folder / 'secrets.json'} is not the one the cluster was made with: bring it back, or delete the folder." if lost else ""
        raise MecaError(f"{error}{help_}") from None


def database(place: Place, driver: str, name: str) -> str:
    """Return the address of a database, password included: for environments and private files only."""
    return address(driver, name, place.secrets[f"{DATABASES[name]}_database"], place.address("postgres"))


def _user() -> tuple[int, int] | None:
    """Return as whom it runs: ourselves, or its own user (else nobody) when we are root."""
    if os.geteuid():
        return None
    for name in ("postgres", "nobody"):
        try:
            found = pwd.getpwnam(name)
        except KeyError:
            continue
        return found.pw_uid, found.pw_gid
    raise MecaError("Expected a user `postgres` or `nobody` for PostgreSQL, which does not run as root, found neither.")


def _number(text: str) -> int:
    found = re.search(r"\d+", text)
    return int(found[0]) if found else 0


def _last(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[-1]
