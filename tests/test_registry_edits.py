"""A registry that was edited by hand so that it and its history differ is refused, and the refusal says why."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from carla_policy.errors import ArtifactError
from carla_policy_tools.lifecycle.registry import RegistryFile
from tests.declared import digest_of, eventful

Content = dict[str, Any]


def event_of(content: Content, verb: str) -> Content:
    """The first event of a verb."""
    return next(event for event in content["history"] if event["verb"] == verb)


def put(*path: str | int, value: object) -> Callable[[Content], None]:
    def edit(content: Any) -> None:
        for step in path[:-1]:
            content = content[step]
        content[path[-1]] = value

    return edit


def drop(*path: str | int) -> Callable[[Content], None]:
    def edit(content: Any) -> None:
        for step in path[:-1]:
            content = content[step]
        del content[path[-1]]

    return edit


def renumbered(order: Callable[[list[Content]], list[Content]]) -> Callable[[Content], None]:
    """Another order of the events, with the sequence numbers mended."""

    def edit(content: Content) -> None:
        content["history"] = [
            {**event, "sequence": number} for number, event in enumerate(order(content["history"]), start=1)
        ]

    return edit


def respelled(spelling: str) -> Callable[[Content], None]:
    def edit(content: Content) -> None:
        content["versions"][spelling] = content["versions"].pop("v1.2.0")

    return edit


EDITS = {
    "unknown key": (put("owner", value="me"), "owner: Extra inputs"),
    "unknown key of a version": (put("versions", "v1.0.0", "note", value=""), "versions.v1.0.0.note: Extra inputs"),
    "unknown key of an event": (put("history", 0, "note", value=""), "history.0.note: Extra inputs"),
    "other format": (put("format", value=2), "format: Input should be 1"),
    "other promoted": (put("promoted", value="v1.0.0"), "promoted: the history says v1.1.0, here is v1.0.0"),
    "nothing promoted": (drop("promoted"), "promoted: the history says v1.1.0, here is None"),
    "missing version": (drop("versions", "v1.0.0"), "versions: the history declares v1.0.0"),
    "no versions": (drop("versions"), "versions: the history declares v1.0.0"),
    "other digest": (put("versions", "v1.0.0", "digest", value=digest_of("x")), "versions: the history declares"),
    "other digest in the history": (put("history", 0, "digest", value=digest_of("x")), "the history declares"),
    "digest that is none": (put("versions", "v1.0.0", "digest", value="sha256:abc"), "versions.v1.0.0.digest"),
    "other profile": (put("versions", "v1.2.0", "profile", value="realtime"), "gives them the profiles"),
    "other profile in the history": (put("history", 0, "profile", value="throughput"), "gives them the profiles"),
    "other operator": (put("versions", "v1.0.0", "registered_by", value="x@y"), "versions.v1.0.0: the history says"),
    "other time of registration": (
        put("versions", "v1.0.0", "registered", value="2020-01-01T00:00:00Z"),
        "versions.v1.0.0: the history says",
    ),
    "other time of promotion": (drop("versions", "v1.1.0", "promoted"), "versions.v1.1.0: the history says"),
    "time without a zone": (put("history", 0, "at", value="2020-01-01T00:00:00"), "history.0.at: "),
    "time as a number": (put("history", 0, "at", value=5), "history.0.at: "),
    "history removed": (put("history", value=[]), "versions: the history declares none"),
    "event removed": (drop("history", 3), "history: expected the sequence numbers 1, 2, 3, ... without a gap"),
    "events swapped": (lambda c: c["history"].reverse(), "history: expected the sequence numbers"),
    "events renumbered": (renumbered(lambda h: [h[1], h[0], *h[2:]]), "event 1: promote of v1.0.0, which is not"),
    "promotion taken out": (
        renumbered(lambda h: [e for e in h if e["verb"] != "promote"]),
        "event 2: says that v1.0.0",
    ),
    "other previous": (put("history", 4, "previous", value="v1.1.0"), "event 5: says that v1.1.0 was promoted before"),
    "sequence from 0": (put("history", 0, "sequence", value=0), "history.0.sequence"),
    "unknown verb": (put("history", 0, "verb", value="approve"), "history.0.verb"),
    "reason without end": (put("history", 0, "reason", value="x" * 1001), "history.0.reason"),
    "other shares": (put("split", value={"v1.1.0": 80, "v1.2.0": 20}), "split: the history says"),
    "split ended": (drop("split"), "split: the history says"),
    "share of 0": (put("split", value={"v1.1.0": 100, "v1.2.0": 0}), "split.v1.2.0"),
    "shares beyond 100": (put("split", "v1.2.0", value=20), "shares that add up to 100, got v1.1.0=90, v1.2.0=20"),
    "ended split beyond 100": (lambda c: event_of(c, "split")["shares"].update({"v1.0.0": 60}), "add up to 100, got"),
    "no shares at all": (put("split", value={}), "shares that add up to 100, got"),
    "version without v": (respelled("1.2.0"), "'1.2.0' is not a version"),
    "version of two numbers": (respelled("v1.2"), "'v1.2' is not a version"),
    "version with a leading zero": (respelled("v1.02.0"), "'v1.02.0' is not a version"),
    "version with a space": (respelled("v1.2.0 "), "'v1.2.0 ' is not a version"),
    "promoted spelled otherwise": (put("promoted", value="V1.1.0"), "promoted: Value error, 'V1.1.0' is not a version"),
    "list for an object": (put("versions", value=[]), "versions: Input should be an object"),
    "number for a text": (put("versions", "v1.0.0", "git_sha", value=5), "versions.v1.0.0.git_sha"),
}


@pytest.mark.parametrize("name", EDITS)
def test_edit_by_hand_that_does_not_fit_is_refused_by_name(tmp_path: Path, name: str) -> None:
    file = RegistryFile.of(tmp_path)
    file.write(eventful())
    content = json.loads(file.path.read_text("utf-8"))
    edit, reason = EDITS[name]
    edit(content)
    file.path.write_text(json.dumps(content), "utf-8")
    with pytest.raises(ArtifactError) as caught:
        file.read()
    assert reason in str(caught.value)
