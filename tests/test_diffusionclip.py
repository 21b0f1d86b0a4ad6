"""DiffusionCLIP: what fine-tuning minimises, its memory, and its settings."""

import pytest
import torch
from torch import nn

from baselines.diffusionclip import DiffusionCLIP, Losses, Training, levels_up_to, rate, training_step
from cyclediff.diffusion.denoiser import NetworkDenoiser
from cyclediff.diffusion.schedule import DiffusionSchedule, FlowSchedule, alpha_bar_from_betas, linear_betas

from .guided_nets import CLIPS
from .nets import gaussian_denoiser

SCHEDULE = DiffusionSchedule(alpha_bar_from_betas(linear_betas()))
X0 = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1)) - 0.5
DIRECTION = torch.nn.functional.normalize(torch.randn(1, 16, generator=torch.Generator().manual_seed(2)))


class Bent(nn.Module):
    """A Gaussian's denoiser with a bias to train; counts its evaluations, also those that are repeated."""

    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1, 3, 16, 16))
        self.exact = gaussian_denoiser(0.0, 0.5, SCHEDULE)
        self.calls = 0

    def forward(self, xt, t):
        self.calls += 1
        return self.exact.network(xt, t) * (1 + self.bias) + self.bias


def run(steps=4, **how):
    network, gradients = Bent(), []

    def update(which, loss):
        (gradient,) = torch.autograd.grad(loss, network.bias)
        gradients.append(gradient)
        network.bias.data -= 0.02 * gradient.sign()

    training = Training(steps=steps, **how)
    denoiser = NetworkDenoiser(network, SCHEDULE)
    latent = DiffusionCLIP(t0=300, encoding_steps=6).encode(X0, gaussian_denoiser(0.0, 0.5, SCHEDULE))
    levels, losses = levels_up_to(SCHEDULE, 300, steps), Losses(CLIPS[0], DIRECTION, training)
    found = [training_step(latent, X0, denoiser, levels, losses, update) for _ in range(6)]
    return network, gradients, found


def test_checkpointing_changes_no_gradient_and_evaluates_twice():
    kept, again = run(checkpointing=False), run(checkpointing=True)
    assert all(one.equal(other) for one, other in zip(kept[1], again[1], strict=True))
    assert again[0].calls == 2 * kept[0].calls == 2 * 6 * 4


@pytest.mark.parametrize("per_step", [True, False])
def test_images_move_in_the_direction_of_the_texts(per_step):
    _, gradients, found = run(per_step=per_step)
    assert len(gradients) == 6 * (4 if per_step else 1)
    first, last = found[0][1][0], found[-1][1][0]
    assert last["directional"] < first["directional"] - 0.1
    assert last["total"].item() == pytest.approx(3 * last["clip"].item(), rel=1e-6)


def test_losses_by_their_formulas():
    how = Training(lambda_clip=2.0, lambda_l1=0.5, lambda_identity=0.25)

    def face(image):
        return nn.functional.normalize(image.mean(dim=(2, 3)))

    x = X0 + 0.3
    found = Losses(CLIPS[0], DIRECTION, how, face)(x, X0)
    assert found["l1"].item() == pytest.approx(0.3, rel=1e-5)
    assert found["identity"].item() == pytest.approx(1 - (face(x) * face(X0)).sum().item(), abs=1e-6)
    assert found["clip"].item() == pytest.approx(-torch.log(1 - found["directional"] / 2).item(), rel=1e-5)
    total = 2 * found["clip"] + 0.5 * found["l1"] + 0.25 * found["identity"]
    assert found["total"].item() == pytest.approx(total.item(), rel=1e-6)
    assert Losses(CLIPS[0], DIRECTION, how, face)(x, X0, X0)["identity"].item() == pytest.approx(0, abs=1e-6)


def test_a_rate_that_grows():
    how = Training(images=3, growth=1.3)
    assert [rate(step, how) for step in (0, 2, 3, 6)] == pytest.approx([1, 1, 1.3, 1.69])


def test_levels_on_a_flow_too():
    levels = levels_up_to(FlowSchedule(), 400, 3)
    assert [round(level.b, 3) for level in levels] == [0.401, 0.201, 0.001, 0.0]


BAD = [
    (lambda: DiffusionCLIP(t0=0), "t0 must be at least 1; got 0"),
    (lambda: DiffusionCLIP(t0=40, decoding_steps=42), "decoding_steps must be between 2 and the 41 timesteps"),
    (lambda: DiffusionCLIP(training=Training(steps=500)), "training.steps must be at most the 401 timesteps"),
    (lambda: Training(lr=0.0), "training.lr and training.growth must be above 0"),
    (lambda: Training(lambda_l1=-1.0), "training.lambda_l1 must be at least 0"),
    (lambda: levels_up_to(SCHEDULE, 1000, 3), "t0 must be less than the 1000 training timesteps"),
    (lambda: Losses(CLIPS[0], DIRECTION, Training(lambda_identity=1.0)), "lambda_identity needs a network of faces"),
]


@pytest.mark.parametrize(("make", "sentence"), BAD)
def test_bad_settings(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
