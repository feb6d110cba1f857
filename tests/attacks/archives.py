"""Archives whose zip says two things, hides something, or unpacks to what it should not."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from carla_policy_tools.archive import MAX_ENTRIES
from tests.attacks import Attack

END = struct.Struct("<4s4H2LH")
LISTED = struct.Struct("<4s6H3L5H2L")
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
    start = data.rindex(b"PK\x01\x02")
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


def _end(**change: int) -> Callable[[Path, Path], None]:
    """Other numbers in the record that ends the archive."""
    names = ("kind", "disk", "first_disk", "listed", "count", "size", "start", "comment")

    def apply(archive: Path, _: Path) -> None:
        data = archive.read_bytes()
        fields = dict(zip(names, END.unpack(data[-END.size :]), strict=True)) | change
        archive.write_bytes(data[: -END.size] + END.pack(*fields.values()))

    return apply


def _listed(name: bytes, *, size: int = 0, checksum: int = 0) -> bytes:
    """A file of this name in the list of files, the content of which is at the beginning of the archive."""
    plain = (0x314, 20, 0, 0, 0, 33, checksum, size, size, len(name), 0, 0, 0, 0, 0o100644 << 16, 0)
    return LISTED.pack(b"PK\1\2", *plain) + name


def _million(archive: Path, _: Path) -> None:
    """A list of a million files that are not there."""
    data, listing = archive.read_bytes(), _listed(b"a") * 10**6
    end = END.pack(b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, len(listing), len(data), 0)
    archive.write_bytes(data + listing + end)


def _million_in_zip64(archive: Path, _: Path) -> None:
    """The same, in a second end that stands before an ordinary one, which shows one file."""
    data, listing = archive.read_bytes(), _listed(b"a") * 10**6
    start = len(data) + len(listing)
    end = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 10**6, 10**6, len(listing), len(data))
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, start, 1)
    ordinary = END.pack(b"PK\5\6", 0, 0, 1, 1, len(end + locator), start, 0)
    archive.write_bytes(data + listing + end + locator + ordinary)


def _overlapping(archive: Path, _: Path) -> None:
    """900 files that share the bytes of one of a megabyte."""
    content, first = bytes(1 << 20), b"model.pt"
    checksum = zlib.crc32(content)
    local = struct.pack("<4s5H3L2H", b"PK\3\4", 20, 0, 0, 0, 33, checksum, len(content), len(content), len(first), 0)
    body = local + first + content
    names = (f"carla_policy/m{number}.py".encode() for number in range(900))
    listing = b"".join(_listed(name, size=len(content), checksum=checksum) for name in names)
    archive.write_bytes(body + listing + END.pack(b"PK\5\6", 0, 0, 900, 900, len(listing), len(body), 0))


def _few_counted(archive: Path, _: Path) -> None:
    """A list of 1,001 files whose end counts one."""
    data, listing = archive.read_bytes(), b"".join(_listed(b"carla_policy/m%d.py" % n) for n in range(MAX_ENTRIES + 1))
    archive.write_bytes(data + listing + END.pack(b"PK\5\6", 0, 0, 1, 1, len(listing), len(data), 0))


NOT_AN_END, AROUND = "its end does not tell where", "bytes around the packed files have changed"
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
    Attack("unlisted module", _entry("carla_policy/more.py"), AROUND),
    Attack("compressed zeros", _entry("carla_policy/big.py", bytes(64 << 20), compression=8), NOT_PACKED),
    Attack("many files", _many, f"expected at most {MAX_ENTRIES} files"),
    Attack("claimed size", _claim, "they overlap, or one claims a size"),
    Attack("other name in the local header", _local_name, "policy_handler"),
    Attack("other date in the local header", _local_date, AROUND),
    Attack("terminal codes in a name", _entry("carla_policy/\x1b[2J.py"), "x1b.* no part of an archive"),
    Attack("file below a file", _entry("carla_policy/heads.py/evil.py"), "no part of an archive"),
    Attack("hidden module", _entry("carla_policy/.evil.py"), "no part of an archive"),
    Attack("files that overlap", _overlapping, "they overlap, or one claims a size"),
    Attack("list of a million files", _million, f"expected at most {MAX_ENTRIES} files"),
    Attack("list of a million files by zip64", _million_in_zip64, "a zip64 file"),
    Attack("more files than are counted", _few_counted, f"expected at most {MAX_ENTRIES} files, got"),
    Attack("count that is too large", _end(count=999, listed=999), AROUND + "|Bad|truncated"),
    Attack("two counts", _end(listed=1), NOT_AN_END),
    Attack("list elsewhere", _end(start=0), NOT_AN_END),
    Attack("list of nothing", _end(size=0), NOT_AN_END),
    Attack("list of 4 GiB", _end(size=0xFFFFFFF0), f"expected at most {MAX_ENTRIES} files"),
    Attack("second disk", _end(disk=1), NOT_AN_END),
    Attack("comment that is not there", _end(comment=5), NOT_AN_END),
    Attack("data in front", _around(before=b"#!/bin/sh\nexit\n"), NOT_AN_END),
    Attack("data behind", _around(behind=b"PK"), "there is something behind it"),
    Attack("archive behind the archive", lambda archive, _: _write(archive, archive.read_bytes() * 2), NOT_AN_END),
    Attack("comment", _comment, "there is something behind it"),
    Attack("cut off", lambda archive, _: _write(archive, archive.read_bytes()[:-1]), "not a zip file"),
    Attack("first half", lambda archive, _: _write(archive, archive.read_bytes()[: 1 << 16]), "not a zip file"),
    Attack("empty file", lambda archive, _: _write(archive, b""), "not a zip file"),
]
"""On a good archive, whose digests stay as they are."""
BOMBS = (
    "compressed zeros",
    "files that overlap",
    "list of a million files",
    "list of a million files by zip64",
    "list of 4 GiB",
)
