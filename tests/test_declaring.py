"""What a start serves: the registry rules, and the command line adds to it or is told why not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from carla_policy.errors import ArtifactError
from carla_policy_tools.configuration import load_profile
from carla_policy_tools.lifecycle.declaring import Declaration, declare, recorded
from carla_policy_tools.lifecycle.records import Registry
from carla_policy_tools.paths import archive_name
from tests.declared import changed, digest_of, registered, registry_of


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """With archives of three versions; what is in them is looked at later."""
    for version in ("v1.9.0", "v1.10.0", "v1.2.0"):
        (tmp_path / archive_name(version)).touch()
        os.utime(tmp_path / archive_name(version), (1_700_000_000, 1_700_000_000))
    (tmp_path / "carla_policy-latest.mar").touch()
    return tmp_path


def test_without_a_registry_all_in_the_store_are_served_and_the_newest_is_promoted(store: Path) -> None:
    found = declare(Registry(), store)
    assert list(found.profiles) == ["v1.2.0", "v1.9.0", "v1.10.0"]
    assert found.promoted == "v1.10.0"
    assert found.newcomers == ("v1.2.0", "v1.9.0", "v1.10.0")
    assert set(found.profiles.values()) == {"realtime"}
    assert (found.notices, found.digests) == ((), {})


def test_without_a_registry_the_command_line_chooses(store: Path) -> None:
    found = declare(Registry(), store, ["1.10.0", "v1.9.0", "v1.9.0"], promote="1.9.0", profile="throughput")
    assert found.profiles == {"v1.9.0": "throughput", "v1.10.0": "throughput"}
    assert found.promoted == "v1.9.0"
    assert found.settings() == dict.fromkeys(("v1.9.0", "v1.10.0"), load_profile("throughput"))


def test_newest_of_the_named_versions_is_promoted(store: Path) -> None:
    assert declare(Registry(), store, ["v1.10.0", "v1.9.0"]).promoted == "v1.10.0"
    assert declare(Registry(), store, ["v1.9.0", "v1.2.0"]).promoted == "v1.9.0"


def test_registry_rules_over_what_else_is_in_the_store(store: Path) -> None:
    registry = registered(registry_of("v1.2.0"), "v1.9.0", profile="throughput")
    found = declare(registry, store)
    assert found.profiles == {"v1.2.0": "realtime", "v1.9.0": "throughput"}
    assert found.promoted == "v1.2.0"
    assert found.newcomers == ()
    assert found.digests == {version: digest_of(version) for version in ("v1.2.0", "v1.9.0")}
    assert found.notices == ("v1.10.0 is in the store, but not registered; `carla-policy register v1.10.0` does that",)


def test_version_named_at_a_later_start_joins_and_the_others_stay(store: Path) -> None:
    found = declare(registry_of("v1.2.0"), store, ["v1.10.0"])
    assert found.profiles == {"v1.2.0": "realtime", "v1.10.0": "realtime"}
    assert (found.promoted, found.newcomers) == ("v1.2.0", ("v1.10.0",))
    assert found.notices == (
        "v1.2.0: served too, since the registry declares it; `carla-policy retire` ends that",
        "v1.9.0 is in the store, but not registered; `carla-policy register v1.9.0` does that",
    )


def test_profile_of_a_deployment_is_for_versions_that_the_registry_does_not_know(store: Path) -> None:
    assert set(declare(Registry(), store, newcomers_profile="throughput").profiles.values()) == {"throughput"}
    found = declare(registry_of("v1.2.0"), store, ["v1.2.0", "v1.10.0"], newcomers_profile="throughput")
    assert found.profiles == {"v1.2.0": "realtime", "v1.10.0": "throughput"}
    assert found.notices[-1] == (
        "v1.2.0 keeps the profile realtime of the registry; `carla-policy serve --profile throughput` changes that for "
        "all versions"
    )
    all_told = declare(registry_of("v1.2.0"), store, profile="throughput", newcomers_profile="throughput")
    assert all_told.profiles == {"v1.2.0": "throughput"}
    assert not any("keeps the profile" in notice for notice in all_told.notices)


def test_workers_of_a_deployment_stand_in_place_of_the_profile_s(store: Path) -> None:
    settings = declare(Registry(), store, ["v1.2.0"]).settings(workers=3)
    assert settings == {"v1.2.0": load_profile("realtime").with_workers(3)}
    assert settings["v1.2.0"].workers == 3


def test_start_does_not_promote_another_version_than_the_registry(store: Path) -> None:
    found = declare(registry_of("v1.2.0", "v1.9.0", "v1.10.0"), store, promote="v1.9.0")
    assert found.promoted == "v1.2.0"
    assert found.notices == ("the registry says that v1.2.0 is promoted; `carla-policy promote v1.9.0` changes it",)
    assert declare(registry_of("v1.2.0", "v1.9.0", "v1.10.0"), store, promote="v1.2.0").notices == ()


def test_start_does_not_bring_back_what_was_retired(store: Path) -> None:
    registry = changed(registry_of("v1.2.0", "v1.9.0", "v1.10.0"), "retire", "v1.10.0")
    found = declare(registry, store, ["v1.10.0"])
    assert list(found.profiles) == ["v1.2.0", "v1.9.0"]
    assert found.notices[0] == ("v1.10.0 was retired and is not served; `carla-policy register v1.10.0` brings it back")
    assert declare(registry, store).notices == ()
    assert list(declare(registered(registry, "v1.10.0"), store).profiles) == ["v1.2.0", "v1.9.0", "v1.10.0"]


def test_profile_of_a_start_is_for_all_versions(store: Path) -> None:
    found = declare(registry_of("v1.2.0"), store, ["v1.2.0", "v1.9.0"], profile="throughput")
    assert found.profiles == {"v1.2.0": "throughput", "v1.9.0": "throughput"}


def test_profile_in_a_file_is_declared_by_its_whole_path(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert declare(Registry(), store, ["v1.2.0"], profile="mine.yaml").profiles == {
        "v1.2.0": str(tmp_path / "mine.yaml")
    }


@pytest.mark.parametrize("registry", [Registry(), registry_of("v1.2.0")])
def test_version_that_the_store_does_not_have_is_refused(store: Path, registry: Registry) -> None:
    with pytest.raises(ArtifactError, match=r"has no v3\.0\.0, only v1\.2\.0, v1\.9\.0, v1\.10\.0"):
        declare(registry, store, ["v3.0.0"])


@pytest.mark.parametrize(
    ("versions", "promote", "reason"),
    [
        (["v1.2"], None, "'v1.2' is not a version"),
        ([], "latest", "'vlatest' is not a version"),
        ([], "v3.0.0", "has no v3.0.0"),
        (["v1.2.0", "v1.9.0"], "v1.10.0", "v1.10.0 is to be promoted, but only v1.2.0, v1.9.0 are to be served"),
    ],
)
def test_command_line_that_does_not_fit_the_store_is_refused(
    store: Path, versions: list[str], promote: str | None, reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        declare(Registry(), store, versions, promote)


def test_empty_store_is_refused_unless_the_registry_declares_something(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there are no archives to serve; build one with `carla-policy build"):
        declare(Registry(), tmp_path)
    assert declare(registry_of("v1.2.0"), tmp_path).promoted == "v1.2.0"


def started(registry: Registry, store: Path, declaration: Declaration) -> Registry:
    digests = {version: digest_of(version) for version in declaration.profiles}
    return recorded(registry, declaration, digests, dict.fromkeys(digests, "0123abc"), store)


def test_first_start_records_what_it_serves_and_promotes(store: Path) -> None:
    registry = started(Registry(), store, declare(Registry(), store, promote="v1.9.0"))
    assert [(event.verb, event.version) for event in registry.history] == [
        ("register", "v1.2.0"),
        ("register", "v1.9.0"),
        ("register", "v1.10.0"),
        ("promote", "v1.9.0"),
    ]
    assert {event.reason for event in registry.history} == {"declared at the start"}
    record = registry.versions["v1.2.0"]
    assert (record.digest, record.git_sha, record.profile) == (digest_of("v1.2.0"), "0123abc", "realtime")
    assert record.built.timestamp() == 1_700_000_000


def test_later_start_changes_nothing_unless_something_is_new(store: Path) -> None:
    first = started(Registry(), store, declare(Registry(), store))
    assert started(first, store, declare(first, store)) == first


def test_later_start_records_newcomers_and_other_profiles(store: Path) -> None:
    first = registry_of("v1.2.0")
    later = started(first, store, declare(first, store, ["v1.9.0"], profile="throughput"))
    assert [(event.verb, event.version, event.profile) for event in later.history[first.sequence :]] == [
        ("configure", "v1.2.0", "throughput"),
        ("register", "v1.9.0", "throughput"),
    ]
    assert later.promoted == "v1.2.0"
    assert {record.profile for record in later.versions.values()} == {"throughput"}
