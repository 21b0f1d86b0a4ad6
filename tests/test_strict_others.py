"""Folders of networks on pixels, and of latent diffusion: loaded as strictly as Stable Diffusion's."""

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

from cyclediff.errors import UserError
from cyclediff.models import load_text
from cyclediff.models.load import load_diffusers
from cyclediff.models.load_text import load_text_to_image

from .test_strict_loading import SCHEDULER, configure, rewrite, shard, with_nan, without
from .test_untrusted_input import sentence
from .tiny_sd import latent_diffusion, stable_diffusion


def _pixel(path, **more):
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    network = UNet2DModel(
        **{"sample_size": 16, "block_out_channels": (32, 32), "attention_head_dim": 8} | blocks | more
    )
    DDPMPipeline(network, DDPMScheduler()).save_pretrained(path)
    return path


PLAIN = {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2}
PIXEL = {
    "plain blocks": (
        lambda f: configure(f, "unet/config.json", **PLAIN),
        r"net/unet do not fit its config.json: 50 unexpected \(down_blocks.1.attentions.0.",
    ),
    "missing": (lambda f: rewrite(f, "unet", without("conv_in.weight")), r"net/unet .* 1 missing \(conv_in.weight\)"),
    "nan": (lambda f: rewrite(f, "unet", with_nan("conv_out.bias")), r"net/unet holds NaN or Inf in conv_out.bias"),
    "no size": (lambda f: configure(f, "unet/config.json", sample_size=None), r"must state sample_size as one whole"),
    "classes": (lambda f: configure(f, "unet/config.json", num_class_embeds=3), r"\(num_class_embeds: 3\); choose an"),
    "sample": (lambda f: configure(f, SCHEDULER, prediction_type="sample"), "predicts sample; the models here predict"),
    "unknown": (lambda f: configure(f, "unet/config.json", rope=3), r"diffusers' UNet2DModel does not know: rope; get"),
    "latents of 3 channels": (
        lambda f: configure(f, "model_index.json", _class_name="LDMPipeline"),
        r"is a LDMPipeline; models on pixels are one of DDPMPipeline, DDIMPipeline, PNDMPipeline",
    ),
    "overflow": (
        lambda f: rewrite(f, "unet", lambda s: {k: 1e20 * v if "conv" in k else v for k, v in s.items()}),
        "gives NaN or Inf for a grey image; get it again",
    ),
}


@pytest.mark.parametrize("name", PIXEL)
def test_pixel_folders(name, tmp_path):
    spoil, message = PIXEL[name]
    folder = _pixel(tmp_path / "net")
    assert load_diffusers(str(folder)).size == 16
    spoil(folder)
    load_diffusers.cache_clear()
    with pytest.raises(UserError, match=message) as refusal:
        load_diffusers(str(folder))
    sentence(refusal.value)


def test_a_variance_of_another_type(tmp_path):
    folder = _pixel(tmp_path / "net", out_channels=6)
    configure(folder, SCHEDULER, variance_type="learned")
    with pytest.raises(UserError, match="predicts a variance of the type learned; the models here know learned_range"):
        load_diffusers(str(folder))
    configure(folder, SCHEDULER, variance_type="learned_range")
    assert load_diffusers(str(folder)).size == 16


def test_latent_diffusion_is_as_strict(tmp_path):
    folder = latent_diffusion(tmp_path / "ldm")
    rewrite(folder, "bert", without("to_logits.bias"))
    with pytest.raises(UserError, match=r"ldm/bert do not fit its config.json: 1 missing \(to_logits.bias\)"):
        load_text_to_image(str(folder))


def test_a_vocabulary_that_was_cut(tmp_path):
    folder = latent_diffusion(tmp_path / "ldm")
    assert load_text_to_image(str(folder)).size == 32
    (folder / "tokenizer/tokenizer.json").unlink(missing_ok=True)
    (folder / "tokenizer/vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\ncat\ndog\n")
    load_text._LOADED.clear()
    with pytest.raises(UserError, match="ldm/tokenizer never makes 5 of the text encoder's 13 tokens; get its files"):
        load_text_to_image(str(folder))


def test_loading_shards_prints_nothing(tmp_path, capfd):
    folder = stable_diffusion(tmp_path / "sd")
    shard(folder, "unet")
    capfd.readouterr()
    load_text_to_image(str(folder))
    assert capfd.readouterr() == ("", "")
