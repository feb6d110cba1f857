"""Look at how a zip file ends before anything reads its list of files.

The reader makes an object of every file that a zip file lists, and finds the list behind whatever stands before it or
in a second, 64-bit end. What is read here has none of that: a few files, listed at its end, and nothing around them.
"""

from __future__ import annotations

import struct

MAX_LISTING_BYTES = 512
"""For each file in the list; it takes 46 and the file's name."""
_END = struct.Struct("<4s4H2LH")
_ZIP64_LOCATOR, _ZIP64_LOCATOR_BYTES = b"PK\6\7", 20


def check_zip_end(data: bytes, most: int) -> None:
    """`ValueError` unless `data` is a zip file from its first byte to its last, with a list of at most `most` files."""
    end = data[-_END.size :]
    if len(end) < _END.size or not end.startswith(b"PK\5\6"):
        raise ValueError("File is not a zip file, or there is something behind it")
    if data[-_END.size - _ZIP64_LOCATOR_BYTES :].startswith(_ZIP64_LOCATOR):
        raise ValueError("a zip64 file, which one of this size does not have to be")
    _, disk, first_disk, listed, count, size, start, comment = _END.unpack(end)
    if count > most or size > most * MAX_LISTING_BYTES:
        raise ValueError(f"expected at most {most} files, listed in {most * MAX_LISTING_BYTES} bytes")
    if (disk, first_disk, listed, comment) != (0, 0, count, 0) or start + size + _END.size != len(data):
        raise ValueError("its end does not tell where its list of files is, or there is something before or behind it")
