"""Archives: reproducible, self-contained, and refused when anything of them has changed."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from sklearn.preprocessing import StandardScaler

from benchmarks.archives import repack
from carla_policy.errors import ArtifactError
from carla_policy.loading import load_policy
from carla_policy_tools import archive as archive_module
from carla_policy_tools import build as build_module
from carla_policy_tools.archive import unpack
from carla_policy_tools.artifact import seal
from carla_policy_tools.build import build, verify
from carla_policy_tools.paths import ARTIFACTS, archive_name
from tests.conftest import SHIPPED
from tests.synthetic import make_artifact
from tests.test_artifact import change_golden, flip_byte

VERSION = SHIPPED[0]
ARCHIVE = archive_name(VERSION)


def test_the_same_artifact_gives_the_same_bytes(store: Path, tmp_path: Path) -> None:
    build(ARTIFACTS / VERSION, tmp_path)
    assert (tmp_path / ARCHIVE).read_bytes() == (store / ARCHIVE).read_bytes()


def test_building_again_changes_nothing(shipped_copy: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    first = build(shipped_copy, store)
    stamp = (store / ARCHIVE).stat().st_mtime_ns
    second = build(shipped_copy, store)
    assert (first.unchanged, second.unchanged) == (False, True)
    assert (store / ARCHIVE).stat().st_mtime_ns == stamp
    assert [path.name for path in store.iterdir()] == [ARCHIVE]


def test_other_content_under_a_built_version_is_refused(shipped_copy: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    build(shipped_copy, store)
    before = (store / ARCHIVE).read_bytes()
    card = shipped_copy / "model_card.yaml"
    card.write_text(card.read_text().replace("episodes: 40", "episodes: 41"))
    seal(shipped_copy)
    with pytest.raises(ArtifactError, match=rf"{ARCHIVE}: this version was built before with other content"):
        build(shipped_copy, store)
    assert (store / ARCHIVE).read_bytes() == before


def test_a_version_that_does_not_reproduce_its_training_is_not_built(shipped_copy: Path, tmp_path: Path) -> None:
    change_golden(shipped_copy, "mean", (3, 0), 0.5)
    store = tmp_path / "store"
    with pytest.raises(ArtifactError, match=r"golden\.npz: vector 3, mean\.acceleration: expected 0\.5, got"):
        build(shipped_copy, store)
    assert list(store.iterdir()) == []


def test_archive_is_laid_out_by_torch_model_archiver(store: Path) -> None:
    with zipfile.ZipFile(store / ARCHIVE) as packed:
        manifest = json.loads(packed.read("MAR-INF/MANIFEST.json"))
        names = set(packed.namelist())
    assert manifest["model"]["modelName"] == "carla_policy"
    assert manifest["model"]["modelVersion"] == VERSION
    assert manifest["model"]["handler"] == "policy_handler.py"
    assert manifest["archiverVersion"] == "0.12.0"
    assert {"policy_handler.py", "carla_policy/policy.py", "preprocessor.npz", "preprocessor.pkl"} <= names
    assert not [name for name in names if "__pycache__" in name]


def test_worker_does_not_import_scikit_learn(unpacked: Callable[[str], Path]) -> None:
    import subprocess
    import sys

    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\nfrom pathlib import Path\nimport policy_handler\n"
        "from carla_policy.loading import load_policy\nload_policy(Path(sys.argv[1]))\n"
        "print([name for name in ('sklearn', 'scipy', 'carla_policy_tools') if name in sys.modules])"
    )
    command = [sys.executable, "-B", "-W", "ignore", "-c", code, str(unpacked(VERSION))]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_archive_that_lacks_a_module_is_not_self_contained(tmp_path: Path, unpacked: Callable[[str], Path]) -> None:
    directory = unpacked(VERSION)
    (directory / "carla_policy" / "heads.py").unlink()
    archive = repack(directory, tmp_path / ARCHIVE)
    with pytest.raises(ArtifactError, match=r"carla_policy\.heads"):
        verify(archive)


def test_every_changed_file_of_an_archive_is_refused_by_name(store: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(store / ARCHIVE) as packed:
        entries = {entry.filename: entry for entry in packed.infolist()}
    for name, entry in entries.items():
        if not entry.file_size:
            continue
        data = bytearray((store / ARCHIVE).read_bytes())
        content_start = entry.header_offset + 30 + len(name.encode())
        data[content_start + entry.file_size // 2] ^= 0x20
        changed = tmp_path / ARCHIVE
        changed.write_bytes(data)
        with pytest.raises(ArtifactError, match=name.replace(".", r"\.")):
            verify(changed)


def test_every_changed_file_stops_the_load_by_name(unpacked: Callable[[str], Path], tmp_path: Path) -> None:
    original = unpacked(VERSION)
    names = [
        path.relative_to(original) for path in sorted(original.rglob("*")) if path.is_file() and path.stat().st_size
    ]
    assert len(names) > 20
    for number, name in enumerate(names):
        directory = tmp_path / str(number)
        shutil.copytree(original, directory)
        flip_byte(directory / name, 0.5)
        with pytest.raises(ArtifactError, match=str(name).replace(".", r"\.")):
            load_policy(directory)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.9, 0.999, 1.0])
def test_any_byte_of_the_archive_matters(store: Path, tmp_path: Path, share: float) -> None:
    changed = tmp_path / ARCHIVE
    shutil.copyfile(store / ARCHIVE, changed)
    flip_byte(changed, share)
    with pytest.raises(ArtifactError):
        verify(changed)


def test_extra_file_in_an_archive_is_refused(unpacked: Callable[[str], Path], tmp_path: Path) -> None:
    directory = unpacked(VERSION)
    (directory / "json.py").write_text("")
    archive = repack(directory, tmp_path / ARCHIVE, update_digests=False)
    with pytest.raises(ArtifactError, match=r"'json\.py': no part of an archive"):
        verify(archive)
    with pytest.raises(ArtifactError, match=r"json\.py: not listed in digests\.json"):
        load_policy(directory)


@pytest.mark.parametrize(
    "name", ["requirements.txt", "torch.py", "carla_policy/.env", "carla_policy/__pycache__/safety.cpython-311.pyc"]
)
def test_file_that_no_build_packs_is_refused_even_if_its_digest_is_listed(
    unpacked: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    directory = unpacked(VERSION)
    (directory / name).parent.mkdir(exist_ok=True)
    (directory / name).write_text("")
    with pytest.raises(ArtifactError, match="no part of an archive"):
        verify(repack(directory, tmp_path / ARCHIVE))


@pytest.mark.parametrize(
    ("name", "accepted"), [("policy_handler.cpython-311.pyc", True), ("other.cpython-311.pyc", False)]
)
def test_only_the_interpreter_s_own_bytecode_may_appear_beside_the_handler(
    unpacked: Callable[[str], Path], name: str, accepted: bool
) -> None:
    directory = unpacked(VERSION)
    (directory / "__pycache__").mkdir()
    (directory / "__pycache__" / name).write_bytes(b"")
    with nullcontext() if accepted else pytest.raises(ArtifactError, match=name):
        load_policy(directory)


def test_litter_in_the_checkout_is_not_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = Path(shutil.copytree(archive_module.HANDLER_SOURCES, tmp_path / "handler"))
    (sources / "carla_policy" / ".env").write_text("secret")
    (sources / "carla_policy" / "policy.py~").write_text("old")
    monkeypatch.setattr(archive_module, "HANDLER_SOURCES", sources)
    build(ARTIFACTS / VERSION, tmp_path / "store")
    with zipfile.ZipFile(tmp_path / "store" / ARCHIVE) as packed:
        assert not [name for name in packed.namelist() if name.endswith((".env", "~"))]


def test_compressed_archive_is_refused_before_it_is_unpacked(unpacked: Callable[[str], Path], tmp_path: Path) -> None:
    archive = tmp_path / ARCHIVE
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        for path in unpacked(VERSION).rglob("*.py"):
            packed.write(path, path.relative_to(path.parents[1]).as_posix())
    with pytest.raises(ArtifactError, match="not the name or kind of a file that a build packs"):
        unpack(archive, tmp_path / "target")


def test_build_that_was_overtaken_by_another_does_not_overwrite_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def verify_slowly(candidate: Path) -> object:
        (tmp_path / ARCHIVE).write_bytes(b"built by somebody else meanwhile")
        return verify(candidate)

    monkeypatch.setattr(build_module, "verify", verify_slowly)
    with pytest.raises(ArtifactError, match="this version was built before with other content"):
        build(ARTIFACTS / VERSION, tmp_path)
    assert (tmp_path / ARCHIVE).read_bytes() == b"built by somebody else meanwhile"


def test_card_with_a_limit_below_the_golden_rows_is_built(tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path, "v1.0.0", card={"inference": {"max_observations": 60}})
    assert build(artifact, tmp_path).verification.gate == "tile 1, parity.atol 1e-06"


def test_changed_digit_in_the_listing_blames_the_listing(unpacked: Callable[[str], Path]) -> None:
    directory = unpacked(VERSION)
    text = (directory / "digests.json").read_text()
    position = text.index("model.pt") + len('model.pt": "sha256:')
    digit = "0" if text[position] != "0" else "1"
    (directory / "digests.json").write_text(text[:position] + digit + text[position + 1 :])
    with pytest.raises(ArtifactError, match=r"^digests\.json: content has changed"):
        load_policy(directory)


@pytest.mark.parametrize("name", ["../outside", "/absolute", "a/../../b", "a\\b"])
def test_names_that_leave_the_directory_are_refused(tmp_path: Path, name: str) -> None:
    archive = tmp_path / "inner" / ARCHIVE
    archive.parent.mkdir()
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr(name, "x")
    (tmp_path / "target").mkdir()
    with pytest.raises(ArtifactError, match="not the name or kind of a file that a build packs"):
        unpack(archive, tmp_path / "target")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["inner", "target"]


def test_archive_under_another_version_s_name_is_refused(store: Path, tmp_path: Path) -> None:
    renamed = tmp_path / archive_name("v7.0.0")
    shutil.copyfile(store / ARCHIVE, renamed)
    with pytest.raises(ArtifactError, match=rf"{renamed.name}: holds {VERSION}; its name must be {ARCHIVE}"):
        verify(renamed)


def test_file_that_is_no_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / ARCHIVE).write_bytes(b"no zip")
    with pytest.raises(ArtifactError, match=rf"{ARCHIVE}: File is not a zip file"):
        verify(tmp_path / ARCHIVE)
    with pytest.raises(ArtifactError, match=r"absent\.mar: cannot be read: No such file"):
        verify(tmp_path / "absent.mar")


def test_compiled_form_that_is_not_bit_equal_is_not_used(tmp_path: Path) -> None:
    class Cautious(StandardScaler):
        """A scaler whose arithmetic the compiler cannot know."""

    artifact = make_artifact(tmp_path, "v1.0.0", preprocessor=StandardScaler())
    from carla_policy.card import load_card
    from carla_policy_tools import compilation
    from carla_policy_tools.artifact import load_training_preprocessor

    training = load_training_preprocessor(artifact, load_card(artifact / "model_card.yaml"))
    observations = np.load(artifact / "golden.npz")["observations"]
    assert compilation.compile_preprocessor(training, observations).form == "compiled"
    training.transformer.transform = lambda rows: Cautious.transform(training.transformer, rows) * (1 + 1e-6)
    with pytest.raises(compilation.NotCompilable, match=r"compiled form differs from transform in .* values"):
        compilation.compile_preprocessor(training, observations)
