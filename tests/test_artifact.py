"""Artifacts: what is refused before anything of it is opened, and that the message names the file."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

from carla_policy.card import load_card, parse_yaml
from carla_policy.errors import ArtifactError
from carla_policy.version import check_version, parse_version, version_key
from carla_policy_tools.artifact import load_artifact, seal, verify_artifact
from tests.synthetic import Network, make_artifact

FILES = ["model.pt", "preprocessor.pkl", "golden.npz", "model_card.yaml"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("position", [0.0, 0.37, 0.999])
def test_one_changed_byte_is_refused_by_file_name(shipped_copy: Path, name: str, position: float) -> None:
    flip_byte(shipped_copy / name, position)
    with pytest.raises(ArtifactError, match=name):
        verify_artifact(shipped_copy)


def test_missing_and_extra_files_are_all_named(shipped_copy: Path) -> None:
    (shipped_copy / "golden.npz").unlink()
    (shipped_copy / "json.py").write_text("")
    with pytest.raises(ArtifactError, match=r"golden\.npz: missing.*json\.py: not listed"):
        verify_artifact(shipped_copy)


def test_directory_and_card_must_agree_on_the_version(shipped_copy: Path) -> None:
    renamed = shipped_copy.rename(shipped_copy.with_name("v9.9.9"))
    with pytest.raises(
        ArtifactError, match=r"model_card\.yaml: version v0\.1\.0 stands in a directory named 'v9\.9\.9'"
    ):
        verify_artifact(renamed)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("description:", "descriptoin:", r"descriptoin: not a key of a model card"),
        ("version: v0.1.0", "version: 0.1.0", r"version: .*expected vMAJOR\.MINOR\.PATCH"),
        ("  atol: 1.0e-06", "  atol: .nan", r"parity\.atol: .*finite number"),
        ("  atol: 1.0e-06", "  atol: '1e-6'", r"parity\.atol: .*number \(got '1e-6'\)"),
        ("low: [-1.0, -1.0]", "low: [-1.0, 1.0]", r"steer: low must be below high, got 1\.0 and 1\.0"),
        ("layout: [acceleration, steer]", "layout: [throttle, steer]", r"layout must name throttle, brake and steer"),
        ("name: border_ray_-60deg,", "name: steering,", r"every field needs a name of its own"),
        ("low: -1.0, high: 60.0", "low: 60.0, high: 60.0", r"low must be below high, got 60\.0 and 60\.0"),
        ("  golden.npz: sha256", "  golden.bin: sha256", r"artifact_hashes must list exactly"),
        ("name: steering,", "name: wheel,", r"the first two fields must be speed and steering"),
        ("model_name: carla_policy", "model_name: carla_policy\nmodel_name: other", r"'model_name' appears twice"),
        (
            "description:",
            "description: !!python/object/apply:os.system [true]\nold:",
            r"not readable as YAML: .*tags are not allowed",
        ),
        ("description:", "2026-01-01: x\ndescription:", r"key datetime\.date\(2026, 1, 1\) is not a string"),
        ("parity:", "parity: &a\n  x: *a\nold:", r"aliases are not allowed"),
    ],
)
def test_card_that_does_not_fit_is_refused_by_key(shipped_copy: Path, old: str, new: str, message: str) -> None:
    card = shipped_copy / "model_card.yaml"
    text = card.read_text()
    assert old in text
    card.write_text(text.replace(old, new, 1))
    with pytest.raises(ArtifactError, match=rf"model_card\.yaml: .*{message}"):
        load_card(card)


def test_seal_accepts_a_meant_edit(shipped_copy: Path) -> None:
    card = shipped_copy / "model_card.yaml"
    card.write_text(card.read_text().replace("atol: 1.0e-06", "atol: 1e-5"))
    with pytest.raises(ArtifactError, match=r"content has changed.*carla-policy seal"):
        verify_artifact(shipped_copy)
    assert seal(shipped_copy).parity.atol == 1e-5
    verify_artifact(shipped_copy)


def test_golden_value_beyond_tolerance_is_refused_by_vector_and_field(shipped_copy: Path) -> None:
    change_golden(shipped_copy, "deterministic_actions", (41, 1), 0.25)
    with pytest.raises(
        ArtifactError, match=r"golden\.npz: vector 41, deterministic_actions\.steer: expected .*, got .*1 of"
    ):
        load_artifact(shipped_copy)


def test_golden_value_that_is_not_finite_is_refused_by_index(shipped_copy: Path) -> None:
    change_golden(shipped_copy, "features", (7, 3), np.nan)
    with pytest.raises(ArtifactError, match=r"golden\.npz: features\[7, 3\]: expected a finite number, got nan"):
        load_artifact(shipped_copy)


def test_golden_file_with_too_few_rows_is_refused(shipped_copy: Path) -> None:
    golden = dict(np.load(shipped_copy / "golden.npz"))
    np.savez(shipped_copy / "golden.npz", **{name: values[:255] for name, values in golden.items()})
    seal(shipped_copy)
    with pytest.raises(ArtifactError, match=r"golden\.npz: observations: expected at least 256 rows, got 255"):
        load_artifact(shipped_copy)


def test_golden_file_of_pickled_objects_is_not_opened(shipped_copy: Path) -> None:
    np.savez(shipped_copy / "golden.npz", observations=np.array([{"a": 1}], dtype=object))
    seal(shipped_copy)
    with pytest.raises(ArtifactError, match=r"golden\.npz: cannot be read as an \.npz file of plain arrays"):
        load_artifact(shipped_copy)


def test_model_that_is_not_torchscript_is_refused(shipped_copy: Path) -> None:
    (shipped_copy / "model.pt").write_bytes(b"not a model")
    seal(shipped_copy)
    with pytest.raises(ArtifactError, match=r"model\.pt: does not load and run as TorchScript"):
        load_artifact(shipped_copy)


def test_pickle_that_calls_anything_else_is_refused_before_it_runs(shipped_copy: Path, tmp_path: Path) -> None:
    marker = tmp_path / "executed"

    class Payload:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (marker,))

    (shipped_copy / "preprocessor.pkl").write_bytes(pickle.dumps(Payload()))
    seal(shipped_copy)
    with pytest.raises(
        ArtifactError, match=r"preprocessor\.pkl: it refers to pathlib\.[\w.]+, which no preprocessor may"
    ):
        load_artifact(shipped_copy)
    assert not marker.exists()


def test_data_behind_the_pickle_is_refused(shipped_copy: Path) -> None:
    with (shipped_copy / "preprocessor.pkl").open("ab") as file:
        file.write(pickle.dumps(1))
    seal(shipped_copy)
    with pytest.raises(ArtifactError, match=r"preprocessor\.pkl: there is data behind the pickled object"):
        load_artifact(shipped_copy)


def test_pickle_of_something_that_transforms_nothing_is_refused(shipped_copy: Path) -> None:
    (shipped_copy / "preprocessor.pkl").write_bytes(pickle.dumps(np.zeros(3)))
    seal(shipped_copy)
    with pytest.raises(ArtifactError, match=r"preprocessor\.pkl: expected a transformer, got ndarray"):
        load_artifact(shipped_copy)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("mean", lambda values: values.astype(np.float64), r"mean: expected float32 \(\d+, 2\), got float64"),
        ("seeds", lambda values: values.astype(np.int64), r"seeds: expected uint64"),
        ("sampled_actions", lambda values: values[:, :1], r"sampled_actions: expected float32 .*, got .*, 1\)"),
    ],
)
def test_golden_array_of_another_shape_or_type_is_refused(
    shipped_copy: Path, name: str, change: Callable[[Any], Any], message: str
) -> None:
    golden = dict(np.load(shipped_copy / "golden.npz"))
    golden[name] = change(golden[name])
    np.savez(shipped_copy / "golden.npz", **golden)
    seal(shipped_copy)
    with pytest.raises(ArtifactError, match=rf"golden\.npz: {message}"):
        load_artifact(shipped_copy)


@pytest.mark.parametrize(
    ("preprocessor", "message"),
    [
        (StandardScaler(), "cannot transform the 30 columns of model_card.yaml"),
        (StandardScaler().fit(np.zeros((3, 5))), "cannot transform the 30 columns of model_card.yaml"),
        (PolynomialFeatures(2).fit(np.zeros((3, 30))), "gives 496 features, but golden.npz: features has 30"),
    ],
)
def test_preprocessor_that_does_not_fit_is_refused_by_file_name(
    shipped_copy: Path, preprocessor: Any, message: str
) -> None:
    (shipped_copy / "preprocessor.pkl").write_bytes(pickle.dumps(preprocessor))
    seal(shipped_copy)
    with pytest.raises(ArtifactError, match=f"preprocessor.pkl: {message}"):
        load_artifact(shipped_copy)


def test_golden_file_that_is_one_array_is_refused(shipped_copy: Path) -> None:
    with (shipped_copy / "golden.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    seal(shipped_copy)
    with pytest.raises(ArtifactError, match=r"golden\.npz: cannot be read as an \.npz file"):
        load_artifact(shipped_copy)


def test_seal_refuses_what_an_artifact_cannot_hold(shipped_copy: Path) -> None:
    (shipped_copy / "notes.txt").write_text("")
    with pytest.raises(ArtifactError, match=r"notes\.txt: no part of an artifact; remove it"):
        seal(shipped_copy)


def test_tolerance_that_would_accept_another_policy_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"parity\.atol: Input should be less than or equal to 0\.001"):
        make_artifact(tmp_path, "v1.0.0", card={"parity": {"atol": 100.0}})


def test_network_that_draws_random_numbers_is_refused(tmp_path: Path) -> None:
    class Dice(Network):
        def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            mean, log_std = super().forward(features)
            return mean + 1e-9 * torch.rand_like(mean), log_std

    artifact = make_artifact(tmp_path, "v1.0.0", network=Dice(7, 2))
    with pytest.raises(ArtifactError, match=r"model\.pt: vector \d+, mean: the same observation gets other bits"):
        load_artifact(artifact)


@pytest.mark.parametrize("text", ["1.2.3", "v1.2.3"])
def test_versions_are_read_with_and_without_their_v(text: str) -> None:
    assert parse_version(text) == "v1.2.3"


@pytest.mark.parametrize("text", ["v1.2", "v01.2.3", "v1.2.3-rc1", "v1.2.3\n", "latest", "", "v\uff11.2.3", "vv1.2.3"])
def test_other_spellings_of_a_version_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a version: expected vMAJOR"):
        check_version(text)


@pytest.mark.parametrize("text", ["7e12ab34" + "0" * 32, "12e4", "1e5 steps of PPO", "-1E+2", "2026-01-01", "no"])
def test_texts_that_look_like_numbers_survive_the_card(tmp_path: Path, text: str) -> None:
    sha = text if len(text) == 40 else "0" * 40
    artifact = make_artifact(tmp_path, "v1.0.0", card={"description": text, "git_sha": sha})
    card = load_card(artifact / "model_card.yaml")
    assert (card.description, card.git_sha) == (text, sha)


def test_every_changed_bit_of_the_card_s_date_is_refused_by_file_name(shipped_copy: Path) -> None:
    card = shipped_copy / "model_card.yaml"
    original = card.read_bytes()
    start = original.index(b"created")
    for position in range(start, original.index(b"\n", start)):
        for bit in range(8):
            changed = bytearray(original)
            changed[position] ^= 1 << bit
            card.write_bytes(changed)
            with pytest.raises(ArtifactError, match=r"model_card\.yaml"):
                load_card(card)


def test_card_that_could_not_be_read_back_is_not_written(shipped_copy: Path) -> None:
    card = shipped_copy / "model_card.yaml"
    broken = card.read_text().replace("  atol: 1.0e-06", "  atol: -1.0")
    card.write_text(broken)
    with pytest.raises(ArtifactError, match=r"model_card\.yaml: parity\.atol"):
        seal(shipped_copy)
    assert card.read_text() == broken
    assert sorted(path.name for path in shipped_copy.iterdir()) == sorted(FILES)


@pytest.mark.parametrize(("outputs", "got"), [("double", r"float64 \(1, 2\)"), ("one", r"\['float64 \(1, 2\)'\]")])
def test_model_with_other_outputs_is_refused_by_file_name(tmp_path: Path, outputs: str, got: str) -> None:
    artifact = make_artifact(tmp_path, "v1.0.0")

    class Other(torch.nn.Module):
        def forward(self, features: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
            mean = features[:, :2].double()
            return (mean, mean) if outputs == "double" else mean

    torch.jit.trace(Other(), torch.zeros(2, 7)).save(str(artifact / "model.pt"))  # type: ignore[no-untyped-call]
    seal(artifact)
    with pytest.raises(
        ArtifactError, match=rf"model\.pt: expected the outputs \(mean float32 .*, log_std .*\), got .*{got}"
    ):
        load_artifact(artifact)


def test_versions_sort_by_number() -> None:
    assert sorted(["v0.10.0", "v0.9.1", "v1.0.0"], key=version_key) == ["v0.9.1", "v0.10.0", "v1.0.0"]


def test_numbers_of_yaml_1_2_are_numbers() -> None:
    assert parse_yaml(b"[1e-6, 1E3, 1.5e+2, 12, v1, 1e]", "x") == [1e-6, 1e3, 150.0, 12, "v1", "1e"]


def flip_byte(path: Path, position: float) -> None:
    """Change one byte at a relative position of a file."""
    data = bytearray(path.read_bytes())
    data[int(position * (len(data) - 1))] ^= 0x01
    path.write_bytes(data)


def change_golden(artifact: Path, name: str, index: tuple[int, int], value: float) -> None:
    """Set one value of a golden array, and seal the artifact again."""
    golden = dict(np.load(artifact / "golden.npz"))
    golden[name] = golden[name].copy()
    golden[name][index] = value
    np.savez(artifact / "golden.npz", **golden)
    seal(artifact)
