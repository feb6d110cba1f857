"""Settings of a server: who may say them, who wins, and how mistakes are told."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from carla_policy_tools.paths import CONFIG, PROJECT
from carla_policy_tools.serving_commands import serve
from carla_policy_tools.settings.checking import findings
from carla_policy_tools.settings.effects import check_device, worker_environment, write_log_level
from carla_policy_tools.settings.model import ABOUT, LIVE, NAMES, PREFIX, Settings, variables_of
from carla_policy_tools.settings.resolving import DEFAULT, option_of, resolve
from carla_policy_tools.settings.sources import OTHER_VARIABLES, deployment_names, read_deployment
from tests.test_serve_command import run

OTHER_PURPOSES = {"CORS_ORIGINS"}

VALUES: dict[str, tuple[Any, str, str, Any]] = {
    "host": ("10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"),
    "port": (9001, "9002", "9003", 9004),
    "management_port": (9001, "9002", "9003", 9004),
    "metrics_port": (9001, "9002", "9003", 9004),
    "health_port": (9001, "9002", "9003", 9004),
    "profile": ("a", "b", "c", "d"),
    "workers": (1, "2", "3", 4),
    "jvm_heap_mb": (101, "102", "103", 104),
    "device": ("cpu", "cuda", "0", "auto"),
    "log_level": ("error", "WARN", "critical", "debug"),
    "log_console": (True, "false", "true", False),
    "frozen": (True, "false", "true", False),
    "token_auth": (True, "no", "yes", False),
    "token_minutes": (1.5, "2.5", "3.5", 4.5),
    "run_dir": (Path("/a"), "/b", "/c", "/d"),
    "store": (Path("/a"), "/b", "/c", "/d"),
    "registry": (Path("/a"), "/b", "/c", "/d"),
    "artifact_dir": (Path("/a"), "/b", "/c", "/d"),
    "versions": (["v1.0.0"], "v2.0.0, 2.1.0", "v3.0.0", ["v4.0.0"]),
    "promote": ("1.0.0", "v2.0.0", "3.0.0", "v4.0.0"),
}
"""What flag, prefixed variable, seeds' variable and file say."""

READ: dict[str, tuple[Any, Any, Any, Any]] = {
    "port": (9001, 9002, 9003, 9004),
    "device": ("cpu", "cuda", "cpu", "auto"),
    "workers": (1, 2, 3, 4),
    "log_level": ("error", "warning", "critical", "debug"),
    "promote": ("v1.0.0", "v2.0.0", "v3.0.0", "v4.0.0"),
    "log_console": (True, False, None, False),
    "frozen": (True, False, None, False),
    "token_auth": (True, False, None, False),
    "token_minutes": (1.5, 2.5, None, 4.5),
    "versions": (("v1.0.0",), ("v2.0.0", "v2.1.0"), None, ("v4.0.0",)),
    "jvm_heap_mb": (101, 102, None, 104),
    **dict.fromkeys(("management_port", "metrics_port", "health_port"), (9001, 9002, None, 9004)),
    **{
        name: (Path("/a"), Path("/b"), Path("/c"), Path("/d"))
        for name in ("run_dir", "store", "registry", "artifact_dir")
    },
}
"""What they come to, where that is not the same."""


def deployment(path: Path, content: Mapping[str, Any]) -> str:
    path.write_text(yaml.safe_dump(dict(content)))
    return str(path)


@pytest.mark.parametrize("name", NAMES)
def test_flag_beats_variable_beats_seeds_variable_beats_file_beats_default(name: str, tmp_path: Path) -> None:
    flag, own, seed, filed = VALUES[name]
    expected = READ.get(name, VALUES[name])
    prefixed, *seeds = variables_of(name)
    file = deployment(tmp_path / "own.yaml", {name: filed})
    option = option_of(name)
    environment = {prefixed: own, **dict.fromkeys(seeds, seed)}
    steps = [(file, {name: flag}, environment, expected[0], option), (file, {}, environment, expected[1], prefixed)]
    if seeds:
        steps.append((file, {}, {seeds[0]: seed}, expected[2], seeds[0]))
    steps += [
        (file, {}, {}, expected[3], f"{file}: {name}"),
        (None, {name: None}, {prefixed: ""}, getattr(Settings(), name), DEFAULT),
    ]
    for chosen, flags, variables, value, source in steps:
        found = resolve(chosen, flags, variables)
        assert (getattr(found.settings, name), found.sources[name]) == (value, source)


def test_seeds_variables_are_those_of_the_requirements() -> None:
    assert {about.seed for about in ABOUT.values()} - {None} == {
        "ARTIFACT_DIR", "MODEL_VERSION", "USE_GPU", "PORT", "WORKERS", "LOG_LEVEL",
    }  # fmt: skip


def test_every_setting_is_an_option_of_serve_and_documented() -> None:
    options = set(serve.__annotations__) - {"return", "as_json", "deployment"}
    assert options == set(NAMES)
    documented = (CONFIG / "README.md").read_text()
    for name in NAMES:
        live = "live" if name in LIVE else "restart"
        variables = ", ".join(f"`{variable}`" for variable in variables_of(name))
        assert re.search(rf"^\| `{name}` \| {re.escape(variables)} \| .* \| {live}", documented, re.MULTILINE), name


def test_deployment_is_chosen_by_option_then_by_variable_then_local(tmp_path: Path) -> None:
    own = deployment(tmp_path / "own.yaml", {"port": 9001})
    named = {f"{PREFIX}DEPLOYMENT": own}
    assert resolve(environment={}).deployment == "local"
    assert resolve(environment=named).settings.port == 9001
    assert resolve("production", environment=named).settings.host == "0.0.0.0"


@pytest.mark.parametrize("name", deployment_names())
def test_shipped_deployments_are_valid(name: str) -> None:
    assert [found for found in findings([name], {}) if found[1] == "wrong"] == []


def test_paths_in_a_file_are_relative_to_it(tmp_path: Path) -> None:
    own = deployment(tmp_path / "own.yaml", {"store": "archives", "profile": "mine.yaml", "run_dir": "/srv/run"})
    found = resolve(own, environment={}).settings
    assert (found.store, found.profile, found.run_dir) == (
        tmp_path / "archives",
        str(tmp_path / "mine.yaml"),
        Path("/srv/run"),
    )
    assert resolve(environment={f"{PREFIX}STORE": "archives"}).settings.store == Path("archives")


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        (
            {"CARLA_POLICY_PROT": "1"},
            r"nothing reads this variable \(did you mean CARLA_POLICY_PORT\?\)",
        ),
        ({"CARLA_POLICY_USE_GPU": "1"}, "CARLA_POLICY_USE_GPU: nothing reads this variable"),
        ({"CARLA_POLICY_PORT": "http"}, "CARLA_POLICY_PORT: expected a port from 0 to 65535.*, got 'http'"),
        ({"PORT": "65536"}, "^PORT: expected a port from 0 to 65535.*, got '65536'"),
        ({"WORKERS": "0"}, "WORKERS: expected a number of workers for each version, from 1 to 256, got '0'"),
        ({"USE_GPU": "maybe"}, "USE_GPU: expected auto, cpu or cuda, or of USE_GPU: auto, 0 or 1, got 'maybe'"),
        ({"LOG_LEVEL": "loud"}, "LOG_LEVEL: expected debug, info, warning, error or critical, got 'loud'"),
        ({"MODEL_VERSION": "latest"}, "MODEL_VERSION: expected a version such as v0.2.0, got 'latest'"),
        ({"CARLA_POLICY_HOST": "::1"}, "CARLA_POLICY_HOST: expected an IPv4 address.*, got '::1'"),
        ({"CARLA_POLICY_TOKEN_MINUTES": "inf"}, "CARLA_POLICY_TOKEN_MINUTES: expected minutes, from 0.1, got 'inf'"),
        ({"CARLA_POLICY_DEPLOYMENT": "prodution"}, r"no deployment 'prodution' \(did you mean production\?\)"),
    ],
)
def test_mistakes_in_the_environment_name_the_variable(environment: Mapping[str, str], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        resolve(environment=environment)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("prot: 1", r"own.yaml: prot: there is no such setting \(did you mean port\?\)"),
        ("port: '8080'", r"own.yaml: port: expected a port from 0 to 65535.*, got '8080'"),
        ("port: true", "own.yaml: port: expected a port"),
        ("frozen: 1", "own.yaml: frozen: expected true or false, got 1"),
        ("workers: 1.5", "own.yaml: workers: expected a number of workers"),
        ("store: ''", "own.yaml: store: expected a directory of archives, got ''"),
        ("versions: [newest]", r"own.yaml: versions: expected versions such as v0.2.0, got \['newest'\]"),
        ("- port", "own.yaml: expected settings, one a line"),
        ("port: 1\nport: 2", "own.yaml: not readable as YAML: key 'port' appears twice"),
    ],
)
def test_mistakes_in_a_file_name_it_and_the_key(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(text)
    with pytest.raises(Exception, match=reason):
        read_deployment(path)
    assert [finding for _, finding, _ in findings([str(path)], {})] == ["wrong"]


def test_links_that_kubernetes_sets_for_a_service_of_our_name_are_no_settings() -> None:
    links = {
        "CARLA_POLICY_PORT": "tcp://10.43.0.7:8080",
        "CARLA_POLICY_PORT_8080_TCP": "tcp://10.43.0.7:8080",
        "CARLA_POLICY_PORT_8080_TCP_ADDR": "10.43.0.7",
        "CARLA_POLICY_SERVICE_HOST": "10.43.0.7",
        "CARLA_POLICY_SERVICE_PORT": "8080",
        "CARLA_POLICY_SERVICE_PORT_METRICS": "8082",
        "CARLA_POLICY_CANARY_PORT": "tcp://10.43.0.8:8080",
    }
    found = resolve(environment=links)
    assert (found.settings.port, found.sources["port"]) == (8080, DEFAULT)


def test_every_variable_of_the_project_is_known() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=PROJECT, capture_output=True, text=True, check=False)
    names = set()
    for name in listed.stdout.split():
        path = PROJECT / name
        if path.parts[len(PROJECT.parts)] in ("tools", "handler", "config", "benchmarks") and path.suffix != ".md":
            names |= set(re.findall(rf"\b{PREFIX}[A-Z][A-Z_]*[A-Z]\b", path.read_text("utf-8", "replace")))
    own = {variable for name in NAMES for variable in variables_of(name)}
    assert names - own - OTHER_VARIABLES <= {f"{PREFIX}DEPLOYMENT"}


def test_gpu_that_is_asked_for_and_not_there_is_refused_at_once(tmp_path: Path) -> None:
    check_device("auto", "USE_GPU", tmp_path)
    check_device("cpu", "USE_GPU", tmp_path)
    with pytest.raises(ValueError, match=r"^USE_GPU: a GPU is asked for, but (torch was built|this machine shows)"):
        check_device("cuda", "USE_GPU", tmp_path)


def test_on_the_cpu_workers_see_no_gpu(tmp_path: Path) -> None:
    assert worker_environment("cpu", "info", tmp_path)["CUDA_VISIBLE_DEVICES"] == ""
    assert "CUDA_VISIBLE_DEVICES" not in worker_environment("auto", "info", tmp_path)


@pytest.mark.parametrize(("level", "root"), [("debug", "debug"), ("info", "warn"), ("error", "error")])
def test_log_level_is_written_for_the_front_end_and_for_workers(level: Any, root: str, tmp_path: Path) -> None:
    write_log_level(tmp_path, level)
    config = (tmp_path / "log4j2.xml").read_text()
    assert f'<Root level="{root}">' in config
    assert 'monitorInterval="' in config
    assert (tmp_path / "log_level").read_text() == level


def test_show_tells_where_everything_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = deployment(tmp_path / "own.yaml", {"port": 9001, "profile": "throughput", "store": str(tmp_path)})
    monkeypatch.setenv("WORKERS", "3")
    shown = json.loads(run("config", "show", "--deployment", own, "--json").stdout)
    said = {name: (item["value"], item["source"]) for name, item in shown["settings"].items()}
    assert said["port"] == (9001, f"{own}: port")
    assert said["workers"] == (3, "WORKERS")
    assert said["log_level"] == ("info", DEFAULT)
    new = shown["profiles"]["new versions"]
    assert (new["profile"], new["values"]["batch_size"], new["values"]["workers"]) == ("throughput", 64, 3)
    assert (new["sources"]["workers"], new["sources"]["batch_size"]) == ("WORKERS", new["file"])
    assert shown["server"] is None
    text = run("config", "show", "--deployment", own).stdout
    assert re.search(r"workers +3 +WORKERS +live", text)
    assert re.search(r"port +9001 +\S+own.yaml: port +restart", text)


def test_check_tells_all_that_is_wrong(tmp_path: Path) -> None:
    bad = deployment(tmp_path / "bad.yaml", {"prot": 1})
    missing = deployment(tmp_path / "missing.yaml", {"profile": "fast"})
    done = run("config", "check", "local", bad, missing, "--json")
    found = [item["finding"] for item in json.loads(done.stdout)["findings"]]
    assert (done.returncode, found) == (1, ["ok", "wrong", "wrong"])
    assert run("config", "check").returncode == 0


def test_store_of_the_environment_is_every_verb_s(small_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"{PREFIX}STORE", str(small_store))
    assert str(small_store) in run("reconcile").stderr
    assert "has no v7.7.7, only v1.9.0, v1.10.0" in run("serve", "v7.7.7").stderr
