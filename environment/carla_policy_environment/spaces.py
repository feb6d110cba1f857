"""Gymnasium's spaces and their elements as JSON, with the same bits on both sides.

Numeric arrays of up to 256 elements are nested lists of numbers, which read back as they were; larger ones and images
have the explicit form of `arrays`, and so has an array whose dtype is not its space's. Both forms are accepted
everywhere. Elements of `Dict` are objects, those of `Tuple` lists. NaN and infinity are refused in either form: a
policy that gets one does not drive.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from carla_policy_environment.arrays import array_from_json, array_to_json, is_explicit

MAX_LISTED = 256
"""Elements that an array may have to be sent as nested lists."""

Space: TypeAlias = "spaces.Space[Any]"
Location: TypeAlias = tuple[str | int, ...]
ARRAY_SPACES = (spaces.Box, spaces.MultiDiscrete, spaces.MultiBinary)


class InvalidValue(ValueError):
    """A value, or the part of it at `loc`, cannot be an element of its space; `problem` says why."""

    def __init__(self, loc: Location, problem: str) -> None:
        self.loc, self.problem = loc, problem
        super().__init__(f"{location_text(loc)}: {problem}" if loc else problem)


class UnsupportedSpace(ValueError):
    """A space of a kind that has no JSON form here."""


def location_text(loc: Location) -> str:
    """`("action", "brake", 0)` as `action.brake[0]`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)
    return text.removeprefix(".")


def space_to_json(space: Space, loc: Location = ()) -> dict[str, Any]:
    """`space` as an object whose `type` is the name of its class; `UnsupportedSpace` names a part that has no form."""
    kind: dict[str, Any] = {"type": type(space).__name__}
    if isinstance(space, spaces.Box):
        bounds = {"low": _bound_to_json(space.low), "high": _bound_to_json(space.high)}
        return kind | {"dtype": space.dtype.name, "shape": list(space.shape)} | bounds
    if isinstance(space, spaces.Discrete):
        return kind | {"n": int(space.n), "start": int(space.start), "dtype": np.dtype(space.dtype).name}
    if isinstance(space, spaces.MultiDiscrete):
        counts = {"nvec": space.nvec.tolist(), "start": space.start.tolist()}
        return kind | counts | {"dtype": np.dtype(space.dtype).name}
    if isinstance(space, spaces.MultiBinary):
        return kind | {"n": list(space.shape) if isinstance(space.n, Sequence) else int(space.n)}
    if isinstance(space, spaces.Text):
        return kind | {"min_length": space.min_length, "max_length": space.max_length, "characters": space.characters}
    if isinstance(space, spaces.Dict):
        if not all(isinstance(key, str) for key in space.spaces):
            raise UnsupportedSpace(f"{location_text(loc) or 'space'}: keys of a Dict have to be text")
        return kind | {"spaces": {key: space_to_json(part, (*loc, key)) for key, part in space.spaces.items()}}
    if isinstance(space, spaces.Tuple):
        return kind | {"spaces": [space_to_json(part, (*loc, index)) for index, part in enumerate(space.spaces)]}
    raise UnsupportedSpace(
        f"{location_text(loc) or 'space'}: {type(space).__name__} cannot be sent; expected Box, Discrete, "
        "MultiDiscrete, MultiBinary, Text, or Dict and Tuple of these"
    )


def space_from_json(content: Mapping[str, Any]) -> Space:
    """The space that `space_to_json` made `content` of; `ValueError` if it made no such thing."""
    try:
        kind = content["type"]
        if kind == "Box":
            shape, dtype = tuple(content["shape"]), np.dtype(content["dtype"])
            low, high = (_bound_from_json(content[end], shape, dtype) for end in ("low", "high"))
            return spaces.Box(low, high, shape=shape, dtype=dtype.type)
        if kind == "Discrete":
            dtype = np.dtype(content["dtype"])
            other = {} if dtype == np.int64 else {"dtype": dtype.type}  # Gymnasium before 1.3 knows int64 alone
            return spaces.Discrete(content["n"], start=content["start"], **other)
        if kind == "MultiDiscrete":
            dtype = np.dtype(content["dtype"])
            nvec, start = (np.array(content[name], dtype) for name in ("nvec", "start"))
            return spaces.MultiDiscrete(nvec, dtype=dtype.type, start=start)
        if kind == "MultiBinary":
            return spaces.MultiBinary(content["n"])
        if kind == "Text":
            return spaces.Text(content["max_length"], min_length=content["min_length"], charset=content["characters"])
        if kind == "Dict":
            return spaces.Dict(OrderedDict((key, space_from_json(part)) for key, part in content["spaces"].items()))
        if kind == "Tuple":
            return spaces.Tuple([space_from_json(part) for part in content["spaces"]])
    except (KeyError, TypeError, AttributeError, AssertionError) as error:
        raise ValueError(f"not the JSON form of a space: {type(error).__name__}: {error}") from error
    raise ValueError(f"not the JSON form of a space: type {kind!r}")


def value_to_json(space: Space, value: Any, loc: Location = ()) -> Any:
    """`value` of `space` as JSON; `InvalidValue` names the first element that is not finite or not of the space's kind.

    The bounds are not looked at: `out_of_bounds` does.
    """
    if isinstance(space, ARRAY_SPACES):
        array = np.asarray(value)
        _check_array(array, space, loc, any_dtype=True)
        listed = 0 < array.size <= MAX_LISTED and array.dtype == space.dtype
        return array.tolist() if listed else array_to_json(array)
    if isinstance(space, spaces.Discrete):
        if isinstance(value, np.ndarray | np.integer) and value.ndim == 0 and value.dtype.kind in "iu":
            return int(value)
        return _whole_number(value, loc)
    return _parts(space, value, loc, value_to_json)


def value_from_json(space: Space, content: Any, loc: Location = (), *, any_dtype: bool = False) -> Any:
    """The element of `space` that `content` stands for; `InvalidValue` says where it is none.

    Numbers in lists get the space's dtype. An array in the explicit form has to be of it, unless `any_dtype`: then it
    stays as it is. The bounds are not looked at: `out_of_bounds` does.
    """
    if isinstance(space, ARRAY_SPACES):
        return _array_from_json(space, content, loc, any_dtype=any_dtype)
    if isinstance(space, spaces.Discrete):
        number, dtype = _whole_number(content, loc), np.dtype(space.dtype)
        _check_fits(np.array(number), dtype, loc)
        return dtype.type(number)
    return _parts(space, content, loc, lambda *part: value_from_json(*part, any_dtype=any_dtype))


def out_of_bounds(space: Space, value: Any, loc: Location = ()) -> Iterator[InvalidValue]:
    """Each element of `value`, which has the right shape, that lies outside of `space`."""
    if isinstance(space, spaces.Box):
        for index in np.argwhere(~((value >= space.low) & (value <= space.high))):
            at = tuple(int(part) for part in index)
            bounds = f"{space.low[at].item()} to {space.high[at].item()}"
            yield InvalidValue((*loc, *at), f"expected {bounds}, got {value[at].item()}")
    elif isinstance(space, spaces.MultiDiscrete | spaces.MultiBinary):
        low: Any = space.start if isinstance(space, spaces.MultiDiscrete) else np.zeros(space.shape, np.int64)
        high: Any = low + (space.nvec if isinstance(space, spaces.MultiDiscrete) else 2) - 1
        for index in np.argwhere((value < low) | (value > high)):
            at = tuple(int(part) for part in index)
            yield InvalidValue((*loc, *at), f"expected {low[at].item()} to {high[at].item()}, got {value[at].item()}")
    elif isinstance(space, spaces.Discrete):
        smallest, largest = int(space.start), int(space.start + space.n) - 1
        if not smallest <= int(value) <= largest:
            yield InvalidValue(loc, f"expected {smallest} to {largest}, got {int(value)}")
    elif isinstance(space, spaces.Dict):
        for key, part in space.spaces.items():
            yield from out_of_bounds(part, value[key], (*loc, key))
    elif isinstance(space, spaces.Tuple):
        for position, part in enumerate(space.spaces):
            yield from out_of_bounds(part, value[position], (*loc, position))
    elif not space.contains(value):
        yield InvalidValue(loc, f"{value!r} is not in {space}")


def _parts(space: Space, value: Any, loc: Location, convert: Any) -> Any:
    if isinstance(space, spaces.Dict):
        if not isinstance(value, Mapping) or value.keys() != space.spaces.keys():
            got = ", ".join(map(str, value)) if isinstance(value, Mapping) else type(value).__name__
            raise InvalidValue(loc, f"expected an object with {', '.join(space.spaces)}, got {got or 'none of them'}")
        return {key: convert(part, value[key], (*loc, key)) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        if not isinstance(value, Sequence) or isinstance(value, str | bytes) or len(value) != len(space.spaces):
            raise InvalidValue(loc, f"expected a list of {len(space.spaces)} values, got {_short(value)}")
        parts = (convert(part, value[index], (*loc, index)) for index, part in enumerate(space.spaces))
        return tuple(parts)
    if isinstance(space, spaces.Text) and isinstance(value, str):
        return str(value)
    raise InvalidValue(loc, f"expected an element of {space}, got {_short(value)}")


def _array_from_json(space: Space, content: Any, loc: Location, *, any_dtype: bool) -> NDArray[Any]:
    if is_explicit(content):
        try:
            array = array_from_json(content)
        except ValueError as error:
            raise InvalidValue(loc, str(error)) from None
        _check_array(array, space, loc, any_dtype=any_dtype)
        return array
    dtype = np.dtype(space.dtype)
    try:
        array = np.array(content)
    except ValueError:
        raise InvalidValue(
            loc, f"expected numbers of shape {list(space.shape or ())}, got lists of unequal length"
        ) from None
    kinds = {"f": "fiu", "i": "iu", "u": "iu", "b": "b"}[dtype.kind]
    if array.size and array.size <= MAX_LISTED:
        _check_elements(content, loc, kinds)
    if array.size and array.dtype.kind not in kinds:
        raise InvalidValue(loc, f"expected numbers of {dtype}, got {_short(content)}")
    _check_shape(array, space, loc)
    if dtype.kind in "iu":
        _check_fits(array, dtype, loc)
    with np.errstate(over="ignore"):
        converted = array.astype(dtype)
    _check_finite(converted, loc)
    return converted


def _check_elements(content: Any, loc: Location, kinds: str) -> None:
    if isinstance(content, list):
        for index, part in enumerate(content):
            _check_elements(part, (*loc, index), kinds)
    elif "b" in kinds:
        if not isinstance(content, bool):
            raise InvalidValue(loc, f"expected true or false, got {_short(content)}")
    elif isinstance(content, bool) or not isinstance(content, (int, float) if "f" in kinds else int):
        raise InvalidValue(loc, f"expected a {'number' if 'f' in kinds else 'whole number'}, got {_short(content)}")


def _check_array(array: NDArray[Any], space: Space, loc: Location, *, any_dtype: bool) -> None:
    if array.dtype != space.dtype and not any_dtype:
        raise InvalidValue(loc, f"expected {space.dtype}, got {array.dtype}")
    _check_shape(array, space, loc)
    try:
        _check_finite(array, loc)
    except TypeError:
        raise InvalidValue(loc, f"expected {space.dtype}, got {array.dtype}") from None


def _check_shape(array: NDArray[Any], space: Space, loc: Location) -> None:
    if array.shape != space.shape:
        raise InvalidValue(loc, f"expected shape {list(space.shape or ())}, got {list(array.shape)}")


def _check_fits(array: NDArray[Any], dtype: np.dtype[Any], loc: Location) -> None:
    limits = np.iinfo(dtype)
    for index in np.argwhere((array < limits.min) | (array > limits.max)):
        raise InvalidValue((*loc, *map(int, index)), f"does not fit into {dtype}")


def _check_finite(array: NDArray[Any], loc: Location) -> None:
    finite = np.isfinite(array)
    if not finite.all():
        index = tuple(int(part) for part in np.argwhere(~finite)[0])
        raise InvalidValue((*loc, *index), f"expected a finite number, got {array[index].item()}")


def _whole_number(value: Any, loc: Location) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidValue(loc, f"expected a whole number, got {_short(value)}")
    return value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


def _bound_to_json(bound: NDArray[Any]) -> Any:
    """One number if all are equal, else nested lists, with infinity as text; the explicit form if there are many."""
    if bound.size and (bound == bound.flat[0]).all():
        return _number_to_json(bound.flat[0])
    if not 0 < bound.size <= MAX_LISTED:
        return array_to_json(bound)
    numbers = np.array([_number_to_json(number) for number in bound.flat], object)
    return numbers.reshape(bound.shape).tolist()


def _number_to_json(number: Any) -> int | float | str:
    return number.item() if np.isfinite(number) else str(number.item())


def _bound_from_json(content: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    if is_explicit(content):
        return array_from_json(content)
    return np.broadcast_to(np.array(content, object).astype(dtype), shape).copy()
