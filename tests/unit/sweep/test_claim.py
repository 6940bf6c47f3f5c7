"""A folder is held by one process, and by none once that process has died."""

import json
import multiprocessing
import os
import signal
import socket
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from multitask import system
from multitask.sweep import claim
from multitask.sweep.claim import NAME, STALE_AFTER, claimed, holder


def _hold(folder: Path, connection: Connection) -> None:
    with claimed(folder) as held:
        connection.send(held)
        connection.recv()


@pytest.fixture
def other(tmp_path: Path):
    """Another process that holds the folder."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_hold, args=(tmp_path, there))
    process.start()
    assert here.recv()
    yield process
    process.kill()
    process.join()


def test_only_one_process_holds_a_folder(other: multiprocessing.Process, tmp_path: Path) -> None:
    found = holder(tmp_path)
    assert found is not None
    assert found.local
    assert found.pid == other.pid
    with claimed(tmp_path) as held:
        assert not held
    assert holder(tmp_path) == found


def test_killed_process_releases_the_folder(other: multiprocessing.Process, tmp_path: Path) -> None:
    assert other.pid is not None
    os.kill(other.pid, signal.SIGKILL)
    other.join()
    assert holder(tmp_path) is None
    with claimed(tmp_path) as held:
        assert held
        assert str(holder(tmp_path)) == f"process {os.getpid()} on {os.uname().nodename}"
    assert holder(tmp_path) is None


def test_process_on_another_machine_holds_while_its_heartbeat_is_recent(tmp_path: Path) -> None:
    path = tmp_path / NAME
    path.write_text(json.dumps({"host": "elsewhere", "pid": 1}))
    assert str(holder(tmp_path)) == "process 1 on elsewhere"
    with claimed(tmp_path) as held:
        assert not held
    silent = time.time() - STALE_AFTER - 5
    os.utime(path, (silent, silent))
    assert holder(tmp_path) is None
    with claimed(tmp_path) as held:
        assert held


def test_holder_sends_heartbeats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "HEARTBEAT", 0.01)
    with claimed(tmp_path):
        os.utime(tmp_path / NAME, (0, 0))
        for _ in range(1000):
            if (tmp_path / NAME).stat().st_mtime > 0:
                break
            time.sleep(0.01)
        assert (tmp_path / NAME).stat().st_mtime > 0


def test_live_process_holds_without_file_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "_lock", lambda file, patience=0.0: None)
    with claimed(tmp_path) as held, claimed(tmp_path) as again:
        assert held
        assert not again
    assert holder(tmp_path) is None
    with claimed(tmp_path) as held:
        assert held


def test_concurrent_query_is_not_a_holder(tmp_path: Path) -> None:
    dead = {"host": socket.gethostname(), "pid": 2**22 + 1}
    (tmp_path / NAME).write_text(json.dumps(dead))
    querying = (tmp_path / NAME).open("r+")
    assert system.lock(querying)
    threading.Timer(0.03, querying.close).start()
    assert holder(tmp_path) is None
