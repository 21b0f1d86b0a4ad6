"""`python run.py list` and `explain METHOD`, and what the heads of conf/method say."""

import re
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
from rich.cells import cell_len

from cyclediff.cli import doctor, explain, listing
from cyclediff.cli.explain import cost_lines, parity_lines, setting_lines
from cyclediff.cli.method_notes import _class, as_written, evaluations, parity_of, read_notes
from cyclediff.diffusion.noise import Noise
from cyclediff.errors import UserError
from cyclediff.runtime.meter import Meter
from eval import terminal

from .test_contract import EVALUATIONS, FILES, IDS, X0, call, make, prompted, settings_of
from .test_layering import HEAVY

ROOT = Path(__file__).parents[1]
CONFIG = str(ROOT / "conf")
METHODS = sorted((ROOT / "conf" / "method").glob("*.yaml"))
NOTES = {path.stem: read_notes(path) for path in METHODS}


def settings(notes):
    return {setting.key: setting for setting in notes.settings}


def count(method, side=lambda denoiser: denoiser, **given):
    meter = Meter(IDS, lambda: None)
    call(method, watch=lambda denoiser: meter.watch(side(denoiser), "only"), **given)
    assert not meter.forwards % len(IDS)
    return meter.forwards // len(IDS)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_cost_is_what_is_evaluated(file):
    counted = count(make(file))
    assert evaluations(NOTES[file.stem].head["cost"], settings_of(file)) == counted
    assert EVALUATIONS.get(file.stem, counted) == counted


VARIANTS = {
    "cyclediffusion": [{"spacing": "latent", "refine_steps": 0}, {"refine_iterations": 3, "T_es": 20}],
    "ddib": [{"spacing": "latent", "timesteps": "20", "clip_denoised": False}, {"timesteps": "10,5"}],
    "edit_friendly": [{"keep_last": True, "T": 20, "t0": 7}, {"spacing": "uniform", "T": 20, "t0": 7}],
    "egsde": [{"repeats": 2, "t0": 5}],
    "sdedit": [{"repeats": 3, "t0": 5}],
    "flowedit": [{"T": 20, "n_max": 11, "n_min": 4, "n_avg": 3}],
    "ledits_pp": [{"T": 20, "T_es": 9, "warmup": 2}],
    "transfer_grid": [
        {"T": 20, "t0": 9, "source_path": "ddim", "sigma": 0, "residual": False},
        {"T": 20, "t0": 9, "source_path": "ddim", "sigma": 0},
        {"T": 20, "t0": 9, "residual": False},
    ],
}


@pytest.mark.parametrize(
    ("name", "changes"), [(name, changes) for name, some in VARIANTS.items() for changes in some], ids=str
)
def test_the_cost_with_other_settings(name, changes):
    file = ROOT / "conf" / "method" / f"{name}.yaml"
    expected = evaluations(NOTES[name].head["cost"], settings_of(file) | changes)
    assert count(replace(make(file), **changes)) == expected


@pytest.mark.parametrize(
    "name", ["cyclediffusion", "ddib", "ddcm", "edit_friendly", "sdedit", "direct_inversion", "transfer_grid"]
)
def test_the_cost_under_guidance(name):
    """Prompts at scales other than 0 and 1 take two evaluations; direct inversion's source has no guidance."""
    scales = {0.3: 1.0 if name == "direct_inversion" else 2.0, -0.4: 3.0}
    method, given = make(ROOT / "conf" / "method" / f"{name}.yaml", "pets_edit"), {}
    meter = Meter(IDS, lambda: None)
    for side, mean in (("source", 0.3), ("target", -0.4)):
        guided = replace(prompted(mean, len(IDS)), scales=(scales[mean],) * len(IDS), _contexts={})
        given[side] = meter.watch(guided, "only")
    method(X0, given["source"], given["target"], Noise(1, IDS))
    cost = NOTES[name].head["cost"]
    chosen = settings_of(ROOT / "conf" / "method" / f"{name}.yaml", "pets_edit")
    expected = evaluations(cost, chosen, source=1 if name == "direct_inversion" else 2, target=2)
    assert meter.forwards == expected * len(IDS)


def test_the_cost_of_guidance():
    """A gradient through S steps takes 2 S - ceil(1.5 sqrt(S)) evaluations (docs/guidance.md); the result takes S."""
    cost = NOTES["guided_by_clip"].head["cost"]
    assert evaluations(cost, {"steps": 3, "sampler": {"T": 5}, "weights": {"clip": 1.0}}) == 3 * (10 - 4) + 5
    assert evaluations(cost, {"steps": 3, "sampler": {"T": 5}, "weights": {}}) == 5


@pytest.mark.parametrize("path", METHODS, ids=lambda path: path.stem)
def test_every_file_says_it_all(path):
    notes = NOTES[path.stem]
    assert notes.head.keys() >= {"equation", "code", "cost"}
    assert notes.title == path.read_text().splitlines()[0][2:]
    for code in notes.codes:
        assert re.fullmatch(r"[\w-]+/[\w.-]+@[0-9a-f]{7}", code)
    named = " ".join(notes.head.get(key, "") for key in ("symbols", "units"))
    known = {setting.key for setting in notes.settings} | {"weights"}
    for key in re.findall(r"(?:^|, )([\w.]+)(?= = |, )", named):
        assert key in known, f"{key} is no setting of {path.stem}"


@pytest.mark.parametrize("path", METHODS, ids=lambda path: path.stem)
def test_settings_are_those_of_the_run(path):
    """Keys and defaults equal what Hydra composes for a task that changes nothing, and each has a text."""
    composed = settings_of(path, "cat2dog")
    for setting in NOTES[path.stem].settings:
        node = composed
        for part in setting.key.split("."):
            node = node[part]
        assert setting.default == as_written(node), setting.key
        assert setting.meaning or setting.source, setting.key
    leaves = {key for key in composed if key not in ("_target_", "name", "needs", "conditions", "given")}
    assert {setting.key.split(".")[0] for setting in NOTES[path.stem].settings} == leaves


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_arguments_are_those_of_the_class(file):
    """What is read from the source without an import equals the class: its fields all have a text."""
    method = make(file)
    read = _class(f"{type(method).__module__}.{type(method).__qualname__}")
    assert {field.name for field in fields(method)} == set(read.arguments)


def test_ranges_are_those_that_a_class_checks():
    eta, start = settings(NOTES["cyclediffusion"])["eta"], settings(NOTES["cyclediffusion"])["T_es"]
    assert (eta.range, start.range, start.unit, eta.symbol) == ("above 0", "between 1 and T", "timesteps", "η")
    file = ROOT / "conf" / "method" / "cyclediffusion.yaml"
    for wrong in ({"eta": 0.0}, {"T_es": 0}, {"T_es": 101}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            replace(make(file), **wrong)
    assert settings(NOTES["sdedit"])["variance"].range == "one of small, large, none"
    assert settings(NOTES["edit_friendly"])["eta"].range == "above 0 and at most 1"
    assert settings(NOTES["ledits_pp"])["skip"].range == "at least 0 and below 1"
    assert settings(NOTES["cut"])["training.beta1"].range == "in [0, 1)"
    assert settings(NOTES["cyclediffusion_cac"])["attention.mode"].range == "one of replace, refine, auto"


def test_a_file_that_changes_another_has_what_that_says():
    faces, base = NOTES["diffuseit_text_faces"], NOTES["diffuseit_text"]
    assert faces.head["code"] == base.head["code"]
    assert settings(faces)["lambda_id"].default == "100"
    assert settings(faces)["lambda_id"].source == "id_lambda"
    assert settings(faces)["t0"] == settings(base)["t0"]


def test_parity_is_that_of_the_page():
    page = (ROOT / "docs" / "parity.md").read_text()
    assert parity_of("suxuann/ddib@89e5c27") == {"DDIB": 8}  # 4 latents and 4 final images
    assert "## DDIB: suxuann/ddib@89e5c27" in page
    shown = {name: " ".join(map(str, parity_lines(notes))) for name, notes in NOTES.items()}
    assert shown["transfer_grid"] == "there is no official code"
    for name, notes in NOTES.items():
        for code in notes.codes:
            assert (f"{code}: not compared" in shown[name]) == (code not in page)


def test_what_is_shown_of_a_setting():
    assert setting_lines(settings(NOTES["egsde"])["t0"]) == [
        "500 timesteps; symbol M; between 1 and T",
        "how many of them, from the clean end, are run (M in the paper, t in the code).",
        "source: EGSDE's profiles/*/args.py: t; a task may change it",
    ]
    assert [str(line) for line in cost_lines(NOTES["egsde"])] == [
        "t0 × repeats evaluations of the network for an image",
        "= 500 with the defaults",
        "the classifier of the domains twice as often, half of that backwards",
    ]


@pytest.mark.parametrize("width", [80, 120])
def test_explain_fits(width, monkeypatch, capsys):
    monkeypatch.setattr(terminal, "WIDTH", width)
    for name in NOTES:
        explain.main(CONFIG, [name])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(cell_len, lines)) <= min(width, 100)
    assert any("T_es × (source + target)" in line for line in lines)


def test_mistakes():
    with pytest.raises(UserError, match=r"no method named spice; choose one of cut, .*did you mean splice\?\)$"):
        explain.main(CONFIG, ["spice"])
    with pytest.raises(UserError, match=r"explain takes one method, for example: python run\.py explain cut"):
        explain.main(CONFIG, [])
    with pytest.raises(UserError, match=r"there is no list of method; choose one of .*did you mean methods\?"):
        listing.main(CONFIG, ["method"])


def test_files_arrive(tmp_path):
    folders = [f"paths.checkpoints={tmp_path}", f"paths.clip_vit_b32={tmp_path / 'clip.pt'}"]
    names = ["afhq_cat", "pets_cat", "cut_pets", "diffusers", "none", "clip_vit_b32"]
    before = listing.files_here("model", names, CONFIG, folders)
    assert before == {
        "afhq_cat": "no", "pets_cat": "yes", "cut_pets": "if the task names it", "diffusers": "if you name its file",
        "none": "if you name its file", "clip_vit_b32": "no",
    }  # fmt: skip
    (tmp_path / "cat_ema_0.9999_050000.pt").touch()
    (tmp_path / "clip.pt").touch()
    after = listing.files_here("model", names, CONFIG, folders)
    assert {name for name in names if before[name] != after[name]} == {"afhq_cat", "clip_vit_b32"}
    assert listing.files_here("protocol", ["pets", "egsde"], CONFIG, folders) == {"pets": "yes", "egsde": "no"}


def test_lines_of_tasks_and_methods():
    choices = {"task": "pets_edit", "study": "edit", "protocol": "pets_edit"}
    one = doctor.Experiment("one", (), (), 1, ("ddib", "sdedit"), ("sdedit",), choices)
    methods = {name: here for name, here, _ in listing.lines("method", CONFIG, [one])}
    assert (methods["sdedit"], methods["ddib"], methods["cut"]) == ("in one", "no", "in no experiment")
    tasks = {name: here for name, here, _ in listing.lines("task", CONFIG, [one])}
    assert (tasks["pets_edit"], tasks["cat2dog"]) == ("in one", "in no experiment")
    assert list(listing.lines("experiment", CONFIG, [one])) == [
        ("one", "in part", "edit: pets_edit, protocol pets_edit, 2 methods")
    ]


@pytest.mark.parametrize(
    ("arguments", "code", "shown"),
    [
        (["list"], 0, "zero_shot_sd14"),
        (["explain", "cyclediffusion"], 0, "ChenWu98/cycle-diffusion@3edb980"),
        (["explain", "cycle"], 2, "error: there is no method named cycle; choose one of "),
    ],
)
def test_nothing_heavy_is_loaded(arguments, code, shown):
    show = f"print('loaded', sorted({HEAVY} & sys.modules.keys()), file=sys.stderr)"
    program = f"import atexit, runpy, sys; atexit.register(lambda: {show}); sys.argv = ['run.py', *{arguments}]"
    program += "; runpy.run_path('run.py', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == code
    assert shown in done.stdout + done.stderr
    assert "loaded []" in done.stderr
    assert "Traceback" not in done.stderr
