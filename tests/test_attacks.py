"""Hostile files are refused by every way in, by the name of the file: nothing runs, nothing is left behind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.archives import repack
from carla_policy.digests import DIGESTS_FILE, sha256
from carla_policy.errors import ArtifactError
from carla_policy.integrity import verify_files
from carla_policy.loading import load_policy
from carla_policy.runtimes import Signature, load_runtime
from carla_policy_tools import build as build_module
from carla_policy_tools.archive import check, copy_archive, unpack
from carla_policy_tools.artifact import load_artifact, seal
from carla_policy_tools.build import build, verify
from carla_policy_tools.client import golden_observations
from carla_policy_tools.configuration import load_profile
from carla_policy_tools.keys import load_signing_key, make_key_pair
from carla_policy_tools.lifecycle.records import Registry
from carla_policy_tools.lifecycle.registering import Newcomer, configure, record, register
from carla_policy_tools.lifecycle.registry import MAX_BYTES as MAX_REGISTRY_BYTES
from carla_policy_tools.lifecycle.registry import RegistryError, RegistryFile
from carla_policy_tools.paths import ARTIFACTS, archive_name
from carla_policy_tools.signing import sign_archive, signature_path
from tests.attacks import Attack, archives, arrays, documents, networks, pickles, registries
from tests.conftest import SHIPPED
from tests.declared import changed, digest_of, eventful
from tests.servers import ServeProcess
from tests.synthetic import make_artifact
from tests.test_versions import FIRST, OBSERVATION, SECOND, Operator, listed

VERSION, WITH_STATISTICS = SHIPPED[0], "v0.3.0"
ARCHIVE = archive_name(VERSION)
MAX_SECONDS, MAX_MEMORY = 5.0, 256 << 20
OF_FILES = [(pickles.FILE, attack) for attack in pickles.ATTACKS] + [(arrays.FILE, attack) for attack in arrays.ATTACKS]
BY_NAME = {file: {attack.name: attack for name, attack in OF_FILES if name == file} for file, _ in OF_FILES}
BY_NAME[arrays.STATISTICS] = {attack.name: attack for attack in arrays.OF_STATISTICS}
BY_NAME[registries.FILE] = {attack.name: attack for attack in registries.ATTACKS}
BY_NAME[ARCHIVE] = {attack.name: attack for attack in archives.ATTACKS}
LOADS = {
    pickles.FILE: "from carla_policy.safe_pickle import load_preprocessor_pickle as load",
    arrays.FILE: "from carla_policy.arrays import load_arrays as load",
    arrays.STATISTICS: "from carla_policy.arrays import load_arrays as load",
    ARCHIVE: "from carla_policy_tools.archive import unpack; load = lambda path: unpack(path, path.parent / 'target')",
    registries.FILE: (
        "from carla_policy_tools.lifecycle.registry import RegistryFile\n"
        "load = lambda path: RegistryFile.of(path.parent).read()"
    ),
}
"""What opens each kind of file."""
BOMBS = [
    *((pickles.FILE, name) for name in pickles.BOMBS),
    *((file, name) for file in (arrays.FILE, arrays.STATISTICS) for name in arrays.BOMBS),
    *((ARCHIVE, name) for name in archives.BOMBS),
    *((registries.FILE, name) for name in registries.BOMBS),
]


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


@pytest.fixture(scope="module")
def with_statistics(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact with a section ood, to be damaged in one file only."""
    return Path(shutil.copytree(ARTIFACTS / WITH_STATISTICS, tmp_path_factory.mktemp("ood") / WITH_STATISTICS))


@pytest.mark.parametrize("attack", arrays.OF_STATISTICS, ids=ids)
def test_hostile_statistics_of_an_artifact_do_not_load(with_statistics: Path, marker: Path, attack: Attack) -> None:
    shutil.copy(ARTIFACTS / WITH_STATISTICS / arrays.STATISTICS, with_statistics)
    attack.apply(with_statistics, marker)
    seal(with_statistics)
    with pytest.raises(ArtifactError, match=rf"^ood\.npz: .*({attack.refusal})"):
        load_artifact(with_statistics)
    assert not marker.exists()


def test_hostile_statistics_of_an_artifact_are_not_built(with_statistics: Path, tmp_path: Path, marker: Path) -> None:
    shutil.copy(ARTIFACTS / WITH_STATISTICS / arrays.STATISTICS, with_statistics)
    BY_NAME[arrays.STATISTICS]["pickled object"].apply(with_statistics, marker)
    seal(with_statistics)
    with pytest.raises(ArtifactError, match=r"^ood\.npz: cannot be read as an .npz file of plain arrays"):
        build(with_statistics, tmp_path / "store")
    assert not list((tmp_path / "store").iterdir())
    assert not marker.exists()


@pytest.fixture(scope="module")
def onnx_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_artifact(tmp_path_factory.mktemp("onnx"), "v1.0.0", runtime="onnx")


@pytest.mark.parametrize("attack", networks.ATTACKS, ids=ids)
def test_onnx_network_of_more_than_one_file_or_of_foreign_operators_does_not_load(
    onnx_artifact: Path, tmp_path: Path, marker: Path, attack: Attack
) -> None:
    artifact = Path(shutil.copytree(onnx_artifact, tmp_path / "v1.0.0"))
    attack.apply(artifact, marker)
    seal(artifact)
    with pytest.raises(ArtifactError, match=rf"^model\.onnx: .*({attack.refusal})"):
        load_artifact(artifact)


def test_onnx_network_that_looks_like_another_format_is_run_as_what_was_looked_through(
    onnx_artifact: Path, tmp_path: Path
) -> None:
    """Unknown fields at its beginning make the file begin as onnxruntime's own format does."""
    artifact = Path(shutil.copytree(onnx_artifact, tmp_path / "v1.0.0"))
    network = artifact / networks.FILE
    network.write_bytes(b"\x7d\x00\x00\x00ORTM".ljust(91, b"\0") + network.read_bytes())
    seal(artifact)
    assert load_artifact(artifact).policy.runtime.device in ("cpu", "cuda")


def test_onnx_network_of_more_than_one_file_is_not_built(onnx_artifact: Path, tmp_path: Path, marker: Path) -> None:
    artifact = Path(shutil.copytree(onnx_artifact, tmp_path / "v1.0.0"))
    networks.ATTACKS[0].apply(artifact, marker)
    seal(artifact)
    with pytest.raises(ArtifactError, match=rf"^model\.onnx: .*{networks.EXTERNAL}, '\.\./outside\.bin'"):
        build(artifact, tmp_path / "store")
    assert not list((tmp_path / "store").iterdir())


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
    unpacked: Callable[[str], Path], marker: Path, file: str, name: str
) -> None:
    """The worst case: whoever made the archive has also sealed it, and the worker unpickles the transformer itself."""
    directory = resealed(unpacked(VERSION), lambda path: BY_NAME[file][name].apply(path, marker))
    with pytest.raises(ArtifactError, match=rf"^{file}: .*({BY_NAME[file][name].refusal})"):
        load_policy(directory)
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
    archive = repack(directory, tmp_path / ARCHIVE, update_digests=attack.name not in documents.OF_DIGESTS)
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
    with pytest.raises(ArtifactError, match=r"model_card\.yaml") as refused:
        build(shipped_copy, tmp_path / "store")
    assert len(str(refused.value)) < 5_000
    assert not marker.exists()


@pytest.fixture(scope="module")
def costs(store: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, float, str]]:
    """Bytes of memory, seconds of processor time and the refusal of each bomb, each in a fork of one process."""
    places = {}
    for number, (file, name) in enumerate(BOMBS):
        directory = tmp_path_factory.mktemp("bomb")
        good = {ARCHIVE: store / ARCHIVE, registries.FILE: None}.get(file, ARTIFACTS / WITH_STATISTICS / file)
        if good:
            shutil.copy(good, directory)
        (directory / "target").mkdir()
        BY_NAME[file][name].apply(directory / file if file == ARCHIVE else directory, directory / "executed")
        places[f"{number}"] = (LOADS[file], str(directory / file))
    code = (
        "import json, os, resource, sys, time, sklearn.preprocessing, carla_policy_tools.lifecycle.registry\n"
        "import carla_policy_tools.archive\nfrom pathlib import Path\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10\n"
        "for number, (load_by, path) in json.loads(sys.stdin.read()).items():\n"
        "    if os.fork():\n        os.wait()\n        continue\n"
        "    exec(load_by)\n    before, start = peak(), time.process_time()\n    said = 'nothing'\n"
        "    try:\n        load(Path(path))\n    except ValueError as error:\n        said = str(error)[:300]\n"
        "    print(json.dumps([number, peak() - before, time.process_time() - start, said]), flush=True)\n"
        "    os._exit(0)\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, input=json.dumps(places), capture_output=True, text=True, timeout=300, check=True)
    measured = [json.loads(line) for line in done.stdout.splitlines()]
    return {"-".join(BOMBS[int(number)]): (memory, seconds, said) for number, memory, seconds, said in measured}


@pytest.mark.parametrize(("file", "name"), BOMBS, ids=ids)
def test_bomb_costs_neither_time_nor_memory(costs: dict[str, tuple[int, float, str]], file: str, name: str) -> None:
    memory, seconds, said = costs[f"{file}-{name}"]
    assert f"{file}: " in said
    assert memory < MAX_MEMORY
    assert seconds < MAX_SECONDS


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("attack", registries.ATTACKS, ids=ids)
def test_hostile_registry_is_refused(tmp_path: Path, marker: Path, attack: Attack) -> None:
    attack.apply(tmp_path, marker)
    before = (tmp_path / registries.FILE).read_bytes()
    with pytest.raises(ArtifactError, match=rf"^{tmp_path / registries.FILE}: .*({attack.refusal})") as refused:
        RegistryFile.of(tmp_path).read()
    assert len(str(refused.value)) < 2_000
    assert (tmp_path / registries.FILE).read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [registries.FILE]


def test_hostile_registry_is_refused_by_the_command_line(tmp_path: Path, store: Path, marker: Path) -> None:
    BY_NAME[registries.FILE]["other content after retirement"].apply(tmp_path, marker)
    said = Operator(store, tmp_path / registries.FILE).refused("status")
    assert f"error: {tmp_path / registries.FILE}: not a registry" in said
    assert "registers v1.3.0 with other content than before" in said


def test_registry_never_writes_what_it_would_not_read(tmp_path: Path) -> None:
    registries.ATTACKS[0].apply(tmp_path, tmp_path)
    registry = eventful()
    long = registry.model_copy(update={"history": registry.history * (MAX_REGISTRY_BYTES // 1_000)})
    before = (tmp_path / registries.FILE).read_bytes()
    with pytest.raises(RegistryError, match="its history has grown to 4 MiB; start another registry"):
        RegistryFile.of(tmp_path).write(long)
    assert (tmp_path / registries.FILE).read_bytes() == before


def pipe(path: Path) -> Path:
    """A pipe in the place of a file; nobody ever writes to it."""
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    return path


NO_FILE = "cannot be read: expected a plain file, got a pipe"


@pytest.mark.usefixtures("impatient")
def test_nobody_waits_for_a_pipe_in_the_place_of_an_archive(shipped_copy: Path, tmp_path: Path) -> None:
    archive, key = pipe(tmp_path / ARCHIVE), load_signing_key(make_key_pair(tmp_path / "key").private_key)
    for open_archive in (
        lambda: unpack(archive, tmp_path / "target"),
        lambda: copy_archive(archive, tmp_path / "copy"),
        lambda: verify(archive),
        lambda: sign_archive(archive, key),
        lambda: build(shipped_copy, tmp_path),
    ):
        with pytest.raises(ArtifactError, match=rf"{ARCHIVE}: {NO_FILE}"):
            open_archive()
    with pytest.raises(FileNotFoundError, match=rf"{ARCHIVE}: no archive"):
        golden_observations(archive)
    assert not (tmp_path / "copy").exists()
    served = Operator(tmp_path, tmp_path / registries.FILE).refused("serve", "--port", "0")
    assert f"{ARCHIVE}: {NO_FILE}; build it again" in served


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("name", ["model_card.yaml", "golden.npz", "preprocessor.pkl", "model.pt"])
def test_nobody_waits_for_a_pipe_in_an_artifact(shipped_copy: Path, tmp_path: Path, name: str) -> None:
    pipe(shipped_copy / name)
    for open_artifact in (lambda: build(shipped_copy, tmp_path / "store"), lambda: seal(shipped_copy)):
        with pytest.raises(ArtifactError, match=rf"{name}: (cannot be read: )?expected (a )?plain file"):
            open_artifact()
    assert not (tmp_path / "store").exists()


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("name", [DIGESTS_FILE, "model_card.yaml", "policy_handler.py"])
def test_nobody_waits_for_a_pipe_in_a_model_directory(unpacked: Callable[[str], Path], name: str) -> None:
    directory = unpacked(VERSION)
    pipe(directory / name)
    with pytest.raises(ArtifactError, match=rf"{name}: (cannot be read: )?expected (a )?plain file"):
        load_policy(directory)


@pytest.mark.usefixtures("impatient")
def test_nobody_waits_for_a_pipe_beside_an_archive(store: Path, tmp_path: Path) -> None:
    archive, pair = Path(shutil.copy(store / ARCHIVE, tmp_path)), make_key_pair(tmp_path / "key")
    pipe(signature_path(archive))
    with pytest.raises(ArtifactError, match=rf"{ARCHIVE}\.sig: {NO_FILE}"):
        sign_archive(archive, load_signing_key(pair.private_key))
    with pytest.raises(ArtifactError, match=rf"{registries.FILE}: {NO_FILE}"):
        RegistryFile.of(pipe(tmp_path / registries.FILE).parent).read()


@pytest.mark.parametrize("attack", ["compressed zeros", "pickled object", "array twice", "list of a million arrays"])
def test_hostile_golden_file_is_not_opened_to_ask_a_server(
    shipped_copy: Path, tmp_path: Path, marker: Path, attack: str
) -> None:
    """`predict` takes an observation from an archive that nobody has verified."""
    BY_NAME[arrays.FILE][attack].apply(shipped_copy, marker)
    archive = repack(shipped_copy, tmp_path / ARCHIVE)
    with pytest.raises(ArtifactError, match=rf"{ARCHIVE}: holds no golden observations that can be read: golden\.npz"):
        golden_observations(archive)
    assert not marker.exists()


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
    _, digest = check(archive, directory)
    assert digest == sha256(archive.read_bytes())
    archive.write_bytes(b"swapped")
    (directory / "policy_handler.py").write_text("raise SystemExit\n")
    with pytest.raises(ArtifactError, match=r"policy_handler\.py: content has changed"):
        verify_files(directory)


def test_digest_of_a_verified_archive_is_of_the_bytes_that_were_verified(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = Path(shutil.copy(store / ARCHIVE, tmp_path))
    digest = sha256(archive.read_bytes())

    def swapped(*_: object) -> dict[str, Any]:
        archive.write_bytes(b"swapped")
        return {
            name: [] for name in ("version", "preprocessor", "vectors", "gate", "stages", "atol", "git_sha", "probes")
        }

    monkeypatch.setattr(build_module, "_replay", swapped)
    assert verify(archive).digest == digest


def test_copy_that_is_swapped_after_it_was_verified_does_not_get_a_profile(store: Path, tmp_path: Path) -> None:
    """Another archive of the same version, good by itself, in the place of the verified one."""
    copy = Path(shutil.copy(store / ARCHIVE, tmp_path))
    with pytest.raises(ArtifactError, match=rf"{ARCHIVE}: has changed: expected sha256:0+, got sha256:"):
        configure(copy, load_profile("realtime"), f"sha256:{'0' * 64}")
    assert copy.read_bytes() == (store / ARCHIVE).read_bytes()


def test_exported_program_with_compiled_code_is_not_loaded(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "model.pt2", "w") as packed:
        packed.writestr("model/data/aotinductor/model/evil.so", b"\x7fELF")
    with pytest.raises(ArtifactError, match=r"^model\.pt2: .*evil\.so: compiled code"):
        load_runtime(tmp_path / "model.pt2", Signature({"features": 7}, {"mean": 2}), 1)


def test_hostile_archives_are_not_registered_beside_good_requests(
    small_store: Path, tmp_path: Path, marker: Path
) -> None:
    """On a real server; the first by the command line, the others by what it calls.

    The last one is hostile only to a history: a good archive, under a version that once was another one.
    """
    store = Path(shutil.copytree(small_store, tmp_path / "store"))
    operator = Operator(store, tmp_path / "registry.json")
    registry = RegistryFile(operator.registry, store)
    retired_before(store, registry)
    hostile, good = archive_name(SECOND), (store / archive_name(SECOND)).read_bytes()
    attacks = attacks_on_archives(tmp_path, marker)
    by_command = next(iter(attacks))
    with ServeProcess(store, FIRST, registry=operator.registry) as server:
        served = Path(server.ready["run_dir"])
        expected = server.post(None, OBSERVATION).json()["actions"]
        before = sorted(path.name for path in (served / "store").rglob("*"))
        declared = operator.registry.read_bytes()
        for name, change in attacks.items():
            (store / hostile).write_bytes(good)
            change(store / hostile)
            content = (store / hostile).read_bytes()
            if name == by_command:
                assert name in operator.refused("register", SECOND)
            else:
                with pytest.raises(ArtifactError, match=name):
                    register(registry, SECOND)
            assert (store / hostile).read_bytes() == content
            assert operator.registry.read_bytes() == declared
            assert listed(server) == {FIRST}
            assert server.post(None, OBSERVATION).json()["actions"] == expected
            assert sorted(path.name for path in (served / "store").rglob("*")) == before
        assert not marker.exists()


def retired_before(store: Path, registry: RegistryFile) -> None:
    """The registry of a deployment that had another archive of the second version, and retired it."""
    before = Registry()
    for version, digest in ((FIRST, sha256((store / archive_name(FIRST)).read_bytes())), (SECOND, digest_of("other"))):
        newcomer = Newcomer(version, digest, "0" * 40, "realtime")
        before = record(before, [newcomer], store, "", promote=None if before.promoted else version)
    registry.write(changed(before, "retire", SECOND))


def attacks_on_archives(scratch: Path, marker: Path) -> dict[str, Callable[[Path], None]]:
    """One of each class, by the file that must be named."""

    def inside(attack: Attack, number: int, *, sealed: bool) -> Callable[[Path], None]:
        def apply(archive: Path) -> None:
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
        "was registered before with other content": lambda _: None,
    }
