"""Rows against one another: seeds, marks, claims, and the promises of paired differences."""

import itertools
import math

import numpy as np
import pytest
import torch

from eval.metrics.statistics import mean_replicates, resamples
from eval.report.comparison import Verdict, difference, format_verdict, judge_claims, mark
from eval.report.rows import merge_seeds, read_entries

from .finished_run import metric, write_run, write_scores

N = 40


def replicates_of(values, count=1000):
    """Means on the resamples that an evaluation uses."""
    return mean_replicates(torch.tensor(values, dtype=torch.float64), resamples(len(values), count)).tolist()


def write_row(task, name, values, *, seed=1, distances=None, higher=True):
    """A run with per-image PSNR on disk, and with replicates of FID if given, as (value, replicates)."""
    folder = write_run(task, name, seed=seed, images=False, costs={"seconds_per_image": float(seed)})
    columns = {"psnr": replicates_of(values)}
    metrics = {"psnr": metric("psnr", float(np.mean(values)), [0, 1]) | {"higher_is_better": higher}}
    if distances:
        metrics["fid"] = metric("fid", distances[0])
        columns["fid"] = [*distances[1], *[""] * (1000 - len(distances[1]))]
    write_scores(folder, metrics, bootstrap=[list(columns), *zip(*columns.values(), strict=True)])
    return folder


def read_rows(task):
    entries, _ = read_entries(task)
    return [merge_seeds([entry], entry.run["method"]) for entry in entries]


def test_seeds_become_mean_and_standard_deviation(tmp_path):
    for seed, value in enumerate((10.0, 12.0, 17.0)):
        write_row(tmp_path, "m", np.full(N, value), seed=seed)
    entries, _ = read_entries(tmp_path)
    row = merge_seeds(entries)
    assert row.values["psnr"] == row.metrics["psnr"]["value"] == pytest.approx(13)
    assert row.std["psnr"] == pytest.approx(np.std([10, 12, 17], ddof=1))
    assert row.metrics["psnr"]["ci95"] is None
    assert row.values["seconds_per_image"] == 1
    assert row.seeds == [0, 1, 2]
    assert row.replicates["psnr"].tolist() == pytest.approx([13.0] * 1000)
    entries[1].scores["metrics"]["psnr"]["value"] = None
    assert merge_seeds(entries).values["psnr"] is None


def test_a_small_difference_on_the_same_images_is_seen(tmp_path):
    """Images differ by far more than methods do: only pairs distinguish them."""
    difficulty = np.random.default_rng(0).normal(20, 5, N)
    noise = np.random.default_rng(1).normal(0, 0.1, (2, N))
    write_row(tmp_path, "a", difficulty + 0.5)
    write_row(tmp_path, "b", difficulty + noise[0] - noise[0].mean())
    write_row(tmp_path, "c", difficulty + 0.5 + noise[1] - noise[1].mean() - 0.001)
    rows = read_rows(tmp_path)
    mark(rows)
    assert [row.marks.get("psnr", "") for row in rows] == ["best", "", "tied"]


def test_lower_may_be_better(tmp_path):
    write_row(tmp_path, "a", np.full(N, 1.0), higher=False)
    write_row(tmp_path, "b", np.full(N, 2.0), higher=False)
    rows = read_rows(tmp_path)
    mark(rows)
    assert [row.marks for row in rows] == [{"psnr": "best"}, {}]


def test_empty_cells_end_a_column(tmp_path):
    write_row(tmp_path, "a", np.ones(N), distances=(20.0, np.arange(200.0)))
    (row,) = read_rows(tmp_path)
    assert row.replicates["fid"].tolist() == list(range(200))
    assert len(row.replicates["psnr"]) == 1000


@pytest.mark.parametrize(
    ("shift", "verdict", "support"), [(-2.0, "holds", 1.0), (2.0, "fails", 0.0), (0.0, "undecided", 0.5)]
)
def test_a_claim_on_a_distance_is_judged_by_its_replicates(tmp_path, shift, verdict, support):
    common, half = np.random.default_rng(0).normal(30, 5, 200), np.tile([-0.5, 0.5], 100)
    write_row(tmp_path, "a", np.ones(N), distances=(20 + shift, common + 7 + half))
    write_row(tmp_path, "b", np.ones(N), distances=(20.0, common))
    claim = {"text": "a is nearer", "method": "a", "than": "b", "better": ["fid"]}
    (found,) = judge_claims([claim], read_rows(tmp_path))
    assert (found.text, found.verdict) == ("a is nearer", verdict)
    assert found.support == pytest.approx(support)


@pytest.mark.parametrize(("one", "other", "shown"), [("a", "b", False), ("b", "a", True)])
def test_a_claim_that_fails_says_why(tmp_path, one, other, shown):
    write_row(tmp_path, "a", np.full(N, 2.0))
    write_row(tmp_path, "b", np.full(N, 1.0))
    claim = {"text": "?", "method": one, "than": other, "better": ["psnr"], "reason": "it is small"}
    (found,) = judge_claims([claim], read_rows(tmp_path))
    assert format_verdict(found) == (
        "fails: ? (bootstrap support 0 %; it is small)" if shown else "holds: ? (bootstrap support 100 %)"
    )


def test_all_parts_of_a_claim_must_hold_at_once(tmp_path):
    """FID is better in one half of the resamples; PSNR in all, and then in none."""
    half = np.tile([-0.5, 0.5], 100)
    for name, psnr in (("same", 1.0), ("worse", -1.0)):
        write_row(tmp_path / name, "a", np.ones(N) + psnr, distances=(20.0, half))
        write_row(tmp_path / name, "b", np.ones(N), distances=(20.0, np.zeros(200)))
        claim = {"text": "both", "method": "a", "than": "b", "better": ["fid", "psnr"]}
        (found,) = judge_claims([claim], read_rows(tmp_path / name))
        assert found.support == pytest.approx(0.5 if psnr > 0 else 0)
        assert found.verdict == ("undecided" if psnr > 0 else "fails")


def test_a_claim_on_a_distance_and_a_mean_uses_the_same_resamples(tmp_path):
    """PSNR and FID are better on the same resamples: those in which the first image is drawn more than once."""
    values = np.where(np.arange(N) == 0, 30.0, -1.0)
    often = resamples(N, 200)[:, 0] > 1
    means = np.array(replicates_of(values, 200))
    assert ((means > 0) == often.numpy()).all()
    write_row(tmp_path, "a", values, distances=(0.0, np.where(often, -1.0, 1.0)))
    write_row(tmp_path, "b", np.zeros(N), distances=(0.0, np.zeros(200)))
    rows = read_rows(tmp_path)
    shift = rows[0].replicates["psnr"][:200].mean()  # so that the comparison is with the replicates as they are
    rows[0].metrics["psnr"]["value"] = shift
    rows[0].metrics["fid"]["value"] = float(np.where(often, -1.0, 1.0).mean())
    claim = {"text": "both", "method": "a", "than": "b", "better": ["fid", "psnr"]}
    (found,) = judge_claims([claim], rows)
    assert found.support == pytest.approx(often.double().mean().item())


def test_a_claim_on_two_settings_of_one_method(tmp_path):
    for seed, value in enumerate((20.0, 18.0)):
        write_row(tmp_path, "m", np.full(N, value), seed=seed)
    rows = read_rows(tmp_path)
    for row, eta in zip(rows, (0.1, 1.0), strict=True):
        row.run["identity"]["method"] = {"name": "m", "eta": eta}
    small, large = ({"method": "m", "eta": eta} for eta in (0.1, 1.0))
    for one, other, verdict in ((small, large, "holds"), (large, small, "fails"), (small, "m", "undecided"),
                                (small, {"method": "m", "T": 5}, "undecided")):  # fmt: skip
        claim = {"text": "?", "method": one, "than": other, "better": ["psnr"]}
        assert judge_claims([claim], rows)[0].verdict == verdict


def test_without_runs_or_numbers_a_claim_is_undecided(tmp_path):
    write_row(tmp_path, "a", np.ones(N))
    write_row(tmp_path, "b", np.ones(N))
    for method, key in itertools.product(("b", "c"), ("psnr", "fid")):
        claim = {"text": "?", "method": "a", "than": method, "better": [key]}
        (found,) = judge_claims([claim], read_rows(tmp_path))
        assert found.verdict == ("fails" if (method, key) == ("b", "psnr") else "undecided")  # equal is not better
        assert (found.support is None) == ((method, key) != ("b", "psnr"))


@pytest.mark.parametrize(
    ("support", "text"), [(1.0, "100 %"), (0.97, "97 %"), (0.9984, "99.8 %"), (0.0, "0 %"), (0.004, "0.4 %")]
)
def test_support_is_a_percentage(support, text):
    assert format_verdict(Verdict("a < b", "holds", support)) == f"holds: a < b (bootstrap support {text})"


# intervals of differences


def normal(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_pairs_distinguish_what_intervals_cannot():
    """Two methods whose scores differ by 0.2 on images that differ by 3: alone each could be the better one."""
    images, counts = 3 * normal(80, seed=3), resamples(80, 1000)
    a, b = (images + 0.3 * normal(80, seed=seed) + shift for seed, shift in ((4, 0.0), (5, 0.2)))
    value_a, value_b = a.mean().item(), b.mean().item()
    first, second = (mean_replicates(values, counts).numpy() for values in (a, b))
    assert np.quantile(first, 0.975) > np.quantile(second, 0.025) + 0.5
    low, high = difference(value_a, value_b, first, second)
    assert low < high < 0
    assert high - low == pytest.approx(2 * 1.96 * (a - b).std().item() / 80**0.5, rel=0.15)
    other = mean_replicates(b, resamples(80, 1000, seed=1)).numpy()
    low, high = difference(value_a, value_b, first, other)
    assert low < 0 < high


def test_a_method_against_itself_is_a_tie():
    replicates = mean_replicates(normal(30, seed=6), resamples(30, 100)).numpy()
    assert difference(1.5, 1.5, replicates, replicates) == (0, 0)


def test_differences_of_known_replicates():
    a = np.array([1.0, 2, 3, 4, math.nan])
    b = np.array([0.0, 2, 4, 4, 7])
    assert difference(5.0, 5.0, a, b) == pytest.approx((-0.925, 0.925))  # of 1, 0, -1, 0
    low, high = difference(4.5, 5.0, a, b)
    assert (low, high) == pytest.approx((-1.425, 0.425))
    assert difference(5.0, 4.5, b, a) == pytest.approx((-high, -low))
