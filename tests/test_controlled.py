"""Cross-attention control inside the methods: its limits, and that the source's attention really enters the target."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from baselines.ddib import DDIB
from baselines.edit_friendly import EditFriendly
from baselines.sdedit import SDEdit
from cyclediff.attention_control import AttentionControl
from cyclediff.cyclediffusion import CycleDiffusion
from cyclediff.diffusion.noise import Noise
from cyclediff.diffusion.schedule import DiffusionSchedule
from cyclediff.models.load_text import load_text_to_image

from .nets import GaussianDenoiser
from .tiny_sd import stable_diffusion

SOURCE, TARGET = "a small cat on a blue background", "a small dog on a blue background"
LONGER = "a photo of a small dog looking left on a blue background"
X0 = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(6))
METHODS = {
    "cyclediffusion": CycleDiffusion(T=20, T_es=14, eta=0.1, spacing="latent"),
    "sdedit": SDEdit(T=20, t0=14, spacing="latent", variance="none"),
    "ddib": DDIB("20", False, "latent"),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_text_to_image(str(stable_diffusion(tmp_path_factory.mktemp("sd"))))


@pytest.fixture(params=METHODS)
def method(request):
    return METHODS[request.param]


def apply(method, model, attention, source=SOURCE, target=TARGET, guidance=2.0):
    sides = model.condition([source] * 2), model.condition([target] * 2, guidance)
    return replace(method, attention=attention)(X0, *sides, Noise(1, ["a", "b"]))


def test_empty_windows_are_the_plain_method(method, model):
    for target in (TARGET, LONGER):
        plain = apply(method, model, None, target=target)
        assert torch.allclose(apply(method, model, AttentionControl(0.0, 0.0), target=target), plain, atol=1e-4)


def test_the_sources_attention_enters_the_target(method, model):
    plain = apply(method, model, None)
    cross, own = (apply(method, model, AttentionControl(c, s)) for c, s in ((1.0, 0.0), (0.0, 1.0)))
    assert (cross - plain).abs().mean() > 1e-3
    assert (own - plain).abs().mean() > 1e-3
    assert (cross - own).abs().mean() > 1e-3
    half = apply(method, model, AttentionControl(0.5, 0.0))
    assert (half - plain).abs().mean() > 1e-4
    assert (half - cross).abs().mean() > 1e-4


def test_equal_prompts_return_the_latent(model):
    """Whatever the windows: an edit of nothing copies maps onto themselves."""
    for attention in (AttentionControl(1.0, 1.0), AttentionControl(0.3, 0.6)):
        out = apply(METHODS["cyclediffusion"], model, attention, target=SOURCE, guidance=1.0)
        assert torch.allclose(out, X0, atol=1e-4)


def test_weights_of_words(model):
    method = METHODS["cyclediffusion"]
    one = apply(method, model, AttentionControl(1.0, 0.0, weights={"dog": 1.0}))
    assert torch.allclose(one, apply(method, model, AttentionControl(1.0, 0.0)), atol=1e-5)
    assert (apply(method, model, AttentionControl(1.0, 0.0, weights={"dog": 5.0})) - one).abs().mean() > 1e-4


class LeftHalf:
    """Control that leaves the attention as it is, and keeps the left half of the source's states."""

    blend = "left"

    def plan(self, sources, targets, length, num_steps, device):
        owners = []

        def at(step, base_rows, edited_rows, pairs):
            owners[:] = pairs

        def blend(step, xs, xt):
            out = xt.clone()
            out[..., :4] = xs[owners][..., :4]
            return out

        return SimpleNamespace(at=at, blend=blend)


BLENDING = {**METHODS, "edit_friendly": EditFriendly(T=20, t0=14, keep_last=True), "candidates": None}


@pytest.mark.parametrize("name", BLENDING)
def test_every_method_with_attention_control_blends(name, model):
    """What is kept is the source's own end, and the rest is edited."""
    sides = model.condition([SOURCE] * 2), model.condition([TARGET] * 2, 4.0)
    noise = Noise(1, ["a", "b"])
    if name == "candidates":
        method = replace(METHODS["cyclediffusion"], attention=LeftHalf())
        out = method.candidates(X0, *sides, noise, [(0, 14), (1, 14)])
        source = X0
    else:
        method = replace(BLENDING[name], attention=LeftHalf())
        out = method(X0, *sides, noise)
        same = replace(BLENDING[name], attention=None)
        alone = model.condition([SOURCE] * 2)
        source = X0 if name in ("cyclediffusion", "edit_friendly") else same(X0, alone, alone, Noise(1, ["a", "b"]))
    assert (out - source)[..., :4].abs().max() < 1e-4
    assert (out - source)[..., 4:].abs().mean() > 1e-2


def test_pairs_of_a_batch_do_not_mix(method, model):
    """A batch of a word swap and a refinement, of other guidance, equals both apart."""
    attention = AttentionControl(0.8, 0.4)
    controlled = replace(method, attention=attention)

    def edit(rows):
        sources, targets, scales = [SOURCE, "a cat"], [TARGET, "a big cat looking left"], [1.0, 3.0]
        source = model.condition([sources[i] for i in rows])
        target = model.condition([targets[i] for i in rows], [scales[i] for i in rows])
        return controlled(X0[rows], source, target, Noise(1, [str(i) for i in rows]))

    assert torch.allclose(edit([0, 1]), torch.cat((edit([0]), edit([1]))), atol=2e-4)


def test_no_second_evaluation(model):
    calls = []

    def counting(xt, t, context, edit):
        calls.append(len(xt))
        return model.network(xt, t, context, edit)

    apply(METHODS["cyclediffusion"], replace(model, network=counting), AttentionControl())
    assert calls == [6] * 14  # source, target, and target under the empty prompt, of two images


def test_models_without_prompts_are_refused():
    schedule = DiffusionSchedule(torch.linspace(0.999, 0.01, 1000, dtype=torch.float64))
    side = GaussianDenoiser(0.0, 1.0, schedule)
    for method in METHODS.values():
        with pytest.raises(ValueError, match="attention control needs prompts"):
            replace(method, attention=AttentionControl())(X0, side, side, Noise(1, ["a", "b"]))


def test_an_encoder_without_the_source_prompt_is_refused(model):
    sides = model.condition([SOURCE] * 2, 0.0), model.condition([TARGET] * 2)
    with pytest.raises(ValueError, match="must not be 0"):
        replace(METHODS["cyclediffusion"], attention=AttentionControl())(X0, *sides, Noise(1, ["a", "b"]))
