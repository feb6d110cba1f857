"""Registries that lie, grow, name files or say two things: each attack edits the registry of a deployment."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from carla_policy_tools.lifecycle.events import Event
from carla_policy_tools.lifecycle.records import Registry
from carla_policy_tools.lifecycle.registry import MAX_BYTES, RegistryFile
from tests.attacks import Attack
from tests.declared import changed, digest_of, eventful

FILE = "registry.json"
NOT_ONE = "not a registry"


def _edit(change: Callable[[Any], object]) -> Callable[[Path, Path], None]:
    def apply(directory: Path, marker: Path) -> None:
        RegistryFile.of(directory).write(eventful())
        content = json.loads((directory / FILE).read_text())
        change(content)
        (directory / FILE).write_text(json.dumps(content).replace("{marker}", str(marker)))

    return apply


def _put(*place: str | int, value: object) -> Callable[[Path, Path], None]:
    def change(content: Any) -> None:
        for step in place[:-1]:
            content = content[step]
        content[place[-1]] = value

    return _edit(change)


def _spelled(old: str, new: str) -> Callable[[Path, Path], None]:
    def apply(directory: Path, _: Path) -> None:
        RegistryFile.of(directory).write(eventful())
        text = (directory / FILE).read_text()
        assert old in text
        (directory / FILE).write_text(text.replace(old, new, 1))

    return apply


def _data(make: Callable[[], bytes]) -> Callable[[Path, Path], None]:
    def apply(directory: Path, _: Path) -> None:
        (directory / FILE).write_bytes(make())

    return apply


def _renamed(name: str) -> Callable[[Path, Path], None]:
    """A version of another name, in the versions and in the history alike."""

    def change(content: Any) -> None:
        content["versions"] = {name if key == "v1.2.0" else key: value for key, value in content["versions"].items()}
        for event in content["history"]:
            event["version"] = name if event.get("version") == "v1.2.0" else event.get("version")

    return _edit(change)


def _appended(*events: dict[str, Any]) -> Callable[[Path, Path], None]:
    """More events at the end of the history, numbered as they should be."""

    def change(content: Any) -> None:
        for event in events:
            last = content["history"][-1]
            content["history"].append({**last, "sequence": last["sequence"] + 1, "previous": "v1.1.0", **event})

    return _edit(change)


def _long(length: int) -> bytes:
    """A history that is almost too long, the last event of which is a lie."""
    registry = eventful()
    text = changed(registry, "undo", "v1.0.0", reason="x" * 100).history[-1].model_dump(mode="json", exclude_none=True)
    known = json.loads(registry.model_dump_json(exclude_none=True))
    size = (length - len(json.dumps(known))) // (len(json.dumps(text)) + 10)
    known["history"] += [{**text, "sequence": registry.sequence + 1 + number} for number in range(size)]
    known["history"][-1] |= {"verb": "retire", "version": "v1.1.0"}
    return json.dumps(known).encode()


def _promotions(times: int) -> bytes:
    """Promotions to and fro, then all taken back, one by one."""
    registry, now = eventful(), eventful().history[-1]
    history, promoted = list(registry.history), registry.promoted
    for number in range(times):
        version = "v1.0.0" if promoted == "v1.1.0" else "v1.1.0"
        verb = "promote" if number < times // 2 else "rollback"
        history.append(
            Event(sequence=len(history) + 1, at=now.at, by="x", verb=verb, version=version, previous=promoted)
        )
        promoted = version
    content = json.loads(registry.model_dump_json(exclude_none=True))
    return json.dumps(
        {**content, "history": [json.loads(e.model_dump_json(exclude_none=True)) for e in history]}
    ).encode()


OTHER = {"verb": "register", "version": "v1.3.0", "digest": digest_of("other"), "profile": "realtime"}
ATTACKS = [
    Attack("list for the versions", _put("versions", value=[]), "versions: Input should be an object"),
    Attack("object for the history", _put("history", value={"0": {}}), "history: Input should be a valid"),
    Attack("number for a version", _put("promoted", value=1), "promoted: Input should be a valid string"),
    Attack("list for a digest", _put("history", 0, "digest", value=[]), "history.0.digest"),
    Attack("fraction of a percent", _put("split", "v1.2.0", value=10.5), "split.v1.2.0"),
    Attack("nothing for a version", _put("versions", "v1.0.0", value=None), "versions.v1.0.0: Input should be"),
    Attack("truth for a number", _put("history", 0, "sequence", value=True), "history.0.sequence"),
    Attack("handler of another kind", _put("handler", value="os:system('touch {marker}')"), "handler: Extra inputs"),
    Attack("sequence of 401 digits", _put("history", 0, "sequence", value=10**400), NOT_ONE),
    Attack("sequence of 5,000 digits", _spelled('"sequence": 1', f'"sequence": {"9" * 5000}'), NOT_ONE),
    Attack("sequence beyond a float", _spelled('"sequence": 1', '"sequence": 1e999999999'), "history.0.sequence"),
    Attack("negative sequence", _put("history", 0, "sequence", value=-1), "history.0.sequence"),
    Attack("share of 2 to the 70", _put("split", "v1.2.0", value=1 << 70), "split.v1.2.0"),
    Attack("deep list", _data(lambda: b"[" * 1_000_000), "recursion"),
    Attack("deep object", _data(lambda: b'{"versions":' * 200_000), "recursion"),
    Attack("deep value", _spelled('"by": ', '"note": ' + "[" * 100 + "]" * 100 + ', "by": '), "Extra inputs"),
    Attack("deep value of a known key", _put("promoted", value=[[[[]]]]), "promoted: Input should be a valid string"),
    Attack("promoted twice", _spelled('"promoted": "v1', '"promoted": "v1.0.0", "promoted": "v1'), "promoted: stands"),
    Attack("version twice", _spelled('  "v1.0.0": {', '  "v1.0.0": {},\n  "v1.0.0": {'), "versions.v1.0.0"),
    Attack(
        "200,000 keys twice",
        _data(lambda: b'{"format": 1, ' + b", ".join([b'"history": []'] * 200_000) + b"}"),
        "history: stands twice",
    ),
    Attack("200,000 versions", _data(lambda: _versions(200_000)), "versions.v0.0.0"),
    Attack("path in a version", _renamed("../../../etc/passwd"), "is not a version"),
    Attack("root in a version", _renamed("/etc/passwd"), "is not a version"),
    Attack("path behind a version", _renamed("v1.2.0/../v1.1.0"), "is not a version"),
    Attack("NUL in a version", _renamed("v1.2.0\0"), "is not a version"),
    Attack("line end behind a version", _renamed("v1.2.0\n"), "(?s:.*)is not a version"),
    Attack("digits of another script", _renamed("v1.\u0662.0"), "is not a version"),
    Attack("half a character", _spelled('"v1.2.0": {', '"v1.2.0\\ud800": {'), NOT_ONE),
    Attack("registered twice", _appended({**OTHER, "version": "v1.0.0"}), "registers v1.0.0 twice"),
    Attack("other content after retirement", _appended(OTHER), "registers v1.3.0 with other content than before"),
    Attack("retired while promoted", _appended({"verb": "retire", "version": "v1.1.0"}), "retires v1.1.0 while"),
    Attack("promoted unregistered", _appended({"verb": "promote", "version": "v9.0.0"}), "promote of v9.0.0, which"),
    Attack("other past", _appended({"verb": "promote", "version": "v1.0.0", "previous": "v1.2.0"}), "says that v1.2.0"),
    Attack("number twice", _appended({"sequence": 1}), "expected the sequence numbers"),
    Attack("too large", _data(lambda: b" " * (MAX_BYTES + 1)), "larger than 4 MiB"),
    Attack("one byte too large", _data(lambda: _filled(MAX_BYTES + 1)), "larger than 4 MiB"),
    Attack("long history", _data(lambda: _long(MAX_BYTES)), "retires v1.1.0 while it is promoted"),
    Attack("to and fro", _data(lambda: _promotions(10_000)), "promoted"),
    Attack("UTF-16", _data(lambda: Registry().model_dump_json().encode("utf-16")), "cannot be read"),
    Attack("zeros", _data(lambda: bytes(1 << 20)), "Invalid JSON"),
]
BOMBS = (
    *("deep list", "deep object", "200,000 keys twice", "200,000 versions", "too large"),
    *("long history", "to and fro", "zeros", "sequence of 5,000 digits"),
)


def _versions(count: int) -> bytes:
    return b'{"format": 1, "versions": {' + b", ".join(b'"v0.0.%d": 0' % n for n in range(count)) + b"}}"


def _filled(size: int) -> bytes:
    return Registry().model_dump_json().encode().ljust(size)
