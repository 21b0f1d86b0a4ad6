"""The bound of similarity: closed forms on Gaussians, and what must hold for any network."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from cyclediff.attention_control import AttentionControl
from cyclediff.cyclediffusion import CycleDiffusion
from cyclediff.diffusion.conditioning import Conditioning
from cyclediff.diffusion.denoiser import GuidedDenoiser
from cyclediff.diffusion.noise import Noise
from cyclediff.diffusion.prompt import Prompt
from cyclediff.diffusion.schedule import (
    DiffusionSchedule,
    FlowSchedule,
    alpha_bar_from_betas,
    cosine_betas,
    linear_betas,
)
from cyclediff.similarity import bound, bound_of_all, measure
from cyclediff.studies.similarity_scores import score

from .nets import GaussianDenoiser, tiny_denoiser

SCHEDULE = DiffusionSchedule(alpha_bar_from_betas(linear_betas()))
KINDS = {"pixels": (SCHEDULE, "uniform"), "latents": (SCHEDULE, "latent"), "flow": (FlowSchedule(), "latent")}
IDS = ["a", "b", "c"]
X0 = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Spy:
    """A denoiser that notes the states that it is asked about."""

    def __init__(self, denoiser):
        self.denoiser, self.schedule, self.states = denoiser, denoiser.schedule, []

    def __call__(self, x, level):
        self.states.append(x)
        return self.denoiser(x, level)


def rms(x):
    return x.square().mean((1, 2, 3)).sqrt()


def affine(mean, std, t, s, eta):
    """k and c of a step's mean k x + c, for data N(mean, std²): from E[x0 | x] and E[eps | x], written out."""
    kept = t.a * s.b / (s.a * t.b)
    sigma = eta * s.b * (1 - kept**2) ** 0.5
    direction = max(0.0, s.b**2 - sigma**2) ** 0.5
    variance = t.a**2 * std**2 + t.b**2
    k = (s.a * std**2 * t.a + direction * t.b) / variance
    return k, s.a * mean - k * t.a * mean


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("eta", [0.1, 1.0])
def test_gaussians_of_one_width(kind, eta):
    """K and S are numbers, and the bound is the distance: d_s = k d_t + c, with all terms of one sign."""
    schedule, spacing = KINDS[kind]
    method = CycleDiffusion(T=50, T_es=40, eta=eta, spacing=spacing)
    source, target = (GaussianDenoiser(mean, 0.5, schedule) for mean in (0.0, 0.7))
    found = measure(method, X0, source, target, Noise(1, IDS))
    levels = schedule.levels(50, spacing)[-41:]
    assert found.levels == levels
    d, distance, stretch, gap = 0.0, [0.0], [], []
    for t, s in pairwise(levels):
        (k, c), (_, other) = (affine(mean, 0.5, t, s, eta) for mean in (0.7, 0.0))
        stretch.append(k if stretch else 0.0)  # the states are one before the first step
        gap.append(abs(c - other))
        d = k * d + gap[-1]
        distance.append(d)
    for part, expected in ((found.distance, distance), (found.stretch, stretch), (found.gap, gap)):
        torch.testing.assert_close(
            part, torch.tensor(expected, dtype=torch.float64).expand(3, -1), rtol=1e-8, atol=1e-12
        )
    torch.testing.assert_close(bound(found.stretch, found.gap), found.distance, rtol=1e-8, atol=1e-11)
    assert distance[-1] > 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_gaussians_of_two_widths(kind):
    """K is the target's slope; S depends on the state, and the bound is above the distance."""
    schedule, spacing = KINDS[kind]
    method = CycleDiffusion(T=50, T_es=40, eta=0.5, spacing=spacing)
    source, target = Spy(GaussianDenoiser(0.2, 0.9, schedule)), GaussianDenoiser(-0.1, 0.4, schedule)
    found = measure(method, X0, source, target, Noise(1, IDS))
    for step, (t, s) in enumerate(pairwise(found.levels)):
        (k, c), (k_source, c_source) = affine(-0.1, 0.4, t, s, 0.5), affine(0.2, 0.9, t, s, 0.5)
        if step:
            assert found.stretch[:, step].tolist() == pytest.approx([k] * 3, rel=1e-7)
        gap = rms((k - k_source) * source.states[step] + c - c_source)
        torch.testing.assert_close(found.gap[:, step], gap, rtol=1e-9, atol=1e-12)
    limit = bound(found.stretch, found.gap)
    assert (found.distance <= limit * (1 + 1e-9)).all()
    assert (limit[:, -1] > 1.01 * found.distance[:, -1]).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("raw", [False, True])
def test_the_states_are_those_of_the_method(kind, raw):
    schedule, spacing = KINDS[kind]
    method = CycleDiffusion(T=50, T_es=30, eta=0.3, spacing=spacing, raw_index_start=raw)
    source, target = GaussianDenoiser(0.2, 0.9, schedule), GaussianDenoiser(-0.1, 0.4, schedule)
    spies = [Spy(source), Spy(target), Spy(source), Spy(target)]
    out = method(X0, *spies[:2], Noise(1, IDS))
    found = measure(method, X0, *spies[2:], Noise(1, IDS))
    steps = len(spies[0].states)
    assert steps == (29 if kind == "pixels" else 30)  # the method does not evaluate the source in a step without noise
    torch.testing.assert_close(torch.stack(spies[2].states[:steps]), torch.stack(spies[0].states))
    both = torch.stack(spies[3].states)
    torch.testing.assert_close(both[:, :3], torch.stack(spies[1].states))
    torch.testing.assert_close(both[:, 3:], torch.stack(spies[2].states))
    distances = torch.stack([rms(x - y) for x, y in zip(spies[2].states, both[:, :3], strict=True)], dim=1)
    torch.testing.assert_close(found.distance[:, :-1], distances)
    if kind != "pixels":  # the code holds the image itself
        torch.testing.assert_close(found.distance[:, -1], rms(out - X0))


def test_the_image_is_that_of_a_run_of_candidates():
    method = CycleDiffusion(T=20, T_es=20, eta=0.3, spacing="latent")
    source, target = GaussianDenoiser(0.2, 0.9, SCHEDULE), GaussianDenoiser(-0.1, 0.4, SCHEDULE)
    out = method.candidates(X0, source, target, Noise(1, IDS), [(i, 12) for i in range(3)])
    found = measure(replace(method, T_es=12), X0, source, target, Noise(1, IDS))
    torch.testing.assert_close(found.distance[:, -1], rms(out - X0))


@pytest.mark.parametrize("names", [("adm_source", "adm_target"), ("ddpm_target", "adm_target")])
@pytest.mark.parametrize(("T_es", "eta"), [(10, 0.1), (10, 1.0), (4, 0.1), (1, 0.5)])
def test_the_bound_holds_for_every_image_in_every_step(names, T_es, eta):
    """For networks of which nothing is assumed, in float32."""
    source, target = (tiny_denoiser(name, linear_betas()) for name in names)
    x0 = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1)).clamp(-1, 1)
    found = measure(CycleDiffusion(T=10, T_es=T_es, eta=eta), x0, source, target, Noise(1, IDS))
    own, of_all = bound(found.stretch, found.gap), bound_of_all(found.stretch, found.gap)
    assert (found.distance <= own + 1e-12).all()
    assert (own <= of_all + 1e-12).all()
    assert found.distance[:, 1:].min() > 1e-5
    if T_es > 1:
        assert (own[:, -1] > 1.001 * found.distance[:, -1]).all()  # there is something to bound


def test_a_bound_by_hand():
    stretch, gap = torch.tensor([[0.0, 2.0, 0.5], [0.0, 1.0, 1.0]]), torch.tensor([[1.0, 3.0, 1.0], [2.0, 0.0, 1.0]])
    assert bound(stretch, gap).tolist() == [[0, 1, 5, 3.5], [0, 2, 2, 3]]
    assert bound_of_all(stretch, gap).tolist() == [0, 2, 7, 8]


def test_one_model_has_no_distance():
    model = GaussianDenoiser(0.3, 0.5, SCHEDULE)
    found = measure(CycleDiffusion(T=50, T_es=40, eta=0.5), X0, model, model, Noise(1, IDS))
    assert (found.distance == 0).all()
    assert (bound(found.stretch, found.gap) == 0).all()


def test_a_text_model_takes_one_batch_a_step():
    """One row of the source, two of the target, and as many without a text where there is guidance."""
    calls = []

    def network(xt, t, context, edit):
        calls.append(len(xt))
        return xt * context.tokens.mean((1, 2))[:, None, None, None]

    def under(value, count, scale):
        context, prompt = torch.full((count, 4, 2), value).double(), Prompt("a", (0, 1, 2), ((0, 0), (0, 1), (0, 0)))
        empty = torch.zeros(1, 4, 2).double()
        return GuidedDenoiser(
            network,
            SCHEDULE,
            "epsilon",
            Conditioning(context),
            Conditioning(empty),
            (scale,) * count,
            (prompt,) * count,
            "one network",
        )

    method = CycleDiffusion(T=10, T_es=7, eta=0.1, spacing="latent")
    found = measure(method, X0, under(0.5, 3, 1.0), under(0.7, 6, 3.0), Noise(1, IDS))
    assert calls == [3 + 6 + 6] * 7
    assert (found.distance[:, 1:] > 0).all()


def test_what_the_bound_is_not_about():
    model = GaussianDenoiser(0.3, 0.5, SCHEDULE)
    other = GaussianDenoiser(0.3, 0.5, DiffusionSchedule(alpha_bar_from_betas(cosine_betas())))
    plain = CycleDiffusion(T=10, T_es=5, eta=0.5)
    for method, pair, x0, words in (
        (replace(plain, refine_steps=2), (model, model), X0, "choose attention=null and refine_steps=0"),
        (replace(plain, attention=AttentionControl(0.8, 0.4)), (model, model), X0, "CycleDiffusion alone"),
        (plain, (model, other), X0, "source and target must have the same noise levels"),
        (plain, (model, model), X0[..., :0], r"at least one pixel; got \(3, 3, 8, 0\)"),
        (plain, (model, model), X0[:0], "at least one pixel"),
    ):
        with pytest.raises(ValueError, match=words):
            measure(method, x0, *pair, Noise(1, IDS))


def rows(**images):
    """Of an image: distances, stretches and gaps."""
    return [
        {"id": item, "step": 2 + k, "t": 9 - k, "distance": d, "stretch": stretch, "gap": gap}
        for item, (distances, stretches, gaps) in images.items()
        for k, (d, stretch, gap) in enumerate(zip(distances, [*stretches, None], [*gaps, None], strict=True))
    ]


def test_scores_by_hand():
    scored = score(rows(a=([0, 1, 2.5], [0, 2], [1, 3]), b=([0, 2, 2], [0, 1], [2, 0])), "eta 1", "T_es 2")
    values = {key: metric["value"] for key, metric in scored.metrics.items()}
    expected = {"distance": 2.25, "own_bound": 3.5, "tightness": 0.75, "bound_of_all": 7, "gaps": 3, "growth": 1.125}
    assert values == pytest.approx(expected)
    assert scored.rows[0] == {"id": "a", "distance": 2.5, "own_bound": 5, "gaps": 4, "tightness": 0.5, "growth": 1.25}
    assert scored.metrics["bound_of_all"]["ci95"] is None  # a largest value has no bootstrap
    low, high = scored.metrics["distance"]["ci95"]
    assert 1.97 < low < 2.02  # the mean of a resample is 2, 2.25 or 2.5
    assert 2.48 < high < 2.53
    curve = scored.curves["distance"]
    assert (curve["panel"], curve["label"]) == ("eta 1", "T_es 2")
    assert curve["points"] == [[2, 0], [3, 1.5], [4, 2.25]]
    assert curve["dashed"]["points"] == [[2, 0], [3, 1.5], [4, 3.5]]
    assert scored.curves["gap"]["points"] == [[2, 1.5], [3, 1.5]]
    assert scored.curves["stretch"]["points"] == [[3, 1.5]]  # none in the first step
    assert scored.curves["stretch"]["dashed"]["points"] == [[3, 2]]


def test_one_image_has_no_intervals():
    scored = score(rows(a=([0, 1], [0], [1])), "eta 1", "T_es 1")
    assert {metric["ci95"] for metric in scored.metrics.values()} == {None}
    assert scored.replicates == {}
    assert scored.metrics["distance"]["value"] == 1
    assert scored.curves["stretch"]["points"] == []


def test_equal_models_have_no_ratios():
    scored = score(rows(a=([0, 0], [0], [0]), b=([0, 0], [0], [0])), "eta 1", "T_es 1")
    values = {key: metric["value"] for key, metric in scored.metrics.items()}
    assert (values["tightness"], values["growth"]) == (None, None)
    assert values["distance"] == values["own_bound"] == values["bound_of_all"] == 0
    assert scored.rows[0].keys() == {"id", "distance", "own_bound", "gaps"}
