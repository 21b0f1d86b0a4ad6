"""Text-to-image models: loading, prompts, guidance, and equality with diffusers' pipelines under the same noise."""

import logging
import warnings
from contextlib import ExitStack
from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    CycleDiffusionPipeline,
    DDIMScheduler,
    DiffusionPipeline,
    LDMTextToImagePipeline,
    StableDiffusionImg2ImgPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextModel, CLIPTokenizerFast

from baselines.ddib import DDIB, sample
from baselines.sdedit import SDEdit
from cyclediff.attention_control import AttentionControl
from cyclediff.attention_layers import install
from cyclediff.cyclediffusion import CycleDiffusion
from cyclediff.diffusion.noise import Noise
from cyclediff.errors import UserError
from cyclediff.models.load_text import load_text_to_image
from cyclediff.models.text_to_image import caller, read_prompt

from .nets import RecordedNoise
from .tiny_sd import latent_diffusion, stable_diffusion

SOURCE, TARGET = "a small ginger cat on a teal background", "a small blue dog on a teal background"
KONTEXT = '{"_class_name": "FluxKontextPipeline"}'
SAMPLE = '{"_class_name": "DDIMScheduler", "prediction_type": "sample"}'
IMAGE = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return stable_diffusion(tmp_path_factory.mktemp("sd"))


@pytest.fixture(scope="module")
def model(folder):
    return load_text_to_image(str(folder))


class GlobalNoise:
    """What a pipeline draws from one generator."""

    def __init__(self, seed: int):
        self.generator = torch.Generator().manual_seed(seed)

    def randn_like(self, x):
        return torch.randn(x.shape, generator=self.generator)

    def rows(self, start, stop):
        return self


def pipeline(kind, folder):
    found = kind.from_pretrained(folder, safety_checker=None, local_files_only=True)
    found.set_progress_bar_config(disable=True)
    return found


@pytest.mark.parametrize(("steps", "strength", "kept", "guidance", "source_guidance"), [
    (100, 0.8, 80, 3.0, 1.0), (100, 0.5, 50, 2.0, 1.5), (33, 1.0, 33, 1.0, 1.0),
])  # fmt: skip
def test_cyclediffusion_equals_diffusers(folder, model, steps, strength, kept, guidance, source_guidance, parity):
    pipe = pipeline(CycleDiffusionPipeline, folder)
    theirs = pipe(
        TARGET, SOURCE, image=(IMAGE[:1] + 1) / 2, strength=strength, num_inference_steps=steps,
        guidance_scale=guidance, source_guidance_scale=source_guidance, eta=0.1, output_type="pt",
        generator=torch.Generator().manual_seed(7),
    ).images  # fmt: skip
    noise = GlobalNoise(7)
    x0 = model.encode(IMAGE[:1], noise)
    source, target = model.condition([SOURCE], source_guidance), model.condition([TARGET], guidance)
    method = CycleDiffusion(T=steps, T_es=kept, eta=0.1, spacing="latent")
    ours = (model.decode(method(x0, source, target, noise)) + 1) / 2
    theirs = torch.as_tensor(theirs)
    theirs = theirs if theirs.shape == ours.shape else theirs.permute(0, 3, 1, 2)
    parity("diffusers", "CycleDiffusionPipeline, images", ours, theirs)


@pytest.mark.parametrize(("strength", "kept", "guidance"), [(0.75, 75, 4.0), (0.4, 40, 1.0)])
def test_sdedit_equals_diffusers_img2img(folder, model, strength, kept, guidance, parity):
    pipe = pipeline(StableDiffusionImg2ImgPipeline, folder)
    theirs = pipe(
        TARGET, image=(IMAGE[:1] + 1) / 2, strength=strength, num_inference_steps=100, guidance_scale=guidance, eta=0.0,
        output_type="pt", generator=torch.Generator().manual_seed(8),
    ).images  # fmt: skip
    noise = GlobalNoise(8)
    x0 = model.encode(IMAGE[:1], noise)
    method = SDEdit(T=100, t0=kept, spacing="latent", variance="none")
    ours = (model.decode(method(x0, None, model.condition([TARGET], guidance), noise)) + 1) / 2
    parity("diffusers", "StableDiffusionImg2ImgPipeline with DDIM, images", ours, theirs)


def test_sampling_equals_latent_diffusions_pipeline(tmp_path, parity):
    folder = latent_diffusion(tmp_path / "ldm")
    model = load_text_to_image(str(folder))
    pipe = LDMTextToImagePipeline.from_pretrained(folder, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    xT = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(3))
    theirs = pipe(
        ["a photo of a red cat"], height=32, width=32, num_inference_steps=20, guidance_scale=3.0, eta=0.0, latents=xT,
        output_type="np",
    ).images  # fmt: skip
    denoiser = model.condition(["a photo of a red cat"], 3.0)
    ours = (model.decode(sample(xT, denoiser, model.schedule.levels(20, "latent"))) + 1) / 2
    parity("diffusers", "LDMTextToImagePipeline, images", ours, torch.from_numpy(theirs).permute(0, 3, 1, 2))
    (prompt,) = denoiser.prompts
    assert [prompt.text[begin:end] for begin, end in prompt.spans] == ["", "a", "photo", "of", "a", "red", "cat", ""]


def test_a_batch_of_different_prompts_equals_single_edits(model):
    sources, targets = [SOURCE, "a cat"], [TARGET, "a big dog looking left"]
    method = CycleDiffusion(T=33, T_es=20, eta=0.1, spacing="latent")

    def edit(rows):
        noise = Noise(1, [str(i) for i in rows])
        x0 = model.encode(IMAGE[rows], noise)
        source = model.condition([sources[i] for i in rows], 1.0)
        target = model.condition([targets[i] for i in rows], [[3.0, 1.0][i] for i in rows])
        return method(x0, source, target, noise)

    assert torch.allclose(edit([0, 1]), torch.cat((edit([0]), edit([1]))), atol=1e-4)


def test_rows_of_the_network(model):
    """Guidance 1 costs no row for the empty prompt, guidance 0 none for the prompt."""
    seen = []

    def counting(xt, t, context, edit):
        seen.append(len(xt))
        return model.network(xt, t, context, edit)

    watched = replace(model, network=counting)
    x0 = model.encode(IMAGE, RecordedNoise([torch.zeros(2, 4, 8, 8)]))
    method = CycleDiffusion(T=33, T_es=2, eta=0.1, spacing="latent")
    for source, target, rows in ((1, 1, 4), (1, 3, 6), (2, 3, 8), (0, 0, 4), ((1, 1), (1, 3), 5)):
        seen.clear()
        method(
            x0, watched.condition([SOURCE] * 2, source), watched.condition([TARGET] * 2, target), Noise(1, ["a", "b"])
        )
        assert seen == [rows, rows]


def test_guidance_is_linear(model):
    """eps(w) = (1 - w) eps(0) + w eps(1), in a batch of several scales."""
    xt, t = torch.randn(4, 4, 8, 8), model.schedule.at(300)
    one = xt[:1].expand(4, -1, -1, -1)
    found = model.condition([TARGET] * 4, [0.0, 1.0, 2.5, -1.0])(one, t).eps
    for row, w in ((2, 2.5), (3, -1.0)):
        assert torch.allclose(found[row], (1 - w) * found[0] + w * found[1], atol=1e-5)
    assert torch.allclose(found[1], model.condition([TARGET])(xt[:1], t).eps[0], atol=1e-5)


def test_v_prediction(tmp_path, folder):
    """The same network read as v: eps = a v + b x, x0 = a x - b v (arXiv 2202.00512)."""
    as_v = load_text_to_image(str(stable_diffusion(tmp_path / "v", "v_prediction")))
    as_eps = load_text_to_image(str(folder))
    x = torch.randn(2, 4, 8, 8)
    for t in (10, 700):
        level = as_v.schedule.at(t)
        out, seen = (model.condition([TARGET] * 2)(x, level) for model in (as_eps, as_v))
        assert torch.allclose(seen.eps, level.a * out.eps + level.b * x, atol=1e-5)
        assert torch.allclose(seen.x0, level.a * x - level.b * out.eps, atol=1e-5)


def test_same_prompt_returns_the_latent(model):
    noise = Noise(1, ["a", "b"])
    x0 = model.encode(IMAGE, noise)
    method = CycleDiffusion(T=99, T_es=84, eta=0.1, spacing="latent")
    out = method(x0, model.condition([SOURCE] * 2), model.condition([SOURCE] * 2), noise)
    assert torch.allclose(out, x0, atol=1e-4)


def test_half_precision_weights_keep_float32_latents(folder):
    half = load_text_to_image(str(folder), dtype="bfloat16")
    noise = Noise(1, ["a", "b"])
    x0 = half.encode(IMAGE, noise)
    method = CycleDiffusion(T=20, T_es=12, eta=0.1, spacing="latent")
    out = method(x0, half.condition([SOURCE] * 2), half.condition([TARGET] * 2, 2.0), noise)
    assert x0.dtype == out.dtype == torch.float32
    assert next(iter(half.vae.parameters())).dtype == torch.bfloat16
    whole = load_text_to_image(str(folder))
    noise = Noise(1, ["a", "b"])
    other = method(whole.encode(IMAGE, noise), whole.condition([SOURCE] * 2), whole.condition([TARGET] * 2, 2.0), noise)
    assert 0 < (out - other).square().mean().sqrt() < 0.25 * other.std()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_cast_model_equals_one_loaded_in_that_type(folder, dtype):
    half = load_text_to_image(str(folder), dtype=dtype)
    kind = getattr(torch, dtype)
    unet = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=kind, low_cpu_mem_usage=False)
    vae = AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=kind, low_cpu_mem_usage=False)
    text = CLIPTextModel.from_pretrained(folder / "text_encoder", torch_dtype=kind)
    for part in (unet, vae, text):
        part.eval().requires_grad_(False)
    for part in (unet, vae):
        part.to(memory_format=torch.channels_last)
    install(unet)
    network = caller(unet, kind, torch.channels_last)
    encoder = replace(half.encoders[0], network=text)
    direct = replace(half, network=network, module=unet, vae=vae, encoders=(encoder,), _embedded={})

    def results(model):
        noise = Noise(1, ["a", "b"])
        x0 = model.encode(IMAGE, noise)
        seen = model.condition([SOURCE, TARGET], 2.0)(x0, model.schedule.at(700))
        return x0, *seen, model.decode(seen.x0)

    assert all(ours.equal(theirs) for ours, theirs in zip(results(half), results(direct), strict=True))


def test_a_cast_model_is_the_same_networks(tmp_path):
    whole = load_text_to_image(str(stable_diffusion(tmp_path)))
    before = whole.condition([SOURCE])
    half = whole.cast("bfloat16")
    assert half.module is whole.module
    assert half.vae is whole.vae
    parts = half.module, half.vae, half.encoders[0].network
    assert {p.dtype for part in parts for p in part.parameters()} == {torch.bfloat16}
    assert before.network_id == whole.condition([TARGET]).network_id != half.condition([SOURCE]).network_id
    with pytest.raises(UserError, match="got int8"):
        half.cast("int8")


def test_float32_is_loaded_once_until_it_is_cast(tmp_path):
    folder = stable_diffusion(tmp_path)
    whole = load_text_to_image(str(folder))
    assert load_text_to_image(str(folder)) is whole
    half = load_text_to_image(str(folder), dtype="bfloat16")
    assert half is not load_text_to_image(str(folder), dtype="bfloat16")
    assert half.module is not whole.module
    whole.cast("bfloat16")
    again = load_text_to_image(str(folder))
    assert again is not whole
    assert again.module.dtype == torch.float32


def test_the_commit_of_a_hub_id_reaches_every_part(folder):
    seen = []

    def spy(kind, name):
        real = getattr(kind, name)

        def call(path, *more, revision=None, **settings):
            seen.append((kind.__name__, revision))
            return real(path, *more, **settings)

        return patch.object(kind, name, call)

    loaders = (CLIPTokenizerFast, CLIPTextModel, UNet2DConditionModel, AutoencoderKL)
    with ExitStack() as stack:
        for kind in loaders:
            stack.enter_context(spy(kind, "from_pretrained"))
        for kind in (DiffusionPipeline, DDIMScheduler):
            stack.enter_context(spy(kind, "load_config"))
        load_text_to_image(str(folder), revision="0123abc")
    assert {kind for kind, _ in seen} >= {kind.__name__ for kind in (*loaders, DiffusionPipeline, DDIMScheduler)}
    assert {revision for _, revision in seen} == {"0123abc"}


def test_ddib_between_equal_prompts_converges_to_the_latent(model):
    """DDIM is reversible to first order in the step."""
    x0 = model.encode(IMAGE, RecordedNoise([torch.zeros(2, 4, 8, 8)]))
    same = model.condition([SOURCE] * 2)
    errors = [(DDIB(str(T), False, "latent")(x0, same, same, RecordedNoise([])) - x0).abs().mean() for T in (50, 250)]
    assert errors[1] < errors[0] / 2.5


def test_a_long_prompt_is_cut_with_a_warning(model, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    long = "a small “ginger” cat " * 10
    with pytest.warns(UserWarning, match="the model reads 22 of the") as caught:
        model.condition([long])
    prompt = read_prompt(model.tokenizer, long, model.length)
    assert len(prompt.ids) == model.length
    assert str(caught[0].message).endswith(f"what is cut: {long[prompt.spans[-2][1] :].lstrip()!r}")
    with warnings.catch_warnings(action="error"):
        model.condition(["a small ginger cat"])
    assert not caplog.records  # transformers' own remark, that the network would fail, is not true


@pytest.mark.parametrize("text", [
    "a #1 dog on a hill", "a cafe\u0301 dog on a hill", "a café dog on a hill", "a “cat” dog on a hill",
    "a 犬 dog on a hill", "a Straße dog on a hill", "a λ dog, on a hill", "a  \tcat\u00a0dog on a hill",
])  # fmt: skip
def test_the_weight_of_a_word_is_on_its_tokens(model, text):
    """The tokens that are the word's own ids, wherever the words before it leave it."""
    source, target = (model.condition([t]).prompts for t in ("a cat on a hill", text))
    plan = AttentionControl(mode="refine", weights={"dog": 5.0}).plan(source, target, model.length, 4)
    found = plan.equalizer[0].eq(5).nonzero().flatten().tolist()
    assert plan.equalizer[0].ne(1).nonzero().flatten().tolist() == found
    assert [target[0].ids[position] for position in found] == model.tokenizer("dog").input_ids[1:-1]


@pytest.mark.parametrize(("break_it", "message"), [
    (lambda f: (f / "unet" / "diffusion_pytorch_model.safetensors").unlink(), "holds no safetensors"),
    (lambda f: (f / "model_index.json").unlink(), "no complete folder"),
    (lambda f: (f / "model_index.json").write_text(KONTEXT), "is a FluxKontextPipeline"),
    (lambda f: (f / "scheduler/scheduler_config.json").write_text(SAMPLE), "predicts sample"),
    (lambda f: (f / "vae" / "config.json").unlink(), "no complete folder"),
])  # fmt: skip
def test_broken_folders_get_a_sentence(tmp_path, break_it, message):
    folder = stable_diffusion(tmp_path / "sd")
    break_it(folder)
    with pytest.raises(UserError, match=message) as caught:
        load_text_to_image(str(folder))
    assert "\n" not in str(caught.value)


def test_a_hub_id_without_network(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"task\.model\.path=FOLDER") as caught:
        load_text_to_image("CompVis/stable-diffusion-v1-4")
    assert "\n" not in str(caught.value)


def test_wrong_dtype():
    with pytest.raises(UserError, match="float32, bfloat16, float16; got int8"):
        load_text_to_image("anything", dtype="int8")
