"""No setting can change images or numbers and leave the folder as it is."""

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from cyclediff.data import assets, hub
from cyclediff.data.folders import Folder
from cyclediff.errors import UserError
from cyclediff.runtime import identity
from cyclediff.runtime.record import hash_of
from cyclediff.studies import context, given, requirements, scoring
from cyclediff.studies.context import Context, get_class
from cyclediff.studies.sources import Sources

CONF = Path(__file__).parents[1] / "conf"
EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
NODES = ("protocol.clip", "protocol.lpips", "protocol.features")  # networks that a protocol can have
PICTURES = Folder(Path("somewhere"), ("a", "b"), "cats", "d1")


@cache
def settings_of(experiment: str, *overrides: str) -> DictConfig:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base=None):
        return compose("config", [f"experiment={experiment}", *overrides])


def methods_of(experiment: str) -> list[str]:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base=None):
        cfg = compose("config", [f"experiment={experiment}"], return_hydra_config=True)
    return str(cfg.hydra.sweeper.params.get("method", cfg.method.name)).split(",")


SOURCES = Sources(PICTURES, None, PICTURES, None)
CATALOGUE = cache(assets.catalogue)


def hashes(cfg: DictConfig, monkeypatch, sources=SOURCES) -> tuple[str, str]:
    """Of artifacts and of scores, with weights and images that are only names."""
    monkeypatch.setattr(context, "catalogue", CATALOGUE)  # read once
    monkeypatch.setattr(scoring, "_fingerprint", lambda path, context: "sha")
    monkeypatch.setattr(requirements, "fingerprint", lambda path, assets, cache: "sha")
    monkeypatch.setattr(given, "file_sha256", lambda path: "sha")
    monkeypatch.setattr(given, "prepare_pets", lambda *arguments: PICTURES)
    study = get_class(cfg.study._target_)(Context(cfg, (str(CONF),), str(CONF)))
    own = getattr(study, "translation", study)
    parts = ["model"] if "model" in cfg.task else list(cfg.method.needs)
    more = {"mask": {}, "faces": [], "trained_on": {}}  # contents; their names are settings
    vars(own).update(sources=sources, weights=dict.fromkeys(parts), fingerprints=dict.fromkeys(parts, "sha"), **more)
    return hash_of(study.identity()), hash_of(study.score_identity())


def changed(cfg: DictConfig, name: str, value: Any) -> DictConfig:
    """The same settings, but one, whose value is given."""
    other = {bool: lambda v: not v, int: lambda v: v + 1, float: lambda v: v + 0.5, str: lambda v: f"{v}x"}
    copy = cfg.copy()
    OmegaConf.set_struct(copy, False)
    if isinstance(value, list):
        new = [*value, "x" if isinstance((value or [1])[0], str) else 1]
    elif value is None or isinstance(value, dict):
        new = {"path": "x", "model": "y"} if name in NODES else "x"
    else:
        new = other[type(value)](value)
    OmegaConf.update(copy, name, new)
    return copy


def unused(cfg: DictConfig) -> list[str]:
    """Networks of a task that its method does not evaluate."""
    parts = {part: part for part in ("extractor", "vit", "classifier", "clip", "identity", "generator")}
    parts |= {"source": "source_model", "target": "target_model"}
    used = {parts[part] for part in cfg.method.needs}
    if cfg.study.name == "train":  # from what a training starts
        used = {"source_model", "clip"} if cfg.method.name == "diffusionclip" else set()
    return [f"task.{key}.*" for key in parts.values() if key in cfg.task and key not in used]


ALIKE = (  # the settings and methods of other experiments
    "wild2dog", "male2female", "pets_inversion", "pets_inversion_flow", "zero_shot_ldm400m", "diffuseit_ffhq",
)  # fmt: skip


@pytest.mark.parametrize(
    "experiment", [pytest.param(name, marks=pytest.mark.slow if name in ALIKE else ()) for name in EXPERIMENTS]
)
def test_every_setting_changes_a_folder_or_is_listed(experiment, monkeypatch):
    seen = 0
    for method in methods_of(experiment):
        content: Any = OmegaConf.to_container(settings_of(experiment, f"method={method}"), resolve=True)
        cfg: Any = OmegaConf.create(content)  # resolved: each setting counts for itself, not for those that copy it
        before = hashes(cfg, monkeypatch)
        listed = [*identity.CANNOT_CHANGE, *unused(cfg)]
        classes = {"study._target_"} | ({"method._target_"} if cfg.study.name == "train" else set())
        settings = identity.leaves(cfg)
        for name in settings.keys() - classes:  # the first is in the identity, see below; the other chooses
            if identity.matches(name, listed) or (cfg.study.name, name) == ("train", "method._target_"):
                continue  # study=train refuses a class that has no training
            after = hashes(changed(cfg, name, settings[name]), monkeypatch)
            if not identity.matches(name, identity.SCORING):
                assert after[0] != before[0], f"{name} leaves the run's folder as it is"
            elif cfg.study.name not in ("similarity", "guide", "train"):  # their numbers are made of artifacts alone
                assert after[0] == before[0], f"{name} makes images again"
                assert after[1] != before[1], f"{name} leaves the scores' folder as it is"
            seen += 1
    assert seen > 20


def test_the_list_of_settings_that_cannot_change_results_has_no_dead_line():
    names = {name for experiment in EXPERIMENTS for name in identity.leaves(settings_of(experiment))}
    names |= identity.leaves(settings_of("pets_inversion", "tier=published")).keys()
    for pattern, reason in identity.CANNOT_CHANGE.items():
        assert any(identity.matches(name, [pattern]) for name in names), pattern
        assert len(reason) > 5


REPORTED = [  # each of these once left the folder as it was
    ("cat2dog", "egsde", "task.target_model.ema=false", 0),
    ("cat2dog", "egsde", "task.target_model.attention_order=new", 0),
    ("cat2dog", "sdedit", "task.target_model.learn_sigma=false", 0),
    ("cat2dog", "egsde", "task.extractor.attention_order=new", 0),
    ("pets_cat2dog", "sdedit", "noise.device=cuda", 0),
    ("pets_cat2dog", "sdedit", "compile_mode=default", 0),
    ("pets_cat2dog", "sdedit", "dtype=bfloat16", 0),
    ("pets_cat2dog", "sdedit", "protocol.resize=bicubic", 1),
    ("pets_cat2dog", "sdedit", "protocol.infinity=true", 1),
    ("pets_cat2dog", "sdedit", "protocol.judge=other.safetensors", 1),
    ("zero_shot_sd14", "sdedit", "protocol.clip.model=ViT-L-14-quickgelu", 1),
    ("zero_shot_sd14", "sdedit", "task.ranking_clip.model=ViT-L-14-quickgelu", 0),
    ("pie_bench_sd14", "sdedit", "protocol.lpips=null", 1),
]


@pytest.mark.parametrize(("experiment", "method", "override", "which"), REPORTED, ids=lambda value: str(value))
def test_what_users_changed(experiment, method, override, which, monkeypatch):
    before = hashes(settings_of(experiment, f"method={method}"), monkeypatch)
    after = hashes(settings_of(experiment, f"method={method}", override), monkeypatch)
    assert after[which] != before[which]
    assert after[1 - which] == before[1 - which]


def test_images_and_weights_are_part_of_the_identity(monkeypatch):
    cfg = settings_of("pets_cat2dog", "method=sdedit")
    before = hashes(cfg, monkeypatch)
    other = Folder(Path("somewhere"), ("a", "b"), "cats", "d2")
    assert hashes(cfg, monkeypatch, Sources(other, None, PICTURES, None))[0] != before[0]
    artifacts, scores = hashes(cfg, monkeypatch, Sources(PICTURES, None, other, None))
    assert (artifacts, scores != before[1]) == (before[0], True)
    study = get_class(cfg.study._target_)(Context(cfg, (str(CONF),), str(CONF)))
    vars(study).update(sources=Sources(PICTURES, None, None, None), weights={"target": None})
    vars(study)["fingerprints"] = {"target": "another sha"}
    assert hash_of(study.identity()) != before[0]
    assert study.identity()["study"]["_target_"] == cfg.study._target_


def test_a_checksum_is_computed_once_and_again_when_the_file_changes(tmp_path, monkeypatch):
    file, reads = tmp_path / "w.pt", []
    plain = assets.file_sha256
    monkeypatch.setattr(assets, "file_sha256", lambda path: (reads.append(path), plain(path))[1])
    file.write_bytes(b"one")
    first = assets.fingerprint(file, {}, tmp_path / "cache")
    assert assets.fingerprint(file, {}, tmp_path / "cache") == first
    assert len(reads) == 1
    state = file.stat()
    file.write_bytes(b"two")  # as long as the first
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    assert assets.fingerprint(file, {}, tmp_path / "cache") != first
    (tmp_path / "cache" / "checksums.json").write_text("[damaged")
    assert assets.fingerprint(file, {}, tmp_path / "cache") == plain(file)


def test_a_folder_of_weights_is_its_files_and_their_places(tmp_path):
    def weights(name: str, **files: str) -> str:
        for file, content in files.items():
            (tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / file).write_text(content)
        return assets.fingerprint(tmp_path / name, {}, tmp_path / "cache")

    assert weights("a", unet="1", vae="2") == weights("b", vae="2", unet="1")
    assert weights("c", unet="2", vae="1") != weights("a")


def test_a_hub_id_is_its_commit(tmp_path, monkeypatch):
    from huggingface_hub import constants

    hub.commit_of.cache_clear()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="someone/model is no file or folder here"):
        hub.commit_of("someone/model")
    (tmp_path / "models--someone--model" / "refs").mkdir(parents=True)
    (tmp_path / "models--someone--model" / "refs" / "main").write_text("c0ffee\n")
    assert hub.commit_of("someone/model") == "c0ffee"
    with pytest.raises(UserError, match="no file or folder here"):
        hub.commit_of("no such:name")


def test_nested_is_the_opposite_of_flat():
    tree = {"a": {"b": 1, "c": {"d": [1, 2]}}, "e": None}
    assert identity.nested(identity.flat(tree)) == tree
    assert json.dumps(identity.flat(tree)) == '{"a.b": 1, "a.c.d": [1, 2], "e": null}'
