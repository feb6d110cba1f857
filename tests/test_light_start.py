"""`serve` starts Java before it imports anything that takes long."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("cryptography", "numpy", "requests", "scipy", "sklearn", "torch", "ts")
IMPORTED = """
import sys
import carla_policy_tools.cli
import carla_policy_tools.configuration
import carla_policy_tools.serving
import carla_policy_tools.workers.preloading
print(*[name for name in sys.argv[1:] if name in sys.modules])
"""


def test_nothing_heavy_is_imported_before_java_is_started() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTED, *HEAVY], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
