"""The published run of an inversion-based method, as its file's comment asks for it, on a tiny model."""

import csv
import json
import re
import shutil

import numpy as np
import pytest
from diffusers import FlowMatchEulerDiscreteScheduler
from PIL import Image

from .forking import run
from .test_contract import ROOT
from .tiny_clip import SHIPPED
from .tiny_sd import stable_diffusion

ROWS = {  # steps × (source and target, each with its text and, where its scale is not 1, with the empty one)
    "edit_friendly_pie": 38 * 3,  # the last step too, where the source leads the attention
    "ddcm": 12 * 3,
    "flowedit": 33 * 4,
}


@pytest.mark.parametrize("method", ROWS)
def test_the_published_run(tmp_path, method):
    model = stable_diffusion(tmp_path / "model")
    if method == "flowedit":
        shutil.rmtree(model / "scheduler")
        FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(model / "scheduler")
    pixels = np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    with (tmp_path / "mine.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "id", "source", "target"), ("a.png", "a", "a cat", "a dog")])
    comment = (ROOT / "conf" / "method" / f"{method}.yaml").read_text()
    (grid,) = re.findall(r"'(selection\.grid=\S+)'", comment)
    done = run(
        "experiment=zero_shot_sd14", f"method={method}", grid, "task.size=32", f"task.model.path={model}",
        f"data.source={tmp_path / 'mine.csv'}", f"paths.clip_vit_b32={SHIPPED}", f"paths.outputs={tmp_path / 'out'}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (record,) = tmp_path.glob("out/*/*/run.json")
    assert json.loads(record.read_text())["network_rows_per_image"] == ROWS[method]
    (picture,) = record.parent.glob("images/*.png")
    assert not np.array_equal(np.asarray(Image.open(picture)), pixels)
