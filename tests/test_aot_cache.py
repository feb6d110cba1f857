"""Java's ahead-of-time cache makes the server's start faster, and never keeps it from starting."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from carla_policy_tools.aot_cache import cache_file, record_flags, use_flags
from carla_policy_tools.configuration import choose_ports, load_profile, properties
from carla_policy_tools.java import Java, find_java
from carla_policy_tools.torchserve import JAR, TorchServe

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
    assert path.is_file()
    return directory


def test_without_a_cache_java_is_told_of_none(tmp_path: Path) -> None:
    assert use_flags(JAVA, JAR, tmp_path / "not there") == []


def test_a_java_without_such_caches_is_told_of_none(tmp_path: Path) -> None:
    old = Java(JAVA.executable, 24, JAVA.release)

    assert cache_file(old, JAR, tmp_path) is None
    assert use_flags(old, JAR, tmp_path) == []


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
def test_a_damaged_cache_is_not_used_and_changes_nothing(recorded: Path, tmp_path: Path, damage: str) -> None:
    expected = _help([], tmp_path)
    path = cache_file(JAVA, JAR, tmp_path)
    assert path is not None
    data = bytearray(cache_file(JAVA, JAR, recorded).read_bytes())  # type: ignore[union-attr]
    if damage == "cut":
        data = data[: len(data) // 2]
    elif damage in ("empty", "text"):
        data = bytearray(b"" if damage == "empty" else b"no cache\n" * 10_000)
    else:
        first = 100 if damage == "head" else int(float(damage) * len(data))
        data[first : first + 4096] = bytes(byte ^ 0xFF for byte in data[first : first + 4096])
    path.write_bytes(data)

    done = _help(use_flags(JAVA, JAR, tmp_path), tmp_path)

    assert (done.returncode, done.stdout) == (expected.returncode, expected.stdout)


@needs_cache
def test_a_server_starts_with_a_damaged_cache(recorded: Path, small_store: Path, tmp_path: Path, run_dir: Path) -> None:
    path = cache_file(JAVA, JAR, tmp_path)
    assert path is not None
    data = bytearray(cache_file(JAVA, JAR, recorded).read_bytes())  # type: ignore[union-attr]
    data[len(data) // 3 : len(data) // 3 + 8192] = bytes(8192)
    path.write_bytes(data)
    ports, versions = choose_ports(0), {"v1.9.0": load_profile("realtime")}
    settings = properties(versions=versions, promoted="v1.9.0", ports=ports, store=small_store)
    with TorchServe(settings, ports, run_dir, heap_mb=256, java_flags=use_flags(JAVA, JAR, tmp_path)) as server:
        server.configure()
        server.wait_ready({"v1.9.0": 1}, TIMEOUT_S)
