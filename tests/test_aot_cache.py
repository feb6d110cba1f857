"""Java's ahead-of-time cache makes the server's start faster, and never keeps it from starting."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from carla_policy_tools.aot_cache import cache_file, record_flags, seal, use_flags
from carla_policy_tools.java import Java, find_java
from carla_policy_tools.torchserve import JAR

TIMEOUT_S = 120
JAVA = find_java()
needs_cache = pytest.mark.skipif(JAVA.major < 25, reason="this Java has no ahead-of-time caches")


def _help(flags: list[str], directory: Path) -> subprocess.CompletedProcess[str]:
    """TorchServe's help: what it does with few classes, and then ends."""
    command = [str(JAVA.executable), *JAVA.flags(256), *flags, "-cp", str(JAR), "org.pytorch.serve.ModelServer", "-h"]
    return subprocess.run(command, capture_output=True, text=True, cwd=directory, timeout=TIMEOUT_S, check=False)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a small cache that fits this Java and TorchServe."""
    directory = tmp_path_factory.mktemp("aot")
    path = cache_file(JAVA, JAR, directory)
    assert path is not None
    _help(record_flags(path), directory)
    seal(path)
    return directory


def test_without_a_cache_java_is_told_of_none(tmp_path: Path) -> None:
    assert use_flags(JAVA, JAR, tmp_path / "not there") == []


def test_a_java_without_such_caches_is_told_of_none(tmp_path: Path) -> None:
    old = Java(JAVA.executable, 24, JAVA.release)

    assert cache_file(old, JAR, tmp_path) is None
    assert use_flags(old, JAR, tmp_path) == []


@needs_cache
def test_a_cache_fits_a_jar_whose_time_has_lost_its_fraction(tmp_path: Path) -> None:
    """As in the layers of a container image; Java itself compares whole seconds."""
    jar = Path(shutil.copy2(JAR, tmp_path / "copy.jar"))
    paths = set()
    for fraction in (0, 700_000_000):
        os.utime(jar, ns=(0, 10**18 + fraction))
        paths.add(cache_file(JAVA, jar, tmp_path))
    assert len(paths) == 1


@needs_cache
def test_a_cache_belongs_to_one_java_and_one_jar(tmp_path: Path) -> None:
    jar = Path(shutil.copy2(JAR, tmp_path / "other.jar"))
    paths = [
        cache_file(JAVA, JAR, tmp_path),
        cache_file(replace(JAVA, release="another build"), JAR, tmp_path),
        cache_file(JAVA, jar, tmp_path),
    ]
    os.utime(jar, ns=(0, 0))
    paths.append(cache_file(JAVA, jar, tmp_path))

    assert len(set(paths)) == len(paths)
    assert cache_file(JAVA, JAR, tmp_path) == paths[0]


@needs_cache
def test_classes_come_from_the_cache(recorded: Path, tmp_path: Path) -> None:
    done = _help([*use_flags(JAVA, JAR, recorded), "-Xlog:class+load:file=classes.log"], tmp_path)

    assert "usage" in done.stdout
    assert "org.pytorch.serve.ModelServer source: shared objects file" in (tmp_path / "classes.log").read_text()


@needs_cache
@pytest.mark.parametrize("damage", ["empty", "cut", "text", "head", "0.1", "0.5", "0.9"])
def test_a_damaged_cache_is_not_used(recorded: Path, tmp_path: Path, damage: str) -> None:
    """Java itself does not always notice: it has crashed on damage near the end."""
    shutil.copytree(recorded, tmp_path, dirs_exist_ok=True)
    path = cache_file(JAVA, JAR, tmp_path)
    assert path is not None
    assert use_flags(JAVA, JAR, tmp_path) != []
    data = bytearray(path.read_bytes())
    if damage == "cut":
        data = data[: len(data) // 2]
    elif damage in ("empty", "text"):
        data = bytearray(b"" if damage == "empty" else b"no cache\n" * 10_000)
    else:
        first = 100 if damage == "head" else int(float(damage) * len(data))
        data[first : first + 4096] = bytes(byte ^ 0xFF for byte in data[first : first + 4096])
    path.write_bytes(data)
    assert use_flags(JAVA, JAR, tmp_path) == []


@needs_cache
def test_a_cache_without_its_digest_is_not_used(recorded: Path, tmp_path: Path) -> None:
    shutil.copytree(recorded, tmp_path, dirs_exist_ok=True)
    for digest in tmp_path.glob("*.sha256"):
        digest.unlink()
    assert use_flags(JAVA, JAR, tmp_path) == []
