"""study=guide as a person meets it: tables, codes, resume, mistakes; and what its numbers are."""

import json
import signal
import subprocess
import sys
import time

import pytest
import torch
from pyarrow import parquet
from safetensors.torch import load_file

from cyclediff.data.images import read_batch
from cyclediff.diffusion.noise import Noise
from cyclediff.pets.attributes import ATTRIBUTES, OF_TRAIT, as_judged, has_attribute
from cyclediff.pets.captions import TRAITS, Description
from cyclediff.pets.networks import load_attributes
from cyclediff.pets.render import render, sample_factors
from cyclediff.runtime.artifacts import Tensors
from eval.metrics.pets import load_pets_judge, observe

from .forking import run
from .test_run import ROOT, metrics_of, scores_of

GUIDE = "experiment=pets_guidance"
SMALL = ("method.sampler.T=5", "method.sampler.white_box_steps=4", "method.steps=3", "method.copies=2", "data.limit=2")


def test_attributes_are_the_words_of_captions():
    factors = sample_factors(200, torch.Generator().manual_seed(8))
    seen = as_judged(factors)
    for row, factor in enumerate(factors):
        words = Description(factor, "dog").words()
        for trait in TRAITS:
            found = [name for name in OF_TRAIT[trait.name] if has_attribute(seen[row : row + 1], name)]
            assert found == [OF_TRAIT[trait.name][trait.words.index(words[trait.name])]]
    with pytest.raises(ValueError, match="there is no attribute 'old'; choose from small, big, pink_fur"):
        has_attribute(seen, "old")


def test_the_classifier_and_the_judge_agree_on_rendered_dogs():
    """They share no weights, so the judge can say whether guidance by the classifier worked."""
    factors = sample_factors(100, torch.Generator().manual_seed(9))
    images, seen = render(factors, "dog"), as_judged(factors)
    networks = load_attributes(str(ROOT / "cyclediff/pets/weights/attributes.safetensors"))
    judge = load_pets_judge(ROOT / "cyclediff/pets/weights/judge.safetensors")
    judged = observe(judge, ((images + 1) * 127.5).round().byte())[1]
    for name in ("big", "looking_left", "blue_fur", "teal_background"):
        true = has_attribute(seen, name)
        logits = networks.classifiers[name](networks.prepare((images + 1) / 2))
        assert ((logits > 0) == true).float().mean() > 0.93
        assert (has_attribute(judged, name) == true).float().mean() > 0.9
    assert list(networks.classifiers) == list(ATTRIBUTES)


def test_runs_of_all_three(tmp_path):
    three = "method=unguided,guided_by_classifier,guided_by_clip"
    done = run(GUIDE, three, *SMALL, f"paths.outputs={tmp_path}")
    assert done.returncode == 0, done.stderr
    folders = {path.parent.name.rpartition("-")[0]: path.parent for path in tmp_path.glob("pets_guidance/*/run.json")}
    assert set(folders) == {"unguided", "guided_by_classifier", "guided_by_clip"}
    steps, segment = 5, 4  # of the sampler, and 1.5 √5, which its backward pass keeps
    networks = {"unguided": 5, "guided_by_classifier": 3 * (2 * steps - segment) + steps + 3 + 1}
    networks["guided_by_clip"] = 3 * (2 * steps - segment) + steps + (3 + 1) * 2
    for name, folder in folders.items():
        record, metrics = json.loads((folder / "run.json").read_bytes()), metrics_of(folder)
        assert record["costs"]["forwards_per_image"] == networks[name]
        assert {"wanted", "species", "fd_wanted", "diversity"} <= metrics.keys()
        codes = [load_file(path)["code"] for path in sorted((folder / "codes").glob("*.safetensors"))]
        assert [code.shape for code in codes] == [(4, 3, 64, 64)] * 2
        assert (scores_of(folder) / "per_image.csv").exists()
    base, guided = (
        load_file(folders[n] / "codes/sample0001.safetensors")["code"] for n in ("unguided", "guided_by_clip")
    )
    like = torch.zeros(1, 3, 64, 64)
    noise = Noise(1, ["sample0001"])
    assert base.equal(torch.cat([noise.randn_like(like) for _ in range(4)]))
    assert not guided.equal(base)
    rows = parquet.read_table(folders["guided_by_classifier"] / "energies.parquet").to_pylist()
    assert [row["step"] for row in rows] == [0, 1, 2, 3] * 2
    assert {"classifier", "prior", "total"} <= rows[0].keys()
    assert rows[0]["prior"] == pytest.approx(base_prior(tmp_path, folders), rel=1e-5)


def base_prior(tmp_path, folders):
    code = load_file(folders["unguided"] / "codes/sample0000.safetensors")["code"]
    return code.double().square().sum().item() / 2


def test_the_numbers_are_the_judges(tmp_path):
    done = run(GUIDE, "method=unguided", *SMALL[:2], "data.limit=6", "task.present=[]", "task.absent=[big]",
               f"paths.outputs={tmp_path}")  # fmt: skip
    assert done.returncode == 0, done.stderr
    (record,) = tmp_path.glob("pets_guidance/*/run.json")
    paths = sorted((record.parent / "images").glob("*.png"))
    seen = observe(load_pets_judge(ROOT / "cyclediff/pets/weights/judge.safetensors"), read_batch(paths))[1]
    assert metrics_of(record.parent)["wanted"]["value"] == (~has_attribute(seen, "big")).double().mean().item()


def test_a_chain_continues_where_it_was_stopped(tmp_path):
    """SIGTERM in the middle of a chain: the same command ends with the codes of a chain that was not stopped."""
    few = [GUIDE, "method=guided_by_classifier", *SMALL[:2], "method.steps=20", "data.limit=1", "hydra.mode=RUN"]
    command = [sys.executable, "run.py", *few, f"paths.outputs={tmp_path / 'a'}"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    deadline = time.time() + 120
    while not list((tmp_path / "a").glob("*/*/chain-*.safetensors")) and time.time() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "of 20 updates; the same command continues" in errors
    for folder in ("a", "b"):
        done = run(*few, f"paths.outputs={tmp_path / folder}")
        assert done.returncode == 0, done.stderr
    codes = [next((tmp_path / folder).glob("*/*/codes/*.safetensors")).read_bytes() for folder in ("a", "b")]
    assert codes[0] == codes[1]
    assert not list(tmp_path.glob("a/*/*/chain-*"))


def test_editing_by_guidance_starts_from_the_codes_of_images(tmp_path):
    done = run(GUIDE, "method=unguided", *SMALL[:2], "data.limit=2", "data.source=pets", f"paths.outputs={tmp_path}")
    assert done.returncode == 0, done.stderr
    (record,) = tmp_path.glob("pets_guidance/*/run.json")
    source = tmp_path / "pets_guidance" / "data" / json.loads(record.read_bytes())["data"]["source"]
    made, before = (read_batch(sorted(f.glob("*.png"))).float() for f in (record.parent / "images", source))
    assert (made - before).abs().mean() < 12  # the code of an image gives the image, but for the last noise
    assert (made.flip(0) - before).abs().mean() > 30


def test_images_of_another_animal_are_refused(tmp_path):
    folder = tmp_path / "cats"
    folder.mkdir()
    cats = render(sample_factors(2, torch.Generator().manual_seed(1)), "cat")
    from cyclediff.data.images import to_pil, to_uint8

    for i, image in enumerate(to_uint8(cats)):
        to_pil(image).save(folder / f"{i}.png")
    done = run(GUIDE, "method=unguided", *SMALL[:2], f"data.source={folder}", f"paths.outputs={tmp_path / 'out'}")
    assert done.returncode == 2
    assert "2 of 2 images show no dog, the first" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("task.present=[old]",), "there is no attribute old; choose task.present and task.absent from small, big"),
        (("task.present=[]",), "guided_by_classifier needs an attribute; set task.present=[…], of small, big"),
        (("task.present=[big]", "task.absent=[big]"), "the attribute big is asked for twice"),
        (("method=guided_by_clip", "task.text=null"), "guided_by_clip needs a text; set task.text='…'"),
        (("method=guided_by_identity",), "guided_by_identity needs pictures of the person; set task.faces=[FILE, …]"),
        (("method=guided_by_identity", "task.faces=[no.png]"), "task.faces: no.png does not exist"),
        (("method.step_size=0",), "step_size must be positive; got 0"),
        (("method.step_size=1e6", *SMALL), "in step 0"),
        (("method.best_by=clip",), "best_by must be null or one of classifier, prior, total; got 'clip'"),
        (("method.sampler.white_box_steps=50",), "white_box_steps must be between 1 (x_T alone) and 15 with 15 steps"),
        (("+method.weights.smell=1",), "method.weights has smell; the energies are classifier, clip, identity"),
        (("method=sdedit",), "sdedit does not sample under energies; choose method=unguided, guided_by_classifier"),
        (("task=pets_cat2dog",), "study=guide samples images, and task pets_cat2dog has some"),
        (("dtype=bfloat16",), "study=guide computes gradients in float32; leave out dtype and compile_mode"),
        (("study=translate",), "study=translate works on images, and task pets_guidance has none; choose study=guide"),
    ],
)
def test_mistakes(tmp_path, arguments, sentence):
    done = run(GUIDE, "hydra.mode=RUN", *arguments, f"paths.outputs={tmp_path}")
    assert done.returncode == 2, done.stderr
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


def test_a_cut_file_of_a_code_is_made_again(tmp_path):
    kind = Tensors("codes")
    (tmp_path / "codes").mkdir()
    for item in ("a", "b"):
        kind.write(tmp_path, item, torch.randn(2, 3, 4, 4), 0)
    path = tmp_path / "codes" / "b.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    assert kind.whole(tmp_path, ["a", "b", "c"]) == {"a"}
