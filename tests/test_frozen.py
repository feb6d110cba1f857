"""`carla-policy serve --frozen`: nobody can make the server load code or lose a version while it runs."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from carla_policy.digests import file_digest
from carla_policy_tools.lifecycle.registering import Newcomer, record
from carla_policy_tools.lifecycle.registry import RegistryFile
from carla_policy_tools.paths import archive_name
from tests.servers import COMMAND, ServeProcess

OLD, NEW, OUTSIDE = "v1.9.0", "v1.10.0", "v9.9.9"
BODY = {"observations": [{"speed": 1.0, "steering": 0.0, "sensors": [0.0] * 5}]}


@pytest.fixture(scope="module")
def frozen(small_store: Path) -> Iterator[ServeProcess]:
    with ServeProcess(small_store, OLD, NEW, "--frozen") as process:
        yield process


def operate(server: ServeProcess, store: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, *arguments, "--store", str(store), "--registry", str(server.registry)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def promoted(server: ServeProcess) -> str:
    return str(server.post(None, BODY).json()["version"])


@pytest.mark.parametrize("arguments", [("register", OUTSIDE), ("retire", OLD), ("retire", OLD, "--force")])
def test_versions_neither_join_nor_leave(frozen: ServeProcess, small_store: Path, arguments: tuple[str, ...]) -> None:
    before = frozen.registry.read_bytes()
    refused = operate(frozen, small_store, *arguments)
    assert (refused.returncode, frozen.registry.read_bytes()) == (1, before)
    assert f"{arguments[1]}: the versions of this server are fixed, it was started with --frozen" in refused.stderr


def test_management_port_neither_loads_nor_removes(frozen: ServeProcess, small_store: Path, tmp_path: Path) -> None:
    """Not an archive in its own store, and not a directory of the host, which TorchServe loads whatever is allowed."""
    management, own_store = frozen.ready["management"], Path(frozen.ready["run_dir"], "store")
    candidate = own_store / "other.mar"
    shutil.copyfile(small_store / archive_name(OLD), candidate)
    for url in (candidate.name, str(tmp_path), f"file://{candidate}"):
        assert requests.post(f"{management}/models", params={"url": url}, timeout=10).status_code == 405
    assert requests.delete(f"{management}/models/carla_policy/{OLD}", timeout=10).status_code == 405
    assert frozen.post(OLD, BODY).status_code == 200


def test_promotion_and_rollback_work(frozen: ServeProcess, small_store: Path) -> None:
    assert promoted(frozen) == NEW
    assert operate(frozen, small_store, "promote", OLD).returncode == 0
    assert promoted(frozen) == OLD
    assert operate(frozen, small_store, "rollback").returncode == 0
    assert promoted(frozen) == NEW


def test_promotion_works_after_one_that_was_interrupted(frozen: ServeProcess, small_store: Path) -> None:
    script = f"""
import os, signal
from pathlib import Path
from carla_policy_tools.lifecycle.intents import intent
from carla_policy_tools.lifecycle.registry import RegistryFile
with intent(RegistryFile.of(Path({str(small_store)!r}), Path({str(frozen.registry)!r})), "promote", {OLD!r}):
    os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([str(Path(COMMAND[0]).with_name("python")), "-c", script], timeout=60, check=False)
    assert killed.returncode == -signal.SIGKILL
    done = operate(frozen, small_store, "promote", NEW)
    assert done.returncode == 0, done.stderr


def test_status_probes_and_reconcile_work(frozen: ServeProcess, small_store: Path) -> None:
    status = operate(frozen, small_store, "status", "--json")
    assert (status.returncode, json.loads(status.stdout)["drift"]) == (0, [])
    assert operate(frozen, small_store, "reconcile").returncode == 0
    assert operate(frozen, small_store, "health").returncode == 0
    assert requests.get(f"{frozen.ready['health']}/readyz", timeout=10).status_code == 200


def test_reconcile_says_what_it_cannot_mend(small_store: Path) -> None:
    """A version that was declared for the next start only."""
    with ServeProcess(small_store, OLD, "--frozen") as server:
        registry_file = RegistryFile.of(small_store, server.registry)
        with registry_file.locked() as registry:
            newcomer = Newcomer(NEW, file_digest(small_store / archive_name(NEW)), "0" * 40, "realtime")
            registry_file.write(record(registry, [newcomer], small_store, "for the next start"))
        done = operate(server, small_store, "reconcile", "--json")
        assert done.returncode == 1
        assert NEW in json.dumps(json.loads(done.stdout)["drift"])
        assert server.post(OLD, BODY).status_code == 200


def test_stop_drains(small_store: Path) -> None:
    with ServeProcess(small_store, OLD, "--frozen") as server:
        assert server.ready["frozen"] is True
        assert server.post(OLD, BODY).status_code == 200
        assert server.stop(signal.SIGTERM) == (0, "")
