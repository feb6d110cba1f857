"""`carla-policy serve` and `predict` as their users meet them: start, stop, mistakes and faults."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import zipfile
from pathlib import Path

import psutil
import pytest
import requests

from carla_policy.card import CARD_FILE, load_card
from carla_policy_tools.archive import pack
from carla_policy_tools.cli import VERBS, report
from carla_policy_tools.paths import archive_name
from tests.commands import run_here
from tests.conftest import SHIPPED
from tests.servers import COMMAND, ServeProcess
from tests.synthetic import make_artifact
from tests.test_archive import repack
from tests.test_artifact import change_golden

LATEST = SHIPPED[-1]


def run(*arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=120, check=False, input=stdin)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_stop_leaves_nothing_behind(small_store: Path, number: int) -> None:
    if signal.getsignal(number) is signal.SIG_IGN:
        pytest.skip("whoever started the tests ignores this signal, as nohup does, and so does what they start")
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


def test_death_of_the_server_ends_the_command_with_an_error(small_store: Path, run_dir: Path) -> None:
    with ServeProcess(small_store, "--run-dir", str(run_dir)) as server:
        os.kill(server.ready["server_pid"], signal.SIGKILL)
        status, error = server.wait()
    assert status == 1
    assert "error: TorchServe ended with status -9" in error


def test_promote_and_a_choice_of_versions(small_store: Path) -> None:
    with ServeProcess(small_store, "1.9.0", "v1.10.0", "--promote", "1.9.0") as server:
        url = f"{server.ready['management']}/models/carla_policy"
        assert requests.get(url, timeout=10).json()[0]["modelVersion"] == "v1.9.0"


def test_version_that_does_not_load_stops_the_start_with_its_reason(small_store: Path, tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path, "v2.0.0")
    change_golden(artifact, "mean", (5, 1), 0.875)
    shutil.copytree(small_store, tmp_path / "store")
    (tmp_path / "store" / archive_name("v2.0.0")).write_bytes(pack(artifact, load_card(artifact / CARD_FILE), None))
    result = run("serve", "--store", str(tmp_path / "store"), "--port", "0")
    assert (result.returncode, result.stdout) == (1, "")
    assert "error: v2.0.0 does not load: golden.npz: vector 5, mean.steer: expected 0.875, got" in result.stderr


def test_handler_that_does_not_import_stops_the_start_with_the_worker_s_words(
    small_store: Path, tmp_path: Path
) -> None:
    archive = small_store / archive_name("v1.10.0")
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(tmp_path / "unpacked")
    (tmp_path / "unpacked" / "policy_handler.py").write_text("import no_such_module")
    (tmp_path / "store").mkdir()
    repack(tmp_path / "unpacked", tmp_path / "store" / archive.name)
    result = run("serve", "--store", str(tmp_path / "store"), "--port", "0")
    assert (result.returncode, result.stdout) == (1, "")
    assert "error: a version does not load (log: " in result.stderr
    assert "policy_handler" in result.stderr


def test_changed_byte_of_an_archive_stops_the_start_by_file_name(small_store: Path, tmp_path: Path) -> None:
    store = Path(shutil.copytree(small_store, tmp_path / "store"))
    archive = store / archive_name("v1.9.0")
    with zipfile.ZipFile(archive) as packed:
        offset = packed.getinfo("model.pt").header_offset + 1000
    data = bytearray(archive.read_bytes())
    data[offset] ^= 1
    archive.write_bytes(data)
    result = run("serve", "--store", str(store), "--port", "0")
    assert (result.returncode, result.stdout) == (1, "")
    assert f"error: {archive}: model.pt: Bad CRC-32" in result.stderr


def test_version_whose_worker_cannot_start_again_leaves_the_others_served(small_store: Path, run_dir: Path) -> None:
    with ServeProcess(small_store, "--run-dir", str(run_dir)) as server:
        (card,) = [
            path
            for path in (run_dir / "tmp" / "models").glob("*/model_card.yaml")
            if load_card(path).version == "v1.9.0"
        ]
        card.write_text("changed")
        (worker,) = [process for process in server.descendants() if process.cwd() == str(card.parent)]
        worker.kill()
        assert server.process.stderr is not None
        trouble = server.process.stderr.readline()
        assert "a worker has failed, the other versions are served on: v1.9.0: model_card.yaml" in trouble
        observation = {"speed": 1.0, "steering": 0.0, "sensors": [0.0] * 5}
        assert server.post("v1.10.0", {"observations": [observation]}).status_code == 200


def test_run_directory_with_too_long_a_path_is_refused(small_store: Path, tmp_path: Path) -> None:
    result = run("serve", "--store", str(small_store), "--port", "0", "--run-dir", str(tmp_path / ("x" * 80)))
    assert result.returncode == 1
    assert "too long a path for the workers' sockets; choose a shorter --run-dir" in result.stderr


def test_golden_observation_that_does_not_exist_is_refused(small_store: Path) -> None:
    result = run("predict", "v1.9.0", "--golden", "256", "--store", str(small_store))
    assert result.returncode == 1
    assert "error: --golden 256: carla_policy-v1.9.0.mar has the observations 0 to 255" in result.stderr


def test_refusals_name_the_artifact_among_several(small_store: Path, tmp_path: Path) -> None:
    good, store = make_artifact(tmp_path, "v2.0.0"), tmp_path / "store"
    (tmp_path / "v2.1.0").mkdir()
    refused = run("build", str(good), str(tmp_path / "v2.1.0"), "--store", str(store))
    assert refused.returncode == 1
    assert f"error: {tmp_path / 'v2.1.0'}: model_card.yaml: cannot be read: No such file" in refused.stderr
    missing = run("verify", str(small_store / "absent.mar"))
    assert f"error: {small_store / 'absent.mar'}: cannot be read: No such file" in missing.stderr
    (tmp_path / "file").touch()
    result = run("serve", "--store", str(small_store), "--port", "0", "--run-dir", str(tmp_path / "file"))
    assert f"error: {tmp_path / 'file'}: is not a directory; choose another --run-dir" in result.stderr


def test_stranger_in_the_store_is_passed_over(small_store: Path, tmp_path: Path) -> None:
    store = Path(shutil.copytree(small_store, tmp_path / "store"))
    (store / "carla_policy-v1.9.0 (copy).mar").write_bytes(b"")
    assert "has no v7.7.7, only v1.9.0, v1.10.0" in run("serve", "v7.7.7", "--store", str(store), "--port", "0").stderr


def test_nohup_keeps_the_server_when_the_terminal_is_closed(small_store: Path) -> None:
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ServeProcess(small_store, "v1.9.0") as server:
            os.kill(server.process.pid, signal.SIGHUP)
            assert server.post("v1.9.0", b"").status_code == 400
            assert server.stop() == (0, "")
    finally:
        signal.signal(signal.SIGHUP, previous)


def test_port_that_is_taken_is_named(small_store: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        result = run("serve", "--store", str(small_store), "--port", str(port))
    assert result.returncode == 1
    assert f"error: port {port} on 127.0.0.1 cannot be used" in result.stderr


def test_run_directory_of_another_server_is_refused(small_store: Path, run_dir: Path) -> None:
    with ServeProcess(small_store, "v1.9.0", "--run-dir", str(run_dir)) as server:
        result = run("serve", "--store", str(small_store), "--port", "0", "--run-dir", str(run_dir))
        assert result.returncode == 1
        assert "another server runs there" in result.stderr
        assert requests.get(f"{server.base}/ping", timeout=10).ok
    assert (run_dir / "logs" / "torchserve.log").exists()


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["serve", "v7.7.7", "--port", "0"], 1, "has no v7.7.7, only v1.9.0, v1.10.0"),
        (
            ["serve", "v1.9.0", "--promote", "v1.10.0", "--port", "0"],
            1,
            "v1.10.0 is to be promoted, but only v1.9.0 are to be served",
        ),
        (["serve", "latest"], 1, "VERSIONS: expected versions such as v0.2.0, got ['latest']"),
        (
            ["serve", "--profile", "fast", "--port", "0"],
            1,
            "there is no profile 'fast': choose one of realtime, throughput",
        ),
        (["serve", "--port", "9090", "--management-port", "9090"], 1, "need a port each, got 9090, 9090, 9092, 9093"),
        (["predict", "--seed", "5"], 2, "--stochastic"),
        (["predict", "--file", "x.json", "--golden", "1"], 2, "a file is sent as it is"),
        (["serve", "--host", "example.org"], 1, "--host: expected an IPv4 address, such as 0.0.0.0, or :: for all"),
        (["serve", "--deployment", "prodution"], 1, "no deployment 'prodution' (did you mean production?)"),
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
    result = run("serve", "--store", str(tmp_path), "--port", "0")
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


@pytest.mark.parametrize("verb", [verb.__name__ for verb in VERBS])
def test_help_has_an_example(verb: str) -> None:
    text = run_here(verb, "--help")
    assert "Example" in text
    assert f"carla-policy {verb}" in text


@pytest.mark.parametrize("part", ["client", "environment"])
def test_a_part_that_is_not_installed_is_named_with_what_to_do(part: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert report(ModuleNotFoundError("No module", name=f"carla_policy_{part}")) == 1
    told = capsys.readouterr().err
    assert f"carla_policy_{part} is not installed" in told
    assert f"pip install ./{part}" in told.replace("\n", " ")


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
    assert f"error: {artifact}: model_card.yaml: content has changed" in refused.stderr
    assert run("seal", str(artifact)).returncode == 0
    assert run("build", str(artifact), "--store", str(tmp_path / "store")).returncode == 0


def test_workers_run_the_archive_s_code_whatever_pythonpath_says(
    small_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "policy_handler.py").write_text("raise OSError('not the archive')")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), str(tmp_path)]))
    with ServeProcess(small_store, "v1.9.0") as server:
        (worker,) = [p for p in server.descendants() if "model_service_worker.py" in " ".join(p.cmdline())]
        assert str(tmp_path) not in worker.environ().get("PYTHONPATH", "").split(os.pathsep)
