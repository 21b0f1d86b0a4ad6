"""DiffuseIT on pets: styles with true results, the vision transformer of pets, texts and target images of each item."""

import csv
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from cyclediff.data.edit_lists import prepare_edits, read_edit_list
from cyclediff.diffusion.vit_losses import self_similarity
from cyclediff.errors import UserError
from cyclediff.models.vit import build
from cyclediff.pets.render import FACTORS, render, sample_factors
from cyclediff.pets.styles import COLOURS, prepare_pet_styles
from cyclediff.pets.vit import load_pets_vit
from eval.metrics.pets import DOMAIN, load_pets_judge, observe

from .forking import finish, run
from .hub_server import COMMIT
from .test_run import ROOT, metrics_of

IT = "experiment=pets_diffuseit"
FEW = ("data.limit=2", 'method.timesteps="10"', "method.t0=4", "method.resample=1")


def pixels(path):
    return torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)


def test_results_have_the_cats_pose_and_the_targets_colours(tmp_path):
    source, result = prepare_pet_styles(6, 64, tmp_path)
    judge = load_pets_judge(ROOT / "cyclediff/pets/weights/judge.safetensors")

    def seen(folder):
        return observe(judge, torch.stack([pixels(folder / f"{item}.png") for item in source.ids]))[1]

    cats, dogs, styles = seen(source.path), seen(result.path), seen(source.path / "target_images")
    assert (cats[:, DOMAIN] < 0).all()
    assert (dogs[:, DOMAIN] > 0).all()
    assert (styles[:, DOMAIN] > 0).all()
    pose, colours = [0, 1, 2, 3, 6], [4, 5, *range(7, 13)]
    assert (dogs - cats)[:, pose].abs().mean() < 0.12
    assert (dogs - styles)[:, colours].abs().mean() < 0.2
    assert (dogs - cats)[:, colours].abs().mean() > 0.4
    assert {factor.name for factor in FACTORS} > set(COLOURS)
    rows = list(csv.DictReader((source.path / "edits.csv").open()))
    assert all(" cat on a " in row["source"] and " dog on a " in row["target"] for row in rows)


def test_keys_of_the_vit_see_pose_and_not_colour():
    """Self-similarity of keys: nearer between two colours of one pose than between two poses of one colour."""
    vit = load_pets_vit(str(ROOT / "cyclediff/pets/weights/vit.safetensors"))
    pose, colour = (sample_factors(32, torch.Generator().manual_seed(seed)) for seed in (1, 2))
    columns = torch.tensor([factor.name in COLOURS for factor in FACTORS])
    recoloured, moved = torch.where(columns, colour, pose), torch.where(columns, pose, colour)
    plain, by_colour, by_pose = (self_similarity(vit(render(f, "dog")).keys) for f in (pose, recoloured, moved))
    apart = [(plain - other).square().mean((1, 2)) for other in (by_colour, by_pose)]
    assert apart[0].mean() < 0.5 * apart[1].mean()
    cls = [vit(render(f, "dog")).cls for f in (pose, recoloured)]
    assert (cls[0] - cls[1]).norm(dim=1).mean() > 0.5 * (cls[0] - cls[0].flip(0)).norm(dim=1).mean()  # it sees colour


def test_both_modes(tmp_path):
    for method in ("diffuseit_text", "diffuseit_image"):
        done = run(IT, "hydra.mode=RUN", f"method={method}", *FEW, f"paths.outputs={tmp_path}")
        assert done.returncode == 0, done.stderr
    for record in tmp_path.glob("pets_diffuseit/*/run.json"):
        found = json.loads(record.read_bytes())
        assert found["costs"]["backwards_per_image"] >= 3
        assert {"ground_truth_psnr", "clip", "edit_error"} <= metrics_of(record.parent).keys()


@dataclass(frozen=True)
class Cache:
    """A cache of the Hugging Face hub, without a network; see `finish`."""

    folder: Path

    def __call__(self):
        from huggingface_hub import constants

        constants.HF_HUB_CACHE, constants.HF_HUB_OFFLINE = str(self.folder), True


def test_a_vit_of_the_hub(tmp_path):
    """One of timm's form, in a cache that is made here; its commit is part of the run's identity."""
    import timm
    from timm.models import save_for_hf

    repository = tmp_path / "hub" / "models--someone--vit"
    torch.manual_seed(3)
    save_for_hf(timm.create_model("test_vit.r160_in1k"), repository / "snapshots" / COMMIT, safe_serialization=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    chosen = (
        "model@task.vit=dino_vits8",
        "task.vit.path=hf-hub:someone/vit",
        "task.vit.model=null",
        "task.vit.layer=5",
    )
    arguments = [IT, "hydra.mode=RUN", "method=diffuseit_image", *chosen, *FEW, f"paths.outputs={tmp_path}"]
    code, said = finish(arguments, tmp_path / "log", Cache(tmp_path / "hub"))
    assert code == 0, said
    (record,) = tmp_path.glob("pets_diffuseit/*/run.json")
    assert json.loads(record.read_bytes())["weights"]["vit"] == f"hf-hub:someone/vit@{COMMIT}"
    code, said = finish([*arguments, "task.vit.path=hf-hub:someone/other"], tmp_path / "log", Cache(tmp_path / "hub"))
    assert code == 2
    assert "error: someone/other is no file or folder here, and the Hugging Face hub has no such repository" in said


def own_list(tmp_path, cell="b.png"):
    for name, size, colour in (("a.png", (80, 64), "red"), ("b.png", (30, 90), "blue")):
        Image.new("RGB", size, colour).save(tmp_path / name)
    (tmp_path / "own.csv").write_text(f"image,source,target,target_image\na.png,a cat,a dog,{cell}\n")
    return tmp_path / "own.csv"


def test_a_target_image_is_stretched_to_a_square(tmp_path):
    folder = prepare_edits(read_edit_list(own_list(tmp_path)), None, 32, "bilinear", tmp_path / "cache")
    (row,) = csv.DictReader((folder.path / "edits.csv").open())
    found = pixels(folder.path / row["target_image"])
    assert found.shape == (3, 32, 32)
    assert (found == torch.tensor([0, 0, 255])[:, None, None]).all()
    before = folder.digest
    Image.new("RGB", (30, 90), "green").save(tmp_path / "b.png")
    edits = read_edit_list(tmp_path / "own.csv")
    assert prepare_edits(edits, None, 32, "bilinear", tmp_path / "cache").digest != before


@pytest.mark.parametrize(("mode", "colour", "seen"), [("L", 90, 90), ("RGBA", (0, 0, 0, 0), 255), ("1", 0, 0)])
def test_target_images_of_other_modes(mode, colour, seen, tmp_path):
    """Grey and black-and-white ones get three channels; what is transparent is white."""
    path = own_list(tmp_path)
    Image.new(mode, (30, 90), colour).save(tmp_path / "b.png")
    folder = prepare_edits(read_edit_list(path), None, 32, "bilinear", tmp_path / "cache")
    (row,) = csv.DictReader((folder.path / "edits.csv").open())
    assert (pixels(folder.path / row["target_image"]) == torch.full((3, 32, 32), seen)).all()


def test_a_target_image_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"own.csv, row 2: the target image 'no.png' is not there"):
        read_edit_list(own_list(tmp_path, "no.png"))


def test_mistakes(tmp_path):
    broken, weights = tmp_path / "broken.png", tmp_path / "vit.safetensors"
    broken.write_text("no picture")
    save_file(build("vit_tiny_patch16_224.augreg_in21k").state_dict(), weights)
    one = ("task=pets_cat2dog", "protocol=pets", "method=diffuseit_image", "+model@task.vit=pets_vit")
    dino = ("model@task.vit=dino_vits8", f"task.vit.path={weights}", "task.vit.model=vit_tiny_patch16_224.augreg_in21k")
    listed = ("task.synthetic=false", "protocol.judge=null", f"data.source={own_list(tmp_path, '')}")
    for arguments, sentence in [
        (("method=sdedit",), "sdedit looks at no texts or target images, and task pets_diffuseit is about them"),
        (
            ("method=diffuseit_image", *listed),
            "diffuseit_image needs a target image for each image, and 1 of 1 have none",
        ),
        (("task=pets_cat2dog", "protocol=pets"), "diffuseit_text needs a source and a target text; set task.texts="),
        (("method.lambda_clip=1e30", *FEW), "gave NaN or Inf for image style0000"),
        (("method=diffuseit_image", "method.timesteps=x"), "x"),
        ((*one, f"+task.target_image={broken}"), f"{broken} is not a readable image"),
        ((*one, "+task.target_image=no.png"), "needs a target image, and task.target_image=no.png is no picture; set"),
        (
            (*dino, "task.vit.layer=12"),
            "vit_tiny_patch16_224.augreg_in21k has the layers 0 … 11 (-1 is the last one); got",
        ),
        (
            (*dino, "task.vit.model=vit_tin_patch16_224"),
            "timm has no vision transformer vit_tin_patch16_224; it has vit_",
        ),
    ]:
        done = run(IT, "hydra.mode=RUN", *arguments, f"paths.outputs={tmp_path}")
        assert done.returncode == 2, done.stderr
        assert sentence in done.stderr, done.stderr
        assert "Traceback" not in done.stderr
