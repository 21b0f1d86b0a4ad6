"""The tiny networks of the second set of official numbers: a vision transformer, and stand-ins for CLIPs."""

from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from cyclediff.diffusion.vit_losses import Features
from cyclediff.models.vit import ViT, features_of

from .nets import golden, state_of

NETS = "guided_tiny_nets"
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def vit_network(**changed) -> VisionTransformer:
    shape = {"img_size": 14, "patch_size": 2, "embed_dim": 32, "depth": 12, "num_heads": 4} | changed
    network = VisionTransformer(**shape, num_classes=0, dynamic_img_size=True)
    network.pretrained_cfg = IMAGENET
    return network


@cache
def tiny_vit() -> ViT:
    network = vit_network()
    network.load_state_dict(state_of(NETS, "vit."))
    return features_of(network, "tiny")


@dataclass(frozen=True, eq=False)
class TinyClip:
    """A linear map of a normalised picture; a text's features are drawn from its letters."""

    name: str
    size: int

    def images(self, views: Tensor) -> Tensor:
        weight, bias = (golden(NETS)[f"clip.{self.name}.{key}"].to(views) for key in "Wb")
        return normalized(views).flatten(1) @ weight.T + bias

    def texts(self, texts) -> Tensor:
        dim = len(golden(NETS)[f"clip.{self.name}.b"])
        seeds = [sum(map(ord, text)) for text in texts]
        return torch.stack([torch.randn(dim, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def normalized(views: Tensor) -> Tensor:
    mean, std = (views.new_tensor(values)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
    return (views - mean) / std


CLIPS = (TinyClip("tinyA", 14), TinyClip("tinyB", 12))


def smooth_features(image):
    """Features of a map that is nearly linear: two random networks after each other amplify rounding."""
    patches = F.unfold(image, 4, stride=4).mT
    weight = torch.randn(48, 8, generator=torch.Generator().manual_seed(4)).to(image) / 7
    return Features((patches @ weight).tanh(), patches.mean(dim=1) @ weight)
