"""The registry and its history say the same, whatever has happened."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from carla_policy.errors import ArtifactError
from carla_policy_tools.lifecycle.events import Event
from carla_policy_tools.lifecycle.records import Registry
from carla_policy_tools.lifecycle.registry import RegistryFile
from tests.declared import changed, digest_of, eventful, registered, registry_of

NAMES = [f"v1.{minor}.0" for minor in (2, 9, 10, 11)]


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        ({"verb": "promote", "version": "v9.0.0"}, "promote of v9.0.0, which is not registered"),
        ({"verb": "promote"}, "promote of no version"),
        ({"verb": "rollback", "version": "v1.3.0"}, "rollback of v1.3.0, which is not registered"),
        ({"verb": "retire", "version": "v1.3.0"}, "retire of v1.3.0, which is not registered"),
        ({"verb": "retire", "version": "v1.1.0"}, "retires v1.1.0 while it is promoted"),
        ({"verb": "retire", "version": "v1.2.0"}, "retires v1.2.0 while it is promoted or in the split"),
        ({"verb": "configure", "version": "v9.0.0", "profile": "realtime"}, "configure of v9.0.0, which is not"),
        ({"verb": "configure", "version": "v1.0.0"}, "configures v1.0.0 without a profile"),
        ({"verb": "register", "version": "v1.0.0", "digest": digest_of("x"), "profile": "p"}, "registers v1.0.0 twice"),
        ({"verb": "register", "version": "v9.0.0", "profile": "p"}, "without digest or profile"),
        ({"verb": "register", "version": "v9.0.0", "digest": digest_of("x")}, "without digest or profile"),
        ({"verb": "register", "digest": digest_of("x"), "profile": "p"}, "without digest or profile"),
        ({"verb": "split", "shares": {"v1.0.0": 50, "v9.0.0": 50}}, "among versions that are not registered"),
        ({"verb": "split", "shares": {"v1.0.0": 50, "v1.1.0": 51}}, "add up to 100, got v1.0.0=50, v1.1.0=51"),
    ],
)
def test_event_that_could_not_have_happened_is_refused(event: dict[str, Any], reason: str) -> None:
    registry = eventful()
    with pytest.raises(ValueError, match=reason):
        registry.after(registry.event(**event))


def test_first_registered_version_has_to_be_promoted_with_it() -> None:
    registry = registry_of("v1.0.0")
    with pytest.raises(ValidationError, match="promoted: expected one of the versions, got none"):
        Registry().after(
            registry.history[0], records={"v1.0.0": registry.versions["v1.0.0"].model_copy(update={"promoted": None})}
        )


def allowed(registry: Registry) -> list[tuple[str, str]]:
    """What operators may do next: verb and version."""
    versions, split = list(registry.versions), registry.split or {}
    found = [("register", name) for name in NAMES if name not in versions] + [("undo", name) for name in NAMES]
    found += [(verb, name) for verb in ("configure", "promote", "rollback", "split") for name in versions]
    found += [("retire", name) for name in versions if name != registry.promoted and name not in split]
    return found + ([("end split", "")] if versions else [])


def done(registry: Registry, verb: str, version: str) -> Registry:
    if verb == "register":
        return registered(registry, version)
    if verb == "split":
        others = [name for name in registry.versions if name != version][:1]
        return changed(registry, "split", shares={version: 70, others[0]: 30} if others else {version: 100})
    if verb == "end split":
        return changed(registry, "split")
    return changed(registry, verb, version, **({"profile": "throughput"} if verb == "configure" else {}))


@st.composite
def registries(draw: st.DrawFn) -> Registry:
    """What any sequence of allowed events leads to."""
    registry = Registry()
    for _ in range(draw(st.integers(1, 14))):
        registry = done(registry, *draw(st.sampled_from(allowed(registry))))
    return registry


@given(registry=registries())
def test_any_sequence_of_events_is_read_back_and_folds_to_the_state(
    tmp_path_factory: pytest.TempPathFactory, registry: Registry
) -> None:
    file = RegistryFile.of(tmp_path_factory.getbasetemp())
    file.write(registry)
    assert file.read() == registry
    folded = registry.declared()
    assert folded.promoted == registry.promoted
    assert folded.shares == registry.split
    assert folded.digests == {name: digest_of(name) for name in registry.versions}
    assert list(registry.versions) == sorted(registry.versions, key=NAMES.index)
    assert registry.sequence == len(registry.history)


@given(registry=registries(), data=st.data())
def test_rollback_after_a_promotion_returns_to_where_it_was(registry: Registry, data: st.DataObject) -> None:
    others = [name for name in registry.versions if name != registry.promoted]
    if not others:
        return
    promoted = changed(registry, "promote", data.draw(st.sampled_from(others)))
    assert promoted.rollback_target() == registry.promoted
    back = changed(promoted, "rollback", promoted.rollback_target())
    assert back.promoted == registry.promoted
    assert back.declared().promotions == registry.declared().promotions
    assert promoted.split is None
    assert back.split is None


@given(registry=registries())
def test_rollbacks_go_back_step_by_step_and_end(registry: Registry) -> None:
    stack = registry.declared().promotions
    while (target := registry.rollback_target()) is not None:
        stack = stack[:-1]
        registry = changed(registry, "rollback", target)
        assert registry.promoted == stack[-1]
    assert len(stack) <= 1


@given(registry=registries())
def test_retired_version_disappears_from_where_rollbacks_go(registry: Registry) -> None:
    for verb, version in allowed(registry):
        if verb == "retire":
            before, left = registry.declared().promotions, done(registry, verb, version)
            after = left.declared().promotions
            assert version not in {*after, *left.versions}
            assert all(first != second for first, second in pairwise(after))
            assert set(after) == set(before) - {version}
            assert left.promoted == registry.promoted


def test_rollback_to_a_named_version_further_back_takes_back_all_after_it() -> None:
    registry = registry_of("v1.0.0", "v1.1.0", "v1.2.0")
    for version in ("v1.1.0", "v1.2.0"):
        registry = changed(registry, "promote", version)
    assert changed(registry, "rollback", "v1.0.0").rollback_target() is None


def test_rollback_to_a_version_that_was_never_promoted_can_be_rolled_back() -> None:
    registry = changed(registry_of("v1.0.0", "v1.1.0"), "rollback", "v1.1.0")
    assert (registry.promoted, registry.rollback_target()) == ("v1.1.0", "v1.0.0")


def test_promoting_the_promoted_version_again_changes_nothing_for_rollbacks() -> None:
    registry = changed(registry_of("v1.0.0", "v1.1.0"), "promote", "v1.1.0")
    assert changed(registry, "promote", "v1.1.0").rollback_target() == "v1.0.0"


@pytest.mark.parametrize("verb", ["promote", "rollback"])
@pytest.mark.parametrize("version", ["v1.0.0", "v1.1.0", "v1.2.0"])
def test_promotion_and_rollback_end_a_split(verb: str, version: str) -> None:
    registry = changed(registry_of("v1.0.0", "v1.1.0", "v1.2.0"), "promote", "v1.1.0")
    split = changed(registry, "split", shares={"v1.0.0": 50, "v1.1.0": 50})
    assert changed(split, verb, version).split is None


def test_promoted_version_is_not_retired_without_a_split_either() -> None:
    with pytest.raises(ValueError, match=r"retires v1\.0\.0 while it is promoted"):
        changed(registry_of("v1.0.0", "v1.1.0"), "retire", "v1.0.0")


def test_version_can_be_registered_again_after_it_was_retired() -> None:
    registry = changed(registry_of("v1.0.0", "v1.1.0"), "promote", "v1.1.0")
    again = registered(changed(registry, "retire", "v1.0.0"), "v1.0.0")
    assert again.versions["v1.0.0"].promoted is None
    assert again.rollback_target() is None


def test_version_never_comes_back_with_other_content() -> None:
    registry = changed(registry_of("v1.0.0", "v1.1.0"), "retire", "v1.1.0")
    for version, digest in (("v1.0.0", "v1.0.0"), ("v1.1.0", "v1.1.0"), ("v1.2.0", "anything")):
        registry.check_content(version, digest_of(digest))
    for version in ("v1.0.0", "v1.1.0"):
        with pytest.raises(ArtifactError) as refused:
            registry.check_content(version, digest_of("other"))
        expected = f"{version}: was registered before with other content: expected {digest_of(version)}, got "
        assert str(refused.value).startswith(expected + digest_of("other"))
    event = registry.event("register", "v1.1.0", digest=digest_of("other"), profile="realtime")
    with pytest.raises(ValueError, match=r"registers v1\.1\.0 with other content than before"):
        registry.after(event, records={"v1.1.0": registry_of("v1.0.0", "v1.1.0").versions["v1.1.0"]})


def test_event_says_who_when_and_what_was_promoted_before() -> None:
    event = registry_of("v1.0.0").event("promote", "v1.0.0", reason="why", offset=3)
    assert isinstance(event, Event)
    assert (event.sequence, event.previous, event.reason) == (5, "v1.0.0", "why")
    assert "@" in event.by
    assert event.at.utcoffset() is not None
