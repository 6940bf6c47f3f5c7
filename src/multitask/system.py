"""Portable access to locks, cores, processes, ranks and memory; only this module imports platform-specific ones."""

import errno
import getpass
import os
import sys
from pathlib import Path
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

# Set by torchrun, by Slurm and by Lightning for the processes that it starts.
_RANKS = ("RANK", "SLURM_PROCID", "LOCAL_RANK")
# Errors of file systems without locks.
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)
# Errors of Windows if another process holds the lock.
_HELD = (errno.EACCES, errno.EDEADLK)
# Windows blocks reading of locked bytes, so lock one beyond everything that is written.
_FAR = 2**30
# Limit and use of memory of a control group, of version 2 and 1.
_GROUPS = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))


def lock(file: TextIO) -> bool | None:
    """Lock an open file without waiting; closing it or the end of the process releases the lock.

    Returns whether the lock was acquired; ``None`` if the system or file system does not support locks.
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
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def lives(pid: int) -> bool:
    """Return whether a process exists."""
    if sys.platform == "win32":
        import ctypes

        # os.kill would terminate it. 0x1000 is PROCESS_QUERY_LIMITED_INFORMATION; 259 is STILL_ACTIVE.
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
        pass
    return True


def same_group(pid: int) -> bool:
    """Return whether a process receives this one's Ctrl-C; true on systems without process groups."""
    return not hasattr(os, "getpgid") or os.getpgid(pid) == os.getpgid(0)


def is_first() -> bool:
    """Return whether this process is a run's first or only one."""
    return not any(int(os.environ.get(name, 0)) for name in _RANKS)


def user() -> str:
    """Return an identifier of the user for file names."""
    return str(os.getuid()) if hasattr(os, "getuid") else getpass.getuser()


def peak_memory_mib() -> float | None:
    """Return the peak memory of this process in MiB; ``None`` if the system does not report it."""
    if resource is None:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def available_memory(root: Path = Path("/")) -> int | None:
    """Return how many bytes this process can allocate within the limits of its control groups; ``None`` outside Linux.

    ``root`` is the folder of ``proc`` and ``sys``.
    """
    try:
        machine, process = (_text(root / "proc" / name) for name in ("meminfo", "self/cgroup"))
    except OSError:
        return None
    left = [1024 * int(line.split()[1]) for line in machine.splitlines() if line.startswith("MemAvailable:")]
    for _, controllers, path in (line.split(":", 2) for line in process.splitlines()):
        own = root / "sys/fs/cgroup" / controllers / path.lstrip("/")
        for group in (own, *own.parents):
            for limit, used in _GROUPS:
                try:
                    most, now, stat = (_text(group / name) for name in (limit, used, "memory.stat"))
                    used_by = dict(line.split() for line in stat.splitlines())
                    # Cached files are dropped when memory is needed.
                    cached = used_by.get("total_inactive_file", used_by.get("inactive_file", 0))
                    left.append(int(most) - int(now) + int(cached))
                except (OSError, ValueError):  # no such file, or no limit
                    continue
    return max(min(left), 0) if left else None


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")
