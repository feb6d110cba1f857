"""What the registry declares, told to a real MLflow: aliases, tags, and what is left alone."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from carla_policy.digests import file_digest
from carla_policy_tools.build import build
from carla_policy_tools.cli import app
from carla_policy_tools.lifecycle.records import Registry, VersionRecord
from carla_policy_tools.lifecycle.registry import RegistryFile
from carla_policy_tools.mlflow_adapter import pushing
from carla_policy_tools.mlflow_adapter.connection import MlflowError, connect
from carla_policy_tools.paths import archive_name
from tests.declared import changed
from tests.synthetic import make_artifact
from tests.test_mlflow import client_of, database, empty_database, register_files, run

__all__ = ["database", "empty_database"]
pytest.importorskip("mlflow", reason="MLflow is not here: pip install -e '.[mlflow]'")
NAME = "carla_policy"


class Killed(BaseException):
    """What nobody catches."""


OLD, NEW, NEWEST = "v1.0.0", "v1.1.0", "v1.2.0"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three artifacts, and a store with an archive of each."""
    root = tmp_path_factory.mktemp("built")
    for version in (OLD, NEW, NEWEST):
        build(make_artifact(root / "artifacts", version), root / "store")
    return root


@pytest.fixture
def store(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built / "store", tmp_path / "store"))


@pytest.fixture
def logged(database: str, built: Path) -> str:
    """An MLflow that knows all three, as versions 1, 2 and 3."""
    for version in (OLD, NEW, NEWEST):
        run("log", str(built / "artifacts" / version), uri=database)
    return database


def declare(store: Path, registry: Registry) -> Registry:
    RegistryFile.of(store).write(registry)
    return registry


def with_versions(store: Path, *versions: str) -> Registry:
    """A registry of archives in `store`, the first one promoted."""
    registry = Registry()
    for version in versions:
        digest = file_digest(store / archive_name(version))
        event = registry.event("register", version, digest=digest, profile="realtime", reason="trained on rain")
        record = VersionRecord(
            digest=digest,
            git_sha="0123abc",
            built=event.at,
            registered=event.at,
            registered_by=event.by,
            profile="realtime",
        )
        first = [] if registry.promoted else [registry.event("promote", version, offset=2, reason="the first")]
        registry = registry.after(event, *first, records={version: record})
    return declare(store, registry)


def push(uri: str, store: Path, *options: str, status: int = 0) -> dict[str, Any]:
    words = ["mlflow", "push", "--json", "--tracking-uri", uri, "--store", str(store), *options]
    result = CliRunner().invoke(app, words)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == status, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def aliases(uri: str) -> dict[str, str]:
    return {alias: str(version) for alias, version in client_of(uri).get_registered_model(NAME).aliases.items()}


def tags(uri: str, version: str) -> dict[str, str]:
    found = client_of(uri).get_model_version(NAME, version).tags
    return {key.removeprefix("carla_policy."): value for key, value in found.items()}


def test_promoted_and_previous_become_aliases_and_each_version_says_what_became_of_it(logged: str, store: Path) -> None:
    registry = with_versions(store, OLD, NEW, NEWEST)
    registry = declare(store, changed(registry, "promote", NEW, reason="brakes earlier"))
    pushed = push(logged, store)
    assert pushed["problems"] == pushed["notes"] == []
    assert aliases(logged) == {"promoted": "2", "previous": "1"}
    told, last = tags(logged, "2"), registry.history[-1]
    assert told["version"] == NEW
    assert told["archive"] == registry.versions[NEW].digest
    assert (told["state"], told["change"], told["reason"]) == ("promoted", "promote", "brakes earlier")
    assert (told["changed_by"], told["changed_at"]) == (last.by, last.at.isoformat())
    assert (tags(logged, "1")["state"], tags(logged, "3")["state"]) == ("registered", "registered")


def test_second_push_changes_nothing_and_a_dry_run_only_tells(logged: str, store: Path) -> None:
    with_versions(store, OLD, NEW)
    told = push(logged, store, "--dry-run")["changes"]
    assert {"kind": "alias", "name": "promoted", "model_version": None, "before": None, "after": "1"} in told
    assert aliases(logged) == {}
    assert "state" not in tags(logged, "1")
    assert push(logged, store)["changes"] == told
    assert push(logged, store)["changes"] == []


def test_rollback_moves_the_aliases_back(logged: str, store: Path) -> None:
    registry = changed(with_versions(store, OLD, NEW, NEWEST), "promote", NEW)
    registry = declare(store, changed(registry, "promote", NEWEST))
    push(logged, store)
    assert aliases(logged) == {"promoted": "3", "previous": "2"}
    registry = declare(store, changed(registry, "rollback", NEW, reason="too timid"))
    push(logged, store)
    assert aliases(logged) == {"promoted": "2", "previous": "1"}
    assert tags(logged, "2")["change"] == "rollback"
    declare(store, changed(registry, "rollback", OLD))
    push(logged, store)
    assert aliases(logged) == {"promoted": "1"}


def test_retired_version_says_so_even_without_its_archive(logged: str, store: Path) -> None:
    registry = with_versions(store, OLD, NEW)
    push(logged, store)
    declare(store, changed(registry, "retire", NEW, reason="obsolete"))
    (store / archive_name(NEW)).unlink()
    assert push(logged, store)["problems"] == []
    assert (tags(logged, "2")["state"], tags(logged, "2")["reason"]) == ("retired", "obsolete")


def test_shares_of_a_split_are_tags_while_it_lasts(logged: str, store: Path) -> None:
    registry = with_versions(store, OLD, NEW)
    declare(store, split := changed(registry, "split", shares={OLD: 90, NEW: 10}))
    push(logged, store)
    assert (tags(logged, "1")["share"], tags(logged, "2")["share"]) == ("90", "10")
    declare(store, changed(split, "split"))
    push(logged, store)
    assert "share" not in tags(logged, "1") | tags(logged, "2")


def test_alias_of_somebody_else_is_left_alone(logged: str, store: Path) -> None:
    with_versions(store, OLD)
    client = client_of(logged)
    client.set_registered_model_alias(NAME, "promoted", "3")
    client.set_registered_model_alias(NAME, "champion", "3")
    (problem,) = push(logged, store, status=1)["problems"]
    assert problem.startswith("alias promoted of carla_policy names version 3, which was not set here; delete it")
    assert aliases(logged) == {"promoted": "3", "champion": "3"}
    assert tags(logged, "1")["state"] == "promoted"


def test_alias_of_ours_that_somebody_moved_is_theirs_until_it_is_deleted(logged: str, store: Path) -> None:
    registry = with_versions(store, OLD, NEW)
    push(logged, store)
    client = client_of(logged)
    client.set_registered_model_alias(NAME, "promoted", "3")
    declare(store, changed(registry, "promote", NEW))
    assert push(logged, store, status=1)["problems"]
    assert aliases(logged)["promoted"] == "3"
    client.delete_registered_model_alias(NAME, "promoted")
    push(logged, store)
    assert aliases(logged) == {"promoted": "2", "previous": "1"}


def test_push_that_was_interrupted_at_an_alias_is_finished_by_the_next(
    logged: str, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    registry = with_versions(store, OLD, NEW)
    push(logged, store)
    declare(store, changed(registry, "promote", NEW))
    for broken in ("set_registered_model_alias", "set_registered_model_tag"):
        real = getattr(MlflowClient, broken)

        def last(self: Any, model: str, key: str, value: str, real: Any = real, broken: str = broken) -> None:
            if "promoted" in key and (broken == "set_registered_model_alias" or " " not in value):
                raise Killed
            real(self, model, key, value)

        with monkeypatch.context() as patched:
            patched.setattr(MlflowClient, broken, last)
            with pytest.raises(Killed):
                push(logged, store)
    push(logged, store)
    registry = RegistryFile.of(store).read()
    declare(store, changed(registry, "rollback", OLD))
    assert push(logged, store)["problems"] == []
    assert aliases(logged) == {"promoted": "1"}


def test_version_that_mlflow_does_not_know_is_named_and_its_alias_taken_away(
    database: str, built: Path, store: Path
) -> None:
    run("log", str(built / "artifacts" / OLD), uri=database)
    registry = with_versions(store, OLD, NEW)
    push(database, store, status=1)
    assert aliases(database) == {"promoted": "1"}
    declare(store, changed(registry, "promote", NEW))
    (problem,) = push(database, store, status=1)["problems"]
    assert problem.startswith(f"{NEW}: no version of carla_policy is it; `carla-policy mlflow log artifacts/{NEW}")
    assert aliases(database) == {"previous": "1"}
    assert len(client_of(database).search_model_versions(f"name='{NAME}'")) == 1


def test_archive_that_has_changed_since_it_was_registered_is_not_vouched_for(logged: str, store: Path) -> None:
    with_versions(store, OLD, NEW)
    archive = store / archive_name(NEW)
    archive.write_bytes(archive.read_bytes() + b" ")
    (problem,) = push(logged, store, status=1)["problems"]
    assert problem.startswith(f"{NEW}: cannot be told apart: ")
    assert "has changed since it was registered" in problem
    assert "state" not in tags(logged, "2")


def test_artifact_that_others_registered_is_known_by_its_card(database: str, built: Path, store: Path) -> None:
    register_files(database, NAME, built / "artifacts" / NEW)
    register_files(database, NAME, built / "artifacts" / OLD)
    with_versions(store, OLD)
    push(database, store)
    assert aliases(database) == {"promoted": "2"}
    assert tags(database, "2")["version"] == OLD


def test_exported_version_is_known_by_the_origin_in_its_card(database: str, tmp_path: Path) -> None:
    files = tmp_path / "files"
    files.mkdir()
    (files / "sac.zip").write_bytes(b"a checkpoint")
    run_id = register_files(database, NAME, files)
    origin = {"mlflow": database, "model": NAME, "version": "1", "run_id": run_id, "files": f"sha256:{'0' * 64}"}
    build(make_artifact(tmp_path / "artifacts", OLD, card={"provenance": origin}), tmp_path / "store")
    stranger = {"provenance": {**origin, "run_id": "another"}}
    build(make_artifact(tmp_path / "artifacts", NEW, card=stranger), tmp_path / "store")
    with_versions(tmp_path / "store", OLD, NEW)
    (problem,) = push(database, tmp_path / "store", status=1)["problems"]
    assert problem.startswith(f"{NEW}: ")
    assert aliases(database) == {"promoted": "1"}


def test_deployments_that_share_a_model_have_aliases_and_tags_of_their_own(logged: str, store: Path) -> None:
    registry = with_versions(store, OLD, NEW)
    push(logged, store)
    declare(store, changed(registry, "promote", NEW))
    push(logged, store, "--deployment", "staging")
    assert aliases(logged) == {"promoted": "1", "staging-promoted": "2", "staging-previous": "1"}
    assert (tags(logged, "1")["state"], tags(logged, "1")["staging.state"]) == ("promoted", "registered")
    with pytest.raises(MlflowError, match="small letters"):
        push(logged, store, "--deployment", "Two words")


def test_registry_without_a_history_is_no_reason_to_ask_mlflow(tmp_path: Path) -> None:
    with pytest.raises(MlflowError, match="declares nothing yet"):
        push("http://127.0.0.1:9", tmp_path)


def test_plan_alone_changes_nothing(logged: str, store: Path) -> None:
    registry = with_versions(store, OLD)
    with connect(logged) as connection:
        planned = pushing.plan(connection, registry, store, name=NAME, names=pushing.Names())
    assert planned.changes
    assert replace(planned, changes=[]).problems == []
    assert aliases(logged) == {}
