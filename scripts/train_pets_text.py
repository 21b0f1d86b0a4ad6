"""Train the text-to-image model and the CLIP of pets from seeds, in the formats of the real ones.

    python scripts/train_pets_text.py unet     text encoder and UNet together; needs the autoencoder (train_pets_vae.py)
    python scripts/train_pets_text.py more     the UNet further; train_pets_flow.py starts from the one before
    python scripts/train_pets_text.py clip     image and text tower
    python scripts/train_pets_text.py          all of it, one after another

A training that was stopped continues from its last checkpoint in ~/.cache/cyclediff/training.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor, nn
from train_one import CHECKPOINTS, train_one, train_parts
from train_pets import WEIGHTS, render_all, write_card
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from cyclediff.diffusion.schedule import alpha_bar_from_betas, scaled_linear_betas
from cyclediff.pets.captions import ANIMAL, SHORT, TEMPLATES, TRAITS, Description, sample_edits
from cyclediff.pets.render import SPECIES, sample_factors

SEEDS = {"vae": 55, "decoder": 99, "text": 66, "more": 67, "clip": 77}  # the data are those of "text"
SIZE, FACTOR, CHANNELS, LENGTH, WIDTH = 64, 4, 4, 24, 64
IMAGES = 10_000  # of each species
DROPPED = 0.1  # share of captions that are empty, for guidance (arXiv 2207.12598)
MODEL, CLIP = WEIGHTS / "text_to_image", WEIGHTS / "clip"
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}


def vocabulary() -> list[str]:
    """Every word of the captions, and a comma."""
    words = {word for trait in TRAITS for word in trait.words} | set(SPECIES) | {",", "photo", "the", "with", "and"}
    names = {f"{{{name}}}" for name in (ANIMAL, *(trait.name for trait in TRAITS))}
    return sorted(words | {w for t in TEMPLATES + SHORT for w in t.replace(",", " ").split() if w not in names})


def write_tokenizer(folder: Path) -> None:
    """A CLIP tokenizer in which every word of the captions is one token, and any other text is spelt in bytes."""
    words = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(vocab_size=10_000, end_of_word_suffix="</w>", show_progress=False)
    words.train_from_iterator([" ".join(vocabulary())] * 100, trainer)
    content = json.loads(words.to_str())["model"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = dict.fromkeys([*letters, *(f"{letter}</w>" for letter in letters), *content["vocab"]])
    vocab = {token: i for i, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in content["merges"])]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")
    names = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>"}
    names |= {"unk_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": LENGTH, **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def dataset(seed: int) -> tuple[Tensor, list[Description]]:
    """Rendered cats and dogs, uint8 (2 IMAGES, 3, 64, 64), and what they show; kept on disk."""
    factors = sample_factors(2 * IMAGES, torch.Generator().manual_seed(seed))
    kinds = [species for species in SPECIES for _ in range(IMAGES)]
    cache = CHECKPOINTS / f"pets_images_{seed}.pt"
    if not cache.exists():
        CHECKPOINTS.mkdir(parents=True, exist_ok=True)
        images = [render_all(part, kind) for part, kind in zip(factors.split(IMAGES), SPECIES, strict=True)]
        torch.save(torch.cat(images), cache)
    return torch.load(cache, weights_only=True), [Description(f, kind) for f, kind in zip(factors, kinds, strict=True)]


def pairs(seed: int, count: int = 6000) -> tuple[Tensor, list[str]]:
    """Pictures before `count` edits and after, uint8 (2 count, 3, 64, 64), with their captions; kept on disk."""
    generator = torch.Generator().manual_seed(seed)
    edits = sample_edits(sample_factors(count, generator), generator)
    shown = [edit.source for edit in edits] + [edit.target for edit in edits]
    cache = CHECKPOINTS / f"pets_pairs_{seed}.pt"
    if not cache.exists():
        CHECKPOINTS.mkdir(parents=True, exist_ok=True)
        images = torch.empty(len(shown), 3, SIZE, SIZE, dtype=torch.uint8)
        for kind in SPECIES:
            rows = [i for i, description in enumerate(shown) if description.species == kind]
            images[rows] = render_all(torch.stack([shown[i].factors for i in rows]), kind)
        torch.save(images, cache)
    return torch.load(cache, weights_only=True), [edit.source_text for edit in edits] + [
        edit.target_text for edit in edits
    ]


def captions(some: list[Description], generator: torch.Generator) -> list[str]:
    """A caption of each, mostly in full."""
    kinds = torch.randint(2 * len(TEMPLATES) + len(SHORT), (len(some),), generator=generator).tolist()
    every = (*TEMPLATES, *TEMPLATES, *SHORT)
    return [description.caption(every[kind]) for description, kind in zip(some, kinds, strict=True)]


class Painter(nn.Module):
    """Text encoder and UNet, trained together as latent diffusion's text-to-image model was (arXiv 2112.10752)."""

    def __init__(self, vocab_size: int):
        super().__init__()
        self.text = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=vocab_size, hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=2,
                num_attention_heads=2, max_position_embeddings=LENGTH, projection_dim=WIDTH, hidden_act="quick_gelu",
                bos_token_id=vocab_size - 2, eos_token_id=vocab_size - 1, pad_token_id=vocab_size - 1,
            )
        )  # fmt: skip
        self.unet = UNet2DConditionModel(
            sample_size=SIZE // FACTOR, in_channels=CHANNELS, out_channels=CHANNELS, layers_per_block=1,
            block_out_channels=(48, 64, 64), norm_num_groups=16, cross_attention_dim=WIDTH, attention_head_dim=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        )  # fmt: skip

    def forward(self, xt: Tensor, t: Tensor, ids: Tensor) -> Tensor:
        """Predict v of x_t under a prompt (arXiv 2202.00512, appendix D)."""
        return self.unet(xt, t, self.text(ids).last_hidden_state).sample


def painter_loss(
    painter: Painter,
    tokenizer: Any,
    latents: Tensor,
    described: list[Description],
    generator: torch.Generator,
    batch: int,
    number: int,
) -> Tensor:
    """Loss of v with min-SNR weights (arXiv 2303.09556, gamma 5), at stratified timesteps; some captions are empty."""
    alpha_bar = alpha_bar_from_betas(scaled_linear_betas())
    rows = torch.randint(len(latents), (batch,), generator=generator)
    texts = captions([described[row] for row in rows.tolist()], generator)
    empty = torch.rand(batch, generator=generator) < DROPPED
    texts = ["" if drop else text for text, drop in zip(texts, empty.tolist(), strict=True)]
    u = (torch.arange(batch) + torch.rand(batch, generator=generator)) / batch
    t = (u * len(alpha_bar)).long()
    level = alpha_bar[t][:, None, None, None].float()
    x0, noise = latents[rows], torch.randn(batch, *latents.shape[1:], generator=generator)
    v = level.sqrt() * noise - (1 - level).sqrt() * x0
    weight = (level / (1 - level)).clamp(max=5) * (1 - level)  # of x0's error, in terms of v's
    seen = painter(level.sqrt() * x0 + (1 - level).sqrt() * noise, t, tokenize(tokenizer, texts))
    return (weight * (seen - v).square()).mean()


def latents_of(images: Tensor) -> Tensor:
    """Latents of images by the shipped autoencoder, scaled."""
    vae: Any = AutoencoderKL.from_pretrained(MODEL / "vae", torch_dtype=torch.float32).requires_grad_(False)
    with torch.no_grad():
        latents = torch.cat([vae.encode(x.float() / 127.5 - 1).latent_dist.mode() for x in images.split(200)])
    return latents * vae.config.scaling_factor


def train_unet(steps: int = 2400, batch: int = 32, lr: float = 1e-3) -> None:
    """Train text encoder and UNet on the autoencoder's latents: v-prediction, min-SNR weights (arXiv 2303.09556)."""
    generator = torch.Generator().manual_seed(SEEDS["text"])
    images, described = dataset(SEEDS["text"])
    images, described = images[::2], described[::2]
    write_tokenizer(MODEL / "tokenizer")
    tokenizer = CLIPTokenizer.from_pretrained(MODEL / "tokenizer")
    latents = latents_of(images)
    torch.manual_seed(SEEDS["text"])
    painter = Painter(len(tokenizer))

    loss = partial(painter_loss, painter, tokenizer, latents, described, generator, batch)
    ema, record = train_one("text_to_image", painter, loss, steps, lr, generator)
    trained: Any = ema
    trained.unet.half().save_pretrained(MODEL / "unet")
    trained.text.half().save_pretrained(MODEL / "text_encoder")
    scheduler = DDIMScheduler(
        **SCHEDULE, prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=False, steps_offset=1
    )
    scheduler.save_pretrained(MODEL / "scheduler")
    parts = {"vae": ("diffusers", "AutoencoderKL"), "unet": ("diffusers", "UNet2DConditionModel")}
    parts |= {"text_encoder": ("transformers", "CLIPTextModel"), "tokenizer": ("transformers", "CLIPTokenizer")}
    parts |= {"scheduler": ("diffusers", "DDIMScheduler"), "safety_checker": (None, None)}
    index = {"_class_name": "StableDiffusionPipeline", "requires_safety_checker": False}
    index |= {"feature_extractor": (None, None), **parts}
    (MODEL / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    file = MODEL / "unet" / "diffusion_pytorch_model.safetensors"
    write_card("text_to_image", file, SEEDS["text"], painter, {"images": len(images), **record})


def finish_unet(steps: int = 8000, batch: int = 32, lr: float = 5e-4) -> None:
    """Train the UNet further on twice as many pictures; the text encoder, which the flow model shares, stays."""
    generator = torch.Generator().manual_seed(SEEDS["more"])
    images, described = dataset(SEEDS["text"])
    tokenizer = CLIPTokenizer.from_pretrained(MODEL / "tokenizer")
    painter: Any = Painter(len(tokenizer))
    for network, file in ((painter.unet, "unet/diffusion_pytorch_model"), (painter.text, "text_encoder/model")):
        state = load_file(MODEL / f"{file}.safetensors")
        network.load_state_dict({key: value.float() for key, value in state.items()})
    painter.text.requires_grad_(False)
    loss = partial(painter_loss, painter, tokenizer, latents_of(images), described, generator, batch)
    ema, record = train_one("text_more", painter, loss, steps, lr, generator)
    ema.unet.half().save_pretrained(MODEL / "unet")
    card = json.loads((WEIGHTS / "text_to_image.json").read_text())
    more = {key: [card[key], record[key]] for key in record}
    file = MODEL / "unet" / "diffusion_pytorch_model.safetensors"
    write_card("text_to_image", file, SEEDS["text"], painter, {"images": [card["images"], len(images)], **more})


def train_clip(steps: int = 3500, batch: int = 128, lr: float = 1e-3) -> None:
    """Train image and text tower contrastively (arXiv 2103.00020) on pictures and captions, in open_clip's format."""
    import open_clip

    write_tokenizer(CLIP)
    vocab_size = len(CLIPTokenizer.from_pretrained(CLIP))
    vision = {"image_size": SIZE, "layers": 3, "width": WIDTH, "head_width": 32, "patch_size": 8, "mlp_ratio": 2.0}
    text = {
        "context_length": LENGTH,
        "vocab_size": vocab_size,
        "width": WIDTH,
        "heads": 2,
        "layers": 2,
        "mlp_ratio": 2.0,
    }
    text |= {"hf_tokenizer_name": "."}
    half = [0.5, 0.5, 0.5]
    prepare = {"mean": half, "std": half, "interpolation": "bicubic", "resize_mode": "shortest"}
    config = {"model_cfg": {"embed_dim": WIDTH, "vision_cfg": vision, "text_cfg": text}, "preprocess_cfg": prepare}
    (CLIP / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
    generator = torch.Generator().manual_seed(SEEDS["clip"])
    images, texts = pairs(SEEDS["clip"])
    torch.manual_seed(SEEDS["clip"])
    clip: Any = open_clip.create_model(f"local-dir:{CLIP}", load_weights=False)
    tokenizer = open_clip.get_tokenizer(f"local-dir:{CLIP}")

    def loss(number: int) -> Tensor:
        rows = torch.randint(len(texts) // 2, (batch // 2,), generator=generator)
        rows = torch.cat((rows, rows + len(texts) // 2))  # both of a pair: each is the other's hardest negative
        ids = tokenizer([texts[row] for row in rows.tolist()])
        picture = images[rows].float() / 127.5 - 1
        seen, read = clip.encode_image(picture, normalize=True), clip.encode_text(ids, normalize=True)
        logits = clip.logit_scale.exp().clamp(max=100) * seen @ read.T
        same = (ids[:, None] == ids[None]).all(2)  # two pictures may have one caption
        target = same / same.sum(1, keepdim=True)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

    ema, record = train_one("clip", clip, loss, steps, lr, generator)
    file = CLIP / "open_clip_model.safetensors"
    save_file({key: value.half().contiguous() for key, value in ema.state_dict().items()}, file)
    write_card("clip", file, SEEDS["clip"], clip, {"images": len(images), **record})


def tokenize(tokenizer: Any, texts: list[str]) -> Tensor:
    """Ids of prompts, padded to the model's length; int64 (n, LENGTH)."""
    return tokenizer(texts, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt").input_ids


if __name__ == "__main__":
    train_parts(__doc__ or "", {"unet": train_unet, "more": finish_unet, "clip": train_clip})
