"""Editing runs on other text-to-image models, as a person meets them."""

import json

from .forking import run
from .tiny_backbones import flux, sd3

EDIT = ("experiment=pets_edit", "tier=few", "data.limit=2", "method=cyclediffusion")


def test_flux(tmp_path):
    """Source and two candidates (guidance 1 and 3) take a row each in 3 steps: as many as the run announced."""
    folder = flux(tmp_path / "flux")
    more = ("model@task.model=flux_dev", f"task.model.path={folder}", f"paths.outputs={tmp_path / 'out'}")
    done = run(*EDIT, *more)
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "out").glob("pets_edit/*/run.json")
    record = json.loads(path.read_bytes())
    assert record["status"] == "finished"
    assert record["costs"]["forwards_per_image"] == record["network_rows_per_image"] == 3 * 3  # 2 candidates, 3 steps
    assert set(record["weights"]) >= {"model"}


def test_attention_control_on_sd3_gets_a_sentence(tmp_path):
    folder = sd3(tmp_path / "sd3")
    more = ("model@task.model=sd3_medium", f"task.model.path={folder}", f"paths.outputs={tmp_path / 'out'}")
    done = run(*EDIT[:3], "method=cyclediffusion_cac", *more)
    assert done.returncode == 2
    assert "attention control follows the cross attention of a UNet, and this network has none" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "out").glob("pets_edit/*/images/*.png"))
