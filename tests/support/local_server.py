"""An http server on the loopback that serves a folder and, on request, misbehaves."""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Server:
    """fault(path, n) of the n-th request of a path (from 0): what goes wrong, or None.

    requests: GET; asked: HEAD, to which no_head is the answer when it is not 0.

    Faults: "500", "404", "cut" (half of the body), "wrong" (other bytes), "long" (one byte more),
    "unannounced" (half of the body, its length unsaid), "endless" (no end, its length unsaid),
    "hang" (half of the body, then nothing), "drip" (one byte after the other, without end), "slow
    header" (likewise, and no body), "length" (one that is no number), "answer" (500, with escapes).
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.requests: Counter[str] = Counter()
        self.asked: Counter[str] = Counter()
        self.no_head = 0
        self.stopped = threading.Event()
        self.fault = lambda path, number: None
        self.address = ""


class Handler(BaseHTTPRequestHandler):
    """Does to every request what `state` says."""

    state: Server

    def do_HEAD(self) -> None:
        if self.state.no_head:
            self.send_error(self.state.no_head)
        else:
            self.answer(self.state.asked)

    def do_GET(self) -> None:
        self.answer(self.state.requests)

    def answer(self, counter: Counter[str]) -> None:
        fault = self.state.fault(self.path, counter[self.path])
        counter[self.path] += 1
        path = self.state.folder / self.path.lstrip("/")
        if fault == "slow header":
            self.drip(b"X-Header: ")
            return
        if fault == "answer":
            self.send_response_only(500, "\x1b[2Jgone")
            self.end_headers()
            return
        if fault in ("500", "404") or not path.is_file():
            self.send_error(int(fault or 404))
            return
        body = path.read_bytes()
        if fault == "wrong":
            body = body[:-700] + b"?" + body[-699:]
        if fault == "long":
            body += b"?"
        self.send_response(200)
        if fault == "length":
            self.send_header("Content-Length", "12 apples")
        elif fault not in ("unannounced", "endless", "drip"):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault == "drip":
            self.drip(b"")
            return
        if fault in ("cut", "unannounced", "hang"):
            body = body[: len(body) // 2]
        self.wfile.write(body)
        if fault == "hang":
            self.state.stopped.wait()
        with suppress(ConnectionError):  # until the other side has enough
            while fault == "endless":
                self.wfile.write(body)

    def drip(self, begin: bytes) -> None:
        with suppress(ConnectionError):
            self.wfile.write(begin)
            while not self.state.stopped.wait(0.05):
                self.wfile.write(b"x")

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """The running server."""
    state = Server(folder)
    handler = type("Serving", (Handler,), {"state": state})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    state.address = f"http://localhost:{server.server_port}"
    try:
        yield state
    finally:
        state.stopped.set()
        server.shutdown()
        server.server_close()
        thread.join()
