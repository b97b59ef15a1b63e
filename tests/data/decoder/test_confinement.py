"""Behind the walls, each thing that a broken decoder could try is tried, at each level. From outside, the kernel is asked."""

import ctypes
import errno
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from meca.data.decoder.decode import Unreadable, decode
from meca.data.decoder.pool import Decoder
from meca.data.decoder.worker import samples
from tests.data.decoder.programs import processes
from tests.making import encode, pixels

ROOT = Path(__file__).parents[3]
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="namespaces and system calls are Linux's")

# Runs in a process of its own: confines itself as the worker does and says which attempts succeeded. Should the walls be
# broken, none of the attempts may harm the machine: they change nothing but this process and the test's folder.
PROBE = """
import contextlib, ctypes, json, mmap, os, resource, socket, subprocess, sys
from meca.data.decoder import confinement

full, seccomp, own, target, folder = json.loads(sys.argv[1])
if not full:
    confinement._leave = lambda libc: False
if not seccomp:
    confinement._filter = lambda: lambda: False
libc = ctypes.CDLL(None, use_errno=True)
protected = mmap.mmap(-1, 4096)
address = ctypes.addressof(ctypes.c_char.from_buffer(protected))

def call(name, *given):
    if getattr(libc, name)(*given) == -1:
        raise OSError(ctypes.get_errno(), name)

def lacks(option, expected):
    if libc.prctl(option, 0, 0, 0, 0) in (expected, -1):  # -1: it may not even ask
        raise OSError

def reach():
    with socket.socket() as own_end:
        own_end.connect(("127.0.0.1", target))

ATTEMPTS = {
    "read a file": lambda: open("/etc/passwd").close(),
    "read this program's library": lambda: open(own).close(),
    "list the root": lambda: os.listdir("/") and None,
    "see a file": lambda: os.stat("/etc/passwd"),
    "make a file": lambda: open(folder + "/made", "w").close(),
    "leave by the working directory": lambda: os.chdir("../../etc"),
    "connect": reach,
    "make a socket": lambda: socket.socket().close(),
    "start a program": lambda: subprocess.run(["/bin/true"], check=True),
    "fork": lambda: os.fork() or os._exit(0),
    "signal the parent": lambda: os.kill(os.getppid(), 0),
    "trace the parent": lambda: call("ptrace", 0x4206, os.getppid(), None, None),
    "limit the parent": lambda: call("prlimit", os.getppid(), 0, None, (ctypes.c_uint64 * 2)()),
    "become root": lambda: call("setresuid", 0, 0, 0),
    "change the root": lambda: os.chroot("/"),
    "raise its own memory": lambda: resource.setrlimit(resource.RLIMIT_AS, (2**40, 2**40)),
    "get privileges from a program": lambda: lacks(39, 1),
    "be read by others": lambda: lacks(3, 0),
    "make memory that runs": lambda: call("mprotect", ctypes.c_void_p(address), 4096, 7),
    "enter new namespaces": lambda: call("unshare", 0x10000000),  # the last, because it would make others possible
}
if full or seccomp:
    ATTEMPTS["replace itself"] = lambda: os.execv("/bin/true", ["true"])
active = confinement.confine(os.getppid(), 2**31)
if len(sys.argv) > 2:
    with contextlib.suppress(OSError):
        os.close(0)  # code that runs in here could make room for a descriptor
found, why = [], set()
for name, attempt in ATTEMPTS.items():
    try:
        attempt()
        found.append(name)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        why.add(getattr(error, "errno", None))
os.write(1, json.dumps([active, found, os.getuid(), sorted(why - {None})]).encode())
"""


def probe(full: bool, seccomp: bool, port: int, folder: Path, *free: str) -> tuple[dict[str, Any], set[str], int, list[int]]:
    given = json.dumps([full, seccomp, ctypes.__file__, port, str(folder)])
    done = subprocess.run([sys.executable, "-c", PROBE, given, *free], env={"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}, cwd="/",
                          capture_output=True, text=True, timeout=120)  # fmt: skip
    assert done.returncode == 0, done.stderr
    active, found, user, why = json.loads(done.stdout)
    return active, set(found), user, why


@pytest.fixture
def port() -> Iterator[int]:
    """Return where somebody listens on this machine."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def namespaces() -> bool:
    """Say whether an ordinary process of this machine gets namespaces, without asking meca."""
    tool = shutil.which("unshare")
    return tool is not None and subprocess.run([tool, "-Urnm", "true"], capture_output=True).returncode == 0


@LINUX
@pytest.mark.parametrize("seccomp", [True, False])
@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("free", [(), ("free",)])
def test_nothing_can_be_reached_from_inside(full: bool, seccomp: bool, free: tuple[str, ...], port: int, tmp_path: Path) -> None:
    active, found, user, why = probe(full, seccomp, port, tmp_path, *free)
    if (full and active["level"] != "full") or (seccomp and not active["seccomp"]):
        pytest.skip(f"this machine has no more than {active}")
    assert active == {"level": "full" if full else "basic", "seccomp": seccomp}
    if seccomp:
        assert not found and user == -1, "it may not even ask who it is"
        assert why == [errno.EPERM], "something was let through and failed for another reason"
    elif full:  # what is there to see is an empty folder, and the memory of this process is its own
        seen = {"list the root", "leave by the working directory"} if free else set()
        assert found <= {"make memory that runs", "make a socket", "enter new namespaces", *seen}
        assert "make a socket" not in found or free
        assert user == 65534, "in namespaces without a map, everybody is nobody"
    else:  # no walls: only the limits, and what nobody may do
        blind = {"see a file", "leave by the working directory", "make memory that runs", "enter new namespaces"}
        assert found <= (blind | {"read a file", "read this program's library", "list the root", "connect", "make a socket"} if free else blind)
        assert user == (os.getuid() or 65534), "root does not stay root"


@LINUX
def test_a_process_that_is_not_confined_can_do_it_all(monkeypatch: pytest.MonkeyPatch, port: int, tmp_path: Path) -> None:
    # Else the test above would pass on a machine where nothing works.
    program = PROBE.replace("active = confinement.confine(os.getppid(), 2**31)", "active = {}")
    monkeypatch.setitem(globals(), "PROBE", program)
    _, found, _, _ = probe(False, False, port, tmp_path)
    expected = {"read a file", "read this program's library", "list the root", "see a file", "leave by the working directory", "connect",
                "make a file", "make a socket", "start a program", "fork", "signal the parent", "make memory that runs",
                "get privileges from a program", "be read by others"}  # fmt: skip
    assert found >= expected


@LINUX
def test_the_kernel_says_what_a_worker_has_given_up() -> None:
    with Decoder(1) as decoder:
        assert len(list(decoder.map([encode(pixels(1))], lambda data: data))) == 1
        [number] = processes(decoder)
        process = Path(f"/proc/{number}")
        status = dict(line.split(":\t", 1) for line in (process / "status").read_text().splitlines() if ":\t" in line)
        assert decoder.level and status["NoNewPrivs"] == "1" and status["Seccomp"] == ("2" if decoder.level["seccomp"] else "0")
        assert {status[name].strip("0") for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {""}
        limits = {line[:26].strip(): line[26:].split()[:2] for line in (process / "limits").read_text().splitlines()}
        assert limits["Max open files"] == ["3", "3"] and limits["Max file size"] == ["0", "0"] and limits["Max core file size"] == ["0", "0"]
        assert limits["Max address space"] == [str(3 * 2**30)] * 2 and limits["Max cpu time"][0].isdigit()
        assert os.getsid(number) == number, "Ctrl-C would end it too"
        if os.getuid() == 0:
            assert sorted(path.name for path in (process / "fd").iterdir()) == ["0", "1", "2"]
            environment = {line.partition(b"=")[0] for line in (process / "environ").read_bytes().split(b"\0") if line}
            assert environment <= {b"LC_ALL", b"OMP_NUM_THREADS", b"OPENBLAS_NUM_THREADS", b"MKL_NUM_THREADS", b"LD_LIBRARY_PATH"}
            if decoder.level["level"] == "full":
                assert list((process / "root").iterdir()) == []
                [mount] = (process / "mountinfo").read_text().splitlines()
                assert mount.split()[3:6] == ["/", "/", "ro,nosuid,nodev,noexec,relatime"]
                apart = {
                    name: [(path / "ns" / name).readlink() for path in (process, Path("/proc/self"))] for name in ("user", "mnt", "net", "ipc", "uts")
                }
                assert all(theirs != ours for theirs, ours in apart.values()), apart


@LINUX
def test_the_level_is_what_the_machine_allows() -> None:
    with Decoder(1) as decoder:
        list(decoder.map([encode(pixels(1))], lambda data: data))
    try:
        ctypes.CDLL("libseccomp.so.2")
        has_library = True
    except OSError:
        has_library = False
    assert decoder.level == {"level": "full" if namespaces() else "basic", "seccomp": has_library}


DECODE = """
import json, sys
from meca.data.decoder.pool import Decoder
from meca.data.decoder.worker import samples
with Decoder(2) as decoder:
    images = [image for _, image in decoder.map([*samples()] * 4, lambda data: data)]
print(json.dumps([decoder.level, [image if isinstance(image, str) else image.pixels.tobytes().hex()[:60] for image in images]]))
"""


@LINUX
@pytest.mark.skipif(not namespaces(), reason="no namespaces on this machine")
@pytest.mark.parametrize(
    ("around", "level"),
    [
        (["unshare", "-Urn"], "full"),  # the whole of meca without network
        (["unshare", "-Ur", "sh", "-c", 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"', "sh"], "basic"),
        (["prlimit", "--nofile=64", "--core=0"], "full"),
    ],
)
def test_the_pool_works_inside_other_walls_and_where_there_are_none_to_be_had(around: list[str], level: str, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*around, sys.executable, "-c", DECODE], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found, images = json.loads(done.stdout)
    assert found["level"] == level
    expected = []
    for data in samples():
        try:
            expected.append(decode(data).pixels.tobytes().hex()[:60])
        except Unreadable as problem:
            expected.append(str(problem))
    assert images == expected * 4


IMPORTED = """
import json, sys
sys.path.insert(0, sys.argv[1])
import meca.data.decoder.worker
print(json.dumps(sorted(sys.modules)))
"""


def test_a_worker_imports_nothing_but_numpy_and_pillow(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-I", "-c", IMPORTED, str(ROOT)], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    modules = json.loads(done.stdout)
    foreign = {name.partition(".")[0] for name in modules} & {"torch", "torchvision", "pyarrow", "sklearn", "scipy", "pandas", "yaml", "tests"}
    assert not foreign
    assert {name for name in modules if name.startswith("meca")} == {
        "meca", "meca.data", "meca.data.decoder", "meca.data.decoder.confinement", "meca.data.decoder.decode", "meca.data.decoder.worker",
    }  # fmt: skip
