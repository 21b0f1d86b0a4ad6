"""The loop that makes batches: costs, networks that give no numbers, and memory that is not enough."""

import pytest
import torch

from cyclediff.data.images import read_rgb
from cyclediff.diffusion.denoiser import LearnedVarianceDenoiser, NetworkDenoiser
from cyclediff.errors import UserError
from cyclediff.pets.folders import prepare_pets
from cyclediff.runtime.artifacts import Rows
from cyclediff.runtime.batches import costs, make_all
from cyclediff.runtime.meter import READ_EVERY, Meter
from cyclediff.runtime.record import Run
from cyclediff.runtime.study import Execution

from .fake_study import CPU, IDENTITY, SCHEDULE, FakeStudy, begun, image, translated


def test_costs_are_counted_per_image(tmp_path):
    ids, run = translated(tmp_path, lambda x, t: 0.5 * x)
    assert not run.missing(ids)
    found = costs(run, 5)["costs"]
    assert (found["forwards_per_image"], found["backwards_per_image"]) == (4, 0)
    assert 0 < found["network_share"] < 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_network_without_finite_numbers_is_named_and_finished_images_stay(value, tmp_path):
    calls = []

    def network(x, t):
        calls.append(int(t[0]))
        out = 0.5 * x
        if len(calls) == 4 + 3:  # second batch, third step
            out[1, 2, 3, 3] = value
        return out

    with pytest.raises(UserError, match=r"the target network gave NaN or Inf for image source0003 at timestep 100"):
        translated(tmp_path, network)
    folder = Run(tmp_path, IDENTITY, {}).path / "images"
    assert [path.name for path in sorted(folder.iterdir())] == ["source0000.png", "source0001.png"]


def limited(limit):
    """A network for which memory is enough for so many images."""

    def network(x, t):
        if len(x) > limit:
            torch.empty(2**60)  # torch's own error
        return 0.5 * x

    return network


def test_a_batch_that_memory_does_not_hold_is_made_in_parts(tmp_path):
    with pytest.warns(UserWarning, match="from now on") as caught:
        ids, run = translated(tmp_path / "parts", limited(2), batch_size=8, images=13)
    assert [str(warning.message).split()[-4] for warning in caught] == ["4", "2"]
    assert not run.missing(ids)
    _, whole = translated(tmp_path / "whole", limited(8), batch_size=8, images=13)
    for item in ids:
        assert image(run, item).read_bytes() == image(whole, item).read_bytes()
    assert [len(batch["ids"]) for batch in run.batches()] == [8, 5]
    assert costs(run, 13)["costs"]["forwards_per_image"] == 4  # what was lost is not counted


def test_memory_for_not_even_one_image(tmp_path):
    with (
        pytest.warns(UserWarning, match="its size is"),
        pytest.raises(UserError, match="not enough for one image; finished images are kept"),
    ):
        translated(tmp_path, limited(0), batch_size=4)


class Asked(FakeStudy):
    """Notes what is asked of it, and gives the images back; memory is enough for two candidates."""

    def __init__(self, source):
        super().__init__(source, None)
        self.asked = []

    def make(self, ids, inputs, size, execution, meter):
        self.asked.append((len(ids), size))
        if size > 2:
            torch.empty(2**60)
        return [{"images": picture} for picture in inputs]


@pytest.mark.filterwarnings("ignore:memory was not enough")
def test_candidates_of_an_image_count_in_the_batch(tmp_path):
    """Images are divided first, then the candidates of one."""
    source = prepare_pets("cat", "source", 6, 16, tmp_path / "data")
    study = Asked(source)
    run = begun(tmp_path, study)
    assert make_all("m", study, source.ids, 4, run, Execution(1, 16, CPU, CPU)) == 2
    assert study.asked == [(4, 16), (2, 8), (1, 4), *[(1, 2)] * 6]
    for item in source.ids:
        assert read_rgb(image(run, item)).tobytes() == read_rgb(source.path / f"{item}.png").tobytes()


class WithoutInputs(FakeStudy):
    """A study of ids alone, whose result is a row of each item; memory is enough for one."""

    artifacts = property(lambda self: self.made)

    def __init__(self, source):
        super().__init__(source, None)
        self.made = {"numbers": Rows("numbers")}

    def read(self, ids):
        return None

    def make(self, ids, inputs, size, execution, meter):
        assert inputs is None
        if size > 1:
            torch.empty(2**60)
        return [{"numbers": [{"length": len(item)}]} for item in ids]


@pytest.mark.filterwarnings("ignore:memory was not enough")
def test_a_study_without_images(tmp_path):
    study = WithoutInputs(None)
    run = begun(tmp_path, study)
    assert make_all("m", study, ["a", "bb", "ccc"], 1, run, Execution(1, 2, CPU, CPU)) == 1
    assert study.made["numbers"].read(run.path) == [{"id": "a", "length": 1}, {"id": "bb", "length": 2},
                                                    {"id": "ccc", "length": 3}]  # fmt: skip
    assert not (run.path / "images").exists()


def test_every_kind_of_denoiser_is_counted():
    evaluated = []
    meter = Meter(["a", "b"], lambda: evaluated.append(1))
    x, level = torch.zeros(2, 3, 4, 4), SCHEDULE.at(0)
    meter.watch(NetworkDenoiser(lambda x, t: x, SCHEDULE), "source")(x, level)
    variance = meter.watch(LearnedVarianceDenoiser(lambda x, t: torch.cat((x, x), 1), SCHEDULE), "target")
    seen, fraction = variance.with_variance(x, level)
    assert (len(evaluated), meter.forwards, seen.eps.shape, fraction.max()) == (2, 4, x.shape, 0.5)
    assert variance.schedule is SCHEDULE


def test_gradients_are_counted_once_for_each_image():
    meter = Meter(["a", "b"], lambda: None)
    features = meter.count(lambda x, t: x.square(), "extractor")
    x, t = torch.ones(2, 3, 4, 4), torch.zeros(2, dtype=torch.int64)
    features(x, t)
    assert (meter.forwards, meter.backwards) == (2, 0)
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(features(x.requires_grad_(), t).sum(), x)
        features(x, t)  # no gradient is asked of it
    assert gradient.eq(2).all()
    assert (meter.forwards, meter.backwards) == (6, 2)


def test_a_guidance_network_without_finite_numbers_is_named():
    meter = Meter(["a", "b"], lambda: None)
    features = meter.count(lambda x, t: torch.full((1, 8), float("nan")).expand(2, 8), "extractor")
    features(torch.zeros(2, 3, 4, 4), torch.tensor([7, 7]))
    with pytest.raises(UserError, match="the extractor network gave NaN or Inf for image a at timestep 7"):
        meter.require_finite()


def test_results_are_looked_at_together_and_the_first_that_is_not_finite_is_named():
    meter = Meter(["a", "b"], lambda: None)

    def network(x, t):
        return x / (t - 5)[:, None]  # Inf for the image whose time is 5

    watched, x = meter.count(network, "target"), torch.ones(2, 3)
    for k in range(READ_EVERY - 1):
        watched(x, torch.tensor([30 - k, 19 - k]))
    with pytest.raises(UserError, match="the target network gave NaN or Inf for image b at timestep 5;"):
        watched(x, torch.tensor([5, 9]))


class Refusing(FakeStudy):
    """Its method refuses what its network gave."""

    def make(self, ids, inputs, size, execution, meter):
        super().make(ids, inputs, size, execution, meter)
        raise ValueError("the energy is not finite")


def test_a_network_without_finite_numbers_is_the_reason_of_an_error_that_follows(tmp_path):
    source = prepare_pets("cat", "source", 2, 16, tmp_path / "data")
    study = Refusing(source, lambda x, t: x * float("nan"))
    with pytest.raises(UserError, match="the target network gave NaN or Inf for image source0000"):
        make_all("m", study, source.ids, 1, begun(tmp_path, study), Execution(1, 2, CPU, CPU))
