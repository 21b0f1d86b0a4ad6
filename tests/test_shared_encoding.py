"""Candidates in batches: equal to one after the other, and never more work than the official code's."""

import re
from dataclasses import replace

import pytest
import torch

from baselines.ddib import DDIB
from baselines.sdedit import SDEdit
from cyclediff.attention_control import AttentionControl
from cyclediff.cyclediffusion import CycleDiffusion
from cyclediff.diffusion.noise import Noise
from cyclediff.diffusion.schedule import DiffusionSchedule, alpha_bar_from_betas, scaled_linear_betas
from cyclediff.models.load_text import load_text_to_image
from cyclediff.shared_encoding import Pruning
from cyclediff.studies.candidates import Edits, count_rows, edit, split
from cyclediff.studies.selection import Grid, Prune, grid_for, read_prune

from .tiny_sd import stable_diffusion

SCHEDULE = DiffusionSchedule(alpha_bar_from_betas(scaled_linear_betas()))
METHOD = CycleDiffusion(T=10, T_es=10, eta=0.1, spacing="latent")
CONTROL = AttentionControl(cross=0.8, self_attention=0.4)
GRID = Grid(trials=2, source_guidance=(1.0, 1.5), skip=(2, 5), guidance=(1.0, 3.0))
TEXTS = [("a cat on a blue background", "a dog on a blue background"), ("a small cat", "a big cat looking left")]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_text_to_image(str(stable_diffusion(tmp_path_factory.mktemp("sd"))))


@pytest.fixture(scope="module")
def edits():
    return Edits(["a", "b"], TEXTS, torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(5)), seed=1)


def one_by_one(method, model, edits, image, candidate):
    """A candidate by itself, through the method's own interface."""
    texts = edits.texts[image]
    source = model.condition([texts[0]], candidate.source_guidance)
    target = model.condition([texts[1]], candidate.guidance)
    noise = Noise(edits.seed, [edits.ids[image]], candidate.encoding)
    if method.starts_at:
        method = replace(method, **{method.starts_at: method.num_steps - candidate.skip})
    return method(edits.x0[image : image + 1], source, target, noise)[0]


@pytest.mark.parametrize("size", [1, 5, 100])
@pytest.mark.parametrize("method", [
    METHOD, replace(METHOD, attention=CONTROL), SDEdit(T=10, t0=10, spacing="latent", variance="none"),
    SDEdit(T=10, t0=10, spacing="latent", variance="small", attention=CONTROL),
], ids=["cyclediffusion", "cyclediffusion_cac", "sdedit", "sdedit_cac"])  # fmt: skip
def test_candidates_in_batches_equal_single_ones(method, size, model, edits):
    seen = set()
    for units in split(method, GRID, 2, size, shared_encoding=False):
        found = edit(method, model, edits, GRID, units, shared_encoding=False)
        for (image, candidate), latent in zip(units, found, strict=True):
            seen.add((image, candidate.index))
            if (candidate.index + image) % 3 == 0:
                assert torch.allclose(latent, one_by_one(method, model, edits, image, candidate), atol=2e-4)
    assert len(seen) == 2 * len(GRID.candidates())


def test_ddib_candidates(model, edits):
    method = DDIB("10", False, "latent")
    grid = Grid(1, (1.0,), (0,), (1.0, 3.0))
    (units,) = split(method, grid, 2, 10, shared_encoding=False)
    found = edit(method, model, edits, grid, units, shared_encoding=False)
    for (image, candidate), latent in zip(units, found, strict=True):
        assert torch.allclose(latent, one_by_one(method, model, edits, image, candidate), atol=2e-4)


def test_a_shared_encoding_holds_all_skips_of_a_trial(model, edits):
    """The candidate that starts highest has an encoding of its own; with the source's text all return x0."""
    for units in split(METHOD, GRID, 2, 100, shared_encoding=True):
        found = edit(METHOD, model, edits, GRID, units, shared_encoding=True)
        for (image, candidate), latent in zip(units, found, strict=True):
            if candidate.skip == min(GRID.skip):
                shared = replace(candidate, encoding=candidate.encoding // len(GRID.skip))
                assert torch.allclose(latent, one_by_one(METHOD, model, edits, image, shared), atol=2e-4)
    same = replace(edits, texts=[(source, source) for source, _ in TEXTS])
    grid = Grid(1, (1.0,), (2, 5), (1.0,))
    for units in split(METHOD, grid, 2, 100, shared_encoding=True):
        out = edit(METHOD, model, same, grid, units, shared_encoding=True)
        assert torch.allclose(out, edits.x0[[image for image, _ in units]], atol=1e-4)


def official_rows(trials, encoder, skips, decoder, T):
    """Rows of the official encode and forward: a row a step to encode, 2 to decode (1 at scales 0 and 1)."""

    def rows(scale):
        return 1 if scale in (0, 1) else 2

    lengths = [T - skip for skip in skips]
    return trials * len(encoder) * sum(lengths) * sum(map(rows, decoder)) + trials * sum(lengths) * sum(
        map(rows, encoder)
    )


@pytest.mark.parametrize("size", [1, 64, 600])
def test_rows_of_the_papers_search(size):
    """540 candidates: 15 trials × 6 skips × 6 scales."""
    paper = Grid(15, (1.0,), (15, 20, 25, 30, 40, 50), (1.0, 1.5, 2.0, 3.0, 4.0, 5.0))
    method = CycleDiffusion(T=99, T_es=99, eta=0.1, spacing="latent")
    assert len(paper.candidates()) == 540
    official = official_rows(15, paper.source_guidance, paper.skip, paper.guidance, 99)
    assert count_rows(method, SCHEDULE, paper, size, shared_encoding=False) == official
    if size >= 64:
        saved = 1 - count_rows(method, SCHEDULE, paper, size, shared_encoding=True) / official
        assert saved == pytest.approx(0.064, abs=0.01)


def test_rows_are_what_the_network_really_sees(model, edits):
    seen = 0

    def counting(xt, t, context, edit):
        nonlocal seen
        seen += len(xt)
        return model.network(xt, t, context, edit)

    one = replace(edits, ids=["a"], texts=TEXTS[:1], x0=edits.x0[:1])
    watched = replace(model, network=counting)
    for method in (METHOD, replace(METHOD, attention=CONTROL)):
        seen = 0
        for units in split(method, GRID, 1, 8, shared_encoding=False):
            edit(method, watched, one, GRID, units, shared_encoding=False)
        assert (
            seen
            == count_rows(method, SCHEDULE, GRID, 8, shared_encoding=False)
            == official_rows(2, (1.0, 1.5), (2, 5), (1.0, 3.0), 10)
        )


def test_candidates_must_be_sorted(model, edits):
    source, target = model.condition(["a cat"] * 2), model.condition(["a dog"] * 2)
    noise = Noise(1, ["a", "b"])
    with pytest.raises(ValueError, match="sorted by T_es"):
        METHOD.candidates(edits.x0, source, target, noise, [(0, 5), (1, 9)])
    with pytest.raises(ValueError, match="encodings by their first candidate"):
        METHOD.candidates(edits.x0, source, target, noise, [(1, 9), (0, 9)])


@pytest.mark.parametrize(("grid", "message"), [
    ((0, (1.0,), (1,), (1.0,)), "trials must be at least 1"),
    ((1, (), (1,), (1.0,)), "source_guidance must be a list"),
    ((1, (1.0,), (1, 1), (1.0,)), "skip must be a list of different numbers"),
    ((1, (1.0,), (-1,), (1.0,)), "none negative"),
])  # fmt: skip
def test_bad_grids(grid, message):
    with pytest.raises(ValueError, match=message):
        Grid(*grid)


@pytest.mark.parametrize("shared", [False, True])
def test_what_is_kept_does_not_depend_on_what_is_dropped(shared, model, edits):
    """Candidates that go on equal those of a run that drops none; the dropped ones show what they would become."""
    region = torch.zeros(2, 1, 8, 8, dtype=torch.bool)
    region[:, :, 2:7] = True
    for some in (edits, replace(edits, region=region)):
        for units in split(METHOD, GRID, 2, 100, shared):
            asked = []

            def keep(x0_hat, candidates, asked=asked):
                asked.append((x0_hat.clone(), list(candidates)))
                return [i for i in candidates if i % 3]

            whole = edit(METHOD, model, some, GRID, units, shared)
            found = edit(METHOD, model, some, GRID, units, shared, Pruning([6, 3], keep))
            lengths = [METHOD.num_steps - candidate.skip for _, candidate in units]
            assert set(asked[0][1]) == {i for i, length in enumerate(lengths) if length >= 6}
            dropped = {i for _, candidates in asked for i in candidates if not i % 3}
            assert dropped
            for i in range(len(units)):
                if i not in dropped:
                    torch.testing.assert_close(found[i], whole[i], atol=2e-5, rtol=0)
            if some.region is None:
                estimates, candidates = asked[0]
                for k, i in enumerate(candidates):
                    if not i % 3:
                        assert torch.equal(found[i], estimates[k])


def test_pruning_saves_rows():
    """Of 4 candidates that start together, 2 go on with 4 of 8 steps left, and 2 rows a step are saved for each."""
    method = CycleDiffusion(T=10, T_es=10, eta=0.1, spacing="latent")
    grid = Grid(1, (1.0,), (2,), (1.5, 2.0, 3.0, 4.0))
    whole = count_rows(method, SCHEDULE, grid, 100, False)
    assert whole == 8 * (1 + 4 * 2)
    pruned = count_rows(method, SCHEDULE, replace(grid, prune=Prune((0.4,), 0.5)), 100, False)
    assert whole - pruned == 3 * 2 * 2  # the step before which they are ranked is made for all


@pytest.mark.parametrize(("asked", "words"), [
    ({"at": [0.3]}, "selection.prune must be null or such as"), ({"at": 0.3, "keep": 0.5}, "must be null or such as"),
    ({"at": [1.5], "keep": 0.5}, "between 0 and 1; got [1.5]"), ({"at": [], "keep": 0.5}, "between 0 and 1; got []"),
    ({"at": [0.5], "keep": 1.0}, "keep must be between 0 and 1; got 1.0"), ("half", "must be null or such as"),
])  # fmt: skip
def test_bad_pruning(asked, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        read_prune(asked)


@pytest.mark.parametrize("method", [SDEdit(T=10, t0=10, spacing="latent"), replace(METHOD, attention=CONTROL)])
def test_methods_that_cannot_drop_candidates(method):
    with pytest.raises(
        ValueError, match="drops some of several candidates of cyclediffusion without attention control"
    ):
        grid_for(replace(GRID, prune=Prune((0.5,), 0.5)), method)
    with pytest.raises(ValueError, match="and 1, leave it out"):
        grid_for(Grid(1, (1.0,), (2,), (3.0,), Prune((0.5,), 0.5)), METHOD)
