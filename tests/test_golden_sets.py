"""Density, coverage, CMMD, KD and FD against the numbers of prdc, cmmd-pytorch, dgm-eval and torch-fidelity."""

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from eval.metrics.cmmd import cmmd, cmmd_replicates
from eval.metrics.frechet import frechet_distance
from eval.metrics.kid import kernel_distance
from eval.metrics.neighbours import coverage, density

FILE = Path(__file__).parent / "golden" / "set_metrics.safetensors"
SETS = "a", "b", "c", "dup", "lattice"


@cache
def golden():
    with safe_open(FILE, "pt") as file:
        cases = json.loads(file.metadata()["cases"])
        return {key: file.get_tensor(key) for key in file.keys()}, cases  # noqa: SIM118


def case(name):
    tensors, cases = golden()
    return tensors[f"{name}.fake"].double(), tensors[f"{name}.real"].double(), cases[name]["values"]


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("k", [3, 5])
def test_density_and_coverage(name, k):
    fake, real, values = case(name)
    _, _, dense, covered = values[f"prdc_k{k}"]
    assert density(fake, real, k).mean().item() == pytest.approx(dense, abs=1e-12)
    assert coverage(fake, real, k) == pytest.approx(covered, abs=1e-12)


def test_blocks_of_distances_do_not_change_density_and_coverage(monkeypatch):
    fake, real, _ = case("b")
    whole = density(fake, real), coverage(fake, real)
    monkeypatch.setattr("eval.metrics.neighbours.BLOCK", 7 * len(real))
    assert torch.equal(density(fake, real), whole[0])
    assert coverage(fake, real) == whole[1]


@pytest.mark.parametrize("name", SETS)
def test_cmmd(name):
    fake, real, values = case(name)
    unit = [side / side.norm(dim=1, keepdim=True).clamp(min=1e-12) for side in (fake, real)]
    for found, key in ((cmmd(fake, real), "cmmd"), (cmmd(*unit), "cmmd_unit_norm")):
        if values.get(key) is not None:
            assert found == pytest.approx(values[key], abs=1e-3 * max(1, abs(values[key])))


@pytest.mark.parametrize("name", SETS)
def test_kernel_distance(name):
    fake, real, values = case(name)
    tensors, _ = golden()
    subsets = zip(tensors[f"{name}.kd_idx_gen"], tensors[f"{name}.kd_idx_real"], strict=True)
    found = torch.tensor([kernel_distance(fake[i], real[j]) for i, j in subsets], dtype=torch.float64)
    scale = max(1, tensors[f"{name}.kd_values"].abs().max().item())
    assert torch.allclose(found, tensors[f"{name}.kd_values"], rtol=0, atol=1e-9 * scale)
    assert found.mean().item() == pytest.approx(values["kd_value"], abs=1e-9 * scale)


@pytest.mark.parametrize("name", SETS)
def test_frechet_distance(name):
    fake, real, values = case(name)
    assert frechet_distance(fake, real) == pytest.approx(values["fd_dgm"], rel=1e-6, abs=1e-9)
    assert frechet_distance(fake, real) == pytest.approx(values["fd_torch_fidelity"], rel=1e-6, abs=1e-9)


def test_cmmd_of_resamples_is_that_of_the_images_with_their_copies():
    fake, real, _ = case("a")
    counts = torch.randint(0, 3, (4, len(fake)), generator=torch.Generator().manual_seed(0))
    expected = [cmmd(fake.repeat_interleave(row, dim=0), real) for row in counts]
    assert cmmd_replicates(fake, real, counts).tolist() == pytest.approx(expected, rel=1e-9)


def test_sets_that_have_no_numbers_are_refused():
    fake, real, _ = case("a")
    with pytest.raises(ValueError, match=r"need more than 5 reference images, and a generated one; got 5 and 60"):
        density(fake, real[:5])
    with pytest.raises(ValueError, match=r"features of one network; got 8 and 7 features an image"):
        coverage(fake, real[:, :7])
    with pytest.raises(ValueError, match=r"features of one network; got 60 × 8 and 60 × 7"):
        cmmd(fake, real[:, :7])
    with pytest.raises(ValueError, match="not finite"):
        density(fake * torch.inf, real)
