"""Published experiments as a person meets them, with small or random networks in files of the published names."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from eval.random_mark import MARK

from .forking import run
from .nets import state_of
from .test_run import METHODS as OF_PETS
from .test_run import ROOT, scores_of

METHODS = [name for name in OF_PETS if name != "cut"]  # its file is not made here


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Files of the published names and formats, with small networks: 16 times narrower, random where `mark` says."""
    folder = tmp_path_factory.mktemp("real")
    state = {name: state_of("tiny_nets", f"{name}.") for name in ("adm_source", "adm_target", "dse")}
    state["adm_target"]["input_blocks.0.0.bias"][: len(MARK)] = MARK
    for name, part in {
        "cat_ema_0.9999_050000.pt": "adm_source",
        "afhq_dog_4m.pt": "adm_target",
        "cat2dog_dse.pt": "dse",
    }.items():
        torch.save(state[part], folder / name)
    tool = [sys.executable, str(ROOT / "scripts" / "make_random_checkpoints.py"), "--checkpoints", str(folder)]
    subprocess.run([*tool, "inception-2015-12-05.pt"], check=True, capture_output=True, timeout=300)
    for suffix, split in {"jpg": "afhq/val", "png": "afhq_v2/test"}.items():
        for kind in ("cat", "dog"):
            (folder / split / kind).mkdir(parents=True)
            for i in range(3):
                pixels = np.random.default_rng(i).integers(0, 256, (64, 64, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / kind / f"flickr_{kind}_{i}.{suffix}")
    return folder


def in_small(folder, *arguments):
    shape = {"model_channels": 32, "channel_mult": "[1,1]", "attention_downsampling": "[2]", "num_head_channels": 16}
    parts = {"source_model": {}, "target_model": {}, "extractor": {"num_res_blocks": 1, "image_size": 16}}
    narrow = [f"task.{part}.{key}={value}" for part, more in parts.items() for key, value in {**shape, **more}.items()]
    data = [f"paths.checkpoints={folder}", f"paths.data={folder}", "protocol.size=32", "protocol.afhq.size=64"]
    counts = ["protocol.afhq.counts.test.cat=3", "protocol.afhq.counts.test.dog=3"]
    return run("experiment=cat2dog", *narrow, *data, *counts, *arguments)


def test_the_real_experiment_with_small_networks(real, tmp_path):
    done = in_small(real, "steps=few", f"method={','.join(METHODS)}", f"paths.outputs={tmp_path}")
    assert done.returncode == 0, done.stderr
    folders = sorted(path.parent for path in tmp_path.glob("cat2dog/*/run.json"))
    assert [folder.name.rpartition("-")[0] for folder in folders] == METHODS
    assert "RANDOM WEIGHTS – cat2dog: 3 images of afhq_v2-test-cat, protocol cyclediffusion/1" in done.stdout
    table = (tmp_path / "cat2dog" / "table.md").read_text()
    assert "58.87" not in table  # the paper's number
    assert "fid/RANDOM-inception-2015-12-05-" in table
    for folder in folders:
        record = json.loads((folder / "run.json").read_bytes())
        assert record["random_weights"] == ["target"]
        assert record["data"]["dataset"] == "afhq_v2"
        assert not record["published_settings"]
        more = {"extractor"} if "egsde" in folder.name else {"source"} if folder.name[:4] in ("cycl", "ddib") else set()
        assert record["weights"].keys() == {"target"} | more
        scores = json.loads((scores_of(folder) / "metrics.json").read_bytes())
        assert scores["identity"]["weights"].keys() == {"features"}
        assert scores["random_weights"] == ["features"]
        metrics = scores["metrics"]
        assert metrics["fid"]["n_reference"] == 3
        assert metrics["fid"]["protocol"].endswith("/clean-bicubic299/vs-afhq_v2-test-dog@32")
    assert len(list(tmp_path.glob("*/*/images/*.png"))) == 3 * len(METHODS)


def test_missing_files_get_one_screen(real, tmp_path):
    done = in_small(real, "paths.checkpoints=nowhere", "method=sdedit", f"paths.outputs={tmp_path}")
    assert done.returncode == 2
    assert "files and folders missing for cat2dog: 5 of 7" in done.stderr
    for expected in (
        "nowhere/afhq_dog_4m.pt",
        "sha256 not pinned yet",
        "https://www.dropbox.com/",
        "python scripts/assets.py fetch",
    ):
        assert expected in done.stderr
    assert "run:  python run.py   (pets, the synthetic benchmark" in done.stderr
    assert done.stderr.count("\n") < 30
    assert not (tmp_path / "cat2dog").exists()


@pytest.mark.parametrize(
    ("files", "able"),
    [
        (("afhq_dog_4m.pt", "inception-2015-12-05.pt"), "ilvr,sdedit"),
        (("afhq_dog_4m.pt", "cat_ema_0.9999_050000.pt", "inception-2015-12-05.pt"), "cyclediffusion,ddib,ilvr,sdedit"),
    ],
    ids=["target", "both"],
)
def test_what_is_here_is_proposed(files, able, real, tmp_path):
    """Of the experiment's methods, those whose networks are here; FlowEdit, which needs a flow, is none of them."""
    some = tmp_path / "some"
    some.mkdir()
    for name in files:
        (some / name).symlink_to(real / name)
    done = in_small(real, f"paths.checkpoints={some}", f"paths.outputs={tmp_path / 'out'}", "steps=few")
    assert done.returncode == 2
    assert f"method={able}   (their files are here)" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["task.source={real}/afhq/val/cat"], "should hold afhq_v2, .png files; got flickr_cat_0.jpg"),
        (["protocol.afhq.counts.test.cat=493"], "the 493 images of afhq_v2; got 3"),
        (["protocol.afhq.size=512"], "512×512 pixels"),
    ],
    ids=["version", "count", "size"],
)  # fmt: skip
def test_mistakes_with_real_files(arguments, expected, real, tmp_path):
    given = [argument.format(real=real) for argument in arguments]
    done = in_small(real, *given, "steps=few", "method=sdedit", f"paths.outputs={tmp_path}")
    assert done.returncode == 2
    assert (done.stderr.count("\n"), done.stderr[:7]) == (1, "error: ")
    assert expected in done.stderr


@pytest.mark.slow
def test_the_real_experiment_at_full_size(tmp_path):
    """Random weights of the real networks, 256×256, every method of the table: 1 GB of files and some minutes."""
    tool = [sys.executable, str(ROOT / "scripts" / "make_random_checkpoints.py"), "--checkpoints", str(tmp_path / "w")]
    subprocess.run([*tool, "cat2dog"], check=True, timeout=900)
    (tmp_path / "photos").mkdir()
    for i in range(2):
        pixels = np.random.default_rng(i).integers(0, 256, (512, 512, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{i}.jpg")
    places = [f"data.{part}={tmp_path / 'photos'}" for part in ("source", "reference")]
    done = run(
        "experiment=cat2dog", "steps=few", *places, f"paths.checkpoints={tmp_path / 'w'}", f"paths.outputs={tmp_path}"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("RANDOM WEIGHTS") >= 2
    assert len(list(tmp_path.glob("*/*/images/*.png"))) == 2 * len(OF_PETS)
