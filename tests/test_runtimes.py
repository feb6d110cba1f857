"""TorchScript, ONNX and torch.export: the same network, chosen by its file, loaded only when used."""

from __future__ import annotations

import pickle
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from carla_policy.errors import ArtifactError
from carla_policy.loading import LoadedPolicy
from carla_policy.runtimes import Signature, load_runtime
from carla_policy.runtimes.device import DEVICE_VARIABLE
from carla_policy.runtimes.onnx import providers
from carla_policy.runtimes.torch import load_torch
from carla_policy_tools.artifact import load_artifact, seal
from carla_policy_tools.export.choices import FILE_OF_RUNTIME
from carla_policy_tools.export.serialization import write_network
from tests.synthetic import Network, RecurrentNetwork, make_artifact, observations, signature_of

RUNTIMES = tuple(FILE_OF_RUNTIME)
SIGNATURE = Signature({"features": 7}, {"mean": 2, "log_std": 2})


@pytest.fixture
def network() -> torch.nn.Module:
    torch.manual_seed(5)
    return Network(7, 2).eval()


@pytest.mark.parametrize("recurrent", [False, True], ids=["feed-forward", "recurrent"])
@pytest.mark.parametrize("tile", [1, 16])
def test_every_runtime_yields_what_the_module_does(tmp_path: Path, recurrent: bool, tile: int) -> None:
    torch.manual_seed(5)
    network = (RecurrentNetwork if recurrent else Network)(7, 2, ("mean", "log_std")).eval()
    signature = signature_of(7, 2, "gaussian", recurrent)
    inputs = [
        np.random.default_rng(1).normal(size=(50, width)).astype(np.float32) for width in signature.inputs.values()
    ]
    with torch.no_grad():
        expected = network(*(torch.from_numpy(part) for part in inputs))
    for runtime in RUNTIMES:
        path = tmp_path / FILE_OF_RUNTIME[runtime]
        write_network(network, path, signature)
        outputs = load_runtime(path, signature, tile)(*inputs)
        assert list(outputs) == list(signature.outputs)
        for got, wanted in zip(outputs.values(), expected, strict=True):
            assert np.abs(got - wanted.numpy()).max() <= 1e-6


@pytest.mark.parametrize("outputs", [("action",), ("mean", "log_std")], ids=["one", "two"])
@pytest.mark.parametrize("recurrent", [False, True], ids=["feed-forward", "recurrent"])
@pytest.mark.parametrize("tile", [1, 3])
def test_many_tiles_in_one_call_have_the_bits_of_each_by_itself(
    tmp_path: Path, outputs: tuple[str, ...], recurrent: bool, tile: int
) -> None:
    torch.manual_seed(5)
    network = (RecurrentNetwork if recurrent else Network)(7, 2, outputs).eval()
    signature = Signature(
        {"features": 7, **({"state": 32} if recurrent else {})},
        {**dict.fromkeys(outputs, 2), **({"next_state": 32} if recurrent else {})},
    )
    write_network(network, tmp_path / "model.pt", signature)
    runtime = load_torch(tmp_path / "model.pt", signature, tile)
    assert isinstance(runtime.loop, torch.ScriptMethod), "not the fast way"
    rows = 12 * tile
    inputs = [np.random.default_rng(n).normal(size=(rows, w)).astype(np.float32) for n, w in enumerate((7, 32))]
    inputs = inputs[: len(signature.inputs)]
    together = runtime(*inputs)
    for start in range(0, rows, tile):
        alone = runtime(*(part[start : start + tile] for part in inputs))
        for name, values in together.items():
            assert values[start : start + tile].tobytes() == alone[name].tobytes()


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_broken_file_is_refused_by_name(tmp_path: Path, network: torch.nn.Module, runtime: str) -> None:
    path = tmp_path / FILE_OF_RUNTIME[runtime]
    write_network(network, path, SIGNATURE)
    for content in (b"", b"no network", path.read_bytes()[:-200]):
        path.write_bytes(content)
        with pytest.raises(ArtifactError, match=rf"{path.name}: does not load and run as .* on 7 features"):
            load_runtime(path, SIGNATURE, 1)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_network_of_other_widths_is_refused(tmp_path: Path, network: torch.nn.Module, runtime: str) -> None:
    path = tmp_path / FILE_OF_RUNTIME[runtime]
    write_network(network, path, SIGNATURE)
    with pytest.raises(ArtifactError, match=rf"{path.name}: does not load and run as .* on 9 features"):
        load_runtime(path, Signature({"features": 9}, SIGNATURE.outputs), 1)
    expected = r"expected the outputs \(mean float32 \(1, 3\), log_std float32 \(1, 3\)\), got"
    with pytest.raises(ArtifactError, match=expected):
        load_runtime(path, Signature(SIGNATURE.inputs, {"mean": 3, "log_std": 3}), 1)


def test_state_dict_in_the_place_of_a_network_is_explained(tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path, "v1.0.0")
    torch.save(Network(7, 2).state_dict(), artifact / "model.pt")
    seal(artifact)
    with pytest.raises(ArtifactError, match=r"a state_dict or a pickled module is none: `carla-policy export torch`"):
        load_artifact(artifact)


def test_pickled_code_in_an_exported_program_does_not_run(tmp_path: Path, network: torch.nn.Module) -> None:
    marker, path, changed = tmp_path / "executed", tmp_path / "model.pt2", tmp_path / "changed" / "model.pt2"
    changed.parent.mkdir()

    class Payload:
        def __reduce__(self) -> Any:
            return Path.touch, (marker,)

    write_network(network, path, SIGNATURE)
    replaced = 0
    with zipfile.ZipFile(path) as original, zipfile.ZipFile(changed, "w", zipfile.ZIP_STORED) as attacked:
        for entry in original.infolist():
            content = original.read(entry)
            if entry.filename.endswith(".pt") or "sample_inputs" in entry.filename:
                content, replaced = pickle.dumps(Payload()), replaced + 1
            attacked.writestr(entry, content)
    assert replaced
    with pytest.raises(ArtifactError, match=r"model\.pt2: does not load"):
        load_runtime(changed, SIGNATURE, 1)
    assert not marker.exists()


def test_onnx_without_onnxruntime_says_what_to_install(
    tmp_path: Path, network: torch.nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_network(network, tmp_path / "model.onnx", SIGNATURE)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ArtifactError, match=r"needs onnxruntime.*pip install 'carla-policy-serving\[onnx\]'"):
        load_runtime(tmp_path / "model.onnx", SIGNATURE, 1)


def test_worker_imports_only_what_its_version_needs(unpacked: Any) -> None:
    code = (
        "import sys; from pathlib import Path; from carla_policy.loading import load_policy; "
        f"load_policy(Path({str(unpacked('v0.2.0'))!r})); "
        "print([name for name in ('onnxruntime', 'sklearn', 'scipy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_device_is_what_the_environment_says(
    tmp_path: Path, network: torch.nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_network(network, tmp_path / "model.pt", SIGNATURE)
    monkeypatch.setenv(DEVICE_VARIABLE, "cpu")
    assert load_runtime(tmp_path / "model.pt", SIGNATURE, 1).device == "cpu"
    monkeypatch.setenv(DEVICE_VARIABLE, "gpu")
    with pytest.raises(ArtifactError, match="CARLA_POLICY_DEVICE=gpu: expected auto, cpu or cuda"):
        load_runtime(tmp_path / "model.pt", SIGNATURE, 1)
    if not torch.cuda.is_available():
        monkeypatch.setenv(DEVICE_VARIABLE, "cuda")
        with pytest.raises(ArtifactError, match="torch finds no CUDA device here"):
            load_runtime(tmp_path / "model.pt", SIGNATURE, 1)


def test_onnx_obeys_the_same_choice_of_device() -> None:
    cuda, cpu = "CUDAExecutionProvider", "CPUExecutionProvider"
    assert providers("auto", [cuda, cpu]) == providers("cuda", [cuda, cpu]) == [cuda, cpu]
    assert providers("cpu", [cuda, cpu]) == providers("auto", [cpu]) == [cpu]
    with pytest.raises(ArtifactError, match="CARLA_POLICY_DEVICE=cuda: this onnxruntime knows no CUDA, only CPUExec"):
        providers("cuda", [cpu])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here: the GPU's path is not tested")
@pytest.mark.parametrize("runtime", ["torchscript", "pt2"])
def test_gpu_answers_as_the_cpu_within_the_tolerance(tmp_path: Path, runtime: str) -> None:
    loaded: LoadedPolicy = load_artifact(
        make_artifact(tmp_path, "v1.0.0", runtime=runtime, card={"parity": {"atol": 1e-5}})
    )
    assert loaded.policy.runtime.device.startswith("cuda")
    rows = observations(64, 5, seed=8)
    together = loaded.policy.act(rows).controls
    alone = np.concatenate([loaded.policy.act(row[None]).controls for row in rows])
    assert together.tobytes() == alone.tobytes()
