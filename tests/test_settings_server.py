"""A real server that is configured by the environment alone, as a container is."""

from __future__ import annotations

import json
from pathlib import Path

import psutil
import pytest
import requests

from carla_policy_tools.paths import archive_name
from carla_policy_tools.settings.model import PREFIX
from tests.servers import ServeProcess
from tests.synthetic import make_artifact
from tests.test_serve_command import run


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("artifacts")
    for version in ("v1.9.0", "v1.10.0"):
        make_artifact(directory, version)
    return directory


def launchers(server: ServeProcess) -> list[psutil.Process]:
    """What hands its environment on to the workers."""
    return [process for process in server.descendants() if "launcher.py" in " ".join(process.cmdline())]


def test_seeds_variables_make_a_server_of_artifacts_alone(artifacts: Path, tmp_path: Path) -> None:
    environment = {
        "ARTIFACT_DIR": str(artifacts),
        "MODEL_VERSION": "v1.9.0",
        "WORKERS": "2",
        "USE_GPU": "0",
        "LOG_LEVEL": "error",
    }
    store, registry = tmp_path / "store", tmp_path / "registry.json"
    with ServeProcess(store, registry=registry, environment=environment) as server:
        assert (server.ready["versions"], server.ready["promoted"]) == (["v1.9.0", "v1.10.0"], "v1.9.0")
        for version in server.ready["versions"]:
            assert (store / archive_name(version)).exists()
            url = f"{server.ready['management']}/models/carla_policy/{version}"
            assert len(requests.get(url, timeout=10).json()[0]["workers"]) == 2
            assert server.get(version, "metadata").json()["device"] == "cpu"
        seen = [process.environ() for process in launchers(server)]
        assert len(seen) == 4
        assert {own.get("CUDA_VISIBLE_DEVICES") for own in seen} == {""}
        log = Path(server.ready["run_dir"], "log4j2.xml").read_text()
        assert '<Root level="error">' in log
        shown = json.loads(run("config", "show", "--registry", str(registry), "--json").stdout)["server"]["settings"]
        assert {name: shown[name]["source"] for name in ("workers", "device", "promote", "artifact_dir")} == {
            "workers": "WORKERS",
            "device": "USE_GPU",
            "promote": "MODEL_VERSION",
            "artifact_dir": "ARTIFACT_DIR",
        }
        status, errors = server.stop()
        assert status == 0
        assert f"building {artifacts / 'v1.10.0'}" in errors
    kept = (store / archive_name("v1.9.0")).stat().st_mtime_ns
    with ServeProcess(
        store, registry=registry, environment={**environment, "MODEL_VERSION": "v1.10.0", f"{PREFIX}WORKERS": "1"}
    ) as server:
        assert server.ready["promoted"] == "v1.9.0"
        (described,) = requests.get(f"{server.ready['management']}/models/carla_policy", timeout=10).json()
        assert len(described["workers"]) == 1
        status, errors = server.stop()
    assert "the registry says that v1.9.0 is promoted; `carla-policy promote v1.10.0` changes it" in errors
    assert "building" not in errors
    assert (store / archive_name("v1.9.0")).stat().st_mtime_ns == kept


def test_directory_of_artifacts_that_is_none_or_broken_stops_the_start(
    shipped_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = ("serve", "--store", str(tmp_path / "store"), "--port", "0")
    monkeypatch.setenv("ARTIFACT_DIR", str(tmp_path / "absent"))
    assert f"error: ARTIFACT_DIR: {tmp_path / 'absent'}: expected a directory of artifacts" in run(*where).stderr
    (shipped_copy / "model.pt").write_bytes(b"")
    monkeypatch.setenv("ARTIFACT_DIR", str(shipped_copy.parent))
    refused = run(*where)
    assert refused.returncode == 1
    assert f"error: {shipped_copy}: model.pt: content has changed" in refused.stderr


def test_gpu_that_is_not_there_stops_the_start(small_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    monkeypatch.setenv("USE_GPU", "1")
    refused = run("serve", "--store", str(small_store), "--port", "0")
    assert refused.returncode == 1
    assert "error: USE_GPU: a GPU is asked for, but " in refused.stderr
