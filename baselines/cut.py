"""CUT and FastCUT (arXiv 2007.15651): a generator that keeps what patches of an image show, and changes their domain.

Patches of the result shall be recognised among those of the source at other places (PatchNCE), and a discriminator
shall not tell the result from images of the target domain. Every random number comes from a given generator.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cyclediff.diffusion.denoiser import Denoiser
from cyclediff.diffusion.noise import NoiseSource

Update = Callable[[str, Tensor], None]  # (optimiser, loss): minimise a scalar by the optimiser of that name, now
LEAST = 2  # images of a domain


@dataclass(frozen=True)
class Training:
    """How a generator is trained; the defaults are CUT's, and `FASTCUT` has those of FastCUT.

    Args:
        epochs: with the whole learning rate (n_epochs).
        decay_epochs: after them, in which it falls linearly (n_epochs_decay).
        batch: images of each domain in a step (batch_size).
        lambda_gan: weight of the discriminator.
        lambda_nce: weight of PatchNCE.
        identity: also compare images of the target domain with what the generator makes of them (nce_idt).
        flip: mirror what the generator sees in half of the steps (flip_equivariance).
        layers: of the generator, whose outputs are compared (nce_layers).
        patches: of each layer, at most (num_patches).
        temperature: of PatchNCE (nce_T).
        all_negatives: take negatives from the whole batch (nce_includes_all_negatives_from_minibatch).
        lr: learning rate of all networks.
        beta1: of Adam.
        beta2: of Adam.
        average: decay of a moving average of the generator, which is then what is kept; 0 for none, as officially.
        width: of the generator (ngf).
        blocks: of the generator (netG).
        discriminator_width: see `width` (ndf).
        discriminator_layers: convolutions that halve the size (n_layers_D).
        projection: length of a patch's vector (netF_nc).
        load_size: to which images are resized.
        crop_size: what is cut out of them; images are resized to it while the learning rate falls.
    """

    epochs: int = 200
    decay_epochs: int = 200
    batch: int = 1
    lambda_gan: float = 1.0
    lambda_nce: float = 1.0
    identity: bool = True
    flip: bool = False
    layers: Sequence[int] = (0, 4, 8, 12, 16)
    patches: int = 256
    temperature: float = 0.07
    all_negatives: bool = False
    lr: float = 2e-4
    beta1: float = 0.5
    beta2: float = 0.999
    average: float = 0.0
    width: int = 64
    blocks: int = 9
    discriminator_width: int = 64
    discriminator_layers: int = 3
    projection: int = 256
    load_size: int = 286
    crop_size: int = 256

    def __post_init__(self):
        whole = ("batch", "width", "discriminator_width", "discriminator_layers", "projection")
        for key, least in (
            {"epochs": 1, "decay_epochs": 0, "blocks": 0, "patches": 2} | dict.fromkeys(whole, 1)
        ).items():
            if getattr(self, key) < least:
                raise ValueError(f"training.{key} must be at least {least}; got {getattr(self, key)}")
        for key in ("lambda_gan", "lambda_nce"):
            if getattr(self, key) < 0:
                raise ValueError(f"training.{key} must be at least 0; got {getattr(self, key)}")
        if self.temperature <= 0 or self.lr <= 0:
            raise ValueError(
                f"training.temperature and training.lr must be above 0; got {self.temperature} and {self.lr}"
            )
        for key in ("beta1", "beta2", "average"):
            if not 0 <= getattr(self, key) < 1:
                raise ValueError(f"training.{key} must be in [0, 1); got {getattr(self, key)}")
        if self.crop_size % 4 or not 16 <= self.crop_size <= self.load_size:
            raise ValueError(
                "training.crop_size must be a multiple of 4 from 16 to training.load_size = "
                f"{self.load_size}; got {self.crop_size}"
            )
        if not self.layers or min(self.layers) < 0:
            raise ValueError(f"training.layers must be numbers of the generator's layers; got {list(self.layers)}")


FASTCUT = Training(epochs=150, decay_epochs=50, lambda_nce=10.0, identity=False, flip=True)


class Networks(NamedTuple):
    """What is trained; `cyclediff.models.cut_networks` in a run.

    Args:
        generator: with `with_features` and `features`.
        discriminator: images → scores.
        projections: (features, positions) → vectors of length 1, (n, p, d) of each layer.
    """

    generator: Any
    discriminator: Callable[[Tensor], Tensor]
    projections: Callable[[Sequence[Tensor], Sequence[Tensor]], list[Tensor]]


@dataclass(frozen=True)
class CUT:
    """A trained generator as a method; it draws no noise.

    Args:
        generator: images (n, 3, h, w) in [-1, 1] → images of the target domain, same shape.
        training: how it was, or is to be, trained.
        name: the stem of its file in conf/method.
    """

    generator: Callable[[Tensor], Tensor]
    training: Training = field(default_factory=Training)
    name: str = "cut"
    needs = frozenset({"generator"})
    conditions = frozenset({"none"})
    starts_at = None
    inverts = False
    reconstructs = None
    takes_region = False
    num_steps = 1

    def __call__(self, x0: Tensor, source: Denoiser | None, target: Denoiser | None, noise: NoiseSource) -> Tensor:
        """Translate x0 (n, 3, h, w), whose sides are multiples of 4."""
        if x0.shape[2] % 4 or x0.shape[3] % 4:
            raise ValueError(
                "the generator of CUT halves the size twice and doubles it twice, so sides must be multiples of 4; got "
                f"{x0.shape[2]}×{x0.shape[3]}"
            )
        return self.generator(x0)


def patch_nce(q: Tensor, k: Tensor, temperature: float, across: bool = False) -> Tensor:
    """Cross entropy of finding each patch at its own place in the source (Eq. 3), (n, p).

    The other places are the negatives. The place itself stands among them with a cosine of -10, as in the official
    code, so it has no weight there.

    Args:
        q: vectors of the result's patches (n, p, d), of length 1.
        k: those of the source at the same places; no gradient flows to them.
        temperature: of the softmax.
        across: take the negatives from all images of the batch, not from the patch's own.
    """
    n, p, d = q.shape
    k = k.detach()
    if across:
        q, k = q.reshape(1, n * p, d), k.reshape(1, n * p, d)
    cosines = q @ k.mT
    positive = cosines.diagonal(dim1=1, dim2=2)[..., None]
    itself = torch.eye(cosines.shape[1], dtype=torch.bool, device=q.device)
    logits = torch.cat((positive, cosines.masked_fill(itself, -10.0)), dim=2) / temperature
    return -logits.log_softmax(dim=2)[:, :, 0].reshape(n, p)


def lsgan(scores: Tensor, real: bool) -> Tensor:
    """The mean square of how far scores are from 1 for a real image, and from 0 for another (arXiv 1611.04076)."""
    return (scores - float(real)).square().mean()


def draw_positions(features: Sequence[Tensor], count: int, rng: torch.Generator) -> list[Tensor]:
    """Places in the rows of each layer's map (n, c, h, w): int64 (p,), different ones, at most `count`.

    They are the same for all images of a batch, as in the official code.
    """
    return [
        torch.randperm(feature.shape[2] * feature.shape[3], generator=rng, device=rng.device)[:count].to(feature.device)
        for feature in features
    ]


def training_step(
    a: Tensor,
    b: Tensor,
    networks: Networks,
    how: Training,
    rng: torch.Generator,
    update: Update,
    positions: Sequence[Sequence[Tensor]] | None = None,
    flipped: bool | None = None,
) -> dict[str, Tensor]:
    """One step of training: first the discriminator, then generator and heads, by the discriminator of now.

    The features of the source are those of the pass that makes the result. The official code evaluates the generator
    again for them, with the same numbers.

    Args:
        a: images of the source domain (n, 3, h, w) in [-1, 1].
        b: images of the target domain, same shape.
        networks: what is trained.
        how: the settings.
        rng: what is drawn from: the flip, then positions for a, then for b.
        update: called with "discriminator", then with "generator", whose optimiser has the heads' parameters too.
        positions: in each layer, for a and (with `identity`) for b; None draws them.
        flipped: whether the generator sees mirrored images; None draws it where `how` flips.

    Returns:
        Losses without their weights: D_real, D_fake, GAN, NCE and, with `identity`, NCE_identity.
    """
    n = len(a)
    given = torch.cat((a, b)) if how.identity else a
    if flipped is None:
        flipped = how.flip and torch.rand((), generator=rng, device=rng.device).item() < 0.5
    made, seen = networks.generator.with_features(given.flip(3) if flipped else given, how.layers)
    with torch.no_grad():
        keys = networks.generator.features(given, how.layers) if flipped else [feature.detach() for feature in seen]
    fake, real = networks.discriminator(torch.cat((made[:n].detach(), b))).split(n)
    d_fake, d_real = lsgan(fake, real=False), lsgan(real, real=True)
    update("discriminator", 0.5 * (d_fake + d_real))

    gan = lsgan(networks.discriminator(made[:n]), real=True)
    queries = networks.generator.features(made, how.layers)
    queries = [feature.flip(3) for feature in queries] if flipped else queries
    parts = [slice(0, n), slice(n, 2 * n)] if how.identity else [slice(0, n)]
    chosen = positions or [draw_positions(keys, how.patches, rng) for _ in parts]
    nce = [
        _nce([q[part] for q in queries], [k[part] for k in keys], networks, how, places)
        for part, places in zip(parts, chosen, strict=True)
    ]
    update("generator", how.lambda_gan * gan + how.lambda_nce * torch.stack(nce).mean())
    losses = {"D_real": d_real, "D_fake": d_fake, "GAN": gan, "NCE": nce[0]}
    return {key: value.detach() for key, value in (losses | ({"NCE_identity": nce[1]} if how.identity else {})).items()}


def _nce(
    queries: Sequence[Tensor], keys: Sequence[Tensor], networks: Networks, how: Training, places: Sequence[Tensor]
) -> Tensor:
    with torch.no_grad():
        k = networks.projections(keys, places)
    q = networks.projections(queries, places)
    found = [patch_nce(one, other, how.temperature, how.all_negatives).mean() for one, other in zip(q, k, strict=True)]
    return torch.stack(found).mean()


def steps_per_epoch(how: Training, count_a: int, count_b: int) -> int:
    """Steps of an epoch, which is as long as the larger domain.

    Raises:
        ValueError: if a domain has too few images.
    """
    for domain, count in (("source", count_a), ("target", count_b)):
        if count < LEAST:
            raise ValueError(f"a domain needs at least {LEAST} images; the {domain} has {count}")
    if max(count_a, count_b) < how.batch:
        raise ValueError(f"training.batch must be at most the {max(count_a, count_b)} images; got {how.batch}")
    return max(count_a, count_b) // how.batch


def total_steps(how: Training, per_epoch: int) -> int:
    """Steps of a training."""
    return (how.epochs + how.decay_epochs) * per_epoch


def rate(step: int, per_epoch: int, how: Training) -> float:
    """Factor of the learning rate at a step: 1, then linearly to almost 0, the same for a whole epoch."""
    return 1 - max(0, step // per_epoch + 1 - how.epochs) / (how.decay_epochs + 1)


def crops(step: int, per_epoch: int, how: Training) -> bool:
    """Whether images are cut at a step; while the learning rate falls they are resized to `crop_size` whole."""
    return step // per_epoch < how.epochs


def batch_of(step: int, how: Training, count_a: int, count_b: int, seed: int) -> tuple[Tensor, Tensor]:
    """Which images of each domain a step takes, int64 (batch,) each: the same at every start of a training.

    In an epoch each image of the larger domain comes once, in a new order. Those of the target are drawn.
    """
    per_epoch, longer = steps_per_epoch(how, count_a, count_b), max(count_a, count_b)
    epoch, place = divmod(step, per_epoch)
    rng = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order, drawn = torch.randperm(longer, generator=rng), torch.randint(count_b, (longer,), generator=rng)
    rows = slice(place * how.batch, (place + 1) * how.batch)
    return order[rows] % count_a, drawn[rows]


def augment(images: Tensor, size: int, rng: torch.Generator) -> Tensor:
    """A random cut of each image, mirrored in half of the cases.

    Args:
        images: uint8 (n, 3, h, w), with sides from `size` up; of that size they are not cut.
        size: height and width of the cut.
        rng: what is drawn from.

    Returns:
        Float (n, 3, size, size) in [-1, 1].
    """
    high, wide = images.shape[2] - size, images.shape[3] - size
    tops = torch.randint(high + 1, (len(images),), generator=rng).tolist()
    lefts = torch.randint(wide + 1, (len(images),), generator=rng).tolist()
    mirrored = (torch.rand(len(images), generator=rng) < 0.5).tolist()
    cut = [x[:, i : i + size, j : j + size] for x, i, j in zip(images, tops, lefts, strict=True)]
    return torch.stack([x.flip(2) if m else x for x, m in zip(cut, mirrored, strict=True)]).float() / 127.5 - 1
