"""What a worker tells of itself: loading, its self-test, ready, or why it never will be.

From its making on, everything that is logged in the process is an event on standard output, where TorchServe takes it
into its own log.
"""

from __future__ import annotations

import logging
import os
import sys
import time

from carla_policy.events import METRICS_LOGGER, OWN_LOGGER, FloodFilter, JsonFormatter, configured_level, tell
from carla_policy.loading import LoadedPolicy

logger = logging.getLogger(f"{OWN_LOGGER}.worker")


class WorkerEvents:
    """The events of one worker's life."""

    def __init__(self) -> None:
        """Have what TorchServe's worker logs become events: ours from the level that the environment asks for on.

        Of others only warnings: TorchServe's own line for each request is below that. Its metrics, which are lines
        too, stay as they are.
        """
        self._started = time.perf_counter()
        self._formatter = JsonFormatter({"pid": os.getpid()})
        level = configured_level()
        root = logging.getLogger()
        for handler in root.handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stdout:
                handler.setFormatter(self._formatter)
                handler.addFilter(FloodFilter())
                logging.captureWarnings(capture=True)
        root.setLevel(max(level, logging.WARNING))
        logging.getLogger(OWN_LOGGER).setLevel(level)
        logging.getLogger(METRICS_LOGGER).setLevel(logging.INFO)

    def name(self, *, model: str, version: str) -> None:
        """What every event from now on is about."""
        self._formatter.context = {"model": model, "version": version, "pid": os.getpid()}

    def tell_failed_load(self, error: Exception) -> None:
        """At the highest level: whoever registers the version is told this reason."""
        tell(logger, logging.CRITICAL, "load_failed", str(error))

    def tell_ready(self, loaded: LoadedPolicy) -> None:
        """Loaded, tested and ready; whatever is raised from now on may have a request in its words."""
        policy = loaded.policy
        tell(
            logger,
            logging.INFO,
            "load",
            f"{policy.card.version} is loaded",
            runtime=policy.card.model_file,
            preprocessor=policy.preprocessor.form,
            device=policy.runtime.device,
            git_sha=policy.card.git_sha,
            card_hash=policy.card.card_hash,
            duration_s=round(time.perf_counter() - self._started, 3),
        )
        tell(
            logger,
            logging.INFO,
            "self_test",
            f"{len(loaded.golden)} golden vectors are reproduced",
            vectors=len(loaded.golden),
            stages={
                parity.stage: {
                    "bit_equal_share": parity.bit_equal_share,
                    "max_abs_difference": parity.max_abs_difference,
                    "max_ulp": parity.max_ulp,
                }
                for parity in loaded.parity
            },
        )
        tell(logger, logging.INFO, "worker_ready", "the worker answers")
        self._formatter.quotes_exceptions = False
