"""The vehicle's client in the Pythons that simulators bring: its own tests, and what its code asks of a Python."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from carla_policy_tools.paths import PROJECT

CLIENT = PROJECT / "client"
MINORS = range(7, 14)
TIMEOUT_S = 180


def candidates(minor: int) -> Iterator[str]:
    """Where a Python 3.`minor` may be."""
    if sys.version_info[1] == minor:
        yield sys.executable
    found = shutil.which(f"python3.{minor}")
    if found:
        yield found
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    yield from sorted(map(str, root.glob(f"3.{minor}.*/bin/python")))


def interpreter(minor: int) -> str | None:
    """A Python 3.`minor` that runs."""
    for candidate in candidates(minor):
        asked = [candidate, "-c", "import sys; print(sys.version_info[1])"]
        run = subprocess.run(asked, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        if run.returncode == 0 and run.stdout.strip() == str(minor):
            return candidate
    return None


@pytest.fixture(scope="module")
def runs() -> dict[int, subprocess.Popen[str]]:
    """The client's own tests in every Python there is, all at once: they mostly wait."""
    found = {minor: interpreter(minor) for minor in MINORS}
    return {
        minor: subprocess.Popen(
            [python, "-I", "-W", "error", "-c", _RUN.format(client=str(CLIENT))],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=CLIENT,
        )
        for minor, python in found.items()
        if python
    }


_RUN = """
import sys, unittest
sys.dont_write_bytecode = True
sys.path.insert(0, {client!r})
unittest.main(module=None, argv=["client", "discover", "-t", ".", "-s", "tests"])
"""


@pytest.mark.parametrize("minor", MINORS)
def test_client_s_own_tests_pass(runs: dict[int, subprocess.Popen[str]], minor: int) -> None:
    if minor not in runs:
        pytest.skip(f"there is no Python 3.{minor} here")
    output, _ = runs[minor].communicate(timeout=TIMEOUT_S)
    assert runs[minor].returncode == 0, output


def test_client_asks_no_more_of_a_python_than_3_7_has() -> None:
    vermin = Path(sysconfig.get_path("scripts"), "vermin")
    if not vermin.is_file():
        pytest.skip("vermin is not installed")
    command = [str(vermin), "--target=3.7-", "--violations", "--no-tips", str(CLIENT / "carla_policy_client")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert run.returncode == 0, run.stdout


def test_client_imports_the_standard_library_alone() -> None:
    code = f"import sys; sys.path.insert(0, {str(CLIENT)!r}); import carla_policy_client; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    roots = {name.partition(".")[0] for name in run.stdout.split()}
    assert roots - set(sys.stdlib_module_names) == {"carla_policy_client", "__main__"} - set(sys.stdlib_module_names)
