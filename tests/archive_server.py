"""A web server of archives on loopback, which can be told to misbehave."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.serving import serving

Spoil = Callable[[str, bytes], bytes]


class ArchiveServer:
    """Serves the files of a directory; `cut` of the first answers end in the middle, `busy` of them are 503."""

    def __init__(self, directory: Path, *, spoil: Spoil = lambda _, data: data, cut: int = 0, busy: int = 0) -> None:
        self.directory = directory
        self.spoil = spoil
        self.cut = cut
        self.busy = busy
        self.asked: list[str] = []
        self.authorizations: set[str | None] = set()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @contextmanager
    def running(self) -> Iterator[ArchiveServer]:
        with serving(self._server):
            yield self


def _handler(served: ArchiveServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.removeprefix("/")
            served.asked.append(name)
            served.authorizations.add(self.headers["Authorization"])
            path = served.directory / name
            if served.busy:
                served.busy -= 1
                return self.send_error(503)
            if not path.is_file():
                return self.send_error(404)
            data = served.spoil(name, path.read_bytes())
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if served.cut:
                served.cut -= 1
                data = data[: len(data) // 2]
            self.wfile.write(data)
            return None

        def log_message(self, *_: object) -> None:
            """Requests are no news."""

    return Handler
