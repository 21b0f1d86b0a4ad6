"""study=train method=diffusionclip: a copy is fine-tuned, a killed training continues, and the result is a target."""

import hashlib
import json
import re
from pathlib import Path

import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from safetensors.torch import load_file, save_file

from baselines import diffusionclip
from cyclediff.data.images import read_batch
from cyclediff.diffusion.denoiser import X0Denoiser
from cyclediff.errors import UserError
from cyclediff.models import ddpm
from cyclediff.models.inference import Evaluation
from cyclediff.models.load import load_ddpm
from cyclediff.pets.captions import Description
from cyclediff.pets.folders import PETS_SEEDS, prepare_pets
from cyclediff.pets.networks import load
from cyclediff.pets.render import sample_factors
from cyclediff.runtime.record import hash_of
from cyclediff.runtime.training import train
from cyclediff.studies.context import Context
from cyclediff.studies.train import Train

from .forking import finish, run
from .test_run import metrics_of

TRAIN = ("study=train", "method=diffusionclip", "task=pets_cat2dog")
STEPS = ("method.encoding_steps=2", "method.decoding_steps=2", "data.limit=2", "task.reference_count=4")
SMALL = (*STEPS, "method.training.images=2", "method.training.iterations=1", "method.training.steps=2")
SMALL += ("study.checkpoint_every=1",)
CONF = Path(__file__).parents[1] / "conf"
CATS = CONF.parent / "cyclediff/pets/weights/cat.safetensors"
CPU = torch.device("cpu")


def study_of(outputs: Path, *overrides: str) -> Train:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base=None):
        cfg = compose("config", [*TRAIN, *SMALL, *overrides, f"paths.outputs={outputs}", f"paths.cache={outputs}"])
    return Train(Context(cfg, (str(CONF),), str(CONF)))


def trained(outputs: Path) -> Path:
    [folder] = outputs.glob("pets_cat2dog/diffusionclip-*")
    return folder


def weights_of(outputs: Path) -> str:
    return hashlib.sha256((trained(outputs) / "weights/last.safetensors").read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The outputs of a small training."""
    outputs = tmp_path_factory.mktemp("whole")
    done = run(*TRAIN, *SMALL, f"paths.outputs={outputs}")
    assert done.returncode == 0, done.stderr
    return outputs


def killed_at_step_2():
    plain, calls = diffusionclip.training_step, []

    def step(*arguments):
        calls.append(0)
        if len(calls) == 2:
            raise RuntimeError("killed")
        return plain(*arguments)

    diffusionclip.training_step = step


def test_the_result_is_another_network_and_says_of_what(whole):
    card = json.loads((trained(whole) / "weights/last.json").read_text())
    assert card["sha256"] == weights_of(whole)
    assert card["weights"]["source_model"] == hashlib.sha256(CATS.read_bytes()).hexdigest()
    assert (card["settings"]["source_text"], card["settings"]["target_text"]) == ("a cat", "a dog")
    before, after = load_file(CATS), load_file(trained(whole) / "weights/last.safetensors")
    assert before.keys() == after.keys()
    assert any(not before[key].equal(after[key]) for key in before)
    assert set(card["losses"]) == {"directional", "clip", "l1", "total"}


def test_a_killed_training_continues_to_the_same_weights(whole, tmp_path):
    arguments = [*TRAIN, *SMALL, f"paths.outputs={tmp_path}"]
    code, _ = finish(arguments, tmp_path / "log", killed_at_step_2)
    assert code == 1
    assert not (trained(tmp_path) / "weights").exists()
    code, text = finish(arguments, tmp_path / "log")
    assert code == 0, text
    assert weights_of(tmp_path) == weights_of(whole)


def test_the_result_is_the_target_of_the_method(whole, tmp_path):
    """A translation by its hash has the score that the training has seen."""
    weights = trained(whole) / "weights/last.safetensors"
    done = run("method=diffusionclip", *STEPS, f"task.tuned.diffusionclip={weights}", f"paths.outputs={tmp_path}")
    assert done.returncode == 0, done.stderr
    record = json.loads((trained(tmp_path) / "run.json").read_text())
    assert record["weights"] == {"source": hashlib.sha256(CATS.read_bytes()).hexdigest(), "target": weights_of(whole)}
    seen = json.loads((trained(whole) / "weights/last.json").read_text())["scores"]["fid"][0]
    assert metrics_of(trained(tmp_path))["fid"]["value"] == pytest.approx(seen, rel=1e-3)


def test_without_a_trained_target_the_dogs_own_model_is_not_taken(tmp_path):
    done = run("method=diffusionclip", *STEPS, f"paths.outputs={tmp_path}")
    assert done.returncode == 2
    assert "diffusionclip needs a target model, and none is known for pets_cat2dog; choose method=" in done.stderr
    assert "or train one: python run.py hydra.mode=RUN study=train method=diffusionclip" in done.stderr


@pytest.mark.parametrize("per_step", [False, True])
def test_the_loaded_network_is_left_as_it_was(per_step, tmp_path):
    """Loaders give everybody the same object."""
    study = study_of(tmp_path, f"method.training.per_step={str(per_step).lower()}")
    study.needs()
    study.items()
    training, denoiser = study.recipe.training(CPU), load(str(CATS), "cpu").condition()
    assert isinstance(denoiser, X0Denoiser)
    assert isinstance(denoiser.network, Evaluation)
    shared = denoiser.network.module
    before = {key: value.clone() for key, value in shared.state_dict().items()}
    result = train(training, tmp_path / "training", "t").networks["network"]
    assert not any(parameter.requires_grad for parameter in shared.parameters())
    assert all(value.equal(before[key]) for key, value in shared.state_dict().items())
    moved = [not value.equal(before[key]) for key, value in result.named_parameters()]
    assert all(moved[:4])  # the first layers: the gradient has come through all of the network
    assert sum(moved) > len(moved) / 2
    updates = 2 if per_step else 1  # of a step: one after each of the sampler's, or one
    assert int(training.optimizers["network"].state_dict()["state"][0]["step"]) == 2 * updates


def test_what_decides_it_is_in_its_identity(tmp_path):
    def folder(*overrides: str) -> str:
        return hash_of(study_of(tmp_path, *overrides).identity())

    changes = ["method.t0=300", "method.training.lr=0.1", "method.training.target_text=a", "method.encoding_steps=3"]
    folders = [folder(), *(folder(change) for change in changes)]
    assert len(set(folders)) == len(folders)
    assert folder("task.tuned.diffusionclip=x") == folders[0]  # it starts from the source


def test_cats_of_one_colour(tmp_path):
    """Those that were purple, as a caption says it, are as they were; the background is everybody's own."""
    cats, purple = (prepare_pets(domain, "source", 40, 64, tmp_path) for domain in ("cat", "purple cat"))
    assert purple.ids == cats.ids
    before, after = (read_batch([each.path / f"{i}.png" for i in each.ids]) for each in (cats, purple))
    factors = sample_factors(40, torch.Generator().manual_seed(PETS_SEEDS["source"]))
    same = [one.equal(other) for one, other in zip(before, after, strict=True)]
    assert same == [Description(row, "cat").words()["fur"] == "purple" for row in factors]
    assert 0 < sum(same) < 40
    assert before[:, :, 0, 0].equal(after[:, :, 0, 0])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (["method.training.target_text=''"], "set method.training.source_text and target_text, for example 'a cat'"),
        (["method.training.target_text=a cat"], "from one text to another"),
        (["study.count=1"], "training.images must be at most the 1 source images; got 2"),
        (["study.count=0"], "study.count must be a whole number of at least 1; got 0"),
        (["study.source=null"], "study=train needs images of the source domain to train on, and none are known for"),
        (["study.source=nowhere"], "study.source=nowhere is no folder; name a folder of images"),
        (["method.training.lr=0"], "training.lr and training.growth must be above 0; got 0 and 1.3"),
        (["method.training.lambda_identity=1"], "with the network identity, and task pets_cat2dog has none"),
        (["task.clip.path=null"], "DiffusionCLIP is trained with the network clip, and task pets_cat2dog has none"),
        (["model@task.source_model=diffusers", "task.source_model.path=x"], "reads no such file; choose a source"),
        (
            ["task.source_model.path=nowhere.safetensors"],
            "files and folders missing for pets_cat2dog: 1 of 2",
        ),
    ],
)
def test_mistakes_are_found_before_the_slow_part(changes, sentence, tmp_path):
    study = study_of(tmp_path, *changes)

    def start() -> None:
        study.needs()
        study.items()

    with pytest.raises(UserError, match=re.escape(sentence)):
        start()


def test_a_network_of_another_task_is_read_back_under_its_own_names(tmp_path):
    """A published DDPM has official names; study=train writes those of the network that it has trained."""
    shape = {"image_size": 16, "ch": 32, "ch_mult": (1, 1), "num_res_blocks": 1, "attn_resolutions": (8,)}
    torch.manual_seed(1)
    unet = ddpm.build(**shape)
    assert isinstance(unet, UNet2DModel)
    own = unet.state_dict()
    save_file(own, tmp_path / "own.safetensors")
    official = {name: own[part] for name, (part,) in ddpm.names(2, own).items()}
    save_file(official, tmp_path / "official.safetensors")
    x, outputs = torch.randn(1, 3, 16, 16), []
    for name in ("own", "official"):
        denoiser = load_ddpm(str(tmp_path / f"{name}.safetensors"), **shape).condition()
        outputs.append(denoiser(x, denoiser.schedule.at(500)).eps)
    assert outputs[0].equal(outputs[1])
    assert (
        outputs[0].equal(unet(x, torch.tensor([500])).sample) or (outputs[0] - unet(x, 500).sample).abs().max() < 1e-5
    )
