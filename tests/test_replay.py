"""Verification of an archive: names that disagree, code at fault, and nothing run before it was checked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from carla_policy.digests import directory_digests, dump_digests
from carla_policy.errors import ArtifactError
from carla_policy.loading import LoadedPolicy, load_policy
from carla_policy.preprocessing import CompiledPreprocessor, Step, load_compiled
from carla_policy_tools import archive as archive_module
from carla_policy_tools import isolated_replay
from carla_policy_tools.archive import unpack
from carla_policy_tools.build import verify
from tests.test_archive import ARCHIVE, VERSION, repack


@pytest.mark.parametrize("change", [{"modelVersion": "v9.9.9"}, {"modelName": "other"}])
def test_manifest_that_names_something_else_is_refused(
    unpacked: Callable[[str], Path], tmp_path: Path, change: dict[str, str]
) -> None:
    directory = unpacked(VERSION)
    rename_in_manifest(directory, **change)
    (value,) = change.values()
    expected = rf"MANIFEST\.json: expected the manifest of carla_policy {VERSION} .*, got .*{value}"
    with pytest.raises(ArtifactError, match=expected):
        verify(repack(directory, tmp_path / ARCHIVE))


def test_changed_code_of_an_archive_is_refused_before_it_runs(unpacked: Callable[[str], Path], tmp_path: Path) -> None:
    directory, marker = unpacked(VERSION), tmp_path / "executed"
    with (directory / "policy_handler.py").open("a") as file:
        file.write(f"\nopen({str(marker)!r}, 'w').close()\n")
    with pytest.raises(ArtifactError, match=r"policy_handler\.py: content has changed"):
        verify(repack(directory, tmp_path / ARCHIVE, update_digests=False))
    assert not marker.exists()


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("deciding", "map(slice, [0, *ends], ends)", "map(slice, [0] * len(ends), ends)", "is batched with"),
        ("deciding", "(self._policy.decide(actions,", "(self._policy.decide(-actions,", "are not the golden actions"),
        ("service", "import logging\n", "import carla_policy_tools\n", "No module named 'carla_policy_tools'"),
    ],
)
def test_archive_whose_serving_code_is_at_fault_is_refused(
    unpacked: Callable[[str], Path], tmp_path: Path, file: str, old: str, new: str, message: str
) -> None:
    path = unpacked(VERSION) / "carla_policy" / f"{file}.py"
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    with pytest.raises(ArtifactError, match=message):
        verify(repack(path.parents[1], tmp_path / ARCHIVE))


@pytest.mark.parametrize(
    ("steps", "is_bounded"),
    [
        ([("subtract", 1.0), ("divide", 2.0)], True),
        ([("multiply", -1e300), ("maximum", 0.0), ("minimum", 1.0)], True),
        ([("divide", 1e-300)], False),
        ([("multiply", -1e300), ("minimum", 1.0)], False),
    ],
)
def test_overflow_is_ruled_out_when_a_preprocessor_is_loaded_or_watched_for_in_each_pass(
    synthetic: LoadedPolicy, tmp_path: Path, steps: list[tuple[str, float]], is_bounded: bool
) -> None:
    card = synthetic.policy.card
    card = card.model_copy(update={"preprocessor": card.preprocessor.model_copy(update={"input_dtype": "float64"})})
    columns = card.observation.columns
    own = tuple(Step(operation, np.full(columns, operand)) for operation, operand in steps)
    CompiledPreprocessor(own, np.dtype("float64")).save(tmp_path / "preprocessor.npz")
    loaded = load_compiled(tmp_path / "preprocessor.npz", card)
    assert loaded.is_bounded == is_bounded
    low, high = card.observation.bounds
    between = np.random.default_rng(1).uniform(low, high, (50, columns)).astype(np.float32)
    features = loaded(np.vstack([low, high, between]))
    assert np.isfinite(features).all() == is_bounded


def test_modules_from_outside_of_the_archive_are_noticed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"carla_policy: the archive does not carry it; it was found at .*handler"):
        isolated_replay._check_origins(tmp_path)


def test_list_of_digests_has_one_spelling(unpacked: Callable[[str], Path]) -> None:
    listing = unpacked(VERSION) / "digests.json"
    listing.write_text(json.dumps(json.loads(listing.read_text())))
    with pytest.raises(ArtifactError, match=r"digests\.json: content has changed"):
        load_policy(listing.parent)


@pytest.mark.parametrize("operand", [np.zeros(7, np.float32), np.zeros(8), np.full(7, np.nan)])
def test_compiled_step_that_does_not_fit_the_card_is_refused(
    synthetic: LoadedPolicy, tmp_path: Path, operand: np.ndarray
) -> None:
    CompiledPreprocessor((Step("add", operand),), operand.dtype).save(tmp_path / "preprocessor.npz")
    with pytest.raises(ArtifactError, match=r"preprocessor\.npz: 000_add: expected (7 )?finite numbers"):
        load_compiled(tmp_path / "preprocessor.npz", synthetic.policy.card)


@pytest.mark.parametrize(("limit", "value"), [("MAX_ENTRIES", 3), ("MAX_BYTES", 1)])
def test_archive_beyond_the_limits_is_refused_before_it_is_unpacked(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: int
) -> None:
    monkeypatch.setattr(archive_module, limit, value)
    with pytest.raises(ArtifactError, match=rf"{ARCHIVE}: (expected at most 3 files|larger than 1 bytes)"):
        unpack(store / ARCHIVE, tmp_path)
    assert list(tmp_path.iterdir()) == []


def rename_in_manifest(directory: Path, **change: str) -> None:
    """Change keys of the manifest's model, and list the digests again."""
    path = directory / "MAR-INF" / "MANIFEST.json"
    manifest = json.loads(path.read_text())
    manifest["model"] |= change
    path.write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n")
    digests = {name: digest for name, digest in directory_digests(directory).items() if "__pycache__" not in name}
    (directory / "digests.json").write_text(dump_digests(digests))
