"""Untrusted weights: no code of theirs runs."""

import ast
import os
import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from cyclediff.errors import UserError
from cyclediff.models.checkpoint import read_checkpoint
from eval.metrics.clip import open_clip_scorer
from eval.metrics.inception import PYTORCH_FID, pytorch_fid
from eval.metrics.lpips import lpips_network
from eval.metrics.references import cached, read_statistics

from .test_untrusted_input import sentence

ROOT = Path(__file__).parents[1]


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


@pytest.mark.parametrize("name", [name for name in READERS if not name.startswith(("network", "reference"))])
def test_what_a_failed_download_leaves_is_named(name, tmp_path):
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n")
    with pytest.raises(ValueError, match=f"{name} is a pointer of git-lfs, not weights; run `git lfs pull`"):
        READERS[name](tmp_path / name)


def test_networks_of_metrics_are_finite(tmp_path):
    from torchvision.models import squeezenet1_1

    state = squeezenet1_1().state_dict()
    state["features.0.bias"][3] = torch.nan
    torch.save(state, tmp_path / "squeezenet.pth")
    with pytest.raises(ValueError, match=r"squeezenet.pth holds NaN or Inf in features.0.bias; the file is damaged"):
        lpips_network(str(tmp_path / "squeezenet.pth"), "squeeze")


def test_the_payload_works(tmp_path):
    """Else the tests above would prove nothing."""
    bare(tmp_path / "evil", tmp_path / "executed")
    pickle.loads((tmp_path / "evil").read_bytes())
    assert (tmp_path / "executed").exists()
    arrays(tmp_path / "evil.npz", tmp_path / "too")
    with np.load(tmp_path / "evil.npz", allow_pickle=True) as file:
        assert file["mu"].shape == (1,)
    assert (tmp_path / "too").exists()


def reason_of(call):
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
            if isinstance(node, ast.Call) and (reason := reason_of(node)):
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}: {reason}")
    assert not found


@pytest.mark.parametrize(
    "code",
    ["torch.load(p)", "torch.load(p, weights_only=False)", "pickle.load(f)", "np.load(p, allow_pickle=True)",
     "yaml.load(f)", "eval(x)", "exec(x)", "subprocess.run(x, shell=True)", "pickle.Unpickler(f).load()"],
)  # fmt: skip
def test_calls_that_would_be_noticed(code):
    assert any(reason_of(node) for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call))
    safe = "torch.load(p, weights_only=True); np.load(p, allow_pickle=False); yaml.safe_load(f); x.eval(); json.load(f)"
    assert not any(reason_of(node) for node in ast.walk(ast.parse(safe)) if isinstance(node, ast.Call))
