"""The facts that a scheduler's configuration states, against diffusers' own objects."""

import json

import diffusers
import pytest
import torch

from cyclediff.errors import UserError
from cyclediff.models.parts import quietly
from cyclediff.models.scheduler import CLASSES, read_scheduler, zero_terminal_snr

SETTINGS = {
    "linear": {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
    "scaled_linear": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "squaredcos_cap_v2": {"beta_schedule": "squaredcos_cap_v2"},
    "trained": {"num_train_timesteps": 50, "trained_betas": [0.1 + 0.001 * i for i in range(50)]},
}


def written(scheduler):
    """What diffusers writes into scheduler_config.json."""
    return json.loads(scheduler.to_json_string())


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("schedule", SETTINGS)
def test_levels_of_every_class(name, schedule):
    """float64 levels, equal to the float32 ones of the class itself, from the configuration that it writes."""
    with quietly():
        own = getattr(diffusers, name)(**SETTINGS[schedule])
        found = read_scheduler(written(own), "net")
    assert found.schedule.alpha_bar.dtype == torch.float64
    assert (found.schedule.alpha_bar - own.alphas_cumprod).abs().max() < 1e-6
    assert found.parametrization == "epsilon"


def test_zero_terminal_snr():
    """The last level has no signal, as in diffusers; without the rescaling the SNR at t = 981 is 84 times too large."""
    settings = {**SETTINGS["scaled_linear"], "prediction_type": "v_prediction"}
    own = diffusers.DDIMScheduler(**settings, rescale_betas_zero_snr=True)
    found = read_scheduler(written(own), "net")
    assert found.schedule.alpha_bar[-1] == 0
    assert (found.schedule.alpha_bar - own.alphas_cumprod).abs().max() < 1e-6
    plain = read_scheduler(written(diffusers.DDIMScheduler(**settings)), "net").schedule.alpha_bar
    assert plain[-1] == pytest.approx(4.66e-3, rel=1e-3)
    snr = [(a[981] / (1 - a[981])).item() for a in (plain, found.schedule.alpha_bar)]
    assert snr[0] / snr[1] == pytest.approx(84, abs=1)
    assert zero_terminal_snr(plain)[0] == plain[0]


def test_a_class_with_other_levels_is_refused(monkeypatch):
    """What the settings say is held against the object that diffusers makes of them."""
    config = written(diffusers.DDIMScheduler(**SETTINGS["linear"]))
    other = diffusers.DDIMScheduler(**SETTINGS["scaled_linear"])
    monkeypatch.setattr(diffusers.DDIMScheduler, "from_config", lambda _: other)
    with pytest.raises(UserError, match="has other noise levels in diffusers' DDIMScheduler than its settings say"):
        read_scheduler(config, "net")


WRONG = {
    "beta_end": (1.5, "states betas that are not all between 0 and 1"),
    "beta_start": (-0.1, "states betas below 0"),
    "num_train_timesteps": (1000.0, "must state num_train_timesteps as a whole number from 2; it states 1000.0"),
    "trained_betas": ([0.01] * 50, "must state trained_betas as 1000 numbers, as many as num_train_timesteps"),
    "rescale_betas_zero_snr": ("false", "states rescale_betas_zero_snr as 'false'; it must be true or false"),
    "timestep_type": ("continuous", "gives its network continuous times"),
    "_class_name": (None, "is of no class, whose noise levels are not known here"),
}


@pytest.mark.parametrize("key", WRONG)
def test_values_that_give_other_levels_or_none(key):
    value, message = WRONG[key]
    config = written(diffusers.DDIMScheduler(**SETTINGS["linear"], prediction_type="v_prediction"))
    for wrong, sentence in ((value, message), ("0.1", "") if key.startswith("beta_") else (value, message)):
        with pytest.raises(UserError, match=sentence or f"must state {key} as a number; it states '0.1'"):
            read_scheduler({**config, key: wrong}, "net")
    betas = [0.01] * 999 + [float("nan")]
    with pytest.raises(UserError, match="must state trained_betas as 1000 numbers"):
        read_scheduler({**config, "trained_betas": betas}, "net")


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_a_flow(shift):
    """SD3's and FLUX's scheduler; with the same sigmas as diffusers where these are not shifted twice."""
    own = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    found = read_scheduler(written(own), "net")
    assert found.parametrization == "flow"
    levels = found.schedule.levels(10)
    own.set_timesteps(10, sigmas=[1 - i / 10 for i in range(10)])
    assert torch.allclose(torch.tensor([level.b for level in levels]), own.sigmas, atol=2e-7)
    assert torch.allclose(torch.tensor([level.t for level in levels[:-1]]), own.timesteps, atol=2e-4)
    assert all(level.a == 1 - level.b for level in levels)
    for wrong, message in (
        ({"use_dynamic_shifting": True}, "sets use_dynamic_shifting"),
        ({"new": 1}, "not known here: new"),
        ({"shift": None}, "does not state shift"),
        ({"shift": "3"}, "must state shift as a number; it states '3'"),
        ({"shift": -1.0}, "states shift as -1.0; a flow's shift is above 0"),
        ({"num_train_timesteps": 0}, "must state num_train_timesteps as a whole number from 2; it states 0"),
    ):
        with pytest.raises(UserError, match=message):
            read_scheduler({**written(own), **wrong}, "net")
