"""Runs whose texts lack a word that attention control names, or do not differ to CLIP."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pyarrow import parquet

from eval.records import read_per_image, read_scores

from .forking import run
from .tiny_clip import SHIPPED
from .tiny_sd import stable_diffusion


@pytest.fixture
def own(tmp_path):
    """A model of one's own, and two pictures."""
    stable_diffusion(tmp_path / "model")
    for name in ("a", "b"):
        pixels = np.random.default_rng(ord(name)).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    return tmp_path


def own_run(folder: Path, texts: list[tuple[str, str]], *arguments: str):
    rows = [("image", "id", "source", "target"), *((f"{i}.png", i, *pair) for i, pair in zip("ab", texts, strict=True))]
    with (folder / "mine.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    places = [f"data.source={folder / 'mine.csv'}", f"task.model.path={folder / 'model'}"]
    places += [f"paths.clip_vit_b32={SHIPPED}", f"paths.outputs={folder / 'out'}"]
    return run("experiment=zero_shot_sd14", "task.size=32", "confirm=true", *places, *arguments)


def test_a_word_that_no_text_has_is_refused_before_the_model_is_loaded(own):
    for part in (own / "model").glob("*/*.safetensors"):
        part.write_bytes(b"not read")
    texts = [("a ginger cat", "a ginger dog, looking left"), ("a cat", "a big cat")]
    for settings, sentence in (
        ("weights={dgo:5}", "weights names 'dgo', which"),
        ("cross={default_:0.5,zebra:0.1}", "cross names 'zebra', which"),
    ):
        done = own_run(own, texts, "method=sdedit_cac", "tier=single", f"method.attention.{settings}")
        assert done.returncode == 2
        assert done.stderr == (
            f"error: {sentence} is no word of any of the 2 target texts; choose one of a, ginger, dog, looking, left, "
            "big, cat\n"
        )
    done = own_run(own, texts, "method=sdedit_cac", "tier=single", "method.attention.weights={Dog:5,big:2}")
    assert "safetensors" in done.stderr or "model" in done.stderr  # the next mistake
    assert "names" not in done.stderr


def test_a_size_that_the_codec_cannot_halve(own):
    done = own_run(own, [("a cat", "a dog")] * 2, "method=ddib", "tier=single", "task.size=33")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "error: model works on images whose sides are multiples of 4; got task.size=33, choose 32 or 36"
    )
    assert not list(own.rglob("progress.jsonl"))


def test_edits_that_ask_for_nothing(own):
    """Said before the slow part; then the first candidate is taken, and the mean is of the other image."""
    done = own_run(own, [("a cat", "a dog"), ("a cat", "a cat")], "method=sdedit", "tier=few")
    assert done.returncode == 0, done.stderr
    because = "because their source and target texts are the same to CLIP;"
    said = f"warning: D-CLIP is undefined for 1 of 2 images (b), {because}"
    assert [line for line in done.stderr.splitlines() if "D-CLIP" in line] == [
        f"{said} of their candidates the first is taken, whatever it looks like",
        f"{said} they are left out of its mean",
    ]
    candidates = parquet.read_table(next(own.glob("out/*/*/candidates.parquet"))).to_pylist()
    equal = [row for row in candidates if row["id"] == "b"]
    assert [row["chosen"] for row in equal] == [True] + [False] * (len(equal) - 1)
    assert {row["dclip"] for row in equal} == {None}
    others = [row["dclip"] for row in candidates if row["id"] == "a"]
    scores = next(own.glob("out/*/*/scores/*"))
    entry = read_scores(scores)["metrics"]["dclip"]
    assert (entry["n"], entry["value"]) == (1, pytest.approx(max(others), abs=1e-4))
    assert entry.get("unselected") == pytest.approx(np.mean(others))
    assert {stem: "dclip" in row for stem, row in read_per_image(scores).items()} == {"a": True, "b": False}
