"""Rows against one another: seeds, marks, claims."""

import csv
import itertools

import numpy as np
import pytest

from eval.report.comparison import judge_claims, mark, over_seeds, replicates

N = 40


def row(task, name, values, *, seed=1, distances=None, higher=True):
    """A row with per-image PSNR, and replicates of FID if given, as (value, replicates)."""
    folder = task / f"{name}-{seed}"
    folder.mkdir()
    with (folder / "per_image.csv").open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["id", "psnr"])
        lines.writerows((f"i{k:02d}", value) for k, value in reversed(list(enumerate(values))))  # any order
    metrics = {"psnr": {"value": float(np.mean(values)), "ci95": [0, 1], "higher_is_better": higher}}
    if distances:
        value, resampled = distances
        (folder / "bootstrap.csv").write_text("fid\n" + "\n".join(map(str, resampled)) + "\n")
        metrics["fid"] = {"value": value, "ci95": None, "higher_is_better": False}
    identity = {"method": {"name": name}, "seed": seed}
    return {"identity": identity, "folder": folder.name, "metrics": metrics, "seconds_per_image": float(seed)}


def single(task, name, values, **more):
    return name, over_seeds([row(task, name, values, **more)])


def test_seeds_become_mean_and_standard_deviation(tmp_path):
    rows = [row(tmp_path, "m", np.full(N, value), seed=seed) for seed, value in enumerate((10.0, 12.0, 17.0))]
    one = over_seeds(rows)
    assert one["metrics"]["psnr"]["value"] == pytest.approx(13)
    assert one["std"]["psnr"] == pytest.approx(np.std([10, 12, 17], ddof=1))
    assert one["metrics"]["psnr"]["ci95"] is None
    assert one["seconds_per_image"] == 1
    assert one["seeds"] == [0, 1, 2]
    rows[1]["metrics"]["psnr"]["value"] = None
    assert over_seeds(rows)["metrics"]["psnr"]["value"] is None


def test_a_small_difference_on_the_same_images_is_seen(tmp_path):
    """Images differ by far more than methods do: only pairs tell them apart."""
    difficulty = np.random.default_rng(0).normal(20, 5, N)
    noise = np.random.default_rng(1).normal(0, 0.1, (2, N))
    rows = [
        single(tmp_path, "a", difficulty + 0.5),
        single(tmp_path, "b", difficulty + noise[0] - noise[0].mean()),
        single(tmp_path, "c", difficulty + 0.5 + noise[1] - noise[1].mean() - 0.001),
    ]
    mark(rows, tmp_path)
    assert [values["marks"].get("psnr", "") for _, values in rows] == ["best", "", "tied"]


def test_lower_may_be_better(tmp_path):
    rows = [single(tmp_path, "a", np.full(N, 1.0), higher=False), single(tmp_path, "b", np.full(N, 2.0), higher=False)]
    mark(rows, tmp_path)
    assert [values["marks"] for _, values in rows] == [{"psnr": "best"}, {}]


def test_replicates_of_seeds_are_averaged(tmp_path):
    rows = [row(tmp_path, "m", np.full(N, value), seed=seed) for seed, value in enumerate((1.0, 3.0))]
    assert replicates(over_seeds(rows), "psnr", tmp_path).tolist() == pytest.approx([2.0] * 1000)
    assert replicates(over_seeds(rows), "fid", tmp_path) is None


@pytest.mark.parametrize(
    ("shift", "verdict", "probability"), [(-2.0, "holds", 1.0), (2.0, "fails", 0.0), (0.0, "undecided", 0.5)]
)
def test_a_claim_on_a_distance_is_judged_by_its_replicates(tmp_path, shift, verdict, probability):
    random = np.random.default_rng(0)
    common = random.normal(30, 5, 200)
    half = np.tile([-0.5, 0.5], 100)
    rows = [
        single(tmp_path, "a", np.ones(N), distances=(20 + shift, common + 7 + half)),
        single(tmp_path, "b", np.ones(N), distances=(20.0, common)),
    ]
    claim = {"text": "a is nearer", "method": "a", "than": "b", "better": ["fid"]}
    (found,) = judge_claims([claim], rows, tmp_path)
    assert (found.text, found.verdict) == ("a is nearer", verdict)
    assert found.probability == pytest.approx(probability)


def test_all_parts_of_a_claim_must_hold_at_once(tmp_path):
    """FID is better in one half of the resamples; PSNR in all, and then in none."""
    half = np.tile([-0.5, 0.5], 100)
    for name, psnr in (("same", 1.0), ("worse", -1.0)):
        task = tmp_path / name
        task.mkdir()
        rows = [
            single(task, "a", np.ones(N) + psnr, distances=(20.0, half)),
            single(task, "b", np.ones(N), distances=(20.0, np.zeros(200))),
        ]
        claim = {"text": "both", "method": "a", "than": "b", "better": ["fid", "psnr"]}
        (found,) = judge_claims([claim], rows, task)
        assert found.probability == pytest.approx(0.5 if psnr > 0 else 0)
        assert found.verdict == ("undecided" if psnr > 0 else "fails")


def test_without_runs_or_numbers_a_claim_is_undecided(tmp_path):
    rows = [single(tmp_path, "a", np.ones(N)), single(tmp_path, "b", np.ones(N))]
    for method, key in itertools.product(("b", "c"), ("psnr", "fid")):
        claim = {"text": "?", "method": "a", "than": method, "better": [key]}
        (found,) = judge_claims([claim], rows, tmp_path)
        assert found.verdict == ("fails" if (method, key) == ("b", "psnr") else "undecided")  # equal is not better
        assert (found.probability is None) == ((method, key) != ("b", "psnr"))
