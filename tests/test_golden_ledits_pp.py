"""LEDITS++ against its official code: levels, codes, edited latents, every mask."""

import json
from functools import cache

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors import safe_open
from torch import Tensor

from baselines.ledits_pp import Code, LEDITSpp, edit, encode, spaced_levels
from cyclediff.attention_layers import install
from cyclediff.diffusion.conditioning import Conditioning
from cyclediff.diffusion.denoiser import GuidedDenoiser, prediction_from
from cyclediff.diffusion.levels import Level
from cyclediff.diffusion.prompt import Prompt
from cyclediff.diffusion.schedule import DiffusionSchedule, alpha_bar_from_betas, scaled_linear_betas
from cyclediff.diffusion.semantic_guidance import (
    Concept,
    Guided,
    SeenConcepts,
    attention_of_words,
    guide,
    predictions_under,
    smooth,
)
from cyclediff.models.text_to_image import caller

from .nets import GOLDEN, RecordedNoise, cases, golden, state_of

SCHEDULE = DiffusionSchedule(alpha_bar_from_betas(scaled_linear_betas()))
NAME, NETWORK, CODE = "ledits_pp", "cyclediffusion_ldm", "LEDITS++"
EDITS = [(case, number) for case in "abcde" for number in range(len(cases(NAME)[case]["edits"]))]


@cache
def header(name: str, key: str):
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        return json.loads(file.metadata()[key])


WORDS = {text: count - 2 for text, count in header(NAME, "token_counts_incl_start_end").items()}


@cache
def unet() -> UNet2DConditionModel:
    network = UNet2DConditionModel(**header(NETWORK, "unet_config"))
    network.load_state_dict(state_of(NETWORK, "unet."))
    install(network)
    return network.eval().requires_grad_(False)


def denoiser(text: str | None, scale: float, n: int) -> GuidedDenoiser:
    """Under a text; None is the empty one."""
    context, empty = (golden(NETWORK)[f"emb.{key}"].float() for key in (text or "uncond", "uncond"))
    ids = range(WORDS.get(text or "", 0) + 2)
    prompts = (Prompt(text or "", tuple(ids), tuple((0, 0) for _ in ids)),) * n
    network = caller(unet(), torch.float32, torch.contiguous_format)
    context, empty = Conditioning(context[None].expand(n, -1, -1)), Conditioning(empty[None])
    return GuidedDenoiser(network, SCHEDULE, "epsilon", context, empty, (scale,) * n, prompts, "golden")


def levels_of(case: str) -> list[Level]:
    return spaced_levels(SCHEDULE, cases(NAME)[case]["n"], cases(NAME)[case]["skip"])


def source_of(case: str) -> GuidedDenoiser:
    config = cases(NAME)[case]
    text = config["source_prompt"]
    return denoiser(text or None, config["source_guidance"] if text else 0.0, len(golden(NAME)[f"{case}.x0"]))


def encoded(case: str) -> tuple[Code, Tensor]:
    """With the states as they are visited; the official code draws the cleanest first."""
    data, states = golden(NAME), []
    source = source_of(case)

    def watched(x, level):
        states.append(x)
        return source(x, level)

    draws = RecordedNoise([*data[f"{case}.noise"].float().flip(0)])
    code = encode(data[f"{case}.x0"].float(), watched, levels_of(case), draws)
    assert not draws.draws
    return code, torch.stack(states)


def concepts_of(config: dict) -> list[Concept]:
    names = config["prompts"] or []

    def each(key):
        value = config[key]
        return value if isinstance(value, list) else [value] * len(names)

    weights = config["weights"] or [1.0] * len(names)
    rows = zip(*map(each, ("guidance_scale", "reverse", "threshold", "warmup", "cooldown")), weights, strict=True)
    return [Concept(*row) for row in rows]


class Watched:
    """Predictions of an edit, with what happens in each step."""

    def __init__(self, predict, concepts, masks, user_mask):
        self.predict, self.settings = predict, (concepts, masks, user_mask)
        self.states: list[Tensor] = []
        self.guided: list[tuple[SeenConcepts, Guided]] = []

    def __call__(self, x, level, acting):
        seen = self.predict(x, level, acting)
        self.states.append(x)
        self.guided.append((seen, guide(seen, level, *self.settings)))
        return seen


def edited(case: str, number: int):
    data, config = golden(NAME), cases(NAME)[case]["edits"][number]
    n = len(data[f"{case}.x0"])
    names = config["prompts"] or []
    base = denoiser(config["negative_prompt"], 1.0 if config["negative_prompt"] else 0.0, n)
    masks = "attention" if config["use_cross_attn_mask"] else "intersect" if config["use_intersect_mask"] else "noise"
    under = [denoiser(name, 1.0, n) for name in names]
    predict = predictions_under(base, under, None if masks == "noise" else 256)
    concepts = concepts_of(config)
    user_mask = data[f"{case}.edit{number}.user_mask"] if config["user_mask"] else None
    watched = Watched(predict, concepts, masks, user_mask)
    code = Code(data[f"{case}.xts"][-1], [*data[f"{case}.zs"]])
    return edit(code, watched, levels_of(case), concepts, masks, user_mask), watched


@pytest.mark.parametrize("case", "abcde")
def test_levels(case):
    assert [level.t for level in levels_of(case)] == [*golden(NAME)[f"{case}.timesteps"].tolist(), 0]


@pytest.mark.parametrize("case", "abcde")
def test_codes(case, parity):
    data = golden(NAME)
    code, states = encoded(case)
    parity(CODE, "states of the inversion", states, data[f"{case}.xts"][1:].flip(0))
    parity(CODE, "latent codes z", torch.stack([*code.zs]), data[f"{case}.zs"], 2e-3, relative=True)


@pytest.mark.parametrize(("case", "number"), EDITS)
def test_edits(case, number, parity):
    data, key, config = golden(NAME), f"{case}.edit{number}", cases(NAME)[case]["edits"][number]
    out, watched = edited(case, number)
    parity(CODE, "edited latents", out, data[f"{key}.out"])
    parity(CODE, "latents after each step", torch.stack([*watched.states[1:], out]), data[f"{key}.traj"])
    if f"{key}.mask" in data:
        wanted = data[f"{key}.mask"]
        masks = torch.zeros(wanted.shape)
        for step, (_, guided) in enumerate(watched.guided):
            for concept, mask in guided.masks.items():
                masks[step, concept] = mask[:, 0]
        assert masks.equal(wanted.float())
    if f"{key}.guidance_first3" in data:
        found = [guided.prediction.eps - seen.base.eps for seen, guided in watched.guided[:3]]
        parity(CODE, "guidance of the first steps", torch.stack(found), data[f"{key}.guidance_first3"])
    if f"{key}.attn_mean_step0" in data:
        maps = data[f"{key}.attn_mean_step0"]
        for concept, words in watched.guided[0][0].attention.items():
            wanted = maps[concept, :, :, :, 1 : WORDS[config["prompts"][concept]] + 1].sum(3)
            parity(CODE, "attention of a concept's words", words, wanted)


@pytest.mark.parametrize("masks", ["attention", "intersect"])
def test_masks_alone(masks, parity):
    data, config = golden(NAME), header(NAME, "m1")
    level, x = SCHEDULE.at(500), torch.zeros(1, 4, 32, 32)
    base, *under = (prediction_from(e[None].float(), x, level, "epsilon") for e in data["m1.eps"])
    maps = torch.stack([data[f"m1.map{k}"].float().unflatten(0, (3, -1)) for k in range(3)]).mean(dim=(0, 2))
    words = {k: attention_of_words(maps[k + 1][None], [WORDS[name]], (32, 32)) for k, name in enumerate(config["C"])}
    parity(CODE, "attention maps, smoothed", torch.cat([smooth(words[k]) for k in (0, 1)])[:, 0], data["m1.smoothed"])
    concepts = [Concept(scale, threshold=threshold) for scale, threshold in zip(config["s"], config["th"], strict=True)]
    found = guide(SeenConcepts(base, dict(enumerate(under)), words), level, concepts, masks)
    key = "cross" if masks == "attention" else "intersect"
    assert torch.cat([found.masks[k] for k in (0, 1)])[:, 0].equal(data[f"m1.{key}.mask"].float())
    parity(CODE, "guidance under masks of attention", found.prediction.eps - base.eps, data[f"m1.{key}.guidance"])


def test_kernel(parity):
    """What smoothing makes of one pixel."""
    point = torch.zeros(1, 5, 5)
    point[0, 2, 2] = 1
    parity(CODE, "kernel of the smoothing", smooth(point)[0, 0, 1:4, 1:4], golden(NAME)["m1.kernel"], 1e-6)


def test_the_method_of_the_table(parity):
    """With the target's guidance as scale, and an empty source prompt: case a from its own draws."""
    data = golden(NAME)
    method = LEDITSpp(T=20, T_es=20, skip=0.15, threshold=0.9)
    noise = RecordedNoise([*data["a.noise"].float().flip(0)])
    out = method(data["a.x0"].float(), denoiser("src1", 1.0, 1), denoiser("tgt1", 5.0, 1), noise)
    parity(CODE, "edited latents, inverted and edited in one", out, data["a.edit0.out"])
