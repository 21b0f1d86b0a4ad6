"""Which state dict of a file is loaded, and what the files are that a failed download leaves."""

import collections
import json

import pytest
import torch

from cyclediff.diffusion.denoiser import LearnedVarianceDenoiser
from cyclediff.errors import UserError
from cyclediff.models.checkpoint import read_checkpoint
from cyclediff.models.load import load_adm

from .nets import tiny_network
from .test_load import ADM, T, X, adm_state, eps_of, saved

OTHER = {key: value + 1 for key, value in adm_state().items()}


def named(prefix, state):
    return {f"{prefix}{key}": value for key, value in state.items()}


def averaged(state):
    """What torch.optim.swa_utils.AveragedModel saves."""
    network = torch.nn.Module()
    for key, value in state.items():
        network.register_buffer(key.replace(".", "/"), value)
    saved = torch.optim.swa_utils.AveragedModel(network).state_dict()
    return {key.replace("/", "."): value for key, value in saved.items()}


FORMS = {
    "plain.pt": adm_state(),
    "dataparallel.pth": named("module.", adm_state()),
    "compiled.pt": named("_orig_mod.", adm_state()),
    "both.pt": named("module._orig_mod.", adm_state()),
    "lightning.ckpt": {"state_dict": named("model.", adm_state()), "epoch": 3},
    "half.safetensors": {key: value.half() for key, value in adm_state().items()},
    "wrapped.ckpt": {"state_dict": adm_state(), "epoch": 3},
    "ordered.pt": collections.OrderedDict(adm_state()),
    "training.ckpt": [OTHER, {"lr": 1.0}, 3, 5000, adm_state()],
    "training_dataparallel.ckpt": [OTHER, {}, 3, 5000, named("module.", adm_state())],
    "average.pt": {"model": OTHER, "ema": adm_state()},
    "unusual.pt": {"model_state_dict": OTHER, "ema_model_state_dict": adm_state()},
    "callback.ckpt": {"state_dict": OTHER, "callbacks": {"EMACallback": {"weights": adm_state(), "decay": 0.9}}},
    "averaged.pt": averaged(adm_state()),
    "one_dictionary.pt": {**named("online_model.", OTHER), **named("ema_model.", adm_state()), "step": torch.ones(1)},
}

OPTIMIZER = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": []}


def difference(path, **more):
    model = load_adm(path, **ADM, **more)
    return (eps_of(model) - tiny_network("adm_target")(X, T)[:, :3]).abs().max()


@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_a_file_gives_the_same_network(name, tmp_path):
    path = saved(tmp_path / name, FORMS[name])
    assert difference(path) < 1e-5
    model = load_adm(path, **ADM)
    assert isinstance(model.condition(), LearnedVarianceDenoiser)
    assert model.size == 16


@pytest.mark.parametrize(
    ("content", "settings"),
    [
        ([adm_state(), {}, 3, 5000, OTHER], {"ema": False}),
        ({"model_state_dict": adm_state(), "ema_model_state_dict": OTHER}, {"ema": False}),
        ({"one": OTHER, "two": adm_state()}, {"state_dict": "two"}),
        ({"one": OTHER, "two": adm_state()}, {"state_dict": "two", "ema": False}),
        ({**named("model.", adm_state()), "loss.weight": torch.ones(2)}, {"state_dict": "model"}),
        ({"state_dict": {**named("a.", OTHER), **named("b.", adm_state())}}, {"state_dict": "state_dict.b"}),
        ({"model": adm_state(), "ema": {"shadow_params": list(OTHER.values())}}, {"ema": False}),
        ({"model": adm_state(), "optimizer": OPTIMIZER}, {"ema": False}),
        ([adm_state(), OPTIMIZER, 3, 5000], {"ema": False}),
    ],
)
def test_the_state_dict_that_is_asked_for(content, settings, tmp_path):
    assert difference(saved(tmp_path / "t.ckpt", content), **settings) < 1e-5


CHOICES = {
    "two": (
        {"one": adm_state(), "two": OTHER}, {},
        r"holds 2 state dicts of this network \(one, two\), and ema=true does not say which; name one: state_dict=two",
    ),
    "two averages": (
        {"model": OTHER, "ema_0.999": adm_state(), "ema_0.9999": OTHER}, {},
        r"holds 3 state dicts of this network \(model, ema_0.999, ema_0.9999\), and ema=true does not say which",
    ),
    "no average of that name": (
        {"one": adm_state()}, {"state_dict": "three"}, "holds no state dict three; it holds one$",
    ),
    "a list": (
        {"model": adm_state(), "ema": {"shadow_params": list(OTHER.values()), "decay": 0.9}}, {},
        r"holds the network \(model\) and an average that cannot be read \(ema.shadow_params: 142 tensors in a list, "
        "without names, as torch_ema keeps them\\), and ema=true asks for the average",
    ),
    "a training without an average": (
        {"model": adm_state(), "optimizer": OPTIMIZER}, {},
        r"holds the network \(model\) beside optimizer.state.0, and no average, which ema=true asks for; if the "
        "network itself is meant: ema=false",
    ),
    "DDPM's list without an average": (
        [adm_state(), OPTIMIZER, 3, 5000], {}, r"the network \(\[0\]\) beside \[1\].state.0, and no average, which ema",
    ),
    "an average in one tensor": (
        {"model": adm_state(), "ema": torch.cat([value.flatten() for value in OTHER.values()])}, {},
        r"holds the network \(model\) and an average that cannot be read \(ema: one tensor\), and ema=true asks for",
    ),
    "only an average": (
        {"ema": adm_state()}, {"ema": False},
        r"holds an average \(ema\) and not the network, which ema=false asks for; set ema=true",
    ),
    "other tensors": (
        {**named("model.", adm_state()), "loss.weight": torch.ones(2)}, {},
        r"holds 1 tensors that are not of this network \(loss.weight, …\) beside model, which is; .*state_dict=model ",
    ),
    "cut names": ({key[3:]: value for key, value in adm_state().items()}, {}, "does not fit .*: 142 missing"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHOICES)
def test_a_state_dict_that_is_not_clear(name, tmp_path):
    content, settings, message = CHOICES[name]
    with pytest.raises(UserError, match=message):
        load_adm(saved(tmp_path / "t.ckpt", content), **ADM, **settings)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n",
            "is a pointer of git-lfs, not weights",
        ),
        (b"\n<!DOCTYPE html><html>quota exceeded</html>", "is a web page, not weights"),
        (b'{"error": "Repository not found"}', "is JSON, not weights"),
        (b"\xef\xbb\xbf<!DOCTYPE html><html>", "is a web page, not weights"),
        (b"<Error><Code>AccessDenied</Code></Error>", "is a web page, not weights"),
        (b"\x1f\x8b\x08\x00" + bytes(50), "is compressed by gzip; unpack it first"),
        (b"Entry not found", "is truncated, damaged or no checkpoint; get it again"),
        (b"Google Drive - Quota exceeded", "is truncated, damaged or no checkpoint; get it again"),
        (b"\x89PNG\r\n\x1a\n", "is truncated, damaged or no checkpoint; get it again"),
    ],
)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_what_a_failed_download_leaves(start, message, suffix, tmp_path):
    (tmp_path / f"net{suffix}").write_bytes(start)
    with pytest.raises(UserError, match=message):
        read_checkpoint(tmp_path / f"net{suffix}")


CONV = "input_blocks.0.0.weight"
NO_NUMBERS = {
    "int8": (lambda x: (100 * x).to(torch.int8), r"holds whole numbers \(int8\) in .*, so it is quantised or damaged"),
    "bool": (lambda x: x > 0, r"holds whole numbers \(bool\) in input_blocks.0.0.weight"),
    "complex": (lambda x: x * 1j, r"complex64 in the layout torch.strided in .*; get a file with plain real"),
    "sparse": (lambda x: x.to_sparse(), r"holds torch.float32 in the layout torch.sparse_coo in input_blocks"),
    "meta": (lambda x: x.to("meta"), r"holds no numbers in input_blocks.0.0.weight; get a file with plain real"),
}  # fmt: skip


@pytest.mark.parametrize("name", NO_NUMBERS)
def test_tensors_that_are_no_real_numbers(name, tmp_path):
    change, message = NO_NUMBERS[name]
    path = saved(tmp_path / "a.pt", {**adm_state(), CONV: change(adm_state()[CONV])})
    with pytest.raises(UserError, match=message):
        load_adm(path, **ADM)


def test_a_safetensors_file_that_begins_like_json(tmp_path):
    """Its first byte is the length of its header, here of 123 bytes, and 123 is an opening brace."""
    header = json.dumps({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).ljust(ord("{")).encode()
    content = len(header).to_bytes(8, "little") + header + torch.ones(2).numpy().tobytes()
    assert content.startswith(b"{")
    (tmp_path / "x.safetensors").write_bytes(content)
    assert read_checkpoint(tmp_path / "x.safetensors")[""]["x"].equal(torch.ones(2))
