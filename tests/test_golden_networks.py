"""Converted networks against the official networks' outputs."""

import pytest
import torch

from scripts.guided_diffusion_forward import forward

from .nets import adm_network, ddpm_network, domain_classifier, golden, state_of

ADM = {
    "image_size": 32,
    "model_channels": 32,
    "channel_mult": (1, 2),
    "num_res_blocks": 1,
    "attention_downsampling": (2,),
    "num_head_channels": 16,
}
FORWARD = {"tolerance": 2e-5, "relative": True}


@pytest.mark.parametrize(
    ("order", "times"), [("legacy", ("long", "float", "frac")), ("new", ("long", "float"))], ids=["legacy", "new"]
)
def test_adm(order, times, parity):
    data, network = golden("adm_unet"), adm_network(state_of("adm_unet", "sd."), order, **ADM)
    for t in times:
        out = network(data["x"], data[f"t_{t}"])
        parity("Networks", f"ADM, {order} attention order", out, data[f"out_{order}_t{t}"], **FORWARD)


def test_the_attention_orders_differ():
    data, state = golden("adm_unet"), state_of("adm_unet", "sd.")
    outs = [adm_network(state, order, **ADM)(data["x"], data["t_long"]) for order in ("legacy", "new")]
    assert (outs[0] - outs[1]).abs().max() > 0.1


def test_ddpm(parity):
    network = ddpm_network(
        state_of("ddpm_unet", "sd."), image_size=16, ch=32, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(8,)
    )
    data = golden("ddpm_unet")
    for t in ("long", "float"):
        parity("Networks", "DDPM", network(data["x"], data[f"t_{t}"]), data[f"out_t{t}"], **FORWARD)


def test_domain_classifier(parity):
    network = domain_classifier(state_of("dse", "sd."), **{**ADM, "image_size": 16, "num_head_channels": 32}, classes=2)
    data = golden("dse")
    for t in ("long", "float"):
        x, time = data["x"], data[f"t_{t}"]
        parity("Networks", "domain classifier, features", network.features(x, time), data[f"features_t{t}"], **FORWARD)
        parity("Networks", "domain classifier, logits", network(x, time), data[f"logits_t{t}"], **FORWARD)
    with torch.enable_grad():
        x = data["x"].clone().requires_grad_()
        network(x, data["t_float"]).log_softmax(1)[:, 1].sum().backward()
    what = "domain classifier, gradient of a logarithmic probability"
    parity("Networks", what, x.grad, data["grad_logp1_tfloat"], 1e-3, relative=True)


def test_the_benchmarks_form_of_adm_is_the_official_network():
    """What `make bench` measures ours against computes the official numbers itself."""
    data, state = golden("adm_unet"), state_of("adm_unet", "sd.")
    out = forward(state, data["x"], data["t_long"], (1, 2), 1, (2,), 16)
    assert (out - data["out_legacy_tlong"]).abs().max() <= 2e-5 * data["out_legacy_tlong"].abs().max()
