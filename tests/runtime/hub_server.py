"""The part of the Hugging Face hub's HTTP interface that fetching a file needs, on this machine."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread


class Hub:
    """Serves the files of one repository.

    Attributes:
        requests: (method, file) of every request so far.
        cut: files to send so many bytes of, once, before hanging up.
        lost: a file that is not there.
        secret: whether all are for some users only.
    """

    def __init__(self, name: str, folder: Path):
        self.name, self.folder = name, folder
        self.requests: list[tuple[str, str]] = []
        self.cut: dict[str, int] = {}
        self.lost = ""
        self.secret = False
        self.url = ""


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(False)

    def do_GET(self) -> None:
        self._answer(True)

    def _answer(self, has_body: bool) -> None:
        owner, name, kind, _revision, file = (*self.path.strip("/").split("/"), *[""] * 5)[:5]
        self.hub.requests.append((self.command, file))
        path = self.hub.folder / file
        if self.hub.secret:
            return self._fail(401, "GatedRepo")
        if f"{owner}/{name}" != self.hub.name or kind != "resolve":
            return self._fail(404, "RepoNotFound")
        if not path.is_file() or file == self.hub.lost:
            return self._fail(404, "EntryNotFound")
        content = path.read_bytes()
        etag = hashlib.sha256(content).hexdigest()
        self.send_response(200)
        self.send_header("ETag", f'"{etag}"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if has_body:
            self.wfile.write(content[: self.hub.cut.pop(file, None)])
            self.close_connection = True

    def _fail(self, status: int, code: str = "") -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


@contextmanager
def serve_hub(name: str, folder: Path) -> Iterator[Hub]:
    """Serve a folder's files as a repository of this name."""
    hub = Hub(name, folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
