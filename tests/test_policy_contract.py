"""The policy contract, over every shipped artifact and over policies of other shapes."""

from __future__ import annotations

from pathlib import Path

import pytest
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, RobustScaler, StandardScaler

from carla_policy_tools.build import build
from carla_policy_tools.paths import archive_name
from tests.conftest import SHIPPED
from tests.policy_contract import PolicyContract
from tests.synthetic import HEADS, make_artifact


@pytest.mark.parametrize("version", SHIPPED, scope="class")
class TestShippedPolicy(PolicyContract):
    @pytest.fixture(scope="class")
    @classmethod
    def archive(cls, store: Path, version: str) -> Path:
        return store / archive_name(version)


SYNTHETIC = {
    "three controls in another order": {"layout": ("steer", "brake", "throttle")},
    "no sensors": {"sensors": 0},
    "many sensors, float32 features": {"sensors": 300, "input_dtype": "float32"},
    "compiled pipeline": {"preprocessor": make_pipeline(RobustScaler(), MinMaxScaler((-1, 1), clip=True))},
    "column transformer with passthrough": {
        "preprocessor": ColumnTransformer([("speed", StandardScaler(), [0])], remainder="passthrough")
    },
    "pipeline without compiled form": {"preprocessor": make_pipeline(StandardScaler(), PCA(3))},
    "tile of sixteen": {"card": {"inference": {"tile": 16}, "parity": {"atol": 1e-5}}},
}


@pytest.mark.parametrize("kind", SYNTHETIC, scope="class")
class TestSyntheticPolicy(PolicyContract):
    @pytest.fixture(scope="class")
    @classmethod
    def archive(cls, kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
        root = tmp_path_factory.mktemp("synthetic")
        return build(make_artifact(root, "v1.0.0", **SYNTHETIC[kind]), root).verification.archive  # type: ignore[arg-type]


@pytest.mark.parametrize("runtime", ["torchscript", "onnx", "pt2"], scope="class")
@pytest.mark.parametrize("head", HEADS, scope="class")
class TestEveryHeadInEveryRuntime(PolicyContract):
    @pytest.fixture(scope="class")
    @classmethod
    def archive(cls, head: str, runtime: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
        root = tmp_path_factory.mktemp("head")
        return build(make_artifact(root, "v1.0.0", head=head, runtime=runtime), root).verification.archive


@pytest.mark.parametrize("runtime", ["torchscript", "onnx", "pt2"], scope="class")
class TestRecurrentPolicyInEveryRuntime(PolicyContract):
    @pytest.fixture(scope="class")
    @classmethod
    def archive(cls, runtime: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
        root = tmp_path_factory.mktemp("recurrent")
        return build(make_artifact(root, "v1.0.0", recurrent=True, runtime=runtime), root).verification.archive
