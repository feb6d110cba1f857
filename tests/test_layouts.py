"""Action layouts: bounded as in training, controls by name whatever their order, and cards that fit together."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from gymnasium.spaces import Box
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydantic import BaseModel, ValidationError
from stable_baselines3.common.policies import BasePolicy

from carla_policy.actions import ActionLayout, make_layout
from carla_policy.card import ModelCard
from carla_policy.errors import ArtifactError
from carla_policy.specs import ContinuousActionSpec, ObservationSpec, SafetySpec, SteerLimit, TableActionSpec
from carla_policy_tools.artifact import write_card
from tests.synthetic import make_artifact

NATIVE = (-1.0, 1.0)
PEDALS = ("throttle", "brake", "steer")
TABLE = [{"throttle": 0.5, "brake": 0.0, "steer": -0.25}, {"throttle": 0.0, "brake": 1.0, "steer": 0.25}]
CONTINUOUS = {"layout": ["acceleration", "steer"], "low": [-1.0, -1.0], "high": [1.0, 1.0]}
BOUNDS = st.tuples(st.floats(-10, 10), st.floats(0.0625, 10)).map(lambda pair: (pair[0], pair[0] + pair[1]))
ACTIONS = arrays(np.float32, (40, 2), elements=st.floats(-1.5, 1.5, width=32) | st.floats(allow_nan=False, width=32))
STOP = {"throttle": 0.0, "brake": 1.0, "steer": 0.0}


def layout(*names: str, native: tuple[float, float] | None = NATIVE, **changes: Any) -> ActionLayout:
    return make_layout(spec(*names, **changes), native)


def spec(*names: str, **changes: Any) -> ContinuousActionSpec:
    limits = {"low": [-1.0] * len(names), "high": [1.0] * len(names)}
    return ContinuousActionSpec.model_validate_json(json.dumps({"layout": names, **limits, **changes}))


def controls(some: ActionLayout, *rows: list[float]) -> Any:
    return some.to_controls(np.array(rows, np.float32)).tolist()


@pytest.mark.parametrize("order", list(permutations(PEDALS)))
def test_pedals_and_steer_come_in_any_order(order: tuple[str, ...]) -> None:
    values = {"throttle": 0.25, "brake": 0.5, "steer": -0.75}
    got = layout(*order, low=[0.0 if name != "steer" else -1.0 for name in order])
    assert (got.names, got.parameter_width) == (order, 3)
    assert controls(got, [values[name] for name in order]) == [[0.25, 0.5, -0.75]]


@pytest.mark.parametrize("order", list(permutations(("acceleration", "steer"))))
def test_acceleration_is_throttle_above_zero_and_brake_below(order: tuple[str, ...]) -> None:
    rows = [dict(zip(("acceleration", "steer"), row, strict=True)) for row in ((0.5, 0.25), (-0.5, -0.25), (0.0, 0.0))]
    got = layout(*order).to_controls(np.array([[row[name] for name in order] for row in rows], np.float32))
    assert got.tolist() == [[0.5, 0.0, 0.25], [0.0, 0.5, -0.25], [0.0, 0.0, 0.0]]


def test_what_a_single_dimension_does_not_name_is_zero() -> None:
    assert controls(layout("steer"), [0.5], [-1.0]) == [[0.0, 0.0, 0.5], [0.0, 0.0, -1.0]]
    assert controls(layout("acceleration"), [0.5], [-1.0]) == [[0.5, 0.0, 0.0], [0.0, 1.0, 0.0]]


@given(bounds=st.tuples(BOUNDS, BOUNDS), actions=ACTIONS)
def test_clip_is_numpy_s_and_unscale_stable_baselines3_s(bounds: Any, actions: Any) -> None:
    low, high = (np.array(end, np.float32) for end in zip(*bounds, strict=True))
    limits = {"low": [pair[0] for pair in bounds], "high": [pair[1] for pair in bounds]}
    finite = np.isfinite(actions)
    clipped = layout("acceleration", "steer", **limits).bound(actions)
    assert clipped[finite].tobytes() == np.clip(actions, low, high)[finite].tobytes()
    squashed = layout("acceleration", "steer", bounding="unscale", **limits).bound(actions)
    trained: Any = SimpleNamespace(action_space=Box(low, high))
    with np.errstate(all="ignore"):
        unscaled = BasePolicy.unscale_action(trained, actions)
    assert squashed[finite].tobytes() == np.clip(unscaled, low, high)[finite].tobytes()
    assert np.isnan(clipped[~finite]).all()
    assert np.isnan(squashed[~finite]).all()


@given(bounds=BOUNDS, actions=arrays(np.float32, (9, 1), elements=st.floats(0, 1, width=32)))
def test_unscale_takes_the_range_that_the_head_s_actions_have(bounds: tuple[float, float], actions: Any) -> None:
    low, high = (np.float32(end) for end in bounds)
    limits = {"low": [bounds[0]], "high": [bounds[1]], "bounding": "unscale"}
    got = layout("steer", native=(0.0, 1.0), **limits).bound(actions)
    assert got.tobytes() == np.clip(low + actions * (high - low), low, high).tobytes()


def test_full_scale_is_full_control_and_full_brake_may_differ() -> None:
    limits = {"low": [-8.0, -0.5], "high": [4.0, 0.5], "full_scale": [4.0, 0.5]}
    same, harder = (layout("acceleration", "steer", **limits, **more) for more in ({}, {"full_brake": 8.0}))
    assert controls(same, [2.0, 0.25], [-2.0, -0.5]) == [[0.5, 0.0, 0.5], [0.0, 0.5, -1.0]]
    assert controls(harder, [2.0, 0.25], [-2.0, -0.5]) == [[0.5, 0.0, 0.5], [0.0, 0.25, -1.0]]
    pedals = layout("brake", "steer", "throttle", full_scale=[2.0, 0.5, 4.0])
    assert controls(pedals, [1.0, 0.125, 1.0]) == [[0.25, 0.5, 0.25]]
    assert controls(pedals, [4.0, 0.125, 1.0]) == [[0.25, 2.0, 0.25]]


@pytest.mark.parametrize("bounding", ["clip", "unscale"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_nan_and_never_full_throttle(bounding: str, value: float) -> None:
    native = np.array([[value, 0.5], [0.5, value], [0.5, 0.5]], np.float32)
    some = layout("acceleration", "steer", bounding=bounding)
    bounded = some.bound(native)
    assert np.isnan(bounded).tolist() == [[True, False], [False, True], [False, False]]
    assert np.isnan(some.to_controls(bounded)).any(axis=1).tolist() == [True, True, False]
    assert np.isnan(some.to_controls(bounded)[0, :2]).all()
    table = make_layout(TableActionSpec.model_validate_json(json.dumps({"table": TABLE})), None)
    choices = table.bound(np.array([[1.0], [value], [0.0]], np.float32))
    assert np.isnan(table.to_controls(choices)).tolist() == [[False] * 3, [True] * 3, [False] * 3]


def test_choice_is_a_row_of_the_table() -> None:
    table = make_layout(TableActionSpec.model_validate_json(json.dumps({"table": TABLE})), None)
    assert (table.names, table.parameter_width) == (("choice",), 2)
    choices = np.array([[1.0], [0.0], [1.0]], np.float32)
    assert table.to_controls(table.bound(choices)).tolist() == [list(TABLE[n].values()) for n in (1, 0, 1)]


@pytest.mark.parametrize(
    ("model", "content", "message"),
    [
        (ContinuousActionSpec, {"layout": ["throttle", "steer"]}, "layout must name throttle, brake and steer; or acc"),
        (ContinuousActionSpec, {"layout": ["steer", "steer"]}, "each once"),
        (ContinuousActionSpec, {"layout": []}, "layout must name throttle, brake and steer"),
        (ContinuousActionSpec, {"layout": ["steer"]}, "layout, low, high and full_scale must have the same length"),
        (ContinuousActionSpec, {"full_scale": [1.0]}, "layout, low, high and full_scale must have the same length"),
        (ContinuousActionSpec, {"low": [-1.0, 1.0]}, "steer: low must be below high, got 1.0 and 1.0"),
        (ContinuousActionSpec, {"full_scale": [1.0, 0.0]}, "greater than or equal to"),
        (ContinuousActionSpec, {"full_brake": -1.0}, "greater than or equal to"),
        (ContinuousActionSpec, {"layout": ["gas", "steer"]}, "'throttle', 'brake', 'acceleration' or 'steer'"),
        (
            ContinuousActionSpec,
            {"layout": ["steer"], "low": [-1.0], "high": [1.0], "full_brake": 1.0},
            "full_brake goes with acceleration; here it has no meaning",
        ),
        (TableActionSpec, {"table": TABLE[:1]}, "at least 2 items"),
        (TableActionSpec, {"table": [TABLE[0], {**TABLE[1], "steer": -2.0}]}, "greater than or equal to -1"),
        (SafetySpec, {"fallback": TABLE[0]}, "must not accelerate; set throttle to 0"),
        (SteerLimit, {"speeds": [0.0, 0.0], "limits": [1.0, 0.5]}, r"speeds must rise, got \[0.0, 0.0\]"),
        (SteerLimit, {"speeds": [0.0], "limits": [1.0, 0.5]}, "speeds and limits must have the same length"),
        (ObservationSpec, {"fields": []}, "at least 2 items"),
    ],
)
def test_section_that_cannot_be_meant_is_refused_and_told_why(
    model: type[BaseModel], content: dict[str, Any], message: str
) -> None:
    full = {**CONTINUOUS, **content} if model is ContinuousActionSpec else content
    with pytest.raises(ValidationError, match=message):
        model.model_validate_json(json.dumps(full))


@pytest.fixture(scope="module")
def declare(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., ModelCard]:
    """Write the card of a synthetic artifact of 5 sensors with some of its keys replaced."""
    directory = make_artifact(tmp_path_factory.mktemp("layouts"), "v1.0.0")
    content = yaml.safe_load(Path(directory, "model_card.yaml").read_text("utf-8"))
    return lambda **changes: write_card(directory, {**content, **changes})


@pytest.mark.parametrize("head", ["deterministic", "gaussian", "squashed_gaussian", "beta", "categorical"])
@pytest.mark.parametrize("action", ["clip", "unscale", "table"])
def test_head_and_action_must_fit_each_other(declare: Callable[..., ModelCard], head: str, action: str) -> None:
    chosen = {"table": TABLE} if action == "table" else {**CONTINUOUS, "bounding": action}
    fits = {"deterministic": ("clip", "unscale"), "gaussian": ("clip",), "categorical": ("table",)}
    if action in fits.get(head, ("unscale",)):
        assert declare(head={"type": head}, action=chosen).head.type == head
        return
    needs = "table of controls" if head == "categorical" else "layout, low and high" if action == "table" else ""
    with pytest.raises(ArtifactError, match=f"action.*: a {head} head needs .*{needs}"):
        declare(head={"type": head}, action=chosen)


RATE = {"max_change": 0.1, "observed": "wheels"}
OOD = {"threshold": 3.0, "false_positive_rate": 0.01, "held_out_rows": 100}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"safety": {"fallback": STOP, "steer_rate": RATE}}, "safety.steer_rate.observed: 'wheels' is no field"),
        (
            {"safety": {"fallback": STOP, "throttle_rate": {"max_rise": 0.1, "observed": "pedal"}}},
            "safety.throttle_rate.observed: 'pedal' is no field of the observation",
        ),
        ({"preprocessor": {"input_dtype": "float64", "columns": [0, 7]}}, "columns: the observation has 7, got"),
        ({"preprocessor": {"input_dtype": "float64", "columns": [0, 0]}}, "preprocessor.columns: each column once"),
        ({"preprocessor": {"input_dtype": "float64", "columns": [-1]}}, "preprocessor.columns.0: .*greater than"),
        ({"ood": OOD}, r"artifact_hashes must list exactly .*'ood\.npz'"),
        ({"head": {"type": "epsilon_greedy", "epsilon": 0.1}}, "action: a epsilon_greedy head needs a table"),
        ({"head": {"type": "gaussian", "scale": "variance"}}, "head.gaussian.scale: .*'log_std' or 'std'"),
        ({"head": {"type": "quantile"}}, "head: .*'deterministic', 'gaussian'"),
    ],
)
def test_sections_that_contradict_each_other_are_refused_by_key(
    declare: Callable[..., ModelCard], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ArtifactError, match=rf"^model_card\.yaml: .*{message}"):
        declare(**changes)


def test_ood_needs_what_was_seen_of_every_field(tmp_path: Path) -> None:
    directory = make_artifact(tmp_path, "v1.0.0")
    content = yaml.safe_load((directory / "model_card.yaml").read_text("utf-8"))
    (directory / "ood.npz").write_bytes(b"statistics")
    fields = content["observation"]["fields"]
    seen = [{**field, "seen": [field["low"], field["high"]]} for field in fields]
    assert write_card(directory, {**content, "ood": OOD, "observation": {"fields": seen}}).ood is not None
    with pytest.raises(ArtifactError, match="ood: every field of the observation needs its range `seen` in training"):
        write_card(directory, {**content, "ood": OOD, "observation": {"fields": [*seen[:-1], fields[-1]]}})
