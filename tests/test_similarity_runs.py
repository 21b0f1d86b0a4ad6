"""Runs of study=similarity: on pixels, under texts, and with a Stable Diffusion folder; and mistakes."""

import csv
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from cyclediff.similarity import bound, bound_of_all

from .forking import run
from .tiny_sd import stable_diffusion


def scores_of(folder):
    return next(folder.glob("scores/similarity-2-*"))


def constants(folder):
    """Distance, stretch and gap of each image, from the file of the run."""
    table = parquet.read_table(folder / "steps.parquet").to_pylist()
    every = [[row for row in table if row["id"] == item] for item in sorted({row["id"] for row in table})]
    parts = (("distance", 0), ("stretch", 1), ("gap", 1))
    return [torch.tensor([[r[key] for r in rows[: len(rows) - cut]] for rows in every]).double() for key, cut in parts]


def test_a_run_on_pixels(tmp_path):
    arguments = ["experiment=pets_similarity", "data.limit=2", "method.eta=0.1", "method.T=6", "method.T_es=5,2"]
    arguments += [f"paths.outputs={tmp_path}", f"paths.cache={tmp_path / 'cache'}"]
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    folders = sorted(tmp_path.glob("pets_similarity/cyclediffusion-*"))
    assert not [png for folder in folders for png in folder.rglob("*.png")]
    counts = set()
    for folder in folders:
        distance, stretch, gap = constants(folder)
        steps = gap.shape[1]
        counts.add(steps)
        metrics = json.loads((scores_of(folder) / "metrics.json").read_bytes())["metrics"]
        assert json.loads((folder / "run.json").read_bytes())["costs"]["forwards_per_image"] == 3 * steps
        own, of_all = bound(stretch, gap), bound_of_all(stretch, gap)
        assert (distance <= own + 1e-6).all()
        assert metrics["distance"]["value"] == pytest.approx(distance[:, -1].mean().item())
        assert metrics["own_bound"]["value"] == pytest.approx(own[:, -1].mean().item())
        assert metrics["bound_of_all"]["value"] == pytest.approx(of_all[-1].item())
        curve = json.loads((scores_of(folder) / "curves.json").read_bytes())["distance"]
        assert [step for step, _ in curve["points"]] == list(range(6 - steps, 7))
        assert curve["dashed"]["points"][-1][1] == pytest.approx(own[:, -1].mean().item())
        assert (curve["panel"], curve["label"]) == ("eta 0.1", f"T_es {steps}")
    assert counts == {2, 5}
    assert "bound of all" in done.stdout
    page = (tmp_path / "pets_similarity" / "report.html").read_text()
    assert len(re.findall('class="curve dashed"', page)) == 6  # three charts of two runs
    before = {path: path.stat().st_mtime_ns for folder in folders for path in folder.rglob("*") if path.is_file()}
    assert run(*arguments).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_run_under_texts(tmp_path):
    arguments = ["experiment=pets_similarity_text", "data.limit=1", "method.eta=0.5", "method.T=6", "method.T_es=4"]
    done = run(*arguments, f"paths.outputs={tmp_path}", f"paths.cache={tmp_path / 'cache'}")
    assert done.returncode == 0, done.stderr
    (folder,) = tmp_path.glob("pets_similarity_text/cyclediffusion-*")
    assert json.loads((folder / "run.json").read_bytes())["costs"]["forwards_per_image"] == 5 * 4
    assert "20 network rows an image" in done.stdout
    metrics = json.loads((scores_of(folder) / "metrics.json").read_bytes())["metrics"]
    assert metrics["distance"]["ci95"] is None  # of one image
    assert 0 < metrics["distance"]["value"] <= metrics["own_bound"]["value"]
    assert metrics["own_bound"]["value"] == pytest.approx(metrics["bound_of_all"]["value"])


def test_a_stable_diffusion_folder(tmp_path):
    stable_diffusion(tmp_path / "model")
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    with (tmp_path / "mine.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "source", "target"), ("a.png", "a cat", "a dog")])
    own = [f"data.source={tmp_path / 'mine.csv'}", f"task.model.path={tmp_path / 'model'}", "task.size=32"]
    own += [f"paths.outputs={tmp_path / 'out'}", "method.eta=0.1", "method.T=5", "method.T_es=5,3", "confirm=true"]
    done = run("experiment=similarity_sd14", *own)
    assert done.returncode == 0, done.stderr
    found = [constants(folder) for folder in tmp_path.glob("out/similarity_sd14/cyclediffusion-*")]
    assert sorted(gap.shape[1] for _, _, gap in found) == [3, 5]
    for distance, stretch, gap in found:
        assert (distance <= bound(stretch, gap) + 1e-6).all()
        assert distance[:, -1].min() > 1e-3


def test_what_is_missing_of_stable_diffusion(tmp_path):
    done = run("experiment=similarity_sd14", f"paths.data={tmp_path}", f"paths.outputs={tmp_path / 'out'}")
    assert done.returncode == 2
    assert "similarity_sd14" in done.stderr
    assert str(tmp_path / "translate_text") in done.stderr
    assert "python run.py experiment=pets_similarity" in done.stderr
    assert "Traceback" not in done.stderr


FITS = "study=similarity is about source and target under one code and nothing else, and"
TEXTS = ["task=pets_edit", "protocol=pets_edit", "method=cyclediffusion"]
GUIDED = [*TEXTS, "study.source_guidance=1", "study.guidance=3"]
PIXELS = ["method=cyclediffusion", "method.refine_steps=0"]


EXACT = "study=similarity measures differences that rounding would hide; choose dtype=float32 and compile_mode=null"
REFINED = "study=similarity ends where the code ends, and method.refine_steps=5 adds new noise after it; choose "
CHOSEN = "study=similarity makes no candidates; leave tier out, and choose method.T_es, study.source_guidance and "


@pytest.mark.parametrize(("arguments", "sentence"), [
    (["method=sdedit"], f"{FITS} sdedit does not fit; choose method=cyclediffusion"),
    (["method=ddib"], f"{FITS} ddib does not fit; choose method=cyclediffusion"),
    ([*TEXTS, "method=edit_friendly"], f"{FITS} edit_friendly does not fit; choose method=cyclediffusion"),
    ([*TEXTS, "method=cyclediffusion_cac"], f"{FITS} cyclediffusion_cac does not fit; choose method=cyclediffusion"),
    (["method=cyclediffusion"], f"{REFINED}method.refine_steps=0"),
    ([*PIXELS, "method.eta=0"], "CycleDiffusion needs eta > 0 (eta = 0 has no noise to encode: use ddib); got 0"),
    ([*PIXELS, "method.T_es=0"], "T_es must be between 1 and T = 50; got 0"),
    ([*PIXELS, "study.guidance=3"], "networks on pixels have no guidance; got study.guidance=3, leave it out"),
    ([*PIXELS, "dtype=bfloat16"], EXACT),
    ([*PIXELS, "compile_mode=default"], EXACT),
    ([*PIXELS, "protocol.size=0"], "protocol.size must be a whole number of at least 1; got 0"),
    ([*PIXELS, "data.limit=0"], "data.limit must be a whole number of at least 1; got 0"),
    (TEXTS, "study.source_guidance must be a guidance scale from 0 up, for example 3; got None"),
    ([*GUIDED, "study.guidance=-1"], "study.guidance must be a guidance scale from 0 up, for example 3; got -1"),
    ([*GUIDED, "inside_masks=true"], "study=similarity is about whole images; choose inside_masks=false"),
    ([*GUIDED, "tier=single"], f"{CHOSEN}study.guidance"),
], ids=lambda value: " ".join(value) if isinstance(value, list) else "")  # fmt: skip
def test_mistakes(arguments, sentence, tmp_path):
    done = run("study=similarity", "data.limit=2", *arguments, f"paths.outputs={tmp_path}")
    lines = done.stderr.strip().splitlines()
    assert (done.returncode, lines[-1]) == (2, f"error: {sentence}"), done.stderr
    assert "Traceback" not in done.stderr
