"""The vision transformer of pets: keys know where on the animal a patch lies, the CLS token what is on the image."""

from functools import cache
from typing import Any

import torch
from safetensors.torch import load_file

from cyclediff.models.vit import ViT, features_of
from cyclediff.models.weights import load_weights
from cyclediff.pets.networks import SIZE

PATCH, WIDTH, DEPTH, HEADS = 8, 96, 6, 3


def build_vit() -> Any:
    """The network, without weights: timm's `VisionTransformer` on 8×8 patches of 64×64 pixels."""
    from timm.models.vision_transformer import VisionTransformer

    network: Any = VisionTransformer(
        img_size=SIZE, patch_size=PATCH, embed_dim=WIDTH, depth=DEPTH, num_heads=HEADS, num_classes=0,
        dynamic_img_size=True,
    )  # fmt: skip
    network.pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    return network


@cache
def load_pets_vit(path: str, device: str = "cpu") -> ViT:
    """The shipped network as a network of features; loaded once per process."""
    with torch.device("meta"):
        network = build_vit()
    load_weights(network, load_file(path), path)
    return features_of(network, "the vision transformer of pets", device=device)
