"""The study of similarity: distances with a closed form, and a run without images."""

import json
from itertools import pairwise

import numpy as np
import pytest
import torch

from baselines.ddib import DDIB
from cyclediff.cyclediffusion import CycleDiffusion
from cyclediff.diffusion.noise import Noise
from cyclediff.diffusion.schedule import DiffusionSchedule, alpha_bar_from_betas, linear_betas, spaced_timesteps
from cyclediff.similarity import distances

from .forking import run
from .nets import GaussianDenoiser

ALPHA_BAR = alpha_bar_from_betas(linear_betas())
SCHEDULE = DiffusionSchedule(ALPHA_BAR)
X0 = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def of(method, source, target):
    return distances(method, X0, source, target, Noise(1, ["a", "b", "c"]))


def test_one_model_has_no_distance():
    model = GaussianDenoiser(0.3, 0.5, SCHEDULE)
    timesteps, apart = of(CycleDiffusion(T=50, T_es=40, eta=0.5, refine_steps=5), model, model)
    assert apart.shape == (3, len(timesteps))
    assert len(timesteps) == 39  # of 40, the last adds no noise and evaluates the target alone
    assert timesteps == sorted(timesteps, reverse=True)
    assert apart.abs().max() < 1e-12


@pytest.mark.parametrize("eta", [0.1, 0.5, 1.0])
def test_two_gaussians_of_one_width_are_apart_by_a_linear_recursion(eta):
    """eps of N(mean, s²) is linear in x, so the difference of the two states follows without the states."""
    width, shift = 0.5, 0.7
    method = CycleDiffusion(T=50, T_es=40, eta=eta)
    timesteps, apart = of(method, GaussianDenoiser(0.0, width, SCHEDULE), GaussianDenoiser(shift, width, SCHEDULE))
    path = spaced_timesteps(1000, 50)[-40:].tolist()
    levels = [*(ALPHA_BAR[t].item() for t in path), 1.0]
    d, expected = 0.0, []
    for a, b in pairwise(levels[:-1]):
        expected.append(abs(d))
        eps = np.sqrt(1 - a) * (d - np.sqrt(a) * shift) / (a * width**2 + 1 - a)
        sigma = eta * np.sqrt((1 - b) / (1 - a) * (1 - a / b))
        d = np.sqrt(b) * (d - np.sqrt(1 - a) * eps) / np.sqrt(a) + np.sqrt(1 - b - sigma**2) * eps
    assert timesteps == path[:-1]
    torch.testing.assert_close(apart, torch.tensor(expected).double().expand(3, -1), rtol=1e-9, atol=1e-12)
    assert expected[-1] > 0.1


def test_a_method_that_evaluates_the_two_apart_is_refused():
    model = GaussianDenoiser(0.3, 0.5, SCHEDULE)
    with pytest.raises(ValueError, match="ddib does not evaluate source and target at equal timesteps"):
        of(DDIB(timesteps="10", clip_denoised=False), model, model)


def test_a_run_leaves_distances_and_a_curve_and_no_image(tmp_path):
    arguments = ["experiment=pets_similarity", "data.limit=2", "method.eta=0.1", "method.T=8", "method.T_es=6"]
    arguments += ["method.refine_steps=0", f"paths.outputs={tmp_path}", f"paths.cache={tmp_path / 'cache'}"]
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    (folder,) = tmp_path.glob("pets_cat2dog/cyclediffusion-*")
    assert not list(folder.rglob("*.png"))
    scores = next(folder.glob("scores/similarity-1-*"))
    metrics = json.loads((scores / "metrics.json").read_bytes())["metrics"]
    points = json.loads((scores / "curves.json").read_bytes())["distance"]["points"]
    assert len(points) == 5
    assert points[0][1] == 0
    assert max(d for _, d in points) <= metrics["largest_distance"]["value"]
    assert metrics["last_distance"]["value"] == pytest.approx(points[-1][1])
    assert "largest distance" in done.stdout
    assert "svg" in (tmp_path / "pets_cat2dog" / "report.html").read_text()
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    assert run(*arguments).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(("arguments", "words"), [
    (["method=sdedit"], "study=similarity compares two networks, and sdedit does not"),
    (["task=pets_edit", "protocol=pets_edit"], "choose study=edit, or another task"),
    (["method=ddib"], "ddib does not evaluate source and target at equal timesteps"),
])  # fmt: skip
def test_mistakes(arguments, words, tmp_path):
    done = run("study=similarity", "data.limit=2", *arguments, f"paths.outputs={tmp_path}")
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
    assert words in done.stderr
