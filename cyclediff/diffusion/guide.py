"""What leads an image to a text or to another image's style: everything that is known of them before the first step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from cyclediff.diffusion.clip_views import Embedded, ImageTower, agreement, target_embedding, whole
from cyclediff.diffusion.vit_losses import FeatureNetwork, self_similarity


@dataclass(frozen=True)
class Guide:
    """Features of the images of a batch; None for what does not guide them.

    Args:
        keys: of the source, (n, tokens, d).
        similarity: `self_similarity` of them.
        cls: of the source, (n, d).
        clip: of each CLIP, where the features should point, (n, d).
        agreed: how well the source agrees with the text, (n,).
        target: the target image, in the shape of the source.
        target_cls: its CLS token, (n, d).
        face: features of the source's face, (n, d).
    """

    keys: Tensor
    similarity: Tensor
    cls: Tensor
    clip: tuple[Tensor, ...] | None = None
    agreed: Tensor | None = None
    target: Tensor | None = None
    target_cls: Tensor | None = None
    face: Tensor | None = None

    def rows(self, rows: Sequence[int]) -> "Guide":
        """Of some of the images."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        taken = {key: value[rows] for key, value in values.items() if isinstance(value, Tensor)}
        return replace(self, **taken, clip=self.clip and tuple(part[rows] for part in self.clip))


@torch.no_grad()
def guide_of(
    x0: Tensor,
    vit: FeatureNetwork,
    clips: Sequence[ImageTower] = (),
    texts: Sequence[Embedded] | None = None,
    target: Tensor | None = None,
    identity: Callable[[Tensor], Tensor] | None = None,
) -> Guide:
    """What guides source images; each network is evaluated once for each image.

    Args:
        x0: source images (n, 3, h, w) in [-1, 1].
        vit: the vision transformer.
        clips: one or more CLIPs, with texts.
        texts: of each CLIP, the texts' features.
        target: target images, in place of texts.
        identity: of faces: images (n, 3, h, w) in [-1, 1] → features of length 1 (n, d).

    Raises:
        ValueError: if there are neither texts nor target images, or these are of another size.
    """
    if (texts is None) == (target is None):
        raise ValueError("an image is led by a text or by a target image; give one of them")
    if target is not None and target.shape != x0.shape:
        got, wanted = ("×".join(map(str, image.shape)) for image in (target, x0))
        raise ValueError(f"target images must have the number and size of their sources, {wanted}; got {got}")
    keys, cls = vit(x0)
    guide = Guide(keys, self_similarity(keys), cls, face=None if identity is None else identity(x0))
    if target is not None:
        return replace(guide, target=target, target_cls=vit(target).cls)
    shown = (x0 + 1) / 2
    clip = tuple(
        target_embedding(text.target, text.source, one.images(whole(shown, one.size)))
        for one, text in zip(clips, texts or (), strict=True)
    )
    return replace(guide, clip=clip, agreed=agreement(clips, clip, shown))
