"""One pass over folders of images, its command line, and several processes."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from PIL import Image
from pytorch_fid.fid_score import calculate_frechet_distance
from skimage.metrics import peak_signal_noise_ratio

from eval.evaluate import evaluate, main
from eval.metrics.features import Extractor
from eval.protocols import JUDGE, RECIPES, Protocol, load_protocol
from eval.records import read_scores

ROOT = Path(__file__).parents[1]


def draw(folder, stems, seed=0, side=64, suffix=".png"):
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    for stem in stems:
        small = random.integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC).save(folder / f"{stem}{suffix}")
    return folder


@pytest.fixture
def folders(tmp_path):
    stems = [f"i{k:02d}" for k in range(12)]
    return {
        "generated": draw(tmp_path / "generated", stems, 1),
        "source": draw(tmp_path / "source", stems, 2),
        "reference": draw(tmp_path / "reference", [f"r{k}" for k in range(15)], 3),
    }


def command(folders, *more):
    options = [part for name, folder in folders.items() for part in (f"--{name}", str(folder))]
    return [*options, "--protocol", "pets", "--cache", str(folders["source"].parent / "cache"), *more]


def written(folder):
    return json.loads((folder / "metrics.json").read_bytes())["metrics"]


def means(extractor):
    """Features that are mean colours of three bands, made with Pillow and NumPy alone."""
    return Extractor("bands", lambda picture: torch.from_numpy(np.array(picture)).float(), extractor)


def bands(batch):
    return batch.unflatten(1, (4, -1)).mean(dim=(2, 3)).flatten(1)


def test_numbers_equal_other_libraries(folders):
    protocol = Protocol("x/1", 64, "bilinear", means(bands), "reference")
    scores = evaluate(folders["generated"], folders["source"], folders["reference"], None, protocol)

    def load(path):
        return np.array(Image.open(path))

    pairs = [(load(folders["source"] / p.name), load(p)) for p in sorted(folders["generated"].glob("*.png"))]
    expected = [peak_signal_noise_ratio(*pair, data_range=255) for pair in pairs]
    assert [row["psnr"] for row in scores.rows.values()] == pytest.approx(expected)
    features = [
        bands(torch.stack([torch.from_numpy(load(p)).float() for p in sorted(folders[name].glob("*.png"))])).double()
        for name in ("generated", "reference")
    ]
    moments = [(f.mean(0).numpy(), np.cov(f.numpy(), rowvar=False)) for f in features]
    fid = calculate_frechet_distance(*moments[0], *moments[1])
    assert scores.metrics["fid"]["value"] == pytest.approx(fid, rel=1e-4)
    low, high = scores.metrics["fid"]["ci95"]
    assert low < scores.metrics["fid"]["value"] < high
    assert {key: len(values) for key, values in scores.replicates.items()} == {
        "fid": 200,
        "kid": 200,
        "psnr": 1000,
        "ssim": 1000,
        "l2": 1000,
    }


def test_every_file_is_decoded_once(folders, monkeypatch):
    opened, real = Counter(), Image.open

    def counting(path, *args, **kwargs):
        opened[Path(path)] += 1
        return real(path, *args, **kwargs)

    monkeypatch.setattr(Image, "open", counting)
    protocol = Protocol("x/1", 64, "bilinear", means(bands), "reference", JUDGE)
    evaluate(folders["generated"], folders["source"], folders["reference"], folders["generated"], protocol)
    assert len(opened) == 12 + 12 + 15
    assert set(opened.values()) <= {1, 2}
    twice = {path for path, count in opened.items() if count == 2}
    assert twice == set(folders["generated"].glob("*.png"))  # they are also the truth here


def test_missing_extra_and_unreadable_images_are_printed(folders, tmp_path, capsys):
    (folders["source"] / "i00.png").unlink()
    (folders["generated"] / "i01.png").unlink()
    (folders["generated"] / "i02.png").write_bytes((folders["generated"] / "i02.png").read_bytes()[:200])
    main(command(folders, "--output", str(tmp_path / "out")))
    printed = capsys.readouterr().out
    assert "1 without a result: i01" in printed
    assert "1 results without a source: i00" in printed
    assert "1 unreadable: i02" in printed
    assert "9 images, protocol pets/2" in printed
    assert "biased upwards" in printed
    assert "Pets, a synthetic benchmark" in printed
    assert {entry["n"] for entry in written(tmp_path / "out").values()} == {9}
    content = read_scores(tmp_path / "out")
    assert content["protocol"] == "pets/2"
    assert content["pairing"] == {"missing": ["i01"], "extra": ["i00"], "unreadable": ["i02"]}
    lines = (tmp_path / "out" / "per_image.csv").read_text().splitlines()
    assert len(lines) == 10


def test_larger_sources_are_brought_to_the_protocols_size(folders, tmp_path):
    """As torchvision's Resize on pictures does, which both papers' evaluators use."""
    from torchvision.transforms import InterpolationMode, Resize

    stems = [path.stem for path in folders["generated"].glob("*.png")]
    large = draw(tmp_path / "large", stems, 5, side=128, suffix=".jpg")
    small = tmp_path / "small"
    small.mkdir()
    for path in large.iterdir():
        Resize(64, InterpolationMode.BICUBIC)(Image.open(path)).save(small / f"{path.stem}.png")
    protocol = Protocol("x/1", 64, "bicubic", None, "")
    assert (
        evaluate(folders["generated"], large, None, None, protocol).rows
        == evaluate(folders["generated"], small, None, None, protocol).rows
    )


def test_statistics_of_other_libraries_serve_as_reference(folders, tmp_path):
    protocol = Protocol("x/1", 64, "bilinear", means(bands), "reference")
    whole = evaluate(folders["generated"], folders["source"], folders["reference"], None, protocol).metrics
    files = sorted(folders["reference"].glob("*.png"))
    features = bands(torch.stack([torch.from_numpy(np.array(Image.open(p))).float() for p in files])).double().numpy()
    np.savez(tmp_path / "stats.npz", mu=features.mean(0), sigma=np.cov(features, rowvar=False))
    metrics = evaluate(folders["generated"], folders["source"], tmp_path / "stats.npz", None, protocol).metrics
    assert metrics["fid"]["value"] == pytest.approx(whole["fid"]["value"], rel=1e-6)
    assert metrics["fid"]["n_reference"] is None
    assert "kid" not in metrics


def test_kid_by_subsets_needs_enough_images(folders, tmp_path, capsys):
    """A subset of all images is the closed form, whichever it draws; a larger one does not exist."""
    main(command(folders, "--kid-subset", "12", "--output", str(tmp_path / "out")))
    metrics = written(tmp_path / "out")
    assert "100×12" in metrics["kid_subsets"]["protocol"]
    assert metrics["kid_subsets"]["value"] != metrics["kid"]["value"]  # of 12 of the 15 references each
    for path in sorted(folders["reference"].iterdir())[12:]:
        path.unlink()
    main(command(folders, "--kid-subset", "12", "--output", str(tmp_path / "out")))
    metrics = written(tmp_path / "out")
    assert metrics["kid_subsets"]["value"] == pytest.approx(metrics["kid"]["value"])
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(command(folders, "--kid-subset", "13"))
    assert "13" in capsys.readouterr().err


def test_constant_and_single_images_have_numbers(tmp_path):
    for name in ("generated", "source"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (64, 64), "grey").save(tmp_path / name / "a.png")
    protocol = Protocol("x/1", 64, "bilinear", means(bands), "reference")
    scores = evaluate(tmp_path / "generated", tmp_path / "source", tmp_path / "source", None, protocol)
    assert (scores.rows["a"]["psnr"], scores.rows["a"]["ssim"], scores.rows["a"]["l2"]) == (100, 1, 0)
    assert scores.metrics["fid"]["value"] is scores.metrics["fid"]["ci95"] is None


def spoil_size(folders):
    Image.new("RGB", (32, 32)).save(folders["generated"] / "i03.png")


def spoil_source(folders):
    Image.new("RGB", (64, 80)).save(folders["source"] / "i03.png")


def no_results(folders):
    for path in folders["generated"].iterdir():
        path.unlink()


def two_stems(folders):
    Image.new("RGB", (64, 64)).save(folders["source"] / "i03.jpg")


def empty_reference(folders):
    for path in folders["reference"].iterdir():
        path.unlink()


def no_folder(folders):
    folders["source"] = folders["source"] / "nowhere"


def all_broken(folders):
    for path in folders["generated"].iterdir():
        path.write_bytes(b"no picture")


@pytest.mark.parametrize(
    ("spoil", "printed"),
    [
        (spoil_size, "i03.png has 32×32 pixels and"),
        (spoil_source, "takes squares of at least 64×64"),
        (no_results, "there is nothing to score"),
        (two_stems, "which pairs images; rename one"),
        (empty_reference, "has no images"),
        (no_folder, "does not exist or is no folder"),
        (all_broken, "none of the 12 images"),
    ],
)
def test_mistakes_end_in_one_sentence(folders, spoil, printed, capsys):
    spoil(folders)
    with pytest.raises(SystemExit) as stopped:
        main(command(folders))
    captured = capsys.readouterr()
    assert stopped.value.code == 2
    assert printed in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_features_that_are_no_numbers_are_refused(folders):
    protocol = Protocol("x/1", 64, "bilinear", means(lambda batch: bands(batch) * torch.nan), "reference")
    with pytest.raises(ValueError, match="finite"):
        evaluate(folders["generated"], folders["source"], folders["reference"], None, protocol)


@pytest.mark.parametrize("name", RECIPES)
def test_protocols_are_those_of_the_configuration(name):
    with initialize_config_dir(str(ROOT / "conf"), version_base=None):
        edited = ("zero_shot", "pie_bench", "pie_bench_official", "emu_edit")
        experiment = {one: f"{one.removesuffix('_official')}_sd14" for one in edited} | {"pets_edit": "pets_edit"}
        chosen = experiment.get(name, "pets_cat2dog" if name == "pets" else "cat2dog")
        node = compose("config", [f"experiment={chosen}", f"protocol={name}"]).protocol
        recipe = RECIPES[name]
        assert (node.name, node.resize, node.reference_resize) == (recipe.name, recipe.resize, recipe.reference_resize)
        assert recipe.size in (node.size, None)
        assert (recipe.size is None) == (name in edited)
        assert tuple(node.get("rules", ())) == recipe.rules
        dino = node.get("structure") or node.get("dino")
        assert (dino and Path(dino.path).name) == recipe.dino
        assert node.infinity == recipe.infinity
        assert (node.judge and ROOT / node.judge) == recipe.judge
        function = recipe.features and f"{recipe.features.__module__}.{recipe.features.__name__}"
        assert (node.features and node.features._target_) == function
        assert not node.features or Path(node.features.path).name == Path(recipe.weights).name
        assert bool(node.clip) == bool(recipe.clip)
        if recipe.clip:
            assert Path(node.clip.path).name == Path(recipe.clip[0]).name
            assert node.clip.get("model") == recipe.clip[1]
        assert (node.lpips and Path(node.lpips.path).name) == recipe.lpips


def test_an_unknown_protocol_is_printed(tmp_path):
    with pytest.raises(ValueError, match="choose one of cyclediffusion, egsde, pets"):
        load_protocol("fid", None, tmp_path)


def test_processes_with_other_kinds_of_images_join(folders):
    """One process may have all the masks, and one no image at all."""
    from eval.edits import Edit
    from eval.metrics.measure import columns, joined, measure
    from eval.metrics.pictures import pair

    mask = folders["source"] / "masks" / "m.png"
    mask.parent.mkdir()
    Image.new("L", (64, 64), 0).save(mask)
    paired, pairing = pair(folders["generated"], folders["source"], None)
    edits = {stem: Edit("a", "b", "", mask if stem == "i00" else None) for stem in pairing.stems}
    protocol = Protocol("x/1", 64, "bilinear", means(bands), "reference")
    keys = columns(list(edits.values()), False, protocol)
    shares = [pairing.stems[:1], [], pairing.stems[1:]]
    found = joined([measure(paired, share, edits, protocol, keys) for share in shares])
    whole = measure(paired, pairing.stems, edits, protocol, keys)
    assert found.stems == whole.stems
    for key, values in whole.values.items():
        assert torch.allclose(found.values[key], values, equal_nan=True)
    assert torch.allclose(found.features["features"], whole.features["features"])
    assert (~whole.values["background_psnr"].isnan()).tolist() == [True] + [False] * 11


def test_two_processes_give_the_numbers_of_one_without_hydra(folders, tmp_path):
    """Also: `eval` needs nothing of Hydra, cyclediff or baselines."""
    main(command(folders, "--output", str(tmp_path / "one")))
    forbid = "import sys; sys.modules.update(dict.fromkeys(('hydra', 'omegaconf', 'cyclediff', 'baselines'))); "
    code = forbid + "from eval.evaluate import main; main(sys.argv[1:])"
    arguments = command(folders, "--output", str(tmp_path / "two"))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--no-python"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for path in (tmp_path / "cache").iterdir():
        path.unlink()
    subprocess.run(
        [*torchrun, sys.executable, "-c", code, *arguments], cwd=ROOT, check=True, env=environment, timeout=300
    )
    one, two = written(tmp_path / "one"), written(tmp_path / "two")
    assert one.keys() == two.keys()
    for key, entry in one.items():
        assert two[key]["value"] == pytest.approx(entry["value"], rel=1e-6)
        assert two[key]["ci95"] == pytest.approx(entry["ci95"], rel=1e-4)
    assert (tmp_path / "one" / "per_image.csv").read_text() == (tmp_path / "two" / "per_image.csv").read_text()
