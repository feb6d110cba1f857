"""A store is filled from elsewhere with exactly the archives that a registry declares, or not at all."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from carla_policy.digests import file_digest
from carla_policy.errors import ArtifactError
from carla_policy_tools.fetching import (
    DirectorySource,
    HttpSource,
    SourceError,
    fetch,
    read_declared,
    source_of,
)
from carla_policy_tools.keys import load_public_keys, load_signing_key, make_key_pair
from carla_policy_tools.lifecycle.newcomers import Newcomer, record
from carla_policy_tools.lifecycle.records import Registry
from carla_policy_tools.lifecycle.registry import RegistryError, RegistryFile
from carla_policy_tools.paths import archive_name
from carla_policy_tools.processes import server_environment
from carla_policy_tools.signing import sign_archive, signature_path
from tests.archive_server import ArchiveServer
from tests.servers import COMMAND, ServeProcess

OLD, NEW = "v1.9.0", "v1.10.0"


def declaring(store: Path, *versions: str, promote: str, after: Registry | None = None) -> Registry:
    newcomers = [Newcomer(v, file_digest(store / archive_name(v)), "0123abc", "realtime") for v in versions]
    return record(after or Registry(), newcomers, store, "for a test", promote=promote)


@pytest.fixture
def registry(small_store: Path) -> Registry:
    return declaring(small_store, OLD, NEW, promote=OLD)


@pytest.fixture
def target(tmp_path: Path) -> RegistryFile:
    return RegistryFile.of(tmp_path / "store", tmp_path / "registry.json")


def archives(target: RegistryFile) -> list[str]:
    return sorted(path.name for path in target.store.iterdir())


def test_archives_and_registry_come_over_http_byte_for_byte(
    small_store: Path, registry: Registry, target: RegistryFile
) -> None:
    with ArchiveServer(small_store).running() as server:
        fetched = fetch(HttpSource(server.url), target, declared=registry)
    assert [(one.version, one.unchanged) for one in fetched] == [(OLD, False), (NEW, False)]
    assert archives(target) == sorted([archive_name(OLD), archive_name(NEW)])
    for version in (OLD, NEW):
        assert (target.store / archive_name(version)).read_bytes() == (small_store / archive_name(version)).read_bytes()
    assert target.read() == registry


def test_what_is_there_already_is_not_asked_for_again(
    small_store: Path, registry: Registry, target: RegistryFile
) -> None:
    fetch(DirectorySource(small_store), target, declared=registry)
    with ArchiveServer(small_store).running() as server:
        fetched = fetch(HttpSource(server.url), target)
        assert server.asked == []
    assert [one.unchanged for one in fetched] == [True, True]


def test_a_tampered_archive_is_refused_and_asked_for_once(
    small_store: Path, registry: Registry, target: RegistryFile
) -> None:
    def spoil(_: str, data: bytes) -> bytes:
        return data[:500] + bytes([data[500] ^ 1]) + data[501:]

    with (
        ArchiveServer(small_store, spoil=spoil).running() as server,
        pytest.raises(ArtifactError, match="is not what the registry declares: expected sha256:"),
    ):
        fetch(HttpSource(server.url), target, declared=registry)
    assert server.asked == [archive_name(OLD)]
    assert archives(target) == []
    assert not target.exists()


def test_an_archive_that_breaks_off_is_asked_for_again(
    small_store: Path, registry: Registry, target: RegistryFile
) -> None:
    troubles: list[str] = []
    with ArchiveServer(small_store, cut=1, busy=1).running() as server:
        fetch(HttpSource(server.url), target, declared=registry, on_retry=troubles.append)
    assert len(troubles) == 2
    assert "503" in troubles[0]
    assert "IncompleteRead" in troubles[1]
    assert server.asked == [archive_name(OLD)] * 3 + [archive_name(NEW)]


def test_a_source_that_keeps_breaking_off_is_given_up_and_leaves_nothing(
    small_store: Path, registry: Registry, target: RegistryFile
) -> None:
    with ArchiveServer(small_store, cut=100).running() as server, pytest.raises(SourceError, match="IncompleteRead"):
        fetch(HttpSource(server.url), target, declared=registry, patience_s=0.5)
    assert archives(target) == []
    assert not target.exists()


def test_an_archive_that_is_not_there_is_told_at_once(registry: Registry, target: RegistryFile, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with ArchiveServer(tmp_path / "empty").running() as server, pytest.raises(ArtifactError, match="answered 404"):
        fetch(HttpSource(server.url), target, declared=registry)
    with pytest.raises(ArtifactError, match="there is no such file"):
        fetch(DirectorySource(tmp_path / "empty"), target, declared=registry)


def test_an_archive_of_no_end_is_not_taken(
    target: RegistryFile, registry: Registry, monkeypatch: pytest.MonkeyPatch, small_store: Path
) -> None:
    monkeypatch.setattr("carla_policy_tools.fetching.MAX_BYTES", 1000)
    with ArchiveServer(small_store).running() as server, pytest.raises(ArtifactError, match="larger than 1000 bytes"):
        fetch(HttpSource(server.url), target, declared=registry)


def test_the_token_of_the_environment_is_sent_and_no_server_or_policy_gets_it(
    small_store: Path, registry: Registry, target: RegistryFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CARLA_POLICY_FETCH_TOKEN", "a-secret")
    with ArchiveServer(small_store).running() as server:
        fetch(HttpSource(server.url), target, declared=registry)
    assert server.authorizations == {"Bearer a-secret"}
    assert "a-secret" not in server_environment().values()


def test_an_archive_has_to_be_signed_where_keys_are_given(
    small_store: Path, registry: Registry, target: RegistryFile, tmp_path: Path
) -> None:
    signed = tmp_path / "signed"
    shutil.copytree(small_store, signed, ignore=shutil.ignore_patterns("registry*"))
    make_key_pair(tmp_path / "release")
    keys = load_public_keys([tmp_path / "release.pub"])
    with ArchiveServer(signed).running() as server:
        with pytest.raises(ArtifactError, match="404"):
            fetch(HttpSource(server.url), target, declared=registry, trusted_keys=keys)
        for version in (OLD, NEW):
            sign_archive(signed / archive_name(version), load_signing_key(tmp_path / "release.key"))
        fetched = fetch(HttpSource(server.url), target, declared=registry, trusted_keys=keys)
    assert [one.signed_by for one in fetched] == [(keys[0].key_id,)] * 2
    assert signature_path(target.store / archive_name(OLD)).is_file()


def test_an_empty_registry_takes_all_that_a_directory_has_and_nothing_from_a_web_server(
    small_store: Path, target: RegistryFile
) -> None:
    assert {one.version for one in fetch(DirectorySource(small_store), target, declared=Registry())} == {OLD, NEW}
    assert not target.exists()
    with pytest.raises(ArtifactError, match="cannot be asked which versions it has"):
        fetch(HttpSource("http://127.0.0.1:1"), target, declared=Registry())


def test_other_schemes_are_refused() -> None:
    with pytest.raises(ValueError, match="expected a directory, http:// or https://, got s3://"):
        source_of("s3://bucket/policies")


def test_a_registry_that_has_come_further_stays_and_an_older_one_is_brought_forward(
    small_store: Path, registry: Registry, target: RegistryFile
) -> None:
    source = DirectorySource(small_store)
    fetch(source, target, declared=registry)
    later = registry.after(registry.event("promote", NEW))
    fetch(source, target, declared=later)
    assert target.read().promoted == NEW
    fetch(source, target, declared=registry)
    assert target.read().promoted == NEW
    fetch(source, target, declared=registry, replace=True)
    assert target.read().promoted == OLD


def test_a_registry_with_changes_of_its_own_is_given_up_only_where_that_is_asked_for(
    small_store: Path, registry: Registry, target: RegistryFile
) -> None:
    source = DirectorySource(small_store)
    fetch(source, target, declared=declaring(small_store, NEW, promote=NEW))
    with pytest.raises(RegistryError, match="has changes which the declared registry lacks"):
        fetch(source, target, declared=registry)
    fetch(source, target, declared=registry, replace=True)
    assert target.read() == registry


def test_a_declared_registry_may_be_a_link_as_in_a_config_map(registry: Registry, tmp_path: Path) -> None:
    """Kubernetes mounts `registry.json` as a link to `..data/registry.json`, which is one to a directory."""
    mounted = tmp_path / "etc"
    (mounted / "..2026").mkdir(parents=True)
    RegistryFile.of(tmp_path, mounted / "..2026" / "registry.json").write(registry)
    (mounted / "..data").symlink_to("..2026")
    (mounted / "registry.json").symlink_to("..data/registry.json")
    assert read_declared(mounted / "registry.json") == registry


def test_what_was_fetched_is_served(small_store: Path, registry: Registry, tmp_path: Path) -> None:
    declared = tmp_path / "declared.json"
    RegistryFile.of(tmp_path, declared).write(registry)
    where = ["--store", str(tmp_path / "store"), "--registry", str(tmp_path / "own" / "registry.json")]
    with ArchiveServer(small_store).running() as server:
        command = [*COMMAND, "fetch", "--from", server.url, "--declared", str(declared), *where, "--json"]
        run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env={**os.environ})
    assert run.returncode == 0, run.stderr
    assert [one["version"] for one in json.loads(run.stdout)["fetched"]] == [OLD, NEW]
    with ServeProcess(tmp_path / "store", registry=tmp_path / "own" / "registry.json") as serving:
        assert serving.ready["promoted"] == OLD
        body = {"observations": [{"speed": 1.0, "steering": 0.0, "sensors": [0.0] * 5}]}
        assert serving.post(None, body).json()["version"] == OLD
