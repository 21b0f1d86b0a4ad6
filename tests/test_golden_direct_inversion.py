"""Direct inversion with Prompt-to-Prompt and LocalBlend against its official code."""

import json
from dataclasses import replace
from functools import cache

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors import safe_open
from torch import Tensor

from baselines.direct_inversion import DirectInversion, invert
from cyclediff import local_blend
from cyclediff.attention_control import AttentionControl, ControlPlan
from cyclediff.attention_layers import install
from cyclediff.diffusion.conditioning import Conditioning
from cyclediff.diffusion.denoiser import GuidedDenoiser
from cyclediff.diffusion.noise import Noise
from cyclediff.diffusion.schedule import DiffusionSchedule, alpha_bar_from_betas, scaled_linear_betas
from cyclediff.local_blend import LocalBlend
from cyclediff.models.text_to_image import caller
from cyclediff.runtime.meter import Meter

from .nets import GOLDEN, cases, golden, state_of
from .prompts import LENGTH, prompt_of

NAME, CODE = "direct_inversion", "Direct inversion"
SCHEDULE = DiffusionSchedule(alpha_bar_from_betas(scaled_linear_betas()))
CASES = cases(NAME)
BLENDED = [case for case, config in CASES.items() if config["blend"]]


def header(file: str, key: str):
    with safe_open(GOLDEN / f"{file}.safetensors", "pt") as opened:
        return json.loads(opened.metadata()[key])


@cache
def network():
    unet = UNet2DConditionModel(**header("cyclediffusion_ldm", "unet_config"))
    unet.load_state_dict(state_of("cyclediffusion_ldm", "unet."))
    install(unet.eval().requires_grad_(False))
    return caller(unet, torch.float32, torch.contiguous_format)


def sides(case: str, guidance: float | None = None, n: int = 1) -> tuple[GuidedDenoiser, GuidedDenoiser]:
    config, data = CASES[case], golden(NAME)
    name, empty = config["prompts"], data["emb.uncond"].float()[None]
    texts = header(NAME, "prompts")[name]
    scales = 1.0, config["w"] if guidance is None else guidance
    made = []
    for side, scale in zip(("src", "tgt"), scales, strict=True):
        context, prompt = data[f"emb.{name}.{side}"].float().expand(n, -1, -1), prompt_of(texts[side])
        assert list(prompt.ids) == texts[f"{side}_ids"]
        made.append(
            GuidedDenoiser(
                network(), SCHEDULE, "epsilon", Conditioning(context), Conditioning(empty), (scale,) * n, (prompt,) * n,
                "golden",
            )
        )  # fmt: skip
    return made[0], made[1]


def control(case: str) -> AttentionControl:
    config = CASES[case]
    blend = config["blend"] and dict(zip(("source", "target"), config["blend"], strict=True))
    return AttentionControl(
        cross=config["cross"],
        self_attention=config["self"],
        mode="replace" if config["replace"] else "refine",
        weights=config["eq"] and dict(zip(config["eq"]["words"], config["eq"]["values"], strict=True)),
        max_queries=1024,
        blend=blend and blend | {"threshold": config["th"]},
    )


def edit(case: str, attention: AttentionControl | None, **settings) -> Tensor:
    method = DirectInversion(CASES[case]["N"], attention=attention, **settings)
    return method(golden(NAME)[f"{case}.x0"].float(), *sides(case), Noise(1, ["a"]))


@pytest.mark.parametrize("case", CASES)
def test_tables(case):
    data, config = golden(NAME), CASES[case]
    source, target = (side.prompts for side in sides(case))
    plan = control(case).plan(source, target, LENGTH, config["N"])
    assert plan.alpha[0].equal(data[f"{case}.cross_replace_alpha"][:, None].expand(-1, LENGTH))
    assert plan.self_steps == range(*config["self_steps"])
    if config["eq"]:
        assert plan.equalizer[0].equal(data[f"{case}.equalizer"])
    if config["replace"]:
        assert plan.mapper[0].equal(data[f"{case}.mapper"])
    else:
        alphas = data[f"{case}.alphas"]
        assert plan.keep[0].equal(1 - alphas)
        assert plan.mapper[0].argmax(0)[alphas == 1].equal(data[f"{case}.mapper"][alphas == 1])
    if config["blend"]:
        assert plan.blending.marks[0, 0].equal(data[f"{case}.blend_words_alpha"])
        assert plan.blending.first == config["start_blend"]


@pytest.mark.parametrize("case", CASES)
def test_inversion(case, parity):
    data, config = golden(NAME), CASES[case]
    levels = SCHEDULE.levels(config["N"], "leading")
    assert [level.t for level in levels[:-1]] == data[f"{case}.timesteps"].tolist()
    path = invert(data[f"{case}.x0"].float(), sides(case)[0], levels)
    parity(CODE, "latents of the inversion", torch.cat(path), data[f"{case}.inv_latents"])


@pytest.mark.parametrize("case", CASES)
def test_edited_latents(case, parity):
    expected = golden(NAME)[f"{case}.out"][1:]
    parity(CODE, "edited latents: refine, replace, re-weight, LocalBlend", edit(case, control(case)), expected)


@pytest.mark.parametrize("case", [case for case in CASES if f"{case}.traj" in golden(NAME)])
def test_every_step(case, parity, monkeypatch):
    found, blend = [], ControlPlan.blend
    monkeypatch.setattr(ControlPlan, "blend", lambda *args: found.append(blend(*args)) or found[-1])
    edit(case, control(case))
    parity(CODE, "the same after every step", torch.cat(found), golden(NAME)[f"{case}.traj"])


@pytest.mark.parametrize("case", CASES)
def test_without_attention_control(case, parity):
    parity(CODE, "latents without attention control", edit(case, None), golden(NAME)[f"{case}.noctl_out"][1:])


@pytest.mark.parametrize("case", BLENDED)
def test_masks(case, monkeypatch):
    """Equal in every pixel, at every step from `start` on."""
    data, found = golden(NAME), []
    made = local_blend.masks
    monkeypatch.setattr(local_blend, "masks", lambda *args: found.append(made(*args)[0]) or made(*args))
    edit(case, control(case))
    ours = torch.cat(found)
    assert ours[:, 1].equal(data[f"{case}.blend_mask"].bool())
    assert ours[:, 0].equal(data[f"{case}.blend_mask_source"].bool())


def test_limit_of_self_attention():
    """A limit of 16², as in Prompt-to-Prompt's first notebook, gives other latents of 32×32."""
    limited = edit("d", replace(control("d"), max_queries=256))
    assert (limited - golden(NAME)["d.out"][1:]).abs().max() > 1e-2


def test_other_grid():
    """The offset of latent diffusion's grid moves the result."""
    assert (edit("a", control("a"), spacing="latent") - golden(NAME)["a.out"][1:]).abs().max() > 1e-2


@pytest.mark.parametrize("case", CASES)
def test_rows_of_the_network(case):
    """An edit takes 4 rows a step; the official code's inversion and edit take 9."""
    config, meter = CASES[case], Meter(["a"], lambda: None)
    method = DirectInversion(config["N"], attention=control(case))
    source, target = (meter.watch(side, "one") for side in sides(case))
    method(golden(NAME)[f"{case}.x0"].float(), source, target, Noise(1, ["a"]))
    official = config["net_rows_invert"] + 4 * config["edit_calls"]
    assert meter.forwards == 4 * config["N"] <= official / 2


def test_guidance_of_the_source_is_that_of_its_inversion():
    """It decides the path, and adds no row to the sampling."""
    source, target = sides("a")
    guided, meter = replace(source, scales=(3.0,), _contexts={}), Meter(["a"], lambda: None)
    x0, levels = golden(NAME)["a.x0"].float(), SCHEDULE.levels(10, "leading")
    source, target = (meter.watch(side, "one") for side in (guided, target))
    out = DirectInversion(10, attention=control("a"))(x0, source, target, Noise(1, ["a"]))
    assert meter.forwards == 10 * 2 + 10 * 3
    assert (invert(x0, guided, levels)[-1] - golden(NAME)["a.inv_latents"][-1:]).abs().max() > 1e-2
    assert (out - golden(NAME)["a.out"][1:]).abs().max() > 1e-2


def blended_alone(case: str) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The recorded maps, given at each step of an empty network."""
    data, settings = golden(NAME), header(NAME, "local_blend")
    config, own = settings["config"], settings[case]
    marks = torch.stack((data["lb.alpha"], data["lb.alpha_sub"]))[None]
    rule = LocalBlend("cat", "dog")  # as published
    if own["th"] != [0.3, 0.3]:
        rule = replace(rule, threshold=own["th"][0], subtract_threshold=own["th"][1])
    assert rule.start == config["start"]
    if not own["subtract"]:
        marks[:, 1] = 0
    blending = local_blend.Blending(rule, marks, config["N"])
    layers = {key: data[key].float() for key in sorted(data) if key.startswith(("lb.down_cross", "lb.up_cross"))}
    x = data["lb.x_t"].float()
    for step in range(own["first_acting_call_index"] + 1):
        maps = blending.maps(torch.tensor([0]))
        assert [maps.wants("down", 1024), maps.wants("down", 1024), maps.wants("mid", 64)] == [False] * 3
        for key, found in layers.items():
            assert maps.wants(key[3:].split("_")[0], 256)
            base, edited = found.unflatten(0, (2, 1, config["heads"]))
            maps.add(base, edited)
        total = maps.total()
        out = blending.blend(step, x[:1], x[1:])
        assert out.equal(x[1:]) == (step < own["first_acting_call_index"])
    return out, local_blend.masks(total, rule, (config["size"],) * 2)


@pytest.mark.parametrize("case", ["lb.th0", "lb.th0_sub", "lb.th1", "lb.th1_sub"])
def test_blend_alone(case, parity):
    data = golden(NAME)
    out, (of_words, subtracted) = blended_alone(case)
    assert of_words[0].equal(data[f"{case}.mask"].bool())
    if case.endswith("sub"):
        assert subtracted[0].equal(data[f"{case}.mask_subtract"].bool())
    parity(CODE, "LocalBlend of recorded maps", out, data[f"{case}.out"][1:], 1e-6)
