"""DiffuseIT: batches, restarts, evaluations, cuts, colours, and what is refused."""

import math
import warnings
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms import RandomResizedCrop

from baselines.diffuseit import DiffuseIT, Last, losses
from cyclediff.diffusion.clip_views import agreement, cut, draw_cuts, embed, unit, whole
from cyclediff.diffusion.colour import in_colours_of, match_colours, transfer_matrix
from cyclediff.diffusion.guide import guide_of
from cyclediff.diffusion.noise import Noise
from cyclediff.diffusion.schedule import DiffusionSchedule, alpha_bar_from_betas, linear_betas
from cyclediff.diffusion.vit_losses import Features, cls_distance, contrast, self_similarity, structure
from cyclediff.runtime.meter import Meter

from .guided_nets import CLIPS, smooth_features, tiny_vit
from .nets import gaussian_denoiser, tiny_denoiser

IDS = ["a", "b", "c", "d"]
X0 = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 1.6 - 0.8
TARGETS = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(2)) * 2 - 1
TEXTS = [("a cat", "a dog"), ("a cat", "a lion"), ("a fox", "a dog"), ("a cat", "a dog")]
SMALL = {"lambda_ssim": 8.0, "lambda_contra": 2.0, "lambda_dir_cls": 1.0, "lambda_trg": 4.0, "lambda_l2_trg": 30.0}
SMALL |= {"lambda_clip": 20.0, "lambda_range": 20.0, "diff_iter": 2, "cuts": 2, "resample": 3, "range_restart": False}


def method(guided_by="image", **changed) -> DiffuseIT:
    return DiffuseIT(guided_by, "10", 5, **SMALL | {"vit": tiny_vit(), "clip": CLIPS} | changed)


def denoiser():
    return tiny_denoiser("adm_source", torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64))


def exact():
    """A denoiser of data around 0, in float64 where its states are."""
    return gaussian_denoiser(0.0, 0.6, DiffusionSchedule(alpha_bar_from_betas(linear_betas())))


def edited(how, rows=range(4), target=None, dtype=torch.float32):
    rows = list(rows)
    given = {"texts": [TEXTS[i] for i in rows]} if how.guided_by == "text" else {"targets": TARGETS[rows].to(dtype)}
    return how(X0[rows].to(dtype), None, target or denoiser(), Noise(1, [IDS[i] for i in rows]), **given)


@pytest.mark.parametrize("settings", [{}, {"guided_by": "text", "noise_aug_all": False}, {"ddim": True}], ids=str)
def test_batch_and_order_do_not_matter(settings):
    how = method(**{"vit": smooth_features, "variance": "small"} | settings)
    together = edited(how, target=exact(), dtype=torch.float64)
    assert (edited(how, [2, 0], exact(), torch.float64) - together[[2, 0]]).abs().max() < 1e-9
    assert (together[0] - together[3]).abs().max() > 1e-2


class Count:
    """A denoiser that notes how many states it sees in each call."""

    def __init__(self):
        self.inner, self.seen = exact(), []
        self.schedule = self.inner.schedule

    def __call__(self, x, level):
        self.seen.append((level.t, len(x)))
        return self.inner(x, level)


def restarting(**changed) -> DiffuseIT:
    """With a limit that some of the images keep at once, and some do not."""
    settings = {
        "vit": smooth_features,
        "variance": "small",
        "range_restart": True,
        "lambda_range": 20.0,
        "range_limit": 0.005,
    }
    return method(**settings | changed)


def test_restarts_are_of_one_image():
    counts = [Count() for _ in IDS]
    how = restarting()
    alone = [edited(how, [i], counts[i], torch.float64) for i in range(4)]
    attempts = [sum(t == count.seen[0][0] for t, _ in count.seen) // SMALL["resample"] for count in counts]
    assert len(set(attempts)) > 2, attempts
    together = Count()
    assert (edited(how, target=together, dtype=torch.float64) - torch.cat(alone)).abs().max() < 1e-9
    assert sum(n for _, n in together.seen) == sum(n for count in counts for _, n in count.seen)


def test_restarts_that_never_end_are_capped_and_said():
    how = restarting(range_limit=1e-9, max_restarts=2)
    with pytest.warns(UserWarning, match=r"image 1, 2 of its batch left \[-1, 1\] in each of 3 attempts, and the last"):
        out = edited(how, [0, 1], exact())
    assert out.isfinite().all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        edited(restarting(range_limit=0.06), target=exact())


def test_how_often_networks_are_evaluated():
    """One forward evaluation and one backward pass a step; the last step has no backward pass, and no features."""
    calls, meter = {"vit": 0}, Meter(IDS, lambda: None)

    def vit(image):
        calls["vit"] += len(image)
        return tiny_vit()(image)

    edited(method(vit=vit), target=meter.watch(denoiser(), "target"))
    guided = 3 + 3  # the first step thrice, then all others but the last
    assert (meter.forwards, meter.backwards) == (4 * (guided + 1), 4 * guided)
    assert calls["vit"] == 4 * (guided + 2)


@pytest.mark.parametrize("weight", ["lambda_trg", "lambda_l2_trg", "lambda_ssim", "lambda_range"])
def test_weights_that_are_too_large(weight):
    with pytest.raises(ValueError, match=r"led image 1 of its batch to NaN or Inf in step 1 of 5; choose smaller"):
        edited(method(**{weight: 1e38}))


def refused(how, **given) -> str:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        how(X0, None, None, Noise(1, IDS), **given)
    return str(error.value)


def test_what_a_call_must_be_given():
    """Before any evaluation: there is no denoiser."""
    for given in ({}, {"texts": TEXTS}, {"texts": TEXTS, "targets": TARGETS}):
        assert refused(method(), **given) == "diffuseit needs a target image for each image, and nothing else beside it"
    for given in ({}, {"targets": TARGETS}):
        assert refused(method("text"), **given).startswith("diffuseit needs a source and a target text for each image")


def test_target_images_of_another_size():
    for targets in (TARGETS[..., :8], TARGETS[:1]):
        with pytest.raises(ValueError, match="must have the number and size of their sources, 4×3×16×16; got"):
            guide_of(X0, tiny_vit(), target=targets)
    with pytest.raises(ValueError, match="led by a text or by a target image; give one of them"):
        guide_of(X0, tiny_vit())


REFUSED = {
    "guided_by must be text or image; got 'both'": {"guided_by": "both"},
    "variance must be learned, small or large; got 'tiny'": {"variance": "tiny"},
    "lambda_ssim must be at least 0; got -1.0": {"lambda_ssim": -1.0},
    "max_restarts must be at least 0; got -1": {"max_restarts": -1},
    "resample must be at least 1, which makes the first step once; got 0": {"resample": 0},
    "range_restart needs ddim=false and a range_limit above 0; got True and 0.01": {
        "range_restart": True,
        "ddim": True,
    },
    "a text needs a CLIP": {"guided_by": "text", "clip": ()},
    "match_colours needs a target image": {"guided_by": "text", "match_colours": True},
    "t0 must be between 2 and the 10 timesteps; got 11": {"t0": 11},
    "t0 must be between 2 and the 10 timesteps; got 1": {"t0": 1},
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_settings_that_are_refused(sentence):
    with pytest.raises(ValueError, match=sentence.replace("(", r"\(")):
        replace(method(), **REFUSED[sentence])


def test_what_it_needs():
    assert method().needs == {"target", "vit"}
    assert method("text").needs == {"target", "vit", "clip"}
    assert method("text", lambda_id=1.0, identity=unit).needs == {"target", "vit", "clip", "identity"}


def test_the_losses_pull_towards_the_target():
    """Towards its pixels and its CLS token, compared with the same noise without these losses."""

    def apart(out):
        return (out - TARGETS).square().mean(), cls_distance(
            smooth_features(out).cls, smooth_features(TARGETS).cls
        ).mean()

    how = method(vit=smooth_features, variance="small")
    led, free = (edited(one, target=exact()) for one in (how, replace(how, lambda_trg=0.0, lambda_l2_trg=0.0)))
    assert apart(led)[0] < apart(free)[0]
    assert apart(led)[1] < apart(free)[1]


def test_identity_of_faces():
    """1 - cosine of the features of the image that the losses see, and the source's."""

    def faces(image):
        return unit(image.mean(dim=(2, 3)))

    how = method(lambda_id=3.0, identity=faces, noise_aug_all=False)
    guide, level = guide_of(X0, how.vit, target=TARGETS, identity=faces), denoiser().schedule.at(500)
    found, _ = losses(X0, TARGETS, level, 9, guide, Last(guide.cls, torch.zeros(4)), how, Noise(1, IDS))
    cosines = F.cosine_similarity(TARGETS.mean(dim=(2, 3)), X0.mean(dim=(2, 3)))
    assert torch.allclose(found["id"], 3 * (1 - cosines), atol=1e-5)


def test_contrast_is_a_cross_entropy():
    """Over the other image's tokens, of which the own place is the class."""
    keys, others = torch.randn(2, 7, 5), torch.randn(2, 7, 5)
    logits = F.cosine_similarity(keys[:, :, None], others[:, None], dim=3) / 0.07
    expected = [F.cross_entropy(one, torch.arange(7)) for one in logits]
    assert torch.allclose(contrast(keys, others), torch.stack(expected), atol=1e-5)


def test_structure_ignores_lengths_and_rotations_of_keys():
    keys, turned = torch.randn(1, 6, 4), torch.linalg.qr(torch.randn(4, 4))[0]
    assert structure(3 * keys @ turned, self_similarity(keys)).item() < 1e-10
    assert structure(torch.randn(1, 6, 4), self_similarity(keys)).item() > 1e-2
    assert Features(keys, keys[:, 0]).cls.shape == (1, 4)


def test_cuts_are_those_of_torchvision():
    """Sizes and places in the long run; every cut is inside the image."""
    images = torch.zeros(8, 3, 40, 48)
    cuts = draw_cuts(Noise(1, [str(i) for i in range(8)]), images, 500).flatten(0, 1)
    angle, top, left, height, width, mirrored = cuts.unbind(dim=1)
    assert angle.abs().max() <= 10
    assert angle.std().item() == pytest.approx(20 / math.sqrt(12), rel=0.03)
    assert mirrored.mean().item() == pytest.approx(0.5, abs=0.03)
    assert ((top >= 0) & (left >= 0) & (top + height <= 40) & (left + width <= 48)).all()
    torch.manual_seed(0)
    known = torch.tensor([RandomResizedCrop.get_params(images, [0.8, 1.0], [0.9, 1.1]) for _ in range(4000)]).double()
    for ours, theirs in zip((top, left, height, width), known.unbind(dim=1), strict=True):
        assert ours.mean().item() == pytest.approx(theirs.mean().item(), abs=0.15)
        assert ours.std().item() == pytest.approx(theirs.std().item(), rel=0.06)


def test_a_cut_that_never_fits_is_the_largest_in_the_middle():
    class Zeros:
        def randn_like(self, x):
            return torch.full_like(x, 8.0)  # the whole area at a ratio of 1.1: too wide

    rows = draw_cuts(Zeros(), torch.zeros(1, 3, 20, 20), 1)[0, 0]
    assert rows[1:5].tolist() == [0, 0, 20, 20]


def test_one_cut_by_hand():
    image = torch.rand(1, 3, 12, 10)
    shown = cut(image, torch.tensor([[[0.0, 2, 1, 8, 6, 1.0]]]), 4)
    assert torch.allclose(shown, F.interpolate(image[:, :, 2:10, 1:7], (4, 4), mode="bilinear").flip(3))
    assert whole(image, 5).shape == (1, 3, 5, 5)


def test_texts_are_read_in_79_templates():
    read = []

    class Reads:
        def texts(self, texts):
            read.append(list(texts))
            return torch.ones(len(texts), 4)

    found = embed(Reads(), [("a cat", "a dog"), ("a cat", "a cow")])
    assert found.source.shape == found.target.shape == (2, 79, 4)
    assert [len(set(texts)) for texts in read] == [79, 79, 79]
    assert not any("of many" in text for texts in read for text in texts)


def test_agreement_is_the_mean_of_cosines():
    targets = [unit(torch.randn(4, n)) for n in (16, 24)]
    cosines = [
        F.cosine_similarity(clip.images(F.interpolate(X0, (clip.size,) * 2, mode="bilinear")), target)
        for clip, target in zip(CLIPS, targets, strict=True)
    ]
    assert torch.allclose(agreement(CLIPS, targets, X0), torch.stack(cosines).mean(dim=0), atol=1e-5)


def test_the_gradient_of_agreement_is_that_of_the_whole_graph():
    """By finite differences, in float64, with cuts and without; one tower's graph is gone when the next one begins."""
    targets, direction = [unit(torch.randn(4, n, dtype=torch.float64)) for n in (16, 24)], torch.randn(4, 3, 16, 16)
    images, direction = X0.double(), direction.double()
    drawn = [draw_cuts(Noise(1, IDS), X0, 2) for _ in CLIPS]
    for cuts in (None, drawn):
        with torch.enable_grad():
            leaf = images.clone().requires_grad_()
            value = agreement(CLIPS, targets, leaf, cuts)
            slope = (torch.autograd.grad(value.sum(), leaf)[0] * direction).sum().item()
        assert torch.allclose(value, agreement(CLIPS, targets, images, cuts), atol=1e-12)
        ahead, behind = (agreement(CLIPS, targets, images + h * direction, cuts).sum() for h in (1e-6, -1e-6))
        assert slope == pytest.approx(((ahead - behind) / 2e-6).item(), rel=1e-5)


def test_matched_colours_have_the_reference_s_covariance():
    A, B = (torch.randn(50, 3, dtype=torch.float64).mT.cov() for _ in range(2))
    M = transfer_matrix(A, B)
    assert torch.allclose(M @ A @ M.mT, B, atol=1e-9)
    assert torch.allclose(M, M.mT, atol=1e-9)


def test_pictures_with_few_colours():
    grey = torch.randint(0, 256, (9, 9, 1), dtype=torch.uint8).expand(9, 9, 3)
    colours = torch.randint(0, 256, (8, 7, 3), dtype=torch.uint8)
    made = match_colours(grey, colours)
    assert (made.min(), made.max()) == (0, 255)
    one_value = torch.full((9, 9, 3), 7, dtype=torch.uint8)
    for pair in ((one_value, colours), (colours, one_value)):
        with pytest.raises(ValueError, match="a picture of one value has no colours to match"):
            match_colours(*pair)
    out = in_colours_of(TARGETS, X0)
    assert out.shape == X0.shape
    assert ((out + 1) * 127.5 - ((out + 1) * 127.5).round()).abs().max() < 1e-3
