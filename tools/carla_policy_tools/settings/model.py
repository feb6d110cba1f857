"""The settings of a server: names, types, defaults, what to expect of a value, and which change without a restart."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from carla_policy.version import parse_version
from carla_policy_tools.addresses import LOOPBACK, parse_host
from carla_policy_tools.paths import MODEL_STORE

PREFIX = "CARLA_POLICY_"
DEFAULT_TOKEN_MINUTES = 60.0
MAX_WORKERS = 256

LogLevel = Literal["debug", "info", "warning", "error", "critical"]
Device = Literal["auto", "cpu", "cuda"]

_LEVELS = {"trace": "debug", "warn": "warning", "fatal": "critical"}
_SWITCHES = {
    **dict.fromkeys(("1", "true", "yes", "on"), "cuda"),
    **dict.fromkeys(("0", "false", "no", "off"), "cpu"),
    "auto": "auto",
}


@dataclass(frozen=True)
class About:
    """What there is to say about a setting, besides its type."""

    expected: str
    """Completes "expected ..."."""
    restart: str | None
    """Why a change needs a restart; none where `carla-policy config apply` is enough."""
    seed: str | None = None
    """An unprefixed variable that says it as well, and is weaker than the prefixed one."""


def _level(value: object) -> object:
    name = value.lower() if isinstance(value, str) else value
    return _LEVELS.get(name, name) if isinstance(name, str) else name


def _device(value: object) -> object:
    """Also what `USE_GPU` says: yes, no, or auto."""
    if isinstance(value, bool):
        return "cuda" if value else "cpu"
    return _SWITCHES.get(value.lower(), value.lower()) if isinstance(value, str) else value


def _names(value: object) -> object:
    """Several names in one string, as in a variable: between them are commas or spaces."""
    return value.replace(",", " ").split() if isinstance(value, str) else value


_SOCKETS = "sockets are opened once, at the start"
_WHOLE = "TorchServe reads it once, at the start"
_PLACE = "it is where a server finds its state"
_FIRST = "the registry rules once there is one: `promote`, `register` and `retire` change it"
_PORT = "a port from 0 to 65535, where 0 is any free one"

Port = Annotated[int, Field(ge=0, le=65535)]
Version = Annotated[str, AfterValidator(parse_version)]


class Settings(BaseModel):
    """Of a server; the files are in `config/deployments`. What says nothing has the default that stands here."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    host: Annotated[
        str,
        AfterValidator(parse_host),
        About("an IPv4 address, such as 0.0.0.0, or :: for all IPv4 and IPv6 addresses", _SOCKETS),
    ] = LOOPBACK
    """Where predictions, metrics and probes listen. Management stays on loopback."""
    port: Annotated[Port, About(_PORT, _SOCKETS, "PORT")] = 8080
    """Of predictions."""
    management_port: Annotated[Port | None, About(_PORT, _SOCKETS)] = None
    """The port after that of predictions unless given; then come metrics and probes."""
    metrics_port: Annotated[Port | None, About(_PORT, _SOCKETS)] = None
    health_port: Annotated[Port | None, About(_PORT, _SOCKETS)] = None
    profile: Annotated[
        str | None,
        Field(min_length=1),
        About("a profile in config/profiles, or the path of a .yaml file", "versions get theirs when they are loaded"),
    ] = None
    """Of versions that the registry does not know yet: realtime unless given. `--profile` changes all versions."""
    workers: Annotated[
        Annotated[int, Field(ge=1, le=MAX_WORKERS)] | None,
        About(f"a number of workers for each version, from 1 to {MAX_WORKERS}", None, "WORKERS"),
    ] = None
    """Of each version, instead of what its profile says."""
    jvm_heap_mb: Annotated[
        Annotated[int, Field(ge=64, le=1 << 20)] | None,
        About("MiB, from 64 to 1048576", "Java is given its memory at the start"),
    ] = None
    """Memory for bodies of requests, instead of what profiles say."""
    device: Annotated[
        Device,
        BeforeValidator(_device),
        About("auto, cpu or cuda, or of USE_GPU: auto, 0 or 1", "workers choose it when they start", "USE_GPU"),
    ] = "auto"
    """Where policies run; auto takes a GPU where there is one."""
    log_level: Annotated[
        LogLevel,
        BeforeValidator(_level),
        About("debug, info, warning, error or critical", None, "LOG_LEVEL"),
    ] = "info"
    log_console: Annotated[bool, About("true or false", "it is opened at the start")] = False
    """All that is logged is on standard error too."""
    frozen: Annotated[bool, About("true or false", _WHOLE)] = False
    """No version joins or leaves."""
    token_auth: Annotated[bool, About("true or false", _WHOLE)] = False
    """TorchServe asks for its keys."""
    token_minutes: Annotated[
        float, Field(ge=0.1, le=1e6, strict=False, allow_inf_nan=False), About("minutes, from 0.1", _WHOLE)
    ] = DEFAULT_TOKEN_MINUTES
    """What keys live for."""
    run_dir: Annotated[Path | None, Field(strict=False), About("a directory", _PLACE)] = None
    """For logs and temporary files; a temporary one unless given."""
    store: Annotated[Path, Field(strict=False), About("a directory of archives", _PLACE)] = MODEL_STORE
    registry: Annotated[Path | None, Field(strict=False), About("the path of a registry", _PLACE)] = None
    """`registry.json` in the store unless given."""
    artifact_dir: Annotated[
        Path | None,
        Field(strict=False),
        About("a directory of artifacts", "they are built at the start", "ARTIFACT_DIR"),
    ] = None
    """What lies in it and has no archive in the store yet is built before a start."""
    versions: Annotated[
        tuple[Version, ...], Field(strict=False), BeforeValidator(_names), About("versions such as v0.2.0", _FIRST)
    ] = ()
    """For a new registry, all in the store unless given; those named later join."""
    promote: Annotated[Version | None, About("a version such as v0.2.0", _FIRST, "MODEL_VERSION")] = None
    """For a new registry: what answers where no version is named, the newest unless given."""


NAMES = tuple(Settings.model_fields)
PATHS = ("run_dir", "store", "registry", "artifact_dir")
ABOUT: dict[str, About] = {
    name: next(item for item in field.metadata if isinstance(item, About))
    for name, field in Settings.model_fields.items()
}
LIVE = tuple(name for name, about in ABOUT.items() if about.restart is None)


def variables_of(name: str) -> tuple[str, ...]:
    """The environment variables of a setting, the strongest first."""
    seed = ABOUT[name].seed
    return (f"{PREFIX}{name.upper()}", *([seed] if seed else []))
