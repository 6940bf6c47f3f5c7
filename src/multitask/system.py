"""Locks, cores, processes and memory on every operating system; nothing else imports modules of one system."""

import errno
import getpass
import os
import sys
from typing import Any, TextIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]
try:
    import msvcrt
except ImportError:  # everywhere else
    msvcrt = None  # type: ignore[assignment]
try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

# What a file system without locks answers.
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)
# What Windows answers where another process has the lock.
_HELD = (errno.EACCES, errno.EDEADLK)
# Windows keeps others from reading what is locked: a byte behind all that is ever written.
_FAR = 2**30


def lock(file: TextIO) -> bool | None:
    """Lock an open file, without waiting; closing it, or the end of the process, gives the lock back.

    Returns:
        Whether the lock could be had; ``None`` where system or file system have no locks.

    Raises:
        OSError: For any other reason.
    """
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        elif msvcrt is not None:
            _lock_far_byte(file, msvcrt)
        else:
            return None
    except BlockingIOError:
        return False
    except OSError as error:
        if fcntl is None and error.errno in _HELD:
            return False
        if error.errno in _NO_LOCKS:
            return None
        raise
    return True


def _lock_far_byte(file: TextIO, windows: Any) -> None:
    number = file.fileno()
    position = os.lseek(number, 0, os.SEEK_CUR)
    os.lseek(number, _FAR, os.SEEK_SET)
    try:
        windows.locking(number, windows.LK_NBLCK, 1)
    finally:
        os.lseek(number, position, os.SEEK_SET)


def cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def lives(pid: int) -> bool:
    """Return whether there is a process of this number."""
    if sys.platform == "win32":
        import ctypes

        # os.kill would end it. 0x1000 asks for no more than the right to look; 259 is "still active".
        kernel, code = ctypes.windll.kernel32, ctypes.c_ulong()
        handle = kernel.OpenProcess(0x1000, False, pid)
        if not handle:
            return False
        kernel.GetExitCodeProcess(handle, ctypes.byref(code))
        kernel.CloseHandle(handle)
        return code.value == 259
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def same_group(pid: int) -> bool:
    """Return whether a process gets this one's Ctrl-C; where there are no process groups, those of a console do."""
    return not hasattr(os, "getpgid") or os.getpgid(pid) == os.getpgid(0)


def user() -> str:
    """Return what tells this user from others of the machine, in the name of a file."""
    return str(os.getuid()) if hasattr(os, "getuid") else getpass.getuser()


def peak_memory_mib() -> float | None:
    """Return the most memory that this process has held, in MiB; ``None`` where the system does not tell."""
    if resource is None:
        return None
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return held / (2**20 if sys.platform == "darwin" else 2**10)
