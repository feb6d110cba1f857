"""What a vehicle senses, and how it goes over the wire: `{"speed": m/s, "steering": -1..1, "sensors": [...]}`.

How many sensors there are, in which order and unit, says the metadata of the version that drives.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any, Mapping, Sequence, Union

_FIELDS = {"speed", "steering", "sensors"}
_NO_NUMBERS = (str, bytes, bytearray, bool)


@dataclass(frozen=True)
class Observation:
    """One observation of finite numbers; `TypeError` or `ValueError` names the field that is none."""

    speed: float
    steering: float
    sensors: Sequence[float]

    def __post_init__(self) -> None:
        object.__setattr__(self, "speed", finite("speed", self.speed))
        object.__setattr__(self, "steering", finite("steering", self.steering))
        object.__setattr__(self, "sensors", tuple(_finite_all(_listed(self.sensors))))


AnyObservation = Union[Observation, Mapping[str, Any], Sequence[float]]
"""An `Observation`, a mapping with its three keys, or `[speed, steering, *sensors]`, also as an array of numpy's."""


def finite(name: str, value: Any) -> float:
    """`value` as a finite float; numpy's numbers are numbers too."""
    if type(value) is not float:
        if isinstance(value, _NO_NUMBERS):
            raise TypeError(f"{name}: expected a number, got {value!r:.40}")
        try:
            value = float(value)
        except (TypeError, ValueError, OverflowError):
            raise TypeError(f"{name}: expected a number, got {value!r:.40}") from None
    if not math.isfinite(value):
        raise ValueError(f"{name}: expected a finite number, got {value!r}")
    result: float = value
    return result


def document(observation: Any) -> dict[str, Any]:
    """`observation` as JSON's encoder takes it; `TypeError` or `ValueError` says what is wrong with it."""
    if isinstance(observation, Observation):
        return {"speed": observation.speed, "steering": observation.steering, "sensors": observation.sensors}
    if isinstance(observation, Mapping):
        if set(observation) != _FIELDS:
            got = sorted(map(str, observation))
            raise ValueError(f"observation: expected speed, steering and sensors, got {got!r:.80}")
        speed, steering, sensors = observation["speed"], observation["steering"], _listed(observation["sensors"])
    else:
        values = _listed(observation)
        if len(values) < 2:
            raise ValueError(f"observation: expected [speed, steering, *sensors], got {len(values)} values")
        speed, steering, sensors = values[0], values[1], values[2:]
    return {
        "speed": finite("speed", speed),
        "steering": finite("steering", steering),
        "sensors": _finite_all(sensors),
    }


def body(documents: Sequence[dict[str, Any]], options: Mapping[str, Any]) -> bytes:
    """The body of a prediction."""
    return json.dumps({"observations": documents, **options}, allow_nan=False, separators=(",", ":")).encode("ascii")


def _finite_all(sensors: list[Any]) -> list[float]:
    return [
        value if type(value) is float and math.isfinite(value) else finite(f"sensors[{index}]", value)
        for index, value in enumerate(sensors)
    ]


def _listed(values: Any) -> list[Any]:
    if isinstance(values, (str, bytes, bytearray, Mapping)):
        raise TypeError(f"observation: expected numbers, got {values!r:.40}")
    to_list = getattr(values, "tolist", None)  # numpy's own is many times quicker than float() of each element
    listed = to_list() if to_list is not None else list(values)
    if not isinstance(listed, list):
        raise TypeError(f"observation: expected a sequence of numbers, got {values!r:.40}")
    return listed
