"""What every method promises, checked for each file in conf/method."""

import re
from dataclasses import fields
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from hydra.utils import get_class
from omegaconf import OmegaConf

from cyclediff.diffusion.conditioning import Conditioning
from cyclediff.diffusion.denoiser import GuidedDenoiser
from cyclediff.diffusion.noise import Noise
from cyclediff.diffusion.prompt import Prompt
from cyclediff.diffusion.schedule import DiffusionSchedule, FlowSchedule, alpha_bar_from_betas, linear_betas
from cyclediff.models.splice_generator import SkipNets
from cyclediff.runtime.meter import Meter

from .guided_nets import CLIPS, smooth_features
from .nets import flow_denoiser, gaussian_denoiser, tiny_classifier

ROOT = Path(__file__).parents[1]
FILES = [  # those of study=guide sample images, and work on none
    file for file in sorted((ROOT / "conf" / "method").glob("*.yaml")) if OmegaConf.load(file).get("conditions") != []
]
ALPHA_BAR = alpha_bar_from_betas(linear_betas())
SCHEDULE = DiffusionSchedule(ALPHA_BAR)
FLOW = FlowSchedule(3.0)
SIDES = {"source", "target"}
GUIDANCE = {"extractor": tiny_classifier().features, "vit": smooth_features, "clip": CLIPS}
GUIDANCE |= {"identity": lambda image: F.normalize(image.mean(dim=(2, 3))), "generator": lambda image: image - 0.7}
GENTLE = {  # the published weights are for real pictures; matched colours are on 8 bits, which rounding can flip
    "lambda_ssim": 1.0, "lambda_contra": 1.0, "lambda_dir_cls": 0.0, "lambda_trg": 1.0, "lambda_l2_trg": 1.0,
    "lambda_clip": 1.0, "lambda_range": 1.0, "cuts": 1, "match_colours": False, "range_restart": False,
}  # fmt: skip
IDS = ["a", "b", "c", "d"]
X0 = 0.3 + 0.2 * torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(2))


def settings_of(file: Path, task: str = "pets_cat2dog") -> dict:
    """The settings with which run.py would build the method."""
    with initialize_config_dir(str(ROOT / "conf"), version_base=None):
        more = ["timesteps=ldm"] if task == "zero_shot" else []
        cfg = compose("config", [f"method={file.stem}", f"task={task}", *more])
    return OmegaConf.to_container(cfg.method, resolve=True)


def make(file: Path, task: str = "pets_cat2dog"):
    settings = settings_of(file, task)
    needs, _, _ = set(settings.pop("needs")), settings.pop("conditions"), settings.pop("given", None)
    for key, value in settings.items():
        if isinstance(value, dict) and "_target_" in value:
            settings[key] = get_class(value.pop("_target_"))(**value)
    guidance = {name: GUIDANCE[name] for name in needs - SIDES}
    if file.stem.startswith("diffuseit"):
        settings |= GENTLE
    if file.stem == "splice":  # 10,000 steps of a large generator in the file
        settings |= {"steps": 4, "generator": SkipNets((4, 4), (4, 4), (2, 2))}
    return get_class(settings.pop("_target_"))(**settings, **guidance)


def prompted(mean: float, n: int) -> GuidedDenoiser:
    """One network under a prompt that says around which mean its data lie."""
    prompt = Prompt("a cat", (0, 1, 2, 3), ((0, 0), (0, 1), (2, 5), (0, 0)))
    context, empty = Conditioning(torch.full((n, 4, 1), mean)), Conditioning(torch.zeros(1, 4, 1))
    return GuidedDenoiser(prompted_network, SCHEDULE, "epsilon", context, empty, (1.0,) * n, (prompt,) * n, "one")


def prompted_network(xt, t, context, edit):
    ab = ALPHA_BAR[t][:, None, None, None].to(xt)
    mean = context.tokens[:, 0, 0][:, None, None, None]
    return (1 - ab).sqrt() * (xt - ab.sqrt() * mean) / (ab * 0.3**2 + 1 - ab)


def call(method, x0=X0, ids=IDS, seed=1, watch=lambda denoiser: denoiser):
    denoisers = {"source": gaussian_denoiser(0.3, 0.2, SCHEDULE), "target": gaussian_denoiser(-0.4, 0.5, SCHEDULE)}
    if method.name == "flowedit":
        denoisers = {"source": flow_denoiser(0.3, 0.2, FLOW), "target": flow_denoiser(-0.4, 0.5, FLOW)}
    if "none" not in method.conditions:
        denoisers = {"source": prompted(0.3, len(ids)), "target": prompted(-0.4, len(ids))}
    sides = [watch(denoisers[side]) if side in method.needs else None for side in ("source", "target")]
    given = {}
    if "vit" in method.needs:  # it is led by texts or images of each item
        texts, image = [("a cat", "a dog")] * len(ids), torch.full_like(x0, -0.4) + 0.1 * x0
        given = {"texts": texts} if "clip" in method.needs else {"targets": image}
    return method(x0, *sides, Noise(seed, ids), **given)


@cache
def result(name):
    """Of one call with all four images."""
    return call(make(ROOT / "conf" / "method" / f"{name}.yaml"))


@pytest.fixture(params=FILES, ids=lambda file: file.stem)
def method(request):
    return make(request.param)


def test_every_method_has_a_file():
    names = {"cyclediffusion", "sdedit", "ddib", "ilvr", "egsde", "egsde_dagger"}
    names |= {"cyclediffusion_cac", "sdedit_cac", "ddib_cac"}
    assert names <= {file.stem for file in FILES}


PUBLISHED = {  # research protocols of the official codes
    ("cyclediffusion", "wild2dog"): {"T": 1000, "T_es": 850, "eta": 0.1, "refine_steps": 150},
    ("sdedit", "cat2dog"): {"T": 1000, "t0": 500, "repeats": 1, "variance": "small"},
    ("ilvr", "cat2dog"): {"timesteps": "100", "down_N": 32, "range_t": 0, "variance": "learned"},
    ("ilvr", "male2female"): {"down_N": 32, "variance": "small"},
    ("egsde", "cat2dog"): {"T": 1000, "t0": 500, "lambda_s": 500, "lambda_i": 2, "down_N": 32, "repeats": 1},
    ("egsde", "male2female"): {"t0": 500, "similarity_s": "cosine", "similarity_i": "neg_l2"},
    ("egsde_dagger", "wild2dog"): {"T": 1000, "t0": 600},
    ("cyclediffusion", "zero_shot"): {"T": 99, "T_es": 99, "eta": 0.1, "refine_steps": 0, "spacing": "latent"},
    ("ddib", "zero_shot"): {"timesteps": "99", "spacing": "latent", "clip_denoised": False},
    ("direct_inversion", "pie_bench"): {"T": 50, "spacing": "leading"},
    ("cyclediffusion", "cat2dog"): {"T": 1000, "T_es": 850, "eta": 0.1, "refine_steps": 100, "spacing": "uniform"},
}


@pytest.mark.parametrize(("method", "task"), PUBLISHED, ids=lambda name: name)
def test_published_settings_of_the_real_tasks(method, task):
    settings = settings_of(ROOT / "conf" / "method" / f"{method}.yaml", task)
    assert {key: settings[key] for key in PUBLISHED[method, task]} == PUBLISHED[method, task]
    make(ROOT / "conf" / "method" / f"{method}.yaml", task)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_name_is_the_file_and_settings_are_explained(file):
    assert make(file).name == file.stem
    assert re.search(r"arXiv \d{4}\.\d{5}", file.read_text().splitlines()[0])


EVALUATIONS = {  # of a network, of an image of pets
    "cyclediffusion": 2 * 43 - 1 + 5,
    "ddib": 2 * 50,
    "direct_inversion": 50 + 2 * 50,
    "ddcm": 2 * 12,
    "diffuseit_text": 60 + 9,
    "diffusionclip": 14 + 15,
    "edit_friendly": 2 * 63 + 1,
    "egsde": 25,
    "egsde_dagger": 30,
    "flowedit": 2 * 33,
    "ilvr": 50,
    "ledits_pp": 30 + 2 * 30,
    "sdedit": 25,
    "transfer_grid": 2 * 40,
}


@pytest.mark.parametrize(("name", "expected"), EVALUATIONS.items(), ids=EVALUATIONS)
def test_how_often_networks_are_evaluated(name, expected):
    meter = Meter(IDS, lambda: None)
    call(make(ROOT / "conf" / "method" / f"{name}.yaml"), watch=lambda denoiser: meter.watch(denoiser, "only"))
    assert meter.forwards == expected * len(IDS)


def test_shape_type_and_range_of_the_result(method):
    out = result(method.name)
    assert out.shape == X0.shape
    assert out.dtype == X0.dtype
    assert out.isfinite().all()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_file_and_class_declare_the_same(file):
    settings, method = settings_of(file), make(file)
    assert set(settings["needs"]) == method.needs
    assert set(settings["conditions"]) == method.conditions
    assert not set(settings) & (method.needs - SIDES)  # guidance networks are given to it, not configured


NUM_STEPS = {  # published, where pets has no setting of its own
    "diffuseit_image": 200, "diffuseit_image_faces": 200, "diffuseit_text": 100, "diffuseit_text_faces": 100,
    "edit_friendly": 100, "ddcm": 12, "ledits_pp": 30, "diffusionclip": 15, "splice": 4, "cut": 1, "fastcut": 1,
}  # fmt: skip


def test_abilities(method):
    names = {field.name for field in fields(method)}
    assert method.needs & {"target", "generator", "vit"}  # what it evaluates
    assert method.needs - SIDES <= names
    assert method.conditions
    assert method.conditions <= {"none", "text", "image"}
    assert method.starts_at is None or method.starts_at in names
    assert method.num_steps == NUM_STEPS.get(method.name, 50)  # of pets
    by_text = "text" in method.conditions
    assert method.takes_region == (by_text and method.name not in ("transfer_grid", "diffuseit_text"))
    assert method.inverts == callable(getattr(method, "candidates", None)) == method.name.startswith("cyclediffusion")


def test_starting_levels():
    assert {file.stem: make(file).starts_at for file in FILES if not file.stem.endswith("_cac")} == {
        "cyclediffusion": "T_es", "sdedit": "t0", "egsde": "t0", "egsde_dagger": "t0", "ddib": None, "ilvr": None,
        "diffuseit_text": "t0", "diffuseit_image": "t0", "diffuseit_text_faces": "t0", "diffuseit_image_faces": "t0",
        "direct_inversion": None, "ddcm": "t0", "edit_friendly": "t0", "edit_friendly_pie": "t0", "flowedit": "n_max",
        "ledits_pp": "T_es", "transfer_grid": "t0", "cut": None, "fastcut": None, "splice": None,
        "diffusionclip": None,
    }  # fmt: skip


def test_it_moves_to_the_target_domain(method):
    assert (result(method.name).mean() + 0.4).abs() < (X0.mean() + 0.4).abs()


def test_same_seed_same_bytes(method):
    assert call(method).equal(result(method.name))


def test_batch_and_order_do_not_matter(method):
    whole = result(method.name)
    single = torch.cat([call(method, X0[i : i + 1], [IDS[i]]) for i in (0, 2)])
    assert (whole[[0, 2]] - single).abs().max() < 1e-4
    assert (call(method, X0.flip(0), IDS[::-1]).flip(0) - whole).abs().max() < 1e-4


def test_nothing_outside_is_touched(method, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before, state = X0.clone(), torch.get_rng_state()
    call(method)
    assert X0.equal(before)
    assert torch.get_rng_state().equal(state)
    assert not list(tmp_path.iterdir())
