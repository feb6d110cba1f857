"""Every difference between what is declared and what runs is told, and nothing else."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from carla_policy.digests import file_digest
from carla_policy_tools.lifecycle.endpoint import announced
from carla_policy_tools.lifecycle.intents import intent
from carla_policy_tools.lifecycle.management import ServedVersion, Worker
from carla_policy_tools.lifecycle.records import Registry
from carla_policy_tools.lifecycle.registry import RegistryFile
from carla_policy_tools.lifecycle.status import Observation, read_status
from carla_policy_tools.paths import archive_name
from tests.declared import PROFILE, PretendedServer, registry_of

GOOD = ServedVersion(
    version="v1.0.0",
    workers=(Worker(100, "READY"),) * PROFILE.workers,
    min_workers=PROFILE.workers,
    queued=0,
    batch_size=PROFILE.batch_size,
    max_batch_delay_ms=PROFILE.max_batch_delay_ms,
)
DELAY = PROFILE.max_batch_delay_ms


@pytest.fixture
def registry() -> Registry:
    return registry_of("v1.0.0", "v1.1.0")


@pytest.fixture
def served() -> dict[str, ServedVersion]:
    return {version: replace(GOOD, version=version) for version in ("v1.0.0", "v1.1.0")}


def test_server_as_declared_does_not_differ(registry: Registry, served: dict[str, ServedVersion]) -> None:
    assert Observation(registry, served, "v1.0.0", frozenset()).drift() == []


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"workers": ()}, "v1.1.0: 0 of 1 workers ready"),
        ({"workers": (Worker(-1, "UNLOADING"),)}, "v1.1.0: 0 of 1 workers ready"),
        ({"batch_size": 99}, f"v1.1.0: batches of 99 within {DELAY} ms, where its profile says {GOOD.batch_size} "),
        ({"max_batch_delay_ms": 99}, f"within 99 ms, where its profile says {GOOD.batch_size} within {DELAY} ms"),
    ],
)
def test_version_that_runs_otherwise_than_its_profile_says_is_told(
    registry: Registry, served: dict[str, ServedVersion], change: dict[str, object], difference: str
) -> None:
    served["v1.1.0"] = replace(served["v1.1.0"], **change)  # type: ignore[arg-type]
    (found,) = Observation(registry, served, "v1.0.0", frozenset()).drift()
    assert difference in found
    assert Observation(registry, served, "v1.0.0", frozenset({"v1.1.0"})).drift() == []


def test_missing_and_additional_versions_are_told(registry: Registry, served: dict[str, ServedVersion]) -> None:
    served["v1.2.0"] = served.pop("v1.1.0")
    assert Observation(registry, served, "v1.0.0", frozenset()).drift() == [
        "v1.1.0: declared, but not on the server",
        "v1.2.0: on the server, but not declared",
    ]
    assert Observation(registry, served, "v1.0.0", frozenset({"v1.1.0", "v1.2.0"})).drift() == []


@pytest.mark.parametrize("default", ["v1.1.0", None])
def test_other_default_is_told(registry: Registry, served: dict[str, ServedVersion], default: str | None) -> None:
    difference = f"{default} answers by default, but v1.0.0 is promoted"
    assert Observation(registry, served, default, frozenset()).drift() == [difference]
    assert Observation(registry, served, default, frozenset({"v1.2.0"})).drift() == [difference]
    assert Observation(registry, served, default, frozenset({"v1.0.0"})).drift() == []


def test_status_is_what_the_registry_the_store_and_the_server_say(tmp_path: Path) -> None:
    file = RegistryFile.of(tmp_path)
    file.write(registry_of("v1.0.0", "v1.1.0"))
    for version in ("v1.0.0", "v1.9.0"):
        (tmp_path / archive_name(version)).write_text(version)
    assert file_digest(tmp_path / archive_name("v1.0.0")) == file.read().versions["v1.0.0"].digest
    missing = f"v1.1.0: {tmp_path / archive_name('v1.1.0')} is missing"
    status = read_status(file)
    assert (status.endpoint, status.default, status.drift) == (None, None, [missing])
    assert status.unregistered == ["v1.9.0"]

    server = PretendedServer(["v1.0.0", "v1.2.0"], "v1.0.0")
    with announced(file) as announcement, server.running(), intent(file, "retire", "v1.1.0"):
        announcement.say(server.endpoint(tmp_path))
        status = read_status(file)
    assert status.drift == [missing, "v1.2.0: on the server, but not declared"]
    shown = status.versions()
    assert {version: (entry["declared"], entry["ready"]) for version, entry in shown.items()} == {
        "v1.0.0": (True, True),
        "v1.1.0": (True, False),
        "v1.2.0": (False, True),
    }
    assert [(change["verb"], change["version"]) for change in status.to_json()["under_way"]] == [("retire", "v1.1.0")]  # type: ignore[attr-defined]


def test_changed_archive_is_told(tmp_path: Path) -> None:
    file = RegistryFile.of(tmp_path)
    file.write(registry_of("v1.0.0"))
    (tmp_path / archive_name("v1.0.0")).write_text("other")
    (found,) = read_status(file).drift
    assert "has changed since it was registered; put sha256:" in found


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("kind", ["pipe", "link"])
def test_what_is_no_file_in_the_place_of_an_archive_is_told(tmp_path: Path, kind: str) -> None:
    file = RegistryFile.of(tmp_path)
    file.write(registry_of("v1.0.0"))
    archive = tmp_path / archive_name("v1.0.0")
    if kind == "pipe":
        os.mkfifo(archive)
    else:
        (tmp_path / "target").write_text("v1.0.0")
        archive.symlink_to(tmp_path / "target")
    (told,) = read_status(file).drift
    assert told.startswith(f"v1.0.0: {archive} cannot be read: expected a plain file, got a {kind}; put sha256:")
