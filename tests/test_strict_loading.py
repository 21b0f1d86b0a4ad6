"""Folders in diffusers' layout: every tensor is used and every fact is read, or one sentence says what is wrong."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

from cyclediff.errors import UserError
from cyclediff.models.load_text import load_text_to_image

from .test_untrusted_input import sentence
from .tiny_sd import stable_diffusion


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return stable_diffusion(tmp_path_factory.mktemp("whole") / "sd")


@pytest.fixture
def folder(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "sd"))


def rewrite(folder, part, change):
    """Change the tensors of a part."""
    (file,) = (folder / part).glob("*.safetensors")
    save_file({key: value.contiguous() for key, value in change(load_file(file)).items()}, file, {"format": "pt"})


def configure(folder, file, **values):
    """Change a configuration; None removes a key."""
    path = folder / file
    content = json.loads(path.read_text())
    for key, value in values.items():
        content[key] = value
        if value is ...:
            del content[key]
    path.write_text(json.dumps(content))


def without(*names):
    return lambda state: {key: value for key, value in state.items() if not any(name in key for name in names)}


def prefixed(prefix):
    return lambda state: {prefix + key: value for key, value in state.items()}


def with_more(**more):
    return lambda state: {**state, **more}


def with_nan(key):
    return lambda state: {**state, key: torch.full_like(state[key], float("nan"))}


LEFT = torch.ones(2)
SCHEDULER = "scheduler/scheduler_config.json"
FAULTS = {
    "module.": (lambda f: rewrite(f, "text_encoder", prefixed("module.")), r"36 missing .*; take 'module\.'"),
    "_orig_mod.": (lambda f: rewrite(f, "text_encoder", prefixed("_orig_mod.")), r"take '_orig_mod\.' off its names"),
    "unet module.": (lambda f: rewrite(f, "unet", prefixed("module.")), r"sd/unet do not fit .* take 'module\.'"),
    "no fc1": (
        lambda f: rewrite(f, "text_encoder", without("layers.1.mlp.fc1.bias")),
        r"sd/text_encoder do not fit its config.json: 1 missing \([\w.]*layers.1.mlp.fc1.bias\); get it again",
    ),
    "no conv_in": (
        lambda f: rewrite(f, "unet", without("conv_in.weight")),
        r"weights in .*sd/unet do not fit its config.json: 1 missing \(conv_in.weight\); get it again",
    ),
    "no attn2.to_k": (
        lambda f: rewrite(f, "unet", lambda s: {k: v for k, v in s.items() if not re.match("up.*attn2.to_k", k)}),
        r"sd/unet do not fit its config.json: 2 missing \(up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k",
    ),
    "left over": (lambda f: rewrite(f, "unet", with_more(foo=LEFT)), r"sd/unet .* 1 unexpected \(foo\)"),
    "left over in the text encoder": (
        lambda f: rewrite(f, "text_encoder", with_more(foo=LEFT)),
        r"sd/text_encoder .* 1 unexpected \(foo\)",
    ),
    "shape": (
        lambda f: rewrite(f, "vae", with_more(**{"quant_conv.bias": torch.ones(3)})),
        r"sd/vae .* 1 of another shape \(quant_conv.bias\)",
    ),
    "nan": (
        lambda f: rewrite(f, "vae", with_nan("decoder.conv_out.bias")),
        r"sd/vae holds NaN or Inf in decoder.conv_out.bias; the file is damaged, get it again",
    ),
    "no tokenizer": (lambda f: shutil.rmtree(f / "tokenizer"), r"tokenizer|complete folder"),
    "no vocabulary": (
        lambda f: [path.unlink() for path in (f / "tokenizer").iterdir() if path.name != "tokenizer_config.json"],
        r"tokenizer|complete folder",
    ),
    "other vocabulary": (
        lambda f: [
            (f / "tokenizer/tokenizer.json").unlink(missing_ok=True),
            (f / "tokenizer/vocab.json").write_text('{"<|startoftext|>": 0, "<|endoftext|>": 1}'),
            (f / "tokenizer/merges.txt").write_text("#version: 0.2\n"),
        ],
        r"tokenizer makes the same tokens of 'a cat' and 'a dog'; get its files again|complete folder",
    ),
    "no merges": (
        lambda f: (f / "tokenizer/merges.txt").write_text("#version: 0.2\n"),
        r"tokenizer never makes 77 of the text encoder's 591 tokens; get its files again",
    ),
    "half of the merges": (lambda f: _half(f / "tokenizer/merges.txt"), r"tokenizer never makes 39 of the text"),
    "one number": (
        lambda f: configure(f, "tokenizer/vocab.json", **{"cat</w>": 5}),
        r"tokenizer gives several words one number; get its files again",
    ),
    "a number beyond the embedding": (
        lambda f: configure(f, "tokenizer/vocab.json", **{"cat</w>": 5000}),
        r"tokens of 5001 kinds, and the text encoder reads 24 of 591",
    ),
    "padding": (
        lambda f: (f / "tokenizer/tokenizer_config.json").unlink(),
        r"tokenizer_config.json is not there, and it says how texts are padded; get the tokenizer's files again",
    ),
    "many words": (
        lambda f: [
            configure(f, "text_encoder/config.json", vocab_size=300),
            rewrite(f, "text_encoder", lambda s: {k: v[:300] if "token_emb" in k else v for k, v in s.items()}),
        ],
        r"tokens of \d+ kinds, and the text encoder reads 24 of 300; get the tokenizer that belongs to it",
    ),
    "long": (
        lambda f: configure(f, "tokenizer/tokenizer_config.json", model_max_length=77),
        r"makes up to 77 tokens of \d+ kinds, and the text encoder reads 24 of",
    ),
    "no size": (lambda f: configure(f, "unet/config.json", sample_size=None), r"sample_size as one .* states None"),
    "two sizes": (lambda f: configure(f, "unet/config.json", sample_size=[8, 4]), r"number; it states \[8, 4\]"),
    "class": (
        lambda f: configure(f, "unet/config.json", num_class_embeds=7),
        r"needs a condition that is not given here \(num_class_embeds: 7\)",
    ),
    "sdxl": (
        lambda f: configure(f, "unet/config.json", addition_embed_type="text_time"),
        r"needs a condition that is not given here \(addition_embed_type: text_time\)",
    ),
    "width": (
        lambda f: _other_width(f),
        r"reads texts of 16 numbers a token, and its text encoder gives 32; get the parts that belong together",
    ),
    "unknown setting": (
        lambda f: configure(f, "unet/config.json", rope_theta=1e4),
        r"sd/unet/config.json has settings that diffusers' UNet2DConditionModel does not know: rope_theta; get a newer",
    ),
    "unknown setting of the codec": (
        lambda f: configure(f, "vae/config.json", whitened=True),
        r"sd/vae/config.json has settings that diffusers' AutoencoderKL does not know: whitened",
    ),
    "whitened latents": (
        lambda f: configure(f, "vae/config.json", latents_mean=[0.1] * 4, latents_std=[2.0] * 4),
        r"has a codec with latents_mean or latents_std; the models here have none",
    ),
    "no pipeline": (
        lambda f: (f / "model_index.json").write_text("{}"),
        r"sd is of no class; the models here are one of StableDiffusionPipeline",
    ),
    "other class": (
        lambda f: configure(f, "unet/config.json", _class_name="UNet3DConditionModel"),
        r"sd/unet is a UNet3DConditionModel; a UNet2DConditionModel belongs there",
    ),
    "shift": (lambda f: configure(f, "vae/config.json", shift_factor=0.1), r"the shift 0.1; the models here have"),
    "no beta_start": (lambda f: configure(f, SCHEDULER, beta_start=...), r"sd does not state beta_start; add"),
    "LCM": (
        lambda f: configure(f, SCHEDULER, _class_name="LCMScheduler"),
        r"is a LCMScheduler, whose noise levels are not known here",
    ),
    "flow with betas": (
        lambda f: configure(f, SCHEDULER, _class_name="FlowMatchEulerDiscreteScheduler"),
        r"has settings that are not known here: beta_end, beta_schedule",
    ),
    "flow sigmas": (
        lambda f: configure(f, SCHEDULER, _class_name="UniPCMultistepScheduler", use_flow_sigmas=True),
        r"sets use_flow_sigmas, which models here do not have",
    ),
    "continuous times": (
        lambda f: configure(f, SCHEDULER, _class_name="EulerDiscreteScheduler", timestep_type="continuous"),
        r"gives its network continuous times; choose a model with discrete timesteps",
    ),
    "betas": (lambda f: configure(f, SCHEDULER, beta_schedule="sigmoid"), r"beta_schedule sigmoid, which is not"),
    "unknown": (lambda f: configure(f, SCHEDULER, shifted=1), r"are not known here: shifted; remove those"),
    "zero snr": (
        lambda f: configure(f, SCHEDULER, rescale_betas_zero_snr=True),
        r"sets rescale_betas_zero_snr with epsilon: without a signal",
    ),
    "lfs": (
        lambda f: next((f / "vae").glob("*.safetensors")).write_text("version https://git-lfs.github.com/spec/v1\n"),
        r"diffusion_pytorch_model.safetensors is a pointer of git-lfs, not weights; run `git lfs pull`",
    ),
    "html": (
        lambda f: next((f / "vae").glob("*.safetensors")).write_text("<!DOCTYPE html><html></html>"),
        r"diffusion_pytorch_model.safetensors is a web page, not weights",
    ),
    "json": (
        lambda f: next((f / "unet").glob("*.safetensors")).write_text('{"error": "Entry not found"}'),
        r"diffusion_pytorch_model.safetensors is JSON, not weights",
    ),
    "cut": (
        lambda f: _cut(next((f / "text_encoder").glob("*.safetensors"))),
        r"text_encoder/model.safetensors is truncated or damaged; get it again",
    ),
    "twice": (
        lambda f: _beside_shards(f, "unet"),
        r"sd/unet holds its weights more than once \(diffusion_pytorch_model-\*-of-\d+.safetensors, "
        r"diffusion_pytorch_model.safetensors\); keep those that are meant",
    ),
    "fp16 only": (
        lambda f: _rename(f, "unet", "fp16"),
        r"sd/unet holds its weights in the variant fp16 only; ask for it: variant=fp16 in the model's configuration",
    ),
    "no weights": (
        lambda f: next((f / "unet").glob("*.safetensors")).unlink(),
        r"sd/unet holds no safetensors; DiffusionPipeline.from_pretrained\(FOLDER\)",
    ),
}  # fmt: skip


def _other_width(folder):
    configure(folder, "unet/config.json", cross_attention_dim=16)
    rewrite(
        folder, "unet", lambda s: {k: v[:, :16] if re.search("attn2.to_[kv]", k) else v for k, v in s.items()}
    )  # fmt: skip


def _half(path):
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[: len(lines) // 2]))


def _beside_shards(folder, part):
    (whole,) = (folder / part).glob("*.safetensors")
    content = whole.read_bytes()
    shard(folder, part)
    whole.write_bytes(content)


def _cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def _rename(folder, part, variant):
    (file,) = (folder / part).glob("*.safetensors")
    file.rename(file.with_name(f"{file.name.partition('.')[0]}.{variant}.safetensors"))


@pytest.mark.parametrize("name", FAULTS)
def test_what_is_wrong_gives_a_sentence(name, folder):
    spoil, message = FAULTS[name]
    spoil(folder)
    with pytest.raises(UserError, match=message) as refusal:
        load_text_to_image(str(folder))
    sentence(refusal.value)


def embedded(folder, **more):
    return load_text_to_image(str(folder), **more).condition(["a cat"]).context.tokens


def shard(folder, part):
    from diffusers import UNet2DConditionModel

    UNet2DConditionModel.from_pretrained(folder / part, low_cpu_mem_usage=False).save_pretrained(
        folder / "new", max_shard_size="100KB"
    )
    shutil.rmtree(folder / part)
    (folder / "new").rename(folder / part)
    assert len(list((folder / part).glob("*.safetensors"))) > 3


def _named(state):
    return {f"text_model.{key.removeprefix('text_model.')}": value for key, value in state.items()}


OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def _old_names(state):
    found = {}
    for key, value in state.items():
        for new, old in OLD_NAMES.items():
            key = key.replace(f".{new}.", f".{old}.")
        found[key] = value
    assert found.keys() != state.keys()
    return found


POSITIONS = {"text_model.embeddings.position_ids": torch.arange(24)[None]}
IMAGE_SIDE = {"vision_model.embeddings.class_embedding": LEFT, "visual_projection.weight": torch.ones(2, 2)}
FINE = {
    "published names": lambda f: rewrite(f, "text_encoder", _named),
    "position_ids": lambda f: rewrite(f, "text_encoder", lambda s: {**_named(s), **POSITIONS}),
    "whole CLIP": lambda f: rewrite(
        f, "text_encoder", lambda s: {**_named(s), **IMAGE_SIDE, "logit_scale": torch.ones(())}
    ),
    "old VAE names": lambda f: rewrite(f, "vae", _old_names),
    "shards": lambda f: shard(f, "unet"),
    "counters of diffusers' EMAModel": lambda f: configure(f, "unet/config.json", decay=0.999, optimization_step=9),
    "a setting that is off": lambda f: configure(f, "vae/config.json", whitened=False, later=None),
    "no model_max_length": lambda f: configure(f, "tokenizer/tokenizer_config.json", model_max_length=...),
    "one size twice": lambda f: configure(f, "unet/config.json", sample_size=[8, 8]),
    "PNDM as Stable Diffusion 1.4 has it": lambda f: configure(
        f, SCHEDULER, _class_name="PNDMScheduler", skip_prk_steps=True, set_alpha_to_one=False, prediction_type=...
    ),
}


@pytest.mark.parametrize("name", FINE)
def test_what_must_keep_working(name, whole, folder):
    FINE[name](folder)
    ours, theirs = load_text_to_image(str(folder)), load_text_to_image(str(whole))
    x, level = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1)), theirs.schedule.at(400)
    seen, wanted = (model.condition(["a cat"])(x, level).eps for model in (ours, theirs))
    assert torch.allclose(seen, wanted, atol=1e-6)
    assert torch.allclose(ours.decode(x), theirs.decode(x), atol=1e-6)
    assert (ours.length, ours.size) == (theirs.length, 32)


def test_half_on_disk_and_in_a_variant(whole, folder):
    """16 bits on disk are read as float32, under the name that the hub gives such files."""
    rounded = Path(shutil.copytree(whole, folder.parent / "rounded"))
    for part in ("unet", "vae", "text_encoder"):
        rewrite(rounded, part, lambda s: {key: value.half().float() for key, value in s.items()})
        rewrite(folder, part, lambda s: {key: value.half() for key, value in s.items()})
        _rename(folder, part, "fp16")
    assert embedded(folder, variant="fp16").equal(embedded(rounded))
    assert not embedded(rounded).equal(embedded(whole))
    with pytest.raises(UserError, match="in the variant fp16 only"):
        embedded(folder, variant="bf16")


def test_the_libraries_say_what_they_did_not_use(folder):
    """All of the above stands on this: loading info of both libraries names what is missing and left over."""
    rewrite(folder, "vae", lambda s: {**without("quant_conv.bias")(s), "foo": LEFT})
    _, info = AutoencoderKL.from_pretrained(
        folder, subfolder="vae", low_cpu_mem_usage=False, output_loading_info=True
    )  # fmt: skip
    assert {"quant_conv.bias", "post_quant_conv.bias"} == set(info["missing_keys"])
    assert list(info["unexpected_keys"]) == ["foo"]
    rewrite(folder, "text_encoder", with_more(foo=LEFT))
    assert list(
        CLIPTextModel.from_pretrained(folder, subfolder="text_encoder", output_loading_info=True)[1]["unexpected_keys"]
    ) == ["foo"]
