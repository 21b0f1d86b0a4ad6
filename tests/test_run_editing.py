"""Editing runs as a person meets them: pets, kills, own lists, other models, mistakes."""

import csv
import json
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pyarrow import parquet

from eval.evaluate import evaluate as score
from eval.metrics.clip import open_clip_scorer
from eval.protocols import Protocol
from eval.random_mark import MARK

from .forking import run
from .test_run import ROOT, command, contents, metrics_of, scores_of
from .tiny_sd import stable_diffusion

METHODS = ["cyclediffusion", "cyclediffusion_cac", "ddib", "ddib_cac", "sdedit", "sdedit_cac"]
EDIT = "experiment=pets_edit"
CLIP = ROOT / "cyclediff/pets/weights/clip"


def evaluate(*arguments):
    scores = score(*arguments)
    return scores.metrics, scores.rows


def rows_of(path: Path) -> list[dict]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_pets(tmp_path):
    done = run(EDIT, f"paths.outputs={tmp_path}", "data.limit=3", "tier=few", "selection.grid.skip=[1,2]")
    assert done.returncode == 0, done.stderr
    folders = sorted(path.parent for path in tmp_path.glob("pets_edit/*/run.json"))
    assert [folder.name.rpartition("-")[0] for folder in folders] == METHODS
    for folder in folders:
        record = json.loads((folder / "run.json").read_bytes())
        candidates = 2 if "ddib" in folder.name else 4
        assert record["status"] == "finished"
        assert record["tier"] == "few"
        assert record["selection"]["candidates"] == candidates
        assert record["costs"]["forwards_per_image"] == record["network_rows_per_image"]
        metrics = metrics_of(folder)
        keys = {"psnr", "ssim", "l2", "clip", "dclip", "ground_truth_psnr", "edit_error", "kept_error"}
        assert set(metrics) == keys
        every = parquet.read_table(folder / "candidates.parquet").to_pylist()
        assert len(every) == 3 * candidates
        chosen = {row["id"]: row for row in every if row["chosen"]}
        for row in rows_of(scores_of(folder) / "per_image.csv"):
            mine = chosen[row["id"]]
            same = [other for other in every if other["id"] == row["id"]]
            assert mine["dclip"] == max(other["dclip"] for other in same if other["dclip_defined"])
            assert (int(row["skip"]), float(row["guidance"])) == (mine["skip"], mine["guidance"])
            for key in ("clip", "dclip"):  # of the PNG, computed anew
                assert float(row[key]) == pytest.approx(mine[key], abs=1e-4)
        for key in ("clip", "dclip"):
            assert metrics[key]["unselected"] == pytest.approx(np.mean([row[key] for row in every]))
        assert metrics["dclip"]["unselected"] <= metrics["dclip"]["value"]
        assert not any({"psnr", "ssim", "l2"} & row.keys() for row in every)  # no score that does not rank is computed
        assert "unselected" not in metrics["psnr"]
        assert len(list((folder / "images").iterdir())) == 3
    assert "4 candidates" in done.stdout
    assert "network rows an image" in done.stdout
    assert "Pets, a synthetic benchmark" in done.stdout
    assert "best of 4 by dclip" in (tmp_path / "pets_edit/table.md").read_text()
    before = contents(tmp_path)
    again = run(EDIT, f"paths.outputs={tmp_path}", "data.limit=3", "tier=few", "selection.grid.skip=[1,2]")
    assert again.returncode == 0
    assert contents(tmp_path) == before
    assert "network rows" not in again.stdout


@pytest.mark.slow  # test_faults.py kills at ten other places
def test_a_killed_run_continues_to_the_same_bytes(tmp_path):
    arguments = [EDIT, "method=cyclediffusion", "data.limit=6", "batch_size=2", "selection.grid.guidance=[2]"]
    process = subprocess.Popen(command(*arguments, f"paths.outputs={tmp_path / 'killed'}"), stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 600
    while len(contents(tmp_path / "killed")) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 2 <= len(contents(tmp_path / "killed")) < 6
    assert run(*arguments, f"paths.outputs={tmp_path / 'killed'}").returncode == 0
    assert run(*arguments, f"paths.outputs={tmp_path / 'whole'}").returncode == 0
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    tables = [parquet.read_table(next(tmp_path.glob(f"{name}/*/*/candidates.parquet"))) for name in ("killed", "whole")]
    assert tables[0].equals(tables[1])


@pytest.fixture
def own(tmp_path):
    """A list of one's own, with an image missing, and a model of one's own with random weights."""
    folder = stable_diffusion(tmp_path / "model")
    from safetensors.torch import load_file, save_file

    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    state["conv_in.bias"][: len(MARK)] = MARK
    save_file(state, file)
    pixels = np.random.default_rng(0).integers(0, 256, (50, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "ä b.png")
    Image.fromarray(pixels[:9, :9]).save(tmp_path / "tiny.jpg")
    lines = ["image,source,target", "ä b.png,a cat,a dog", "tiny.jpg,a cat,a big cat", "gone.png,a cat,a dog"]
    (tmp_path / "mine.csv").write_text("\n".join(lines))
    return tmp_path


def own_run(own, *arguments):
    places = [f"data.source={own / 'mine.csv'}", f"task.model.path={own / 'model'}"]
    places += [f"paths.clip_vit_b32={CLIP}"]  # it ranks and scores
    return run(
        "experiment=zero_shot_sd14", "task.size=32", "tier=few", *places, f"paths.outputs={own / 'out'}", *arguments
    )


def test_a_list_and_a_model_of_ones_own(own):
    done = own_run(own, "method=cyclediffusion,sdedit_cac", "confirm_above=0.0000001", "confirm=true")
    assert done.returncode == 0, done.stderr
    table = (own / "out/zero_shot_sd14/table.md").read_text()
    assert "RANDOM WEIGHTS" in table
    assert "2 of 3 tuples" in table
    assert "gone.png" in table
    record = json.loads(next(own.glob("out/*/cyclediffusion-*/run.json")).read_bytes())
    assert record["data"]["missing"] == ["gone.png"]
    assert record["random_weights"] == ["model"]
    assert len(list(own.glob("out/*/*/images/*.png"))) == 4


def test_an_expensive_run_asks_first(own):
    done = own_run(own, "method=cyclediffusion", "confirm_above=0.0000001")
    assert done.returncode == 2
    assert "confirm=true" in done.stderr
    assert not list(own.glob("out/*/*/run.json"))


@pytest.mark.parametrize(("arguments", "expected"), [
    ([EDIT, "method=ilvr"], "ilvr cannot follow a text; choose method=cyclediffusion, cyclediffusion_cac"),
    ([EDIT, "protocol=pets"], "protocol pets/2 does not score task pets_edit; choose protocol=pets_edit"),
    ([EDIT, "selection.grid.skip=[33]"], "must be less than the 33 timesteps"),
    ([EDIT, "selection.trials=0"], "trials must be at least 1"),
    ([EDIT, "selection.metric=beauty"], "selection.metric must be one of"),
    ([EDIT, "method=cyclediffusion_cac", "method.attention.cross=1.5"], "cross"),
    ([EDIT, "method=cyclediffusion_cac", "method.attention.mode=melt"], "replace, refine or auto"),
    (["method=cyclediffusion_cac"], "needs a text-to-image model"),
    (["protocol=zero_shot", "+task.size=64"], "does not score task pets_cat2dog; choose protocol=pets"),
    (["study=edit"], "those of task pets_cat2dog have image; choose study=translate, or another task"),
    ([EDIT, "study=translate"], "those of task pets_edit have image and texts; choose study=edit, or another task"),
    ([EDIT, "compile_mode=fastest"], "compile_mode must be null or one of default, reduce-overhead, max-autotune; got"),
    ([EDIT, "task.ranking_clip.path=nowhere"], "task.ranking_clip.path=nowhere is no file or folder"),
    (["experiment=zero_shot_sd14"], "translate-text.json"),
    (["study=edit", "task=pets_edit", "protocol=pets_edit"], "choose tier=single, quick, paper, few or pets"),
    ([EDIT, "method=cyclediffusion,sdedit", "selection.grdi=1"], "selection has no setting grdi; choose one of grid"),
    ([EDIT, "tier=slow"], "equal_nfe, few, paper, pets, published, quick, single"),
    ([EDIT, "task.model.path=nowhere"], "nowhere"),
    ([EDIT, "protocol.clip.path=nowhere"], "nowhere"),
    ([EDIT, "data.source=nowhere.csv"], "nowhere.csv"),
], ids=str)  # fmt: skip
def test_mistakes(arguments, expected, tmp_path):
    more = [] if any(a.startswith("method=") for a in arguments) else ["method=cyclediffusion"]
    done = run(*arguments, *more, f"paths.outputs={tmp_path / 'out'}", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    assert expected in done.stderr
    assert not list(tmp_path.glob("out/*/*/run.json"))


@pytest.mark.parametrize(("line", "expected"), [
    ("x.png,a cat,", "no target"),
    ("../x.png,a cat,a dog", "../x.png"),
    ("/etc/x.png,a cat,a dog", "/etc/x.png"),
])  # fmt: skip
def test_mistakes_in_a_list(line, expected, tmp_path):
    (tmp_path / "mine.csv").write_text(f"image,source,target\n{line}\n")
    done = run(EDIT, "method=sdedit", f"data.source={tmp_path / 'mine.csv'}", f"paths.outputs={tmp_path / 'out'}")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert expected in done.stderr


@pytest.mark.slow
def test_pets_are_edited_as_their_texts_say(tmp_path):
    """Against leaving the pictures as they are: nearer to the true edits in the edited factor, and most else kept."""
    done = run(EDIT, f"paths.outputs={tmp_path}")
    assert done.returncode == 0, done.stderr
    data = {path.name.rpartition("-")[0]: path for path in (tmp_path / "pets_edit" / "data").iterdir() if path.is_dir()}
    source, truth = data["pets-edits-source"], data["pets-edits-target"]
    judge = ROOT / "cyclediff/pets/weights/judge.safetensors"
    protocol = Protocol("pets_edit/2", 64, "bilinear", None, "", judge, open_clip_scorer(str(CLIP)))
    nothing, _ = evaluate(source, source, None, truth, protocol)
    perfect, _ = evaluate(truth, source, None, truth, protocol)
    for name in METHODS:
        metrics = metrics_of(next(tmp_path.glob(f"pets_edit/{name}-*/run.json")).parent)
        assert perfect["edit_error"]["value"] < metrics["edit_error"]["value"] < nothing["edit_error"]["value"]
        assert metrics["dclip"]["value"] > 0.1
        assert metrics["kept_error"]["value"] < 0.25
