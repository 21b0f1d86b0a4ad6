"""Downloads from a local server that misbehaves in every way that mirrors do."""

import hashlib
import re
import socket
import struct
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest

from cyclediff.data.assets import Pin, direct_url
from cyclediff.data.download import MirrorError, fetch, require_no_downgrade
from cyclediff.errors import UserError

CONTENT = bytes(range(256)) * 16_000  # 4 MB
SHA256 = hashlib.sha256(CONTENT).hexdigest()
PIN = Pin(SHA256, len(CONTENT), True, "two sources")


class Mirror(BaseHTTPRequestHandler):
    """The first part of the path is the fault."""

    asked: ClassVar[list[tuple[str, str | None]]] = []

    def do_GET(self):
        fault, wanted = self.path.split("/")[1], self.headers.get("Range")
        Mirror.asked.append((fault, wanted))
        if fault == "missing":
            self.send_error(404)
            return
        content, start = CONTENT, 0
        if fault == "page":
            content = b"<html>too many users</html>"
        if fault == "disguised":
            content = b"<!DOCTYPE html><html>too many users</html>"
        ranges = fault not in ("page", "disguised", "forgetful")
        if wanted and ranges:
            start = int(re.match(r"bytes=(\d+)-", wanted)[1])
        if start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Type", "text/html" if fault == "page" else "application/octet-stream")
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("ETag", '"v1"')
        self.end_headers()
        first = sum(f == fault for f, _ in Mirror.asked) == 1
        rest = content[start:]
        if fault in ("reset", "forgetful") and first:
            self.wfile.write(rest[: len(rest) // 2])
            self.wfile.flush()
            time.sleep(0.2)  # what was sent arrives before the reset
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        elif fault == "truncating":  # always closes early, but sends some more each time
            self.wfile.write(rest[: max(len(rest) // 2, 200_000)])
        elif fault == "stall" and first:
            self.wfile.write(rest[:1_500_000])
            self.wfile.flush()
            time.sleep(2)
        elif fault == "silent":
            time.sleep(2)
        else:
            self.wfile.write(rest)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def server():
    running = ThreadingHTTPServer(("127.0.0.1", 0), Mirror)
    running.handle_error = lambda *_: None
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_port}"
    running.shutdown()


def get(server, faults, target, pin=PIN, check=lambda part: None):
    Mirror.asked.clear()
    urls = [f"{server}/{fault}/file" for fault in faults]
    return fetch(urls, target, pin, check, lambda done, total: None, stall=0.5, pause=0.01)


@pytest.mark.parametrize("fault", ["good", "reset", "truncating", "stall", "forgetful"])
def test_the_file_arrives_whole_all_the_same(fault, server, tmp_path):
    assert get(server, [fault], tmp_path / "new" / "file.pt") == SHA256
    assert (tmp_path / "new" / "file.pt").read_bytes() == CONTENT
    assert {path.name for path in (tmp_path / "new").iterdir()} - {".file.pt.lock"} == {"file.pt"}
    if fault in ("reset", "truncating", "stall"):
        assert re.fullmatch(r"bytes=\d{6,}-", Mirror.asked[1][1])  # continued, not begun again


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("missing", "404"),
        ("page", "web page"),
        ("silent", "stopped answering"),
        ("disguised", r"it has 42 bytes, not the 4096000 that are pinned \(by two sources\)"),
    ],
)
def test_a_bad_mirror_is_named_and_the_next_one_is_tried(fault, reason, server, tmp_path):
    with pytest.raises(UserError, match=reason):
        get(server, [fault], tmp_path / "file.pt")
    assert not (tmp_path / "file.pt").exists()
    assert get(server, [fault, "good"], tmp_path / "file.pt") == SHA256
    assert (tmp_path / "file.pt").read_bytes() == CONTENT


def test_the_content_is_checked_before_it_gets_its_name(server, tmp_path):
    def refuse(part):
        assert part.read_bytes() == CONTENT
        raise UserError("it holds no network")

    with pytest.raises(UserError, match="it holds no network"):
        get(server, ["good"], tmp_path / "file.pt", None, refuse)
    assert not list(tmp_path.glob("file.pt*"))


def test_another_process_continues(server, tmp_path):
    """What a killed download left is used; the pinned sum is of the whole file."""
    part = tmp_path / "file.pt.part"
    part.write_bytes(CONTENT[:1_000_000])
    note = f'{{"url": "{server}/good/file", "etag": "\\"v1\\"", "total": {len(CONTENT)}}}'
    (tmp_path / "file.pt.part.json").write_text(note)
    assert get(server, ["good"], tmp_path / "file.pt") == SHA256
    assert Mirror.asked == [("good", "bytes=1000000-")]


def test_a_disk_without_room_is_noticed_before_the_download(server, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": len(CONTENT) - 1})
    monkeypatch.setattr("cyclediff.data.download.shutil.disk_usage", lambda _: usage)
    with pytest.raises(UserError, match=r"0\.0 GB are to come, and the disk has 0\.0 GB left"):
        get(server, ["good"], tmp_path / "file.pt")
    assert not list(tmp_path.glob("file.pt*"))
    usage.free += 1
    assert get(server, ["good"], tmp_path / "file.pt") == SHA256


@pytest.mark.parametrize("host", ["127.0.0.1:9", "no-such-host.invalid"])
def test_no_network(host, tmp_path):
    """Nobody listens there; it is tried again once only."""
    with pytest.raises(UserError, match=rf"f\.pt: http://{host}/f: it cannot be reached; check the connection$"):
        fetch([f"http://{host}/f"], tmp_path / "f.pt", None, lambda part: None, lambda *_: None, pause=0.01)


def test_no_address(tmp_path):
    with pytest.raises(UserError, match=r"no mirror gave file\.pt: it has no direct address"):
        get("", [], tmp_path / "file.pt")


def test_a_wrong_size_is_refused_before_the_download(server, tmp_path):
    """The server says how long the file is; nothing of it is kept."""
    written = []
    with pytest.raises(UserError, match="it has 4096000 bytes, not the 4096001 that are pinned"):
        fetch([f"{server}/good/file"], tmp_path / "f.pt", Pin(SHA256, 4_096_001, True, "x"), lambda part: None,
              lambda done, total: written.append(done))  # fmt: skip
    assert not written
    assert not list(tmp_path.glob("f.pt*"))


def test_a_file_of_the_right_size_and_another_content(server, tmp_path):
    pin = Pin("0" * 64, len(CONTENT), True, "two sources")
    with pytest.raises(UserError, match=rf"it has sha256 {SHA256}, not the pinned {'0' * 64} \(by two sources\)"):
        get(server, ["good"], tmp_path / "file.pt", pin)
    assert not list(tmp_path.glob("file.pt*"))


@pytest.mark.parametrize("pin", [Pin("0" * 64, 1, False, "one source"), Pin(None, 4_000_000, True, "a guess", 100_000)])
def test_a_doubtful_pin_refuses_nothing_and_a_guess_only_other_sizes(pin, server, tmp_path):
    assert get(server, ["good"], tmp_path / "file.pt", pin) == SHA256


def test_a_guess_is_called_one(server, tmp_path):
    with pytest.raises(UserError, match=r"where 4000000 ± 90000 are expected \(a guess, because no checksum is public"):
        get(server, ["good"], tmp_path / "file.pt", Pin(None, 4_000_000, True, "a net", 90_000))


def test_https_does_not_become_http():
    """Plain http is used only where the address itself says so."""
    require_no_downgrade("https://a/f", ["https://a/f", "https://b/f"])
    require_no_downgrade("http://a/f", ["http://a/f"])
    with pytest.raises(MirrorError, match="it leads to plain http"):
        require_no_downgrade("https://a/f", ["https://a/f", "http://b/f"])


def test_a_download_that_is_led_to_http_keeps_nothing(tmp_path, monkeypatch):
    class Answer:
        url, history, status_code = "http://elsewhere/f", (), 200

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

    monkeypatch.setattr("cyclediff.data.download.requests.get", lambda *_, **__: Answer())
    with pytest.raises(UserError, match="https://here/f: it leads to plain http"):
        fetch(["https://here/f"], tmp_path / "f", None, lambda part: None, lambda done, total: None)
    assert not list(tmp_path.glob("f*"))


def test_addresses_of_sharing_services():
    assert direct_url("https://www.dropbox.com/s/abc/f.pt") == "https://www.dropbox.com/s/abc/f.pt?dl=1"
    assert direct_url("https://www.dropbox.com/s/abc/f.zip?dl=0") == "https://www.dropbox.com/s/abc/f.zip?dl=1"
    new = "https://www.dropbox.com/scl/fi/abc/f.zip?rlkey=k3y&st=a%2Fb&dl={}"
    assert direct_url(new.format(0)) == new.format(1)
    assert direct_url("https://www.dropbox.com/scl/fi/abc/f.zip?dl=0&rlkey=k") == (
        "https://www.dropbox.com/scl/fi/abc/f.zip?rlkey=k&dl=1"
    )
    assert "id=1-oY_x&" in direct_url("https://drive.google.com/file/d/1-oY_x/view")
    for page in (
        "https://drive.google.com/drive/folders/1awa",
        "https://1drv.ms/u/s!A",
        "https://forms.gle/x",
        "https://huggingface.co/datasets/huggan/AFHQ",
        "https://huggingface.co/datasets/huggan/AFHQv2/tree/main/data",
    ):
        assert direct_url(page) is None
    for file in (
        "https://example.org/f.pt",
        "http://example.org/f.tar",
        "https://huggingface.co/datasets/a/b/resolve/main/f.zip",
        "https://huggingface.co/a/b/resolve/main/f.pt",
    ):
        assert direct_url(file) == file
