"""Archives whose zip says two things, hides something, or unpacks to what it should not."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

from carla_policy_tools.archive import MAX_ENTRIES
from tests.attacks import Attack

NOT_PACKED = "not the name or kind of a file that a build packs"


def _entry(
    name: str, content: bytes = b"", mode: int = 0o100644, compression: int = zipfile.ZIP_STORED
) -> Callable[[Path, Path], None]:
    def apply(archive: Path, _: Path) -> None:
        entry = zipfile.ZipInfo(
            "PLACEHOLDER".ljust(len(name.encode()), "_")[: len(name.encode())], (1980, 1, 1, 0, 0, 0)
        )
        entry.external_attr, entry.create_system, entry.compress_type = mode << 16, 3, compression
        with zipfile.ZipFile(archive, "a") as packed:
            packed.writestr(entry, content)
        archive.write_bytes(archive.read_bytes().replace(entry.filename.encode(), name.encode()))

    return apply


def _many(archive: Path, _: Path) -> None:
    with zipfile.ZipFile(archive, "a") as packed:
        for number in range(MAX_ENTRIES):
            packed.writestr(f"carla_policy/m{number}.py", "")


def _claim(archive: Path, _: Path) -> None:
    """The directory of the zip says that a file has 4 GiB."""
    data = bytearray(archive.read_bytes())
    start = data.index(b"PK\x01\x02")
    data[start + 20 : start + 28] = struct.pack("<II", 0xFFFFFFF0, 0xFFFFFFF0)
    archive.write_bytes(data)


def _local_name(archive: Path, _: Path) -> None:
    """A file's own header names another file than the directory of the zip does."""
    with zipfile.ZipFile(archive) as packed:
        entry = packed.getinfo("policy_handler.py")
    data = bytearray(archive.read_bytes())
    data[entry.header_offset + 30] ^= 1
    archive.write_bytes(data)


def _local_date(archive: Path, _: Path) -> None:
    data = bytearray(archive.read_bytes())
    data[12] ^= 1
    archive.write_bytes(data)


def _around(before: bytes = b"", behind: bytes = b"") -> Callable[[Path, Path], None]:
    return lambda archive, _: _write(archive, before + archive.read_bytes() + behind)


def _comment(archive: Path, _: Path) -> None:
    with zipfile.ZipFile(archive, "a") as packed:
        packed.comment = b"#!/bin/sh"


def _write(archive: Path, data: bytes) -> None:
    archive.write_bytes(data)


ATTACKS = [
    Attack("symbolic link", _entry("carla_policy/link.py", b"/etc/passwd", 0o120777), NOT_PACKED),
    Attack("device", _entry("carla_policy/null.py", b"", 0o020666), NOT_PACKED),
    Attack("executable", _entry("carla_policy/run.py", b"", 0o100755), NOT_PACKED),
    Attack("NUL in a name", _entry("carla_policy/a.py\0.txt"), NOT_PACKED),
    Attack("directory", _entry("carla_policy/empty/"), NOT_PACKED),
    Attack("dot in a name", _entry("./model.pt"), NOT_PACKED),
    Attack("parent in a name", _entry("carla_policy/../../evil.py"), NOT_PACKED),
    Attack("drive in a name", _entry("C:/evil.py"), "no part of an archive"),
    Attack("same name twice", _entry("model_card.yaml"), "packed twice"),
    Attack("same name in capitals", _entry("carla_policy/CARD.py"), "differ only in case"),
    Attack("requirements", _entry("requirements.txt", b"evil\n"), "no part of an archive"),
    Attack("shadowing module", _entry("torch.py", b"raise SystemExit\n"), "no part of an archive"),
    Attack("shadowing package", _entry("numpy/__init__.py"), "no part of an archive"),
    Attack("start-up file", _entry("sitecustomize.py"), "no part of an archive"),
    Attack("foreign library", _entry("carla_policy/fast.so"), "no part of an archive"),
    Attack("unlisted module", _entry("carla_policy/more.py"), "bytes around the packed files have changed"),
    Attack("compressed zeros", _entry("carla_policy/big.py", bytes(64 << 20), compression=8), NOT_PACKED),
    Attack("many files", _many, f"expected at most {MAX_ENTRIES} files"),
    Attack("claimed size", _claim, "at most 1000 files and 4 GiB|Overlapped|EOF|Truncated|CRC"),
    Attack("other name in the local header", _local_name, "policy_handler"),
    Attack("other date in the local header", _local_date, "bytes around the packed files have changed"),
    Attack("data in front", _around(before=b"#!/bin/sh\nexit\n"), "bytes around the packed files have changed"),
    Attack("data behind", _around(behind=b"PK"), "bytes around the packed files have changed|not a zip"),
    Attack("comment", _comment, "bytes around the packed files have changed"),
    Attack("empty file", lambda archive, _: _write(archive, b""), "not a zip file"),
]
"""On a good archive, whose digests stay as they are."""
