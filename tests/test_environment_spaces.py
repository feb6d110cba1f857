"""What goes over the wire between an environment service and its users arrives with the same bits."""

from __future__ import annotations

import enum
import json
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from carla_policy_environment.arrays import array_from_json, array_to_json
from carla_policy_environment.infos import info_from_json, info_to_json
from carla_policy_environment.spaces import (
    InvalidValue,
    UnsupportedSpace,
    out_of_bounds,
    space_from_json,
    space_to_json,
    value_from_json,
    value_to_json,
)

BOX = spaces.Box(-np.inf, np.inf, (3,), np.float32)
SPACES = {
    "unbounded": BOX,
    "half bounded": spaces.Box(np.array([-np.inf, 0]), np.array([0, np.inf]), dtype=np.float64),
    "scalar": spaces.Box(-1, 1, (), np.float32),
    "empty": spaces.Box(-1, 1, (0, 3), np.float32),
    "image": spaces.Box(0, 255, (3, 12, 20), np.uint8),
    "many bounds": spaces.Box(-np.arange(1.0, 301), np.arange(1.0, 301), dtype=np.float64),
    "int64": spaces.Box(np.iinfo(np.int64).min, np.iinfo(np.int64).max, (2,), np.int64),
    "discrete": spaces.Discrete(4, start=-2),
    "multidiscrete": spaces.MultiDiscrete([[2, 3], [4, 5]], start=[[1, 2], [3, 4]]),
    "multibinary": spaces.MultiBinary(4),
    "multibinary of rows": spaces.MultiBinary([2, 2]),
    "text": spaces.Text(5, min_length=0, charset="abc"),
    "nested": spaces.Dict(
        [("z", spaces.Tuple([spaces.Discrete(2), BOX])), ("a", spaces.Dict({"image": spaces.Box(0, 255, (9, 50))}))]
    ),
}


def over_the_wire(content: Any) -> Any:
    return json.loads(json.dumps(content, allow_nan=False))


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_a_space_and_its_elements_arrive_as_they_were(space: spaces.Space[Any]) -> None:
    arrived = space_from_json(over_the_wire(space_to_json(space)))
    assert arrived == space
    if isinstance(space, spaces.Dict):
        assert isinstance(arrived, spaces.Dict)
        assert list(arrived) == list(space)
    space.seed(3)
    for _ in range(5):
        element = space.sample()
        received = value_from_json(arrived, over_the_wire(value_to_json(space, element)))
        assert repr(received) == repr(element)
        assert received in space
        assert not list(out_of_bounds(space, received))


def test_numbers_that_are_hard_to_write_keep_their_bits() -> None:
    hard = np.array([-0.0, np.nextafter(np.float32(0), np.float32(1)), np.finfo(np.float32).max], np.float32)
    listed = over_the_wire(value_to_json(BOX, hard))
    assert isinstance(listed, list)
    assert value_from_json(BOX, listed).tobytes() == hard.tobytes()
    assert value_from_json(BOX, array_to_json(hard)).tobytes() == hard.tobytes()


def test_arrays_of_other_byte_order_or_layout_arrive_as_the_same_numbers() -> None:
    for array in (np.arange(6, dtype=">f8").reshape(2, 3), np.arange(6.0).reshape(2, 3).T, np.float16(0.1)):
        array = np.asarray(array)
        arrived = array_from_json(over_the_wire(array_to_json(array)))
        assert (arrived == array).all()
        assert arrived.shape == array.shape
        assert arrived.dtype == array.dtype.newbyteorder("=")


def test_an_observation_of_another_dtype_is_not_cast() -> None:
    double = np.array([0.1, 0.2, 0.3])
    sent = over_the_wire(value_to_json(BOX, double))
    assert sent["dtype"] == "float64"
    assert value_from_json(BOX, sent, any_dtype=True).tobytes() == double.tobytes()
    with pytest.raises(InvalidValue, match="expected float32, got float64"):
        value_from_json(BOX, sent)


NESTED = spaces.Dict(controls=spaces.Box(-1, 1, (2, 2), np.float32), gear=spaces.Discrete(3))
REFUSED: list[tuple[spaces.Space[Any], Any, str]] = [
    (BOX, [1, 2], r"^a: expected shape \[3\], got \[2\]"),
    (BOX, [1, True, 2], r"^a\[1\]: expected a number, got True"),
    (BOX, [1, "2", 2], r"^a\[1\]: expected a number, got '2'"),
    (BOX, [1, None, 2], r"^a\[1\]: expected a number, got None"),
    (BOX, [1, float("nan"), 2], r"^a\[1\]: expected a finite number, got nan"),
    (BOX, [1, 2, 1e39], r"^a\[2\]: expected a finite number, got inf"),
    (BOX, [[1], 2, 3], r"^a: expected numbers of shape \[3\], got lists of unequal length"),
    (BOX, [], r"^a: expected shape \[3\], got \[0\]"),
    (BOX, None, "^a: expected a number, got None"),
    (BOX, {"x": 1}, "^a: expected a number"),
    (BOX, {"dtype": "object", "shape": [3], "data": ""}, "^a: dtype: expected one of"),
    (BOX, {"dtype": "float32", "shape": [3], "data": "AAAA"}, "^a: data: float32 of shape .* has 12 bytes, got 3"),
    (BOX, {"dtype": "float32", "shape": [-3], "data": ""}, "^a: shape: expected a list"),
    (BOX, {"dtype": [], "shape": [3], "data": ""}, "^a: dtype: expected one of"),
    (BOX, array_to_json(np.array([0, np.inf, 0], np.float32)), r"^a\[1\]: expected a finite number, got inf"),
    (spaces.Box(0, 9, (2,), np.int32), [1, 1.5], r"^a\[1\]: expected a whole number, got 1.5"),
    (spaces.Box(0, 9, (2,), np.uint8), [1, 256], r"^a\[1\]: does not fit into uint8"),
    (spaces.Discrete(3), 1.0, "^a: expected a whole number, got 1.0"),
    (spaces.Discrete(3), True, "^a: expected a whole number, got True"),
    (spaces.Discrete(3), 2**70, "^a: does not fit into int64"),
    (NESTED, {"gear": 1}, "^a: expected an object with controls, gear, got gear"),
    (NESTED, {"gear": 1, "controls": [[0, 0], [0, "x"]]}, r"^a\.controls\[1\]\[1\]: expected a number, got 'x'"),
    (spaces.Tuple([BOX, BOX]), [[0, 0, 0]], "^a: expected a list of 2 values"),
    (spaces.Text(3), 5, "^a: expected an element of Text"),
]


@pytest.mark.parametrize(("space", "content", "said"), REFUSED)
def test_what_is_no_element_is_refused_by_name(space: spaces.Space[Any], content: Any, said: str) -> None:
    with pytest.raises(InvalidValue, match=said):
        value_from_json(space, content, ("a",))


@pytest.mark.parametrize(
    ("space", "value", "said"),
    [
        (BOX, np.array([0, np.nan, 0], np.float32), r"^o\[1\]: expected a finite number, got nan"),
        (BOX, np.zeros(2, np.float32), r"^o: expected shape \[3\], got \[2\]"),
        (BOX, np.array(["a", "b", "c"]), "^o: expected float32, got <U1"),
        (spaces.Discrete(3), "1", "^o: expected a whole number, got '1'"),
        (NESTED, {"gear": 1, "controls": np.full((2, 2), np.inf)}, r"^o\.controls\[0\]\[0\]: expected a finite"),
    ],
)
def test_an_observation_that_no_policy_can_use_is_not_sent(space: spaces.Space[Any], value: Any, said: str) -> None:
    with pytest.raises(InvalidValue, match=said):
        value_to_json(space, value, ("o",))


def test_every_element_out_of_bounds_is_named() -> None:
    value = {"controls": np.array([[0, 1.5], [-2, 1]], np.float32), "gear": np.int64(3)}
    assert [str(found) for found in out_of_bounds(NESTED, value, ("a",))] == [
        "a.controls[0][1]: expected -1.0 to 1.0, got 1.5",
        "a.controls[1][0]: expected -1.0 to 1.0, got -2.0",
        "a.gear: expected 0 to 2, got 3",
    ]
    shifted = spaces.MultiDiscrete([2, 3], start=[5, 5])
    assert [found.loc for found in out_of_bounds(shifted, np.array([7, 4]))] == [(0,), (1,)]
    assert [found.loc for found in out_of_bounds(spaces.MultiBinary(2), np.array([1, 2], np.int8))] == [(1,)]
    assert [found.loc for found in out_of_bounds(spaces.Text(2), "abc", ("a",))] == [("a",)]


def test_a_space_without_a_form_is_named() -> None:
    with pytest.raises(UnsupportedSpace, match=r"^here: Graph cannot be sent; expected Box, "):
        space_to_json(spaces.Dict(here=spaces.Graph(BOX, None)))
    for content in ({}, {"type": "Box"}, {"type": "Nope"}, {"type": "Dict", "spaces": [1]}):
        with pytest.raises(ValueError, match="not the JSON form of a space"):
            space_from_json(content)


class Weather(str, enum.Enum):
    RAIN = "rain"


def test_an_info_arrives_with_its_bits_and_names_what_it_lost() -> None:
    loop: dict[str, Any] = {}
    loop["loop"] = loop
    info = {
        "crashed": np.bool_(True),
        "speed": np.float32(0.1),
        "lane": np.int64(-3),
        "weather": Weather.RAIN,
        "route": [(1, 2.5), None],
        "gap": float("nan"),
        "forces": np.array([[np.nan, -0.0]], np.float32),
        "nested": {"name": "ä\ud800", "lock": object(), 5: "five"},
        "actor": object(),
        "names": np.array(["a"]),
        "longest": np.longdouble(1) / 3,
        "when": np.datetime64("2020-01-01T00:00:00.000000001"),
        "loop": loop,
        "raw": b"\x00",
    }
    content, left_out = info_to_json(info)
    arrived = info_from_json(over_the_wire(content))
    assert left_out[:2] == ["nested.lock", "nested.5"]
    assert left_out[2:6] == ["actor", "names", "longest", "when"]
    assert left_out[6].startswith("loop.loop.loop")
    assert left_out[7:] == ["raw"]
    assert arrived["crashed"] is True
    assert (arrived["speed"], arrived["lane"], arrived["weather"]) == (float(np.float32(0.1)), -3, "rain")
    assert arrived["route"] == [[1, 2.5], None]
    assert np.isnan(arrived["gap"])
    assert arrived["forces"].dtype == np.float32
    assert arrived["forces"].tobytes() == info["forces"].tobytes()
    assert arrived["nested"] == {"name": "ä\ud800"}
