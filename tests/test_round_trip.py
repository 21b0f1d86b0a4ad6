"""Round trips: what a method promises where the target is the source, and what a run and `run.py check` say of it."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cyclediff.cli import check
from cyclediff.diffusion.noise import Noise
from cyclediff.errors import UserError
from cyclediff.studies import round_trip
from cyclediff.studies.round_trip import FEWEST_STEPS, HIGHEST, RoundTrip, neutral, neutral_guidance, promise, psnr

from .forking import finish
from .nets import flow_denoiser, gaussian_denoiser
from .test_contract import FILES, FLOW, IDS, SCHEDULE, X0, make, prompted

ROOT = Path(__file__).parents[1]
CONFIG = str(ROOT / "conf")
INVERTING = [file.stem for file in FILES if make(file).reconstructs or file.stem.startswith("cyclediffusion")]


def of(name, task="pets_cat2dog", **changes):
    return replace(make(ROOT / "conf" / "method" / f"{name}.yaml", task), **changes)


def returned(method):
    """PSNR of what comes back of X0 under one denoiser for both sides."""
    method = neutral(method)
    denoiser = flow_denoiser(0.3, 0.2, FLOW) if method.name == "flowedit" else gaussian_denoiser(0.3, 0.2, SCHEDULE)
    target = denoiser
    if "none" not in method.conditions:
        denoiser = prompted(0.3, len(IDS))
        target = replace(denoiser, scales=(neutral_guidance(method),) * len(IDS), _contexts={})
    return psnr(method(X0, denoiser, target, Noise(1, IDS)), X0)


@pytest.mark.parametrize("name", INVERTING)
def test_methods_keep_their_promise(name):
    method = of(name)
    if name == "diffusionclip":  # pets has 15 steps, of which nothing is promised
        assert promise(method) is None
        method = replace(method, encoding_steps=40, decoding_steps=40)
    got = returned(method)
    assert got >= (100 if promise(method) == "exact" else round_trip.BOUNDS["approximately"])


VARIANTS = [
    (of("cyclediffusion"), "approximately"),
    (of("cyclediffusion", spacing="latent", T=50, T_es=40), "exact"),
    (of("edit_friendly"), "approximately"),
    (of("edit_friendly", keep_last=True), "exact"),
    (of("ledits_pp"), "exact"),
    (of("ledits_pp", T=24, T_es=14), "approximately"),  # its last step is of first order, the inversion's is not
    (of("ledits_pp", T=24, T_es=14, first_order_below=0), "exact"),
    (of("flowedit"), "exact"),
    (of("ddcm", T=30, t0=20), "exact"),
    (of("transfer_grid", source_path="ddim", sigma=0), "exact"),
    (of("transfer_grid", sigma="full"), "exact"),
    (of("transfer_grid", source_path="ddim", sigma=0, residual=False), "approximately"),
]


@pytest.mark.parametrize(("method", "promised"), VARIANTS, ids=str)
def test_what_settings_promise(method, promised):
    """Rounding is far above 100 dB, and what is not exact is below: promises are neither too high nor too low."""
    assert promise(method) == promised
    assert (returned(method) >= 100) == (promised == "exact")


@pytest.mark.parametrize(
    "method",
    [
        of("flowedit", n_min=3),
        of("transfer_grid", residual=False),
        of("transfer_grid", source_path="ddim", sigma=0.5, residual=False),
        of("sdedit"),
        of("ddib", timesteps=str(FEWEST_STEPS - 1)),  # a solver of few steps
    ],
    ids=str,
)
def test_what_promises_nothing(method):
    assert promise(method) is None


def test_refinement_and_attention_control_do_not_count():
    method = of("cyclediffusion_cac")
    assert method.refine_steps
    assert method.attention
    assert method.reconstructs is None
    assert promise(method) == "approximately"
    assert (neutral(method).refine_steps, neutral(method).attention) == (0, None)


def test_psnr_is_that_of_images_from_minus_one_to_one():
    x = torch.zeros(1, 3, 4, 4)
    assert psnr(x + 0.02, x) == pytest.approx(10 * math.log10(2**2 / 0.02**2), abs=1e-4)
    assert psnr(x, x) == HIGHEST


@pytest.mark.parametrize(("value", "low"), [(59.9, True), (60.0, False), (float("nan"), True)])
def test_verdicts(value, low):
    found = RoundTrip(value, 60.0, None, "cat0")
    assert found.is_low == low
    assert found.verdict == ("lower than it should be" if low else "as it should")


def test_bounds_of_types():
    image = torch.zeros(1, 3, 4, 4)
    method = of("transfer_grid")
    assert round_trip.compare(method, "a", image + 0.01, image, image, True).is_low  # 46 dB
    assert not round_trip.compare(method, "a", image + 0.01, image, image, False).is_low
    codec = round_trip.compare(method, "a", image, image, image.clone() + 0.2, True)
    assert codec.codec_psnr == pytest.approx(20)
    assert codec.record() == {"psnr": HIGHEST, "bound": 60.0, "image": "a", "codec_psnr": 20.0}


def never():
    round_trip.FEWEST = 10**9


def doubtful():
    round_trip.BOUNDS.update(exact=149.0, approximately=149.0)
    round_trip.FEWEST = 2


@pytest.mark.parametrize(
    "arguments",
    [
        [
            "experiment=pets_cat2dog",
            "method=cyclediffusion",
            "method.T=20",
            "method.T_es=3",
            "method.refine_steps=1",
            "task.reference_count=8",
        ],
        ["experiment=pets_edit", "method=cyclediffusion", "method.T=8", "method.T_es=8", "selection.grid.skip=[4]"],
    ],
    ids=["translate", "edit"],
)
def test_a_run_notes_it_and_makes_the_same_images(arguments, tmp_path):
    made = []
    for place, fault in (("with", doubtful), ("without", never)):
        outputs, log = tmp_path / place, tmp_path / f"{place}.txt"
        code, shown = finish([*arguments, "data.limit=2", f"paths.outputs={outputs}"], log, fault)
        assert code == 0, shown
        (record,) = outputs.glob("*/*/run.json")
        made.append((json.loads(record.read_bytes()), " ".join(shown.split()), record.parent))
    (noted, shown, folder), (plain, silent, other) = made
    assert noted["round_trip"].keys() >= {"psnr", "bound", "image"}
    assert 15 < noted["round_trip"]["psnr"] < 149
    (warned,) = re.findall(r"([\d.]+) dB where source and target are the same, and 149 dB are expected", shown)
    assert float(warned) == pytest.approx(noted["round_trip"]["psnr"], abs=0.1)  # rounded once and twice
    assert "round_trip" not in plain
    assert "are expected" not in silent
    pictures = sorted(path.name for path in folder.glob("images/*.png"))
    assert len(pictures) == 2
    for name in pictures:
        assert (folder / "images" / name).read_bytes() == (other / "images" / name).read_bytes()
    forwards = [record["costs"]["forwards_per_image"] for record in (noted, plain)]
    assert forwards[0] == forwards[1]  # the round trip is no cost of an image


def test_few_images_pay_for_none(tmp_path):
    arguments = ["method=cyclediffusion", "method.T=20", "method.T_es=3", "method.refine_steps=0", "data.limit=15"]
    code, shown = finish([*arguments, f"paths.outputs={tmp_path / 'out'}"], tmp_path / "log")
    assert code == 0, shown
    (record,) = tmp_path.glob("out/*/*/run.json")
    assert "round_trip" not in json.loads(record.read_bytes())


def test_check_prints_a_line_for_each_method(tmp_path, capsys, monkeypatch):
    settings = ["experiment=pets_cat2dog", "method=cyclediffusion,sdedit", "method.T=20", f"paths.outputs={tmp_path}"]
    settings = [*settings, "+task.settings.sdedit.t0=4", "+task.settings.cyclediffusion.T_es=4"]
    monkeypatch.setattr(check, "round_trips", lambda *_: iter([
        ("cyclediffusion", "exact", RoundTrip(143.9, 60.0, 29.5, "a")), ("sdedit", "no", None),
    ]))  # fmt: skip
    check.main(CONFIG, settings)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    wanted = "cyclediffusion exact 143.9 60 as it should (the autoencoder itself: 29.5 dB)"
    assert wanted.split() in lines
    assert ["sdedit", "no", "–", "–", "nothing", "to", "check"] in lines


def test_check_of_real_networks(tmp_path):
    settings = ["experiment=pets_cat2dog", "method=ddib,sdedit", "task.settings.ddib.timesteps='20'"]
    (ddib, promised, found), (sdedit, nothing, none) = check.round_trips(
        CONFIG, [*settings, f"paths.outputs={tmp_path}"]
    )
    assert (ddib, promised, sdedit, nothing, none) == ("ddib", "approximately", "sdedit", "no", None)
    assert found is not None
    assert 25 < found.psnr < 60


def test_check_fails_where_less_comes_back(tmp_path):
    arguments = ["check", "experiment=pets_cat2dog", "method=ddib", "task.settings.ddib.timesteps='20'"]
    code, shown = finish([*arguments, f"paths.outputs={tmp_path}"], tmp_path / "log", doubtful)
    assert code == 1
    assert "lower than it should be" in shown
    assert "error: ddib: less comes back than should; check weights, steps and dtype" in shown


def test_check_refuses_other_studies():
    with pytest.raises(UserError, match="check works on study=translate and study=edit; got study=train"):
        list(check.round_trips(CONFIG, ["experiment=pets_train_cut"]))
