"""The Dockerfile's steps give an image, and containers and pods of it serve: read-only, without rights, honestly.

No engine runs here. `tests/image` carries the steps out in namespaces; the packages of requirements/serve.txt are those
of the environment that runs this, unless CARLA_POLICY_IMAGE_TEST=full asks for installing them and for recording Java's
cache, which takes minutes.
"""

from __future__ import annotations

import configparser
import http.client
import json
import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

from carla_policy_tools.paths import ARTIFACTS, PROJECT, archive_name
from tests.image import engine
from tests.image.engine import ADDRESS, PATIENCE_S, USER, Container, Image
from tests.image.pods import Document, InitFailed, Pod, named
from tests.kubectl import KUSTOMIZATIONS, find_kubectl, render

FULL = os.environ.get("CARLA_POLICY_IMAGE_TEST") == "full"
NEWEST, OLDER = "v0.3.0", "v0.2.0"
REGISTRY = "/var/lib/carla-policy/registry.json"
TIMEOUT_S = 60

pytestmark = pytest.mark.skipif(engine.refusal() is not None, reason=str(engine.refusal()))


def golden_body() -> bytes:
    observation = {"speed": 8.0, "steering": 0.0, "sensors": [20.0] * 22 + [4.0, 0.0, 0.0, 0.0, 0.0, 0.0]}
    return json.dumps({"observations": [observation]}).encode()


def get(port: int, path: str, host: str = ADDRESS) -> requests.Response:
    return requests.get(f"http://{host}:{port}{path}", timeout=TIMEOUT_S)


def is_ready(container: Container) -> bool:
    with container.network():
        return get(8083, "/readyz").status_code == 200


def answering_version(container: Container) -> str:
    with container.network():
        answer = requests.post(
            f"http://{ADDRESS}:8080/predictions/carla_policy",
            data=golden_body(),
            timeout=TIMEOUT_S,
            headers={"Content-Type": "application/json"},
        )
    return str(answer.json()["version"])


class Traffic:
    """Clients that ask on and on, each on a connection that it keeps, until they are told that the server stops.

    They do not come back to it then: in a container it cannot close its port before it ends.
    """

    def __init__(self, *containers: Container, clients: int = 4) -> None:
        self.statuses: Counter[int] = Counter()
        self.versions: Counter[str] = Counter()
        self.unanswered: list[str] = []
        self._containers = containers
        """Asked in this order: the next one where one does not take a connection any more, or says that it stops."""
        self._enough = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(clients)]

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._enough.set()
        for thread in self._threads:
            thread.join()

    def wait_for(self, answers: int) -> None:
        wanted = self.statuses[200] + answers
        deadline = time.monotonic() + PATIENCE_S
        while self.statuses[200] < wanted:
            assert time.monotonic() < deadline, f"{self.statuses}, {self.unanswered[:3]}"
            time.sleep(0.01)

    def _ask(self) -> None:
        for container in self._containers:
            with container.network():
                self._ask_one()

    def _ask_one(self) -> None:
        connection = http.client.HTTPConnection(ADDRESS, 8080, timeout=TIMEOUT_S)
        while not self._enough.is_set():
            try:
                connection.connect()
            except OSError:
                return
            try:
                while not self._enough.is_set():
                    connection.request(
                        "POST", "/predictions/carla_policy", golden_body(), {"Content-Type": "application/json"}
                    )
                    answer = connection.getresponse()
                    content = json.loads(answer.read())
                    self.statuses[answer.status] += 1
                    if answer.status != 200:
                        return
                    self.versions[content["version"]] += 1
            except (OSError, http.client.HTTPException) as error:
                self.unanswered.append(repr(error))
            finally:
                connection.close()


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    directory = tmp_path_factory.mktemp("image")
    return engine.build(PROJECT, directory, {"AOT_CACHE": "1" if FULL else "0", "GIT_SHA": "0123abc"}, borrow=not FULL)


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The volume of the registry, kept from one container to the next."""
    directory = tmp_path_factory.mktemp("state")
    directory.chmod(0o1777)
    return directory


@contextmanager
def running(image: Image, **options: object) -> Iterator[Container]:
    with Container(image, **options) as container:  # type: ignore[arg-type]
        container.wait_until(lambda: is_ready(container))
        yield container


@pytest.fixture(scope="module")
def container(image: Image, state: Path) -> Iterator[Container]:
    """Without any argument, as `docker run --read-only --cap-drop ALL --security-opt no-new-privileges` starts it."""
    with running(image, volumes={"/var/lib/carla-policy": state}) as container:
        yield container


def test_image_says_which_release_and_commit_it_is(image: Image) -> None:
    setup = configparser.ConfigParser()
    setup.read(PROJECT / "setup.cfg")
    assert image.labels["org.opencontainers.image.version"] == setup["metadata"]["version"]
    assert image.labels["org.opencontainers.image.revision"] == "0123abc"


def test_image_has_every_archive_and_nothing_of_the_checkout_beside_what_it_runs(image: Image) -> None:
    root = image.layer / "opt" / "carla-policy"
    assert {path.name for path in (root / "model_store").glob("*.mar")} == {
        archive_name(artifact.name) for artifact in ARTIFACTS.glob("v*")
    }
    present = {path.name for path in root.iterdir()} - {"build", "carla_policy_serving.egg-info"}
    assert present == {
        *("config", "config.properties", "handler", "model_store", "pyproject.toml", "README.md", "requirements"),
        *("setup.cfg", "setup.py", "tools"),
    }
    assert not list(root.rglob("*.key"))


def test_image_has_the_requirements_alone(image: Image) -> None:
    if not FULL:
        pytest.skip("packages stand in here; CARLA_POLICY_IMAGE_TEST=full installs them")
    names = {
        path.name.partition("-")[0].lower() for path in image.layer.glob("opt/venv/lib/*/site-packages/*.dist-info")
    }
    assert "torchserve" in names
    assert not names & {"pytest", "ruff", "mypy", "gymnasium"}


def test_image_starts_java_with_its_cache(container: Container) -> None:
    if not FULL:
        pytest.skip("no cache is recorded here; CARLA_POLICY_IMAGE_TEST=full does")
    (java,) = [process for process in container.processes() if process.name() == "java"]
    mapped = [place.path for place in java.memory_maps() if place.path.endswith(".aot")]
    assert mapped, "Java did not take it"
    assert all(str(Path(path).parent).endswith("/opt/carla-policy/build/aot") for path in mapped)


def test_container_runs_without_root_rights_or_a_place_to_write_to(container: Container) -> None:
    for process in container.processes():
        status = dict(line.split(":\t") for line in Path(f"/proc/{process.pid}/status").read_text().splitlines())
        assert status["Uid"].split() == [str(USER)] * 4
        assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 0
        assert status["NoNewPrivs"] == "1"
    for place in ("/", "/opt/carla-policy", "/opt/carla-policy/model_store", "/opt/venv", "/tmp", "/etc", "/root"):
        refused = container.execute(["touch", f"{place}/x"], user=0)
        assert "Read-only file system" in refused.stderr, place


def test_container_is_reached_from_elsewhere_but_for_management(container: Container, image: Image) -> None:
    listening = container.listening()
    with container.network():
        assert get(8080, "/predictions/carla_policy/v0.3.0/healthz").status_code == 200
        assert get(8082, "/metrics").status_code == 200
        assert get(8083, "/livez").json()["status"] == "ok"
        assert get(8081, "/models", "127.0.0.1").status_code == 200
        for route in ("v1/models/carla_policy:predict", "v2/models/carla_policy/infer"):  # KServe's
            answer = requests.post(f"http://{ADDRESS}:8080/{route}", data=golden_body(), timeout=TIMEOUT_S)
            assert len(answer.json()["actions"]) == 1, route
        for port in listening - set(image.ports):
            with pytest.raises(requests.ConnectionError):
                get(port, "/")
    assert set(image.ports) < listening


def test_healthcheck_is_green_only_while_the_promoted_version_answers(container: Container, image: Image) -> None:
    assert image.healthcheck == ["carla-policy", "health"]
    with container.network():
        worker = get(8080, f"/predictions/carla_policy/{NEWEST}/metadata").json()["workerPid"]
    assert container.execute(image.healthcheck).returncode == 0
    container.execute(["sh", "-c", f"kill -STOP {worker}"])
    try:
        assert container.execute(image.healthcheck).returncode == 1
    finally:
        container.execute(["sh", "-c", f"kill -CONT {worker}"])
    container.wait_until(lambda: container.execute(image.healthcheck).returncode == 0)


def test_container_logs_to_its_console_in_json(container: Container) -> None:
    lines = [line for line in container.output.read_text().splitlines() if line.startswith("{")]
    assert lines
    assert all(isinstance(json.loads(line), dict) for line in lines)


def test_registry_outlives_a_container_which_ends_at_sigterm_without_losing_a_request(
    container: Container, image: Image, state: Path
) -> None:
    promoted = container.execute(["carla-policy", "promote", OLDER, "--reason", "for a test"])
    assert promoted.returncode == 0, promoted.stderr
    with Traffic(container) as traffic:
        traffic.wait_for(100)
        processes = container.processes()
        assert container.stop() == 0
    assert traffic.unanswered == []
    assert set(traffic.statuses) <= {200, 503}
    assert set(traffic.versions) == {OLDER}
    assert [process for process in processes if process.is_running()] == []
    with running(image, volumes={"/var/lib/carla-policy": state}) as next_one:
        assert answering_version(next_one) == OLDER
        assert next_one.stop() == 0


@pytest.fixture
def own_archives(image: Image, tmp_path: Path) -> Path:
    """A directory of somebody else's, with one archive, that everybody may read."""
    directory = tmp_path / "models"
    directory.mkdir()
    shutil.copy(image.layer / "opt/carla-policy/model_store" / archive_name(OLDER), directory)
    return directory


def test_own_archives_are_served_from_a_read_only_volume(image: Image, own_archives: Path) -> None:
    environment = {"CARLA_POLICY_STORE": "/models"}
    with running(image, volumes={"/models": own_archives}, read_only=["/models"], environment=environment) as own:
        with own.network():
            described = get(8081, "/models/carla_policy/all", "127.0.0.1").json()
            assert [version["modelVersion"] for version in described] == [OLDER]
        assert own.stop() == 0


def test_a_volume_that_may_not_be_read_is_told_as_that(image: Image, own_archives: Path) -> None:
    own_archives.chmod(0o700)
    with Container(image, volumes={"/models": own_archives}, environment={"CARLA_POLICY_STORE": "/models"}) as refused:
        assert refused.wait(PATIENCE_S) == 1
        assert "/models: Permission denied" in refused.output.read_text()


needs_kubectl = pytest.mark.skipif(find_kubectl() is None, reason="`python -m tests.kubectl` brings kubectl")


@pytest.fixture(scope="module")
def production() -> list[Document]:
    return render(KUSTOMIZATIONS / "overlays" / "production")


def with_registry(documents: list[Document], content: str) -> list[Document]:
    copies: list[Document] = json.loads(json.dumps(documents))
    (registry,) = [d for d in copies if d["kind"] == "ConfigMap" and "registry.json" in d["data"]]
    registry["data"]["registry.json"] = content
    return copies


@needs_kubectl
def test_roll_out_of_another_registry_loses_no_request(image: Image, production: list[Document], state: Path) -> None:
    """A pod of the image's own registry, then one of a registry in which an operator promoted another version."""
    changed = (state / "registry.json").read_text()
    assert json.loads(changed)["promoted"] == OLDER
    with Pod(image, production) as old:
        old.server.wait_until(lambda: is_ready(old.server))
        for name in ("startupProbe", "readinessProbe", "livenessProbe"):
            probe = old.specification[name]["httpGet"]
            (port,) = [p["containerPort"] for p in old.specification["ports"] if p["name"] == probe["port"]]
            with old.server.network():
                assert get(port, probe["path"]).status_code == 200, name
        assert answering_version(old.server) == NEWEST
        with Pod(image, with_registry(production, changed)) as new:
            new.server.wait_until(lambda: is_ready(new.server))
            with Traffic(old.server, new.server) as traffic:
                traffic.wait_for(100)
                hook = old.server.execute(old.specification["lifecycle"]["preStop"]["exec"]["command"])
                assert hook.returncode == 0, hook.stderr
                began = time.monotonic()
                assert old.server.stop() == 0
                took_s = time.monotonic() - began
                traffic.wait_for(100)
            assert traffic.unanswered == []
            assert set(traffic.versions) == {NEWEST, OLDER}
            assert took_s + 5 < old.template["terminationGracePeriodSeconds"]
            assert new.server.stop() == 0


@needs_kubectl
def test_pod_does_not_start_with_an_archive_that_the_registry_does_not_declare(
    image: Image, production: list[Document], state: Path
) -> None:
    registry = json.loads((state / "registry.json").read_text())
    digest = registry["versions"][OLDER]["digest"]
    other = (state / "registry.json").read_text().replace(digest, "sha256:" + "0" * 64)
    with (
        pytest.raises(InitFailed, match=r"archives: status 1: .*is not what the registry declares"),
        Pod(image, with_registry(production, other)),
    ):
        pass


@needs_kubectl
def test_canary_pods_serve_another_registry_beside_the_stable_ones(image: Image, state: Path) -> None:
    documents = render(KUSTOMIZATIONS / "overlays" / "canary")
    canary = named(documents, "Deployment", "carla-policy-canary")["spec"]["template"]["spec"]
    (name,) = [volume["configMap"]["name"] for volume in canary["volumes"] if "configMap" in volume]
    named(documents, "ConfigMap", name)["data"]["registry.json"] = (state / "registry.json").read_text()
    with Pod(image, documents, "carla-policy-canary") as pod:
        pod.server.wait_until(lambda: is_ready(pod.server))
        assert answering_version(pod.server) == OLDER
        assert pod.server.stop() == 0
