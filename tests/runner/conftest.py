"""A server of this machine that has files, and does what servers do to them."""

import re
import threading
from email.utils import parsedate_to_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import yaml


class Server:
    """Serves `files`, path → bytes or (status, headers, bytes).

    cut: bytes after which an answer with a file ends; None: whole. ranges: whether it resumes. length: whether it says
    how long a file is. answers: how many it gives before it answers 503; None: any number. stalled: while this is not
    set, an answer stops half way. modified: when the files were, in seconds. asked: (path, start of the range) of every
    request.
    """

    def __init__(self):
        self.files, self.asked, self.cut, self.ranges, self.length, self.answers = {}, [], None, True, True, None
        self.modified = 0
        self.stalled = threading.Event()
        self.stalled.set()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(handler):
                self.answer(handler)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def answer(self, handler):
        path = handler.path
        start = int((re.findall(r"bytes=(\d+)-", handler.headers.get("Range", "")) or [0])[0])
        handler.halts = not self.stalled.is_set()  # before the test can know of the request
        self.asked.append((path, start))
        if self.answers is not None and len(self.asked) > self.answers:
            return self.send(handler, 503, {}, b"")
        if path not in self.files:
            return self.send(handler, 404, {"Content-Type": "text/html"}, b"<html>not here</html>")
        since = handler.headers.get("If-Unmodified-Since")
        if since and self.modified > parsedate_to_datetime(since).timestamp():
            return self.send(handler, 412, {}, b"")
        found = self.files[path]
        status, headers, content = found if isinstance(found, tuple) else (200, {}, found)
        if start and self.ranges:
            if start >= len(content):
                return self.send(handler, 416, {}, b"")
            whole, content = len(content), content[start:]
            status, headers = 206, {**headers, "Content-Range": f"bytes {start}-{whole - 1}/{whole}"}
        return self.send(handler, status, headers, content, self.cut)

    def send(self, handler, status, headers, content, cut=None):
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        if self.length:
            handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        if handler.halts:
            handler.wfile.write(content[: len(content) // 2])
            handler.wfile.flush()
            self.stalled.wait(20)
            return
        handler.wfile.write(content if cut is None else content[:cut])


@pytest.fixture
def server(monkeypatch):
    server = Server()
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield server
    server.stalled.set()
    server.http.shutdown()
    server.http.server_close()


@pytest.fixture
def publish(tmp_path, monkeypatch):
    """From now on in an empty folder: publish(name, address, …, key=value) adds an entry to its temp/published.yml."""
    monkeypatch.chdir(tmp_path)
    entries = {}

    def add(name, *addresses, **keys):
        known = {"what": "network", "of": "numbers", "by": "nobody", "licence": "none", "path": f"models/{name}.bin"}
        entries[name] = known | {"source": "made up", "addresses": list(addresses)} | keys
        (tmp_path / "temp").mkdir(exist_ok=True)
        (tmp_path / "temp/published.yml").write_text(yaml.safe_dump(entries))
        return tmp_path / "temp" / entries[name].get("path", "")

    return add
