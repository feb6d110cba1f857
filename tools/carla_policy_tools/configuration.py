"""What a TorchServe process is started with: profile, ports, and the properties made of both."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from carla_policy.errors import MAX_FINDINGS
from carla_policy.files import read_file
from carla_policy.strict_yaml import MAX_BYTES as MAX_YAML_BYTES
from carla_policy.strict_yaml import parse_yaml
from carla_policy.worker_protocol import MAX_BUSY_POLL_US
from carla_policy_tools.addresses import ANY, ANY_IPV4
from carla_policy_tools.paths import CONFIG, CONFIG_PROPERTIES, MODEL_NAME, archive_name
from carla_policy_tools.ports import Ports

MAX_BYTES = 2**31 - 1
"""TorchServe keeps sizes as signed 32-bit numbers."""


class Profile(BaseModel):
    """Workers, batching, time-outs and limits for a version; the files are in `config/profiles`."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    workers: PositiveInt
    batch_size: PositiveInt
    max_batch_delay_ms: Annotated[int, Field(ge=0)]
    response_timeout_s: PositiveInt
    startup_timeout_s: PositiveInt
    retry_window_s: PositiveInt = 10
    """So long a worker that does not start is tried again; then only `carla-policy reconcile` brings it back."""
    queue_size: PositiveInt = 256
    """Requests that may wait for a worker; the next one is answered 503."""
    max_request_bytes: Annotated[int, Field(ge=1024, le=MAX_BYTES)] = 16 << 20
    """Of a body; a larger one is answered 413. A server has one such limit: the largest that a version asks for."""
    max_response_bytes: Annotated[int, Field(ge=1024, le=MAX_BYTES)] = 16 << 20
    """Of an answer's body; the server's limit is the largest that a version asks for."""
    jvm_heap_mb: Annotated[int, Field(ge=64, le=1 << 20)] = 2048
    """Memory for bodies, in MiB: so much may wait for workers, and as much be arriving. A server has the largest that
    one of the versions asks for with which it starts."""
    warmup_s: Annotated[float, Field(ge=0.0, le=60.0, strict=False)] = 1.0
    """So long at most a server is warmed up before it is called ready; it ends sooner where Java's compiler is done."""
    busy_poll_us: Annotated[int, Field(ge=0, le=MAX_BUSY_POLL_US)] = 0
    """So many microseconds a worker asks for its next batch again and again before it sleeps, while batches follow one
    another as fast as that; 0 lets it sleep at once."""
    trusted_keys: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Paths of public keys, in the file relative to it; if there are any, one of them must have signed each archive."""

    def with_workers(self, workers: int | None) -> Profile:
        """This profile with so many workers, where a deployment says how many."""
        return self if workers is None else self.model_copy(update={"workers": workers})

    def model_config_yaml(self) -> bytes:
        """What TorchServe 0.12 takes from the `model-config.yaml` of an archive, and from nowhere else or not reliably.

        It prefers these time-outs to those of a registration, even where the file leaves them out: then they are 120 s.
        It knows the retry window and a version's own queue size only from here. Workers and batching are parameters of
        the registration. What is below `handler` is our own.
        """
        return (
            f"responseTimeout: {self.response_timeout_s}\n"
            f"startupTimeout: {self.startup_timeout_s}\n"
            f"maxRetryTimeoutInSec: {self.retry_window_s}\n"
            f"jobQueueSize: {self.queue_size}\n"
            f"handler: {{busyPollUs: {self.busy_poll_us}}}\n"
        ).encode()


@dataclass(frozen=True)
class SizeLimits:
    """Largest bodies of requests and answers, in bytes: a server has one of each for all of its versions."""

    request: int
    response: int

    @classmethod
    def of(cls, profiles: Iterable[Profile]) -> SizeLimits:
        """What gives no version less than its profile says."""
        sizes = [(profile.max_request_bytes, profile.max_response_bytes) for profile in profiles]
        return cls(max(request for request, _ in sizes), max(response for _, response in sizes))

    def shortage(self, profile: Profile) -> str | None:
        """What a server with these limits cannot give a version with `profile`, in words."""
        for name, limit in (("max_request_bytes", self.request), ("max_response_bytes", self.response)):
            if getattr(profile, name) > limit:
                return f"its profile has {name} {getattr(profile, name)}, but this server was started with {limit}"
        return None


def profile_names() -> list[str]:
    return sorted(path.stem for path in (CONFIG / "profiles").glob("*.yaml"))


def profile_source(name: str) -> str:
    """The spelling of a profile's name that means the same from everywhere: that of a file is its whole path."""
    return str(Path(name).resolve()) if name.endswith(".yaml") else name


def profile_file(name: str) -> Path:
    """Where the profile `name` stands; it need not be there."""
    return Path(name) if name.endswith(".yaml") else CONFIG / "profiles" / f"{name}.yaml"


def load_profile(name: str) -> Profile:
    """The profile `name`, or the one in the file that `name` is the path of; `ValueError` says what does not fit."""
    path = profile_file(name)
    if not path.is_file():
        raise ValueError(
            f"there is no profile {name!r}: choose one of {', '.join(profile_names())}, or name a .yaml file"
        )
    try:
        profile = Profile.model_validate(parse_yaml(read_file(path.resolve(), MAX_YAML_BYTES), path.name))
    except ValidationError as error:
        findings = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:MAX_FINDINGS])
        raise ValueError(f"{path}: {findings}") from None
    directory = path.absolute().parent
    return profile.model_copy(update={"trusted_keys": tuple(str(directory / key) for key in profile.trusted_keys)})


def properties(
    *,
    versions: Mapping[str, Profile],
    promoted: str,
    ports: Ports,
    store: Path,
    frozen: bool = False,
    token_minutes: float | None = None,
    gpus: bool = True,
) -> Mapping[str, str]:
    """The checked-in `config.properties`, with the addresses, the store, the limits and the versions to load.

    With `frozen`, the management API neither registers nor unregisters. With `token_minutes`, TorchServe asks for keys,
    which live for so long. Without `gpus` it gives workers none, though the machine may have some.
    """
    limits = SizeLimits.of(versions.values())
    return read_properties(CONFIG_PROPERTIES) | {
        **{f"{kind}_address": _binding(ports, kind) for kind in ("inference", "management", "metrics")},
        "grpc_inference_port": str(ports.grpc_inference),
        "grpc_management_port": str(ports.grpc_management),
        "metrics_config": str(CONFIG / "metrics.yaml"),
        "model_store": str(store.resolve()),
        **({"enable_model_api": "false"} if frozen else {}),
        **_token_mode(token_minutes),
        **({} if gpus else {"number_of_gpu": "0"}),
        "max_request_size": str(limits.request),
        "max_response_size": str(limits.response),
        "job_queue_size": str(versions[promoted].queue_size),
        "default_response_timeout": str(versions[promoted].response_timeout_s),
        "default_startup_timeout": str(versions[promoted].startup_timeout_s),
        "model_snapshot": _snapshot(versions, promoted),
    }


def _binding(ports: Ports, kind: str) -> str:
    """An address as TorchServe reads it. It knows no IPv6, but what is bound to 0.0.0.0 there takes IPv6 as well."""
    host = ports.host_of(kind)
    return f"http://{ANY_IPV4 if host == ANY else host}:{getattr(ports, kind)}"


def _token_mode(minutes: float | None) -> Mapping[str, str]:
    if minutes is None:
        return {}
    return {"disable_token_authorization": "false", "token_expiration_min": f"{minutes:g}"}


def _snapshot(versions: Mapping[str, Profile], promoted: str) -> str:
    """TorchServe's own declaration of what to load: the only one that fixes the default version and a delay of 0."""
    models = {
        version: {
            "defaultVersion": version == promoted,
            "marName": archive_name(version),
            "minWorkers": profile.workers,
            "maxWorkers": profile.workers,
            "batchSize": profile.batch_size,
            "maxBatchDelay": profile.max_batch_delay_ms,
            "responseTimeout": profile.response_timeout_s,
            "startupTimeout": profile.startup_timeout_s,
        }
        for version, profile in versions.items()
    }
    snapshot = {"name": "declared.cfg", "modelCount": len(models), "created": 0, "models": {MODEL_NAME: models}}
    return json.dumps(snapshot, separators=(",", ":"))


def read_properties(path: Path) -> dict[str, str]:
    """Keys and values of a properties file, comments left out."""
    lines = (line.strip() for line in path.read_text("utf-8").splitlines())
    pairs = (line.partition("=") for line in lines if line and not line.startswith("#"))
    return {key.strip(): value.strip() for key, _, value in pairs}
