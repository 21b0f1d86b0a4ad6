"""Downloads from a local server that misbehaves in every way that mirrors do, and archives that try to escape."""

import hashlib
import io
import re
import socket
import struct
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from cyclediff.data.assets import catalogue, direct_url
from cyclediff.data.download import fetch, unpack
from cyclediff.errors import UserError

ROOT = Path(__file__).parents[1]
CONTENT = bytes(range(256)) * 16_000  # 4 MB
SHA256 = hashlib.sha256(CONTENT).hexdigest()


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


def get(server, faults, target, sha256=SHA256, check=lambda part: None):
    Mirror.asked.clear()
    urls = [f"{server}/{fault}/file" for fault in faults]
    return fetch(urls, target, sha256, check, lambda done, total: None, stall=0.5, pause=0.01)


@pytest.mark.parametrize("fault", ["good", "reset", "truncating", "stall", "forgetful"])
def test_the_file_arrives_whole_all_the_same(fault, server, tmp_path):
    assert get(server, [fault], tmp_path / "new" / "file.pt") == SHA256
    assert (tmp_path / "new" / "file.pt").read_bytes() == CONTENT
    assert {path.name for path in (tmp_path / "new").iterdir()} - {".file.pt.lock"} == {"file.pt"}
    if fault in ("reset", "truncating", "stall"):
        assert re.fullmatch(r"bytes=\d{6,}-", Mirror.asked[1][1])  # continued, not begun again


@pytest.mark.parametrize(
    ("fault", "reason"),
    [("missing", "404"), ("page", "web page"), ("silent", "stopped answering"), ("disguised", "sha256")],
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


def test_no_address(tmp_path):
    with pytest.raises(UserError, match=r"no mirror gave file\.pt: it has no direct address"):
        get("", [], tmp_path / "file.pt")


def test_addresses_of_sharing_services():
    assert direct_url("https://www.dropbox.com/s/abc/f.pt") == "https://www.dropbox.com/s/abc/f.pt?dl=1"
    assert "id=1-oY_x&" in direct_url("https://drive.google.com/file/d/1-oY_x/view")
    assert direct_url("https://drive.google.com/drive/folders/1awa") is None
    assert direct_url("https://example.org/f.pt") == "https://example.org/f.pt"


def archive(path, names):
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as file:
            for name in names:
                file.writestr(name, "content")
    else:
        with tarfile.open(path, "w:gz") as file:
            for name in names:
                info = tarfile.TarInfo(name)
                info.size = 7
                file.addfile(info, io.BytesIO(b"content"))
    return path


@pytest.mark.parametrize("kind", ["a.zip", "a.tgz"])
def test_unpack(kind, tmp_path):
    path = archive(tmp_path / kind, ["test/cat/1.png", "test/dog/2.png"])
    assert unpack(path, tmp_path / "data") == 2
    assert (tmp_path / "data/test/dog/2.png").read_text() == "content"


@pytest.mark.parametrize("kind", ["a.zip", "a.tgz"])
@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/evil", "..\\evil", "C:/evil"])
def test_an_archive_cannot_leave_its_folder(kind, name, tmp_path):
    path = archive(tmp_path / kind, ["good", name])
    with pytest.raises(UserError, match="would leave the folder"):
        unpack(path, tmp_path / "in" / "data")
    assert not (tmp_path / "in").exists()
    assert not list(tmp_path.rglob("evil"))


def test_links_in_archives_are_refused(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        info = tarfile.TarInfo("link")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc"
        file.addfile(info)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        link = zipfile.ZipInfo("link")
        link.external_attr = 0o120777 << 16
        file.writestr(link, "/etc")
    for name in ("a.tar", "a.zip"):
        with pytest.raises(UserError, match="is a link"):
            unpack(tmp_path / name, tmp_path / "data")


def test_no_archive(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"PK but no")
    with pytest.raises(UserError, match="neither zip nor tar"):
        unpack(tmp_path / "a.zip", tmp_path / "data")


def test_the_catalogue_covers_what_the_configuration_asks_for():
    assets = catalogue(ROOT / "conf")
    text = "".join(path.read_text() for path in (ROOT / "conf").glob("*/*.yaml"))
    files = set(re.findall(r"\$\{paths\.checkpoints\}/(\S+)", text))
    files.add("open_clip_model.safetensors")  # by its tag, openai, which open_clip finds on the hub
    assert files == {name for name, asset in assets.items() if asset.kind == "checkpoints"}
    folders = set(re.findall(r"(?m)^folder: (\S+)", text)) | set(re.findall(r"\$\{paths\.data\}/([\w-]+)/", text))
    assert folders == {name for name, asset in assets.items() if asset.kind == "datasets"}


def tool(*arguments, cwd):
    command = [sys.executable, str(ROOT / "scripts" / "assets.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=cwd)


def test_the_tool(tmp_path):
    status = tool("status", "cat2dog", cwd=tmp_path)
    assert status.returncode == 0
    assert "missing  afhq_dog_4m.pt" in status.stdout
    assert "wild_ema" not in status.stdout
    (tmp_path / "checkpoints").mkdir()
    torch.save({"temb.dense.0.weight": torch.zeros(4, 4), "conv_in.weight": torch.zeros(128, 3, 3, 3)},
               tmp_path / "checkpoints" / "celebahq_female_ddpm.pth")  # fmt: skip
    (tmp_path / "checkpoints" / "afhq_dog_4m.pt").write_text("<html>")
    verify = tool("verify", cwd=tmp_path)
    assert verify.returncode == 2
    assert "a DDPM network (as SDEdit and EGSDE use them) of width 128" in verify.stdout
    assert "afhq_dog_4m.pt: not usable" in verify.stderr
    assert "here     celebahq_female_ddpm.pth" in tool("status", "male2female", cwd=tmp_path).stdout
    by_hand = tool("fetch", "cat2dog_dse.pt", cwd=tmp_path)
    assert by_hand.returncode == 2
    assert "must be got by hand and put at checkpoints/cat2dog_dse.pt" in by_hand.stderr
    wrong = tool("status", "cat2dgo", cwd=tmp_path)
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
    archive(tmp_path / "afhq.zip", ["val/cat/1.jpg"])
    assert tool("unpack", "afhq.zip", "afhq", cwd=tmp_path).stdout == "1 files in data/afhq\n"
