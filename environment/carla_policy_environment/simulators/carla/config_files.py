"""The configuration of the CARLA simulator from a YAML or JSON file and from the command line."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import ValidationError

from carla_policy_environment.simulators.carla.config import CarlaConfig


def load_config(path: Path) -> CarlaConfig:
    """The configuration in a .yaml, .yml or .json file. Raises `ValueError` naming the file and every wrong field."""
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            read = json.loads(text)
        elif path.suffix in (".yaml", ".yml"):
            read = _yaml(text)
        else:
            raise ValueError("its name must end in .yaml, .yml or .json")
        return CarlaConfig.model_validate({} if read is None else read)
    except ValidationError as error:
        raise ValueError(f"{path}: {_complaints(error)}") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None


def configured(
    path: Path | None, *, host: str | None = None, port: int | None = None, traffic_port: int | None = None
) -> CarlaConfig:
    """The configuration in `path`, or the default one, with what is given beside it put over it.

    Raises `ValueError` as `load_config` does.
    """
    config = CarlaConfig() if path is None else load_config(path)
    over = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    traffic = config.traffic.model_dump() | ({} if traffic_port is None else {"port": traffic_port})
    try:
        return CarlaConfig.model_validate(config.model_dump() | over | {"traffic": traffic})
    except ValidationError as error:
        raise ValueError(f"CARLA's options: {_complaints(error)}") from None


def _complaints(error: ValidationError) -> str:
    return "; ".join(f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors())


def _yaml(text: str) -> object:
    try:
        import yaml
    except ImportError:
        raise ValueError("reading YAML needs PyYAML (pip install pyyaml); a .json file needs nothing") from None
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"not YAML: {error}") from None
