"""Start, stop and look after the services of a place. Every command can be given again at any moment, also after a crash."""

import contextlib
import fcntl
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.local import postgres, process, s3, servers
from infra.local.place import HOST, PORTS, Place
from infra.local.process import Program
from meca.errors import MecaError, UsageError

__all__ = ["SERVICES", "pause", "resume", "start", "status", "stop"]

PATIENCE = 240.0  # seconds until a service has to answer: the first start makes every table, on a machine that may be busy
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Service:
    """What is started and stopped together under one name."""

    name: str
    processes: tuple[str, ...]
    needs: tuple[str, ...]
    address: str  # of the process that clients speak to, with {} for host:port
    prepare: Callable[[Place], None]
    programs: Callable[[Place], list[Program]]
    is_ready: Callable[[Place], bool]
    complete: Callable[[Place], None] = lambda place: None
    ending: signal.Signals = signal.SIGTERM


def _healthy(processes: Sequence[str], path: str) -> Callable[[Place], bool]:
    return lambda place: all(servers.answers(f"http://{place.address(name)}{path}") for name in processes)


_S3 = ("s3-account", "s3-container", "s3-object", "s3-proxy")

SERVICES = {
    service.name: service
    for service in (
        Service(
            "postgres", ("postgres",), (), "postgresql://{}", postgres.prepare, postgres.programs, postgres.is_ready, postgres.complete, signal.SIGINT
        ),
        Service("s3", _S3, (), "http://{}", s3.prepare, s3.programs, _healthy(_S3, "/healthcheck"), s3.complete),
        Service("mlflow", ("mlflow",), ("postgres", "s3"), "http://{}", servers.prepare_mlflow, servers.mlflow, _healthy(("mlflow",), "/health")),
        Service("prefect", ("prefect",), ("postgres",), "http://{}/api", lambda place: None, servers.prefect, _healthy(("prefect",), "/api/health")),
    )
}


def start(folder: Path, names: Iterable[str] = (), free_ports: bool = False, tell: Tell = print) -> None:
    """Start what does not run, and what the named services stand on; return when each answers.

    Args:
        folder: The place.
        names: Services; all if empty.
        free_ports: Take any free ports instead of the usual ones.
        tell: Where a line about each goes.

    Raises:
        MecaError: One did not start; those that did stay up.
    """
    chosen = _with_needs(names)
    place = Place.of(folder)
    place.make()
    with _locked(place):
        pending = [service for service in chosen if not _runs(service, place)]
        # Whatever is left of a start that was cut short holds ports and files.
        for service in pending:
            _stop(service, place)
        place.choose_ports((name for service in pending for name in service.processes), free_ports)
        # New ports below mean a new start above.
        pending += [service for service in chosen if service not in pending and not _is_current(service, place)]
        for service in (service for service in chosen if service not in pending):
            tell(f"{service.name:<9} runs already: {_address(service, place)}")
        for wave in _waves(pending):
            _start_together(wave, place, tell)
        place.write_client()


def stop(folder: Path, names: Iterable[str] = (), tell: Tell = print) -> None:
    """End the named services, or everything of the place: also what a crash left without a record."""
    place = Place.of(folder)
    if not place.folder.is_dir():
        tell(f"nothing runs in {place.folder}")
        return
    names = _known(names)
    with _locked(place):
        for service in reversed([SERVICES[name] for name in names]):
            tell(f"{service.name:<9} {'stopped' if _stop(service, place) else 'does not run'}")
        if len(names) == len(SERVICES):
            for left in process.members(place.folder):
                with contextlib.suppress(process.psutil.Error):
                    left.kill()


def status(folder: Path) -> list[dict[str, Any]]:
    """Return a line per service: `service`, `state` (answers, no answer, paused, stopped), `address`, `pids`, `logs`."""
    place = Place.of(folder)
    return [_state(service, place) for service in SERVICES.values()]


def pause(folder: Path, names: Iterable[str]) -> None:
    """Freeze services: connections stay open and nothing answers, as behind a network that hangs."""
    _signal(folder, names, signal.SIGSTOP)


def resume(folder: Path, names: Iterable[str]) -> None:
    """Let paused services go on."""
    _signal(folder, names, signal.SIGCONT)


def _known(names: Iterable[str]) -> list[str]:
    names = list(names)
    if unknown := [name for name in names if name not in SERVICES]:
        raise UsageError(f"Expected services out of {', '.join(SERVICES)}, got {', '.join(unknown)}.")
    return [name for name in SERVICES if name in names or not names]


def _with_needs(names: Iterable[str]) -> list[Service]:
    wanted = set(_known(names))
    for service in reversed(SERVICES.values()):  # what others stand on comes first in the list
        wanted |= set(service.needs) if service.name in wanted else set()
    return [service for service in SERVICES.values() if service.name in wanted]


def _waves(services: Sequence[Service]) -> Iterator[list[Service]]:
    """Yield what can start side by side, in order."""
    left = list(services)
    while left:
        names = {service.name for service in left}
        wave = [service for service in left if not names & set(service.needs)]
        yield wave
        left = [service for service in left if service not in wave]


def _start_together(wave: Sequence[Service], place: Place, tell: Tell) -> None:
    began = time.monotonic()
    for service in wave:
        _stop(service, place)
        service.prepare(place)
        for program in service.programs(place):
            program.start()
    waiting = list(wave)
    while waiting:
        for service in list(waiting):
            if service.is_ready(place):
                service.complete(place)
                _completed(service, place).touch()
                waiting.remove(service)
                tell(f"{service.name:<9} runs: {_address(service, place)} ({time.monotonic() - began:.0f} s)")
            else:
                _check_alive(service, place)
        if waiting and time.monotonic() - began > PATIENCE:
            logs = ", ".join(str(program.log) for program in waiting[0].programs(place))
            raise MecaError(f"{waiting[0].name} did not answer within {PATIENCE:.0f} s; see {logs}.")
        time.sleep(0.2 if waiting else 0)


def _check_alive(service: Service, place: Place) -> None:
    for program in service.programs(place):
        if program.pid() is None:
            lines = program.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-15:]
            _stop(service, place)
            raise MecaError(f"{program.name} ended while it started. The last lines of {program.log}:\n" + "\n".join(lines))


def _runs(service: Service, place: Place) -> bool:
    # A start that was cut short may have left a server that answers and lacks its databases or buckets.
    return _completed(service, place).is_file() and _is_current(service, place) and service.is_ready(place)


def _completed(service: Service, place: Place) -> Path:
    return place.folder / "run" / f"{service.name}.complete"


def _is_current(service: Service, place: Place) -> bool:
    needed = [name for each in (service, *(SERVICES[need] for need in service.needs)) for name in each.processes]
    return all(name in place.ports for name in needed) and all(program.is_current() for program in service.programs(place))


def _stop(service: Service, place: Place) -> bool:
    _completed(service, place).unlink(missing_ok=True)
    # The process that clients speak to goes first, so that none is answered by half a service.
    return any([process.stop(place.folder, name, service.ending) for name in reversed(service.processes)])


def _state(service: Service, place: Place) -> dict[str, Any]:
    pids = {name: process.recorded(place.folder, name)[0] for name in service.processes}
    alive = [pid for pid in pids.values() if pid is not None]
    if len(alive) < len(pids):
        state = "stopped" if not alive else "half"
    elif any(process.psutil.Process(pid).status() == process.psutil.STATUS_STOPPED for pid in alive):
        state = "paused"
    else:
        state = "answers" if service.is_ready(place) else "no answer"
    logs = [str(place.folder / "logs" / f"{name}.log") for name in service.processes]
    return {"service": service.name, "state": state, "address": _address(service, place) if alive else "", "pids": alive, "logs": logs}


def _signal(folder: Path, names: Iterable[str], number: signal.Signals) -> None:
    place = Place.of(folder)
    for name in _known(names):
        for program in SERVICES[name].processes:
            for member in process.members(place.folder, program):
                with contextlib.suppress(process.psutil.Error):
                    member.send_signal(number)


def _address(service: Service, place: Place) -> str:
    last = service.processes[-1]
    return service.address.format(f"{HOST}:{place.ports.get(last, PORTS[last])}")


@contextlib.contextmanager
def _locked(place: Place) -> Iterator[None]:
    with (place.folder / "lock").open("w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)  # two commands at once: one after the other
        yield
