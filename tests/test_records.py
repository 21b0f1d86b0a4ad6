"""Records and tables of scores: what an evaluation finds reaches its readers unchanged."""

import hashlib
import math
from dataclasses import replace

import numpy as np
import pytest

from eval.evaluate import evaluate, main
from eval.metrics.pets import pets_judge
from eval.protocols import JUDGE, Protocol
from eval.records import list_scores, read_bootstrap, read_curves, read_per_image, read_scores, untrained, write_scores

from .test_evaluate import bands, command, draw, means


@pytest.fixture
def folders(tmp_path):
    stems = [f"i{k:02d}" for k in range(12)]
    return {
        "generated": draw(tmp_path / "generated", stems, 1),
        "source": draw(tmp_path / "source", stems, 2),
        "reference": draw(tmp_path / "reference", [f"r{k}" for k in range(15)], 3),
    }


def test_files_say_what_the_evaluation_found(folders, tmp_path):
    """Values survive the way through the files to the last bit, and the files are as metrics.json says."""
    main(command(folders, "--output", str(tmp_path / "out")))
    protocol = Protocol("pets/2", 64, "bilinear", pets_judge(str(JUDGE)), "reference-15-images", JUDGE, None, True)
    scores = evaluate(folders["generated"], folders["source"], folders["reference"], None, protocol)
    record = read_scores(tmp_path / "out")
    assert record["metrics"].keys() == scores.metrics.keys()
    for key, entry in record["metrics"].items():
        assert entry == {**scores.metrics[key], "ci95": list(scores.metrics[key]["ci95"])}
    assert read_per_image(tmp_path / "out") == scores.rows
    assert read_bootstrap(tmp_path / "out") == scores.replicates
    for name, digest in record["files"].items():
        assert hashlib.sha256((tmp_path / "out" / name).read_bytes()).hexdigest() == digest
    assert record["files"].keys() == {"per_image.csv", "bootstrap.csv"}


def test_intervals_are_those_of_the_replicates(folders):
    protocol = Protocol("x/1", 64, "bilinear", means(bands), "reference")
    scores = evaluate(folders["generated"], folders["source"], folders["reference"], None, protocol)
    for key, replicates in scores.replicates.items():
        value, moved = scores.metrics[key]["value"], np.array(replicates) - np.mean(replicates)
        ends = np.quantile(moved + value, [0.025, 0.975]).tolist()
        assert list(scores.metrics[key]["ci95"]) == pytest.approx(ends, rel=1e-6)


def test_columns_have_their_names_units_and_directions(folders):
    protocol = Protocol("x/1", 64, "bilinear", means(bands), "reference", infinity=True)
    ours = evaluate(folders["generated"], folders["source"], folders["reference"], folders["source"], protocol).metrics
    shown = [(entry["header"], entry["digits"], entry["scale"], entry["higher_is_better"]) for entry in ours.values()]
    assert shown == [
        ("FID", 2, 1, False), ("FID∞", 2, 1, False), ("KID×10³", 2, 1000, False), ("PSNR dB", 2, 1, True),
        ("SSIM", 3, 1, True), ("L2", 2, 1, False), ("ground-truth PSNR", 2, 1, True),
    ]  # fmt: skip
    judged = evaluate(
        folders["generated"], folders["source"], folders["reference"], None, replace(protocol, judge=JUDGE)
    ).metrics
    assert [judged[key]["header"] for key in ("fid", "fid_infinity", "kid")] == ["FD", "FD∞", "KD×10³"]


RECORD = {"schema": 2, "protocol": "x/1", "identity": {}, "metrics": {}, "random_weights": [], "reference": None}


def test_columns_of_unequal_length_and_missing_values_survive(tmp_path):
    replicates = {"psnr": [1.5, math.nan, 1e-17], "fid": [0.1]}
    rows = [{"id": "a,b", "psnr": 0.1 + 0.2, "ssim": None}, {"id": 'ü "1"', "psnr": 1e300, "ssim": 0.5}]
    curves = {"c": {"title": "t", "x": {"header": "x"}, "y": {"header": "y"}, "points": [[0, 1.5]]}}
    folder = tmp_path / "scores" / "x-1-0"
    write_scores(folder, RECORD, rows, replicates, curves)
    found = read_bootstrap(folder)
    assert found["fid"] == [0.1]
    assert (found["psnr"][0], found["psnr"][2]) == (1.5, 1e-17)
    assert math.isnan(found["psnr"][1])
    assert read_per_image(folder) == {"a,b": {"psnr": 0.1 + 0.2}, 'ü "1"': {"psnr": 1e300, "ssim": 0.5}}
    assert read_curves(folder) == curves
    assert read_scores(folder)["files"].keys() == {"per_image.csv", "bootstrap.csv", "curves.json"}
    assert list_scores(tmp_path) == [folder]


def test_scores_without_images_have_metrics_json_alone(tmp_path):
    write_scores(tmp_path / "scores" / "x", RECORD, [], {})
    assert [path.name for path in (tmp_path / "scores" / "x").iterdir()] == ["metrics.json"]
    assert read_per_image(tmp_path / "scores" / "x") == read_bootstrap(tmp_path / "scores" / "x") == {}
    assert read_curves(tmp_path / "scores" / "x") == {}


def test_scores_that_are_not_finished_are_not_listed(tmp_path):
    (tmp_path / "scores" / "x").mkdir(parents=True)
    (tmp_path / "scores" / "x" / "per_image.csv").write_text("id\n")
    assert list_scores(tmp_path) == list_scores(tmp_path / "none") == []


def test_untrained_networks_are_named():
    """Those of the records; a protocol string alone is enough, too."""
    marked = {
        "clip": {"protocol": "clip/RANDOM-ViT/x"},
        "lpips": {"protocol": "RANDOM-lpips/x"},
        "l2": {"protocol": "l2"},
    }
    assert untrained({"random_weights": []}, {**RECORD, "metrics": marked}) == ["clip", "lpips"]
    assert untrained({"random_weights": ["b"]}, {**RECORD, "metrics": marked, "random_weights": ["a"]}) == ["a", "b"]
    assert untrained({"random_weights": []}, RECORD) == []
