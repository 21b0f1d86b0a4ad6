"""A tiny random Stable Diffusion folder and a tiny random latent diffusion folder, in diffusers' layout."""

import json
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from transformers import BertTokenizer, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

TOKENIZER = Path(__file__).parents[1] / "cyclediff/pets/weights/text_to_image/tokenizer"
WIDTH, LENGTH = 32, 24


def unet(sample_size: int = 8, **more) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=sample_size, block_out_channels=(32, 32), layers_per_block=1, cross_attention_dim=WIDTH,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=4, norm_num_groups=8, **more,
    )  # fmt: skip


def vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(16, 16, 16), layers_per_block=1, latent_channels=4, norm_num_groups=8, sample_size=32,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3, scaling_factor=0.18215,
    )  # fmt: skip


def scheduler(prediction: str = "epsilon", **more) -> DDIMScheduler:
    settings = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
    settings |= {"set_alpha_to_one": False, "steps_offset": 1, "prediction_type": prediction}
    return DDIMScheduler(**{**settings, **more})


def stable_diffusion(folder: Path, prediction: str = "epsilon", **more) -> Path:
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(TOKENIZER)
    size = len(tokenizer)
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=size, hidden_size=WIDTH, intermediate_size=WIDTH, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=LENGTH, bos_token_id=size - 2, eos_token_id=size - 1, pad_token_id=size - 1,
        )
    )  # fmt: skip
    for part in TOKENIZER.iterdir():
        (folder / "tokenizer").mkdir(parents=True, exist_ok=True)
        (folder / "tokenizer" / part.name).write_bytes(part.read_bytes())
    with torch.no_grad():
        for p in text.parameters():
            p.mul_(5)  # so that two prompts differ clearly
    text.save_pretrained(folder / "text_encoder")
    unet().save_pretrained(folder / "unet")
    vae().save_pretrained(folder / "vae")
    scheduler(prediction, **more).save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
    }
    index |= {"vae": ["diffusers", "AutoencoderKL"], "unet": ["diffusers", "UNet2DConditionModel"]}
    index |= {"text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"]}
    index |= {"scheduler": ["diffusers", "DDIMScheduler"], "requires_safety_checker": False}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def latent_diffusion(folder: Path) -> Path:
    from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel

    torch.manual_seed(0)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "dog", "photo", "##s", "of", "red", "."]
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "tokenizer" / "vocab.txt").write_text("\n".join(words))
    BertTokenizer.from_pretrained(folder / "tokenizer").save_pretrained(folder / "tokenizer")
    config = LDMBertConfig(
        vocab_size=len(words), max_position_embeddings=77, encoder_layers=2, encoder_ffn_dim=WIDTH,
        encoder_attention_heads=2, head_dim=16, d_model=WIDTH, pad_token_id=0,
    )  # fmt: skip
    LDMBertModel(config).save_pretrained(folder / "bert")
    unet().save_pretrained(folder / "unet")
    vae().save_pretrained(folder / "vqvae")
    scheduler().save_pretrained(folder / "scheduler")
    index = {"_class_name": "LDMTextToImagePipeline", "vqvae": ["diffusers", "AutoencoderKL"]}
    index |= {"unet": ["diffusers", "UNet2DConditionModel"], "bert": ["latent_diffusion", "LDMBertModel"]}
    index |= {"tokenizer": ["transformers", "BertTokenizer"], "scheduler": ["diffusers", "DDIMScheduler"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder
