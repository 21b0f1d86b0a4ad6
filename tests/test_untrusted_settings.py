"""Settings, lists, archives and weights of strangers: one sentence, nothing outside the folder, no code that runs."""

import ast
import csv
import io
import os
import pickle
import tarfile
import warnings
import zipfile
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.utils import get_class
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from PIL import Image

from cyclediff.cli import errors as cli
from cyclediff.data import download
from cyclediff.data.download import unpack
from cyclediff.data.edit_lists import read_edit_list
from cyclediff.errors import UserError
from cyclediff.models.checkpoint import read_checkpoint
from eval.edits import read_edits
from eval.metrics.clip import open_clip_scorer
from eval.metrics.inception import PYTORCH_FID, pytorch_fid
from eval.metrics.lpips import lpips_network
from eval.metrics.references import cached, read_statistics

ROOT = Path(__file__).parents[1]
CONFIG = str(ROOT / "conf")
METHODS = sorted(path.stem for path in (ROOT / "conf" / "method").glob("*.yaml"))
few = settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def sentence(error):
    text = str(error)
    assert text.strip()
    assert "\n" not in text
    assert len(text) < 2000
    return text


# Settings

ANYTHING = st.one_of(
    st.integers(),
    st.integers(-3, 1100),
    st.integers(min_value=10**300),
    st.floats(),
    st.booleans(),
    st.none(),
    st.text(max_size=9),
    st.lists(st.integers(), max_size=2),
)


@pytest.fixture(scope="module")
def methods():
    """Class and valid settings of every method, as run.py makes them."""
    found = {}
    GlobalHydra.instance().clear()
    with initialize_config_dir(CONFIG, version_base=None):
        for name in METHODS:
            task = "pets_edit" if name.endswith("_cac") else "pets_cat2dog"
            cfg = compose("config", [f"experiment={task}", f"method={name}"])
            node = OmegaConf.to_container(cfg.method, resolve=True)
            del node["needs"], node["conditions"]
            cls = get_class(node.pop("_target_"))
            node["attention"] = None
            node["extractor"] = None
            known = {field.name for field in fields(cls)}
            found[name] = cls, {key: value for key, value in node.items() if key in known}
    return found


@pytest.mark.parametrize("name", METHODS)
def test_the_published_settings_are_valid(name, methods):
    cls, valid = methods[name]
    assert cli.build(cls, valid) == cls(**valid)


@pytest.mark.parametrize("name", METHODS)
def test_any_value_of_a_number_makes_a_method_or_a_sentence(name, methods):
    cls, valid = methods[name]
    numbers = [key for key, kind in get_type_hints(cls).items() if kind in (int, float, bool) and key in valid]
    assert numbers

    @few
    @given(st.sampled_from(numbers), ANYTHING)
    @example(numbers[0], float("nan"))
    @example(numbers[0], 10**400)
    def check(key, value):
        try:
            made = cli.build(cls, valid | {key: value})
        except UserError as error:
            sentence(error)
        else:
            kept = getattr(made, key)
            assert kept == value or kept != kept
            assert isinstance(kept, bool) == isinstance(valid[key], bool)

    check()


def explained(overrides):
    """What the command line's mistake is told as; None where there is none."""
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(CONFIG, version_base=None):
            compose("config", overrides)
    except (HydraException, OmegaConfBaseException) as error:
        return sentence(cli.explain(error, overrides, CONFIG))
    return None


@settings(few, max_examples=12)
@given(
    st.one_of(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
        st.builds(
            "{}{}={}".format,
            st.sampled_from(["", "+", "~", "++"]),
            st.sampled_from(["method", "method.eta", "task", "data", "seed", "hydra.mode", "paths.x", "a.b.c", "@"]),
            st.text(st.characters(exclude_categories=["Cs"]), max_size=9),
        ),
    )
)
@example("method=")
@example("method=../../etc/passwd")
@example("=")
@example("method.eta=${nothing}")
@example("data.limit=${oc.env:NO_SUCH}")
@example("seed=[1")
@example("\n")
@example("method=a\nb")
def test_any_override_is_taken_or_told_in_one_sentence(override):
    explained([override])


def test_overrides_are_explained():
    """The sentences are about the mistake, so the test above checks something."""
    assert "there is no method named nothing" in explained(["method=nothing"])
    assert "has no setting etaa" in explained(["method.etaa=1"])
    assert "is not a setting" in explained(["seed"])


# Archives


def tar(path, *members):
    with tarfile.open(path, "w") as file:
        for name, kind, link in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, link
            info.size = 4 if kind == tarfile.REGTYPE else 0
            file.addfile(info, io.BytesIO(b"evil") if info.size else None)
    return path


def refused(path, folder, match):
    before = sorted(folder.parent.rglob("*"))
    with pytest.raises(UserError, match=match) as refusal:
        unpack(path, folder)
    sentence(refusal.value)
    assert sorted(folder.parent.rglob("*")) == before


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, b"Z"]
)
def test_members_of_a_tar_that_are_no_files(kind, tmp_path):
    path = tar(tmp_path / "a.tar", ("good", tarfile.REGTYPE, ""), ("x", kind, "/etc/passwd"))
    refused(path, tmp_path / "data", "is a link or a device")


def test_a_link_and_a_file_through_it(tmp_path):
    members = ("x", tarfile.SYMTYPE, str(tmp_path / "out")), ("x/evil", tarfile.REGTYPE, "")
    (tmp_path / "out").mkdir()
    refused(tar(tmp_path / "a.tar", *members), tmp_path / "data", "is a link")


@pytest.mark.parametrize("mode", [0o120777, 0o020666, 0o060666, 0o010666, 0o140777])
def test_members_of_a_zip_that_are_no_files(mode, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        info = zipfile.ZipInfo("x")
        info.external_attr = mode << 16
        file.writestr(info, "/etc/passwd")
    refused(tmp_path / "a.zip", tmp_path / "data", "is a link or a device")


@pytest.mark.parametrize(
    "name", ["../evil", "a/../../evil", "/evil", "..\\evil", "C:\\evil", "//host/evil", "a\\..\\..\\b"]
)
def test_names_that_lead_out(name, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("good", "")
        file.writestr(name, "evil")
    refused(tmp_path / "a.zip", tmp_path / "data", "would leave the folder")
    refused(tar(tmp_path / "a.tar", (name, tarfile.REGTYPE, "")), tmp_path / "data", "would leave the folder")


def test_a_link_that_was_there_before_is_not_written_through(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "data" / "val").symlink_to(tmp_path / "out")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("a", "good")
        file.writestr("val/cat/1.png", "evil")
    refused(tmp_path / "a.zip", tmp_path / "data", "through a link")
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as file:
        file.writestr("val", "a file of the link's name takes its place")
    assert unpack(tmp_path / "b.zip", tmp_path / "data") == 1
    assert not list((tmp_path / "out").iterdir())


def test_the_folder_itself_as_a_member(tmp_path):
    """`tar -C folder .` writes it."""
    path = tar(tmp_path / "a.tar", (".", tarfile.DIRTYPE, ""), ("./val/1.png", tarfile.REGTYPE, ""))
    assert unpack(path, tmp_path / "data") == 1
    assert (tmp_path / "data" / "val" / "1.png").read_bytes() == b"evil"


@pytest.mark.parametrize("name", ["a.zip", "a.tgz", "a.txz", "a.tbz"])
def test_a_damaged_archive_leaves_nothing(name, tmp_path):
    noise = np.random.default_rng(0).bytes(50_000)
    if name == "a.zip":
        with zipfile.ZipFile(tmp_path / name, "w") as file:
            file.writestr("first", "whole")
            file.writestr("second", noise)
    else:
        with tarfile.open(tmp_path / name, f"w:{ {'a.tgz': 'gz', 'a.txz': 'xz', 'a.tbz': 'bz2'}[name] }") as file:
            for member in ("first", "second"):
                info = tarfile.TarInfo(member)
                info.size = len(noise)
                file.addfile(info, io.BytesIO(noise))
    content = bytearray((tmp_path / name).read_bytes())
    for start, stop in ((30_000, 30_009), (30_000, len(content))):
        damaged = content[:start] + bytes(9) + content[stop:] if stop < len(content) else content[:start]
        (tmp_path / name).write_bytes(damaged)
        refused(tmp_path / name, tmp_path / "data", "is damaged or neither zip nor tar")
    (tmp_path / name).write_bytes(content)
    assert unpack(tmp_path / name, tmp_path / "data") == 2


def test_an_encrypted_archive(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("a", "secret")
    content = (tmp_path / "a.zip").read_bytes()
    for header, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        place = content.index(header) + flags
        content = content[:place] + b"\1" + content[place + 1 :]
    (tmp_path / "a.zip").write_bytes(content)
    refused(tmp_path / "a.zip", tmp_path / "data", "cannot be extracted here .*password")


def test_an_archive_that_the_disk_cannot_hold(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("zeros", bytes(10**7))
    usage = type("Usage", (), {"free": 10**7 - 1})
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: usage)
    refused(tmp_path / "a.zip", tmp_path / "data", r"holds 0\.0 GB, and the disk has 0\.0 GB left; make room")
    usage.free += 1
    assert unpack(tmp_path / "a.zip", tmp_path / "data") == 1


# Lists of edits


@few
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
@example("../secret.png")
@example("/etc/hostname")
@example("data/../../secret.png")
@example("~/x.png")
@example("a.png\n../secret.png")
def test_no_path_of_a_list_leads_out(tmp_path, image):
    folder = tmp_path / "own"
    folder.mkdir(exist_ok=True)
    Image.new("RGB", (4, 4)).save(folder / "a.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "secret.png")
    with (folder / "list.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("image", "source", "target"), ("a.png", "a", "b"), (image, "a", "b")])
    try:
        found = read_edit_list(folder / "list.csv").found
    except UserError as error:
        sentence(error)
    else:
        assert all(edit.image.resolve().is_relative_to(folder.resolve()) for edit in found)


@pytest.mark.parametrize(
    "mask", ["../secret.png", "/etc/hostname", "masks/../../secret.png", "out.png", "loop.png", "a\0"]
)
def test_no_mask_of_a_prepared_folder_leads_out(mask, tmp_path):
    folder = tmp_path / "prepared"
    folder.mkdir()
    (tmp_path / "secret.png").touch()
    (folder / "out.png").symlink_to("../secret.png")
    (folder / "loop.png").symlink_to("loop.png")
    with (folder / "edits.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("id", "source", "target", "category", "mask"), ("x", "a", "b", "", mask)])
    with pytest.raises(ValueError, match="is not a path inside the folder"):
        read_edits(folder)


@pytest.mark.parametrize("content", [b"\xff\xfe", b'id,source\n"' + b"x" * 200_000, b"id\n\0,\n"])
def test_a_damaged_edits_csv_is_told(content, tmp_path):
    (tmp_path / "edits.csv").write_bytes(content)
    with pytest.raises(ValueError, match=r"edits\.csv (is no readable CSV|has no column)") as refusal:
        read_edits(tmp_path)
    sentence(refusal.value)


# Weights that are programs


class Payload:
    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return os.mkdir, (str(self.place),)


def zipped(path, place):
    torch.save({"x": Payload(place)}, path)


def old(path, place):
    torch.save({"x": Payload(place)}, path, _use_new_zipfile_serialization=False)


def bare(path, place):
    path.write_bytes(pickle.dumps({"x": Payload(place)}))


def arrays(path, place):
    evil = np.array([Payload(place)], dtype=object)
    np.savez(path, mu=evil, sigma=evil, feats=evil)


READERS = {  # file name → what reads it
    "network.pt": read_checkpoint,
    "network.ckpt": read_checkpoint,
    "network.safetensors": read_checkpoint,
    "clip.pt": lambda path: open_clip_scorer(str(path), "ViT-B-32-quickgelu"),
    "clip.safetensors": lambda path: open_clip_scorer(str(path), "ViT-B-32-quickgelu"),
    PYTORCH_FID: lambda path: pytorch_fid(str(path)),
    "squeezenet.pth": lambda path: lpips_network(str(path), "squeeze"),
    "reference.npz": read_statistics,
    "reference.npy": read_statistics,
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("write", [zipped, old, bare, arrays])
def test_no_pickle_is_executed(name, write, tmp_path):
    path, place = tmp_path / name, tmp_path / "executed"
    write(tmp_path / "evil.npz", place)
    (tmp_path / "evil.npz").rename(path)
    with warnings.catch_warnings(action="ignore"), pytest.raises((UserError, ValueError)) as refusal:
        READERS[name](path)
    sentence(refusal.value)
    assert not place.exists()


@pytest.mark.parametrize("write", [zipped, old, bare, arrays])
def test_the_cache_of_references_executes_nothing(write, tmp_path):
    image, cache, features = tmp_path / "a.png", tmp_path / "cache", torch.ones(1, 3)
    image.write_bytes(b"")
    assert cached("extractor", [image], lambda: features, cache).equal(features)
    (file,) = cache.glob("*.safetensors")
    write(tmp_path / "evil.npz", tmp_path / "executed")
    (tmp_path / "evil.npz").rename(file)
    with pytest.warns(UserWarning, match=file.name):
        assert cached("extractor", [image], lambda: features + 1, cache).equal(features + 1)
    assert not (tmp_path / "executed").exists()


def test_the_payload_works(tmp_path):
    """Else the tests above would prove nothing."""
    bare(tmp_path / "evil", tmp_path / "executed")
    pickle.loads((tmp_path / "evil").read_bytes())
    assert (tmp_path / "executed").exists()
    arrays(tmp_path / "evil.npz", tmp_path / "too")
    with np.load(tmp_path / "evil.npz", allow_pickle=True) as file:
        assert file["mu"].shape == (1,)
    assert (tmp_path / "too").exists()


def told(call):
    """Why a call can execute what it reads; None where it cannot."""
    name = ast.unparse(call.func)
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    if name in ("eval", "exec", "compile", "__import__", "os.system", "os.popen"):
        return name
    if name.split(".")[0] in ("pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"):
        return name
    if name.endswith("yaml.load") or given.get("shell") == "True" or given.get("trust_remote_code") == "True":
        return name
    if name in ("torch.load", "load_state_dict_from_url") and given.get("weights_only") != "True":
        return f"{name} without weights_only=True"
    if name.startswith(("np.", "numpy.")) and given.get("allow_pickle", "False") != "False":
        return f"{name} with allow_pickle"
    return None


def test_no_source_executes_what_it_reads():
    parts = ("cyclediff", "baselines", "eval", "scripts")
    sources = [ROOT / "run.py", *(path for part in parts for path in (ROOT / part).rglob("*.py"))]
    assert len(sources) > 60
    found = []
    for path in sources:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and (reason := told(node)):
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}: {reason}")
    assert not found


@pytest.mark.parametrize(
    "code",
    ["torch.load(p)", "torch.load(p, weights_only=False)", "pickle.load(f)", "np.load(p, allow_pickle=True)",
     "yaml.load(f)", "eval(x)", "exec(x)", "subprocess.run(x, shell=True)", "pickle.Unpickler(f).load()"],
)  # fmt: skip
def test_calls_that_would_be_noticed(code):
    assert any(told(node) for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call))
    safe = "torch.load(p, weights_only=True); np.load(p, allow_pickle=False); yaml.safe_load(f); x.eval(); json.load(f)"
    assert not any(told(node) for node in ast.walk(ast.parse(safe)) if isinstance(node, ast.Call))
