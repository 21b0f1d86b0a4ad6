"""Every method that follows texts, on every kind of text-to-image network: it runs, or refuses in one sentence."""

import re
import warnings
from dataclasses import replace

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from cyclediff.diffusion.noise import Noise
from cyclediff.diffusion.paired import plan_control
from cyclediff.models.load_text import load_text_to_image
from cyclediff.studies.candidates import Edits, edit
from scripts import backbones_table as tables

from .tiny_backbones import MAKERS
from .tiny_sd import stable_diffusion

SOURCE, TARGET = "a small ginger cat on a teal background", "a small blue dog on a teal background"
IMAGE = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
KINDS = {
    "sd": "SD 1, 2, LDM", "sdxl": "SDXL", "sd3": "SD 3, 3.5", "sd35": "SD 3, 3.5", "flux_dev": "FLUX.1",
    "flux_schnell": "FLUX.1",
}  # fmt: skip
PUBLISHED = {"SD 1.4": 0.86, "SDXL": 2.57, "SD 3.5 large": 8.1, "FLUX.1 dev": 12, "FLUX.1 schnell": 12}  # billions


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    makers = {"sd": stable_diffusion, **MAKERS}
    return {name: load_text_to_image(str(makers[name](tmp_path_factory.mktemp(name)))).for_size(32) for name in KINDS}


@pytest.mark.parametrize("method", tables.text_methods())
@pytest.mark.parametrize("name", KINDS)
def test_it_runs_or_refuses(models, name, method):
    """What it does on the real network is what the table says of an empty one, row for row."""
    some, kind = tables.text_methods()[method], tables.KINDS[KINDS[name]]
    rows, spacing, refusal = tables.cell(some, kind)
    some = some if spacing is None else replace(some, spacing=spacing)
    model, seen = models[name], []
    assert model.abilities == kind.abilities
    assert type(model.schedule) is type(kind.schedule)

    def counting(xt, t, context, edit=None):
        seen.append(len(xt))
        return model.network(xt, t, context, edit)

    grid = tables.UNGUIDED if method == "ledits_pp" else tables.GUIDED
    watched, noise = replace(model, network=counting), Noise(1, ["a"])
    edits = Edits(["a"], [(SOURCE, TARGET)], model.encode(IMAGE, noise), 1)
    with warnings.catch_warnings(action="ignore"):  # of schnell, which knows no guidance
        if refusal is not None:
            with pytest.raises(ValueError, match=r"; choose|; method") as caught:
                edit(some, watched, edits, grid, [(0, grid.candidates()[0])], False)
            assert str(caught.value) == refusal
            assert "\n" not in refusal
            return
        out = edit(some, watched, edits, grid, [(0, grid.candidates()[0])], False)
    assert out.isfinite().all()
    assert (out - edits.x0).abs().max() > 1e-3
    assert sum(seen) == rows * some.num_steps


def test_the_documented_names_compose():
    """Each command of the first table works on PIE-Bench, at the size that it gives."""
    named = re.findall(r"`(model@task\.model=(\w+)(?: task\.size=(\d+))?)`", tables.PAGE.read_text())
    assert {"sdxl", "sd3_medium", "sd35_large", "flux_dev", "flux_schnell"} <= {name for _, name, _ in named}
    with initialize_config_dir(str(tables.ROOT / "conf"), version_base=None):
        for words, name, size in named:
            cfg = compose("config", ["experiment=pie_bench_sd14", *words.split()])
            wanted = OmegaConf.load(tables.ROOT / "conf" / "model" / f"{name}.yaml").path
            assert cfg.task.model.path == wanted
            assert cfg.task.size == cfg.protocol.size == int(size or 512)


def test_the_documentation_has_the_tables():
    """`python scripts/backbones_table.py` writes them."""
    page = tables.PAGE.read_text()
    assert tables.with_tables(page) == page


def test_sizes_are_the_published_ones():
    """Parameters of the networks, as their authors round them."""
    for name, billions in PUBLISHED.items():
        assert tables.sizes()[name][0] / 1e9 == pytest.approx(billions, rel=0.02), name


def test_methods_without_attention_control_run_on_sd3(models):
    """The sentence says method.attention=null, and that works."""
    for method in ("direct_inversion", "cyclediffusion_cac", "edit_friendly_pie", "sdedit_cac"):
        some = replace(tables.text_methods()[method], attention=None)
        rows, _, refusal = tables.cell(some, tables.KINDS["SD 3, 3.5"])
        assert refusal is None
        assert rows
    denoiser = models["sd3"].condition([SOURCE])
    assert plan_control(None, denoiser, denoiser, 2) is None
