"""What a server process is started with, and what is left when it stops or fails."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import psutil
import pytest
import requests

from carla_policy_tools.configuration import load_profile, profile_names, properties
from carla_policy_tools.lifecycle.run_directory import run_directory
from carla_policy_tools.ports import choose_ports
from carla_policy_tools.torchserve import ServerError, TorchServe
from tests.servers import ServeProcess


def worker_of(server: ServeProcess) -> psutil.Process:
    (worker,) = [p for p in server.descendants() if "model_service_worker.py" in " ".join(p.cmdline())]
    return worker


def test_worker_that_hangs_does_not_outlive_the_server(small_store: Path) -> None:
    with ServeProcess(small_store, "v1.9.0") as server:
        processes = server.descendants()
        worker_of(server).suspend()
        os.kill(server.ready["server_pid"], signal.SIGKILL)
        assert server.wait()[0] == 1
    assert [process for process in processes if process.is_running()] == []


def test_second_ctrl_c_does_not_interrupt_the_stop(small_store: Path) -> None:
    with ServeProcess(small_store, "v1.9.0") as server:
        processes = server.descendants()
        worker_of(server).suspend()
        os.kill(server.process.pid, signal.SIGINT)
        time.sleep(0.3)
        assert server.stop(signal.SIGINT) == (0, "")
    assert [process for process in processes if process.is_running()] == []
    assert not Path(server.ready["run_dir"]).exists()


@pytest.mark.parametrize("name", profile_names())
def test_snapshot_declares_what_the_profile_says(name: str, tmp_path: Path) -> None:
    profile = load_profile(name)
    settings = properties(
        versions={"v1.0.0": profile, "v1.1.0": profile}, promoted="v1.0.0", ports=choose_ports(0), store=tmp_path
    )
    models = json.loads(settings["model_snapshot"])["models"]["carla_policy"]
    assert [models[version]["defaultVersion"] for version in ("v1.0.0", "v1.1.0")] == [True, False]
    assert models["v1.1.0"] == {
        "defaultVersion": False,
        "marName": "carla_policy-v1.1.0.mar",
        "minWorkers": profile.workers,
        "maxWorkers": profile.workers,
        "batchSize": profile.batch_size,
        "maxBatchDelay": profile.max_batch_delay_ms,
        "responseTimeout": profile.response_timeout_s,
        "startupTimeout": profile.startup_timeout_s,
    }


def test_server_has_the_profile_s_settings_and_listens_on_this_machine_only(small_store: Path) -> None:
    profile = load_profile("realtime")
    with ServeProcess(small_store, "v1.9.0") as server:
        (model,) = requests.get(f"{server.ready['management']}/models/carla_policy/v1.9.0", timeout=10).json()
        sockets = [c for p in server.descendants() for c in p.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
    assert (model["batchSize"], model["maxBatchDelay"]) == (profile.batch_size, profile.max_batch_delay_ms)
    assert model["responseTimeout"] == profile.response_timeout_s
    assert model["startupTimeout"] == profile.startup_timeout_s
    assert len(sockets) == 5  # and the probes, which the command itself answers
    assert {c.laddr.ip.removeprefix("::ffff:") for c in sockets} <= {"127.0.0.1", "::1"}


def test_version_is_ready_only_with_all_of_its_workers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(TorchServe, "_ready_workers", lambda *_: 1)
    server = TorchServe({}, choose_ports(0), tmp_path, heap_mb=64)
    server.wait_ready({"v1.0.0": 1}, 0.1)
    with pytest.raises(ServerError, match=r"not ready after 0\.1 s: v1\.0\.0"):
        server.wait_ready({"v1.0.0": 2}, 0.1)


def test_run_directory_keeps_logs_and_no_unpacked_copies(tmp_path: Path) -> None:
    (tmp_path / "tmp" / "left by a killed server").mkdir(parents=True)
    with run_directory(tmp_path) as directory:
        assert not (directory / "tmp").exists()
        (directory / "tmp").mkdir()
        (directory / "logs").mkdir()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["logs", "serve.lock"]


def test_temporary_run_directory_stays_only_if_the_server_failed() -> None:
    with run_directory(None) as good:
        pass
    assert not good.exists()
    kept = []

    def fail() -> None:
        with run_directory(None) as directory:
            kept.append(directory)
            (directory / "tmp").mkdir()
            raise ServerError("ended")

    with pytest.raises(ServerError):
        fail()
    assert sorted(path.name for path in kept[0].iterdir()) == ["serve.lock"]
    (kept[0] / "serve.lock").unlink()
    kept[0].rmdir()
