"""Tell MLflow what the registry declares: aliases for what is promoted, tags for what has become of each version.

What is to be there is computed from the registry alone, compared with what is there, and only differences are
written; so a second push changes nothing, and one that broke off is finished by the next. An alias that somebody else
has set or moved is left alone: beside each of ours, a tag of the registered model says which version we gave it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from carla_policy.errors import ArtifactError
from carla_policy_tools.lifecycle.events import Event
from carla_policy_tools.lifecycle.records import Registry
from carla_policy_tools.mlflow_adapter.connection import Connection, MlflowError
from carla_policy_tools.mlflow_adapter.identity import CARD_HASH_TAG, VERSION_TAG, Identities, archived_card
from carla_policy_tools.mlflow_adapter.models import get_model, versions_of
from carla_policy_tools.paths import sorted_versions

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel

_DEPLOYMENT = re.compile(r"[a-z][a-z0-9-]{0,30}")


@dataclass(frozen=True)
class Names:
    """What aliases and tags are called; those of several deployments of one model differ."""

    deployment: str | None = None

    def __post_init__(self) -> None:
        if self.deployment is not None and not _DEPLOYMENT.fullmatch(self.deployment):
            raise MlflowError(f"--deployment {self.deployment!r}: expected small letters, digits and hyphens")

    def alias(self, role: str) -> str:
        return f"{self.deployment}-{role}" if self.deployment else role

    def tag(self, key: str) -> str:
        return f"carla_policy.{self.deployment}.{key}" if self.deployment else f"carla_policy.{key}"

    def owner(self, alias: str) -> str:
        """Tag of the registered model that says which version we gave `alias`; two while that changes."""
        return f"carla_policy.alias.{alias}"


@dataclass(frozen=True)
class Change:
    """One alias or tag: what it was, and what it is to be; `None` where it is not there."""

    kind: str
    """`alias` of the model, or `tag` of one of its versions."""
    name: str
    model_version: str | None
    before: str | None
    after: str | None


@dataclass(frozen=True)
class Push:
    """What differs, and what cannot be pushed."""

    model: str
    changes: list[Change] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """Retired versions that MLflow does not know."""

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "changes": [vars(change) for change in self.changes]}


def plan(connection: Connection, registry: Registry, store: Path, *, name: str, names: Names) -> Push:
    """What is to change in MLflow so that it says what `registry` declares; nothing is changed."""
    model = get_model(connection, name)
    push = Push(name)
    known: dict[str, ModelVersion] = {}
    versions = versions_of(connection, name)
    identities = Identities(connection, versions)
    state = registry.declared()
    for version in sorted_versions(state.contents):
        digest = state.contents[version]
        declared = version in state.digests
        try:
            card = archived_card(store, version, digest)
            found = identities.find(card)
            card_hash = card.card_hash
        except ArtifactError as error:
            found = next((one for one in versions if _was_pushed(one, version, digest, names)), None)
            card_hash = found.tags.get(CARD_HASH_TAG, "") if found else ""
            if found is None:
                (push.problems if declared else push.notes).append(f"{version}: cannot be told apart: {error}")
                continue
        if found is None:
            (push.problems if declared else push.notes).append(
                f"{version}: no version of {name} is it; `carla-policy mlflow log artifacts/{version} --name {name}` "
                "logs it"
            )
            continue
        known[version] = found
        wanted = {CARD_HASH_TAG: card_hash, **_tags(registry, version, digest, names)}
        push.changes.extend(_tag_changes(found, wanted))
    for role, holder in (("previous", registry.rollback_target()), ("promoted", registry.promoted)):
        target = known.get(holder) if holder else None
        _plan_alias(push, model, names, names.alias(role), str(target.version) if target else None)
    return push


def apply(connection: Connection, push: Push, names: Names) -> None:
    """Make the changes of `push`; aliases last, so that what they name is described already."""
    client = connection.client
    for change in push.changes:
        if change.kind == "tag" and change.after is None:
            client.delete_model_version_tag(push.model, change.model_version, change.name)
        elif change.kind == "tag":
            client.set_model_version_tag(push.model, change.model_version, change.name, change.after)
        else:
            owner = names.owner(change.name)
            both = " ".join(version for version in (change.before, change.after) if version)
            client.set_registered_model_tag(push.model, owner, both)
            if change.after is None:
                client.delete_registered_model_alias(push.model, change.name)
                client.delete_registered_model_tag(push.model, owner)
            else:
                client.set_registered_model_alias(push.model, change.name, change.after)
                client.set_registered_model_tag(push.model, owner, change.after)


def _was_pushed(found: ModelVersion, version: str, digest: str, names: Names) -> bool:
    """Whether a push said before that it is `version`, whose archive is gone by now."""
    return (found.tags.get(VERSION_TAG), found.tags.get(names.tag("archive"))) == (version, digest)


def _tags(registry: Registry, version: str, digest: str, names: Names) -> dict[str, str | None]:
    """What is to be said of a version; `None` for what is not to be said."""
    event = _last_change(registry, version)
    retired = version not in registry.versions
    state = "retired" if retired else "promoted" if version == registry.promoted else "registered"
    share = (registry.split or {}).get(version)
    own = {
        "state": state,
        "archive": digest,
        "share": None if share is None else str(share),
        "change": event.verb,
        "change_sequence": str(event.sequence),
        "changed_at": event.at.isoformat(),
        "changed_by": event.by,
        "reason": event.reason or None,
    }
    return {VERSION_TAG: version, **{names.tag(key): value for key, value in own.items()}}


def _last_change(registry: Registry, version: str) -> Event:
    """The last event that is about `version`."""
    return next(event for event in reversed(registry.history) if event.version == version and event.verb != "undo")


def _tag_changes(found: ModelVersion, wanted: Mapping[str, str | None]) -> Iterator[Change]:
    for key, value in wanted.items():
        before = found.tags.get(key)
        if before != value:
            yield Change("tag", key, str(found.version), before, value)


def _plan_alias(push: Push, model: RegisteredModel, names: Names, alias: str, target: str | None) -> None:
    given = dict(model.aliases).get(alias)
    actual = None if given is None else str(given)
    if actual == target:
        return
    if actual is not None and actual not in model.tags.get(names.owner(alias), "").split():
        push.problems.append(
            f"alias {alias} of {push.model} names version {actual}, which was not set here; delete it, or choose other "
            "names with --deployment"
        )
        return
    push.changes.append(Change("alias", alias, None, actual, target))
