"""The no-op contender's process: `python -m benchmarks.contenders.noop_server DIRECTORY VERSION PROFILE`.

Starts TorchServe as `carla-policy serve` does, on the archive in DIRECTORY/store, writes where it answers to
DIRECTORY/ready when it does, and stops it on SIGTERM.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from benchmarks.servers import loaded_torchserve
from carla_policy_tools.configuration import load_profile, properties
from carla_policy_tools.ports import choose_ports
from carla_policy_tools.processes import stop_signals
from carla_policy_tools.torchserve import ServerError

READY_FILE = "ready"


def main(directory: Path, version: str, profile_name: str) -> None:
    """Serve until told to stop; exits with what went wrong."""
    profile, ports = load_profile(profile_name), choose_ports(0, None, None, None)
    settings = properties(versions={version: profile}, promoted=version, ports=ports, store=directory / "store")
    try:
        loaded = loaded_torchserve(settings, ports, directory / "run", version=version, profile=profile)
        with stop_signals(_stop), loaded:
            ready = directory / READY_FILE
            ready.with_suffix(".new").write_text(ports.url("inference"))
            ready.with_suffix(".new").rename(ready)
            while True:
                signal.pause()
    except ServerError as error:
        sys.exit(str(error))


def _stop(*_: object) -> None:
    sys.exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
