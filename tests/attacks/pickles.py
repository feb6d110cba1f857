"""Pickles that run code, corrupt memory, replace methods or grow."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import sklearn
from sklearn.preprocessing import FunctionTransformer, PolynomialFeatures, StandardScaler

from carla_policy.safe_pickle import MAX_BYTES
from tests.attacks import Attack

FILE = "preprocessor.pkl"
SCALER = b"csklearn.preprocessing._data\nStandardScaler\n"
NORMALIZER = b"ccarla_policy.normalization\nObservationNormalizer\n"


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def called(name: str, *arguments: bytes, stacked: bool = False) -> bytes:
    """The opcodes that call `module:name` with arguments."""
    module, _, attribute = name.partition(":")
    function = text(module) + text(attribute) + b"\x93" if stacked else f"c{module}\n{attribute}\n".encode()
    return function + b"(" + b"".join(arguments) + b"tR"


def pickled(opcodes: bytes) -> bytes:
    return b"\x80\x04" + opcodes + b"."


def built(cls: bytes, state: bytes) -> bytes:
    return pickled(cls + b")\x81" + state + b"b")


def state(**values: bytes) -> bytes:
    named = {"_sklearn_version": text(sklearn.__version__), **values}
    return b"}(" + b"".join(text(key) + value for key, value in named.items()) + b"u"


def doubled(times: int) -> bytes:
    """A pair of a pair of a pair of ..., each of one thing twice, which grows to 2 to the power of `times`."""
    return b")\x94" + b"".join(b"h" + bytes([level]) + b"\x86\x94" for level in range(times))


def pointers() -> bytes:
    """A type whose flags deny that it holds Python objects, and an array of it made of bytes."""
    dtype = called("numpy:dtype", text("V8"), b"\x89", b"\x88")
    fields = b"}" + text("a") + called("numpy:dtype", text("O"), b"\x89", b"\x88") + b"K\x00\x86s"
    dtype += b"(K\x03" + text("|") + b"N" + text("a") + b"\x85" + fields + b"K\x08K\x01K\x00tb"
    array = called("numpy._core.multiarray:_reconstruct", b"cnumpy\nndarray\n", b"K\x00\x85", b"C\x01b")
    array += b"(K\x01K\x01\x85" + dtype + b"\x89C\x08AAAAAAAAtb"
    return built(SCALER, state(mean_=array))


def scalar(spelling: str, value: bytes) -> bytes:
    """A number of type `spelling` made of `value`."""
    dtype = called("numpy:dtype", text(spelling), b"\x89", b"\x88")
    return pickled(called("numpy._core.multiarray:scalar", dtype, value))


def refilled() -> bytes:
    """An array that is filled a second time, while another may still look at its memory."""
    dtype = called("numpy:dtype", text("f8"), b"\x89", b"\x88")
    array = called("numpy._core.multiarray:_reconstruct", b"cnumpy\nndarray\n", b"K\x00\x85", b"C\x01b")
    filling = b"(K\x01K\x01\x85" + dtype + b"\x89C\x08AAAAAAAAtb"
    return built(SCALER, state(mean_=array + filling + filling))


def shipped(change: Callable[[Any], None], transformer: Any = None) -> Callable[[Path], bytes]:
    """A fitted transformer of as many columns as the artifact has, after `change`."""

    def make(_: Path) -> bytes:
        fitted = (transformer or StandardScaler()).fit(np.random.default_rng(0).normal(size=(9, 30)))
        change(fitted)
        return pickle.dumps(fitted)

    return make


def grown(polynomial: Any) -> None:
    polynomial._n_out_full = 10**10


def _calls(marker: Path) -> dict[str, bytes]:
    shell, code = text(f"touch {marker}"), text(f"open({str(marker)!r}, 'w')")
    method = called("operator:methodcaller", text("touch"))
    nested = called("functools:partial", b"cos\nsystem\n", shell)
    return {
        "os.system": called("os:system", shell),
        "posix.system": called("posix:system", shell),
        "nt.system": called("nt:system", shell),
        "subprocess.Popen": called("subprocess:Popen", shell, number(-1)),
        "builtins.eval": called("builtins:eval", code),
        "builtins.exec": called("builtins:exec", code),
        "__builtin__.eval": called("__builtin__:eval", code),
        "builtins.getattr": called("builtins:getattr", b"cos\npath\n", text("os")),
        "builtins.__import__": called("builtins:__import__", text("os")),
        "operator.methodcaller": method,
        "operator.attrgetter": called("operator:attrgetter", text("system")),
        "functools.partial": nested,
        "pydoc.locate": called("pydoc:locate", text("os.system")),
        "pkgutil.resolve_name": called("pkgutil:resolve_name", text("os:system")),
        "idlelib.run.Executive.runcode": called("idlelib.run:Executive.runcode", b"N", code),
        "torch.jit.unsupported_tensor_ops.execWrapper": called(
            "torch.jit.unsupported_tensor_ops:execWrapper", code, b"}", b"}"
        ),
        "torch.load": called("torch:load", text("elsewhere.pt")),
        "numpy.f2py.crackfortran.myeval": called("numpy.f2py.crackfortran:myeval", code),
        "numpy.testing._private.utils.runstring": called("numpy.testing._private.utils:runstring", code, b"}"),
        "numpy.load": called("numpy:load", text("elsewhere.npy")),
        "joblib.load": called("joblib:load", text("elsewhere.joblib")),
        "sklearn.preprocessing._data.np.load": called("sklearn.preprocessing._data:np.load", shell, stacked=True),
        "numpy.dtype.__class__": called("numpy:dtype.__class__", text("x"), stacked=True),
        "copyreg._reconstructor": called("copyreg:_reconstructor", SCALER, b"cbuiltins\nobject\n", b"N"),
        "copyreg.add_extension": called("copyreg:add_extension", text("os"), text("system"), b"K\x01"),
        "shutil.rmtree": called("shutil:rmtree", text(str(marker))),
    }


def _instance_opcodes(marker: Path) -> bytes:
    return pickled(b"(" + text(f"touch {marker}") + b"ios\nsystem\n")


def _spelled(make: Callable[[Path], bytes]) -> Callable[[Path, Path], None]:
    return lambda directory, marker: _write(directory, make(marker))


def _write(directory: Path, data: bytes) -> None:
    (directory / FILE).write_bytes(data)


def _behind(directory: Path, marker: Path) -> None:
    _write(directory, (directory / FILE).read_bytes() + pickled(_calls(marker)["os.system"]))


def _behind_in_frame(directory: Path, marker: Path) -> None:
    content = (directory / FILE).read_bytes()[11:] + pickled(_calls(marker)["os.system"])
    _write(directory, b"\x80\x04\x95" + struct.pack("<Q", len(content)) + content)


def _large(directory: Path, _: Path) -> None:
    with (directory / FILE).open("ab") as file:
        file.truncate(MAX_BYTES + 1)


def _call_of(name: str) -> Callable[[Path], bytes]:
    return lambda marker: pickled(_calls(marker)[name])


def _broken(marker: Path) -> bytes:
    return b"\x80\x04" + _calls(marker)["os.system"] + b"\x95"


_STATES: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "payload before a broken stream": (_broken, "not a readable pickle"),
    "INST": (_instance_opcodes, "opcode INST"),
    "OBJ": (lambda marker: pickled(b"(cos\nsystem\n" + text(f"touch {marker}") + b"o"), "opcode OBJ"),
    "EXT1": (lambda _: pickled(b"\x82\x01"), "opcode EXT1"),
    "EXT4": (lambda _: pickled(b"\x84\x01\x00\x00\x00"), "opcode EXT4"),
    "PERSID": (lambda _: pickled(b"Pos.system\n"), "opcode PERSID"),
    "BINPERSID": (lambda _: pickled(b"K\x01Q"), "opcode BINPERSID"),
    "function": (shipped(lambda t: setattr(t, "func", np.ndarray), FunctionTransformer()), "FunctionTransformer.func"),
    "func of another name": (shipped(lambda t: setattr(t, "func", eval), FunctionTransformer()), "builtins.eval"),
    "method": (shipped(lambda t: setattr(t, "transform", "x")), "StandardScaler.transform"),
    "class as attribute": (shipped(lambda t: setattr(t, "mean_", StandardScaler)), "StandardScaler.mean_"),
    "processes": (shipped(lambda t: setattr(t, "n_jobs", 64)), "n_jobs is 64"),
    "slots of a class": (lambda _: pickled(NORMALIZER + b"N" + state(transform=b"N") + b"\x86b"), "sets the state of"),
    "attributes of a function": (
        lambda _: pickled(b"cnumpy._core.numeric\n_frombuffer\n" + state(__doc__=text("x")) + b"b"),
        "sets the state of",
    ),
    "state of another kind": (lambda _: built(SCALER, b"N" + state(mean_=b"N") + b"\x86"), "no dictionary"),
    "call of a class": (lambda _: pickled(SCALER + b")R"), "it calls StandardScaler"),
    "object with arguments": (lambda _: pickled(SCALER + b"N\x85\x81"), "it creates StandardScaler"),
    "object of another class": (lambda _: pickled(b"cnumpy\nndarray\n)\x81"), "it creates ndarray"),
    "state of names": (lambda _: built(SCALER, text("mean_") + b"\x85"), "no dictionary"),
    "state by numbers": (lambda _: built(SCALER, b"}K\x01Ns"), "no dictionary"),
    "list filled by name": (lambda _: pickled(b"]" + text("a") + b"Ns"), "a dictionary of names"),
    "number of a text": (lambda _: scalar("f8", text("8 bytes!")), "something else than bytes"),
    "object of bytes": (lambda _: scalar("O", b"C\x08AAAAAAAA"), "something else than bytes"),
    "bytes as pointers": (lambda _: pointers(), "type 'V8'"),
    "flags of a type": (
        lambda _: pickled(
            called("numpy:dtype", text("O"), b"\x89", b"\x88")
            + b"(K\x03"
            + text("|")
            + b"NNN"
            + number(-1) * 2
            + b"K\x00tb"
        ),
        "gives the type object another meaning",
    ),
    "array filled twice": (lambda _: refilled(), "it changes an array"),
    "array of an array": (
        lambda _: pickled(
            called("numpy._core.numeric:_frombuffer", b"]", called("numpy:dtype", text("f8")), b"K\x01\x85", text("C"))
        ),
        "it makes an array of list",
    ),
    "unhashable depth": (lambda _: pickled(b"}" + b")" + b"\x85" * 40_000 + b"Ns"), "a dictionary of names"),
    "million opcodes": (lambda _: pickled(b"N0" * 1_000_000), "opcode POP|more than"),
    "deep nesting": (lambda _: built(SCALER, state(mean_=b")" + b"\x85" * 1_000)), "nested deeper"),
    "very deep nesting": (lambda _: pickled(b")" + b"\x85" * 1_000_000), "opcodes"),
    "memo doubling": (lambda _: built(SCALER, state(mean_=doubled(40))), "more than 50000 parts"),
    "memo doubling in a dictionary": (
        lambda _: built(SCALER, state(mean_=b"}" + text("a") + doubled(40) + b"s")),
        "more than 50000 parts",
    ),
    "long claim": (lambda _: pickled(b"\x8e" + struct.pack("<Q", 1 << 40)), "not a readable pickle"),
    "bytearray claim": (lambda _: pickled(b"\x96" + struct.pack("<Q", 1 << 36)), "not a readable pickle"),
    "memo index": (lambda _: pickled(b"Nr\xff\xff\xff\x7f"), "expected a transformer"),
    "shape of an array": (
        lambda _: pickled(
            called(
                "numpy._core.multiarray:_reconstruct", b"cnumpy\nndarray\n", number(1 << 30) + b"K\x08\x86", text("f8")
            )
        ),
        "in a way that numpy does not",
    ),
    "shape of a type": (lambda _: pickled(called("numpy:dtype", text("(100000000,)f8"))), "of type"),
    "polynomial": (shipped(grown, PolynomialFeatures(2)), "65536 is the most"),
    "itself": (lambda _: built(SCALER, state(mean_=b"]\x94h\x00a")), "more than|deeper"),
}

BOMBS = (
    *("unhashable depth", "million opcodes", "very deep nesting", "memo doubling", "long claim", "bytearray claim"),
    *("memo index", "shape of an array", "shape of a type", "polynomial", "itself"),
)
"""Attacks on time and memory, to be measured."""

ATTACKS = [
    *(Attack(name, _spelled(_call_of(name)), "which no preprocessor may") for name in _calls(Path("marker"))),
    *(Attack(name, _spelled(make), refusal) for name, (make, refusal) in _STATES.items()),
    Attack("large", _large, "larger than 64 MiB"),
    Attack("second pickle", _behind, "data behind the pickled object"),
    Attack(
        "second pickle in the frame of the first", _behind_in_frame, "data behind the pickled object|not a readable"
    ),
]
