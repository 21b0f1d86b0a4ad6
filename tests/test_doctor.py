"""`python run.py doctor`, and the constraints file of a reproducible install."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from functools import cache
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from cyclediff.cli import doctor
from cyclediff.cli.doctor import Experiment, cells, folder_size, inspect
from cyclediff.studies.requirements import repository_of

ROOT = Path(__file__).parents[1]
CONFIG = str(ROOT / "conf")
compose = doctor.compose_config


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Checkpoints and data of a test, as settings; no hub and no login of the person who runs it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(doctor, "hub_cache", lambda: tmp_path / "hub")
    monkeypatch.setattr(doctor, "_logged_in", lambda: False)
    composed = cache(lambda *overrides: compose(CONFIG, list(overrides)))  # it does not depend on the files
    monkeypatch.setattr(doctor, "compose_config", lambda _, overrides: composed(*overrides))
    return [f"paths.{key}={tmp_path / key}" for key in ("outputs", "checkpoints", "data", "cache")]


def put(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_pets_run_without_anything(folders):
    found = inspect("pets_cat2dog", CONFIG, folders)
    assert (found.missing, found.hub) == ((), ())
    assert found.ready == found.methods
    assert {"cyclediffusion", "egsde"} <= set(found.methods)
    assert cells(found) == ("yes", "all", "–")


def test_files_arrive_one_by_one(folders, tmp_path):
    checkpoints, afhq = tmp_path / "checkpoints", tmp_path / "data" / "afhq_v2" / "test"
    nothing = inspect("cat2dog", CONFIG, folders)
    weights = ["cat2dog_dse.pt", "cut_cat2dog.pth"]
    weights += ["inception-2015-12-05.pt", "cat_ema_0.9999_050000.pt", "afhq_dog_4m.pt"]
    assert set(nothing.missing) == {*(checkpoints / name for name in weights), afhq / "cat", afhq / "dog"}
    assert nothing.needed == 7
    assert nothing.ready == ()
    assert cells(nothing)[:2] == ("no", "none")
    put(*(checkpoints / name for name in weights[2:]))
    assert inspect("cat2dog", CONFIG, folders).ready == ()
    put(afhq / "cat" / "1.png", afhq / "dog" / "1.png")
    partly = inspect("cat2dog", CONFIG, folders)
    assert set(partly.missing) == {checkpoints / "cat2dog_dse.pt", checkpoints / "cut_cat2dog.pth"}
    assert set(partly.methods) - set(partly.ready) == {"egsde", "egsde_dagger", "cut"}
    assert cells(partly)[0] == "in part"
    (checkpoints / "cat_ema_0.9999_050000.pt").unlink()
    assert "cyclediffusion" not in inspect("cat2dog", CONFIG, folders).ready
    assert "sdedit" in inspect("cat2dog", CONFIG, folders).ready
    put(*(checkpoints / name for name in weights))
    whole = inspect("cat2dog", CONFIG, folders)
    assert (whole.missing, whole.ready) == ((), whole.methods)


def test_what_doctor_lists_is_what_a_run_asks_for(folders):
    """A run is refused with a screen that names the same files."""
    from cyclediff.errors import UserError
    from cyclediff.studies.context import Context
    from cyclediff.studies.translate import Translate

    cfg = doctor.compose_config(CONFIG, ["experiment=wild2dog", *folders])
    with pytest.raises(UserError) as screen:
        Translate(Context(cfg, (CONFIG,), CONFIG)).needs()
    listed = inspect("wild2dog", CONFIG, folders).missing
    assert f"missing for wild2dog: {len(listed)} of" in str(screen.value)
    assert set(re.findall(r"(?m)^  (/\S+)$", str(screen.value))) == {str(path) for path in listed}


def test_the_hub(folders, tmp_path):
    put(tmp_path / "data" / "translate_text" / "data" / "translate-text.json")
    found = inspect("zero_shot_sd14", CONFIG, folders)
    repositories = {"CompVis/stable-diffusion-v1-4", "timm/vit_base_patch32_clip_224.openai"}
    assert sorted(found.hub) == sorted(repositories)  # one CLIP ranks and scores, and is listed once
    assert found.needed == 3
    assert (found.missing, found.ready) == ((), found.methods)
    assert cells(found)[0] == "yes, with a download"
    for repository in repositories:
        put(tmp_path / "hub" / f"models--{repository.replace('/', '--')}" / "snapshots" / "1a2b" / "model_index.json")
    assert inspect("zero_shot_sd14", CONFIG, folders).hub == ()
    own = tmp_path / "own"
    own.mkdir()
    assert inspect("zero_shot_sd14", CONFIG, [*folders, f"task.model.path={own}"]).hub == ()


def test_two_clips(folders):
    found = inspect("zero_shot_sd14", CONFIG, [*folders, "model@task.ranking_clip=clip_vit_l14"])
    assert {"timm/vit_base_patch32_clip_224.openai", "timm/vit_large_patch14_clip_224.openai"} <= set(found.hub)


def test_experiments_of_one_method(folders):
    """Their sweep is over another setting."""
    found = inspect("pets_similarity", CONFIG, folders)
    assert found.methods == found.ready == ("cyclediffusion",)


def test_torch_is_imported_only_to_list_devices():
    code = "import sys, cyclediff.cli.doctor; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", ["ViT-B-32-quickgelu", "ViT-L-14-quickgelu"])
def test_names_of_openais_repositories(name):
    open_clip = pytest.importorskip("open_clip")
    node = OmegaConf.create({"_target_": "eval.metrics.clip.open_clip_scorer", "path": "openai", "model": name})
    repository = repository_of(node)
    assert repository == open_clip.get_pretrained_cfg(name, "openai")["hf_hub"].rstrip("/")


def test_cells():
    partly = Experiment("x", (Path("/a[b]/c"),), ("o/r",), 3, ("m", "n"), ("n",))
    assert cells(partly) == ("in part, with a download", "n", "1 of 3:\n/a[b]/c\no/r (Hugging Face hub)")


def test_the_screen(folders, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: "/opt/slurm/bin/sinfo" if name == "sinfo" else None)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "features").write_bytes(bytes(3 * 10**8))
    doctor.main(CONFIG, folders)
    screen = capsys.readouterr().out
    facts = dict(re.findall(r"(?m)^  (\S.*?)  +(\S.*?) *$", screen))
    assert facts["torch"] == version("torch")
    assert facts["Python"].startswith(f"{os.sys.version_info.major}.{os.sys.version_info.minor}")
    assert facts["CPU"].split()[2] == str(os.cpu_count())
    assert facts["SLURM"] == "/opt/slurm/bin/sinfo"
    assert facts["W&B"].startswith("not logged in")
    assert f"{tmp_path}/cache" in screen
    assert "0.3 GB used" in screen
    assert "not there yet" in facts["paths.outputs"] or "not there yet" in screen
    for path in (ROOT / "conf" / "experiment").glob("*.yaml"):
        assert re.search(rf"(?m)^  {path.stem} +(yes|no|in part)", screen)
    assert "scripts/assets.py fetch EXPERIMENT" in screen
    assert not (tmp_path / "outputs").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"cache"}


def test_cuda_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: ((index + 1) * 10**10, 8 * 10**10))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "H100")
    found = doctor.devices()
    assert (found["cuda:0"], found["cuda:1"]) == ("H100, 10.0 GB of 80.0 GB free", "H100, 20.0 GB of 80.0 GB free")
    assert "CUDA" not in found


def test_a_package_that_is_not_there(monkeypatch):
    monkeypatch.setattr(doctor, "MORE_PACKAGES", ("no-such-package",))
    assert doctor.versions()["no-such-package"] == "not installed"


def test_sizes_do_not_follow_links(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_bytes(bytes(1000))
    (tmp_path / "a" / "y").symlink_to("x")
    (tmp_path / "a" / "z").symlink_to(tmp_path)
    assert 1000 <= folder_size(tmp_path) < 1100 + 4 * len(str(tmp_path))
    assert folder_size(tmp_path / "nowhere") == 0


def test_logged_in(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert not doctor._logged_in()
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert doctor._logged_in()
    monkeypatch.delenv("WANDB_API_KEY")
    (tmp_path / ".netrc").write_text("machine api.wandb.ai\n  login user\n  password 0\n")
    (tmp_path / ".netrc").chmod(0o600)
    assert doctor._logged_in()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert not doctor._logged_in()
    monkeypatch.delenv("WANDB_BASE_URL")
    (tmp_path / "broken").write_text("machine")
    monkeypatch.setenv("NETRC", str(tmp_path / "broken"))
    assert not doctor._logged_in()


# constraints.txt


def constraints():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    return {canonicalize_name(Requirement(line).name): Requirement(line) for line in lines}


def test_constraints_are_versions_only():
    for requirement in constraints().values():
        (pin,) = requirement.specifier
        assert pin.operator == "=="
        assert not requirement.url
        assert not requirement.extras
        assert not requirement.marker


def direct():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    found = [Requirement(text) for entries in lists for text in entries]
    return [requirement for requirement in found if requirement.name != "cyclediff"]


@pytest.mark.parametrize("requirement", direct(), ids=lambda requirement: requirement.name)
def test_every_direct_dependency_is_pinned_within_its_bound(requirement):
    (pin,) = constraints()[canonicalize_name(requirement.name)].specifier
    assert requirement.specifier.contains(pin.version)


def test_what_they_need_is_pinned_too():
    """The closure of the installed packages, as their own metadata say for this system."""
    from importlib.metadata import PackageNotFoundError, requires

    (torch_pin,) = constraints()["torch"].specifier
    if Version(version("torch")) < Version(torch_pin.version):
        pytest.skip("installed are older versions than the pinned ones, which may need other packages")
    pinned, seen, queue = constraints(), set(), [canonicalize_name(requirement.name) for requirement in direct()]
    while queue:
        name = queue.pop()
        if name in seen:
            continue
        seen.add(name)
        try:
            needs = [Requirement(text) for text in requires(name) or []]
        except PackageNotFoundError:
            continue
        queue += [canonicalize_name(n.name) for n in needs if n.marker is None or n.marker.evaluate({"extra": ""})]
    assert len(seen) > 60
    assert not seen - pinned.keys()
