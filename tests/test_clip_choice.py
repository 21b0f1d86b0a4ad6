"""Which CLIP scores, what it does not read, and edits whose texts it cannot tell apart."""

import csv
import json
import logging
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from cyclediff.runtime.study import Scored
from cyclediff.studies.selection import rank, with_unselected
from eval.evaluate import evaluate, main
from eval.metrics.candidates import candidate_scores
from eval.metrics.clip import CONFIG, WEIGHTS, changed, open_clip_scorer
from eval.metrics.features import file_digest
from eval.metrics.pairwise import psnr, ssim
from eval.protocols import Protocol
from eval.records import read_per_image, read_scores

from .tiny_clip import SHIPPED, TINY, local_clip, tiny_clip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_clip(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    return local_clip(tmp_path_factory.mktemp("clips") / "local")


def refused(match, path, *model):
    with pytest.raises(ValueError, match=match) as caught:
        open_clip_scorer(str(path), *model)
    assert "\n" not in str(caught.value)


def test_a_file_does_not_say_which_network_it_is(tiny, tmp_path):
    """GELU and QuickGELU have the same tensors and other scores: the choice is asked for, and recorded."""
    refused(
        r"^\S+tiny.safetensors does not say which network it is of, and GELU and QuickGELU have the same tensors",
        tiny[0],
    )
    refused("^openai does not say which network it is of", "openai")
    plain = open_clip_scorer(str(tiny[0]), "tiny")
    assert plain.protocol == f"tiny-gelu-{file_digest(tiny[0])}/pil-bicubic224"
    shutil.copy(tiny[0], tmp_path / WEIGHTS)
    (tmp_path / CONFIG).write_text("[]")
    refused(f"{CONFIG} cannot be read; get it again, or move", tmp_path / WEIGHTS, "tiny")
    (tmp_path / CONFIG).write_text(json.dumps({"model_cfg": TINY, "preprocess_cfg": {}}))
    assert open_clip_scorer(str(tmp_path / WEIGHTS), "tiny").protocol == plain.protocol
    refused(
        f"{CONFIG} says that {WEIGHTS} has GELU, and tiny-quickgelu has QuickGELU; give the folder {tmp_path}, whose",
        tmp_path / WEIGHTS,
        "tiny-quickgelu",
    )


def test_a_folder_says_itself_which_activation_it_has(local, tmp_path):
    """Also where its name says something else."""
    folder = tmp_path / "clip-quickgelu"
    shutil.copytree(local, folder)
    assert open_clip_scorer(str(folder)).protocol.startswith("clip-quickgelu-gelu-")
    config = json.loads((folder / CONFIG).read_text())
    config["model_cfg"]["quick_gelu"] = True
    shutil.copytree(folder, tmp_path / "other")
    (tmp_path / "other" / CONFIG).write_text(json.dumps(config))
    assert open_clip_scorer(str(tmp_path / "other")).protocol.startswith("other-quickgelu-")


# texts that CLIP cannot tell apart


@pytest.mark.parametrize("kind", ["simple", "transformers"])
def test_a_text_that_is_cut_is_shown_once(kind, tiny, local, caplog, monkeypatch):
    """77 tokens of OpenAI's tokenizer, 24 of that of pets; two of them mark start and end."""
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    path, model, room = (tiny[0], "tiny", 75) if kind == "simple" else (local, None, 22)
    scorer = open_clip_scorer(str(path), model)
    full = " ".join(["dog"] * room)
    with pytest.warns(UserWarning, match="CLIP does not read the end") as caught:
        scorer.warn_of_cut([full, f"{full} cat and mouse ", "a dog", f"{full} cat and mouse "])
    assert [str(one.message) for one in caught] == [
        f"CLIP does not read the end of '{full} cat and mouse ', and its scores ignore what is cut: 'cat and mouse'"
    ]
    texts = scorer.texts([full, f"{full} cat", f"{full} mouse"])
    assert changed(texts[1:], texts[:1]).tolist() == [False, False]
    assert not caplog.records


LONG = "a small ginger cat " * 10  # pets' CLIP reads 22 tokens
TEXTS = {"a": ("a cat", "a dog"), "b": ("a cat", "a cat"), "c": (f"{LONG}a cat", f"{LONG}a dog")}
SAME = "because their source and target texts are the same to CLIP;"


@pytest.fixture
def folders(tmp_path):
    """Edits of which the second asks for nothing, and the third for something that CLIP does not read."""
    generator = np.random.default_rng(0)
    for name in ("source", "generated"):
        (tmp_path / name).mkdir()
        for stem in TEXTS:
            Image.fromarray(generator.integers(0, 256, (64, 64, 3), np.uint8)).save(tmp_path / name / f"{stem}.png")
    write_texts(tmp_path / "source", TEXTS)
    return tmp_path / "generated", tmp_path / "source"


def write_texts(folder, texts):
    rows = [("id", "source", "target", "category", "mask"), *((stem, *pair, "", "") for stem, pair in texts.items())]
    with (folder / "edits.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def test_edits_that_ask_for_nothing_are_left_out_of_the_mean(folders):
    clip = open_clip_scorer(str(SHIPPED))
    with pytest.warns(UserWarning, match="CLIP") as caught:
        scores = evaluate(*folders, None, None, Protocol("x/1", None, "bilinear", None, "", clip=clip))
    said = [str(one.message) for one in caught]
    undefined = f"D-CLIP is undefined for 2 of 3 images (b, c), {SAME} they are left out of its mean"
    assert said[-1] == undefined
    assert sum("does not read the end" in one for one in said) == 2
    assert len(said) == 3
    entry, rows = scores.metrics["dclip"], scores.rows
    assert [rows[stem]["dclip"] for stem in "bc"] == [None, None]
    assert (entry["value"], entry["n"]) == (pytest.approx(rows["a"]["dclip"]), 1)
    assert scores.metrics["clip"]["n"] == 3


def test_without_any_change_there_is_no_number(folders, capsys):
    generated, source = folders
    write_texts(source, {stem: ("a cat", "a cat") for stem in "abc"})
    output = source.parent / "scores"
    arguments = ["--generated", str(generated), "--source", str(source), "--protocol", "zero_shot"]
    with pytest.warns(UserWarning, match="undefined") as caught:
        main([*arguments, "--clip", str(SHIPPED), "--output", str(output), "--device", "cpu"])
    assert [str(one.message) for one in caught] == [
        f"D-CLIP is undefined for 3 of 3 images (a, b, c), {SAME} so there is no mean of it"
    ]
    entry = read_scores(output)["metrics"]["dclip"]
    assert (entry["value"], entry["n"]) == (None, 0)
    assert all("dclip" not in row and "clip" in row for row in read_per_image(output).values())
    capsys.readouterr()


def test_of_candidates_without_a_score_the_first_is_taken(folders):
    """Rounding does not choose; and such candidates count in no mean."""
    generated, source = folders
    scores = candidate_scores(open_clip_scorer(str(SHIPPED)), source, torch.device("cpu"), "dclip")
    pictures = torch.stack(
        [torch.from_numpy(np.array(Image.open(p))).permute(2, 0, 1) for p in sorted(generated.iterdir())]
    )
    found = scores(["c"] * 3, pictures)
    assert found["dclip"].isnan().all()
    assert not found["dclip_defined"].any()
    rows = [{"index": i, "dclip": None, "dclip_defined": False} for i in (2, 0, 1)]
    assert max(rows, key=lambda row: rank(row, "dclip"))["index"] == 0
    entry = {"dclip": {"value": 0.5}}
    scored = Scored(entry, [], {}, random_weights=[], reference=None)  # type: ignore[arg-type]
    assert with_unselected(scored, [*rows, {"index": 3, "dclip": 0.25}], ()).metrics["dclip"]["unselected"] == 0.25
    assert "unselected" not in with_unselected(scored, rows, ()).metrics["dclip"]


# the command line


def test_the_network_of_a_file_is_named_on_the_command_line(folders, tiny, capsys):
    generated, source = folders
    write_texts(source, {stem: ("a cat", "a dog") for stem in "abc"})
    arguments = ["--generated", str(generated), "--source", str(source), "--protocol", "zero_shot", "--device", "cpu"]

    def score(*more):
        main([*arguments, "--output", str(source.parent / "out"), *more])
        return read_scores(source.parent / "out")["metrics"]["dclip"]

    quick, plain = (score("--clip", str(tiny[0]), "--clip-model", name) for name in ("tiny-quickgelu", "tiny"))
    assert quick["value"] != pytest.approx(plain["value"], abs=1e-6)
    digest = file_digest(tiny[0])
    assert quick["protocol"].startswith(f"dclip/tiny-quickgelu-{digest}/")
    assert plain["protocol"].startswith(f"dclip/tiny-gelu-{digest}/")
    capsys.readouterr()
    for more, sentence in (
        (
            ["--clip", str(tiny[0])],
            "does not say which network it is of, and GELU and QuickGELU have the same tensors",
        ),
        (["--clip", str(SHIPPED), "--clip-model", "tiny"], "says which network it is; leave out --clip-model tiny"),
        (["--protocol", "pets", "--clip", str(SHIPPED)], "protocol pets/2 scores no texts; leave out --clip and"),
    ):
        with pytest.raises(SystemExit) as stopped:
            score(*more)
        printed = capsys.readouterr()
        assert stopped.value.code == 2
        assert sentence in printed.err
        assert printed.err.count("\n") == 1


@pytest.mark.parametrize("metric", ["psnr", "ssim"])
def test_candidates_ranked_without_clip(folders, metric):
    """The score is the one of the table, and CLIP is not asked."""
    generated, source = folders
    stems = sorted(path.stem for path in generated.iterdir())
    pictures, originals = (
        torch.stack([torch.from_numpy(np.array(Image.open(folder / f"{s}.png").convert("RGB"))) for s in stems])
        for folder in (generated, source)
    )
    pictures, originals = pictures.permute(0, 3, 1, 2), originals.permute(0, 3, 1, 2)
    scores = candidate_scores(None, source, torch.device("cpu"), metric)  # type: ignore[arg-type]
    torch.testing.assert_close(
        scores(stems, pictures), {metric: {"psnr": psnr, "ssim": ssim}[metric](pictures, originals)}
    )
