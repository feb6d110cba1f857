"""What settings become: the environment of workers, and the configuration of TorchServe's log."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path

from carla_policy_tools.paths import CONFIG
from carla_policy_tools.settings.model import PREFIX, Device, LogLevel

LOG_CONFIG = "log4j2.xml"
"""In the run directory: a copy with the level that is asked for, which TorchServe reads again when it changes."""
LEVEL_FILE = "log_level"
"""In the run directory: the level, which workers read again when it changes."""
LOG_RELOAD_S = 1

_FRONT_END: Mapping[LogLevel, str] = {
    "debug": "debug",
    "info": "warn",  # at its own info TorchServe writes eight lines for each request
    "warning": "warn",
    "error": "error",
    "critical": "fatal",
}
_GPU_DEVICES = ("dev/nvidiactl", "dev/nvidia0", "dev/dxg")


def check_device(device: Device, source: str, root: Path = Path("/")) -> None:
    """`ValueError` where a GPU is asked for by `source`, and torch or this machine has none."""
    if device != "cuda":
        return
    torch = importlib.util.find_spec("torch")
    version = Path(torch.origin).with_name("version.py").read_text("utf-8") if torch and torch.origin else ""
    if re.search(r"^cuda\b[^=]*= None$", version, re.MULTILINE):
        raise ValueError(f"{source}: a GPU is asked for, but torch was built without CUDA; ask for auto or cpu")
    if not any((root / name).exists() for name in _GPU_DEVICES):
        raise ValueError(f"{source}: a GPU is asked for, but this machine shows none; ask for auto or cpu")


def worker_environment(device: Device, log_level: LogLevel, run_dir: Path) -> dict[str, str]:
    """For the server and its workers. On the CPU they see no GPU at all, whatever a network's code may try."""
    return {
        f"{PREFIX}DEVICE": device,
        f"{PREFIX}LOG_LEVEL": log_level,
        f"{PREFIX}LOG_LEVEL_FILE": str(run_dir / LEVEL_FILE),
        **({"CUDA_VISIBLE_DEVICES": "", "NVIDIA_VISIBLE_DEVICES": "void"} if device == "cpu" else {}),
    }


def write_log_level(run_dir: Path, level: LogLevel) -> None:
    """Have a server that runs there, or will, log from `level` on: its front end and its workers."""
    text = (CONFIG / LOG_CONFIG).read_text("utf-8")
    text = re.sub(r"<Root level=\"\w+\"", f'<Root level="{_FRONT_END[level]}"', text)
    text = text.replace("<Configuration>", f'<Configuration monitorInterval="{LOG_RELOAD_S}">')
    for name, content in ((LOG_CONFIG, text), (LEVEL_FILE, level)):
        new = run_dir / f".{name}.new"
        new.write_text(content, "utf-8")
        new.replace(run_dir / name)
