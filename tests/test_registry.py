"""The registry's file: what it refuses, and that no crash, full disk or second writer can harm it."""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from carla_policy.errors import ArtifactError
from carla_policy_tools.lifecycle.records import Registry
from carla_policy_tools.lifecycle.registry import RegistryError, RegistryFile
from tests.declared import changed, digest_of, registry_of
from tests.elsewhere import ended, running, started

KILLS = 30


@pytest.fixture
def file(tmp_path: Path) -> RegistryFile:
    return RegistryFile.of(tmp_path)


@pytest.fixture
def written(file: RegistryFile) -> str:
    """The text of a registry of two versions."""
    file.write(registry_of("v1.0.0", "v1.1.0"))
    return file.path.read_text("utf-8")


def refused(file: RegistryFile, content: str | bytes) -> str:
    file.path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ArtifactError) as caught:
        file.read()
    return str(caught.value)


def test_registry_lies_in_the_store_unless_another_file_is_named(tmp_path: Path) -> None:
    assert RegistryFile.of(tmp_path).path == tmp_path / "registry.json"
    assert RegistryFile.of(tmp_path, tmp_path / "other" / "mine.json").path == tmp_path / "other" / "mine.json"


def test_no_file_is_an_empty_registry(file: RegistryFile) -> None:
    assert not file.exists()
    assert file.read() == Registry()


@pytest.mark.parametrize("registry", [Registry(), registry_of("v1.0.0", "v1.10.0", "v1.9.0")])
def test_what_was_written_is_read_back(file: RegistryFile, registry: Registry) -> None:
    file.write(registry)
    assert file.read() == registry
    assert [path.name for path in file.path.parent.iterdir()] == ["registry.json"]


def test_people_find_one_line_for_each_version_and_each_event(written: str) -> None:
    lines = written.splitlines()
    for name in ("v1.0.0", "v1.1.0"):
        assert sum(line.startswith(f'  "{name}": {{') for line in lines) == 1
    assert sum(line.startswith('  {"sequence": ') for line in lines) == 3


def test_file_cut_off_anywhere_is_refused(file: RegistryFile, written: str) -> None:
    for length in range(len(written.rstrip())):
        assert str(file.path) in refused(file, written[:length])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "Invalid JSON"),
        (b"\n", "Invalid JSON"),
        (bytes(range(256)), "cannot be read"),
        (b"\0" * 4096, "Invalid JSON"),
        (b"\xff\xfe{\0}\0", "cannot be read"),
        ("\ufeff{}", "Invalid JSON"),
        ("null", "should be an object"),
        ("[]", "should be an object"),
        ('"registry"', "should be an object"),
        ("{}", "format: expected 1"),
        ("[" * 100_000, "recursion"),
        ('{"format": 1} {"format": 1}', "trailing characters"),
    ],
)
def test_anything_but_a_registry_is_refused(file: RegistryFile, content: str | bytes, reason: str) -> None:
    assert reason in refused(file, content)


def test_directory_in_place_of_the_file_is_refused(file: RegistryFile) -> None:
    file.path.mkdir()
    with pytest.raises(ArtifactError, match="cannot be read"):
        file.read()


@pytest.mark.parametrize(
    ("spelled", "respelled", "reason"),
    [
        ('"promoted": "v1.0.0",', '"promoted": "v1.1.0", "promoted": "v1.0.0",', "promoted: stands twice"),
        ('"verb": "promote"', '"verb": "retire", "verb": "promote"', "verb: stands twice"),
        ('"git_sha": "0123abc"', '"git_sha": "f", "git\\u005fsha": "0123abc"', "git_sha: stands twice"),
        ('  "v1.0.0": {', '  "v1.0.0": {},\n  "v1.0.0": {', "versions.v1.0.0"),
        ('"sequence": 1', '"sequence": NaN', r"history.0.sequence"),
        ('"sequence": 1', '"sequence": 1e999', r"history.0.sequence"),
        ('"sequence": 1', '"sequence": "1"', r"history.0.sequence"),
        ('"sequence": 1', '"sequence": true', r"history.0.sequence"),
        ('"sequence": 1', '"sequence": 1.0', r"history.0.sequence"),
        ('"format": 1', '"format": NaN', "format"),
        ('"format": 1', '"format": true', "format: expected 1"),
        ('"git_sha": "0123abc"', '"git_sha": "\\ud800"', "Invalid JSON"),
    ],
)
def test_json_that_readers_could_take_differently_is_refused(
    file: RegistryFile, written: str, spelled: str, respelled: str, reason: str
) -> None:
    assert spelled in written
    assert reason in refused(file, written.replace(spelled, respelled, 1))


def test_refusal_says_which_file_and_what_to_do(file: RegistryFile, written: str) -> None:
    content = json.loads(written)
    content["versions"]["v1.0.0"]["digest"] = digest_of("another")
    message = refused(file, json.dumps(content))
    assert message.startswith(f"{file.path}: not a registry (")
    assert "change versions by the commands only" in message


def many(count: int) -> list[Registry]:
    """Registries of some 20 kB, each with one event more than the one before."""
    registries = [registry_of("v1.0.0")]
    for number in range(100 + count):
        registries.append(changed(registries[-1], "undo", "v1.0.0", reason=f"change {number} " + "x" * 50))
    return registries[-count:]


def write_for_ever(file: RegistryFile, registries: list[Registry], begun: Connection) -> None:
    begun.send("begun")
    while True:
        for registry in registries:
            with file.locked():
                file.write(registry)


def test_writer_killed_at_any_moment_leaves_a_written_registry_and_no_lock(file: RegistryFile) -> None:
    registries = many(4)
    moments = random.Random(7)
    file.write(registries[0])
    for _ in range(KILLS):
        with running(write_for_ever, file, registries):
            time.sleep(moments.uniform(0, 0.03))
        with file.locked(timeout_s=0) as registry:
            assert registry in registries


def write_up_to(file: RegistryFile, registry: Registry, size: int, killed: bool) -> None:
    """Write on a disk that takes `size` bytes of a file: be killed there, or be told that it is full."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL if killed else signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    try:
        file.write(registry)
    except OSError as error:
        os._exit(error.errno or 1)


@pytest.mark.parametrize("killed", [True, False])
def test_write_that_breaks_off_after_any_byte_leaves_the_old_registry(file: RegistryFile, killed: bool) -> None:
    old, new = many(2)
    file.write(new)
    length = file.path.stat().st_size
    file.write(old)
    sizes = random.Random(8)
    for _ in range(KILLS):
        writer = started(write_up_to, file, new, sizes.randrange(length), killed)
        assert ended(writer) == (-signal.SIGXFSZ if killed else errno.EFBIG)
        assert file.read() == old
    file.write(new)
    assert file.read() == new


def note(file: RegistryFile, who: str, count: int) -> None:
    for number in range(count):
        with file.locked() as registry:
            file.write(changed(registry, "undo", "v1.0.0", reason=f"{who} {number}"))


def test_writers_at_the_same_time_lose_no_event(file: RegistryFile) -> None:
    file.write(registry_of("v1.0.0"))
    writers = [started(note, file, who, 40) for who in ("first", "second")]
    assert [ended(writer) for writer in writers] == [0, 0]
    reasons = [event.reason for event in file.read().history[2:]]
    for who in ("first", "second"):
        assert [reason for reason in reasons if reason.startswith(who)] == [f"{who} {number}" for number in range(40)]
    assert len(reasons) == 80


def test_who_waits_too_long_for_the_lock_is_told_so(file: RegistryFile) -> None:
    with file.locked(), pytest.raises(RegistryError, match="another command has held the lock for 0 s") as caught:
        file.locked(timeout_s=0).__enter__()
    assert str(caught.value).startswith(f"{file.path}: ")
    with file.locked(timeout_s=0) as registry:
        assert registry == Registry()
