"""Java's ahead-of-time cache of TorchServe: classes already linked, and which methods are worth compiling.

With it Java itself starts in half the time, and knows from the first request on what is worth compiling. It belongs to
one Java and one jar, and stands in `build/`; `python -m carla_policy_tools.aot_recording` (`make cache`) records it.
It never keeps a server from starting: its digest stands beside it, and one that has changed is not used, since Java
crashes on some damage, also with its own check (`VerifySharedSpaces`).
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from carla_policy.digests import file_digest
from carla_policy_tools.java import Java
from carla_policy_tools.paths import PROJECT

DIRECTORY = PROJECT / "build" / "aot"
MIN_MAJOR = 25
"""The first Java whose cache holds profiles of methods."""


def cache_file(java: Java, jar: Path, directory: Path = DIRECTORY) -> Path | None:
    """Where the cache for this Java and `jar` is, or would be; `None` for a Java that knows no such cache."""
    if java.major < MIN_MAJOR:
        return None
    stat = jar.stat()
    # Java looks at whole seconds too, and an image's layers keep no more.
    key = (java.release, str(jar), stat.st_size, int(stat.st_mtime))
    return directory / f"torchserve-{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}.aot"


def use_flags(java: Java, jar: Path, directory: Path = DIRECTORY) -> list[str]:
    """JVM flags for a start with the cache, if there is one and it is as it was recorded."""
    path = cache_file(java, jar, directory)
    if path is None or not _is_whole(path):
        return []
    return [f"-XX:AOTCache={path}", "-Xlog:aot*=off"]


def seal(path: Path) -> None:
    """Note the digest of the cache in `path` beside it."""
    _digest_file(path).write_text(file_digest(path))


def _is_whole(path: Path) -> bool:
    try:
        return file_digest(path) == _digest_file(path).read_text()
    except OSError:
        return False


def _digest_file(path: Path) -> Path:
    return path.with_suffix(".sha256")


def record_flags(path: Path) -> list[str]:
    """JVM flags for a run that writes its cache to `path` when it ends."""
    return [f"-XX:AOTCacheOutput={path}", "-Xlog:aot*=off"]
