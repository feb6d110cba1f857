"""ONNX networks that open other files, read memory, or need operators that only some builds have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx

from tests.attacks import Attack

FILE = "model.onnx"


def _edit(change: Callable[[Any, Path], None]) -> Callable[[Path, Path], None]:
    def apply(directory: Path, _: Path) -> None:
        model = onnx.load_model_from_string((directory / FILE).read_bytes())
        change(model, directory)
        (directory / FILE).write_bytes(model.SerializeToString())

    return apply


def _elsewhere(tensor: Any, location: str, **more: str) -> None:
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": location, **more}.items():
        tensor.external_data.add(key=key, value=value)


def _weights(location: str, **more: str) -> Callable[[Path, Path], None]:
    """All weights stand in another file, which is there."""

    def change(model: Any, directory: Path) -> None:
        (directory.parent / "outside.bin").write_bytes(bytes(1 << 16))
        for tensor in model.graph.initializer:
            _elsewhere(tensor, location.format(outside=directory.parent / "outside.bin"), **more)

    return _edit(change)


def _constant(model: Any, _: Path) -> None:
    """A constant within a branch of the graph, whose value stands in another file."""
    tensor = onnx.TensorProto(name="hidden", data_type=onnx.TensorProto.FLOAT, dims=[1])
    _elsewhere(tensor, "../../etc/passwd")
    inner = onnx.helper.make_graph([onnx.helper.make_node("Constant", [], ["x"], value=tensor)], "branch", [], [])
    condition = onnx.helper.make_node("If", ["condition"], ["y"], then_branch=inner, else_branch=inner)
    model.graph.node.append(condition)


def _leftover(model: Any, _: Path) -> None:
    """A tensor that has its data, and names a file beside."""
    model.graph.initializer[0].external_data.add(key="location", value="/etc/passwd")


def _node(operator: str, domain: str, **attributes: object) -> Callable[[Path, Path], None]:
    def change(model: Any, _: Path) -> None:
        model.opset_import.add(domain=domain, version=1)
        source = model.graph.input[0].name
        model.graph.node.append(onnx.helper.make_node(operator, [source], ["z"], domain=domain, **attributes))

    return _edit(change)


def _in_function(model: Any, _: Path) -> None:
    """The operator stands in a function of the network's own."""
    node = onnx.helper.make_node("Evil", ["x"], ["y"], domain="evil")
    imports = [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid("evil", 1)]
    model.functions.append(onnx.helper.make_function("own", "Nice", ["x"], ["y"], [node], imports))


EXTERNAL, FOREIGN = "its data stand in another file", "not an operator of ONNX itself"
ATTACKS = [
    Attack("weights of a directory above", _weights("../outside.bin"), EXTERNAL),
    Attack("weights of the password file", _weights("../../../../../../etc/passwd"), EXTERNAL),
    Attack("weights of an absolute path", _weights("{outside}"), EXTERNAL),
    Attack("weights of a device", _weights("/dev/zero"), EXTERNAL),
    Attack("weights of memory", _weights("*/_ORT_MEM_ADDR_/*", offset="4096", length="64"), EXTERNAL),
    Attack("weights of a file beside it", _weights("golden.npz"), EXTERNAL),
    Attack("weights of no file", _weights(""), EXTERNAL),
    Attack("constant of a branch", _edit(_constant), EXTERNAL),
    Attack("file beside the data", _edit(_leftover), EXTERNAL),
    Attack("operator of a library", _node("Evil", "evil"), FOREIGN),
    Attack("compiled context in a file", _node("EPContext", "com.microsoft", ep_cache_context="/etc/passwd"), FOREIGN),
    Attack("operator of one build", _node("FusedMatMul", "com.microsoft"), FOREIGN),
    Attack("operator in a function", _edit(_in_function), FOREIGN),
]
