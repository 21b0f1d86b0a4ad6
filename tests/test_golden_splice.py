"""Splice against its official code: the generator, the losses with gradients, and which of them a step has."""

import json

import pytest
import torch
from safetensors import safe_open

from baselines.splice import Splice, losses
from cyclediff.diffusion.energies import gradient
from cyclediff.diffusion.vit_losses import cls_distance, self_similarity, structure
from cyclediff.models.splice_generator import SkipNets

from .guided_nets import tiny_vit
from .nets import GOLDEN, golden, golden_json, state_of

NAME, CODE = "splice", "Splice"
DATA = golden(NAME)
A, B = DATA["A_global"], DATA["B_global"]


def metadata(key):
    with safe_open(GOLDEN / f"{NAME}.safetensors", "pt") as file:
        return json.loads(file.metadata()[key])


def how(**changed) -> Splice:
    return Splice(vit=tiny_vit(), generator=SkipNets(), **changed)


def test_generator_has_the_official_tensors():
    network, official = SkipNets()(torch.Generator()), golden_json("splice_generator_keys")
    assert {key: list(value.shape) for key, value in network.state_dict().items()} == official["tensors"]
    assert sum(p.numel() for p in network.parameters()) == official["n_trainable"] == 1_037_523


def test_generator(parity):
    shape = metadata("generator")
    nets = SkipNets(*(shape[f"num_channels_{part}"] for part in ("down", "up", "skip")))
    network = nets(torch.Generator())
    network.load_state_dict(state_of(NAME, "G."))
    parity(CODE, "generator, in train mode", network.train()(DATA["G_x"]), DATA["G_out_train"])
    for key in (key for key in DATA if key.startswith("G_after.")):
        parity(CODE, "generator: statistics", network.state_dict()[key.removeprefix("G_after.")], DATA[key], 1e-5)
    parity(CODE, "generator, in eval mode", network.eval()(DATA["G_x"]), DATA["G_out_eval_after_one_train_forward"])


def of(name):
    """A loss of an image in [0, 1], and the image at which it is recorded."""
    vit, wanted = tiny_vit(), tiny_vit()(2 * B - 1)
    similarity = self_similarity(vit(2 * A - 1).keys)
    return {
        "cls": (lambda x: cls_distance(vit(2 * x - 1).cls, wanted.cls), DATA["x_global"]),
        "ssim": (lambda x: structure(vit(2 * x - 1).keys, similarity), DATA["x_global"]),
        "id": (lambda x: (vit(2 * x - 1).keys - wanted.keys).square().mean()[None], DATA["y_global"]),
    }[name]


@pytest.mark.parametrize("name", ["cls", "ssim", "id"])
def test_losses(name, parity):
    energy, x = of(name)
    parity(CODE, "losses", energy(x)[0], DATA[f"loss.{name}"], 1e-4, relative=True)
    key = f"loss.{name}.grad_{'y' if name == 'id' else 'x'}_global"
    parity(CODE, "losses: gradients", gradient(energy, x), DATA[key], 1e-3, relative=True)


OFFICIAL_NAMES = {
    "cls": "loss_global_cls", "structure": "loss_global_ssim", "identity": "loss_global_id_B",
    "entire_structure": "loss_entire_ssim", "entire_cls": "loss_entire_cls",
}  # fmt: skip


def test_losses_of_a_step(parity):
    assert metadata("sched_columns")[:2] == ["step", "loss"]
    for step, total, *_ in DATA["sched.rows"].tolist():
        entire = DATA["x_entire"] if int(step) % how().entire_every == 0 else None
        found = losses(int(step), DATA["x_global"], DATA["y_global"], entire, A, B, DATA["A"], how())
        parity(CODE, "losses of steps 0, 1, 2, 75, 76, 150", found["total"], torch.tensor(total), 1e-4, relative=True)
        for ours, theirs in OFFICIAL_NAMES.items():
            recorded = DATA.get(f"sched.{int(step)}.{theirs}")
            if recorded is not None:
                parity(CODE, "losses of steps 0 and 75, each", found[ours], recorded, relative=True)


def test_defaults_are_the_official_ones():
    official = metadata("config_default")
    ours = how()
    assert {
        "lambda_global_cls": ours.lambda_cls, "lambda_global_ssim": ours.lambda_structure,
        "lambda_global_identity": ours.lambda_identity, "entire_A_every": ours.entire_every,
        "lambda_entire_cls": ours.lambda_entire_cls, "lambda_entire_ssim": ours.lambda_entire_structure,
        "cls_warmup": ours.warm_up, "n_epochs": ours.steps, "lr": ours.lr, "use_augmentations": ours.augment,
        "optimizer_beta1": ours.beta1, "optimizer_beta2": ours.beta2, "global_A_crops_min_cover": ours.min_cover,
    }.items() <= official.items()  # fmt: skip
