"""LocalBlend: masks by hand, what stays of the source, and words and layers that do not fit."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import maximum_filter, zoom
from torch import Tensor

from baselines.direct_inversion import DirectInversion
from cyclediff.attention_control import AttentionControl
from cyclediff.attention_layers import attention_maps, install
from cyclediff.diffusion.noise import Noise
from cyclediff.diffusion.schedule import DiffusionSchedule, alpha_bar_from_betas, scaled_linear_betas
from cyclediff.local_blend import Blending, LocalBlend, StepMaps, masks
from cyclediff.models.load_text import load_text_to_image
from cyclediff.studies.candidates import count_rows
from cyclediff.studies.selection import Grid

from .prompts import prompt_of
from .tiny_sd import stable_diffusion, unet

SOURCE, TARGET = "a small cat on a blue background", "a small dog on a blue background"
WORDS = {"source": "cat", "target": "dog"}
SCHEDULE = DiffusionSchedule(alpha_bar_from_betas(scaled_linear_betas()))
X0 = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(6))
METHOD = DirectInversion(T=8)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_text_to_image(str(stable_diffusion(tmp_path_factory.mktemp("sd"))))


def apply(model, blend, texts=((SOURCE, TARGET),) * 2, x0=X0, guidance=5.0, method=METHOD) -> Tensor:
    control = AttentionControl(0.4, 0.6, "refine", max_queries=1024, blend=blend)
    sides = model.condition([s for s, _ in texts]), model.condition([t for _, t in texts], guidance)
    return replace(method, attention=control)(x0, *sides, Noise(1, [str(i) for i in range(len(x0))]))


def test_masks_by_hand():
    """Against SciPy: the maximum of 3×3, nearest to the latents' size, a share of the maximum, with the source's."""
    maps = torch.rand(3, 2, 2, 64, generator=torch.Generator().manual_seed(1))
    found, subtracted = masks(maps, LocalBlend("cat", "dog", threshold=0.9, subtract_threshold=0.7), (16, 16))
    grids = maps.unflatten(-1, (8, 8)).numpy()
    for pair in range(3):
        for kind, ours in enumerate((found, subtracted)):
            expected = []
            for grid in grids[pair, kind]:
                pooled = maximum_filter(grid, 3, mode="constant") if kind == 0 else grid
                large = zoom(pooled, 2, order=0, grid_mode=True, mode="nearest")
                expected.append(large > (0.9, 0.7)[kind] * pooled.max())
            assert np.array_equal(ours[pair, 0], expected[0])
            assert np.array_equal(ours[pair, 1], expected[0] | expected[1])
            assert 0 < expected[0].mean() < 1


def test_no_words_no_part():
    """A map of nothing, of words that a prompt does not have, marks nothing."""
    maps = torch.zeros(1, 2, 2, 16)
    maps[0, 0, 1, 0] = 1
    found, subtracted = masks(maps, LocalBlend("cat", "dog", threshold=0.0, subtract_threshold=0.0), (4, 4))
    assert found[0, 1].nonzero().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert not found[0, 0].any()
    assert not subtracted.any()


def marks(pair=(SOURCE, TARGET), **settings) -> Tensor:
    source, target = (prompt_of(text) for text in pair)
    return LocalBlend(**settings).begin([source], [target], 77, 10).marks[0]


def test_words_become_tokens():
    """Start, a, small, cat, on, …: token 3 of both prompts."""
    found = marks(**WORDS, subtract_source=["blue"], subtract_target="a blue")
    assert [row.nonzero().flatten().tolist() for row in found.flatten(0, 1)] == [[3], [3], [6], [1, 5, 6]]
    assert marks(target="DOG").equal(marks(target=["dog"]))
    assert marks(target="dog")[0, 0].sum() == 0
    assert marks(("2 cats", "3 cats"), source=2, target=[3])[0].sum(-1).tolist() == [1, 1]


LAYERS = (("down", True), ("down", False), ("mid", False), ("up", False), ("up", True), ("up", False))


def test_maps_of_all_steps_are_added():
    """Two steps with layers of two heads equal the sum by hand; before `start` nothing changes."""
    rule = LocalBlend("cat", "dog", threshold=0.9, start=0.2, down=(0, 1), up=(1, 2))
    blending = Blending(rule, torch.ones(1, 2, 2, 3).index_fill(1, torch.tensor([1]), 0), num_steps=10)
    generator, total, xt = torch.Generator().manual_seed(3), 0, torch.ones(1, 1, 4, 4)
    for step in range(4):
        maps = blending.maps(torch.tensor([0]))
        for place, used in LAYERS:
            assert maps.wants(place, 16) == used
            if used:
                base, edited = torch.rand(2, 1, 2, 16, 3, generator=generator) ** 8
                maps.add(base, edited)
                total = total + torch.stack((base, edited), dim=1).mean(2).sum(-1)
        out = blending.blend(step, torch.zeros(1, 1, 4, 4), xt)
        if step < 2:
            assert out is xt
        else:
            grids = torch.zeros(1, 2, 2, 16)
            grids[:, 0] = total
            expected, _ = masks(grids, rule, (4, 4))
            assert out[0, 0].equal(expected[0, 1].float())
            assert 0 < out.mean() < 1


def test_layers_with_many_positions_are_not_counted():
    maps = StepMaps(torch.zeros(1, 2, 2, 3), {"down": (0, 1)})
    assert [maps.wants("down", queries) for queries in (4096, 1024, 1024, 256)] == [False, True, False, False]


def test_what_is_outside_returns_to_the_source(model):
    """The source's path ends at x0, so after the last step each latent is x0's or the edit's."""
    plain, out = apply(model, None), apply(model, WORDS | {"threshold": 0.97})
    kept = (out == X0).all(1)
    assert 0.1 < kept.float().mean() < 0.9
    assert (plain - X0).abs().amax(1)[kept].min() > 1e-3
    assert (out - X0).abs().amax(1)[~kept].min() > 1e-3


def test_start_and_threshold_decide_what_is_kept(model):
    """At a threshold of 0 the edit has all of the image."""
    plain = apply(model, None)
    assert (apply(model, WORDS | {"threshold": 0.0}) - plain).abs().max() < 1e-5
    few, many = ((apply(model, WORDS | {"threshold": t}) == X0).all(1).float().mean() for t in (0.9, 0.99))
    assert few < many
    late = apply(model, WORDS | {"threshold": 0.97, "start": 0.9})
    assert (late - apply(model, WORDS | {"threshold": 0.97})).abs().max() > 1e-3


def test_pairs_of_a_batch_have_their_own_masks(model):
    """One has both words, one the source's only, one none: that one is not blended."""
    texts = ((SOURCE, TARGET), ("a small cat", "a big blue cat"), ("a big house", "a small house"))
    x0, blend = torch.cat((X0, X0[:1] / 2)), WORDS | {"threshold": 0.97}
    together = apply(model, blend, texts, x0)
    for k, pair in enumerate(texts):
        assert (apply(model, blend, [pair], x0[k : k + 1]) - together[k]).abs().max() < 2e-4
    plain = apply(model, None, texts, x0)
    assert [(together[k] == x0[k]).all(0).any().item() for k in range(3)] == [True, True, False]
    assert (together[2] - plain[2]).abs().max() < 1e-5


def test_edited_rows_may_share_a_source():
    """As candidates do that share an encoding."""
    blending = Blending(LocalBlend("cat", "dog", start=0), torch.ones(2, 2, 2, 3), num_steps=10)
    maps = blending.maps(torch.tensor([1, 0, 1]))
    assert maps.wants("up", 16)
    one = torch.rand(3, 1, 16, 3, generator=torch.Generator().manual_seed(3)) ** 8
    maps.add(one, one)
    xs, xt = torch.tensor([1.0, 2.0])[:, None, None, None].expand(2, 1, 4, 4), torch.zeros(3, 1, 4, 4)
    out = blending.blend(0, xs, xt)
    assert [sorted(row.unique().tolist()) for row in out] == [[0, 2], [0, 1], [0, 2]]


def test_only_layers_that_are_used_leave_the_fast_path(monkeypatch):
    """Outside the windows the network's result is that without an edit, to the last bit."""
    calls = []
    monkeypatch.setattr(
        "cyclediff.attention_layers.attention_maps", lambda *args: calls.append(args) or attention_maps(*args)
    )
    torch.manual_seed(0)
    network = unet().eval()
    install(network)
    x, context = torch.randn(2, 4, 8, 8), torch.randn(2, 77, 32)
    prompts = [prompt_of(SOURCE)], [prompt_of(TARGET)]
    for layers, count in (({"down": (0, 1), "up": (0, 2)}, 3), ({"up": (1, 2)}, 1), ({}, 2)):
        calls.clear()
        plan = AttentionControl(0.0, 0.0, blend=WORDS | layers).plan(*prompts, 77, 10)
        edit = plan.at(0, [0], [1], [0])
        out = network(x, 500, context, cross_attention_kwargs={"edit": edit}).sample
        assert out.equal(network(x, 500, context).sample)
        assert len(calls) == count
        assert edit.maps.seen == [("down", 64), ("mid", 16), ("up", 64), ("up", 64)]
        assert edit.maps.total().shape == (1, 2, 2, 64)


def test_layers_that_do_not_fit(model):
    with pytest.raises(
        ValueError, match=r"one number of positions; this network has, in order: down 64, mid 16, up 64"
    ):
        apply(model, WORDS | {"up": [5, 6]})
    maps = StepMaps(torch.zeros(1, 2, 2, 3), {"down": (0, 2)})
    for queries in (16, 64):
        assert maps.wants("down", queries)
        maps.add(*torch.zeros(2, 1, 1, queries, 3))
    with pytest.raises(ValueError, match="in order: down 16, down 64"):
        maps.total()
    with pytest.raises(ValueError, match=r"the proportions of the latents, 8×4; got layers of 16 positions"):
        masks(torch.zeros(1, 2, 2, 16), LocalBlend("cat"), (8, 4))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"blend needs words: blend=\{source: cat, target: dog\}, or blend=null"),
        ({"source": [], "target": None, "threshold": 0.4}, "blend needs words"),
        (WORDS | {"treshold": 0.3}, "blend has no setting 'treshold'; choose among source, target, threshold, start"),
        (WORDS | {"threshold": 1.2}, "blend.threshold must be at least 0 and less than 1; got 1.2"),
        (WORDS | {"threshold": "high"}, "blend.threshold must be at least 0 and less than 1; got 'high'"),
        (WORDS | {"start": 1}, "blend.start must be at least 0 and less than 1; got 1"),
        (WORDS | {"subtract_threshold": float("nan")}, "blend.subtract_threshold must be .*; got nan"),
        (WORDS | {"down": 2}, r"blend.down must be two whole numbers from 0, as in \[2, 4\]; got 2"),
        (WORDS | {"up": [3, 1]}, r"blend.up must be two whole numbers from 0, as in \[2, 4\]; got \[3, 1\]"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        AttentionControl(blend=settings)


def test_words_that_are_in_no_text():
    def require(**blend):
        AttentionControl(blend=blend).require_words([TARGET, "a house"], [SOURCE, "a big house"])

    require(**WORDS, subtract_target="House")
    with pytest.raises(ValueError, match=r"blend.target names 'fox', which is no word of any of the 2 target texts"):
        require(source="cat", target="fox")
    with pytest.raises(ValueError, match=r"blend.source names 'dog', which is no word of any of the 2 source texts"):
        require(source="dog", target="dog")
    with pytest.raises(
        ValueError, match=r"blend.subtract_source names 'sky', .* choose one of a, small, cat, on, blue"
    ):
        require(source="cat", subtract_source=["sky"])
    with pytest.raises(ValueError, match=r"blend.target names 'fox', which is no word of the target text"):
        AttentionControl(blend={"target": "fox"}).require_words([TARGET])


def test_a_target_that_is_not_evaluated_has_no_maps(model):
    with pytest.raises(
        ValueError, match=r"attention.blend follows the target prompt; its guidance scale must not be 0"
    ):
        apply(model, WORDS, guidance=0.0)


def test_rows_are_counted_with_a_blend():
    method = replace(METHOD, attention=AttentionControl(mode="refine", blend=WORDS))
    assert count_rows(method, SCHEDULE, Grid(1, (1.0,), (0,), (5.0,)), 4, False) == 8 * 4
