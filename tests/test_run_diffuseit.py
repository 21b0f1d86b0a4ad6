"""DiffuseIT's published experiments as a person meets them, with small or random networks in files of their names."""

import json
import subprocess
import sys

import pytest
import torch
from PIL import Image

from cyclediff.models.checkpoint import carries_mark
from cyclediff.models.identity import load_faces
from cyclediff.models.vit import load_vit
from eval.random_mark import MARK
from scripts.make_random_checkpoints import WRITERS

from .forking import run
from .nets import state_of
from .test_run import ROOT

TOOL = ROOT / "scripts" / "make_random_checkpoints.py"
FEW = ('method.timesteps="4"', "method.t0=2", "method.resample=1", "method.max_restarts=1")
SMALL = {"model_channels": 32, "channel_mult": "[1,1]", "attention_downsampling": "[2]", "num_res_blocks": 1}


def own_list(folder, size):
    for name, colour in (("a.png", "red"), ("b.png", "blue")):
        Image.new("RGB", (size, size), colour).save(folder / name)
    (folder / "own.csv").write_text("image,source,target,target_image\na.png,a cat,a dog,b.png\n")
    return f"data.source={folder / 'own.csv'}"


@pytest.mark.parametrize(("method", "parts"), [("text", {"target", "vit", "clip"}), ("image", {"target", "vit"})])
def test_imagenet_with_small_networks(method, parts, tmp_path):
    state = state_of("tiny_nets", "adm_target.")
    state["input_blocks.0.0.bias"][: len(MARK)] = MARK
    torch.save(state, tmp_path / "256x256_diffusion_uncond.pt")
    narrow = [f"task.target_model.{key}={value}" for key, value in SMALL.items()]
    narrow += ["task.target_model.num_head_channels=16", "task.size=32"]
    others = [
        "model@task.vit=pets_vit",
        "model@task.clip=towers_pets",
        "protocol.clip.path=cyclediff/pets/weights/clip",
    ]
    done = run(
        "experiment=diffuseit_imagenet", "hydra.mode=RUN", f"method=diffuseit_{method}", own_list(tmp_path, 40),
        f"paths.checkpoints={tmp_path}", f"paths.outputs={tmp_path}", *narrow, *others, *FEW,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert "RANDOM WEIGHTS – diffuseit_imagenet: 1 image of own, protocol zero_shot/2" in said
    (path,) = tmp_path.glob("diffuseit_imagenet/*/run.json")
    record = json.loads(path.read_bytes())
    assert record["random_weights"] == ["target"]
    assert record["weights"].keys() == parts
    assert len(list(path.parent.glob("images/*.png"))) == 1


def test_missing_files_get_one_screen(tmp_path):
    done = run("experiment=diffuseit_ffhq", own_list(tmp_path, 40), "paths.checkpoints=nowhere", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: files and folders missing for diffuseit_ffhq: 4 of 4")
    for name in ("ffhq_10m.pt", "dino_vitbase8_pretrain.pth", "clip", "model_ir_se50.pth"):
        assert f"nowhere/{name}" in done.stderr


def test_random_files_have_the_published_shapes(tmp_path):
    """They load strictly, as the published ones must, have about their size in bytes, and carry the mark."""
    faces, dino = tmp_path / "model_ir_se50.pth", tmp_path / "dino_deitsmall8_pretrain.pth"
    for path, size in {faces: 175_367_323, dino: 86_728_949}.items():
        WRITERS[path.name](path)
        assert abs(path.stat().st_size - size) < 50_000
        assert carries_mark(path)
    image = torch.zeros(1, 3, 64, 64)
    assert load_faces(str(faces))(image).isfinite().all()
    assert load_vit(str(dino), "vit_small_patch8_224.dino", size=64)(image).keys.shape == (1, 65, 384)


@pytest.mark.slow
@pytest.mark.parametrize("experiment", ["diffuseit_imagenet", "diffuseit_ffhq"])
def test_published_experiments_at_full_size(experiment, tmp_path):
    """Random weights of the real networks, 256×256, both modes: 5 GB of files, 12 GB of memory and some minutes."""
    subprocess.run([sys.executable, str(TOOL), "--checkpoints", str(tmp_path / "w"), experiment], check=True)
    done = run(
        f"experiment={experiment}", own_list(tmp_path, 256), f"paths.checkpoints={tmp_path / 'w'}",
        f"paths.clip_vit_b32={tmp_path / 'w/clip/ViT-B-32.pt'}", f"paths.outputs={tmp_path}", *FEW,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "RANDOM WEIGHTS (CLIP" in done.stdout
    assert len(list(tmp_path.glob(f"{experiment}/*/images/*.png"))) == 2
