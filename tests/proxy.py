"""A TCP proxy that misbehaves as it is told: what networks do to requests, between a real client and a real server."""

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends a reset


@dataclass
class Fault:
    """What happens to one connection; without any field it passes as it is."""

    cut: int | None = None  # bytes of the reply after which the connection is reset
    answer: bytes | None = None  # sent instead of the server's reply
    delay: float = 0.0  # seconds before the first byte of the reply
    corrupt: int | None = None  # the byte of the reply that is turned


@dataclass
class Proxy:
    """A running proxy. `faults` are taken by the next connections, one each; then everything passes."""

    port: int
    faults: list[Fault] = field(default_factory=list)
    connections: int = 0


@contextlib.contextmanager
def proxy(target: tuple[str, int]) -> Iterator[Proxy]:
    """Run a proxy before `target` on a free port of the loopback."""
    listener = socket.create_server(("127.0.0.1", 0))
    running = Proxy(listener.getsockname()[1])

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                running.connections += 1
                fault = running.faults.pop(0) if running.faults else Fault()
                threading.Thread(target=_pass, args=(client, target, fault), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield running
    finally:
        listener.close()


def _pass(client: socket.socket, target: tuple[str, int], fault: Fault) -> None:
    with contextlib.suppress(OSError), client:
        if fault.answer is not None:
            client.recv(65536)
            time.sleep(fault.delay)
            client.sendall(fault.answer)
            return
        with socket.create_connection(target) as server:
            threading.Thread(target=_copy, args=(client, server), daemon=True).start()
            time.sleep(fault.delay)
            sent = 0
            while data := server.recv(65536):
                if fault.corrupt is not None and sent <= fault.corrupt < sent + len(data):
                    at = fault.corrupt - sent
                    data = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
                if fault.cut is not None and sent + len(data) > fault.cut:
                    client.sendall(data[: fault.cut - sent])
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                    return
                client.sendall(data)
                sent += len(data)


def _copy(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
