"""Where HAProxy is: on the PATH, or in `build/haproxy`, unpacked from Debian's packages without root.

`python -m carla_policy_tools.routing.haproxy` (`make proxy`) unpacks it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from carla_policy_tools.debian import PackageError, Program, unpack_package, unpacked_program
from carla_policy_tools.paths import PROJECT

UNPACKED = PROJECT / "build" / "haproxy"
OLDEST = (2, 6)
_TIMEOUT_S = 300


class ProxyError(RuntimeError):
    """The proxy cannot be had, did not start, ended by itself, or refused what it was told."""


def find_haproxy() -> Program:
    """HAProxy 2.6 or later; `ProxyError` says how to get it."""
    on_path = shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    found = Program(Path(on_path), dict(os.environ)) if on_path else unpacked_program(UNPACKED, "usr/sbin/haproxy")
    if found is None:
        raise ProxyError(
            "HAProxy is not on the PATH and not in build/haproxy: run `make proxy`, or install the package haproxy"
        )
    run = subprocess.run(
        [found.executable, "-v"], env=found.environment, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
    )
    version = re.search(r"version (\d+)\.(\d+)", run.stdout)
    if version is None:
        reason = (run.stderr or run.stdout).strip()
        raise ProxyError(f"{found.executable} does not run: {reason}; run `make proxy` again")
    if (int(version[1]), int(version[2])) < OLDEST:
        raise ProxyError(f"{found.executable} is HAProxy {version[1]}.{version[2]}; 2.6 or later is needed")
    return found


def install() -> Program:
    """HAProxy, put into `build/haproxy` if there is none yet; `ProxyError` if apt does not know it."""
    try:
        return find_haproxy()
    except ProxyError:
        try:
            unpack_package("haproxy", UNPACKED)
        except PackageError as error:
            raise ProxyError(f"{error}: install HAProxy 2.6 or later with your system's package manager") from None
    return find_haproxy()


if __name__ == "__main__":
    try:
        print(f"HAProxy: {install().executable}")
    except ProxyError as error:
        sys.exit(f"error: {error}")
