"""Files are read if they are plain and of a bounded size; anything else is refused by name and never waited for."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from carla_policy.errors import ArtifactError
from carla_policy.files import read_file


def make(kind: str, path: Path) -> None:
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(os.fspath(path))
    else:
        targets = {"link": path.with_name("target"), "link to nothing": path.with_name("absent")}
        path.with_name("target").write_bytes(b"content")
        path.symlink_to(targets.get(kind, Path("/dev/zero")))


@pytest.mark.parametrize("size", [0, 1, 10])
def test_plain_file_is_read_whole(tmp_path: Path, size: int) -> None:
    (tmp_path / "file").write_bytes(bytes(size))
    assert read_file(tmp_path / "file", 10) == bytes(size)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("pipe", "expected a plain file, got a pipe"),
        ("link", "expected a plain file, got a link"),
        ("link to nothing", "expected a plain file, got a link"),
        ("link to a device", "expected a plain file, got a link"),
        ("directory", "Is a directory"),
        ("socket", "No such device or address"),
    ],
)
def test_what_is_no_plain_file_is_refused_by_name(tmp_path: Path, kind: str, reason: str) -> None:
    make(kind, tmp_path / "file")
    with pytest.raises(ArtifactError, match=rf"^file: cannot be read: {reason}$"):
        read_file(tmp_path / "file", 10)


def test_device_is_refused() -> None:
    with pytest.raises(ArtifactError, match=r"^zero: cannot be read: expected a plain file, got a device$"):
        read_file(Path("/dev/zero"), 10)


def test_absent_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"^file: cannot be read: No such file or directory$"):
        read_file(tmp_path / "file", 10)


def test_file_beyond_the_limit_is_refused_unread(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(11))
    with pytest.raises(ArtifactError, match=r"^file: larger than 10 bytes: 11 bytes$"):
        read_file(tmp_path / "file", 10)
    os.truncate(tmp_path / "file", 1 << 40)
    with pytest.raises(ArtifactError, match=rf"^file: larger than 1024 MiB: {1 << 40} bytes$"):
        read_file(tmp_path / "file", 1 << 30)


def test_file_that_does_not_say_how_long_it_is_is_bounded_too() -> None:
    with pytest.raises(ArtifactError, match=r"^status: larger than 10 bytes: 11 bytes$"):
        read_file(Path("/proc/self/status"), 10)
