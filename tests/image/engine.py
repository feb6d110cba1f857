"""Build the image of the Dockerfile, and run containers of it, with nothing but namespaces and an overlay.

A base image is this machine's system: its `/` below everything, with what is not part of a system hidden (home
directories, temporary files, the checkout), and the interpreter that runs the tests on the PATH, as `python` images
have it. Every RUN is carried out by a shell in such a tree, COPY takes what `.dockerignore` lets through, and what an
engine loses on the way is lost here too: fractions of a second in the times of files, a root to write to, rights.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from typing_extensions import Self

from tests.image.dockerfile import Ignored, Instruction, read, stages, substitute

ADDRESS = "192.0.2.7"
"""Of a container, beside its loopback; it exists in the container's own network only."""
USER = 10001
_INSIDE = Path(__file__).with_name("inside.py")
_NAMESPACES = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
_SYSTEM = re.compile("bin|boot|dev|etc|lib(|32|64|x32)|opt|proc|run|sbin|sys|usr|var")
_REQUIREMENTS = re.compile(r"/opt/venv/bin/pip install [^;]*-r requirements/serve.txt[^;]*")
_PACKAGES = sysconfig.get_path("purelib")
_CLONE_NEWNET = 0x40000000
_LISTEN = "0A"
_TIMEOUT_S = 900
PATIENCE_S = 300
"""For what takes seconds on a machine that does nothing else."""


def refusal() -> str | None:
    """Why no image can be built here, if so."""
    if sys.platform != "linux" or os.uname().machine != "x86_64":
        return "the steps are carried out by namespaces of Linux on x86-64"
    if os.geteuid() != 0:
        return "only root can make the namespaces that stand in for a container engine"
    with tempfile.TemporaryDirectory(prefix="carla-policy-image-") as scratch:
        for name in ("upper", "work", "root"):
            Path(scratch, name).mkdir()
        overlay = "mount -t overlay overlay -o lowerdir=/,upperdir=upper,workdir=work root"
        command = [*_NAMESPACES, "--net", "sh", "-c", overlay]
        run = subprocess.run(command, cwd=scratch, capture_output=True, text=True, check=False)
    return (
        f"this machine does not permit namespaces or overlays: {run.stderr.strip()[-200:]}" if run.returncode else None
    )


@dataclass
class Image:
    """What a stage has come to: its files, in one layer above the system, and its configuration."""

    directory: Path
    """Holds the layer and what mounting takes; removed by whoever made it."""
    borrows: bool = False
    """It lacks packages, and finds those of the environment that runs this."""
    environment: dict[str, str] = field(default_factory=lambda: {"PATH": f"{_python()}:/usr/local/bin:/usr/bin:/bin"})
    work_directory: str = "/"
    user: int | None = None
    shell: list[str] = field(default_factory=lambda: ["/bin/sh", "-c"])
    labels: dict[str, str] = field(default_factory=dict)
    volumes: list[str] = field(default_factory=list)
    ports: list[int] = field(default_factory=list)
    entrypoint: list[str] = field(default_factory=list)
    arguments: list[str] = field(default_factory=list)
    healthcheck: list[str] = field(default_factory=list)
    stop_signal: int = signal.SIGTERM

    def __post_init__(self) -> None:
        for name in ("layer", "work", "root"):
            (self.directory / name).mkdir(parents=True, exist_ok=True)

    @property
    def layer(self) -> Path:
        return self.directory / "layer"

    def at(self, path: str) -> Path:
        """Where `path` of the image is in its layer."""
        return self.layer / os.path.normpath(Path(self.work_directory) / path)[1:]

    def command(
        self,
        command: Sequence[str],
        *,
        writable: bool,
        shown: Sequence[tuple[Path, str]] = (),
        volumes: Sequence[tuple[Path, str, bool]] = (),
        work: Path | None = None,
        environment: Mapping[str, str] | None = None,
        network: bool = False,
        directory: str | None = None,
    ) -> list[str]:
        """What runs `command` in this image: a step of the build if the layer is `writable`, else confined.

        `volumes` are directories, where they are mounted, and whether for reading only.
        """
        own = [(path, path) for path in [sys.base_prefix, *([_PACKAGES] if self.borrows else [])]]
        spec: dict[str, Any] = {
            "root": str(self.directory / "root"),
            "layer": str(self.layer),
            "work": str(work or self.directory / "work"),
            "writable": writable,
            "hidden": _hidden(),
            "shown": [(str(source), path) for source, path in (*own, *shown)],
            "volumes": [(str(source), path, read_only) for source, path, read_only in volumes],
            "address": ADDRESS if network else None,
            "directory": directory or self.work_directory,
            "user": self.user,
            "confined": not writable,
            "command": list(command),
            "environment": {**self.environment, **(environment or {})},
        }
        namespaces = [*_NAMESPACES, "--net"] if network else _NAMESPACES
        return [*namespaces, sys.executable, "-I", "-S", str(_INSIDE), json.dumps(spec)]


def build(context: Path, directory: Path, arguments: Mapping[str, str] | None = None, *, borrow: bool) -> Image:
    """The image that `Dockerfile` in `context` describes, made below `directory`; `arguments` are build arguments.

    With `borrow`, the requirements are not installed: the packages of the environment that runs this stand in for them.
    """
    given = dict(arguments or {})
    head, *descriptions = stages(read(context / "Dockerfile"))
    defaults = dict(_assignment(instruction.text, given, {}) for instruction in head)
    images: dict[str, Image] = {}
    for number, description in enumerate(descriptions):
        base, _, name = substitute(description[0].text, defaults).partition(" AS ")
        assert base.startswith("python:3.11"), f"only Python's image can be stood in for, not {base}"
        images[name or str(number)] = _Stage(context, directory / str(number), given, images, borrow).run(
            description[1:]
        )
    return list(images.values())[-1]


class _Stage:
    def __init__(
        self, context: Path, directory: Path, given: Mapping[str, str], images: Mapping[str, Image], borrow: bool
    ) -> None:
        self._context = context
        self._ignored = Ignored(context / ".dockerignore")
        self._given = given
        self._images = images
        self._variables: dict[str, str] = {}
        self._image = Image(directory, borrow)

    def run(self, instructions: Sequence[Instruction]) -> Image:
        for instruction in instructions:
            getattr(self, f"_{instruction.name.lower()}")(instruction)
        _lose_fractions(self._image.layer)
        return self._image

    def _arg(self, instruction: Instruction) -> None:
        name, value = _assignment(instruction.text, self._given, self._variables)
        self._variables[name] = value

    def _env(self, instruction: Instruction) -> None:
        known = {**self._variables, **self._image.environment}
        self._image.environment |= dict(substitute(word, known).split("=", 1) for word in instruction.words)

    def _label(self, instruction: Instruction) -> None:
        self._image.labels |= dict(substitute(word, self._variables).split("=", 1) for word in instruction.words)

    def _shell(self, instruction: Instruction) -> None:
        self._image.shell = instruction.words

    def _workdir(self, instruction: Instruction) -> None:
        self._image.work_directory = str(Path(self._image.work_directory) / instruction.text)
        self._image.at(".").mkdir(parents=True, exist_ok=True)

    def _user(self, instruction: Instruction) -> None:
        user, group = instruction.text.split(":")
        assert user == group
        assert user.isdigit(), "expected a number, so that it can be seen not to be root"
        self._image.user = int(user)

    def _volume(self, instruction: Instruction) -> None:
        self._image.volumes += instruction.words

    def _expose(self, instruction: Instruction) -> None:
        self._image.ports += map(int, instruction.words)

    def _stopsignal(self, instruction: Instruction) -> None:
        self._image.stop_signal = signal.Signals[instruction.text]

    def _healthcheck(self, instruction: Instruction) -> None:
        self._image.healthcheck = json.loads(instruction.text.removeprefix("CMD "))

    def _entrypoint(self, instruction: Instruction) -> None:
        self._image.entrypoint = json.loads(instruction.text)

    def _cmd(self, instruction: Instruction) -> None:
        self._image.arguments = json.loads(instruction.text)

    def _copy(self, instruction: Instruction) -> None:
        *sources, target = instruction.words
        for source in sources:
            destination = self._image.at(target) / Path(source).name if target.endswith("/") else self._image.at(target)
            destination.parent.mkdir(parents=True, exist_ok=True)
            if "from" in instruction.flags:
                copied = self._images[instruction.flags["from"]].layer / source[1:]
                subprocess.run(["cp", "-a", "--link", str(copied), str(destination)], check=True)
            elif (self._context / source).is_dir():
                shutil.copytree(self._context / source, destination, ignore=self._left_out)
            else:
                assert not self._ignored(Path(source)), f"{source}: .dockerignore keeps it from the engine"
                shutil.copy2(self._context / source, destination)

    def _left_out(self, directory: str, names: list[str]) -> list[str]:
        below = Path(directory).relative_to(self._context)
        return [name for name in names if self._ignored(below / name)]

    def _run(self, instruction: Instruction) -> None:
        cache = Path(os.environ.get("PIP_CACHE_DIR", Path.home() / ".cache" / "pip"))
        cache.mkdir(parents=True, exist_ok=True)
        mounts = dict(part.split("=") for part in instruction.flags.get("mount", "").split(",") if part)
        own = {name: value for name, value in os.environ.items() if name.startswith("PIP_") or "proxy" in name.lower()}
        text, shown = instruction.text, [(cache, mounts["target"])] if mounts else []
        if self._image.borrows and _REQUIREMENTS.search(text):
            text = _REQUIREMENTS.sub(_borrowed_packages, text)
        command = self._image.command(
            [*self._image.shell, text],
            writable=True,
            shown=shown,
            environment={**own, "HOME": "/root", **{name: value for name, value in self._variables.items() if value}},
        )
        run = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=_TIMEOUT_S, check=False
        )
        assert run.returncode == 0, f"RUN {instruction.text}: status {run.returncode}:\n{run.stdout[-3000:]}"


def _assignment(text: str, given: Mapping[str, str], known: Mapping[str, str]) -> tuple[str, str]:
    name, _, default = text.partition("=")
    return name, given.get(name, substitute(default, known))


def _borrowed_packages(_: re.Match[str]) -> str:
    """In the place of `pip install -r ...`: links to packages that are there already, but for this project itself."""
    own = "__editable__* | carla_policy_serving* | *.pth"
    target = f"/opt/venv/lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
    return (
        f"for package in {shlex.quote(_PACKAGES)}/*; do case ${{package##*/}} in {own}) ;; *) "
        f'test -e "{target}/${{package##*/}}" || ln -s "$package" {target}/ ;; esac; done'
    )


def _python() -> Path:
    return Path(sys.base_prefix, "bin")


def _hidden() -> list[str]:
    return sorted(str(path) for path in Path("/").iterdir() if path.is_dir() and not _SYSTEM.fullmatch(path.name))


def _lose_fractions(layer: Path) -> None:
    """Layers keep the times of files in whole seconds."""
    for path in (layer, *layer.rglob("*")):
        if not path.is_symlink():
            second = int(path.stat().st_mtime)
            os.utime(path, (second, second))


class Container:
    """A context manager: the image's entrypoint as process 1 of a read-only tree without rights.

    It has a network of its own, with loopback and `ADDRESS`. Volumes that are not given are empty and its user's.
    """

    def __init__(
        self,
        image: Image,
        *,
        arguments: Sequence[str] | None = None,
        volumes: Mapping[str, Path] | None = None,
        read_only: Collection[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """`volumes` by where they are mounted; those in `read_only` for reading only."""
        self.image = image
        self._scratch = tempfile.TemporaryDirectory(prefix="carla-policy-container-")
        work = Path(self._scratch.name, "work")
        work.mkdir()
        given = dict(volumes or {})
        for path in image.volumes:
            if path not in given:
                given[path] = Path(self._scratch.name, path.strip("/").replace("/", "-"))
                given[path].mkdir()
                given[path].chmod(0o1777)
        self._environment = {**image.environment, **(environment or {})}
        self._command = image.command(
            [*image.entrypoint, *(image.arguments if arguments is None else arguments)],
            writable=False,
            volumes=[(source, path, path in read_only) for path, source in given.items()],
            work=work,
            environment=environment,
            network=True,
        )
        self.output = Path(self._scratch.name, "output")

    def __enter__(self) -> Self:
        with self.output.open("w") as output:
            self._process = subprocess.Popen(self._command, stdout=output, stderr=subprocess.STDOUT)
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        self.wait_until(lambda: bool(children.read_text()))
        self.pid = int(children.read_text())
        """Of process 1, as the machine knows it."""
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._scratch.cleanup()

    def processes(self) -> list[psutil.Process]:
        """Process 1 and all that come from it."""
        first = psutil.Process(self.pid)
        return [first, *first.children(recursive=True)]

    def listening(self) -> set[int]:
        """TCP ports that somebody in its network listens on."""
        found = set()
        for name in ("tcp", "tcp6"):
            for line in Path(f"/proc/{self.pid}/net/{name}").read_text().splitlines()[1:]:
                _, local, _, state, *_ = line.split()
                if state == _LISTEN:
                    found.add(int(local.rpartition(":")[2], 16))
        return found

    def wait(self, timeout_s: float) -> int:
        return self._process.wait(timeout_s)

    def stop(self, timeout_s: float = PATIENCE_S) -> int:
        """What an engine does: the stop signal to process 1; the exit status."""
        os.kill(self.pid, self.image.stop_signal)
        return self.wait(timeout_s)

    def execute(self, command: Sequence[str], user: int | None = None) -> subprocess.CompletedProcess[str]:
        """What `docker exec` does."""
        user = self.image.user if user is None else user
        environment = [f"{name}={value}" for name, value in self._environment.items()]
        within = ["nsenter", "-t", str(self.pid), "-m", "-p", "-n", "-r", "-S", str(user), "-G", str(user), "env", "-i"]
        return subprocess.run(
            [*within, *environment, *command], capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )

    @contextmanager
    def network(self) -> Iterator[None]:
        """This thread opens its connections in the container's network until the block ends."""
        own = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        try:
            _enter_network(Path(f"/proc/{self.pid}/ns/net"))
            yield
        finally:
            _set_network(own)
            os.close(own)

    def wait_until(self, condition: Callable[[], bool], timeout_s: float = PATIENCE_S) -> None:
        deadline = time.monotonic() + timeout_s
        while True:
            ended = self._process.poll()
            assert ended is None, f"the container ended with {ended}:\n{self.output.read_text()[-3000:]}"
            with suppress(OSError):
                if condition():
                    return
            assert time.monotonic() < deadline, f"not in time:\n{self.output.read_text()[-3000:]}"
            time.sleep(0.05)


def _enter_network(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        _set_network(descriptor)
    finally:
        os.close(descriptor)


def _set_network(descriptor: int) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    if library.setns(descriptor, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "the network cannot be entered")
