"""conf/assets.yaml and scripts/assets.py: what is known of files, and what a person must get."""

import hashlib
import http.server
import re
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml

import scripts.assets as program
from cyclediff.cli import doctor
from cyclediff.data.assets import catalogue, fingerprint
from cyclediff.errors import UserError
from scripts.make_random_checkpoints import write_torchscript

from .test_archives import AFHQ, HOLDS, archive

ROOT = Path(__file__).parents[1]
CONFIG = str(ROOT / "conf")
ASSETS = catalogue(ROOT / "conf")


# The catalogue


def test_the_catalogue_covers_what_the_configuration_asks_for():
    text = "".join(path.read_text() for path in (ROOT / "conf").glob("*/*.yaml"))
    files = set(re.findall(r"\$\{paths\.checkpoints\}/(\S+)", text))
    assert files == {name for name, asset in ASSETS.items() if asset.kind == "checkpoints"}
    folders = set(re.findall(r"(?m)^folder: (\S+)", text)) | set(re.findall(r"\$\{paths\.data\}/([\w-]+)/", text))
    assert folders == {name for name, asset in ASSETS.items() if asset.kind == "datasets"}


@pytest.mark.parametrize("experiment", sorted({name for asset in ASSETS.values() for name in asset.used_by}))
def test_what_an_experiment_downloads_from_the_hub_is_listed(experiment, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(doctor, "hub_cache", lambda: tmp_path)
    listed = {name for name, asset in ASSETS.items() if asset.kind == "hub" and experiment in asset.used_by}
    assert set(doctor.inspect(experiment, CONFIG).hub) == listed


def test_the_counts_of_a_run_are_those_of_its_archive():
    for path in (ROOT / "conf" / "dataset").glob("*.yaml"):
        dataset = yaml.safe_load(path.read_text())
        holds = ASSETS[dataset["folder"]].holds
        for split, counts in dataset["counts"].items():
            assert counts == {kind: holds[f"{split}/{kind}"] for kind in counts}


def test_published_totals():
    """Rows of huggan/AFHQ and huggan/AFHQv2, and of mattymchen/celeba-hq, which hold the same images in one piece."""
    totals = {"afhq": 16_130, "afhq_v2": 15_803, "celeba_hq": 30_000}
    assert {name: sum(ASSETS[name].holds.values()) for name in totals} == totals


def test_addresses_say_where_they_were_found():
    for asset in ASSETS.values():
        assert asset.urls or asset.kind == "hub"
        for entry in asset.urls:
            assert {"url", "from"} <= entry.keys() <= {"url", "from", "known"}


def test_pins_are_checksums_with_a_source():
    pins = [pin for asset in ASSETS.values() for pin in [asset.pin, *asset.pins.values()] if pin]
    assert len(pins) == 20
    for pin in pins:
        assert pin.source
        assert pin.sha256 is None or re.fullmatch("[0-9a-f]{64}", pin.sha256)
        assert pin.sha256 or (pin.size and pin.within)
    for name, asset in ASSETS.items():  # torch.hub's names end with the first digits of their sha256
        if found := re.search(r"-([0-9a-f]{8})\.pth$", name):
            assert asset.pin.sha256.startswith(found[1])


def test_the_guess_is_the_size_of_the_architecture():
    """As many float32 numbers as the network has, and what torch writes around them."""
    from scripts.make_random_checkpoints import shapes

    numbers = sum(torch.Size(shape).numel() for shape in shapes("afhq_cat").values())
    for name in ("afhq_dog_4m.pt", "cat_ema_0.9999_050000.pt", "wild_ema_0.9999_050000.pt"):
        pin = ASSETS[name].pin
        assert 0 < pin.size - 4 * numbers < 200_000
        assert pin.size_fault(2 * numbers)  # 16 bits
        assert pin.size_fault(8 * numbers)  # with an average
        assert pin.size_fault(4 * numbers - 1)  # cut off


def test_other_networks_of_the_same_shape_are_no_mirrors():
    """P2-weighting's files lie in this folder and at this link."""
    text = (ROOT / "conf" / "assets.yaml").read_text()
    assert "1bcWh3XuQzdct4" not in text
    assert "1drv.ms" not in text


# Runs


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_run_refuses_another_file_and_lets_random_weights_through(tmp_path):
    name = "inception-2015-12-05.pt"
    (tmp_path / name).write_bytes(b"another file")
    with pytest.raises(UserError, match=r"conf/assets.yaml pins f58cb9b6\w+ \(by nine public repositories\); get the"):
        fingerprint(tmp_path / name, ASSETS, tmp_path / "cache")
    write_torchscript(tmp_path / name)
    assert fingerprint(tmp_path / name, ASSETS, tmp_path / "cache")
    unmarked = tmp_path / "pt_inception-2015-12-05-6726825d.pth"
    torch.save({"a": torch.zeros(20)}, unmarked)
    with pytest.raises(UserError, match="pins 6726825d"):
        fingerprint(unmarked, ASSETS, tmp_path / "cache")
    torch.save({"a": torch.jit.load(tmp_path / name).state_dict()["layers.0.bias"]}, unmarked)
    assert fingerprint(unmarked, ASSETS, tmp_path / "cache")


# The program


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """The program in a folder of its own: arguments → exit code, output, errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["assets.py", *arguments])
        try:
            program.main()
            code = 0
        except SystemExit as end:
            code = end.code
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A server with files, and a catalogue that names them."""
    (tmp_path / "served").mkdir()
    served = partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path / "served")
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), served)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()

    def write(checkpoints=None, datasets=None):
        (tmp_path / "conf").mkdir(exist_ok=True)
        common = {"what": "a thing", "used_by": ["real"], "licence": "none"}
        content = {"checkpoints": checkpoints or {}, "datasets": datasets or {}}
        for group in content.values():
            for entry in group.values():
                entry.update({key: value for key, value in common.items() if key not in entry})
                address = f"http://127.0.0.1:{server.server_port}"
                entry["urls"] = [{"url": url.replace("MIRROR", address), "from": "a test"} for url in entry["urls"]]
        (tmp_path / "conf" / "assets.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
        monkeypatch.setattr(program, "ROOT", tmp_path)
        return tmp_path / "served"

    yield write
    server.shutdown()
    server.server_close()


def pin(path, strict=True, sha256=None):
    digest = sha256 or hashlib.sha256(path.read_bytes()).hexdigest()
    return {"sha256": digest, "size": path.stat().st_size, "strict": strict, "source": "a test"}


def weights(path):
    torch.save({"temb.dense.0.weight": torch.zeros(4, 4), "conv_in.weight": torch.zeros(128, 3, 3, 3)}, path)


def test_everything_that_a_program_can_get_is_got_and_the_rest_is_said_first(call, mirror, tmp_path):
    weights(tmp_path / "served.pt")
    archive(tmp_path / "set.zip", ["set/" + name for name in AFHQ])
    served = mirror(
        {
            "net.pt": {"urls": ["MIRROR/net.pt"], "pin": pin(tmp_path / "served.pt")},
            "classifier.pt": {"urls": ["https://drive.google.com/drive/folders/1awa"], "note": "for egsde only"},
        },
        {
            "set": {"urls": ["MIRROR/set.zip?dl=1"], "archive": "set.zip", "holds": HOLDS,
                    "pin": pin(tmp_path / "set.zip", False, "0" * 64)},
        },
    )  # fmt: skip
    (tmp_path / "served.pt").rename(served / "net.pt")
    (tmp_path / "set.zip").rename(served / "set.zip")
    code, out, error = call("fetch", "real")
    assert code == 2
    assert error == "error: 1 of 3 are not here; must be got by hand: classifier.pt (see above)\n"
    said = [out.index(text) for text in ("By hand: 1.", "by hand  classifier.pt", "\nnet.pt\n", "\nset\n")]
    assert said == sorted(said)
    assert "open    https://drive.google.com/drive/folders/1awa\n" in out
    assert f"put it  {tmp_path}/checkpoints/classifier.pt\n" in out
    assert "for egsde only" in out
    assert "sha256 as pinned (by a test)" in out
    flat = " ".join(out.split())
    assert "WARNING, not refused because that pin may be wrong itself: it has sha256" in flat
    assert f"not the pinned {'0' * 64} (by a test)" in flat
    assert "4 files in data/set; data/set.zip can be deleted" in flat
    assert (tmp_path / "data/set/val/dog/1.jpg").read_text() == "content"
    (tmp_path / "checkpoints/classifier.pt").touch()
    (served / "net.pt").unlink()
    code, out, error = call("fetch", "real")
    assert (code, error) == (0, "")
    assert out == "3 of 3 are here. To download: 0. By hand: 0.\n\nall are here\n"


def test_an_archive_that_a_browser_has_got_is_used(call, mirror, tmp_path):
    mirror(None, {"set": {"urls": ["MIRROR/set.zip"], "archive": "set.zip", "holds": HOLDS}})
    (tmp_path / "data").mkdir()
    archive(tmp_path / "data" / "set.zip", AFHQ)
    code, out, _ = call("fetch", "set")
    assert (code, "plain http" in out) == (0, True)  # the catalogue's address, and nothing is pinned
    assert len(list((tmp_path / "data/set").rglob("*.jpg"))) == 4


def test_an_archive_of_a_browser_that_is_not_as_pinned_is_refused(call, mirror, tmp_path):
    (tmp_path / "data").mkdir()
    path = archive(tmp_path / "data" / "set.zip", AFHQ)
    known = {"urls": ["MIRROR/set.zip"], "archive": "set.zip", "holds": HOLDS, "pin": pin(path, sha256="0" * 64)}
    mirror(None, {"set": known})
    for command in (["fetch", "set"], ["unpack", "data/set.zip", "set"]):
        code, out, error = call(*command)
        assert code == 2
        assert f"not the pinned {'0' * 64}" in " ".join((out + error).split())
        assert not (tmp_path / "data" / "set").exists()


def test_a_file_of_the_hub_that_is_not_as_pinned_is_refused(call, tmp_path, monkeypatch):
    name = "timm/vit_base_patch32_clip_224.openai"
    (tmp_path / "open_clip_model.safetensors").write_bytes(b"another network")
    monkeypatch.setattr(program.hub, "fetch_repository", lambda *_: tmp_path)
    monkeypatch.setattr(program.hub, "cached_folder", lambda *_: None)
    code, out, error = call("fetch", name)
    assert (code, error) == (2, f"error: 1 of 1 are not here; failed: {name} (see above)\n")
    assert "not the pinned e6d1bd7789aa4519" in " ".join(out.split())
    monkeypatch.setattr(program.hub, "cached_folder", lambda *_: tmp_path)
    assert call("verify", name)[0] == 2


def test_failures_are_named_and_the_others_are_got(call, mirror, tmp_path):
    bad = {"sha256": None, "size": 10**6, "within": 1000, "strict": True, "source": "a net of this shape"}
    urls = {"urls": ["MIRROR/net.pt"]}
    served = mirror(
        {"short.pt": {**urls, "pin": bad}, "net.pt": urls, "gone.pt": {"urls": ["MIRROR/gone.pt"]}},
        {"page": {"urls": ["MIRROR/page.zip"], "archive": "page.zip", "holds": HOLDS}},
    )
    weights(served / "net.pt")
    (served / "page.zip").write_text("<html>too many users</html>")
    code, out, error = call("fetch", "real")
    assert code == 2
    assert error == "error: 3 of 4 are not here; failed: short.pt, gone.pt, page (see above)\n"
    flat = " ".join(out.split())
    assert "where 1000000 ± 1000 are expected (a guess, because no checksum is public: the size of a net of" in flat
    assert "the server answered 404" in flat
    assert "it is no zip and no tar, perhaps a web page" in flat
    assert "not pinned; it came over plain http: compare it with a copy that you trust" in flat
    assert [path.name for path in (tmp_path / "checkpoints").glob("*.pt")] == ["net.pt"]
    assert not list((tmp_path / "data").glob("page*"))


def test_eighty_columns(call):
    """Every line but an address, which is copied whole, fits a small terminal."""
    for command in (["status"], ["fetch", "cat2dog_dse.pt"]):
        _, out, _ = call(*command)
        wide = [line for line in out.splitlines() if len(line) > 80 and "://" not in line and "put it" not in line]
        assert not wide


def test_hands_are_needed_for_three_rows_of_cat2dog_only(call):
    code, out, error = call("fetch", "cat2dog_dse.pt")
    assert (code, error) == (2, "error: 1 of 1 are not here; must be got by hand: cat2dog_dse.pt (see above)\n")
    assert "methods egsde and egsde_dagger only" in " ".join(out.split())
    by_hand = {name for name, a in ASSETS.items() if "cat2dog" in a.used_by and program.needs_hands(a)}
    assert by_hand == {"cat2dog_dse.pt", "cut_cat2dog.pth", "fastcut_cat2dog.pth"}


def test_status_and_verify(call, tmp_path):
    code, out, _ = call("status", "cat2dog")
    assert code == 0
    assert "missing  afhq_dog_4m.pt" in out
    assert "wild_ema" not in out
    assert out.endswith("0 of 9 are here; `fetch` gets 6, and 3 must be got by hand\n")
    (tmp_path / "checkpoints").mkdir()
    weights(tmp_path / "checkpoints" / "celebahq_female_ddpm.pth")
    weights(tmp_path / "checkpoints" / "cat_ema_0.9999_050000.pt")
    (tmp_path / "checkpoints" / "afhq_dog_4m.pt").write_text("<html>")
    for name in AFHQ[1:]:
        (tmp_path / "data" / "afhq" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / "afhq" / name).touch()
    code, out, error = call("verify")
    flat = " ".join(out.split())
    assert code == 2
    assert "a DDPM network (as SDEdit and EGSDE use them) of width 128" in flat
    assert "NOT AS PINNED: it has 6 bytes, where 374417833 ± 131072 are expected (a guess" in flat
    assert "train/cat has 1 images, not 5153; train/dog has 0 images" in flat
    wrong = "afhq_dog_4m.pt, cat_ema_0.9999_050000.pt, afhq"
    assert error == f"error: {wrong}: not what they should be; delete them and get them again\n"
    out = call("status", "male2female")[1]
    assert "here     celebahq_female_ddpm.pth" in out
    out = call("status", "afhq")[1]
    assert "incomplete or another version: train/cat has 1 images, not 5153" in out


def test_mistakes(call, tmp_path):
    code, _, error = call("status", "cat2dgo")
    assert (code, error.count("\n")) == (2, 1)
    assert error.startswith("error: there is no asset or experiment cat2dgo; choose from cat2dog, ")
    assert call("fetch")[2] == "error: say what to fetch: an experiment such as cat2dog, or file names\n"
    archive(tmp_path / "afhq.zip", ["val/cat/1.jpg"])
    code, _, error = call("unpack", "afhq.zip", "afhq")
    assert (code, error.startswith("error: afhq.zip does not hold the folders train/cat, train/dog, ")) == (2, True)
    archive(tmp_path / "pie.zip", ["mapping_file.json"])
    assert call("unpack", "pie.zip", "PIE-Bench_v1")[1].endswith("\n1 files in data/PIE-Bench_v1\n")
    error = call("unpack", "pie.zip", "cat2dog")[2]
    assert error == (
        "error: there is no data set cat2dog; choose one of afhq, afhq_v2, celeba_hq, translate_text, PIE-Bench_v1, "
        "emu_edit_test_set\n"
    )


def test_as_a_program(tmp_path):
    command = [sys.executable, str(ROOT / "scripts" / "assets.py"), "status", "translate_text"]
    done = subprocess.run(
        command, capture_output=True, timeout=100, cwd=tmp_path, check=True, env={"PYTHONIOENCODING": "ascii"}
    )
    assert b"https://github.com/ChenWu98/cycle-diffusion/archive/3edb980d" in done.stdout
    assert not list(tmp_path.iterdir())
