"""What every method promises, checked for each file in conf/method."""

import re
from pathlib import Path

import pytest
import torch
from hydra.utils import get_class
from omegaconf import OmegaConf

from cyclediff.noise import Noise
from cyclediff.schedule import alpha_bar_from_betas, linear_betas

from .nets import gaussian_denoiser

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "conf" / "method").glob("*.yaml"))
ALPHA_BAR = alpha_bar_from_betas(linear_betas())
IDS = ["a", "b", "c", "d"]
X0 = 0.3 + 0.2 * torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(2))


def make(file: Path):
    settings = OmegaConf.to_container(OmegaConf.load(file))
    return get_class(settings.pop("_target_"))(**settings)


def call(method, x0=X0, ids=IDS, seed=1):
    denoisers = {"source": gaussian_denoiser(0.3, 0.2, ALPHA_BAR), "target": gaussian_denoiser(-0.4, 0.5, ALPHA_BAR)}
    sides = [denoisers[side] if side in method.uses else None for side in ("source", "target")]
    return method(x0, *sides, Noise(seed, ids))


@pytest.fixture(params=FILES, ids=lambda file: file.stem)
def method(request):
    return make(request.param)


def test_every_method_has_a_file():
    assert {"cyclediffusion", "sdedit", "ddib"} <= {file.stem for file in FILES}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_name_is_the_file_and_settings_are_explained(file):
    assert make(file).name == file.stem
    assert re.search(r"arXiv \d{4}\.\d{5}", file.read_text().splitlines()[0])


def test_shape_type_and_range_of_the_result(method):
    out = call(method)
    assert out.shape == X0.shape
    assert out.dtype == X0.dtype
    assert out.isfinite().all()
    assert method.uses <= {"source", "target"}


def test_it_moves_to_the_target_domain(method):
    assert (call(method).mean() + 0.4).abs() < (X0.mean() + 0.4).abs()


def test_same_seed_same_bytes(method):
    assert call(method).equal(call(method))


def test_batch_and_order_do_not_matter(method):
    whole = call(method)
    single = torch.cat([call(method, X0[i : i + 1], [IDS[i]]) for i in range(4)])
    assert (whole - single).abs().max() < 1e-4
    assert (call(method, X0.flip(0), IDS[::-1]).flip(0) - whole).abs().max() < 1e-4


def test_nothing_outside_is_touched(method, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before, state = X0.clone(), torch.get_rng_state()
    call(method)
    assert X0.equal(before)
    assert torch.get_rng_state().equal(state)
    assert not list(tmp_path.iterdir())
