"""What a server needs of the machine: loopback alone, and two directories that it may write to, as any user."""

from __future__ import annotations

import ipaddress
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import requests

from carla_policy_tools.paths import CONFIG, PROJECT
from carla_policy_tools.urls import prediction_url
from tests.servers import COMMAND, ServeProcess

VERSION = "v1.9.0"
NOBODY = 65534
BODY = {"observations": [{"speed": 1.0, "steering": 0.0, "sensors": [0.0] * 5}]}
AS_NOBODY = f"""
import os, sys
os.setgroups([])
os.setgid({NOBODY})
os.setuid({NOBODY})
os.execv(sys.argv[1], sys.argv[1:])
"""


def test_every_socket_of_a_server_listens_on_loopback_only(small_store: Path) -> None:
    with ServeProcess(small_store, VERSION) as server:
        processes = [psutil.Process(server.process.pid), *server.descendants()]
        listening = [c.laddr for p in processes for c in p.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
        others = [c for p in processes for c in p.net_connections("udp")]
    addresses = {address.ip.removeprefix("::ffff:") for address in listening}
    assert len(listening) >= 6
    assert [address for address in addresses if not ipaddress.ip_address(address).is_loopback] == []
    assert others == []


@pytest.fixture
def writable(small_store: Path) -> Iterator[Path]:
    """A directory of nobody's with a model store and a run directory in it."""
    if os.geteuid() != 0:
        pytest.skip("only root can start a process as another user")
    directory = Path(tempfile.mkdtemp(prefix="carla-policy-uid-"))
    shutil.copytree(small_store, directory / "store")
    (directory / "run").mkdir()
    for path in (directory, *directory.rglob("*")):
        os.chown(path, NOBODY, NOBODY)
    check = "import carla_policy_tools.cli, ts, torch"
    found = subprocess.run(
        [sys.executable, "-c", f"import os; os.setgid({NOBODY}); os.setuid({NOBODY}); {check}"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=directory,
    )
    try:
        if found.returncode:
            pytest.skip(f"another user cannot read this installation: {found.stderr.strip().splitlines()[-1]}")
        yield directory
    finally:
        shutil.rmtree(directory)


def test_runs_as_a_user_who_may_write_to_the_store_and_the_run_directory_only(writable: Path) -> None:
    environment = {**os.environ, "HOME": "/nonexistent", "TMPDIR": str(writable / "run")}
    options = ["--store", str(writable / "store"), "--run-dir", str(writable / "run"), "--port", "0", "--json"]
    server = subprocess.Popen(
        [sys.executable, "-c", AS_NOBODY, *COMMAND, "serve", VERSION, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=PROJECT,
        env=environment,
    )
    try:
        assert server.stdout is not None
        line = server.stdout.readline()
        assert line, server.communicate(timeout=30)[1]
        ready = json.loads(line)
        processes = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
        assert {process.uids().effective for process in processes} == {NOBODY}
        assert requests.post(prediction_url(ready["inference"], VERSION), json=BODY, timeout=30).status_code == 200
    finally:
        server.terminate()
        _, error = server.communicate(timeout=60)
    assert (server.returncode, error) == (0, "")
    code = [path for name in ("config", "handler", "tools") for path in (PROJECT / name).rglob("*")]
    assert [path for path in code if path.lstat().st_uid == NOBODY] == []


def test_server_without_memory_ends_or_recovers_and_does_not_limp_on(small_store: Path, tmp_path: Path) -> None:
    """More bodies than it has room for wait for a worker that is stopped.

    Where Java's heap is full first it ends, so that whoever watches it starts it again. Where the memory is full first
    in which bodies arrive, the last are answered 507, and it goes on as soon as there is room.
    """
    profile = tmp_path / "small.yaml"
    profile.write_text((CONFIG / "profiles" / "realtime.yaml").read_text().replace("mb: 2048", "mb: 64"))
    body = json.dumps(BODY).encode().ljust(2 << 20)
    statuses = []
    with ServeProcess(small_store, VERSION, "--profile", str(profile)) as server:
        worker = psutil.Process(server.get(VERSION, "metadata").json()["workerPid"])

        def ask() -> None:
            with suppress(requests.RequestException):
                statuses.append(requests.post(prediction_url(server.base, VERSION), data=body, timeout=60).status_code)

        worker.suspend()
        clients = [threading.Thread(target=ask) for _ in range(48)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        deadline = time.monotonic() + 60
        while server.process.poll() is None and not _is_ready(server):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        if server.process.poll() is None:
            assert 507 in statuses
            assert server.post(VERSION, BODY).status_code == 200
        else:
            status, error = server.wait()
            assert status == 1
            assert "TorchServe ended with status 3" in error
            assert "OutOfMemoryError" in error


def _is_ready(server: ServeProcess) -> bool:
    with suppress(requests.RequestException):
        return requests.get(f"{server.ready['health']}/readyz", timeout=10).ok
    return False
