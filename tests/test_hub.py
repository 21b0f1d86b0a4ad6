"""Downloads from a hub of this machine: only what is read, found again by a run, and one sentence for each failure."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from cyclediff.data import hub
from cyclediff.data.assets import catalogue
from cyclediff.errors import UserError

from .hub_server import COMMIT, hub_server
from .tiny_sd import latent_diffusion, stable_diffusion

ROOT = Path(__file__).parents[1]
ASSETS = catalogue(ROOT / "conf")
SD14, LDM = "CompVis/stable-diffusion-v1-4", "CompVis/ldm-text2im-large-256"


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Repositories with the names of the real ones: tiny networks, and files that this project does not read."""
    root = tmp_path_factory.mktemp("hub")
    stable_diffusion(root / SD14)
    (root / SD14 / "safety_checker").mkdir()
    for unread in ("safety_checker/model.safetensors", "unet/diffusion_pytorch_model.bin", "README.md", "sd-v1-4.ckpt"):
        (root / SD14 / unread).write_bytes(b"not read by this project")
    latent_diffusion(root / LDM)
    for weights in [*(root / LDM).rglob("*.safetensors")]:
        weights.rename(weights.with_suffix(".bin"))
    return root


@pytest.fixture
def online(published, tmp_path, monkeypatch):
    """The client asks the server of this test and keeps what it gets in a folder of this test."""
    from huggingface_hub import constants, file_download

    with hub_server(published) as (address, sent):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", address)
        template = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(file_download, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)  # before 1.0
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield sent


def test_only_what_is_read_is_downloaded_and_a_run_finds_it_offline(online, published, tmp_path):
    files = ASSETS[SD14].files
    assert hub.cached_folder(SD14, files) is None
    folder = hub.fetch_repository(SD14, files)
    assert (
        folder
        == hub.cached_folder(SD14, files)
        == tmp_path / f"cache/models--CompVis--stable-diffusion-v1-4/snapshots/{COMMIT}"
    )
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == {
        path.relative_to(published / SD14).as_posix()
        for path in (published / SD14).rglob("*")
        if path.is_file() and path.suffix in (".json", ".txt", ".safetensors") and path.parent.name != "safety_checker"
    }
    code = (
        "from cyclediff.data.hub import commit_of; from cyclediff.models.load_text import load_text_to_image; "
        f"load_text_to_image('{SD14}', revision=commit_of('{SD14}')); print(commit_of('{SD14}'))"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "cache")}
    run = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.stdout.strip() == COMMIT, run.stderr


def test_what_has_arrived_is_not_sent_again(online, tmp_path):
    files = ASSETS[SD14].files
    folder = hub.fetch_repository(SD14, files)
    lost = folder / "vae" / "diffusion_pytorch_model.safetensors"
    lost.resolve().unlink()
    lost.unlink()
    assert hub.cached_folder(SD14, files) is None
    online.clear()
    hub.fetch_repository(SD14, files)
    assert online == [(f"{SD14}/vae/diffusion_pytorch_model.safetensors", 0)]


def test_pickles_are_refused_before_anything_is_downloaded(online):
    with pytest.raises(UserError) as refusal:
        hub.fetch_repository(LDM, ASSETS[LDM].files)
    sentence = str(refusal.value)
    assert sentence.startswith(f"{LDM} has pickles, which can run code, and no safetensors, which are read here")
    assert f"P.from_pretrained('{LDM}').save_pretrained('checkpoints/ldm-text2im-large-256')" in sentence
    assert sentence.endswith("run with task.model.path=checkpoints/ldm-text2im-large-256")
    assert not online


def test_the_advice_for_pickles_gives_files_that_are_read(tmp_path):
    """The command of the sentence, on a folder with the pickles of a tiny network."""
    import torch
    from safetensors.torch import load_file

    from cyclediff.models.load_text import load_text_to_image

    folder = latent_diffusion(tmp_path / "pickled")
    for weights in [*folder.rglob("*.safetensors")]:
        name = "pytorch_model.bin" if weights.parent.name == "bert" else "diffusion_pytorch_model.bin"
        torch.save(load_file(weights), weights.with_name(name))
        weights.unlink()
    program, option, code = shlex.split(hub.TO_SAFETENSORS.format(folder, tmp_path / "converted"))
    assert (program, option) == ("python", "-c")
    exec(code)
    assert load_text_to_image(str(tmp_path / "converted")).length == 77


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("someone/gated", "someone/gated is open only to people who have accepted its terms; accept them at "
         "https://huggingface.co/someone/gated, then run `hf auth login`"),
        ("someone/nothing", "the Hugging Face hub has no someone/nothing, or it is private; check the name, or run `hf "
         "auth login`"),
        ("someone/busy", "the Hugging Face hub answered 418 for someone/busy; try again later, the same command "
         "continues"),
    ],
)  # fmt: skip
def test_refusals(name, sentence, online):
    with pytest.raises(UserError) as refusal:
        hub.fetch_repository(name, ["model_index.json"])
    assert str(refusal.value) == sentence


def test_no_such_id(online):
    with pytest.raises(UserError, match=r"^no such:name is no id of the Hugging Face hub; write OWNER/NAME"):
        hub.fetch_repository("no such:name", ["model_index.json"])


def test_a_file_that_is_not_there(online):
    with pytest.raises(
        UserError, match=rf"^{SD14} on the Hugging Face hub lacks nowhere\.json; get another copy of it$"
    ):
        hub.fetch_repository(SD14, ["model_index.json", "nowhere.json", "never/*"])


def test_no_network(online, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(
        UserError, match=r"^the Hugging Face hub cannot be reached for a/b \(.*\); check the connection"
    ):
        hub.fetch_repository("a/b", ["model_index.json"])


def test_offline(online, monkeypatch):
    from huggingface_hub import constants
    from huggingface_hub.utils import _http

    getattr(_http, "reset_sessions", lambda: None)()  # before 1.0 a session keeps how it was made
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"^a/b was not downloaded, because HF_HUB_OFFLINE is set; unset it$"):
        hub.fetch_repository("a/b", ["model_index.json"])
