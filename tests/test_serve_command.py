"""`carla-policy serve` and `predict` as their users meet them: start, stop, mistakes and faults."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import zipfile
from pathlib import Path

import psutil
import pytest
import requests

from carla_policy_tools.build import build
from carla_policy_tools.paths import archive_name
from tests.conftest import SHIPPED
from tests.servers import COMMAND, ServeProcess
from tests.synthetic import make_artifact
from tests.test_archive import repack

LATEST = SHIPPED[-1]


@pytest.fixture(scope="module")
def small_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("small")
    for version in ("v1.9.0", "v1.10.0"):
        build(make_artifact(root, version), root / "store")
    return root / "store"


def run(*arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=120, check=False, input=stdin)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_stop_leaves_nothing_behind(small_store: Path, number: int) -> None:
    with ServeProcess(small_store) as server:
        assert (server.ready["versions"], server.ready["promoted"]) == (["v1.9.0", "v1.10.0"], "v1.10.0")
        processes = server.descendants()
        assert len(processes) >= 3
        assert server.stop(number) == (0, "")
    assert [process for process in processes if process.is_running()] == []
    assert not Path(server.ready["run_dir"]).exists()


def test_kill_of_the_command_leaves_no_orphans(small_store: Path) -> None:
    with ServeProcess(small_store) as server:
        processes = server.descendants()
        server.stop(signal.SIGKILL)
    gone, alive = psutil.wait_procs(processes, timeout=20)
    assert (len(gone), alive) == (len(processes), [])


def test_death_of_the_server_ends_the_command_with_an_error(small_store: Path, tmp_path: Path) -> None:
    with ServeProcess(small_store, "--run-dir", str(tmp_path / "run")) as server:
        os.kill(server.ready["server_pid"], signal.SIGKILL)
        status, error = server.wait()
    assert status == 1
    assert "error: TorchServe ended with status -9" in error


def test_promote_and_a_choice_of_versions(small_store: Path) -> None:
    with ServeProcess(small_store, "1.9.0", "v1.10.0", "--promote", "1.9.0") as server:
        url = f"{server.ready['management']}/models/carla_policy"
        assert requests.get(url, timeout=10).json()[0]["modelVersion"] == "v1.9.0"


def test_version_that_does_not_load_stops_the_start_with_its_reason(small_store: Path, tmp_path: Path) -> None:
    archive = small_store / archive_name("v1.10.0")
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(tmp_path / "unpacked")
    (tmp_path / "unpacked" / "golden.npz").write_bytes(b"damaged")
    store = tmp_path / "store"
    store.mkdir()
    repack(tmp_path / "unpacked", store / archive.name)
    result = run("serve", "--store", str(store), "--port", "0")
    assert result.returncode == 1
    assert "error: a version does not load: " in result.stderr
    assert "golden.npz: content has changed" in result.stderr
    assert result.stdout == ""


def test_port_that_is_taken_is_named(small_store: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        result = run("serve", "--store", str(small_store), "--port", str(port))
    assert result.returncode == 1
    assert f"error: port {port} on 127.0.0.1 cannot be used" in result.stderr


def test_run_directory_of_another_server_is_refused(small_store: Path, tmp_path: Path) -> None:
    with ServeProcess(small_store, "v1.9.0", "--run-dir", str(tmp_path / "run")) as server:
        result = run("serve", "--store", str(small_store), "--port", "0", "--run-dir", str(tmp_path / "run"))
        assert result.returncode == 1
        assert "another server runs there" in result.stderr
        assert requests.get(f"{server.base}/ping", timeout=10).ok
    assert (tmp_path / "run" / "logs" / "torchserve.log").exists()


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["serve", "v7.7.7"], 1, "has no v7.7.7, only v1.9.0, v1.10.0"),
        (["serve", "v1.9.0", "--promote", "v1.10.0"], 1, "v1.10.0 is to be promoted, but only v1.9.0 are to be served"),
        (["serve", "latest"], 1, "'vlatest' is not a version: expected vMAJOR.MINOR.PATCH"),
        (["serve", "--profile", "fast"], 1, "there is no profile 'fast': choose one of realtime, throughput"),
        (["serve", "--port", "99999"], 2, "Try 'carla-policy serve --help' for help"),
    ],
)
def test_mistakes_are_answered_in_one_line(small_store: Path, arguments: list[str], status: int, message: str) -> None:
    result = run(*arguments, "--store", str(small_store))
    assert (result.returncode, result.stdout) == (status, "")
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_java_home_without_java_is_refused(small_store: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    result = run("serve", "--store", str(small_store), "--port", "0")
    assert result.returncode == 1
    assert "there is no bin/java in it; unset JAVA_HOME" in result.stderr


def test_empty_store_says_what_to_do(tmp_path: Path) -> None:
    result = run("serve", "--store", str(tmp_path))
    assert result.returncode == 1
    assert "there are no archives to serve; build one with `carla-policy build" in result.stderr


def test_predict_asks_the_promoted_version_a_golden_observation(server: ServeProcess, store: Path) -> None:
    result = run("predict", "--url", server.base, "--store", str(store), "--json")
    answer = json.loads(result.stdout)
    assert (result.returncode, answer["version"]) == (0, LATEST)
    assert "throttle" in run("predict", "--url", server.base, "--store", str(store)).stdout


def test_predict_samples_with_a_seed(server: ServeProcess, store: Path) -> None:
    options = ("--url", server.base, "--store", str(store), "--stochastic", "--seed", "5", "--golden", "3", "--json")
    first, second = (json.loads(run("predict", SHIPPED[0], *options).stdout) for _ in range(2))
    assert first["actions"] == second["actions"]
    assert (first["seed"], first["version"]) == (5, SHIPPED[0])


def test_predict_reads_a_request_from_a_file_or_standard_input(server: ServeProcess, tmp_path: Path) -> None:
    bad = '{"observations": [{"speed": 1, "steering": 0, "sensors": []}]}'
    (tmp_path / "request.json").write_text(bad)
    for source, stdin in ((str(tmp_path / "request.json"), None), ("-", bad)):
        result = run("predict", "--url", server.base, "--file", source, stdin=stdin)
        assert result.returncode == 1
        assert "error: 422 SHAPE: observations[0].sensors: expected 28 values, got 0" in result.stderr


def test_predict_without_a_server_says_so(store: Path) -> None:
    result = run("predict", "v0.1.0", "--url", "http://127.0.0.1:9", "--store", str(store))
    assert result.returncode == 1
    assert "no server answers at http://127.0.0.1:9/predictions/carla_policy/v0.1.0" in result.stderr


@pytest.mark.parametrize("verb", ["build", "verify", "seal", "serve", "predict"])
def test_help_has_an_example(verb: str) -> None:
    result = run(verb, "--help")
    assert result.returncode == 0
    assert "Example" in result.stdout
    assert f"carla-policy {verb}" in result.stdout


def test_build_and_verify_as_json(tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path, "v2.0.0")
    result = run("build", str(artifact), "--store", str(tmp_path / "store"), "--json")
    (built,) = json.loads(result.stdout)["builds"]
    assert (built["version"], built["unchanged"], built["preprocessor"]) == ("v2.0.0", False, "compiled")
    (verified,) = json.loads(run("verify", built["archive"], "--json").stdout)["verified"]
    assert verified["digest"] == built["digest"]
    assert {stage["maxUlp"] for stage in verified["stages"]} == {0}


def test_seal_after_an_edit(tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path, "v2.0.0")
    (artifact / "model_card.yaml").write_text((artifact / "model_card.yaml").read_text().replace("synthetic", "mine"))
    refused = run("build", str(artifact), "--store", str(tmp_path / "store"))
    assert refused.returncode == 1
    assert "error: model_card.yaml: content has changed" in refused.stderr
    assert run("seal", str(artifact)).returncode == 0
    assert run("build", str(artifact), "--store", str(tmp_path / "store")).returncode == 0
