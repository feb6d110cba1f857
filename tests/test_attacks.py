"""Hostile files are refused by every way in, by the name of the file: nothing runs, nothing is left behind."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.archives import repack
from carla_policy.digests import DIGESTS_FILE
from carla_policy.errors import ArtifactError
from carla_policy.integrity import verify_files
from carla_policy.loading import load_policy
from carla_policy_tools.archive import check
from carla_policy_tools.artifact import seal
from carla_policy_tools.build import build, verify
from carla_policy_tools.configuration import load_profile
from carla_policy_tools.paths import archive_name
from tests.attacks import Attack, archives, arrays, documents, pickles
from tests.conftest import SHIPPED
from tests.servers import ServeProcess
from tests.synthetic import make_artifact
from tests.test_versions import FIRST, OBSERVATION, Operator, listed

VERSION = SHIPPED[0]
ARCHIVE = archive_name(VERSION)
MAX_SECONDS, MAX_MEMORY = 5.0, 256 << 20
OF_FILES = [(pickles.FILE, attack) for attack in pickles.ATTACKS] + [(arrays.FILE, attack) for attack in arrays.ATTACKS]
BY_NAME = {file: {attack.name: attack for name, attack in OF_FILES if name == file} for file, _ in OF_FILES}


def ids(value: object) -> str:
    return str(value)


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "executed"


@pytest.mark.parametrize(("file", "attack"), OF_FILES, ids=ids)
def test_hostile_file_of_an_artifact_is_not_built(
    shipped_copy: Path, tmp_path: Path, marker: Path, file: str, attack: Attack
) -> None:
    attack.apply(shipped_copy, marker)
    seal(shipped_copy)
    with pytest.raises(ArtifactError, match=rf"^{file}: .*({attack.refusal})"):
        build(shipped_copy, tmp_path / "store")
    assert not marker.exists()
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("file", "name"),
    [
        *(
            (pickles.FILE, name)
            for name in ("builtins.eval", "second pickle", "function", "bytes as pointers", "method")
        ),
        *((arrays.FILE, name) for name in ("pickled object", "NaN", "huge shape", "array twice")),
    ],
    ids=ids,
)
def test_hostile_file_whose_digests_fit_does_not_load_in_a_worker(
    unpacked: Callable[[str], Path], tmp_path: Path, marker: Path, file: str, name: str
) -> None:
    """The worst case: whoever made the archive has also sealed it, and the worker unpickles the transformer itself."""
    directory = resealed(unpacked(VERSION), lambda path: BY_NAME[file][name].apply(path, marker))
    with pytest.raises(ArtifactError, match=rf"^{file}: .*({BY_NAME[file][name].refusal})"):
        load_policy(directory)
    with pytest.raises(ArtifactError, match=file):
        verify(repack(directory, tmp_path / ARCHIVE))
    assert not marker.exists()


def resealed(directory: Path, change: Callable[[Path], None]) -> Path:
    """An unpacked archive after `change`, with the digests of card and listing made to fit, and no compiled form."""
    artifact = directory.parent / f"{directory.name}-artifact"
    artifact.mkdir()
    for name in (*pickles_and_arrays(), "model.pt", "model_card.yaml"):
        shutil.copy(directory / name, artifact)
    change(artifact)
    seal(artifact)
    shutil.copytree(artifact, directory, dirs_exist_ok=True)
    (directory / "preprocessor.npz").unlink()
    repack(directory, artifact / "scratch.mar")
    return directory


def pickles_and_arrays() -> tuple[str, ...]:
    return pickles.FILE, arrays.FILE


@pytest.mark.parametrize("attack", archives.ATTACKS, ids=ids)
def test_hostile_archive_is_refused_before_anything_of_it_runs(
    store: Path, tmp_path: Path, marker: Path, attack: Attack
) -> None:
    archive = Path(shutil.copy(store / ARCHIVE, tmp_path))
    attack.apply(archive, marker)
    (tmp_path / "target").mkdir()
    with pytest.raises(ArtifactError, match=attack.refusal):
        check(archive, tmp_path / "target")
    with pytest.raises(ArtifactError, match=attack.refusal):
        verify(archive)
    assert sorted(path.name for path in tmp_path.iterdir()) == [ARCHIVE, "target"]


@pytest.mark.parametrize("attack", documents.ATTACKS, ids=ids)
def test_archive_with_a_hostile_document_is_refused(
    unpacked: Callable[[str], Path], tmp_path: Path, marker: Path, attack: Attack
) -> None:
    directory = unpacked(VERSION)
    attack.apply(directory, marker)
    archive = repack(directory, tmp_path / ARCHIVE, update_digests=attack.name != "deep digests")
    with pytest.raises(ArtifactError, match=attack.refusal):
        verify(archive)
    assert not marker.exists()


@pytest.mark.parametrize("name", documents.YAML)
def test_yaml_that_means_more_than_it_says_is_refused_as_profile_and_as_card(
    shipped_copy: Path, tmp_path: Path, marker: Path, name: str
) -> None:
    text, refusal = documents.YAML[name]
    profile = tmp_path / "profile.yaml"
    profile.write_text(text.replace("{marker}", str(marker)))
    with pytest.raises(ValueError, match=rf"profile\.yaml: .*({refusal})"):
        load_profile(str(profile))
    card = shipped_copy / documents.CARD
    card.write_text(text.replace("{marker}", str(marker)))
    with pytest.raises(ArtifactError, match=r"model_card\.yaml"):
        build(shipped_copy, tmp_path / "store")
    assert not marker.exists()


@pytest.mark.parametrize(
    ("file", "name"),
    [*((pickles.FILE, name) for name in pickles.BOMBS), *((arrays.FILE, name) for name in arrays.BOMBS)],
    ids=ids,
)
def test_bomb_costs_neither_time_nor_memory(shipped_copy: Path, marker: Path, file: str, name: str) -> None:
    BY_NAME[file][name].apply(shipped_copy, marker)
    loads = {
        pickles.FILE: "from carla_policy.safe_pickle import load_preprocessor_pickle as load",
        arrays.FILE: "from carla_policy.arrays import load_arrays as load",
    }
    code = (
        f"{loads[file]}\nimport resource, sys, time, sklearn.preprocessing\nfrom pathlib import Path\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10\n"
        "before, start = peak(), time.process_time()\n"
        "try:\n    load(Path(sys.argv[1]))\nexcept ValueError as error:\n    said = str(error)[:300]\n"
        "print(peak() - before, time.process_time() - start, said)\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, str(shipped_copy / file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    memory, seconds, said = done.stdout.split(maxsplit=2)
    assert said.startswith(f"{file}: ")
    assert int(memory) < MAX_MEMORY
    assert float(seconds) < MAX_SECONDS


@pytest.mark.parametrize("kind", ["file", "directory", "absent"])
def test_link_in_a_model_directory_or_an_artifact_is_refused(
    unpacked: Callable[[str], Path], shipped_copy: Path, tmp_path: Path, kind: str
) -> None:
    target = tmp_path / "elsewhere"
    for directory in (unpacked(VERSION), shipped_copy):
        if kind == "file":
            shutil.copy(directory / "model.pt", target)
            (directory / "model.pt").unlink()
            (directory / "model.pt").symlink_to(target)
        else:
            target = tmp_path / kind
            if kind == "directory":
                target.mkdir(exist_ok=True)
                (target / "__init__.py").write_text("")
            (directory / "json").symlink_to(target)
    named = "model.pt" if kind == "file" else "json"
    with pytest.raises(ArtifactError, match=rf"{named}: expected plain files"):
        load_policy(directory if (directory / DIGESTS_FILE).exists() else unpacked_with(unpacked, named, target))
    with pytest.raises(ArtifactError, match=rf"{named}: expected plain files"):
        build(shipped_copy, tmp_path / "store")


def unpacked_with(unpacked: Callable[[str], Path], name: str, target: Path) -> Path:
    directory = unpacked(VERSION)
    (directory / name).unlink(missing_ok=True)
    (directory / name).symlink_to(target)
    return directory


def test_archive_that_is_swapped_while_it_is_verified_is_not_what_loads(store: Path, tmp_path: Path) -> None:
    """What is unpacked is read once; a worker holds its own copy against its digests again."""
    archive = Path(shutil.copy(store / ARCHIVE, tmp_path))
    directory = tmp_path / "model"
    directory.mkdir()
    check(archive, directory)
    archive.write_bytes(b"swapped")
    (directory / "policy_handler.py").write_text("raise SystemExit\n")
    with pytest.raises(ArtifactError, match=r"policy_handler\.py: content has changed"):
        verify_files(directory)


def test_exported_program_with_compiled_code_is_not_loaded(tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path, "v1.0.0", runtime="pt2")
    import zipfile

    with zipfile.ZipFile(artifact / "model.pt2", "a") as packed:
        packed.writestr("model/data/aotinductor/model/evil.so", b"\x7fELF")
    seal(artifact)
    with pytest.raises(ArtifactError, match=r"model\.pt2: .*evil\.so: compiled code"):
        build(artifact, tmp_path / "store")


def test_hostile_archives_are_not_registered_beside_good_requests(
    small_store: Path, tmp_path: Path, marker: Path
) -> None:
    store = Path(shutil.copytree(small_store, tmp_path / "store"))
    operator = Operator(store, tmp_path / "registry.json")
    hostile, good = archive_name("v1.10.0"), (store / archive_name("v1.10.0")).read_bytes()
    with ServeProcess(store, FIRST, registry=operator.registry) as server:
        served = Path(server.ready["run_dir"])
        expected = server.post(None, OBSERVATION).json()["actions"]
        before = sorted(path.name for path in (served / "store").rglob("*")) if (served / "store").exists() else []
        for name, change in attacks_on_archives(tmp_path, marker).items():
            (store / hostile).write_bytes(good)
            change(store / hostile)
            content = (store / hostile).read_bytes()
            message = operator.refused("register", "v1.10.0")
            assert name in message
            assert (store / hostile).read_bytes() == content
            assert listed(server) == {FIRST}
            assert server.post(None, OBSERVATION).json()["actions"] == expected
            after = sorted(path.name for path in (served / "store").rglob("*")) if before else []
            assert after == before
        assert not marker.exists()
        (store / hostile).write_bytes(good)
        operator.do("register", "v1.10.0")


def attacks_on_archives(scratch: Path, marker: Path) -> dict[str, Callable[[Path], None]]:
    """One of each class, by the file that must be named."""

    def inside(attack: Attack, number: int, *, sealed: bool) -> Callable[[Path], None]:
        def apply(archive: Path) -> None:
            from carla_policy_tools.archive import unpack

            directory = scratch / f"hostile-{number}"
            directory.mkdir()
            unpack(archive, directory)
            if sealed:
                resealed(directory, lambda path: attack.apply(path, marker))
            else:
                attack.apply(directory, marker)
            repack(directory, archive)

        return apply

    by_name = {attack.name: attack for attack in (*archives.ATTACKS, *documents.ATTACKS)}
    return {
        "requirements.txt": lambda archive: by_name["requirements"].apply(archive, marker),
        "torch.py": lambda archive: by_name["shadowing module"].apply(archive, marker),
        "preprocessor.pkl": inside(BY_NAME[pickles.FILE]["os.system"], 0, sealed=True),
        "golden.npz": inside(BY_NAME[arrays.FILE]["pickled object"], 1, sealed=True),
        "MANIFEST.json": inside(by_name["other handler"], 2, sealed=False),
        "model-config.yaml": inside(by_name["torchrun"], 3, sealed=False),
    }
