"""DiffusionCLIP against its official code: directions and losses, encoding and decoding, both ways of fine-tuning."""

import copy
from functools import partial

import pytest
import torch

from baselines.diffusionclip import (
    DiffusionCLIP,
    Losses,
    Training,
    directional,
    generate,
    invert,
    levels_up_to,
    text_direction,
    training_step,
    view,
)
from cyclediff.diffusion.clip_views import Embedded, unit
from cyclediff.diffusion.denoiser import LearnedVarianceDenoiser
from cyclediff.diffusion.energies import gradient
from cyclediff.diffusion.schedule import DiffusionSchedule, alpha_bar_from_betas, linear_betas
from cyclediff.models import adm
from cyclediff.models.weights import load_converted

from .guided_nets import CLIPS, normalized
from .nets import TINY, golden, state_of

NAME, CODE = "diffusionclip", "DiffusionCLIP"
DATA = golden(NAME)
CLIP, T0, LR = CLIPS[0], 501, 8e-6
SCHEDULE = DiffusionSchedule(alpha_bar_from_betas(linear_betas()))
SOURCE = DATA["x_src"][:1]
SHAPE = {"channel_mult": (1, 1), "num_head_channels": 16} | TINY
NAMES = {  # official name → ours
    "input_blocks.0.0.weight": "conv_in.weight", "time_embed.0.weight": "time_embedding.linear_1.weight",
    "out.2.weight": "conv_out.weight",
}  # fmt: skip


def network():
    with torch.device("meta"):
        unet = adm.build(**SHAPE)
    split = partial(adm.split_qkv, head_channels=16, order="legacy")
    load_converted(
        unet, state_of("tiny_nets", "adm_source."), adm.names(unet.config, unet.state_dict()), "golden", split
    )
    return unet.requires_grad_(True)


def denoiser(unet) -> LearnedVarianceDenoiser:
    return LearnedVarianceDenoiser(lambda xt, t: unet(xt, t).sample, SCHEDULE)


def direction():
    return text_direction(Embedded(DATA["text_raw_src"][None], DATA["text_raw_trg"][None]))


def losses(how: Training) -> Losses:
    return Losses(CLIP, direction(), how)


def test_directions_and_views(parity):
    parity(CODE, "text direction", direction(), DATA["text_direction"], 1e-5)
    parity(CODE, "what CLIP is shown", normalized(view(DATA["x_trg"], CLIP.size)), DATA["pre_trg"])
    for side in ("src", "trg"):
        features = unit(CLIP.images(view(DATA[f"x_{side}"], CLIP.size)))
        parity(CODE, "features of images", features, DATA[f"img_feat_{side}"], 1e-5)


def apart(x):
    before = CLIP.images(view(DATA["x_src"], CLIP.size))
    return directional(CLIP.images(view(x, CLIP.size)), before, direction()).mean()[None]


def test_directional_loss(parity):
    x = DATA["x_trg"]
    parity(CODE, "directional loss", apart(x)[0], DATA["directional_loss"])
    parity(CODE, "directional loss: gradient", gradient(apart, x), DATA["grad_directional"], 1e-3, relative=True)
    found = losses(Training())(x, DATA["x_src"])
    parity(CODE, "loss of CLIP", found["clip"], DATA["loss_clip"])
    slope = gradient(lambda x: losses(Training())(x, DATA["x_src"])["clip"][None], x)
    parity(CODE, "loss of CLIP: gradient", slope, DATA["grad_loss_clip"], 1e-3, relative=True)


@pytest.mark.parametrize(("kind", "steps"), [("inv", 8), ("train", 4), ("test", 6)])
def test_timesteps(kind, steps):
    levels = levels_up_to(SCHEDULE, T0, steps)
    assert [level.t for level in reversed(levels[:-1])] == DATA[f"seq_{kind}"].tolist()
    assert levels[-1].b == 0


def test_encoding_and_decoding(parity):
    seen = denoiser(network())
    latent = invert(SOURCE, seen, levels_up_to(SCHEDULE, T0, 8))
    parity(CODE, "encoding", latent, DATA["x_lat"])
    parity(CODE, "decoding, as many steps", generate(latent, seen, levels_up_to(SCHEDULE, T0, 8)), DATA["rec_x"][-1:])
    method = DiffusionCLIP(t0=T0, encoding_steps=8, decoding_steps=6)
    parity(CODE, "decoding, fewer steps", method(SOURCE, seen, seen, None), DATA["test_x"][-1:])


class Adam:
    """One optimiser, as a trainer calls it."""

    def __init__(self, unet):
        self.optimizer, self.calls = torch.optim.Adam(unet.parameters(), LR), 0

    def __call__(self, which, loss):
        assert which == "network"
        self.calls += 1
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


@pytest.mark.parametrize("checkpointing", [True, False])
def test_fine_tuning_through_the_chain(checkpointing, parity):
    unet = network()
    how = Training(steps=4, lambda_l1=0.3, lr=LR, checkpointing=checkpointing)
    update = Adam(unet)
    image, found = training_step(
        DATA["x_lat"], SOURCE, denoiser(unet), levels_up_to(SCHEDULE, T0, 4), losses(how), update
    )
    assert update.calls == len(found) == 1
    parity(CODE, "fine-tuning through the chain: image", image, DATA["ft.x_gen"])
    for ours, theirs in {"directional": "_directional", "clip": "_clip", "l1": "_l1", "total": ""}.items():
        parity(CODE, "fine-tuning through the chain: losses", found[0][ours], DATA[f"ft.loss{theirs}"])
    for official, own in NAMES.items():
        slope = unet.get_parameter(own).grad
        parity(
            CODE, "fine-tuning through the chain: gradients", slope, DATA[f"ft.grad.{official}"], 1e-3, relative=True
        )
        if f"ft.after.{official}" in DATA:
            after = DATA[f"ft.after.{official}"]
            parity(CODE, "fine-tuning through the chain: weights", unet.get_parameter(own), after, LR / 10)


def test_fine_tuning_step_by_step(parity):
    unet = network()
    before = copy.deepcopy(unet)
    update = Adam(unet)
    how = Training(steps=4, lambda_l1=0.3, lr=LR, per_step=True)
    image, found = training_step(
        DATA["x_lat"], SOURCE, denoiser(unet), levels_up_to(SCHEDULE, T0, 4), losses(how), update
    )
    assert update.calls == len(found) == 4
    rows = torch.tensor([[row[key].item() for key in ("directional", "clip", "l1", "total")] for row in found])
    parity(CODE, "fine-tuning step by step: losses", rows, DATA["eff.losses"])
    parity(CODE, "fine-tuning step by step: image", image, DATA["eff.x"][-1:], 1e-3)
    for official in ("input_blocks.0.0.weight", "time_embed.0.weight"):
        after, own = DATA[f"eff.after.{official}"], NAMES[official]
        moved = after - before.get_parameter(own)
        parity(CODE, "fine-tuning step by step: weights", unet.get_parameter(own), after, 1e-3)
        assert (unet.get_parameter(own) - after).norm() < 0.05 * moved.norm()
