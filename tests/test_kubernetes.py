"""The kustomizations render, fit Kubernetes' schemas, and agree with each other, the image and the server."""

from __future__ import annotations

import configparser
import os
import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from carla_policy_tools import prometheus_rule
from carla_policy_tools.cli import VERBS
from carla_policy_tools.fetching import read_declared
from carla_policy_tools.lifecycle.stopping import FINISH_S, LEAVE_S
from carla_policy_tools.paths import CONFIG, PROJECT
from carla_policy_tools.settings.model import NAMES, PREFIX
from carla_policy_tools.torchserve import STOP_TIMEOUT_S
from tests.image.dockerfile import read
from tests.image.pods import Document, named
from tests.kubectl import KUSTOMIZATIONS, find_kubectl, render

OVERLAYS = sorted(path.name for path in (KUSTOMIZATIONS / "overlays").iterdir())
ROOTS = ["base", *(f"overlays/{name}" for name in OVERLAYS)]
SCHEMAS = "1.34"
NOT_KUBERNETES = {"ServiceMonitor"}
"""Custom resources: no schema comes with Kubernetes."""
JAVA_MB, WORKER_MB, VERSIONS = 400, 300, 4
"""What is left of a pod's memory has to hold Java itself, and a worker for each of so many versions."""

pytestmark = pytest.mark.skipif(find_kubectl() is None, reason="`python -m tests.kubectl` brings kubectl")


@pytest.fixture(scope="module")
def rendered() -> dict[str, list[Document]]:
    return {root: render(KUSTOMIZATIONS / root) for root in ROOTS}


@pytest.fixture(params=ROOTS)
def documents(request: pytest.FixtureRequest, rendered: dict[str, list[Document]]) -> list[Document]:
    return rendered[request.param]


def deployments(documents: list[Document]) -> list[Document]:
    return [document for document in documents if document["kind"] == "Deployment"]


def pod(deployment: Document) -> Document:
    return dict(deployment["spec"]["template"]["spec"])


def server(deployment: Document) -> Document:
    (container,) = pod(deployment)["containers"]
    return dict(container)


def ports(deployment: Document) -> dict[str, int]:
    return {port["name"]: port["containerPort"] for port in server(deployment)["ports"]}


def labels(deployment: Document) -> dict[str, str]:
    return dict(deployment["spec"]["template"]["metadata"]["labels"])


def settings_of(documents: list[Document]) -> Document:
    (found,) = [
        document
        for document in documents
        if re.fullmatch("carla-policy-settings-[a-z0-9]{10}", document["metadata"]["name"])
    ]
    return dict(found["data"])


def mebibytes(text: str) -> int:
    return int(text[:-2]) * {"Mi": 1, "Gi": 1024}[text[-2:]]


def test_every_document_fits_its_schema(documents: list[Document]) -> None:
    assert documents
    for document in documents:
        if document["kind"] not in NOT_KUBERNETES:
            kubernetes_validate.validate(document, SCHEMAS, strict=True)


def test_schemas_are_strict() -> None:
    document = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x"}, "spec": {"port": []}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(document, SCHEMAS, strict=True)


def test_every_selector_finds_the_pods_it_is_for(documents: list[Document]) -> None:
    found = deployments(documents)
    for deployment in found:
        own = deployment["spec"]["selector"]["matchLabels"].items()
        assert own <= labels(deployment).items()
        assert not any(own <= labels(other).items() for other in found if other is not deployment)
    for kind in ("Service", "PodDisruptionBudget", "NetworkPolicy"):
        specification = named(documents, kind)["spec"]
        selector = specification.get("podSelector") or specification["selector"]
        wanted = selector.get("matchLabels", selector)
        assert wanted
        assert all(wanted.items() <= labels(deployment).items() for deployment in found), kind


def test_ports_are_the_images_and_management_is_none_of_them(documents: list[Document]) -> None:
    (exposed,) = [i.words for i in read(PROJECT / "Dockerfile") if i.name == "EXPOSE"]
    for deployment in deployments(documents):
        assert sorted(ports(deployment).values()) == sorted(map(int, exposed))
        assert 8081 not in ports(deployment).values()
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert server(deployment)[probe]["httpGet"]["port"] in ports(deployment)
        for port in named(documents, "Service")["spec"]["ports"]:
            assert ports(deployment)[port["targetPort"]] == port["port"]
    opened = [rule for entry in named(documents, "NetworkPolicy")["spec"]["ingress"] for rule in entry["ports"]]
    assert {rule["port"] for rule in opened} <= ports(deployments(documents)[0]).keys()


def test_only_this_namespace_asks_for_predictions_and_only_monitoring_reads_metrics(documents: list[Document]) -> None:
    policy = named(documents, "NetworkPolicy")["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert policy["egress"] == []
    allowed = {port["port"]: yaml.safe_dump(entry["from"]) for entry in policy["ingress"] for port in entry["ports"]}
    assert "namespaceSelector" not in allowed["predictions"]
    assert "kubernetes.io/metadata.name: monitoring" in allowed["metrics"] == allowed["health"]


def test_pods_have_no_rights_and_no_token(documents: list[Document]) -> None:
    for deployment in deployments(documents):
        security = pod(deployment)["securityContext"]
        (user,) = [i.text for i in read(PROJECT / "Dockerfile") if i.name == "USER"]
        assert user == f"{security['runAsUser']}:{security['runAsGroup']}"
        assert security["runAsNonRoot"] is True
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod(deployment)["automountServiceAccountToken"] is False
        for container in [server(deployment), *pod(deployment)["initContainers"]]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
        assert named(documents, "ServiceAccount")["metadata"]["name"] == pod(deployment)["serviceAccountName"]


def test_writable_places_are_those_of_the_image(documents: list[Document]) -> None:
    (volumes,) = [i.words for i in read(PROJECT / "Dockerfile") if i.name == "VOLUME"]
    for deployment in deployments(documents):
        for container in [server(deployment), *pod(deployment)["initContainers"]]:
            mounts = container["volumeMounts"]
            assert {mount["mountPath"] for mount in mounts if not mount.get("readOnly")} == set(volumes)
        names = {mount["name"] for mount in server(deployment)["volumeMounts"]}
        assert names == {volume["name"] for volume in pod(deployment)["volumes"]}


def test_every_variable_is_a_setting_and_every_verb_exists(documents: list[Document]) -> None:
    settings = {f"{PREFIX}{name.upper()}" for name in NAMES}
    for document in documents:
        if document["kind"] == "ConfigMap" and "registry.json" not in document["data"]:
            assert set(document["data"]) - {"ARCHIVES"} <= settings
    for deployment in deployments(documents):
        for container in [server(deployment), *pod(deployment)["initContainers"]]:
            assert container["args"][0] in {verb.__name__ for verb in VERBS}
            assert {variable["name"] for variable in container["env"]} <= settings


def test_one_image_everywhere(documents: list[Document]) -> None:
    images = {c["image"] for d in deployments(documents) for c in [server(d), *pod(d)["initContainers"]]}
    assert len(images) == 1


def test_released_image_has_the_releases_number(rendered: dict[str, list[Document]]) -> None:
    setup = configparser.ConfigParser()
    setup.read(PROJECT / "setup.cfg")
    for root in ("base", "overlays/production", "overlays/canary"):
        assert server(deployments(rendered[root])[0])["image"].endswith(f":{setup['metadata']['version']}")


def test_registries_of_the_config_maps_are_registries(documents: list[Document], tmp_path: Path) -> None:
    found = [d["data"]["registry.json"] for d in documents if "registry.json" in d.get("data", {})]
    assert len(found) == len(deployments(documents))
    for number, content in enumerate(found):
        (tmp_path / f"{number}.json").write_text(content)
        read_declared(tmp_path / f"{number}.json")


def test_another_registry_is_a_roll_out(tmp_path: Path) -> None:
    """The ConfigMap's name changes with its content, and with the name the pods."""
    names = []
    overlay = tmp_path / "overlay"
    overlay.mkdir()
    (overlay / "kustomization.yaml").write_text(
        yaml.safe_dump(
            {
                "resources": [os.path.relpath((KUSTOMIZATIONS / "base").resolve(), overlay.resolve())],
                "configMapGenerator": [
                    {"name": "carla-policy-registry", "behavior": "replace", "files": ["registry.json"]}
                ],
            }
        )
    )
    for content in ("{}", '{"format": 1}'):
        (overlay / "registry.json").write_text(content)
        (deployment,) = deployments(render(overlay))
        names += [v["configMap"]["name"] for v in pod(deployment)["volumes"] if "configMap" in v]
    assert len(set(names)) == 2


def test_grace_period_holds_the_hook_the_drain_and_the_end(documents: list[Document]) -> None:
    for deployment in deployments(documents):
        _, hook_s = server(deployment)["lifecycle"]["preStop"]["exec"]["command"]
        drain_s = FINISH_S + LEAVE_S + FINISH_S / 3
        longest_s = int(hook_s) + drain_s + 2 * STOP_TIMEOUT_S
        assert pod(deployment)["terminationGracePeriodSeconds"] >= longest_s


def test_memory_holds_both_heaps_java_and_workers(documents: list[Document]) -> None:
    heap_mb = int(settings_of(documents)["CARLA_POLICY_JVM_HEAP_MB"])
    for deployment in deployments(documents):
        limit_mb = mebibytes(server(deployment)["resources"]["limits"]["memory"])
        assert limit_mb >= 2 * heap_mb + JAVA_MB + VERSIONS * WORKER_MB


def test_budget_and_autoscaler_leave_somebody_serving(documents: list[Document]) -> None:
    scaler = named(documents, "HorizontalPodAutoscaler")["spec"]
    stable = named(documents, "Deployment", scaler["scaleTargetRef"]["name"])
    assert "replicas" not in stable["spec"]
    assert scaler["minReplicas"] <= scaler["maxReplicas"]
    assert named(documents, "PodDisruptionBudget")["spec"]["maxUnavailable"] == 1
    assert stable["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    assert scaler["metrics"][0]["containerResource"]["container"] == server(stable)["name"]


def test_replicas_outlive_a_drained_node_where_it_matters(rendered: dict[str, list[Document]]) -> None:
    for root in ("base", "overlays/production", "overlays/canary"):
        assert named(rendered[root], "HorizontalPodAutoscaler")["spec"]["minReplicas"] >= 2


def test_monitor_scrapes_ports_of_the_service(rendered: dict[str, list[Document]]) -> None:
    documents = rendered["overlays/production"]
    service = named(documents, "Service")
    monitor = named(documents, "ServiceMonitor")["spec"]
    assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert {endpoint["port"] for endpoint in monitor["endpoints"]} == {"metrics", "health"}
    assert {endpoint["port"] for endpoint in monitor["endpoints"]} <= {p["name"] for p in service["spec"]["ports"]}


def test_canary_shares_the_service_and_has_a_registry_of_its_own(rendered: dict[str, list[Document]]) -> None:
    stable, canary = sorted(deployments(rendered["overlays/canary"]), key=lambda d: len(d["metadata"]["name"]))
    assert canary["spec"]["replicas"] == 1
    volumes = [
        volume["configMap"]["name"] for d in (stable, canary) for volume in pod(d)["volumes"] if "configMap" in volume
    ]
    assert len(set(volumes)) == 2


def test_kserve_example_is_the_deployment_in_other_words(rendered: dict[str, list[Document]]) -> None:
    """KServe's resource has no schema here: its predictor is a pod, and is held against the schema of one."""
    service = yaml.safe_load((KUSTOMIZATIONS / "kserve" / "inference-service.yaml").read_text())
    assert (service["apiVersion"], service["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    predictor = dict(service["spec"]["predictor"])
    assert (predictor.pop("minReplicas"), predictor.pop("maxReplicas")) == (2, 6)
    as_pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": predictor}
    kubernetes_validate.validate(as_pod, SCHEMAS, strict=True)
    (stable,) = deployments(rendered["base"])
    (container,) = predictor["containers"]
    assert container["name"] == "kserve-container"
    for key in ("image", "args", "resources", "securityContext", "lifecycle"):
        assert container[key] == server(stable)[key], key
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        own = {**server(stable)[probe], "httpGet": {**server(stable)[probe]["httpGet"], "port": 8083}}
        assert container[probe] == own
    assert predictor["securityContext"].items() <= pod(stable)["securityContext"].items()


def test_rules_of_prometheus_become_one_resource(tmp_path: Path) -> None:
    group: dict[str, Any] = {"name": "first", "rules": [{"alert": "Broken", "expr": "up == 0"}]}
    (tmp_path / "alerts.yml").write_text(yaml.safe_dump({"groups": [group]}))
    (tmp_path / "more.yml").write_text(yaml.safe_dump({"groups": [{**group, "name": "second"}]}))
    rule = prometheus_rule.prometheus_rule(tmp_path)
    assert rule["kind"] == "PrometheusRule"
    assert [found["name"] for found in rule["spec"]["groups"]] == ["first", "second"]
    with pytest.raises(ValueError, match="there are no rules"):
        prometheus_rule.prometheus_rule(CONFIG / "profiles")
