"""The loop around a method: costs, and networks that go mad."""

import pytest
import torch

from baselines.sdedit import SDEdit
from cyclediff.data import prepare_pets
from cyclediff.denoiser import EpsDenoiser, LearnedVarianceDenoiser
from cyclediff.errors import UserError
from cyclediff.meter import Meter
from cyclediff.models.pixel import PixelModel
from cyclediff.results import Run
from cyclediff.schedule import alpha_bar_from_betas, linear_betas
from cyclediff.translate import summarise, translate

ALPHA_BAR = alpha_bar_from_betas(linear_betas())
CPU = torch.device("cpu")
IDENTITY = {"task": "t", "method": {"name": "sdedit"}, "seed": 1}


def translated(tmp_path, network, batch_size=2, images=5):
    source = prepare_pets("cat", "source", images, 16, tmp_path / "data")
    run = Run(tmp_path, IDENTITY)
    run.start("", {"code": "c", "checkpoints": {}})
    models = {"target": PixelModel(EpsDenoiser(network, ALPHA_BAR), 16)}
    translate(SDEdit(T=10, t0=4), models, source, run, 1, batch_size, CPU, CPU)
    return source, run


def test_costs_are_counted_per_image(tmp_path):
    source, run = translated(tmp_path, lambda x, t: 0.5 * x)
    assert not run.missing(source.ids)
    assert summarise(run, 5)["network_evaluations_per_image"] == 4


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_network_that_goes_mad_is_named_and_finished_images_stay(value, tmp_path):
    calls = []

    def network(x, t):
        calls.append(int(t[0]))
        out = 0.5 * x
        if len(calls) == 4 + 3:  # second batch, third step
            out[1, 2, 3, 3] = value
        return out

    with pytest.raises(UserError, match=r"the target network gave NaN or Inf for image source0003 at timestep 100"):
        translated(tmp_path, network)
    assert [path.name for path in sorted(Run(tmp_path, IDENTITY).images.iterdir())] == [
        "source0000.png",
        "source0001.png",
    ]


def test_every_kind_of_denoiser_is_counted():
    meter = Meter(["a", "b"], lambda: None)
    x, t = torch.zeros(2, 3, 4, 4), torch.zeros(2, dtype=torch.int64)
    meter.watch(EpsDenoiser(lambda x, t: x, ALPHA_BAR), "source")(x, t)
    variance = meter.watch(LearnedVarianceDenoiser(lambda x, t: torch.cat((x, x), 1), ALPHA_BAR), "target")
    eps, fraction = variance.with_variance(x, t)
    assert (meter.calls, meter.rows, eps.shape, fraction.max()) == (2, 4, x.shape, 0.5)
    assert variance.alpha_bar is ALPHA_BAR
