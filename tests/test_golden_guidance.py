"""Plug-and-play guidance against its official code: samplers, the encoder, all energies, whole chains."""

from dataclasses import dataclass
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from cyclediff.diffusion.denoiser import LearnedVarianceDenoiser, NetworkDenoiser, prediction_from
from cyclediff.diffusion.energies import weighted_gradient
from cyclediff.diffusion.schedule import DiffusionSchedule, alpha_bar_from_betas, linear_betas
from cyclediff.diffusion.white_box import WhiteBox
from cyclediff.guidance import Guidance, State, langevin, result
from cyclediff.models import clip_energy
from cyclediff.models.attribute_classifier import Attribute, AttributeEnergy
from cyclediff.models.clip_energy import Clip, ClipEnergy, Draws
from cyclediff.models.identity import IdentityEnergy, cut_face, identity_energy

from .nets import RecordedNoise, cases, golden, state_of, tiny_network

NAME, CODE = "guidance", "Plug-and-play guidance"
SCHEDULE = DiffusionSchedule(alpha_bar_from_betas(linear_betas()))
CASES = tuple(cases(NAME))
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
VARIANCES = {"eps_eps2": "optimal", "eps_iddpm": "learned"}  # what rev_var_type "optimal" is


@dataclass(frozen=True, eq=False)
class SquareStandIn:
    """The stub of the recording: eps, and eps^2 + 0.3 sigmoid(V) as its square."""

    network: object
    schedule: DiffusionSchedule

    def __call__(self, x, level):
        return self.with_square(x, level)[0]

    def with_square(self, x, level):
        eps, v = self.network(x, self.schedule.time(level, x)).chunk(2, dim=1)
        return prediction_from(eps, x, level, "epsilon"), eps**2 + 0.3 * v.sigmoid()


@cache
def white_box(case: str) -> WhiteBox:
    config, network = cases(NAME)[case], tiny_network("adm_target")
    denoiser = {
        "eps": NetworkDenoiser(lambda x, t: network(x, t)[:, :3], SCHEDULE),
        "eps_iddpm": LearnedVarianceDenoiser(network, SCHEDULE),
        "eps_eps2": SquareStandIn(network, SCHEDULE),
    }[config["typ"]]
    assert config["clip_sigma_idx"] == 1
    return WhiteBox(
        denoiser,
        SCHEDULE.levels(config["sample_steps"], "uniform" if "trajectory" in config else "respaced"),
        config["white_box_steps"],
        config["forward_type"],
        config.get("eta", 1.0),
        VARIANCES.get(config["typ"], config["rev_var_type"]),
        clip_pixels=config["clip_pixel"],
    )


@cache
def classifier(name: str):
    stub = state_of(NAME, f"stub.class.{name}.")

    def logit(x):
        x = F.conv2d(x, stub["conv.weight"], stub["conv.bias"], stride=28).tanh().mean(dim=(2, 3))
        return F.linear(x, stub["fc.weight"], stub["fc.bias"])

    return logit


def face(x):
    stub = state_of(NAME, "stub.face.")
    x = F.conv2d(x, stub["conv.weight"], stub["conv.bias"], stride=14).tanh().flatten(1)
    return F.normalize(F.linear(x, stub["fc.weight"], stub["fc.bias"]))


def clip(name: str, tokens, weight: float) -> Clip:
    stub = state_of(NAME, f"stub.clip.{name}.")
    text = stub["text_table"][tokens[0]].sum(0)
    size = {"stubA": 16, "stubB": 20}[name]
    return Clip(lambda x: F.linear(x.flatten(1), stub["weight"], stub["bias"]), text, size, CLIP_MEAN, CLIP_STD, weight)


def draws_of(prefix: str, *index: int) -> Draws:
    """The recorded draws of a call; its "x" is the first axis of images, rows."""
    data = golden(NAME)
    found = {name: data[f"{prefix}.{name}"] for name in (
        "brightness", "saturation", "contrast", "shift_x", "shift_y", "resize_u", "cutout_x", "cutout_y",
    )}  # fmt: skip
    copies = found["brightness"].shape[-1]
    rows = {name: value[index].reshape(-1, 1 if name == "resize_u" else copies) for name, value in found.items()}
    return Draws(
        rows["brightness"], rows["saturation"], rows["contrast"], rows["shift_x"], rows["shift_y"],
        rows["resize_u"][:, 0], rows["cutout_x"], rows["cutout_y"],
    )  # fmt: skip


def references(count: int) -> IdentityEnergy:
    pictures = [Image.fromarray(picture.numpy()) for picture in golden(NAME)["id.ref_u8"][:count]]
    return identity_energy(face, pictures)


def energies_of(case: str, step) -> dict:
    """The energies of a case; `step` gives the number of the evaluation, for recorded augmentations."""
    config, data = cases(NAME)[case], golden(NAME)
    found = {}
    for name, settings in config["energies"].items():
        if name == "ClassEnergy":
            wanted = zip(settings["classes"], settings["binaries"], settings["weights"], strict=True)
            attributes = {key: Attribute(bool(binary), weight) for key, binary, weight in wanted}
            found[name] = AttributeEnergy({key: classifier(key) for key in ("Young", "Eyeglasses")}, attributes)
        elif name == "IDSingleEnergy":
            found[name] = references(settings["n_refs"])
        elif name == "CLIPEnergy":
            models = zip(settings["clip_models"], settings["clip_model_weights"], strict=True)
            energy = ClipEnergy([clip(model, data[f"{case}.text_tokens"], weight) for model, weight in models])
            found[name] = lambda images, noise, energy=energy: energy.of(images, draws_of(f"{case}.aug", step()))
    return found


def guidance_of(case: str) -> Guidance:
    config = cases(NAME)[case]
    weights = {name: settings["weight"] for name, settings in config["energies"].items()}
    return Guidance(config["step_size"], config["n_steps"], weights, weights.pop("PriorZEnergy"), config["metric"])


def codes(flat):
    return flat.reshape(len(flat), -1, 3, 16, 16)


class Replay:
    """The recorded draws of each step, and the number of the step for the augmentations."""

    def __init__(self, case: str):
        self.case, self.step = case, 0

    def __call__(self, k: int) -> RecordedNoise:
        self.step, data = k, golden(NAME)
        update = data[f"{self.case}.langevin_noise"]
        draws = [*data[f"{self.case}.blackbox_noise"][k]] if f"{self.case}.blackbox_noise" in data else []
        return RecordedNoise([*draws, *([codes(update[k])] if k < len(update) else [])])


@pytest.mark.parametrize("case", CASES)
def test_levels(case):
    levels = white_box(case).levels
    times = [0 if level.b == 0 else level.t + 1 for level in reversed(levels)]
    assert times == golden(NAME)[f"{case}.timesteps"].tolist()


@pytest.mark.parametrize("case", CASES)
def test_each_step_from_the_recorded_code(case, parity):
    """Images, energies and their gradient; the prior is not in the gradient."""
    data, replay, guidance, generator = golden(NAME), Replay(case), guidance_of(case), white_box(case)
    energies = energies_of(case, lambda: replay.step)
    for k in range(guidance.steps):
        noise, z, shown = replay(k), data[f"{case}.z"][k], []

        def evaluate(code, noise=noise, shown=shown):
            images = (generator(code, noise) + 1) / 2
            shown.append(images.detach())
            return {name: energy(images, noise) for name, energy in energies.items()}

        values, slope = weighted_gradient(evaluate, guidance.weights, codes(z))
        parity(CODE, "images of codes", shown[0], data[f"{case}.img"][k])
        for name, value in values.items():
            parity(CODE, "energies", value, data[f"{case}.E.{name}"][k])
        expected = data[f"{case}.grad"][k] - guidance.prior_weight * z
        parity(CODE, "gradient of the energies", slope.flatten(1), expected, 1e-3, relative=True)


@pytest.mark.parametrize("case", CASES)
def test_whole_chains(case, parity):
    data, replay, guidance, generator = golden(NAME), Replay(case), guidance_of(case), white_box(case)
    energies = energies_of(case, lambda: replay.step)
    state = begin = State.start(codes(data[f"{case}.z"][0]))
    for state in langevin(begin, guidance, generator, energies, replay):
        parity(CODE, "codes of a chain", state.z.flatten(1), data[f"{case}.z"][state.step])
        prior = data[f"{case}.E.PriorZEnergy"][state.step - 1]
        parity(CODE, "energy of the prior", state.energies["prior"], prior)
        if guidance.best_by:
            parity(CODE, "best value", state.best, data[f"{case}.best_metric"][state.step - 1 : state.step].float())
    assert state.step == guidance.steps
    z, images, values = result(state, guidance, generator, energies, replay)
    chosen = data[f"{case}.best_z"] if guidance.best_by else data[f"{case}.z"][-1]
    parity(CODE, "chosen code", z.flatten(1), chosen)
    parity(CODE, "image of the chosen code", (images + 1) / 2, data[f"{case}.img_final"])
    for name in guidance.weights:
        parity(CODE, "energies of the chosen code", values[name], data[f"{case}.E.{name}"][-1])
    parity(CODE, "weighted energy of the chosen code", values["total"], data[f"{case}.weighted_final"])


def test_the_recorded_choice_is_not_the_last_code():
    """In case a the last code of the chain is better than the chosen one, and was never judged."""
    replay, data = Replay("a"), golden(NAME)
    guidance, energies = guidance_of("a"), energies_of("a", lambda: 0)
    last = (white_box("a")(codes(data["a.z"][-1]), replay(guidance.steps)) + 1) / 2
    assert energies["ClassEnergy"](last, replay(0)) < data["a.best_metric"][-1]


def test_the_encoder(parity):
    data, size = golden(NAME), len(golden(NAME)["d.enc_z"])
    z = white_box("d").encode(2 * data["image01"][:size] - 1, RecordedNoise([*data["d.enc_noise"]]))
    parity(CODE, "codes of the encoder", z.flatten(1), data["d.enc_z"])
    assert data["d.enc_z"].equal(data["d.z"][0])


def test_augmentations_one_after_the_other(parity):
    draws, data = draws_of("aug_stage"), golden(NAME)
    x = data["aug_stage.x"].expand(6, -1, -1, -1)
    for name, change in {
        "brightness": lambda x: clip_energy.brightness(x, draws.brightness[0]),
        "saturation": lambda x: clip_energy.saturation(x, draws.saturation[0]),
        "contrast": lambda x: clip_energy.contrast(x, draws.contrast[0]),
        "translation": lambda x: clip_energy.translation(x, draws.shift_rows[0], draws.shift_columns[0]),
        "resize": lambda x: clip_energy.resized(x, draws.resize.item()),
        "cutout": lambda x: clip_energy.cutout(x, draws.cutout_rows[0], draws.cutout_columns[0]),
    }.items():
        x = change(x)
        parity(CODE, f"augmentation: {name}", x, data[f"aug_stage.out.rand_{name}"], 1e-5)


def test_clip_energy_of_fifty_copies(parity):
    data, draws = golden(NAME), draws_of("clip50")
    tokens = data["clip50.text_tokens"]
    energy = ClipEnergy([clip("stubA", tokens, 1.0), clip("stubB", tokens, 0.5)])
    values, slope = weighted_gradient(lambda x: {"clip": energy.of(x, draws)}, {"clip": 1.0}, data["aug_stage.x"])
    parity(CODE, "CLIP energy of 50 copies", values["clip"], data["clip50.E"])
    parity(CODE, "CLIP energy of 50 copies: gradient", slope, data["clip50.grad_x"], 1e-3, relative=True)
    assert energy.copies == draws.brightness.shape[1]


def test_references_are_made_small_first(parity):
    data = golden(NAME)
    expected = face(cut_face(data["id.ref_tensor_u8"] / 255))
    parity(CODE, "features of references", references(2).references, expected, 1e-5)
    pictures = [Image.fromarray(picture.numpy()) for picture in data["id.ref_u8"]]
    assert not torch.allclose(identity_energy(face, pictures, reference_size=None).references, expected, atol=1e-4)
