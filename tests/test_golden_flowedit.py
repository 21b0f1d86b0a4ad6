"""FlowEdit against its official code, with diffusers' SD3 and FLUX transformers as small random networks."""

import json
import math
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from safetensors import safe_open

from baselines.flowedit import FlowEdit, flowedit
from cyclediff.diffusion.conditioning import Abilities, Conditioning
from cyclediff.diffusion.denoiser import GuidedDenoiser
from cyclediff.diffusion.prompt import Prompt
from cyclediff.diffusion.schedule import FlowSchedule
from cyclediff.diffusion.steps import q_sample
from cyclediff.models import flux, sd3
from cyclediff.models.text_to_image import caller

from .nets import GOLDEN, RecordedNoise, cases, golden, state_of

NAME, CODE = "flow", "FlowEdit"
SD3, FLUX = ([f"{model}.{case}" for case in "abcd"] for model in ("sd3", "flux"))
EVALUATE = {"sd3": sd3.evaluate, "flux": flux.evaluate}
PROMPT = Prompt("a", (0, 1, 2), ((0, 0), (0, 1), (0, 0)))


@cache
def configs() -> dict:
    with safe_open(GOLDEN / f"{NAME}.safetensors", "pt") as file:
        return json.loads(file.metadata()["config"])


@cache
def transformer(model: str):
    cls = {"sd3": SD3Transformer2DModel, "flux": FluxTransformer2DModel}[model]
    network = cls(**configs()[model])
    network.load_state_dict(state_of(NAME, f"{model}.sd."))
    return network.eval().requires_grad_(False)


def packed(x):
    return F.pixel_unshuffle(x, 2).flatten(2).transpose(1, 2)


def unpacked(x):
    return F.pixel_shuffle(x.transpose(1, 2).unflatten(2, (4, 6)), 2)


def schedule_of(case: str) -> FlowSchedule:
    config = cases(NAME)[case]
    return FlowSchedule(math.exp(config["mu"]) if "mu" in config else 3.0)


def denoiser(case: str, side: str) -> GuidedDenoiser:
    """The network as models call it. SD3 is guided, each image with its own empty text; FLUX is given the scale."""
    config, data, model = cases(NAME)[case], golden(NAME), case.split(".")[0]

    def embedded(text):
        return Conditioning(*(data[f"{model}.{kind}.{text}"][: config["B"]] for kind in ("text", "pooled")))

    context = embedded(side)
    empty = context if model == "flux" else embedded("neg")
    network = caller(transformer(model), torch.float32, torch.channels_last, EVALUATE[model])
    return GuidedDenoiser(
        network, schedule_of(case), "flow", context, empty, (config[side],) * config["B"], (PROMPT,) * config["B"],
        model, abilities=Abilities(attention=False, reads_scale=model == "flux"),
    )  # fmt: skip


def sides(case: str):
    return denoiser(case, "src"), denoiser(case, "tar")


def image(case: str) -> torch.Tensor:
    return golden(NAME)[f"{case.split('.')[0]}.x_src"][: cases(NAME)[case]["B"]]


def draws(case: str) -> list[torch.Tensor]:
    noise = golden(NAME)[f"{case}.noise"]
    return [unpacked(n) if case in FLUX else n for n in noise]


def method_for(case: str) -> FlowEdit:
    config = cases(NAME)[case]
    settings = {key: config[key] for key in ("T", "n_max", "n_min", "n_avg")}
    return FlowEdit(**settings, spacing="uniform" if case in FLUX else "scheduler")


@pytest.mark.parametrize("model", ["sd3", "flux"])
def test_networks(model, parity):
    data = golden(NAME)
    x, t = data[f"{model}.x_src"], data[f"{model}.fwd.timestep"]
    if model == "sd3":
        out = transformer("sd3")(x, data["sd3.text.src"], data["sd3.pooled.src"], t).sample
    else:
        assert packed(x).equal(data["flux.x_src_packed"])
        assert unpacked(packed(x)).equal(x)
        out = transformer("flux")(
            packed(x), encoder_hidden_states=data["flux.text.src"], timestep=t, img_ids=data["flux.img_ids"],
            pooled_projections=data["flux.pooled.src"], txt_ids=data["flux.txt_ids"],
            guidance=data["flux.fwd.guidance"],
        ).sample  # fmt: skip
    parity(CODE, "SD3's and FLUX's transformers", out, data[f"{model}.fwd.out"], 2e-5, relative=True)


@pytest.mark.parametrize("case", SD3 + FLUX)
def test_levels(case):
    spacing, data = "uniform" if case in FLUX else "scheduler", golden(NAME)
    levels = schedule_of(case).levels(cases(NAME)[case]["T"], spacing)
    sigmas = torch.tensor([level.b for level in levels], dtype=torch.float64)
    assert (sigmas - data[f"{case}.sigmas"].double()).abs().max() < 2e-7
    times = torch.tensor([level.t for level in levels[:-1]], dtype=torch.float64)
    stated = data[f"{case}.timesteps"].double()
    assert (times - stated).abs().max() < 2e-4


@pytest.mark.parametrize("case", SD3 + FLUX)
def test_edited_latents(case, parity):
    noise = RecordedNoise(draws(case))
    out = method_for(case)(image(case), *sides(case), noise)
    assert not noise.draws
    which = "FLUX" if case in FLUX else "SD3"
    if case == "sd3.c":  # its code stops there; the number is of its code with the missing name supplied
        which = "SD3, with n_min, which the official function cannot do"
    parity(CODE, f"edited latents, {which}", out, golden(NAME)[f"{case}.out"])


@pytest.mark.parametrize("case", SD3 + FLUX)
def test_states_of_each_step(case, parity):
    """The state after each step is the result of a sampler that ends there."""
    data, config = golden(NAME), cases(NAME)[case]
    method, found = method_for(case), []
    levels = schedule_of(case).levels(method.T, method.spacing)[-method.n_max - 1 :]
    edits = config["n_max"] - config["n_min"]
    for stop in sorted({1, 2, edits // 2, edits}):
        noise = RecordedNoise(draws(case)[: stop * config["n_avg"]])
        out = flowedit(image(case), *sides(case), levels[: stop + 1], noise, n_avg=config["n_avg"])
        found.append((stop, packed(out) if case in FLUX else out))
        assert not noise.draws
    for stop, out in found:
        parity(CODE, "states after some steps", out, data[f"{case}.zt_edit"][stop - 1])


@pytest.mark.parametrize("case", ["sd3.c", "flux.c"])
def test_the_last_steps_start_from_the_edited_image_noised_once(case, parity):
    data, method = golden(NAME), method_for(case)
    level = schedule_of(case).levels(method.T, method.spacing)[-method.n_min - 1]
    z = data[f"{case}.zt_edit"][-1]
    z, x0 = (unpacked(z) if case in FLUX else z), image(case)
    start = q_sample(x0, level, draws(case)[-1]) + z - x0
    parity(CODE, "start of the last steps", packed(start) if case in FLUX else start, data[f"{case}.xt_tar"][0])


@pytest.mark.parametrize("T", [1, 2, 28, 50])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_scheduler_spacing_is_that_of_diffusers(T, shift):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(T)
    levels = FlowSchedule(shift).levels(T, "scheduler")
    assert len(levels) == T + 1
    ours = torch.tensor([[level.a, level.b, level.t] for level in levels], dtype=torch.float64)
    assert (ours[:, 1] - scheduler.sigmas.double()).abs().max() < 2e-7
    assert (ours[:-1, 2] - scheduler.timesteps.double()).abs().max() < 2e-4
    assert (ours[:, 0] + ours[:, 1]).equal(torch.ones(T + 1, dtype=torch.float64))


def test_tables_of_the_published_grids():
    data, facts = golden(NAME), configs()["facts"]
    for steps in (28, 50):
        ours = torch.tensor([level.b for level in FlowSchedule(3.0).levels(steps, "scheduler")])
        assert (ours - data[f"table.sd3_{steps}.sigmas"]).abs().max() < 2e-7
    for size in (512, 768, 1024):
        shift = math.exp(facts[f"flux_{size}"]["mu"])
        ours = torch.tensor([level.b for level in FlowSchedule(shift).levels(28)])
        assert (ours - data[f"table.flux_28_{size}.sigmas"]).abs().max() < 3e-7


def test_published_settings_start_where_the_official_code_does():
    """SD3: n_max 33 of 50 starts at sigma 0.850. FLUX at 1024²: n_max 24 of 28 starts at 0.950."""
    assert FlowSchedule(3.0).levels(50, "scheduler")[-34].b == pytest.approx(0.850, abs=1e-3)
    assert FlowSchedule(math.exp(1.15)).levels(28)[-25].b == pytest.approx(0.950, abs=1e-3)
