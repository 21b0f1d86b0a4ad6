"""A small study for tests of the loop: pets go through SDEdit with one network on pixels, without a configuration."""

from types import SimpleNamespace

import torch

from baselines.sdedit import SDEdit
from cyclediff.diffusion.denoiser import NetworkDenoiser
from cyclediff.diffusion.schedule import DiffusionSchedule, alpha_bar_from_betas, linear_betas
from cyclediff.models.pixel import PixelModel
from cyclediff.pets.folders import prepare_pets
from cyclediff.runtime.batches import make_all
from cyclediff.runtime.record import Run
from cyclediff.runtime.study import Execution
from cyclediff.studies.sources import Sources
from cyclediff.studies.translate import Translate

SCHEDULE = DiffusionSchedule(alpha_bar_from_betas(linear_betas()))
CPU = torch.device("cpu")
IDENTITY = {"method": {"name": "sdedit"}, "seed": 1}
RECORD = {"schema": 2, "code": "c0de", "revision": "r"}


class FakeStudy(Translate):
    """Translate with everything given that it would load."""

    def __init__(self, source, network):
        self.sources, self.device = Sources(source, None, None, None), CPU
        self.method, self.given = SDEdit(T=10, t0=4), SimpleNamespace(read=lambda *_: {})
        self.models = {"target": PixelModel(NetworkDenoiser(network, SCHEDULE), 16, 1)}


def begun(folder, study, rank=0):
    """The run of a study, with its folder made."""
    run = Run(folder, IDENTITY, study.artifacts, rank)
    run.start("", RECORD)
    return run


def image(run, item):
    return run.path / "images" / f"{item}.png"


def translated(folder, network, batch_size=2, images=5, trace=None):
    """Translate some images; returns their ids, and the run."""
    source = prepare_pets("cat", "source", images, 16, folder / "data")
    study = FakeStudy(source, network)
    run = begun(folder, study)
    held = make_all("sdedit", study, source.ids, 1, run, Execution(1, batch_size, CPU, CPU, trace))
    assert held <= batch_size
    return source.ids, run
