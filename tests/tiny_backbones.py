"""Tiny random folders of SDXL, SD 3 and FLUX in diffusers' layout."""

import json
import string
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import Unigram
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from .tiny_sd import LENGTH, TOKENIZER, scheduler

WIDTH, SECOND, POOLED = 16, 24, 8
OF_TRANSFORMERS = (
    "CLIPTextModel", "CLIPTextModelWithProjection", "T5EncoderModel", "CLIPTokenizer", "T5TokenizerFast",
)  # fmt: skip


def clip(folder: Path, number: str, width: int, projected: bool, pad: str | None = None) -> None:
    """A CLIP text encoder and the tokenizer of pets; `pad` is the token that texts are padded with."""
    tokenizer = CLIPTokenizer.from_pretrained(TOKENIZER)
    size = len(tokenizer)
    config = CLIPTextConfig(
        vocab_size=size, hidden_size=width, intermediate_size=width, num_hidden_layers=3, num_attention_heads=2,
        max_position_embeddings=LENGTH, bos_token_id=size - 2, eos_token_id=size - 1, pad_token_id=size - 1,
        projection_dim=POOLED,
    )  # fmt: skip
    text = (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)
    with torch.no_grad():
        for p in text.parameters():
            p.mul_(2)  # so that two prompts differ clearly
    text.save_pretrained(folder / f"text_encoder{number}")
    own = folder / f"tokenizer{number}"
    own.mkdir(parents=True)
    for part in TOKENIZER.iterdir():
        (own / part.name).write_bytes(part.read_bytes())
    if pad:
        settings = json.loads((own / "tokenizer_config.json").read_text())
        (own / "tokenizer_config.json").write_text(json.dumps(settings | {"pad_token": pad}))


def t5(folder: Path, number: str, width: int) -> None:
    """T5's encoder and a tokenizer of letters."""
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    vocabulary = [*special, *((letter, -3.0) for letter in string.ascii_letters)]
    tokens = Tokenizer(Unigram(vocabulary, unk_id=2))
    tokens.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokens.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tokens.post_processor = processors.TemplateProcessing(single=["$A", "</s>"], special_tokens=[("</s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokens, eos_token="</s>", unk_token="<unk>", pad_token="<pad>", model_max_length=512
    )
    own = folder / f"tokenizer{number}"
    tokenizer.save_pretrained(own)
    settings = json.loads((own / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "T5Tokenizer", "extra_ids": 0}
    (own / "tokenizer_config.json").write_text(json.dumps(settings))
    config = T5Config(
        vocab_size=len(vocabulary) + 4, d_model=width, d_kv=8, d_ff=32, num_layers=2, num_heads=2,
        feed_forward_proj="gated-gelu", tie_word_embeddings=False, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    T5EncoderModel(config).save_pretrained(folder / f"text_encoder{number}")


def vae(scaling: float, shift: float | None = None, **more) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(16, 16, 16), layers_per_block=1, latent_channels=4, norm_num_groups=8, sample_size=32,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3, scaling_factor=scaling,
        shift_factor=shift, **more,
    )  # fmt: skip


def index(folder: Path, name: str, parts: dict[str, str | None], **more) -> Path:
    found = {"_class_name": name, **more}
    for part, cls in parts.items():
        found[part] = [None, None] if cls is None else ["transformers" if cls in OF_TRANSFORMERS else "diffusers", cls]
    (folder / "model_index.json").write_text(json.dumps(found))
    return folder


def sdxl(folder: Path, force_zeros: bool = True, **more) -> Path:
    torch.manual_seed(0)
    clip(folder, "", WIDTH, projected=False)
    clip(folder, "_2", SECOND, projected=True, pad="!")
    UNet2DConditionModel(
        sample_size=8, block_out_channels=(32, 32), layers_per_block=1, cross_attention_dim=WIDTH + SECOND,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=4, norm_num_groups=8, addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=POOLED + 6 * 8,
    ).save_pretrained(folder / "unet")  # fmt: skip
    vae(0.13025, **more).save_pretrained(folder / "vae")
    scheduler().save_pretrained(folder / "scheduler")
    parts = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "scheduler": "DDIMScheduler"}
    parts |= {"text_encoder": "CLIPTextModel", "text_encoder_2": "CLIPTextModelWithProjection"}
    parts |= {"tokenizer": "CLIPTokenizer", "tokenizer_2": "CLIPTokenizer"}
    parts |= {"image_encoder": None, "feature_extractor": None}
    return index(folder, "StableDiffusionXLPipeline", parts, force_zeros_for_empty_prompt=force_zeros)


def sd3(folder: Path, with_t5: bool = True, newer: bool = False) -> Path:
    """SD 3, or with `newer` SD 3.5, which normalises queries and keys and has a second attention of the image."""
    torch.manual_seed(0)
    clip(folder, "", WIDTH, projected=True)
    clip(folder, "_2", SECOND, projected=True, pad="!")
    width = WIDTH + SECOND + 8
    if with_t5:
        t5(folder, "_3", width)
    more = {"qk_norm": "rms_norm", "dual_attention_layers": (0,)} if newer else {}
    SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8,
        num_attention_heads=4, joint_attention_dim=width, caption_projection_dim=32, pooled_projection_dim=2 * POOLED,
        pos_embed_max_size=8, **more,
    ).save_pretrained(folder / "transformer")  # fmt: skip
    vae(1.5305, 0.0609).save_pretrained(folder / "vae")
    FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(folder / "scheduler")
    parts = {"transformer": "SD3Transformer2DModel", "vae": "AutoencoderKL"}
    parts |= {"scheduler": "FlowMatchEulerDiscreteScheduler"}
    parts |= {f"text_encoder{n}": "CLIPTextModelWithProjection" for n in ("", "_2")}
    parts |= {f"tokenizer{n}": "CLIPTokenizer" for n in ("", "_2")}
    parts |= {"text_encoder_3": "T5EncoderModel" if with_t5 else None}
    parts |= {"tokenizer_3": "T5TokenizerFast" if with_t5 else None}
    return index(folder, "StableDiffusion3Pipeline", parts)


def flux(folder: Path, guided: bool = True) -> Path:
    """FLUX.1 dev, or without `guided` schnell."""
    torch.manual_seed(0)
    clip(folder, "", WIDTH, projected=False)
    t5(folder, "_2", SECOND)
    FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=SECOND, pooled_projection_dim=WIDTH, guidance_embeds=guided, axes_dims_rope=(4, 6, 6),
    ).save_pretrained(folder / "transformer")  # fmt: skip
    vae(0.3611, 0.1159).save_pretrained(folder / "vae")
    FlowMatchEulerDiscreteScheduler(
        shift=3.0 if guided else 1.0, use_dynamic_shifting=guided, base_shift=0.5, max_shift=1.15
    ).save_pretrained(folder / "scheduler")
    parts = {"transformer": "FluxTransformer2DModel", "vae": "AutoencoderKL"}
    parts |= {"scheduler": "FlowMatchEulerDiscreteScheduler", "text_encoder": "CLIPTextModel"}
    parts |= {"text_encoder_2": "T5EncoderModel", "tokenizer": "CLIPTokenizer", "tokenizer_2": "T5TokenizerFast"}
    return index(folder, "FluxPipeline", parts)


MAKERS = {
    "sdxl": sdxl,
    "sdxl_with_empty_text": lambda folder: sdxl(folder, force_zeros=False),
    "sd3": sd3,
    "sd3_without_t5": lambda folder: sd3(folder, with_t5=False),
    "sd35": lambda folder: sd3(folder, newer=True),
    "flux_dev": flux,
    "flux_schnell": lambda folder: flux(folder, guided=False),
}
