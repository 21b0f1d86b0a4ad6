"""Train the autoencoder of pets from seeds, in diffusers' layout.

    python scripts/train_pets_vae.py vae       the autoencoder
    python scripts/train_pets_vae.py decoder   more of its decoder; its latents stay as they are
    python scripts/train_pets_vae.py           both

A training that was stopped continues from its last checkpoint in ~/.cache/cyclediff/training.
"""

import json
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from safetensors.torch import load_file
from torch import Tensor, nn
from train_one import train_one, train_parts
from train_pets import WEIGHTS, write_card
from train_pets_text import CHANNELS, FACTOR, MODEL, SEEDS, SIZE, dataset


def train_vae(steps: int = 5500, batch: int = 16, lr: float = 2e-3) -> None:
    """Train the autoencoder on quarters of pictures and, at the end, on whole ones."""
    generator = torch.Generator().manual_seed(SEEDS["vae"])
    images, _ = dataset(SEEDS["text"])
    torch.manual_seed(SEEDS["vae"])
    make: Any = AutoencoderKL  # diffusers annotates tuples of one
    vae = make(
        sample_size=SIZE, latent_channels=CHANNELS, block_out_channels=(24, 32, 40), layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3, norm_num_groups=2,
        mid_block_add_attention=False,
    )  # fmt: skip

    def loss(number: int) -> Tensor:
        x = images[torch.randint(len(images), (batch,), generator=generator)].float() / 127.5 - 1
        top, left, side = window(number, generator)
        x = x[: batch * SIZE // FACTOR // side // 2, :, top * FACTOR :, left * FACTOR :]
        x = x[:, :, : side * FACTOR, : side * FACTOR]
        posterior: Any = vae.encode(x).latent_dist
        z = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=generator)
        return reconstruction_loss(vae.decode(z).sample, x) + 3e-4 * posterior.kl().mean() / z[0].numel()

    ema, record = train_one("vae", vae, loss, steps, lr, generator)
    network: Any = ema
    with torch.no_grad():
        some = images[:: len(images) // 512].float() / 127.5 - 1
        scale = 1 / network.encode(some).latent_dist.sample(generator).std().item()
    network.register_to_config(scaling_factor=scale)
    write_vae(network, images, record | {"scaling_factor": scale})


def train_decoder(steps: int = 12_000, batch: int = 16, lr: float = 1e-3) -> None:
    """Train the decoder further, on what the encoder gives, so that models of its latents stay as they are."""
    generator = torch.Generator().manual_seed(SEEDS["decoder"])
    images, _ = dataset(SEEDS["text"])
    config: Any = AutoencoderKL.load_config(MODEL / "vae")
    vae: Any = AutoencoderKL.from_config(config)  # from_pretrained would write the place of its folder into the new one
    state = load_file(MODEL / "vae" / "diffusion_pytorch_model.safetensors")
    vae.load_state_dict({key: value.float() for key, value in state.items()})
    with torch.no_grad():
        codes = [vae.encode(x.float() / 127.5 - 1).latent_dist for x in images.split(200)]
        mean, std = (torch.cat([getattr(code, name) for code in codes]) for name in ("mean", "std"))
    decoder = nn.ModuleDict({"post_quant_conv": vae.post_quant_conv, "decoder": vae.decoder})

    def loss(number: int) -> Tensor:
        top, left, side = window(number, generator)
        rows = torch.randint(len(images), (batch * SIZE // FACTOR // side // 2,), generator=generator)
        x, mean_x, std_x = images[rows].float() / 127.5 - 1, mean[rows], std[rows]
        x = x[:, :, top * FACTOR : (top + side) * FACTOR, left * FACTOR : (left + side) * FACTOR]
        z = mean_x + std_x * torch.randn(mean_x.shape, generator=generator)
        z = z[:, :, top : top + side, left : left + side]
        return reconstruction_loss(decoder["decoder"](decoder["post_quant_conv"](z)), x)

    ema, record = train_one("decoder", decoder, loss, steps, lr, generator)
    vae.post_quant_conv, vae.decoder = ema["post_quant_conv"], ema["decoder"]
    card = json.loads((WEIGHTS / "vae.json").read_text())
    more = {"decoder_" + key: record[key] for key in ("steps", "loss", "seconds")}
    write_vae(vae, images, {key: card[key] for key in ("steps", "loss", "seconds", "scaling_factor")} | more)


def window(number: int, generator: torch.Generator) -> tuple[int, int, int]:
    """Top, left and side of what a step sees, in latents: cheap quarters, and the whole for normalisation."""
    whole = SIZE // FACTOR
    if number % 2:
        return 0, 0, whole
    top, left = torch.randint(whole // 2 + 1, (2,), generator=generator).tolist()
    return top, left, whole // 2


def reconstruction_loss(out: Tensor, x: Tensor) -> Tensor:
    """Of decoded images: pixels, edges, and the colours of 8×8 patches, which normalisation makes slow to learn."""
    edges = sum((out.diff(dim=d) - x.diff(dim=d)).abs().mean() for d in (2, 3))
    flat = F.avg_pool2d(out - x, 8).abs().mean()
    return (out - x).abs().mean() + 4 * (out - x).square().mean() + 0.3 * edges + 2 * flat


def write_vae(vae: Any, images: Tensor, record: dict[str, Any]) -> None:
    """Write the autoencoder as float16, and its card with the PSNR of 512 images."""
    with torch.no_grad():
        some = images[:: len(images) // 512].float() / 127.5 - 1
        error = (vae.decode(vae.encode(some).latent_dist.mode()).sample.clamp(-1, 1) - some).square().mean()
    record |= {"psnr": round(-10 * (error / 4).log10().item(), 2)}
    vae.half().save_pretrained(MODEL / "vae")
    write_card("vae", MODEL / "vae" / "diffusion_pytorch_model.safetensors", SEEDS["vae"], vae, record)


if __name__ == "__main__":
    train_parts(__doc__ or "", {"vae": train_vae, "decoder": train_decoder})
