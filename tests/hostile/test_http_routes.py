"""The other ways to a prediction that TorchServe offers: no other answer, nothing trusted from the address."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from carla_policy_tools.paths import ARTIFACTS
from tests.hostile.http_client import JSON, Bystander, Target
from tests.hostile.subject import Subject

DEFAULT = sorted(path.name for path in ARTIFACTS.glob("v*"))[-1]
QUERIES = (
    "deterministic=false",
    "body=%7B",
    "seed=1&log_prob=true",
    "url_path=healthz&describe=True",
    "%ff=%00",
    "x" * 3_000,
)


@contextmanager
def undisturbed(target: Target, served: Subject) -> Iterator[None]:
    workers = target.workers()
    with Bystander(target, served.good()):
        yield
    assert target.workers() == workers


def routes(target: Target) -> dict[str, str]:
    """Path by what it is; the ones that name no version lead to the default one."""
    return {
        "versioned": target.path,
        "default": "/predictions/carla_policy",
        "invocations": "/invocations?model_name=carla_policy",
        "invoke": "/models/carla_policy/invoke",
        "predict": f"/carla_policy/{target.version}/predict",
        "explanations": "/explanations/carla_policy",
        "versioned explanations": f"/explanations/carla_policy/{target.version}",
        "kserve": "/v1/models/carla_policy:predict",
        "versioned kserve": f"/v1/models/carla_policy/versions/{target.version}:predict",
        "kserve v2": "/v2/models/carla_policy/infer",
    }


@pytest.mark.parametrize("query", QUERIES)
def test_query_parameters_of_a_prediction_change_nothing(query: str, target: Target, served: Subject) -> None:
    with undisturbed(target, served):
        expected = target.ask(served.good()).actions
        assert target.ask(served.good(), path=f"{target.path}?{query}").actions == expected
        assert target.ask(b"{", path=f"{target.path}?{query}").told == (400, "INVALID_JSON")


def test_any_route_refuses_what_is_no_request(target: Target, served: Subject) -> None:
    with undisturbed(target, served):
        for name, path in routes(target).items():
            for body in (b"", b"{", b"null", b"[1]", b"\xff", b'{"a": 1, "a": 2}', b"NaN", served.sensor(b"1e308")):
                for headers in (JSON, {}, {"content-type": "text/plain"}):
                    reply = target.ask(body, headers, path=path)
                    assert 400 <= reply.status < 500, (name, body, headers, reply)


def test_any_route_gives_the_same_actions_or_is_refused(target: Target, served: Subject) -> None:
    body = served.good()
    by_version = {
        None: target.ask(body, path=f"/predictions/carla_policy/{DEFAULT}").actions,
        target.version: target.ask(body).actions,
    }
    with undisturbed(target, served):
        for name, path in routes(target).items():
            reply = target.ask(body, path=path)
            if reply.status == 200:
                assert reply.actions in by_version.values(), name
            else:
                assert 400 <= reply.status < 500, (name, reply)


@pytest.mark.parametrize("query", QUERIES)
def test_query_parameters_of_the_other_routes_are_no_options(query: str, target: Target, served: Subject) -> None:
    with undisturbed(target, served):
        for name, path in routes(target).items():
            joint = "&" if "?" in path else "?"
            for body in (served.good(), b"", b"{"):
                reply = target.ask(body, path=f"{path}{joint}{query}")
                assert reply.status < 500, (name, reply)
                assert reply.status != 200 or (body and b'"deterministic":true' in reply.content), (name, body, reply)


@pytest.mark.parametrize(
    "path",
    [
        "/nothing",
        "/healthz/",
        "/..",
        "/%2e%2e/metadata",
        "/metadata/more",
        "/" + "a" * 3_000,
        "/%ff%00",
        "/%0d%0aa",
        "//",
    ],
)
def test_path_behind_the_version_that_is_no_resource(path: str, target: Target, served: Subject) -> None:
    with undisturbed(target, served):
        reply = target.ask(b"", {}, method="GET", path=target.path + path)
        assert reply.status < 500
        assert b"actions" not in reply.content
        assert all(text.isprintable() for text in reply.headers.values())
