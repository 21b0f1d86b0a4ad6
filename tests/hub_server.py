"""A Hugging Face hub on this machine: one repository per folder of a directory, with faults by its name."""

import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "c0ffee" + "0" * 34


@contextmanager
def hub_server(root: Path):
    """Serve `root`/OWNER/NAME; yields the address and the list of files that were sent. "gated", "busy": refuse."""
    sent = []

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.answer(False)

        def do_GET(self):
            self.answer(True)

        def answer(self, body):
            if api := re.fullmatch(r"/api/models/([\w-]+/[\w.-]+)(/revision/main|/tree/\w+)?(\?.*)?", self.path):
                return self.describe(*api.groups()[:2])
            if file := re.fullmatch(r"/([\w-]+/[\w.-]+)/resolve/\w+/([^?]*)(\?.*)?", self.path):
                return self.send_file(root / file[1] / file[2], body)
            return self.refuse(404, "EntryNotFound")

        def describe(self, name, what):
            if name.endswith("gated"):
                return self.refuse(403, "GatedRepo")
            if name.endswith("busy"):
                return self.refuse(418, "")  # a client does not wait and try again after this one
            if not (root / name).is_dir():
                return self.refuse(401, "RepoNotFound")
            files = sorted(path for path in (root / name).rglob("*") if path.is_file())
            names = [path.relative_to(root / name).as_posix() for path in files]
            entries = [
                {"type": "file", "path": n, "size": p.stat().st_size, "oid": hashlib.sha1(p.read_bytes()).hexdigest()}
                for n, p in zip(names, files, strict=True)
            ]
            about = {"id": name, "modelId": name, "sha": COMMIT, "siblings": [{"rfilename": n} for n in names]}
            content = json.dumps(entries if what and "tree" in what else about).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            return self.wfile.write(content)

        def send_file(self, path, body):
            if not path.is_file():
                return self.refuse(404, "EntryNotFound")
            content = path.read_bytes()
            start = int(re.findall(r"\d+", self.headers.get("Range") or "0")[0])
            self.send_response(206 if self.headers.get("Range") else 200)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("Content-Length", str(len(content) - start))
            if self.headers.get("Range"):
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.end_headers()
            if body:
                sent.append((path.relative_to(root).as_posix(), start))
                self.wfile.write(content[start:])
            return None

        def refuse(self, code, reason):
            self.send_response(code)
            self.send_header("X-Error-Code", reason)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", sent
    finally:
        server.shutdown()
        server.server_close()
