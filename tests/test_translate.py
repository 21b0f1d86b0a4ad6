"""The loop around a method: costs, and networks that go mad."""

import pytest
import torch

from baselines.sdedit import SDEdit
from cyclediff.pets.folders import prepare_pets
from cyclediff.data.images import read_rgb
from cyclediff.diffusion.denoiser import EpsDenoiser, LearnedVarianceDenoiser
from cyclediff.diffusion.schedule import alpha_bar_from_betas, linear_betas
from cyclediff.errors import UserError
from cyclediff.models.pixel import PixelModel
from cyclediff.runtime.batches import each_batch, summarise, translate
from cyclediff.runtime.execution import Setup
from cyclediff.runtime.meter import Meter
from cyclediff.runtime.record import Run

ALPHA_BAR = alpha_bar_from_betas(linear_betas())
CPU = torch.device("cpu")
IDENTITY = {"task": "t", "method": {"name": "sdedit"}, "seed": 1}


def translated(tmp_path, network, batch_size=2, images=5, trace=None):
    source = prepare_pets("cat", "source", images, 16, tmp_path / "data")
    run = Run(tmp_path, IDENTITY)
    run.start("", {"code": "c", "checkpoints": {}})
    models = {"target": PixelModel(EpsDenoiser(network, ALPHA_BAR), 16)}
    held = translate(SDEdit(T=10, t0=4), models, source, run, Setup(1, batch_size, CPU, CPU, trace))
    assert held <= batch_size
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


def forgetful(limit):
    """A network that memory holds for so many images."""

    def network(x, t):
        if len(x) > limit:
            torch.empty(2**60)  # torch's own error
        return 0.5 * x

    return network


def test_a_batch_that_memory_does_not_hold_is_made_in_parts(tmp_path):
    with pytest.warns(UserWarning, match="from now on") as told:
        source, run = translated(tmp_path / "parts", forgetful(2), batch_size=8, images=13)
    assert [str(warning.message).split()[-4] for warning in told] == ["4", "2"]
    assert not run.missing(source.ids)
    _, whole = translated(tmp_path / "whole", forgetful(8), batch_size=8, images=13)
    for image_id in source.ids:
        assert run.image(image_id).read_bytes() == whole.image(image_id).read_bytes()
    assert [len(batch["ids"]) for batch in run.batches()] == [8, 5]
    assert summarise(run, 13)["network_evaluations_per_image"] == 4  # what was lost is not counted


def test_memory_for_not_even_one_image(tmp_path):
    with (
        pytest.warns(UserWarning, match="its size is"),
        pytest.raises(UserError, match="not enough for one image; finished images are kept"),
    ):
        translated(tmp_path, forgetful(0), batch_size=4)


@pytest.mark.filterwarnings("ignore:memory was not enough")
def test_candidates_of_an_image_count_in_the_batch(tmp_path):
    """Images are divided first, then the candidates of one."""
    source = prepare_pets("cat", "source", 6, 16, tmp_path / "data")
    run, asked = Run(tmp_path, IDENTITY), []
    run.start("", {"code": "c", "checkpoints": {}})

    def make(ids, images, size, meter):
        asked.append((len(ids), size))
        if size > 2:
            torch.empty(2**60)
        return images

    assert each_batch("m", source, 4, run, Setup(1, 16, CPU, CPU), make) == 2
    assert asked == [(4, 16), (2, 8), (1, 4), *[(1, 2)] * 6]
    for image_id in source.ids:
        assert read_rgb(run.image(image_id)).tobytes() == read_rgb(source.path / f"{image_id}.png").tobytes()


def test_every_kind_of_denoiser_is_counted():
    meter = Meter(["a", "b"], lambda: None)
    x, t = torch.zeros(2, 3, 4, 4), torch.zeros(2, dtype=torch.int64)
    meter.watch(EpsDenoiser(lambda x, t: x, ALPHA_BAR), "source")(x, t)
    variance = meter.watch(LearnedVarianceDenoiser(lambda x, t: torch.cat((x, x), 1), ALPHA_BAR), "target")
    eps, fraction = variance.with_variance(x, t)
    assert (meter.calls, meter.rows, eps.shape, fraction.max()) == (2, 4, x.shape, 0.5)
    assert variance.alpha_bar is ALPHA_BAR
