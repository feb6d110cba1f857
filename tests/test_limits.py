"""What a version and a server may use: the profile says it, and a running server has it."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from carla_policy.digests import verify_directory
from carla_policy_tools.archive import unpack, with_config
from carla_policy_tools.configuration import CONFIG_PROPERTIES, Profile, SizeLimits, load_profile, read_properties
from carla_policy_tools.manifest import CONFIG_FILE
from carla_policy_tools.paths import CONFIG, archive_name
from tests.servers import COMMAND, ServeProcess

FIRST, SECOND = "v1.9.0", "v1.10.0"
OBSERVATION = {"speed": 1.0, "steering": 0.0, "sensors": [0.0] * 5}
OLDER_PROFILE = """
workers: 1
batch_size: 2
max_batch_delay_ms: 0
response_timeout_s: 10
startup_timeout_s: 60
"""
STRICT_PROFILE = """
workers: 1
batch_size: 1
max_batch_delay_ms: 0
response_timeout_s: 7
startup_timeout_s: 41
retry_window_s: 13
queue_size: 3
max_request_bytes: 20000
max_response_bytes: 30000
jvm_heap_mb: 123
"""


def profile_file(directory: Path, content: str) -> Path:
    path = directory / "own.yaml"
    path.write_text(content)
    return path


def described(server: ServeProcess, version: str) -> dict[str, Any]:
    (found,) = requests.get(f"{server.ready['management']}/models/carla_policy/{version}", timeout=10).json()
    return dict(found)


def limits_of(server: ServeProcess, version: str) -> dict[str, int]:
    found = described(server, version)
    names = ("responseTimeout", "startupTimeout", "maxRetryTimeoutInSec")
    return {**{name: found[name] for name in names}, "queue": found["jobQueueStatus"]["remainingCapacity"]}


def test_profile_of_an_older_release_still_loads_with_limits(tmp_path: Path) -> None:
    profile = load_profile(str(profile_file(tmp_path, OLDER_PROFILE)))
    assert (profile.retry_window_s, profile.queue_size) == (10, 256)
    assert (profile.max_request_bytes, profile.max_response_bytes) == (16 << 20, 16 << 20)


@pytest.mark.parametrize("line", ["queue_size: 0", "max_request_bytes: 10", "max_response_bytes: 2147483648"])
def test_limit_that_makes_no_sense_is_refused_by_name(tmp_path: Path, line: str) -> None:
    with pytest.raises(ValueError, match=line.partition(":")[0]):
        load_profile(str(profile_file(tmp_path, f"{OLDER_PROFILE}{line}\n")))


def test_shipped_settings_say_the_same_as_a_server_without_profiles() -> None:
    plain, default = read_properties(CONFIG_PROPERTIES), load_profile("realtime")
    assert int(plain["max_request_size"]) == default.max_request_bytes
    assert int(plain["max_response_size"]) == default.max_response_bytes
    assert int(plain["job_queue_size"]) == default.queue_size
    assert int(plain["default_response_timeout"]) == default.response_timeout_s
    assert int(plain["default_startup_timeout"]) == default.startup_timeout_s
    assert default.model_config_yaml().decode() in (CONFIG / CONFIG_FILE).read_text()


def test_no_version_of_a_server_gets_less_than_its_profile_says() -> None:
    small = load_profile("realtime").model_copy(update={"max_request_bytes": 2000, "max_response_bytes": 9000})
    large = small.model_copy(update={"max_request_bytes": 5000, "max_response_bytes": 4000})
    limits = SizeLimits.of([small, large])
    assert limits == SizeLimits(5000, 9000)
    assert limits.shortage(small) is limits.shortage(large) is None
    shortage = SizeLimits.of([large]).shortage(small)
    assert shortage == "its profile has max_response_bytes 9000, but this server was started with 4000"


def test_copy_with_a_profile_differs_from_the_archive_in_its_configuration_only(
    small_store: Path, tmp_path: Path
) -> None:
    original, changed = tmp_path / "original", tmp_path / "changed"
    for directory in (original, changed):
        directory.mkdir()
        unpack(small_store / archive_name(FIRST), directory)
    copy = tmp_path / archive_name(FIRST)
    copy.write_bytes(with_config(changed, Profile(**_values(STRICT_PROFILE)).model_config_yaml()))
    (tmp_path / "copy").mkdir()
    unpack(copy, tmp_path / "copy")
    before, after = verify_directory(original), verify_directory(tmp_path / "copy")
    assert {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)} == {CONFIG_FILE}


def _values(yaml: str) -> dict[str, int]:
    return {name: int(value) for name, _, value in (line.partition(": ") for line in yaml.strip().splitlines())}


@pytest.fixture(scope="module")
def strict_profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return profile_file(tmp_path_factory.mktemp("profile"), STRICT_PROFILE)


@pytest.fixture(scope="module")
def strict(small_store: Path, strict_profile: Path) -> Iterator[ServeProcess]:
    """A server with one version and limits of its own."""
    with ServeProcess(small_store, FIRST, "--profile", str(strict_profile)) as process:
        yield process


def operate(server: ServeProcess, store: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, *arguments, "--store", str(store), "--registry", str(server.registry)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


STRICT = {"responseTimeout": 7, "startupTimeout": 41, "maxRetryTimeoutInSec": 13, "queue": 3}


def test_version_that_is_declared_starts_with_its_profile_s_limits(strict: ServeProcess) -> None:
    assert limits_of(strict, FIRST) == STRICT


def test_version_that_joins_a_running_server_has_its_profile_s_limits_too(
    strict: ServeProcess, small_store: Path
) -> None:
    done = operate(strict, small_store, "register", SECOND)
    assert done.returncode == 0, done.stderr
    assert limits_of(strict, SECOND) == STRICT
    assert described(strict, SECOND)["minWorkers"] == 1


def test_version_that_is_restored_has_its_profile_s_limits_too(strict: ServeProcess, small_store: Path) -> None:
    operate(strict, small_store, "register", SECOND)
    assert requests.delete(f"{strict.ready['management']}/models/carla_policy/{SECOND}", timeout=10).ok
    done = operate(strict, small_store, "reconcile")
    assert done.returncode == 0, done.stdout + done.stderr
    assert limits_of(strict, SECOND) == STRICT


def test_version_that_needs_more_than_the_server_has_is_not_registered(
    strict: ServeProcess, small_store: Path, tmp_path: Path
) -> None:
    larger = profile_file(tmp_path, STRICT_PROFILE.replace("max_request_bytes: 20000", "max_request_bytes: 20001"))
    refused = operate(strict, small_store, "register", "v3.0.0", "--profile", str(larger))
    assert refused.returncode == 1
    assert "its profile has max_request_bytes 20001, but this server was started with 20000" in refused.stderr


def test_larger_body_than_the_profile_allows_is_answered_413(strict: ServeProcess) -> None:
    body = json.dumps({"observations": [OBSERVATION]}).encode()
    assert strict.post(FIRST, body.ljust(20_000)).status_code == 200
    assert strict.post(FIRST, body.ljust(20_001)).status_code == 413


def test_workers_are_told_how_large_an_answer_may_be(strict: ServeProcess) -> None:
    (worker, *_) = [p for p in strict.descendants() if "model_service_worker.py" in " ".join(p.cmdline())]
    assert worker.environ()["CARLA_POLICY_MAX_RESPONSE_BYTES"] == "30000"


def test_memory_of_the_front_end_is_what_the_profile_says(strict: ServeProcess) -> None:
    """Its heap, and the buffers in which bodies arrive: by itself Java takes up to a quarter of the machine each."""
    command = psutil.Process(strict.ready["server_pid"]).cmdline()
    assert {"-Xmx123m", "-XX:MaxDirectMemorySize=123m"} <= set(command)


@pytest.mark.parametrize("megabytes", ["63", "2000000", "0.5"])
def test_memory_that_makes_no_sense_is_refused_by_name(tmp_path: Path, megabytes: str) -> None:
    with pytest.raises(ValueError, match="jvm_heap_mb"):
        load_profile(str(profile_file(tmp_path, f"{OLDER_PROFILE}jvm_heap_mb: {megabytes}\n")))


def test_more_requests_than_the_queue_holds_are_refused_at_once(strict: ServeProcess) -> None:
    """One waits in the worker, three in the queue, the fifth nowhere; those that wait are answered in the end."""
    worker = psutil.Process(described(strict, FIRST)["workers"][0]["pid"])
    statuses: list[int] = []

    def ask() -> None:
        statuses.append(strict.post(FIRST, {"observations": [OBSERVATION]}).status_code)

    clients = []
    worker.suspend()
    try:
        for _ in range(12):
            clients.append(threading.Thread(target=ask))
            clients[-1].start()
            clients[-1].join(timeout=0.2)
        assert statuses
        assert set(statuses) == {503}
    finally:
        worker.resume()
    for client in clients:
        client.join()
    assert statuses.count(200) >= 3
    assert set(statuses) == {200, 503}
