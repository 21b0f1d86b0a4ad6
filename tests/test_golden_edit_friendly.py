"""Edit-friendly inversion against its official code: states, noise maps and edits, and the published presets."""

import math
from dataclasses import replace
from functools import cache
from itertools import pairwise

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from baselines.edit_friendly import EditFriendly
from cyclediff.attention_control import AttentionControl
from cyclediff.diffusion.steps import ddim_sigma, mean, q_sample, transitions
from cyclediff.diffusion.transfer import independent, transfer
from cyclediff.studies.selection import Grid

from .nets import RecordedNoise, cases, golden
from .test_contract import ROOT, settings_of
from .test_golden_latent import SCHEDULE, denoiser

NAME, CODE = "edit_friendly", "Edit-friendly inversion"
EDITS = [(case, edit) for case, config in cases(NAME).items() for edit in range(len(config["edits"]))]


def text(prompt: str) -> str:
    return prompt or "uncond"


def eta_of(case: str, level) -> float:
    """The official eta of the step from a level; a list counts from the smallest timestep."""
    eta, steps = cases(NAME)[case]["eta"], cases(NAME)[case]["N"]
    return eta if isinstance(eta, float) else eta[(level.t - 1) // (1000 // steps)]


@pytest.mark.parametrize("case", cases(NAME))
def test_levels(case):
    levels = SCHEDULE.levels(cases(NAME)[case]["N"], "latent")
    data = golden(NAME)
    assert [level.t for level in levels[:-1]] == data[f"{case}.timesteps"].tolist()
    variance = torch.tensor([ddim_sigma(t, s, 1.0) ** 2 for t, s in reversed(transitions(levels))])
    assert torch.allclose(variance, data[f"{case}.variance"], rtol=2e-4)


@pytest.mark.parametrize("case", cases(NAME))
def test_states_and_noise_maps(case, parity):
    """z is what a step of the source misses, divided by the official standard deviation."""
    data, config = golden(NAME), cases(NAME)[case]
    source = denoiser([text(config["source_prompt"])], config["source_guidance"])
    levels, x0 = SCHEDULE.levels(config["N"], "latent"), data[f"{case}.x0"]
    noise = data[f"{case}.noise"].float()
    states = [q_sample(x0, level, n[None]) for level, n in zip(reversed(levels[:-1]), noise, strict=True)]
    parity(CODE, "states of the path", torch.cat([x0, *states]), data[f"{case}.xts"])
    means, maps = [], []
    for (s, t), (after, before) in zip(pairwise(reversed(levels)), pairwise([x0, *states]), strict=True):
        eta, std = eta_of(case, t), ddim_sigma(t, s, 1.0)
        means.append(mean(source(before, t), s, math.sqrt(eta) * std))
        maps.append((after - means[-1]) / (eta * std))
    parity(CODE, "means of the source's steps", torch.cat(means), data[f"{case}.mu"])
    wanted = torch.cat([data[f"{case}.z_last_before_zeroing"], data[f"{case}.zs"][1:]])
    parity(CODE, "noise maps z", torch.cat(maps), wanted, 2e-3, relative=True)


@cache
def sides(case: str, edit: int):
    config = cases(NAME)[case]
    prompts, scales = config["edits"][edit]["prompts"], config["edits"][edit]["guidance"]
    source = denoiser([text(config["source_prompt"])] * len(prompts), config["source_guidance"])
    return source, denoiser([text(prompt) for prompt in prompts], scales)


def draws(case: str, edit: int) -> RecordedNoise:
    """Those of the levels that are run; the official code draws from the smallest timestep up, for all."""
    run, rows = cases(NAME)[case]["edits"][edit]["steps"], len(cases(NAME)[case]["edits"][edit]["prompts"])
    noise = golden(NAME)[f"{case}.noise"].float()
    return RecordedNoise([n.expand(rows, -1, -1, -1) for n in noise[:run].flip(0)])


def image(case: str, edit: int) -> torch.Tensor:
    return golden(NAME)[f"{case}.x0"].expand(len(cases(NAME)[case]["edits"][edit]["prompts"]), -1, -1, -1)


@pytest.mark.parametrize(("case", "edit"), [pair for pair in EDITS if isinstance(cases(NAME)[pair[0]]["eta"], float)])
def test_edited_latents(case, edit, parity):
    config, noise = cases(NAME)[case], draws(case, edit)
    method = EditFriendly(T=config["N"], t0=config["N"] - config["edits"][edit]["skip"], eta=config["eta"])
    out = method(image(case, edit), *sides(case, edit), noise)
    assert not noise.draws
    what = "edited latents: skips, guidance 0 … 15, empty source prompt, eta 0.5 and 1"
    parity(CODE, what, out, golden(NAME)[f"{case}.edit{edit}.out"])


def test_eta_of_each_step_and_two_rows(parity):
    """A list of eta is no setting of the method; `transfer` takes any sigma."""
    levels, noise = SCHEDULE.levels(12, "latent")[-10:], draws("d", 0)
    assert len(golden(NAME)["d.edit0.out"]) == 2

    def sigma(t, s):
        return ddim_sigma(t, s, math.sqrt(eta_of("d", t)))

    out = transfer(image("d", 0), *sides("d", 0), levels, independent, sigma, noise, keep_last=False)
    assert not noise.draws
    parity(CODE, "edited latents: an eta for each step, two rows", out, golden(NAME)["d.edit0.out"])


def test_the_last_noise_map_is_what_reconstruction_lacks(parity):
    """Case a's third edit is under the source's own prompt: off by 0.12 officially, and exact with the last map."""
    data = golden(NAME)
    exact = EditFriendly(T=20, t0=20, keep_last=True)(data["a.x0"], *sides("a", 2), draws("a", 2))
    assert (exact - data["a.x0"]).abs().max() < 1e-5
    missing = ddim_sigma(*transitions(SCHEDULE.levels(20, "latent"))[-1], eta=1.0) * data["a.z_last_before_zeroing"]
    parity(CODE, "reconstruction, with the last noise map left out", exact - missing, data["a.edit2.out"])


PRESETS = {  # file: (grid of the published run, the timestep at which it starts)
    "edit_friendly": ("{source_guidance:[3.5],skip:[36],guidance:[15]}", 631),
    "edit_friendly_pie": ("{source_guidance:[1],skip:[12],guidance:[7.5]}", 741),
}


@pytest.mark.parametrize("name", PRESETS)
def test_published_presets(name):
    """As the comment in each file asks for them: the start is the timestep at which the official code starts."""
    wanted, timestep = PRESETS[name]
    file = ROOT / "conf" / "method" / f"{name}.yaml"
    assert f"'selection.grid={wanted}'" in file.read_text()
    with initialize_config_dir(str(ROOT / "conf"), version_base=None):
        cfg = compose("config", ["experiment=zero_shot_sd14", f"method={name}", f"selection.grid={wanted}"])
    grid = Grid(1, **{key: tuple(values) for key, values in OmegaConf.to_object(cfg.selection.grid).items()})
    (candidate,) = grid.candidates()
    settings = settings_of(file, "zero_shot")
    levels = SCHEDULE.levels(settings["T"], settings["spacing"])[candidate.skip :]
    assert levels[0].t == timestep
    assert settings["t0"] == len(levels) - 1
    assert (settings["eta"], settings["keep_last"]) == (1.0, False)


def test_attention_control_counts_all_timesteps_as_the_official_code_does():
    """PIE's 0.4 and 0.6 are of 50 steps, of which 38 are run: 20 follow the cross attention, 30 the self."""
    settings = settings_of(ROOT / "conf" / "method" / "edit_friendly_pie.yaml")["attention"]
    settings.pop("_target_")
    steps = edited_steps(T=50, t0=38, attention=AttentionControl(**settings))
    assert len(steps) == 38
    assert [sum(column) for column in zip(*steps, strict=True)] == [20, 30]
    assert steps[0] == (True, True)


def test_attention_is_also_followed_in_the_last_step():
    """Whose source is evaluated for that alone: its residual is left out."""
    assert edited_steps(T=4, t0=4, attention=AttentionControl(cross=1.0, self_attention=0.0)) == [(True, False)] * 4


def edited_steps(T: int, t0: int, attention: AttentionControl) -> list[tuple[bool, bool]]:
    """For each evaluation of the network, whether cross and whether self attention follows the source's."""
    steps = []

    def network(xt, t, context, edit):
        steps.append((edit is not None and edit.edits_cross, edit is not None and edit.max_queries == 256))
        return torch.zeros_like(xt)

    sides = (replace(denoiser([prompt], 1.0), network=network) for prompt in ("src1", "tgt1"))
    x0 = golden(NAME)["a.x0"]
    EditFriendly(T, t0, attention=attention)(x0, *sides, RecordedNoise([x0] * t0))
    return steps
