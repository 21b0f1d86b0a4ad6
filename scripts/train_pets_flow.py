"""Train the rectified-flow text-to-image model of pets, beside the diffusion model whose other parts it shares.

    python scripts/train_pets_flow.py

It learns noise - x0 of x_sigma = (1 - sigma) x0 + sigma noise (arXiv 2209.03003, 2403.03206). Autoencoder, tokenizer
and text encoder are those of the shipped diffusion model. The training starts from the UNet that
`train_pets_text.py unet` writes, before `train_pets_text.py more`. One that was stopped continues from its last
checkpoint in ~/.cache/cyclediff/training.
"""

import json
import shutil
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file
from torch import Tensor, nn
from train_one import train_one
from train_pets import WEIGHTS, write_card
from train_pets_text import DROPPED, MODEL, SEEDS, captions, dataset, tokenize
from transformers import CLIPTextModel, CLIPTokenizer

SEED = 88  # of order and noise; the data are those of the diffusion model
FLOW = WEIGHTS / "text_to_image_flow"
TRAIN_TIMESTEPS = 1000  # the network is given 1000 sigma
STEPS = 6000


def shared_parts() -> tuple[Any, Any, Any]:
    """Tokenizer, text encoder and autoencoder of the diffusion model."""
    return (
        CLIPTokenizer.from_pretrained(MODEL / "tokenizer"),
        CLIPTextModel.from_pretrained(MODEL / "text_encoder", torch_dtype=torch.float32).eval().requires_grad_(False),
        AutoencoderKL.from_pretrained(MODEL / "vae", torch_dtype=torch.float32).eval().requires_grad_(False),
    )


def start() -> nn.Module:
    """The diffusion model's UNet, in float32."""
    config: Any = UNet2DConditionModel.load_config(MODEL / "unet")
    network: Any = UNet2DConditionModel.from_config(config)
    state = load_file(MODEL / "unet" / "diffusion_pytorch_model.safetensors")
    network.load_state_dict({key: value.float() for key, value in state.items()})
    return network  # from_pretrained would write the place of its folder into the new one


def train(batch: int = 32, lr: float = 7e-4) -> None:
    """Train the UNet, and write the folder in diffusers' layout."""
    generator = torch.Generator().manual_seed(SEED)
    images, described = dataset(SEEDS["text"])
    tokenizer, text, vae = shared_parts()
    with torch.no_grad():
        latents = torch.cat([vae.encode(x.float() / 127.5 - 1).latent_dist.mode() for x in images.split(200)])
    latents = latents * vae.config.scaling_factor
    unet: Any = start()

    def loss(number: int) -> Tensor:
        rows = torch.randint(len(latents), (batch,), generator=generator)
        texts = captions([described[row] for row in rows.tolist()], generator)
        empty = torch.rand(batch, generator=generator) < DROPPED
        texts = ["" if drop else caption for caption, drop in zip(texts, empty.tolist(), strict=True)]
        with torch.no_grad():
            context = text(tokenize(tokenizer, texts)).last_hidden_state
        sigma = (torch.arange(batch) + torch.rand(batch, generator=generator)) / batch  # one from each part of 0 … 1
        level = sigma[:, None, None, None]
        x0, noise = latents[rows], torch.randn(batch, *latents.shape[1:], generator=generator)
        seen = unet((1 - level) * x0 + level * noise, TRAIN_TIMESTEPS * sigma, context).sample
        return (seen - (noise - x0)).square().mean()

    ema, record = train_one("flow", unet, loss, STEPS, lr, generator)
    for part in ("vae", "text_encoder", "tokenizer"):
        shutil.copytree(MODEL / part, FLOW / part, dirs_exist_ok=True)
    ema.half().save_pretrained(FLOW / "unet")
    FlowMatchEulerDiscreteScheduler(TRAIN_TIMESTEPS, shift=1.0).save_pretrained(FLOW / "scheduler")
    index = json.loads((MODEL / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", "FlowMatchEulerDiscreteScheduler"]
    (FLOW / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    card = {"images": len(images), "starts_from": "text_to_image", **record}
    write_card("text_to_image_flow", FLOW / "unet" / "diffusion_pytorch_model.safetensors", SEED, unet, card)


if __name__ == "__main__":
    train()
