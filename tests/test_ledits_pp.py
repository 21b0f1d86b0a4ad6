"""LEDITS++ where its official code stops, its rows, and what it refuses; its numbers are in test_golden_ledits_pp."""

from dataclasses import replace

import pytest
import torch

from baselines.ledits_pp import LEDITSpp, edit, encode, spaced_levels
from cyclediff.diffusion.conditioning import joined
from cyclediff.diffusion.levels import NOISE, Level, Prediction
from cyclediff.diffusion.noise import Noise
from cyclediff.diffusion.schedule import FlowSchedule
from cyclediff.diffusion.semantic_guidance import (
    Concept,
    SeenConcepts,
    attention_mask,
    attention_of_words,
    guide,
    noise_mask,
    predictions_under,
)
from cyclediff.studies.candidates import count_rows
from cyclediff.studies.selection import Grid

from .nets import gaussian_denoiser
from .test_golden_ledits_pp import SCHEDULE, denoiser

METHOD = LEDITSpp(T=6, T_es=6, first_order_below=0)
X0 = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(7))
LEVELS = spaced_levels(SCHEDULE, 4, 0.15)


def mixed(texts, scales):
    """A denoiser with a text and a scale for each image."""
    parts = [denoiser(text, scale, 1) for text, scale in zip(texts, scales, strict=True)]
    context = joined([part.context for part in parts])
    prompts = tuple(part.prompts[0] for part in parts)
    return replace(parts[0], context=context, prompts=prompts, scales=tuple(map(float, scales)), _contexts={})


SOURCE = mixed(["src1", "src2"], [1, 1])
TARGET = mixed(["tgt1", "tgt2"], [5, 3])


def counted(denoiser, rows):
    """The same denoiser, whose batches are noted."""

    def network(xt, *more):
        rows.append(len(xt))
        return denoiser.network(xt, *more)

    return replace(denoiser, network=network)


def code_and(names, queries=None):
    """The inverted images, and predictions under some texts."""
    base = denoiser(None, 0.0, 2)
    predict = predictions_under(base, [denoiser(name, 1.0, 2) for name in names], queries)
    return encode(X0, base, LEVELS, Noise(1, ["a", "b"])), predict


@pytest.mark.parametrize("masks", ["noise", "attention", "intersect"])
def test_an_image_does_not_depend_on_its_batch(masks):
    """With texts of different lengths and different scales; the official code mixes the maps of a batch."""
    method = replace(METHOD, masks=masks)
    both = method(X0, SOURCE, TARGET, Noise(1, ["a", "b"]))
    for i, (source, target, scale) in enumerate([("src1", "tgt1", 5), ("src2", "tgt2", 3)]):
        sides = mixed([source], [1]), mixed([target], [scale])
        one = method(X0[i : i + 1], *sides, Noise(1, ["ab"[i]]))
        assert torch.allclose(both[i : i + 1], one, atol=1e-4)
        assert (one - X0[i]).abs().max() > 0.1


def test_no_concept_returns_the_image_with_any_number_of_steps():
    code, predict = code_and([])
    assert (edit(code, predict, LEVELS, [], first_order_below=0) - X0).abs().max() < 1e-4
    assert (edit(code, predict, LEVELS, [], first_order_below=5) - X0).abs().max() > 0.01
    assert (edit(code, predict, LEVELS, [], first_order_below=4) - X0).abs().max() < 1e-4


def test_concepts_in_their_warmup_or_after_their_cooldown_are_not_there():
    """Two of three act in the first steps, and none in the last; the official code stops at both."""
    code, predict = code_and(["tgt1", "tgt2", "src1"])
    acting = [Concept(5.0, cooldown=2), Concept(4.0, threshold=0.5, reverse=True, cooldown=3)]
    out = edit(code, predict, LEVELS, [*acting, Concept(6.0, warmup=4)])
    assert out.equal(edit(code, predict, LEVELS, acting))
    assert torch.allclose(out, edit(code, predict, LEVELS, [*acting, Concept(0.0)]), atol=1e-4)


@pytest.mark.parametrize(("base", "scale"), [("empty", 1.0), ("source", 1.0), ("source", 2.0)])
def test_rows(base, scale):
    """One batch a step: the base, guided or not, and a row for the concept where it acts."""
    rows, more = [], []
    source, target = counted(mixed(["src1"], [scale]), rows), counted(mixed(["tgt1"], [5]), more)
    LEDITSpp(T=8, T_es=6, base=base, warmup=2, cooldown=5)(X0[:1], source, target, Noise(1, ["a"]))
    own = 2 if scale == 2 else 1
    assert rows + more == [own] * 6 + [own, own, own + 1, own + 1, own + 1, own]


@pytest.mark.parametrize("masks", ["noise", "attention"])
def test_rows_are_counted_before_a_run(masks):
    grid = Grid(2, (1.0,), (0, 3), (2.0, 4.0))
    assert count_rows(replace(METHOD, masks=masks), SCHEDULE, grid, 100, False) == 2 * 2 * 3 * (6 + 3)


def test_the_source_text_as_base_knows_what_is_new():
    """With one text on both sides nothing is new, and the image returns; the empty prompt would add the text again."""
    method = replace(METHOD, base="source")
    target = replace(SOURCE, scales=(5.0, 5.0), _contexts={})
    noise = Noise(1, ["a", "b"])
    assert (method(X0, replace(SOURCE, scales=(1.0, 3.0), _contexts={}), target, noise)[:1] - X0[:1]).abs().max() < 1e-4
    assert (METHOD(X0, SOURCE, target, Noise(1, ["a", "b"])) - X0).abs().max() > 0.1


def test_scale_zero_changes_nothing_and_threshold_zero_masks_nothing():
    target = replace(TARGET, scales=(0.0, 5.0), _contexts={})
    out = METHOD(X0, SOURCE, target, Noise(1, ["a", "b"]))
    assert (out[0] - X0[0]).abs().max() < 1e-4 < (out[1] - X0[1]).abs().max()
    phi = torch.randn(2, 4, 8, 8)
    assert noise_mask(phi, 0.0).all()
    assert noise_mask(phi, 1.0).sum((1, 2, 3)).tolist() == [1, 1]
    assert noise_mask(phi, 0.75).sum((1, 2, 3)).tolist() == [16, 16]  # of 64


def draws(count):
    return torch.randn(count, 1, 4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("level", [Level(0.9, 0.43, 0), Level(0.3, 0.95, 0), NOISE], ids=["clean", "noisy", "NOISE"])
def test_guidance_is_the_papers_and_keeps_the_state(level):
    """In eps where there is signal; a x0 + b eps stays x, also where nothing but noise is left."""
    x, one, other = draws(3)
    base, under = (Prediction(x0, (x - level.a * x0) / level.b) for x0 in (one, other))
    found = guide(SeenConcepts(base, {0: under}), level, [Concept(4.0, reverse=True, weight=0.5)]).prediction
    assert torch.allclose(level.a * found.x0 + level.b * found.eps, x, atol=1e-12)
    apart = (under.x0 - base.x0).abs().sum(1, keepdim=True)
    mask = apart >= apart.quantile(0.9)
    assert torch.allclose(found.x0, base.x0 - 0.5 * 4 * mask * (under.x0 - base.x0), atol=1e-10)
    assert torch.allclose(found.eps, base.eps - 0.5 * 4 * mask * (under.eps - base.eps), atol=1e-10)


def test_attention_on_latents_that_are_no_square():
    maps = torch.rand(1, 2 * 3, 5)
    words = attention_of_words(maps, [2], (8, 12))
    assert torch.allclose(words, maps[:, :, 1:3].sum(2).reshape(1, 2, 3))
    mask = attention_mask(words, 0.9, (8, 12))
    assert mask.sum() == 16  # one of six fields of 4×4
    with pytest.raises(ValueError, match=r"6 queries do not fit latents of 8×8"):
        attention_of_words(maps, [2], (8, 8))


def test_flows_have_levels_too():
    assert [level.t for level in spaced_levels(FlowSchedule(), 3, 0.1)] == pytest.approx([900, 451, 2, 1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"threshold": 1.1}, "threshold must be between 0 and 1, the part of the pixels that stay; got 1.1"),
        ({"threshold": float("nan")}, "threshold must be between 0 and 1"),
        ({"warmup": -1}, "warmup must be at least 0; got -1"),
        ({"warmup": 5, "cooldown": 5}, "cooldown must be above warmup = 5; got 5, null is never"),
        ({"warmup": 6}, "warmup must be below the 6 steps that are run; got 6"),
        ({"T_es": 7}, "T_es must be between 1 and T = 6; got 7"),
        ({"skip": 1.0}, "skip must be at least 0 and below 1, a part of the training timesteps; got 1.0"),
        ({"base": "none"}, "base must be empty or source; got 'none'"),
        ({"queries": 0}, "queries must be at least 1; got 0, and 256 is published"),
        ({"masks": "all"}, "masks must be noise, attention or intersect; got 'all'"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        replace(METHOD, **settings)


@pytest.mark.parametrize(
    ("settings", "source", "message"),
    [
        ({}, gaussian_denoiser(0, 1, SCHEDULE), "ledits_pp needs prompts; choose an editing task, or a method without"),
        ({}, replace(SOURCE, scales=(1.0, 3.5)), r"does nothing; got 3.5, set selection.grid.source_guidance to \[1\]"),
        ({"base": "source"}, replace(SOURCE, network_id="another"), "concepts need one text-to-image model"),
        (
            {"T": 900, "T_es": 900},
            SOURCE,
            "T must be at most 849, the timesteps that skip = 0.15 leaves of 1000; got 9",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_the_first_evaluation(settings, source, message):
    rows = []
    with pytest.raises(ValueError, match=message):
        replace(METHOD, **settings)(X0, counted(source, rows), counted(TARGET, rows), Noise(1, ["a", "b"]))
    assert not rows


def test_layers_that_the_network_does_not_have_are_named():
    with pytest.raises(ValueError, match=r"layers with 100 positions; this network has 256, so set method\.queries to"):
        replace(METHOD, T=2, T_es=2, masks="attention", queries=100)(X0, SOURCE, TARGET, Noise(1, ["a", "b"]))


def test_a_mask_of_another_size_and_a_negative_scale_are_refused():
    code, predict = code_and(["tgt1"])
    with pytest.raises(ValueError, match="the mask is for 8×8 and the latents are 16×16; resize the mask to 16×16"):
        edit(code, predict, LEVELS, [Concept(5.0)], user_mask=torch.ones(1, 1, 8, 8))
    with pytest.raises(ValueError, match="a concept's scale must not be negative, use reverse; got -1"):
        Concept(-1.0)
