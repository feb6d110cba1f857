"""What other commands do at the same moment: in forked processes, which can be killed."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from carla_policy_tools.lifecycle.intents import intent
from carla_policy_tools.lifecycle.registry import RegistryFile

FORK = multiprocessing.get_context("fork")
TIMEOUT_S = 30


def started(target: Callable[..., None], *arguments: Any) -> BaseProcess:
    process = FORK.Process(target=target, args=arguments)
    process.start()
    return process


def ended(process: BaseProcess) -> int:
    """Wait for its exit status."""
    process.join(TIMEOUT_S)
    assert process.exitcode is not None
    return process.exitcode


@contextmanager
def running(target: Callable[..., None], *arguments: Any) -> Iterator[BaseProcess]:
    """`target`, which gets a connection as its last argument, once it has sent something; killed at the end."""
    receiver, sender = FORK.Pipe(duplex=False)
    with receiver, sender:
        process = started(target, *arguments, sender)
        try:
            assert receiver.poll(TIMEOUT_S)
            receiver.recv()
            yield process
        finally:
            process.kill()
            process.join()


def changing(file: RegistryFile, verb: str, version: str) -> Any:
    """While another process changes a version; it is killed at the end."""
    return running(_change, file, verb, version)


def leave_interrupted(file: RegistryFile, verb: str, version: str) -> None:
    """A command that changes a version is killed."""
    with changing(file, verb, version):
        pass


def _change(file: RegistryFile, verb: str, version: str, begun: Connection) -> None:
    with intent(file, verb, version):
        begun.send("begun")
        signal.pause()
