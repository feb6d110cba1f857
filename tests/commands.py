"""The command line in the test's own process: for what a command says, where a process of its own proves no more."""

from __future__ import annotations

import contextlib
import io
import warnings

from carla_policy_tools.cli import app, report


def run_here(*arguments: object, status: int = 0) -> str:
    """What `carla-policy` with `arguments` prints: to standard output, or to standard error if `status` is not 0."""
    out, err = io.StringIO(), io.StringIO()
    ended = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            app([str(argument) for argument in arguments])
        except SystemExit as end:
            ended = int(end.code or 0)
        except Exception as error:
            ended = report(error)
    assert ended == status, err.getvalue()
    return err.getvalue() if status else out.getvalue()
