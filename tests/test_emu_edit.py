"""Emu Edit's test set: its list, its offline metrics, and what is printed where files are missing."""

import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from cyclediff.data.edit_lists import read_edit_list
from eval.evaluate import evaluate
from eval.metrics.clip import open_clip_scorer
from eval.metrics.vits import cls_features
from eval.protocols import Protocol

from .forking import run
from .test_edit_lists import picture
from .tiny_clip import local_clip

ROW = {"image": "images/7.png", "input_caption": "a cat, red", "output_caption": "a dog, red", "task": "local"}


@pytest.fixture
def dino(tmp_path):
    torch.manual_seed(0)
    save_file(timm.create_model("vit_tiny_patch16_224", num_classes=0).state_dict(), tmp_path / "vit.safetensors")
    return cls_features(str(tmp_path / "vit.safetensors"), "vit_tiny_patch16_224", 224, 256)


def cosine(a, b):
    return torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=0).item()


def test_numbers(tmp_path, dino):
    generator = np.random.default_rng(0)
    for name in ("source", "generated"):
        (tmp_path / name).mkdir()
        pixels = generator.integers(0, 256, (64, 96, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / name / "a.png")
    (tmp_path / "source" / "edits.csv").write_text("id,source,target,category,mask\na,a red cat,a red dog,local,\n")
    clip = open_clip_scorer(str(local_clip(tmp_path / "clip")))
    protocol = Protocol("emu_edit/1", None, "bilinear", None, "", clip=clip, emu_edit=dino)
    (row,) = evaluate(tmp_path / "generated", tmp_path / "source", None, None, protocol).rows.values()
    before, after = (Image.open(tmp_path / name / "a.png") for name in ("source", "generated"))
    i, o = (clip.network.encode_image(clip.prepare(image)[None])[0].double() for image in (after, before))
    s, t = (clip.network.encode_text(clip.tokenize([text]))[0].double() for text in ("a red cat", "a red dog"))
    i, o, s, t = (x / x.norm() for x in (i, o, s, t))
    assert row["dclip"] == pytest.approx(cosine(i - o, t - s), abs=1e-4)
    assert row["clip_image"] == pytest.approx(cosine(i, o), abs=1e-5)
    assert row["clip"] == pytest.approx(cosine(i, t), abs=1e-5)
    assert row["l1"] == pytest.approx(np.abs(np.asarray(before) / 255.0 - np.asarray(after) / 255.0).mean())
    width, height, left = 384, 256, (384 - 224) // 2
    prepared = [
        np.asarray(x.resize((width, height), Image.Resampling.BICUBIC).crop((left, 16, left + 224, 240)))
        for x in (before, after)
    ]
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    inputs = torch.from_numpy(np.stack([(x / 255 - mean) / std for x in prepared])).permute(0, 3, 1, 2).float()
    network = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    torch.manual_seed(0)
    network.load_state_dict(timm.create_model("vit_tiny_patch16_224", num_classes=0).state_dict())
    assert row["dino"] == pytest.approx(cosine(*network.eval()(inputs)), abs=1e-5)


def test_without_captions_there_are_no_scores(tmp_path, dino):
    picture(tmp_path / "source" / "a.png", "blue", (64, 64))
    picture(tmp_path / "generated" / "a.png", "red", (64, 64))
    protocol = Protocol("emu_edit/1", None, "bilinear", None, "", emu_edit=dino)
    with pytest.raises(ValueError, match=r"emu_edit/1 scores edits by their captions, and .* has no edits.csv; add it"):
        evaluate(tmp_path / "generated", tmp_path / "source", None, None, protocol)


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_list(tmp_path, kind):
    picture(tmp_path / "images" / "7.png", "blue")
    path = tmp_path / f"test.{kind}"
    rows = [{**ROW, "instruction": "make it a dog", "idx": "7", "hash": "x", "split": "test"}]
    if kind == "json":
        path.write_text(json.dumps(rows))
    else:
        quoted = [f'"{value}"' for value in rows[0].values()]
        path.write_text(f"{','.join(rows[0])}\n{','.join(quoted)}\n")
    (edit,) = read_edit_list(path).found
    assert (edit.source, edit.target, edit.category) == ("a cat, red", "a dog, red", "local")
    assert edit.image == tmp_path / "images" / "7.png"
    assert edit.id == "000-7"


def test_missing_files_are_one_screen(tmp_path):
    done = run("experiment=emu_edit_sd14", "method=ddib", f"paths.data={tmp_path}", f"paths.outputs={tmp_path}",
               f"paths.checkpoints={tmp_path}", "task.model.path=" + str(tmp_path))  # fmt: skip
    assert done.returncode == 2
    assert "emu_edit_test_set/test.csv" in done.stdout + done.stderr
    assert "dino_deitsmall16_pretrain.pth" in done.stdout + done.stderr
