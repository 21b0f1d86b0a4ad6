"""Networks in 16 bits or compiled: what they compute, and the bound on what that does to images."""

import copy
import json
import math
import shutil
from functools import partial

import pytest
import torch
from torch import nn
from torchmetrics.functional.image import peak_signal_noise_ratio

from cyclediff.attention_control import AttentionControl
from cyclediff.attention_layers import attention_maps
from cyclediff.cyclediffusion import CycleDiffusion
from cyclediff.diffusion.denoiser import NetworkDenoiser
from cyclediff.diffusion.noise import Noise
from cyclediff.diffusion.schedule import DiffusionSchedule, alpha_bar_from_betas, linear_betas
from cyclediff.errors import UserError
from cyclediff.models.inference import Evaluation, for_inference
from cyclediff.models.load_text import load_text_to_image
from cyclediff.pets.networks import load
from cyclediff.runtime import precision
from cyclediff.runtime.precision import exact, require_precision

from .forking import finish
from .test_run import ROOT, SMALL

WEIGHTS = ROOT / "cyclediff" / "pets" / "weights"
X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
T = torch.tensor([1, 500])


def network():
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 3, 3, padding=1)
    return conv, lambda conv, xt, t: conv(xt)


def test_autocast_is_what_it_says():
    """A convolution of rounded numbers, and float32 outside."""
    conv, call = network()
    evaluation = for_inference(conv, call, "cpu", dtype="bfloat16")
    out = evaluation(X, T)
    assert out.dtype == torch.float32
    assert conv.weight.dtype == torch.float32
    weight, bias = conv.weight.bfloat16().double(), conv.bias.bfloat16().double()
    expected = nn.functional.conv2d(X.bfloat16().double(), weight, bias, padding=1)
    torch.testing.assert_close(out.double(), expected, rtol=2**-7, atol=1e-3)  # one rounding to 8 bits at the end
    torch.testing.assert_close(evaluation.exact(X, T), conv(X))
    assert not torch.equal(out, evaluation.exact(X, T))


def test_float32_is_exact_already():
    assert for_inference(*network(), "cpu").exact is None


def test_a_pets_network_in_bfloat16_is_close_and_its_exact_network_is_float32s():
    path = str(WEIGHTS / "cat.safetensors")
    half, full = load(path, dtype="bfloat16").condition(), load(path).condition()
    x, level = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)), full.schedule.at(400)
    assert torch.equal(exact(half)(x, level).eps, full(x, level).eps)
    assert not torch.equal(half(x, level).eps, full(x, level).eps)
    torch.testing.assert_close(half(x, level).eps, full(x, level).eps, atol=0.05, rtol=0)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a compiler")
def test_compiled_networks_compute_the_same_for_every_batch_size():
    conv, call = network()
    evaluation = for_inference(conv, lambda *given: nn.functional.silu(call(*given)), "cpu", compile_mode="default")
    first = evaluation(X, T)
    kept = first.clone()
    for x, t in ((X, T), (X[:1], T[:1]), (X.repeat(3, 1, 1, 1), T.repeat(3))):
        torch.testing.assert_close(evaluation(x, t), evaluation.exact(x, t))
    assert torch.equal(first, kept)  # later evaluations do not write into it


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a compiler")
def test_a_compiled_text_model_computes_the_same_with_other_prompts_and_with_attention_control():
    plain = load_text_to_image(str(WEIGHTS / "text_to_image"))
    compiled = copy.copy(plain).cast("float32", "default")
    x, level = torch.randn(3, plain.vae.config.latent_channels, 16, 16), plain.schedule.at(400)
    for words in (["a red cat", "a big dog"], ["a small cat"], ["a cat", "a dog", "a teal dog"]):
        found = [model.condition(words, 3.0)(x[: len(words)], level).x0 for model in (plain, compiled)]
        torch.testing.assert_close(*found, atol=1e-4, rtol=0)
    method = CycleDiffusion(T=3, T_es=3, eta=0.1, spacing="latent", attention=AttentionControl())
    noise = [Noise(1, ["a"]) for _ in range(2)]
    edited = [
        method(x[:1], model.condition(["a red cat"]), model.condition(["a red dog"], 3.0), one)
        for model, one in zip((plain, compiled), noise, strict=True)
    ]
    torch.testing.assert_close(*edited, atol=1e-3, rtol=0)


@pytest.mark.parametrize("mode", [{"dtype": "float64"}, {"compile_mode": "fastest"}])
def test_unknown_precision_modes(mode):
    with pytest.raises(UserError, match=r"must be .*one of"):
        for_inference(*network(), "cpu", **mode)


def test_a_denoiser_of_a_plain_network_is_exact_already():
    conv, call = network()
    evaluation = Evaluation(partial(call, conv), None, conv, call)
    denoiser = NetworkDenoiser(evaluation, DiffusionSchedule(alpha_bar_from_betas(linear_betas())))
    assert torch.equal(exact(denoiser)(X, denoiser.schedule.at(500)).eps, conv(X))


@pytest.mark.parametrize("error", [0.001, 0.0199])
def test_the_bound_is_psnr(error, capsys):
    images = X.clamp(-1, 1)
    found = require_precision("m", "bfloat16", lambda exactly: images if exactly else images + error)
    assert found == pytest.approx(20 * math.log10(2 / error), abs=1e-4)
    assert found == pytest.approx(peak_signal_noise_ratio(images + error, images, data_range=2.0).item(), abs=1e-3)
    assert f"bfloat16, {found:.1f} dB from float32's images (2 images; at least 40)" in capsys.readouterr().out


@pytest.mark.parametrize("error", [0.0201, float("nan")])
def test_what_is_too_far_is_refused(error):
    with pytest.raises(UserError, match=r"m with networks in bfloat16 gives images (40.0|39.9|nan) dB from float32's"):
        require_precision("m", "bfloat16", lambda exactly: X if exactly else X + error)


def stricter():
    precision.LEAST = 200.0


RUN = [SMALL, "method=sdedit", "steps=few", "data.limit=3", "dtype=bfloat16", "allow_code_change=true"]


def test_a_run_says_how_close_it_is_or_is_refused_before_its_first_image(tmp_path):
    settings = [*RUN, f"paths.outputs={tmp_path / 'out'}", f"paths.cache={tmp_path / 'cache'}", "batch_size=auto"]
    code, printed = finish(settings, tmp_path / "log", stricter)
    assert code == 2
    assert "error: sdedit with networks in bfloat16 gives images" in printed
    assert not list(tmp_path.glob("out/*/*/images/*"))
    code, printed = finish(settings, tmp_path / "log")
    assert code == 0, printed
    (record,) = (json.loads(path.read_bytes()) for path in tmp_path.glob("out/*/*/run.json"))
    assert f"{record['psnr_to_float32']:.1f} dB from float32's images" in printed
    assert record["identity"]["task"]["target_model"]["dtype"] == "bfloat16"
    assert record["batch_size"] in (1, 2)
    code, printed = finish([*settings, "seed=2"], tmp_path / "log")
    assert code == 0, printed
    sizes = json.loads((tmp_path / "cache" / "batch_sizes.json").read_bytes())
    assert list(sizes.values()) == [record["batch_size"]]
    assert f"batch size {record['batch_size']} (remembered)" in printed


def test_half_precision_keeps_the_softmax_in_float32():
    """Maps have the type of the queries, and its precision."""
    torch.manual_seed(0)
    query, key = torch.randn(1, 2, 16, 8), torch.randn(1, 2, 77, 8)
    exact = attention_maps(query.bfloat16().double(), key.bfloat16().double())
    maps = attention_maps(query.bfloat16(), key.bfloat16())
    assert maps.dtype == torch.bfloat16
    assert exact.dtype == torch.float64
    assert (maps.double() - exact).abs().max() < 0.02 * exact.max()
