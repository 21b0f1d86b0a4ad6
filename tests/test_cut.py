"""CUT: official files load strictly and translate, and training learns, in batches, from given random numbers."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from baselines.cut import (
    CUT,
    FASTCUT,
    Networks,
    Training,
    augment,
    batch_of,
    crops,
    draw_positions,
    patch_nce,
    rate,
    steps_per_epoch,
    total_steps,
    training_step,
)
from cyclediff.diffusion.noise import Noise
from cyclediff.errors import UserError
from cyclediff.models.cut_networks import (
    LAYERS,
    Discriminator,
    Generator,
    Projections,
    initialise,
    load_generator,
)

from .nets import golden_json

KEYS = golden_json("cut_generator_keys")
SMALL = Training(
    width=4, blocks=5, discriminator_width=4, discriminator_layers=1, projection=8, patches=12,
    load_size=18, crop_size=16, epochs=2, decay_epochs=2,
)  # fmt: skip
SHAPE = {"width": 4, "blocks": 5}


def networks(seed=1):
    rng = torch.Generator().manual_seed(seed)
    generator = initialise(Generator(**SHAPE), rng, gain=1.0)
    heads = initialise(Projections(generator.feature_widths(), 8), rng, gain=1.0)
    return Networks(generator, initialise(Discriminator(4, layers=1), rng, gain=1.0), heads)


@pytest.mark.parametrize(("part", "values"), [("netG", 11_378_179), ("netD", 2_764_737), ("netF", 560_384)])
def test_names_shapes_and_sizes_are_official(part, values):
    with torch.device("meta"):
        network = {"netG": Generator, "netD": Discriminator, "netF": lambda: Projections([3, 128, 256, 256, 256])}[
            part
        ]()
    assert {key: list(value.shape) for key, value in network.state_dict().items()} == KEYS[part]["tensors"]
    assert sum(p.numel() for p in network.parameters()) == KEYS[part]["n_trainable"] == values


def test_heads_are_made_for_the_features_before_the_first_step():
    assert Generator(**SHAPE).feature_widths() == [3, 8, 16, 16, 16]
    with pytest.raises(ValueError, match=r"the generator has the layers 0 … 28; got \[0, 29\]"):
        Generator(width=4, blocks=6).feature_widths([0, 29])


def test_official_initialisation():
    network = initialise(Generator(), torch.Generator().manual_seed(1))
    weight = network.get_parameter("model.15.conv_block.1.weight")  # fans of 256 · 9 each
    assert weight.std().item() == pytest.approx(0.02 * math.sqrt(2 / (2 * 256 * 9)), rel=0.01)
    assert not network.get_parameter("model.15.conv_block.1.bias").any()
    again = initialise(Generator(), torch.Generator().manual_seed(1))
    assert all(one.equal(other) for one, other in zip(network.parameters(), again.parameters(), strict=True))


@pytest.fixture
def official(tmp_path):
    """A file in the official layout: a plain state dict."""
    network = networks().generator
    path = tmp_path / "latest_net_G.pth"
    torch.save(network.state_dict(), path)
    return network, path


def test_an_official_file_translates(official):
    network, path = official
    method, x = CUT(load_generator(str(path), **SHAPE)), torch.rand(3, 3, 16, 24) * 2 - 1
    out = method(x, None, None, Noise(1, ["a", "b", "c"]))
    torch.testing.assert_close(out, network(x))
    assert out.abs().max() <= 1
    with pytest.raises(ValueError, match="sides must be multiples of 4; got 18×16"):
        method(torch.zeros(1, 3, 18, 16), None, None, Noise(1, ["a"]))


def test_files_that_do_not_fit_are_refused(official, tmp_path):
    network, path = official
    with pytest.raises(UserError, match=r"does not fit this configuration: 12 missing \(model.17.conv_block"):
        load_generator(str(path), width=4, blocks=6)
    state = network.state_dict()
    for change, sentence in {
        "model.1.bias": "NaN or Inf",
        "model.7.filt": "has another filter than the official networks in model.7.filt",
        "model.17.filt": "has another filter than the official networks in model.17.filt",
    }.items():
        fill = float("nan") if change.endswith("bias") else 0.25
        file = tmp_path / f"{change}.pth"
        torch.save(state | {change: torch.full_like(state[change], fill)}, file)
        with pytest.raises(UserError, match=sentence):
            load_generator(str(file), **SHAPE)


def test_patch_nce_is_the_cross_entropy():
    """torch's own, of the same cosines, with the place itself once only."""
    q, k = (nn.functional.normalize(torch.randn(2, 5, 3), dim=2) for _ in range(2))
    for across, groups in ((False, (2, 5)), (True, (1, 10))):
        cosines = q.reshape(*groups, 3) @ k.reshape(*groups, 3).mT / 0.07
        places = torch.arange(groups[1]).expand(groups[0], -1)
        expected = nn.functional.cross_entropy(cosines.flatten(0, 1), places.flatten(), reduction="none")
        torch.testing.assert_close(patch_nce(q, k, 0.07, across).flatten(), expected)


def test_positions_are_different_ones_inside_the_map():
    features = [torch.zeros(2, 1, 4, 5), torch.zeros(2, 1, 3, 2)]
    large, small = draw_positions(features, 12, torch.Generator().manual_seed(1))
    assert len(large) == len(set(large.tolist())) == 12
    assert large.max() < 20
    assert sorted(small.tolist()) == list(range(6))


class Updates:
    def __init__(self, parts: Networks, lr=0.01):
        params = {"discriminator": list(parts.discriminator.parameters())}
        params["generator"] = [*parts.generator.parameters(), *parts.projections.parameters()]
        self.params, self.lr, self.seen = params, lr, {}

    def __call__(self, which, loss):
        grads = torch.autograd.grad(loss, self.params[which])
        self.seen[which] = torch.cat([grad.flatten() for grad in grads])
        with torch.no_grad():
            for parameter, grad in zip(self.params[which], grads, strict=True):
                parameter -= self.lr * grad


def images(n, seed):
    return torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("how", [SMALL, Training(**vars(SMALL) | {"identity": False, "flip": True})])
def test_a_batch_has_the_mean_gradient_of_its_images(how):
    """Nothing crosses the images of a batch: as several processes need it."""
    a, b = images(3, 1), images(3, 2)
    found = []
    for rows in ([0, 1, 2], [0], [1], [2]):
        parts = networks()
        update, rng = Updates(parts, lr=0.0), torch.Generator().manual_seed(4)
        with torch.enable_grad():
            losses = training_step(a[rows], b[rows], parts, how, rng, update)
        found.append((update.seen, losses))
    (whole, losses), singles = found[0], found[1:]
    for which, gradient in whole.items():
        mean = torch.stack([seen[which] for seen, _ in singles]).mean(0)
        assert (gradient - mean).abs().max() < 1e-4 * mean.abs().max()
    for key, value in losses.items():
        assert value.item() == pytest.approx(sum(one[key].item() for _, one in singles) / 3, rel=1e-4)


def test_features_of_the_pass_are_those_of_a_pass_of_their_own():
    generator, x = networks().generator, images(2, 1)
    for shared, own in zip(generator.with_features(x)[1], generator.features(x, LAYERS), strict=True):
        assert shared.equal(own)


def test_half_of_fastcuts_steps_are_mirrored(monkeypatch):
    seen, parts = [], networks()
    run = parts.generator.with_features
    monkeypatch.setattr(parts.generator, "with_features", lambda x, layers: (seen.append(x), run(x, layers))[1])
    how, rng, a, b = (
        Training(**vars(SMALL) | {"identity": False, "flip": True}),
        torch.Generator(),
        images(1, 1),
        images(1, 2),
    )
    with torch.enable_grad():
        for _ in range(20):
            training_step(a, b, parts, how, rng.manual_seed(len(seen)), Updates(parts, 0.0))
    mirrored = [x.equal(a.flip(3)) for x in seen]
    assert all(x.equal(a) for x, flipped in zip(seen, mirrored, strict=True) if not flipped)
    assert 4 <= sum(mirrored) <= 16


def test_training_moves_the_colours_to_the_target_domain():
    """Dark images become bright."""
    parts, rng = networks(), torch.Generator().manual_seed(1)
    parameters = {"discriminator": parts.discriminator.parameters()}
    parameters["generator"] = [*parts.generator.parameters(), *parts.projections.parameters()]
    optimizers = {key: torch.optim.Adam(of, 2e-3, (0.5, 0.999)) for key, of in parameters.items()}

    def update(which, loss):
        optimizers[which].zero_grad()
        loss.backward(inputs=[p for group in optimizers[which].param_groups for p in group["params"]])
        optimizers[which].step()

    a, b = images(8, 1) / 4 - 0.5, images(8, 2) / 4 + 0.5
    with torch.enable_grad():
        for step in range(60):
            rows = torch.arange(step * 2, step * 2 + 2) % 8
            training_step(a[rows], b[rows], parts, SMALL, rng, update)
    assert parts.generator(a).mean() > 0.2


def test_published_settings():
    cut, fast = Training(), FASTCUT
    assert (cut.epochs, cut.decay_epochs, cut.lambda_nce, cut.identity, cut.flip) == (200, 200, 1.0, True, False)
    assert (fast.epochs, fast.decay_epochs, fast.lambda_nce, fast.identity, fast.flip) == (150, 50, 10.0, False, True)
    for how in (cut, fast):
        assert (how.lr, how.beta1, how.beta2, how.batch, how.lambda_gan) == (2e-4, 0.5, 0.999, 1, 1.0)
        assert (how.patches, how.projection, how.temperature, how.width) == (256, 256, 0.07, 64)


def test_the_learning_rate_falls_linearly_after_the_first_half():
    how = Training(epochs=3, decay_epochs=4)
    assert total_steps(how, 10) == 70
    by_epoch = [rate(10 * epoch, 10, how) for epoch in range(7)]
    assert by_epoch == pytest.approx([1, 1, 1, 0.8, 0.6, 0.4, 0.2])
    assert rate(39, 10, how) == rate(30, 10, how)
    assert [crops(10 * epoch, 10, how) for epoch in range(7)] == [True] * 3 + [False] * 4


def test_order_of_images():
    how = Training(**vars(SMALL) | {"batch": 2})
    per_epoch = steps_per_epoch(how, 6, 4)
    assert per_epoch == 3
    epochs = [[batch_of(step, how, 6, 4, seed=1) for step in range(3 * e, 3 * e + 3)] for e in range(2)]
    for epoch in epochs:
        assert sorted(torch.cat([a for a, _ in epoch]).tolist()) == list(range(6))
        assert torch.cat([b for _, b in epoch]).max() < 4
    assert not torch.cat([a for a, _ in epochs[0]]).equal(torch.cat([a for a, _ in epochs[1]]))
    assert batch_of(4, how, 6, 4, seed=1)[0].equal(epochs[1][1][0])
    fewer = torch.cat([batch_of(step, how, 4, 6, seed=1)[0] for step in range(3)])
    assert sorted(fewer.tolist()) == [0, 0, 1, 1, 2, 3]


def test_domains_that_are_too_small():
    with pytest.raises(ValueError, match="a domain needs at least 2 images; the target has 1"):
        steps_per_epoch(SMALL, 9, 1)
    with pytest.raises(ValueError, match=r"training.batch must be at most the 3 images; got 4"):
        steps_per_epoch(Training(batch=4), 2, 3)


def test_cuts_are_inside_and_half_are_mirrored():
    rows, columns = torch.meshgrid(torch.arange(9), torch.arange(11), indexing="ij")
    image = torch.stack((rows, columns, 0 * rows)).to(torch.uint8).expand(200, -1, -1, -1)
    out = ((augment(image, 8, torch.Generator().manual_seed(1)) + 1) * 127.5).round()
    steps = out[:, 1, 0, 1] - out[:, 1, 0, 0]
    assert set(steps.tolist()) == {1.0, -1.0}
    assert 70 < (steps < 0).sum() < 130
    assert set(out[:, 0, 0, 0].tolist()) == {0.0, 1.0}
    assert set(out[:, 1, 0].amin(1).tolist()) == {0.0, 1.0, 2.0, 3.0}


BAD = {
    "patches": (1, "training.patches must be at least 2; got 1"),
    "lambda_nce": (-1.0, "training.lambda_nce must be at least 0"),
    "temperature": (0.0, "training.temperature and training.lr must be above 0"),
    "beta1": (1.0, r"training.beta1 must be in \[0, 1\)"),
    "crop_size": (30, "training.crop_size must be a multiple of 4 from 16 to"),
    "layers": ([], "training.layers must be numbers of the generator's layers"),
}


@pytest.mark.parametrize("key", BAD)
def test_bad_settings(key):
    value, sentence = BAD[key]
    with pytest.raises(ValueError, match=sentence):
        Training(**{key: value})


def test_the_shipped_generator_and_a_colour_that_is_added_to_an_image():
    """Its card says it: instance normalisation removes what is constant, so the colour of a whole image is lost."""
    generator = load_generator(
        str(Path(__file__).parents[1] / "cyclediff/pets/weights/cut.safetensors"), width=32, blocks=5
    )
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)) / 2 - 0.5
    colour = torch.tensor([0.3, -0.1, 0.4])[:, None, None]
    torch.testing.assert_close(generator(images + colour), generator(images), atol=1e-3, rtol=0)
    assert (generator(images.flip(-1)) - generator(images)).abs().mean() > 0.05  # but it does see where things are
