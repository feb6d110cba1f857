"""TorchServe's side of a served policy: the one class that its workers look for in this module."""

from __future__ import annotations

import itertools
import logging
import os
import re
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from ts import service as worker_service
from ts.context import Context
from ts.metrics.metric_cache_errors import MetricsCacheKeyError
from ts.metrics.metric_type_enum import MetricTypes
from ts.protocol import otf_message_handler
from ts.torch_handler.base_handler import BaseHandler

sys.dont_write_bytecode = True  # a worker's directory holds the archive's files, and a byte more is refused

from carla_policy import worker_protocol
from carla_policy.answers import Answer
from carla_policy.batch import Batch, Request
from carla_policy.deadline import Watch
from carla_policy.errors import ArtifactError
from carla_policy.events import OWN_LOGGER, tell
from carla_policy.headers import by_lower_case
from carla_policy.holding import hold, hold_directory
from carla_policy.level_file import follow_level_file
from carla_policy.loading import load_policy
from carla_policy.metrics.constants import constants, zeros
from carla_policy.metrics.emitter import Emitter
from carla_policy.metrics.reporter import Reporter
from carla_policy.request_events import RequestEvents, access_rate
from carla_policy.service import DEFAULT_MAX_ANSWER_BYTES, PolicyService
from carla_policy.trace_context import echoed
from carla_policy.tracing import Tracer, start_tracing
from carla_policy.version import CANDIDATE
from carla_policy.worker_events import WorkerEvents

logger = logging.getLogger(f"{OWN_LOGGER}.worker")

DRAIN_FILE = Path(os.environ["CARLA_POLICY_DRAIN_FILE"]) if "CARLA_POLICY_DRAIN_FILE" in os.environ else None
"""While this file exists, new requests are refused: TorchServe itself has no way to stop in order."""

MAX_RESPONSE_VARIABLE = "CARLA_POLICY_MAX_RESPONSE_BYTES"
"""Names the server's largest answer: TorchServe ends a worker that gives a larger one, and does not tell it."""

_SOCKET_NUMBER = re.compile(r"\.ts\.sock\.([0-9]+)$")


class PolicyHandler(BaseHandler):  # type: ignore[misc]
    """initialize -> preprocess -> inference -> postprocess; no state of a request is kept on `self`."""

    service: PolicyService
    reporter: Reporter
    events: WorkerEvents
    requests: RequestEvents
    tracer: Tracer | None

    def initialize(self, context: Context) -> None:
        """Load and self-test the version in the model directory; a version that fails never becomes ready.

        Sets what belongs to the whole worker process: raw request bodies (TorchServe would parse JSON leniently
        before the handler sees it), one thread for torch and its full float32 precision (importing TorchServe's base
        handler lowers it on GPUs that have TF32), and logging without a line per request.
        """
        started = time.perf_counter()
        os.environ["TS_DECODE_INPUT_REQUEST"] = "false"
        self.events = WorkerEvents()
        follow_level_file()
        torch.set_num_threads(1)
        torch.set_float32_matmul_precision("highest")
        try:
            model, declared = (context.manifest["model"][key] for key in ("modelName", "modelVersion"))
            self.events.name(model=model, version=declared)
            loaded = load_policy(Path(context.system_properties["model_dir"]))
            if declared != loaded.policy.card.version:
                raise ArtifactError(f"MANIFEST.json: says {declared}, the card says {loaded.policy.card.version}")
        except Exception as error:
            self.events.tell_failed_load(error)
            # Only a ValueError makes TorchServe 0.12 roll a failed registration back without a trace.
            raise error if isinstance(error, ValueError) else ValueError(str(error)) from error
        self.service = PolicyService(
            loaded,
            _is_draining,
            watch=Watch(prepare=lambda: torch.set_num_threads(1), on_hang=_end_process),
            max_answer_bytes=int(os.environ.get(MAX_RESPONSE_VARIABLE, DEFAULT_MAX_ANSWER_BYTES)),
        )
        if context.metrics is not None:
            context.metrics.add_time = _ignore
            if CANDIDATE not in context.model_name:
                emitter = Emitter(partial(_find_metric, context.metrics), (context.model_name, declared))
                self.reporter = Reporter(self.service.recorder, emitter, _worker_label(sys.argv))
                load_s = time.perf_counter() - started
                self.reporter.start(itertools.chain(constants(loaded, load_s), zeros(loaded)))
        own = (context.model_yaml_config or {}).get("handler") or {}
        worker_protocol.install(otf_message_handler, worker_service, own.get("busyPollUs", 0) / 1e6)
        self.requests = RequestEvents(access_rate())
        self.tracer = start_tracing(loaded, context.model_name)
        self.events.tell_ready(loaded)
        self.initialized = True

    def handle(self, data: list[dict[str, Any]], context: Context) -> list[Any]:
        """An answer for each row of `data`, in order, each with its own status and headers."""
        received = [processor.get_request_properties() for processor in context.request_processor]
        headers = [by_lower_case(own) for own in received]
        if len(data) == 1 and not data[0] and _is_describe(headers[0][0]):
            if DRAIN_FILE is not None:
                hold(hold_directory(DRAIN_FILE.parent, self.service.loaded.policy.card.version))
            return [self.describe_handle()]
        requests = [
            _to_request(row, own, *named, context.get_request_id(index) or "")
            for index, (row, own, named) in enumerate(zip(data, received, headers, strict=True))
        ]
        batch = self.inference(self.preprocess(requests))
        inferred = time.perf_counter()
        answers = self.postprocess(batch)
        traces = self.tracer.record(batch, answers, inferred) if self.tracer else ()
        self.requests.note(batch, answers, traces)
        for answer, (own, _), processor in zip(answers, headers, context.request_processor, strict=True):
            processor.report_status(answer.status, answer.phrase)
            processor.get_response_headers().update(
                {"content-type": answer.content_type, **answer.headers, **echoed(own)}
            )
        for trace, processor in zip(traces, context.request_processor, strict=False):
            processor.get_response_headers().update(trace.headers)
        return [answer.body for answer in answers]

    def preprocess(self, data: list[Request]) -> Batch:
        """Validate each request by itself."""
        return self.service.parse(data)

    def inference(self, data: Batch) -> Batch:
        """Features, network, action and safety envelope."""
        return self.service.infer(data)

    def postprocess(self, data: Batch) -> list[Answer]:
        """Encode the answers."""
        return self.service.encode(data)

    def describe_handle(self) -> dict[str, Any]:
        """What `GET /models/carla_policy/<version>?customized=true` shows: the same as the `metadata` resource."""
        return dict(self.service.metadata())


def _is_draining() -> bool:
    """Whether whoever started the server has said that it is about to stop."""
    return DRAIN_FILE is not None and DRAIN_FILE.exists()


def _end_process() -> None:
    """A thread that hangs cannot be ended; the process can, and TorchServe starts another."""
    tell(logger, logging.ERROR, "network_hang", "the network hangs; this worker ends, and another takes its place")
    os._exit(1)


def _ignore(*_: Any) -> None:
    """TorchServe's PredictionTime: a line for each batch, with the id of every request in it, which nobody reads."""


def _find_metric(metrics: Any, name: str, kind: str) -> Any:
    """The metric `name` of this server, `None` if its metrics configuration does not list it."""
    try:
        return metrics.get_metric(name, MetricTypes(kind))
    except MetricsCacheKeyError:
        return None


def _worker_label(arguments: Sequence[str]) -> str:
    """Number of this worker on its server, from the name of the socket that TorchServe gives it."""
    named = [_SOCKET_NUMBER.search(argument) for argument in arguments]
    return next((match[1] for match in named if match), "0")


def _is_describe(headers: dict[str, str]) -> bool:
    """A describe job comes alone, without body, path or type; a prediction with such a header has one of them."""
    return "url_path" not in headers and "content-type" not in headers and headers.get("describe") == "True"


def _to_request(
    row: dict[str, Any], received: dict[str, Any], headers: dict[str, str], repeated: frozenset[str], request_id: str
) -> Request:
    """A request of raw bytes, with its headers as `received` and by lower-case name.

    TorchServe gives the fields of a form the names that they chose, and notes them beside the headers: a field
    `content-type` hides the form's own.
    """
    body, path = row.get("body", b""), received.get("url_path")
    if isinstance(received.get("content-type"), dict):
        headers = {**headers, "content-type": "multipart/form-data"}
    return Request(
        body=body if isinstance(body, bytes | bytearray) else b"",
        headers=headers,
        repeated=repeated,
        resource=path.strip("/") if isinstance(path, str) else "",
        request_id=request_id,
    )
