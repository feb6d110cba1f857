"""Where Prometheus and Alertmanager are: on the PATH, or in `build/`, unpacked from Debian's packages without root.

`python -m carla_policy_tools.monitoring.programs` (`make monitoring`) unpacks them, and PRoot: without the files of its
package at their own place Debian's Alertmanager does not start, and Debian's Prometheus shows no pages. PRoot lets a
program see them there.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from carla_policy_tools.debian import PackageError, Program, unpack_package, unpacked_program
from carla_policy_tools.paths import PROJECT

PACKAGE_OF = {
    "prometheus": "prometheus",
    "promtool": "prometheus",
    "prometheus-alertmanager": "prometheus-alertmanager",
    "amtool": "prometheus-alertmanager",
    "proot": "proot",
}
OTHER_NAMES = {"prometheus-alertmanager": "alertmanager"}
"""What a program is called where it does not come from Debian."""
BUILD = PROJECT / "build"
_SHARED = "usr/share/prometheus"


class MonitoringError(RuntimeError):
    """A program of monitoring cannot be had, did not start, or ended by itself."""


def find_program(name: str) -> Program:
    """One of `PACKAGE_OF`; `MonitoringError` says how to get it."""
    package = PACKAGE_OF[name]
    on_path = shutil.which(name) or shutil.which(OTHER_NAMES.get(name, name))
    if on_path:
        return Program(Path(on_path), dict(os.environ))
    found = unpacked_program(BUILD / package, f"usr/bin/{name}")
    if found is None:
        raise MonitoringError(
            f"{name} is not on the PATH and not in build/{package}: run `make monitoring`, "
            f"or install the package {package}"
        )
    return found


def find_installed(name: str) -> tuple[list[str], dict[str, str]]:
    """The beginning of a command, and its environment, for a program that finds the files of its package.

    Raises `MonitoringError`.
    """
    found = find_program(name)
    tree = BUILD / PACKAGE_OF[name]
    if not found.executable.is_relative_to(tree):
        return [str(found.executable)], found.environment
    proot = find_program("proot")
    bound = f"{tree / _SHARED}:/{_SHARED}"
    return [str(proot.executable), "-b", bound, str(found.executable)], proot.environment


def install() -> list[Program]:
    """All of them, put into `build/` if they are not there yet; `MonitoringError` if apt does not know them."""
    programs = []
    for name, package in PACKAGE_OF.items():
        try:
            found = find_program(name)
        except MonitoringError:
            try:
                unpack_package(package, BUILD / package)
            except PackageError as error:
                raise MonitoringError(f"{error}: install {package} with your system's package manager") from None
            found = find_program(name)
        programs.append(found)
    return programs


if __name__ == "__main__":
    try:
        for program in install():
            print(program.executable)
    except MonitoringError as error:
        sys.exit(f"error: {error}")
