"""PIE-Bench and metrics of sets as whole runs: both protocols from one folder of scores, and tables by kind."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import squeezenet1_1

from eval.records import read_scores

from .forking import run
from .test_edit_lists import as_json, pie
from .tiny_clip import SHIPPED
from .tiny_sd import stable_diffusion


@pytest.fixture
def bench(tmp_path):
    """A tiny model, PIE-Bench of two entries, and LPIPS' network; no file of DINO."""
    stable_diffusion(tmp_path / "model")
    place = tmp_path / "data" / "PIE-Bench_v1"
    entries = {}
    for k, kind in enumerate(("1", "9")):
        path = place / "annotation_images" / f"{k}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(k).integers(0, 256, (512, 512, 3), np.uint8)).save(path)
        texts = {"original_prompt": "a [red] cat", "editing_prompt": "a [blue] cat", "blended_word": "red blue"}
        runs = [512 * row + 100 for row in range(100, 300)]
        mask = [number for start in runs for number in (start, 200)]
        entries[f"00000000000{k}"] = pie(f"{k}.jpg", editing_type_id=kind, mask=mask, **texts)
    as_json(place / "mapping_file.json", entries)
    torch.manual_seed(0)
    (tmp_path / "checkpoints").mkdir()
    torch.save(squeezenet1_1().state_dict(), tmp_path / "checkpoints" / "squeezenet.pth")
    return tmp_path


def bench_run(folder: Path, *arguments: str):
    places = [f"paths.{part}={folder / part}" for part in ("data", "checkpoints", "outputs")]
    places.append(f"protocol.lpips.path={folder / 'checkpoints' / 'squeezenet.pth'}")
    places += [f"paths.clip_vit_l14={SHIPPED}", f"task.model.path={folder / 'model'}"]
    return run("experiment=pie_bench_sd14", "task.size=32", "confirm=true", *places, *arguments)


def test_both_protocols_have_their_tables(bench):
    done = bench_run(bench, "method=cyclediffusion", "method.T=4", "method.T_es=4", "selection.grid.skip=[0]")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the structure distance is left out, because" in done.stdout + done.stderr
    (folder,) = (bench / "outputs" / "pie_bench_sd14").glob("cyclediffusion-*/scores/*")
    assert folder.name.startswith("pie_bench-3-")
    metrics = read_scores(folder)["metrics"]
    assert {"background_lpips", "clip_edited", "official_lpips", "official_clip_edited"} <= metrics.keys()
    assert "-torchmetrics-norm-" in metrics["official_lpips"]["protocol"]
    assert "-lpips-norm-" in metrics["background_lpips"]["protocol"]
    table = (bench / "outputs" / "pie_bench_sd14" / "table.md").read_text()
    assert "protocol pie_bench/3" in table
    assert "protocol pie_bench/official" in table
    kinds = (bench / "outputs" / "pie_bench_sd14" / "categories.md").read_text()
    assert "change-object (1) | change-style (1)" in kinds


@pytest.mark.parametrize(
    ("rules", "sentence"),
    [
        ("protocol.rules=[pie_bench/2]", "protocol.rules must be some of pie_bench/3, pie_bench/official, each once"),
        ("data.source=PLUS", "as PIE-Bench++ has"),
    ],
)
def test_what_is_refused(bench, rules, sentence):
    plus = {"1": {"image_path": "0.jpg", "target_prompt": "a cat", "edit_action": {}}}
    path = as_json(bench / "data" / "PIE-Bench_v1" / "plus.json", plus)
    done = bench_run(bench, "method=ddib", rules.replace("PLUS", str(path)))
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


def test_sets_on_pets(tmp_path):
    """Density and coverage on the judge's features, beside FD; a metric of a network that is not here is refused."""
    arguments = ["method=sdedit", "method.T=2", "method.t0=1", "data.limit=8", f"paths.outputs={tmp_path}"]
    arguments.append(f"paths.cache={tmp_path / 'cache'}")
    done = run(*arguments, "protocol.sets=[fid,density,coverage]")
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = tmp_path.glob("pets_cat2dog/sdedit-*/scores/*/metrics.json")
    metrics = json.loads(file.read_bytes())["metrics"]
    assert list(metrics)[:3] == ["fid", "density", "coverage"]
    assert metrics["fid"]["header"] == "FD"
    assert metrics["density"]["ci95"]
    assert metrics["coverage"]["ci95"] is None
    assert 0 <= metrics["coverage"]["value"] <= 1
    done = run(*arguments, "protocol.sets=[fd_dinov2]", f"paths.checkpoints={tmp_path}")
    assert done.returncode == 2
    assert "dinov2_vitl14_pretrain.pth; give a file of weights" in done.stderr
    done = run(*arguments, "protocol.sets=[fidd]")
    assert done.returncode == 2
    assert "protocol.sets must be some of fid, kid, density" in done.stderr


def test_direct_inversion_blends_between_the_words_of_each_entry(bench, tmp_path):
    """By the experiment's own settings; under null it makes other images, and a list without words is refused."""
    method, few = "method=direct_inversion", ("method.T=4", "protocol.clip=null", "protocol.lpips=null")
    made: list[Path] = []
    for settings in ((), ("method.attention.weights=null", "method.attention.blend=null")):
        done = bench_run(bench, method, *few, *settings)
        assert done.returncode == 0, done.stdout + done.stderr
        made += set((bench / "outputs" / "pie_bench_sd14").glob("direct_inversion-*")) - set(made)
    config = (made[0] / "config.yaml").read_text()
    assert "weights: listed" in config
    assert "blend: listed" in config
    first, second = ((folder / "images" / "000000000000.png").read_bytes() for folder in made)
    assert first != second
    (tmp_path / "own.csv").write_text("image,source,target\na.png,a red cat,a blue cat\n")
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    done = bench_run(bench, method, f"data.source={tmp_path / 'own.csv'}")
    assert done.returncode == 2
    assert "own names none; give PIE-Bench's mapping_file.json, or method.attention.weights=null" in done.stderr
    assert "Traceback" not in done.stderr
