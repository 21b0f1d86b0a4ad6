"""What a scheduler's configuration in diffusers' format says of the training of a network.

It also has settings of a sampler (timestep_spacing, steps_offset, set_alpha_to_one, clip_sample, …). These are not
used: the method and `timesteps` say how a sampler walks here.
"""

from collections.abc import Mapping, Set
from dataclasses import dataclass
from math import isfinite
from typing import Any, cast

import torch
from torch import Tensor

from cyclediff.diffusion.denoiser import Parametrization
from cyclediff.diffusion.schedule import (
    DiffusionSchedule,
    DynamicShift,
    FlowSchedule,
    Schedule,
    alpha_bar_from_betas,
    cosine_betas,
    linear_betas,
    scaled_linear_betas,
)
from cyclediff.errors import UserError

SCHEDULES = {"linear": linear_betas, "scaled_linear": scaled_linear_betas}
CLASSES = (
    "DDPMScheduler", "DDIMScheduler", "DDIMInverseScheduler", "PNDMScheduler", "LMSDiscreteScheduler",
    "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler", "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler", "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler",
    "DEISMultistepScheduler", "UniPCMultistepScheduler",
)  # fmt: skip
TRAINING = {
    "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type",
    "rescale_betas_zero_snr",
}  # fmt: skip
SAMPLER = {
    "timestep_spacing", "steps_offset", "set_alpha_to_one", "clip_sample", "clip_sample_range", "thresholding",
    "dynamic_thresholding_ratio", "sample_max_value", "variance_type", "skip_prk_steps", "solver_order", "solver_p",
    "solver_type", "algorithm_type", "lower_order_final", "euler_at_final", "predict_x0", "disable_corrector",
    "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas", "final_sigmas_type",
    "lambda_min_clipped", "interpolation_type", "sigma_min", "sigma_max", "flow_shift", "time_shift_type", "sigma_data",
}  # fmt: skip
MUST_BE_OFF = {
    "use_flow_sigmas",
    "use_dynamic_shifting",
    "shift_terminal",
}  # these change the time that the network is given
FLOW = "FlowMatchEulerDiscreteScheduler"
OF_FLOWS = {
    "num_train_timesteps", "shift", "base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len",
    "time_shift_type", "stochastic_sampling",
}  # fmt: skip
DYNAMIC = {"use_dynamic_shifting"}
OFF_IN_FLOWS = {
    "shift_terminal", "invert_sigmas", "use_karras_sigmas", "use_exponential_sigmas",
    "use_beta_sigmas",
}  # fmt: skip
PREDICTIONS = ("epsilon", "v_prediction")
TOLERANCE = 2e-6  # diffusers computes in float32


@dataclass(frozen=True)
class Training:
    """How a network was trained.

    Args:
        schedule: its noise levels.
        parametrization: what it predicts.
        dynamic: how the levels' shift follows the size of an image, where it does.
    """

    schedule: Schedule
    parametrization: Parametrization
    dynamic: DynamicShift | None = None


def read_scheduler(config: Mapping[str, Any], origin: str, dynamic: bool = False) -> Training:
    """The facts of a scheduler's configuration; whatever is not known is refused by name.

    Args:
        config: of the file.
        origin: the folder or hub id, for messages.
        dynamic: whether the levels of this kind of model may depend on the size of an image.

    Raises:
        UserError: if the class, a setting or a value is unknown, one is missing, or diffusers' own scheduler has other
            noise levels.
    """
    what = f"the scheduler of {origin}"
    kind = config.get("_class_name")
    if kind == FLOW:
        off = OFF_IN_FLOWS if dynamic else OFF_IN_FLOWS | DYNAMIC
        settings = _known_settings(config, OF_FLOWS, off, what)
        shift = _number(settings, "shift", what)
        if shift <= 0:
            raise UserError(f"{what} states shift as {shift}; a flow's shift is above 0: get the model again")
        return Training(FlowSchedule(shift, _count(settings, what)), "flow", _dynamic(settings, what))
    if kind not in CLASSES:
        named = f"a {kind}" if kind else "of no class"
        raise UserError(
            f"{what} is {named}, whose noise levels are not known here; known are {FLOW} and the relatives of DDPM, "
            f"such as {', '.join(CLASSES[:4])}"
        )
    settings = _known_settings(config, TRAINING | SAMPLER | {"timestep_type"}, MUST_BE_OFF, what)
    if (times := settings.get("timestep_type")) not in (None, "discrete"):
        raise UserError(f"{what} gives its network {times} times; choose a model with discrete timesteps")
    prediction = settings.get("prediction_type", "epsilon")  # the first versions of diffusers knew no other
    if prediction not in PREDICTIONS:
        raise UserError(f"{origin} predicts {prediction}; the models here predict {' or '.join(PREDICTIONS)}")
    betas = _betas(settings, what)
    if not ((betas > 0) & (betas < 1)).all():  # NaN is neither
        raise UserError(f"{what} states betas that are not all between 0 and 1; get the model again")
    alpha_bar = alpha_bar_from_betas(betas)
    rescaled = settings.get("rescale_betas_zero_snr")
    if rescaled not in (None, False, True):
        raise UserError(f"{what} states rescale_betas_zero_snr as {rescaled!r}; it must be true or false")
    if rescaled:
        if prediction != "v_prediction":
            raise UserError(
                f"{what} sets rescale_betas_zero_snr with {prediction}: without a signal in x_t nothing can be learned "
                "from predicting the noise; correct prediction_type or rescale_betas_zero_snr"
            )
        alpha_bar = zero_terminal_snr(alpha_bar)
    _compare(config, kind, alpha_bar, what)
    return Training(DiffusionSchedule(alpha_bar), cast(Parametrization, prediction))


def _known_settings(config: Mapping[str, Any], known: Set[str], off: Set[str], what: str) -> dict[str, Any]:
    settings = {key: value for key, value in config.items() if not key.startswith("_")}
    if unknown := sorted(settings.keys() - known - off - DYNAMIC):
        raise UserError(
            f"{what} has settings that are not known here: {', '.join(unknown)}; remove those that only a sampler reads"
        )
    for key in sorted(off):
        if settings.get(key):
            raise UserError(f"{what} sets {key}, which models here do not have; choose a model without it")
    return settings


def _dynamic(settings: Mapping[str, Any], what: str) -> DynamicShift | None:
    if not settings.get("use_dynamic_shifting"):
        return None
    if (kind := settings.get("time_shift_type", "exponential")) != "exponential":
        raise UserError(f"{what} shifts its levels in the {kind} way, and models here in the exponential one")
    base, top = (_number(settings, key, what) for key in ("base_shift", "max_shift"))
    few, many = (_number(settings, f"{name}_image_seq_len", what) for name in ("base", "max"))
    if few >= many:
        raise UserError(f"{what} states base_image_seq_len as {few}, which must be below its max_image_seq_len, {many}")
    return DynamicShift(base, top, int(few), int(many))


def zero_terminal_snr(alpha_bar: Tensor) -> Tensor:
    """A schedule whose last level has no signal (arXiv 2305.08891, algorithm 1); float64, same shape.

    sqrt(alpha_bar) is shifted to end at 0 and scaled to begin where it began.
    """
    root = alpha_bar.sqrt()
    return ((root - root[-1]) * (root[0] / (root[0] - root[-1]))) ** 2


def _betas(settings: Mapping[str, Any], what: str) -> Tensor:
    count = _count(settings, what)
    if (trained := settings.get("trained_betas")) is not None:
        if not isinstance(trained, list | tuple) or len(trained) != count or not all(map(_is_number, trained)):
            raise UserError(f"{what} must state trained_betas as {count} numbers, as many as num_train_timesteps")
        return torch.tensor(trained, dtype=torch.float64)
    schedule = _stated(settings, "beta_schedule", what)
    if schedule == "squaredcos_cap_v2":
        return cosine_betas(count)
    if schedule not in SCHEDULES:
        known = ", ".join([*SCHEDULES, "squaredcos_cap_v2"])
        raise UserError(f"{what} has the beta_schedule {schedule}, which is not known here; known are {known}")
    start, end = (_number(settings, key, what) for key in ("beta_start", "beta_end"))
    if min(start, end) < 0:
        raise UserError(f"{what} states betas below 0 (beta_start {start}, beta_end {end}); get the model again")
    return SCHEDULES[schedule](count, start, end)


def _stated(settings: Mapping[str, Any], key: str, what: str) -> Any:
    if settings.get(key) is None:
        raise UserError(f"{what} does not state {key}; add the value that the network was trained with")
    return settings[key]


def _number(settings: Mapping[str, Any], key: str, what: str) -> float:
    value = _stated(settings, key, what)
    if not _is_number(value):
        raise UserError(f"{what} must state {key} as a number; it states {value!r}")
    return value


def _count(settings: Mapping[str, Any], what: str) -> int:
    value = _stated(settings, "num_train_timesteps", what)
    if type(value) is not int or value < 2:
        raise UserError(f"{what} must state num_train_timesteps as a whole number from 2; it states {value!r}")
    return value


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


def _compare(config: Mapping[str, Any], kind: str, alpha_bar: Tensor, what: str) -> None:
    """Hold the levels against those of diffusers' own scheduler object."""
    import diffusers

    own: Any = getattr(diffusers, kind).from_config(dict(config))
    same = len(own.alphas_cumprod) == len(alpha_bar) and (own.alphas_cumprod - alpha_bar).abs().max() <= TOLERANCE
    if not same:
        raise UserError(f"{what} has other noise levels in diffusers' {kind} than its settings say; choose another one")
