"""SDXL, SD 3, SD 3.5 and FLUX against diffusers' own pipelines under the same noise, on small random folders."""

import warnings
from dataclasses import replace

import pytest
import torch
from diffusers import FluxImg2ImgPipeline, StableDiffusion3Img2ImgPipeline, StableDiffusionXLImg2ImgPipeline

from baselines.sdedit import SDEdit
from cyclediff.cyclediffusion import CycleDiffusion
from cyclediff.diffusion.noise import Noise
from cyclediff.diffusion.schedule import FlowSchedule
from cyclediff.models.load_text import load_text_to_image

from .test_text_to_image import GlobalNoise
from .tiny_backbones import MAKERS

SOURCE, TARGET = "a small ginger cat on a teal background", "a small blue dog on a teal background"
IMAGE = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
PIPELINES = {
    "sdxl": StableDiffusionXLImg2ImgPipeline,
    "sdxl_with_empty_text": StableDiffusionXLImg2ImgPipeline,
    "sd3": StableDiffusion3Img2ImgPipeline,
    "sd3_without_t5": StableDiffusion3Img2ImgPipeline,
    "sd35": StableDiffusion3Img2ImgPipeline,
    "flux_dev": FluxImg2ImgPipeline,
    "flux_schnell": FluxImg2ImgPipeline,
}
GUIDED_ROWS = {"sdxl": 2, "sd3": 2, "sd35": 2, "flux_dev": 1, "flux_schnell": 1}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: make(tmp_path_factory.mktemp(name)) for name, make in MAKERS.items()}


def load(folder, size: int = 32):
    with warnings.catch_warnings(action="ignore"):  # of a folder without T5
        return load_text_to_image(str(folder)).for_size(size)


def condition(model, *arguments):
    with warnings.catch_warnings(action="ignore"):  # of schnell, which knows no guidance
        return model.condition(*arguments)


@pytest.mark.parametrize(("strength", "guidance"), [(0.6, 4.0), (1.0, 1.0)])
@pytest.mark.parametrize("name", PIPELINES)
def test_sdedit_equals_diffusers_img2img(folders, name, strength, guidance, parity):
    """Encoder, prompts, guidance, levels, network and decoder at once."""
    steps, size = 10, 48 if strength == 1 else 32
    absent = {"text_encoder_3": None, "tokenizer_3": None} if name == "sd3_without_t5" else {}
    pipe = PIPELINES[name].from_pretrained(folders[name], local_files_only=True, **absent)
    pipe.set_progress_bar_config(disable=True)
    image = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(2))
    more = {"eta": 0.0} if "sdxl" in name else {"height": size, "width": size}
    if name == "flux_schnell":
        more |= {"max_sequence_length": 256}  # diffusers' documentation of it
    theirs = pipe(
        TARGET, image=image, strength=strength, num_inference_steps=steps, guidance_scale=guidance, output_type="pt",
        generator=torch.Generator().manual_seed(8), **more,
    ).images  # fmt: skip
    model, noise = load(folders[name], size), GlobalNoise(8)
    x0 = model.encode(2 * image - 1, noise)
    spacing = "latent" if "sdxl" in name else "scheduler"
    method = SDEdit(T=steps, t0=round(steps * strength), spacing=spacing, variance="none")
    ours = (model.decode(method(x0, None, condition(model, [TARGET], guidance), noise)) + 1) / 2
    parity("diffusers", f"{PIPELINES[name].__name__}, images", ours, theirs)


@pytest.mark.parametrize("name", GUIDED_ROWS)
def test_rows_and_the_same_prompt(folders, name):
    """CycleDiffusion takes 4 rows a step where both prompts are guided, 2 where the network is given the scale.

    Under one prompt and scale the latent comes back, and under another prompt it changes.
    """
    seen, model = [], load(folders[name])

    def counting(xt, t, context, edit):
        seen.append(len(xt))
        return model.network(xt, t, context, edit)

    watched, noise = replace(model, network=counting), Noise(1, ["a", "b"])
    x0, method = model.encode(IMAGE, noise), CycleDiffusion(T=6, T_es=5, eta=0.1, spacing="latent")
    source, target, same = (condition(watched, [text] * 2, 3.5) for text in (SOURCE, TARGET, SOURCE))
    other = method(x0, source, target, noise)
    assert seen == [2 * 2 * GUIDED_ROWS[name]] * 5
    assert (other - x0).abs().max() > 0.01
    assert (method(x0, source, same, noise) - x0).abs().max() < 1e-4 * max(1, x0.abs().max())


@pytest.mark.parametrize("name", GUIDED_ROWS)
def test_a_batch_equals_single_images(folders, name):
    model, texts, scales = load(folders[name]), [SOURCE, TARGET], [1.0, 3.0]
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(4))
    level = model.schedule.at(600)
    both = condition(model, texts, scales)(x, level).x0
    alone = [condition(model, [texts[i]], [scales[i]])(x[i : i + 1], level).x0 for i in range(2)]
    assert torch.allclose(both, torch.cat(alone), atol=1e-4)


def test_the_scale_reaches_flux_dev_and_not_schnell(folders):
    dev, schnell = load(folders["flux_dev"]), load(folders["flux_schnell"])
    x, level = torch.randn(1, 4, 8, 8), dev.schedule.at(600)
    seen = [dev.condition([TARGET], scale)(x, level).eps for scale in (1.0, 5.5)]
    assert (seen[0] - seen[1]).abs().max() > 1e-3
    with pytest.warns(UserWarning, match=r"FLUX\.1 schnell knows no guidance; its scales do nothing"):
        guided = schnell.condition([TARGET], 5.5)(x, level).eps
    with warnings.catch_warnings(action="error"):
        assert schnell.condition([TARGET])(x, level).eps.equal(guided)


def test_levels_of_flux_follow_the_size(folders):
    """Mu is 0.5 at 256 tokens and 1.15 at 4096; here a token is 8×8 pixels, so 128² and 512²."""
    model, x = load_text_to_image(str(folders["flux_dev"])), torch.zeros(1, 3, 128, 128)
    for size, mu in ((128, 0.5), (512, 1.15)):
        schedule = model.for_size(size).schedule
        assert isinstance(schedule, FlowSchedule)
        assert schedule.shift == pytest.approx(torch.tensor(mu).exp().item(), rel=1e-6)
    with pytest.raises(ValueError, match=r"are for images of 512 pixels, and these are 128×128; use for_size"):
        model.for_size(512).encode(x, Noise(1, ["a"]))
    assert load_text_to_image(str(folders["flux_schnell"])).for_size(512).schedule.shift == 1


def test_half_precision(folders):
    """float32 latents; SDXL's codec and T5's `wo` stay in float32 with float16, whose range they leave."""
    for name in ("sdxl", "flux_dev"):
        half = load_text_to_image(str(folders[name]), dtype="float16").for_size(32)
        x0 = half.encode(IMAGE, Noise(1, ["a", "b"]))
        out = half.condition([SOURCE, TARGET], 3.0)(x0, half.schedule.at(500)).x0
        assert x0.dtype == out.dtype == half.decode(out).dtype == torch.float32
        assert out.isfinite().all()
        assert half.module.dtype == torch.float16
        assert half.vae.dtype == (torch.float32 if name == "sdxl" else torch.float16)
        whole = load(folders[name]).condition([SOURCE, TARGET], 3.0)(x0, half.schedule.at(500)).x0
        assert 0 < (out - whole).square().mean().sqrt() < 0.05 * whole.std()
    t5 = half.encoders[1].network
    wide = {key for key, value in t5.state_dict().items() if value.dtype == torch.float32}
    assert wide
    assert all(".wo." in key for key in wide)
    assert load_text_to_image(str(folders["sdxl"]), dtype="bfloat16").vae.dtype == torch.bfloat16
