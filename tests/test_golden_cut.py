"""CUT and FastCUT against their official code: networks, features, losses with gradients, and a step of training."""

import json
from functools import cache

import pytest
import torch
from safetensors import safe_open

from baselines.cut import Networks, Training, lsgan, patch_nce, training_step
from cyclediff.diffusion.energies import gradient
from cyclediff.models.cut_networks import LAYERS, Discriminator, Down, Generator, Projections, Up
from cyclediff.models.weights import load_weights

from .nets import GOLDEN, golden, state_of

NAME, CODE = "cut", "CUT, FastCUT"
DATA = golden(NAME)
VARIANTS = {"default": (True, True), "no_antialias": (False, True), "no_antialias_up": (True, False)}


@cache
def config() -> dict:
    with safe_open(GOLDEN / f"{NAME}.safetensors", "pt") as file:
        return json.loads(file.metadata()["config"])


def loaded(network, prefix):
    state = {key: value for key, value in state_of(NAME, prefix).items() if key != "out"}
    load_weights(network, state, "golden")
    return network


def generator(variant="default"):
    antialias, antialias_up = VARIANTS[variant]
    network = Generator(8, config()[f"G_{variant}"]["n_blocks"], antialias, antialias_up)
    return loaded(network, f"G.{variant}.")


def projections():
    return loaded(Projections(generator().feature_widths(), 16), "F.")


@pytest.mark.parametrize("variant", VARIANTS)
def test_generators(variant, parity):
    parity(CODE, "generator, three kinds", generator(variant)(DATA["x"]), DATA[f"G.{variant}.out"])


def test_filters_against_aliasing(parity):
    down, up = Down(2), Up(2)
    assert down.filt.equal(DATA["aa.down_filt"])
    assert up.filt.equal(DATA["aa.up_filt"])
    parity(CODE, "filters against aliasing", down(DATA["aa.x"]), DATA["aa.down"], 1e-6)
    parity(CODE, "filters against aliasing", up(DATA["aa.x"]), DATA["aa.up"], 1e-6)


def test_features(parity):
    network = generator()
    image, found = network.with_features(DATA["x"])
    assert image.equal(network(DATA["x"]))
    for layer, feature, alone in zip(LAYERS, found, network.features(DATA["x"]), strict=True):
        assert feature.equal(alone)
        seen = feature[:, :, :12, :12] if layer == 0 else feature
        parity(CODE, "features of layers 0, 4, 8, 12, 16", seen, DATA[f"feat.{layer}"])


def test_patch_nce(parity):
    network, heads = generator(), projections()
    places = [DATA[f"patch.{layer}.ids"] for layer in LAYERS]
    keys, queries = (heads(network.features(DATA[x]), places) for x in ("x", "x_q"))
    losses = []
    for layer, k, q in zip(LAYERS, keys, queries, strict=True):
        parity(CODE, "PatchNCE: vectors of patches", k.flatten(0, 1), DATA[f"patch.{layer}.k"])
        parity(CODE, "PatchNCE: vectors of patches", q.flatten(0, 1), DATA[f"patch.{layer}.q"])
        losses.append(patch_nce(q, k, 0.07))
        parity(CODE, "PatchNCE: loss of each patch", losses[-1].flatten(), DATA[f"nce.{layer}.per_patch"])
        across = patch_nce(q, k, 0.07, across=True)
        parity(CODE, "PatchNCE: negatives of a batch", across.flatten(), DATA[f"nce.{layer}.per_patch_allneg"])
        k, q = (DATA[f"patch.{layer}.{key}"].unflatten(0, (2, -1)) for key in "kq")
        slope = gradient(lambda q, k: patch_nce(q, k, 0.07).mean()[None], q, k)
        parity(CODE, "PatchNCE: gradient", slope.flatten(0, 1), DATA[f"nce.{layer}.grad_q"], 1e-3, relative=True)
    parity(CODE, "PatchNCE: mean over layers", torch.stack([loss.mean() for loss in losses]).mean(), DATA["nce.total"])


@pytest.mark.parametrize("antialias", [True, False])
def test_discriminators(antialias, parity):
    prefix = "D.default." if antialias else "D.no_antialias."
    out = loaded(Discriminator(8, antialias=antialias), prefix)(DATA["D.x"])
    parity(CODE, "discriminator, two kinds", out, DATA[f"{prefix}out"])


@pytest.mark.parametrize("kind", ["real", "fake"])
def test_least_squares_gan(kind, parity):
    discriminator = loaded(Discriminator(8), "D.default.")
    parity(CODE, "least squares GAN", lsgan(discriminator(DATA["D.x"]), kind == "real"), DATA[f"lsgan.{kind}"])
    slope = gradient(lambda x: lsgan(discriminator(x), kind == "real")[None], DATA["D.x"])
    parity(CODE, "least squares GAN: gradient", slope, DATA[f"lsgan.{kind}.grad_x"], 1e-3, relative=True)


OFFICIAL_NAMES = {"D_real": "loss_D_real", "D_fake": "loss_D_fake", "GAN": "loss_G_GAN"}


class Recorder:
    """Minimises as a trainer does, and keeps what the golden file keeps."""

    def __init__(self, networks: Networks, how: Training):
        parts = {"discriminator": [networks.discriminator], "generator": [networks.generator, networks.projections]}
        self.parameters = {which: [p for n in of for p in n.parameters()] for which, of in parts.items()}
        self.optimizers = {
            which: torch.optim.Adam(of, how.lr, (how.beta1, how.beta2)) for which, of in self.parameters.items()
        }
        self.order, self.losses = [], {}

    def __call__(self, which, loss):
        self.order.append(which)
        self.losses[which] = loss.detach()
        loss.backward(inputs=self.parameters[which])
        self.optimizers[which].step()


@pytest.mark.parametrize("kind", ["cut", "fastcut"])
def test_a_step_of_training(kind, parity):
    case, fast = f"step_{kind}", kind == "fastcut"
    settings = {"patches": 24, "width": 8, "projection": 16, "discriminator_width": 8, "blocks": 6}
    how = Training(**settings | ({"lambda_nce": 10.0, "identity": False, "flip": True} if fast else {}))
    made = Generator(8, 6)
    networks = Networks(
        loaded(made, "step_cut.G0."),
        loaded(Discriminator(8), "step_cut.D0."),
        loaded(Projections(made.feature_widths(), 16), "step_cut.F0."),
    )
    a, b = DATA[f"{case}.A"], DATA[f"{case}.B"]
    fake = made(a.flip(3) if fast else a)
    parity(CODE, "a step of training: images", fake, DATA[f"{case}.fake_B"])
    places = [DATA[f"{case}.perm{i}"] for i in range(5 if fast else 10)]
    update, rng = Recorder(networks, how), torch.Generator()
    with torch.enable_grad():
        losses = training_step(a, b, networks, how, rng, update, [places[:5], places[5:]][: 1 if fast else 2], fast)
    assert update.order == ["discriminator", "generator"]
    for ours, theirs in OFFICIAL_NAMES.items():
        parity(CODE, "a step of training: losses", losses[ours], DATA[f"{case}.{theirs}"])
    parity(CODE, "a step of training: losses", how.lambda_nce * losses["NCE"], DATA[f"{case}.loss_NCE"])
    if not fast:
        parity(CODE, "a step of training: losses", losses["NCE_identity"], DATA[f"{case}.loss_NCE_Y"])
    parity(CODE, "a step of training: losses", update.losses["discriminator"], DATA[f"{case}.loss_D"])
    parity(CODE, "a step of training: losses", update.losses["generator"], DATA[f"{case}.loss_G"])
    of = {"G": networks.generator, "D": networks.discriminator, "F": networks.projections}
    recorded = [key for key in DATA if key.startswith(f"{case}.grad.") and comparable(key)]
    assert len(recorded) == 5
    for key in recorded:
        letter, name = key.removeprefix(f"{case}.grad.").split(".", 1)
        parameter = of[letter].get_parameter(name)
        parity(CODE, "a step of training: gradients", parameter.grad, DATA[key], 1e-3, relative=True)
        after = DATA[key.replace(".grad.", ".after.")]
        parity(CODE, "a step of training: weights after it", parameter, after, 2e-5)


def comparable(key: str) -> bool:
    """Whether a recorded gradient is that of the recorded loss.

    Those of the generator's weights are not: `test_gradients_of_the_generator` shows by differences of the loss, which
    is the recorded one, that they differ from its slope. Its bias behind layer 8, discriminator and heads agree.
    """
    return ".grad.G." not in key or key.endswith("bias")


def test_gradients_of_the_generator():
    """Against differences of the loss itself, in float64; see `comparable`."""
    case, name = "step_fastcut", "model.27.weight"
    parts = [loaded(network, f"step_cut.{letter}0.").double() for letter, network in (
        ("G", Generator(8, 6)), ("D", Discriminator(8)), ("F", Projections([3, 16, 32, 32, 32], 16)),
    )]  # fmt: skip
    networks, how = Networks(*parts), Training(patches=24, lambda_nce=10.0, identity=False, flip=True)
    a, b = (DATA[f"{case}.{key}"].double() for key in "AB")
    places, losses, slopes = [DATA[f"{case}.perm{i}"] for i in range(5)], [], []
    weight = networks.generator.get_parameter(name)

    def update(which, loss):
        if which == "generator":
            losses.append(loss.item())
            slopes.append(torch.autograd.grad(loss, weight)[0])

    def run():
        with torch.enable_grad():
            training_step(a, b, networks, how, torch.Generator(), update, [places], flipped=True)

    run()
    for along in (slopes[0], DATA[f"{case}.grad.G.{name}"].double()):
        way = 1e-6 * along / along.norm()
        for sign in (1, -2):
            weight += sign * way
            run()
        weight += way
        slope = (losses[-2] - losses[-1]) / 2e-6
        assert slope == pytest.approx((slopes[0] * along).sum().item() / along.norm().item(), rel=1e-4)
