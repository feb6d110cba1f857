"""Read files that somebody else has put there: plain ones only, and never more of them than such a file has.

A pipe would be waited for, a device has no end, and a link leads to a file that nobody has checked.
"""

from __future__ import annotations

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path

from carla_policy.errors import ArtifactError


def open_file(path: Path) -> BufferedReader:
    """Open the plain file `path` to read it; `OSError` says what stands there instead, and nothing waits for it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "expected a plain file, got a link") from None
        raise
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    raise OSError(errno.EINVAL, f"expected a plain file, got a {'pipe' if stat.S_ISFIFO(mode) else 'device'}")


def read_file(path: Path, most: int) -> bytes:
    """Content of the plain file `path`; `ArtifactError` if it is none, cannot be read, or is longer than `most`."""
    try:
        with open_file(path) as file:
            size = os.fstat(file.fileno()).st_size
            data = file.read(most + 1) if size <= most else b""
    except OSError as error:
        raise ArtifactError(f"{path.name}: cannot be read: {error.strerror}") from None
    size = max(size, len(data))
    if size > most:
        raise ArtifactError(f"{path.name}: larger than {_in_units(most)}: {size} bytes")
    return data


def _in_units(size: int) -> str:
    return f"{size >> 20} MiB" if size >= 1 << 20 else f"{size} bytes"
