"""Open a pickled scikit-learn preprocessor without giving the pickle a say in what runs.

A pickle names the callables that rebuild its objects. Here only exact names pass: scikit-learn's transformers that
hold fitted arrays, and what numpy needs to rebuild an array. Everything else is refused before it is imported.

A name alone is not enough: numpy believes what a pickle says about its types, down to raw pointers, and a state may
replace a method. So the stream is read to its end before anything of it runs, and what it builds is checked as it is
built: only whole new arrays of plain numbers or names, only fitted attributes, and no more of them than the file
spells out. Python's own unpickler is used, because the one in C cannot be asked before it builds.
"""

from __future__ import annotations

import importlib
import io
import pickle
import pickletools
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from carla_policy.errors import ArtifactError
from carla_policy.files import read_file

MAX_BYTES = 64 << 20
MAX_PARTS = 50_000
"""Opcodes in a pickle, and objects in what it builds; a scaler has about 100 of them."""
MAX_DEPTH = 64
MAX_FEATURES = 1 << 16
"""What PolynomialFeatures may make of an observation: its state says how much it allocates."""

_PREPROCESSING = "sklearn.preprocessing._data"
_TRANSFORMERS = frozenset(
    {
        ("carla_policy.normalization", "ObservationNormalizer"),
        (_PREPROCESSING, "StandardScaler"),
        (_PREPROCESSING, "MinMaxScaler"),
        (_PREPROCESSING, "MaxAbsScaler"),
        (_PREPROCESSING, "RobustScaler"),
        (_PREPROCESSING, "Normalizer"),
        (_PREPROCESSING, "PowerTransformer"),
        (_PREPROCESSING, "QuantileTransformer"),
        ("sklearn.preprocessing._polynomial", "PolynomialFeatures"),
        # How a ColumnTransformer keeps "passthrough"; a function inside of it would have to pass this list as well.
        ("sklearn.preprocessing._function_transformer", "FunctionTransformer"),
        ("sklearn.decomposition._pca", "PCA"),
        ("sklearn.pipeline", "Pipeline"),
        ("sklearn.pipeline", "FeatureUnion"),
        ("sklearn.compose._column_transformer", "ColumnTransformer"),
    }
)


def _new_array(subtype: Any, shape: Any, typecode: Any) -> Any:
    """An array that its state will fill; numpy would allocate whatever shape a pickle asks for."""
    if subtype is not np.ndarray or (shape, typecode) != ((0,), b"b"):
        raise ArtifactError("it makes an array in a way that numpy does not")
    return np.ndarray((0,), "b")


def _dtype(spelling: Any, align: Any = False, copy: Any = True) -> Any:
    """A type of numbers or Python objects; its state will say the order of bytes. Never one with fields."""
    if type(spelling) is not str or align or np.dtype(spelling).kind not in "biufO":
        raise ArtifactError(f"it makes arrays of type {spelling!r:.80}; only of numbers and names it may")
    return np.dtype(spelling, False, copy)


def _scalar(dtype: Any, value: Any) -> Any:
    if type(value) is not bytes or dtype.kind == "O":
        raise ArtifactError("it makes a number of something else than bytes")
    return np.frombuffer(value, dtype, count=1)[0]


def _array_of_bytes(buffer: Any, dtype: Any, shape: Any, order: Any) -> Any:
    """Of bytes only: what shares the memory of another array could outlive it."""
    if type(buffer) not in (bytes, bytearray):
        raise ArtifactError(f"it makes an array of {_name(buffer)}; only of bytes it may")
    return np.frombuffer(buffer, dtype).reshape(shape, order=order)


_FUNCTIONS: dict[tuple[str, str], Any] = {
    ("builtins", "slice"): slice,
    ("numpy", "dtype"): _dtype,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _new_array for core in ("_core", "core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("_core", "core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _array_of_bytes for core in ("_core", "core")},
}
"""What stands in for numpy's own functions, by the names that its pickles use."""
ALLOWED = _TRANSFORMERS | _FUNCTIONS.keys() | {("numpy", "ndarray")}

_OPCODES = """
PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT SHORT_BINUNICODE BINUNICODE
SHORT_BINBYTES BINBYTES BINBYTES8 BYTEARRAY8 EMPTY_LIST APPEND APPENDS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3
EMPTY_DICT SETITEM SETITEMS MEMOIZE BINPUT LONG_BINPUT BINGET LONG_BINGET GLOBAL STACK_GLOBAL REDUCE NEWOBJ BUILD
"""
"""What Python's pickler writes for a transformer; others persist, extend, jump or undo."""


class _AllowListUnpickler(pickle._Unpickler):
    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)
    stack: list[Any]
    pop_mark: Callable[[], list[Any]]

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise ArtifactError(f"it refers to {module}.{name}, which no preprocessor may")
        return _FUNCTIONS.get((module, name)) or getattr(importlib.import_module(module), name)

    def _reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack[-1]
        if not any(function is known for known in _FUNCTIONS.values()):
            raise ArtifactError(f"it calls {_name(function)}, which no preprocessor may")
        self.stack[-1] = function(*arguments)

    def _new_object(self) -> None:
        arguments, cls = self.stack.pop(), self.stack[-1]
        if not _is_transformer(cls) or arguments != ():
            raise ArtifactError(f"it creates {_name(cls)} in a way that no transformer is pickled")
        self.stack[-1] = cls.__new__(cls)

    def _build(self) -> None:
        state, built = self.stack.pop(), self.stack[-1]
        if isinstance(built, np.dtype):
            _check_dtype_state(built, state)
        elif type(built) is np.ndarray:
            _check_array_state(built, state)
        elif _is_transformer(type(built)):
            _check_transformer_state(type(built), state)
        else:
            raise ArtifactError(f"it sets the state of {_name(built)}, which no preprocessor may")
        getattr(built, "__setstate__", getattr(built, "__dict__", {}).update)(state)

    def _set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._fill([key], [value])

    def _set_items(self) -> None:
        items = self.pop_mark()
        self._fill(items[::2], items[1::2])

    def _fill(self, keys: list[Any], values: list[Any]) -> None:
        if type(self.stack[-1]) is not dict or not all(isinstance(key, str | int) for key in keys):
            raise ArtifactError("it fills something else than a dictionary of names, which no preprocessor may")
        self.stack[-1].update(zip(keys, values, strict=True))

    dispatch[pickle.REDUCE[0]] = _reduce
    dispatch[pickle.NEWOBJ[0]] = _new_object
    dispatch[pickle.BUILD[0]] = _build
    dispatch[pickle.SETITEM[0]] = _set_item
    dispatch[pickle.SETITEMS[0]] = _set_items


def load_preprocessor_pickle(path: Path) -> Any:
    """The transformer in `path`; `ArtifactError` names the file and what it may not contain."""
    data = read_file(path, MAX_BYTES)
    try:
        _check_stream(data)
        with warnings.catch_warnings():
            # Of another scikit-learn, as for an older Python. Whether it still transforms alike, golden vectors tell.
            warnings.filterwarnings("ignore", "Trying to unpickle estimator", UserWarning)
            transformer = _AllowListUnpickler(io.BytesIO(data)).load()
        _check_size(transformer)
    except ArtifactError as error:
        raise ArtifactError(f"{path.name}: {error}; only fitted scikit-learn transformers are accepted") from None
    except Exception as error:  # a broken stream may raise whatever its opcodes run into
        raise ArtifactError(f"{path.name}: not a readable pickle: {type(error).__name__}: {error}") from None
    if not callable(getattr(transformer, "transform", None)):
        raise ArtifactError(f"{path.name}: expected a transformer, got {_name(transformer)}")
    return transformer


def _check_stream(data: bytes) -> None:
    """One whole pickle and nothing behind it, of known opcodes, with every length inside of the file."""
    known, end = frozenset(_OPCODES.split()), 0
    for count, (opcode, _, position) in enumerate(pickletools.genops(data)):
        end = (position or 0) + 1
        if opcode.name not in known:
            raise ArtifactError(f"it has the opcode {opcode.name} at byte {position}, which no preprocessor needs")
        if count >= MAX_PARTS:
            raise ArtifactError(f"it has more than {MAX_PARTS} opcodes")
    if end != len(data):
        raise ArtifactError("there is data behind the pickled object")


def _check_dtype_state(dtype: np.dtype[Any], state: Any) -> None:
    """Exactly what numpy gives a type in this order of bytes: others make pointers of numbers."""
    order = state[1] if type(state) is tuple and len(state) > 1 else None
    if order not in ("<", ">", "|") or state != dtype.newbyteorder(order).__reduce__()[2]:
        raise ArtifactError(f"it gives the type {dtype} another meaning")


def _check_array_state(array: Any, state: Any) -> None:
    """An array is filled once: a second time would free memory that something may still use."""
    if array.shape != (0,) or array.dtype != np.int8 or type(state) is not tuple:
        raise ArtifactError("it changes an array")


def _check_transformer_state(cls: type, state: Any) -> None:
    """Parameters and fitted attributes only: nothing that stands in for a method, and nothing to call."""
    if type(state) is not dict or not all(type(key) is str for key in state):
        raise ArtifactError(f"it gives {cls.__name__} a state that is no dictionary of attributes")
    for key, value in state.items():
        if hasattr(cls, key) or callable(value):
            raise ArtifactError(f"it sets {cls.__name__}.{key} to {_name(value)}: a transformer's code may not change")
        if key == "n_jobs" and value not in (None, 1):
            raise ArtifactError(f"{cls.__name__}.n_jobs is {value!r:.20}: a worker has one process; set it to None")
        if cls.__name__ == "PolynomialFeatures" and isinstance(value, int) and value > MAX_FEATURES:
            raise ArtifactError(f"{cls.__name__}.{key} is {value!r:.20}, but {MAX_FEATURES} is the most")


def _check_size(transformer: Any) -> None:
    """No more than the file spells out: what refers to itself, or to a part again and again, grows when it is used."""
    pending, parts = [(transformer, 0)], 0
    while pending:
        value, depth = pending.pop()
        parts += 1
        if parts > MAX_PARTS or depth > MAX_DEPTH:
            raise ArtifactError(f"it has more than {MAX_PARTS} parts, or is nested deeper than {MAX_DEPTH}")
        pending += [(part, depth + 1) for part in _parts(value)]


def _parts(value: Any) -> Iterable[Any]:
    if isinstance(value, list | tuple):
        return value
    if isinstance(value, dict):
        return value.values()
    if isinstance(value, np.ndarray):
        return value.flat if value.dtype.hasobject else ()
    return vars(value).values() if _is_transformer(type(value)) else ()


def _is_transformer(cls: Any) -> bool:
    return isinstance(cls, type) and (cls.__module__, cls.__name__) in _TRANSFORMERS


def _name(value: Any) -> str:
    named = value if isinstance(value, type) or hasattr(value, "__qualname__") else type(value)
    return str(named.__qualname__)
