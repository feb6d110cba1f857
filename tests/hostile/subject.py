"""Valid requests to one version, and the same with any bytes spliced in at any place."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from carla_policy.card import ModelCard
from carla_policy.golden import FloatArray
from carla_policy_tools.client import request_body


@dataclass(frozen=True)
class Raw:
    """Bytes that go into a document as they are, as a value or as a key with its quotes."""

    content: bytes


def written(value: Any) -> bytes:
    """`value` as JSON, with every `Raw` in it as it is."""
    if isinstance(value, Raw):
        return value.content
    if isinstance(value, dict):
        return b"{" + b", ".join(written(key) + b": " + written(item) for key, item in value.items()) + b"}"
    if isinstance(value, list):
        return b"[" + b", ".join(map(written, value)) + b"]"
    return json.dumps(value).encode()


def nested(depth: int, *, opening: bytes = b"[", closing: bytes = b"]") -> bytes:
    """A document of `depth` containers inside each other."""
    return opening * depth + closing * depth


@dataclass(frozen=True)
class Subject:
    """Whom a request is for: the version's card, and `rows` `[n, 2 + sensors]` that it answers."""

    card: ModelCard
    rows: FloatArray

    @property
    def sensors(self) -> int:
        return self.card.observation.sensors

    def good(self, row: int = 0, rows: int = 1) -> bytes:
        """A valid request for `rows` observations from number `row` on."""
        start = row % (len(self.rows) - rows)
        return json.dumps(request_body(self.rows[start : start + rows])).encode()

    def observation(self, **changes: Any) -> dict[Any, Any]:
        """A valid observation but for `changes`."""
        (observation,) = request_body(self.rows[:1])["observations"]
        return {**observation, **changes}

    def request(self, extra: dict[Any, Any] | None = None, **changes: Any) -> bytes:
        """A request for one observation but for `changes` of its keys and `extra` ones, which may be `Raw`."""
        return written({"observations": [self.observation()], **changes, **(extra or {})})

    def observing(self, extra: dict[Any, Any] | None = None, **changes: Any) -> bytes:
        """A request for one observation whose keys are changed."""
        return self.request(observations=[{**self.observation(**changes), **(extra or {})}])

    def without(self, key: str) -> bytes:
        """A request for one observation that lacks `key`."""
        return self.request(observations=[{k: v for k, v in self.observation().items() if k != key}])

    def speed(self, value: bytes) -> bytes:
        return self.observing(speed=Raw(value))

    def sensor(self, value: bytes, place: int = 2) -> bytes:
        """A request in which the sensor at `place` is `value`."""
        sensors = list(self.observation()["sensors"])
        return self.observing(sensors=[*sensors[:place], Raw(value), *sensors[place + 1 :]])

    def anywhere(self, value: bytes) -> dict[str, bytes]:
        """`value` at several places of an otherwise valid request, by the name of the place."""
        return {
            "speed": self.speed(value),
            "sensor": self.sensor(value),
            "seed": self.request(seed=Raw(value)),
            "deterministic": self.request(deterministic=Raw(value)),
            "state": self.request(state=Raw(value)),
            "extra": self.request(extra={"extra": Raw(value)}),
            "nested extra": self.observing(extra={"extra": [Raw(value)]}),
            "observation": self.request(observations=[Raw(value)]),
            "observations": self.request(observations=Raw(value)),
        }
