"""What `serve` says of itself to Prometheus: what is declared, what runs, and whether the two agree."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from carla_policy_tools.lifecycle.exporter import page
from carla_policy_tools.lifecycle.health import Health
from carla_policy_tools.lifecycle.management import ServedVersion, Worker
from carla_policy_tools.lifecycle.newcomers import Newcomer, record
from carla_policy_tools.lifecycle.records import Registry
from carla_policy_tools.lifecycle.registry import RegistryFile
from carla_policy_tools.lifecycle.status import Observation
from carla_policy_tools.paths import archive_name
from tests.conftest import SHIPPED
from tests.scraping import parse
from tests.servers import ServeProcess

OLD, NEW = "v1.0.0", "v1.1.0"
DIGESTS = {OLD: "sha256:" + "1" * 64, NEW: "sha256:" + "2" * 64}


@pytest.fixture
def file(tmp_path: Path) -> RegistryFile:
    """A registry with two versions, the old one promoted."""
    for version in DIGESTS:
        (tmp_path / archive_name(version)).write_bytes(b"")
    newcomers = [Newcomer(version, digest, "abc", "realtime") for version, digest in DIGESTS.items()]
    registry_file = RegistryFile.of(tmp_path)
    with registry_file.locked():
        registry_file.write(record(Registry(), newcomers, tmp_path, "first start", promote=OLD))
    return registry_file


def served(version: str, *statuses: str, queued: int = 0) -> ServedVersion:
    workers = tuple(Worker(100 + n, status) for n, status in enumerate(statuses))
    return ServedVersion(version, workers, 1, queued, 2, 0)


def values(health: Health, file: RegistryFile) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    text = page(health, file).decode()
    list(text_string_to_metric_families(text))
    return parse(text)


def labelled(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return name, frozenset(labels.items())


def seen(file: RegistryFile, *versions: ServedVersion, default: str = OLD) -> Observation:
    return Observation(file.read(), {found.version: found for found in versions}, default, frozenset())


def test_server_as_declared(file: RegistryFile) -> None:
    found = values(Health(True, (), seen(file, served(OLD, "READY", queued=7), served(NEW, "READY"))), file)
    assert found[labelled("policy_server_ready")] == found[labelled("policy_server_alive")] == 1
    assert found[labelled("policy_registry_drift")] == found[labelled("policy_server_findings")] == 0
    assert found[labelled("policy_version_promoted", model_version=OLD)] == 1
    assert found[labelled("policy_version_promoted", model_version=NEW)] == 0
    assert found[labelled("policy_version_default", model_version=OLD)] == 1
    assert found[labelled("policy_version_default", model_version=NEW)] == 0
    assert found[labelled("policy_version_declared", model_version=NEW, profile="realtime")] == 1
    assert found[labelled("policy_version_workers", model_version=NEW, state="declared")] == 1
    assert found[labelled("policy_version_workers", model_version=NEW, state="ready")] == 1
    assert found[labelled("policy_version_queued_requests", model_version=OLD)] == 7
    assert found[labelled("policy_version_info", model_version=OLD, digest=DIGESTS[OLD], git_sha="abc")] == 1
    assert found[labelled("policy_registry_changes_total", verb="register")] == 2
    assert found[labelled("policy_registry_changes_total", verb="promote")] == 1


def test_worker_that_is_missing_and_version_that_is_gone_are_seen(file: RegistryFile) -> None:
    health = Health(True, ("two findings", "as words"), seen(file, served(OLD, "UNLOADING")))
    found = values(health, file)
    assert found[labelled("policy_server_ready")] == 0
    assert found[labelled("policy_server_findings")] == 2
    for version in DIGESTS:
        assert found[labelled("policy_version_workers", model_version=version, state="declared")] == 1
        assert found[labelled("policy_version_workers", model_version=version, state="ready")] == 0
    assert found[labelled("policy_registry_drift")] == 2


def test_default_that_is_not_promoted_is_drift(file: RegistryFile) -> None:
    found = values(Health(True, (), seen(file, served(OLD, "READY"), served(NEW, "READY"), default=NEW)), file)
    assert found[labelled("policy_registry_drift")] == 1
    assert found[labelled("policy_version_default", model_version=NEW)] == 1


def test_server_that_does_not_answer_still_has_a_page(file: RegistryFile) -> None:
    found = values(Health(False, ("the server does not answer",)), file)
    assert found[labelled("policy_server_alive")] == 0
    assert found[labelled("policy_version_promoted", model_version=OLD)] == 1
    assert not any(name in ("policy_version_workers", "policy_registry_drift") for name, _ in found)


def test_registry_that_cannot_be_read_leaves_the_rest_of_the_page(file: RegistryFile) -> None:
    file.path.write_text("{")
    found = values(Health(True, ("registry.json: broken",)), file)
    assert found[labelled("policy_server_findings")] == 1
    assert not any(name.startswith("policy_version") for name, _ in found)


def test_profile_that_is_gone_is_drift(file: RegistryFile) -> None:
    observation = seen(file, served(OLD, "READY"), served(NEW, "READY"))
    lost = observation.registry.versions[NEW].model_copy(update={"profile": "/nowhere/fast.yaml"})
    registry = observation.registry.model_copy(update={"versions": {**observation.registry.versions, NEW: lost}})
    found = values(Health(True, ("gone",), replace(observation, registry=registry)), file)
    assert found[labelled("policy_registry_drift")] == 1


def test_running_server_answers_on_its_health_port(server: ServeProcess) -> None:
    deadline = time.monotonic() + 30
    while not requests.get(f"{server.ready['health']}/readyz", timeout=10).ok:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    answer = requests.get(f"{server.ready['health']}/metrics", timeout=10)
    assert answer.headers["Content-Type"].startswith("text/plain")
    found = parse(answer.text)
    assert found[labelled("policy_server_ready")] == 1
    assert found[labelled("policy_registry_drift")] == 0
    for version in SHIPPED:
        assert found[labelled("policy_version_workers", model_version=version, state="ready")] == 1
    assert found[labelled("policy_version_default", model_version=server.ready["promoted"])] == 1
