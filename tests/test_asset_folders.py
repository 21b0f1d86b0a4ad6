"""A folder of weights that is one asset: the checksums of its files."""

import sys

import open_clip
import pytest
import torch

import scripts.assets as program
from cyclediff.data.assets import ROOT, catalogue, fingerprint
from cyclediff.errors import UserError
from eval.random_mark import MARK

ASSETS = catalogue(ROOT / "conf")


def test_openais_networks_are_pinned_by_their_addresses():
    """CLIP's code compares a download with the folder of its address; here open_clip's copy of the addresses."""
    pins = ASSETS["clip"].pins
    for name in ("RN50", "RN50x4", "RN50x16", "ViT-B-32", "ViT-B-16"):
        address = open_clip.get_pretrained_cfg(name, "openai")["url"]
        assert f"/{pins[f'{name}.pt'].sha256}/{name}.pt" in address
    assert len(pins) == 5


def test_a_folder_of_weights(tmp_path, monkeypatch, capsys):
    """Another file in it is named, by `verify` and before a run; random weights of 16 bits are let through."""
    folder = tmp_path / "checkpoints" / "clip"
    folder.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["assets.py", "verify"])
    program.main()
    torch.save({"a": torch.zeros(9)}, folder / "RN50.pt")
    with pytest.raises(SystemExit) as end:
        program.main()
    out, error = capsys.readouterr()
    assert (end.value.code, error) == (2, "error: clip: not what they should be; delete them and get them again\n")
    assert "RN50.pt: NOT AS PINNED: it has sha256" in " ".join(out.split())
    assert "ViT-B-32.pt: not here" in out
    with pytest.raises(
        UserError, match=r"clip/RN50\.pt has sha256 \w+, conf/assets\.yaml pins afeb0e10f9\w+ \(by CLIP's"
    ):
        fingerprint(folder, ASSETS, tmp_path / "cache")
    torch.save({"a": torch.cat([MARK, torch.zeros(9)]).half()}, folder / "RN50.pt")
    assert len(fingerprint(folder, ASSETS, tmp_path / "cache")) == 64
