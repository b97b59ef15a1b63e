"""What the decoder's process gives up, for good, before it looks at bytes that nobody vouches for.

Level `full`: namespaces of its own, without network and with an empty file system that cannot be written. Level `basic`: what
needs nobody's leave, i.e. limits and no new privileges. On top of either a filter of system calls, where libseccomp is
installed. All but the limits is Linux's; elsewhere they alone remain.
"""

import contextlib
import ctypes
import os
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any

__all__ = ["confine"]

NOBODY = 65534
# No core, no file, no process, and no descriptor beyond the three that are open: what opens a file finds no number for it.
LIMITS = {"RLIMIT_CORE": 0, "RLIMIT_FSIZE": 0, "RLIMIT_NPROC": 0, "RLIMIT_NOFILE": 3}

# prctl
PDEATHSIG, DUMPABLE, BOUNDING_SET_DROP, NO_NEW_PRIVILEGES = 1, 4, 24, 38
# unshare: mounts, UTS, IPC, user, network
NAMESPACES = 0x00020000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x40000000
# mount
ANYWHERE = b"/dev"  # a folder that every Linux has, and everybody can reach
RECURSIVE, PRIVATE, DETACH = 1 << 14, 1 << 18, 2
BARE = 1 | 2 | 4 | 8  # read-only; no set-user-id, no devices, no programs
CAPABILITIES = 64  # more than there are; the kernel says no to the rest
CAPABILITY_VERSION = 0x20080522

# seccomp
ALLOW, REFUSE = 0x7FFF0000, 0x00050000 | 1  # with EPERM
EQUAL, MASKED_EQUAL = 4, 7
EXECUTABLE = 4  # PROT_EXEC
CALLS = (
    *("read", "write"),
    *("brk", "mremap", "munmap", "madvise", "futex", "sched_yield", "restart_syscall", "rseq", "membarrier"),
    *("exit", "exit_group", "rt_sigaction", "rt_sigprocmask", "rt_sigreturn"),
    *("clock_gettime", "gettimeofday", "getrusage", "getpid", "gettid", "getrandom", "getrlimit", "setrlimit"),
)
# Calls that are allowed as long as one argument is harmless: its position, comparison, and two operands.
IF = {"mmap": (2, MASKED_EQUAL, EXECUTABLE, 0), "mprotect": (2, MASKED_EQUAL, EXECUTABLE, 0), "prlimit64": (0, EQUAL, 0, 0)}


class _Comparison(ctypes.Structure):
    _fields_ = (("arg", ctypes.c_uint), ("op", ctypes.c_int), ("first", ctypes.c_uint64), ("second", ctypes.c_uint64))


def confine(parent: int, memory: int) -> dict[str, Any]:
    """Give up files, network, new processes and privileges, and return what could be given up: `level` and `seccomp`.

    Args:
        parent: The process with which this one dies.
        memory: Bytes of address space that remain.
    """
    if sys.platform != "linux":
        _limit(memory)
        return {"level": "basic", "seccomp": False}
    libc = ctypes.CDLL(None, use_errno=True)
    filter_calls = _filter()
    _become_nobody()
    is_apart = _leave(libc)
    _drop_capabilities(libc)
    libc.prctl(PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # after the change of user, which would undo it
    if os.getppid() != parent:
        os._exit(1)
    libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    libc.prctl(DUMPABLE, 0, 0, 0, 0)
    _limit(memory)
    return {"level": "full" if is_apart else "basic", "seccomp": filter_calls()}


def _leave(libc: ctypes.CDLL) -> bool:
    """Move into namespaces of one's own and an empty file system; False where that is not allowed here."""
    steps: tuple[Callable[[], int], ...] = (
        lambda: libc.unshare(NAMESPACES),
        lambda: libc.mount(None, b"/", None, RECURSIVE | PRIVATE, None),
        lambda: libc.mount(b"none", ANYWHERE, b"tmpfs", BARE, b"size=4k,nr_inodes=1"),
        lambda: libc.chdir(ANYWHERE),
        # The new root takes the place of the old one, which is then let go; a root that cannot be moved stays, out of reach.
        lambda: (libc.pivot_root(b".", b".") or libc.umount2(b".", DETACH)) and libc.chroot(b"."),
        lambda: libc.chdir(b"/"),
    )
    return all(step() == 0 for step in steps)


def _become_nobody() -> None:
    """Let go of root: in many containers everything runs as root, and the kernel exempts it from limits."""
    with contextlib.suppress(OSError):
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)


def _drop_capabilities(libc: ctypes.CDLL) -> None:
    for capability in range(CAPABILITIES):
        libc.prctl(BOUNDING_SET_DROP, capability, 0, 0, 0)
    libc.capset((ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0), (ctypes.c_uint32 * 6)())


def _limit(memory: int) -> None:
    for name, value in {**LIMITS, "RLIMIT_AS": memory}.items():
        kind = getattr(resource, name)
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(kind, (value, value))


def _filter() -> Callable[[], bool]:
    """Return what turns the filter of system calls on, and says whether it is; the library is found now, among files."""
    try:
        seccomp = ctypes.CDLL("libseccomp.so.2")
    except OSError:
        return lambda: False
    seccomp.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(seccomp.seccomp_init(ctypes.c_uint32(REFUSE)))
    rules = [(name, None) for name in CALLS] + [(name, _Comparison(*condition)) for name, condition in IF.items()]
    added = [_allow(seccomp, context, name, condition) for name, condition in rules]
    return lambda: bool(context) and all(added) and seccomp.seccomp_load(context) == 0


def _allow(seccomp: ctypes.CDLL, context: ctypes.c_void_p, name: str, condition: _Comparison | None) -> bool:
    number = seccomp.seccomp_syscall_resolve_name(name.encode())
    if number < 0:  # not a call of this processor
        return True
    conditions = (condition,) if condition else ()
    array = (_Comparison * len(conditions))(*conditions)
    return seccomp.seccomp_rule_add_array(context, ctypes.c_uint32(ALLOW), number, len(conditions), array) == 0
