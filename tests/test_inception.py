"""Inception features from files of the published formats, against clean-fid and pytorch-fid themselves."""

import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image

from eval.evaluate import evaluate as score
from eval.files import read_picture
from eval.metrics.frechet import frechet_distance
from eval.metrics.inception import CLEAN_FID, PYTORCH_FID, clean_fid, pytorch_fid
from eval.protocols import Protocol

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    tool = str(ROOT / "scripts" / "make_random_checkpoints.py")
    command = [sys.executable, tool, CLEAN_FID, PYTORCH_FID, "--checkpoints", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.count("RANDOM WEIGHTS") == 2
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Crops of real photos, 4 to a folder, of 256 and of 512 pixels."""
    from skimage import data

    folders = {}
    for size, step in ((256, 20), (512, 0)):
        folder = tmp_path_factory.mktemp(f"photos{size}")
        for i in range(4):
            image = np.roll(data.astronaut(), 40 * i, axis=1)[step * (i % 3) :][:size, :size]
            Image.fromarray(image).save(folder / f"{i}.png")
        folders[size] = folder
    return folders


@pytest.fixture(scope="module")
def small(photos, tmp_path_factory):
    """Three small photos: SSIM takes its time at 256×256."""
    folder = tmp_path_factory.mktemp("small")
    for path in paths(photos[256])[:3]:
        with Image.open(path) as image:
            image.resize((48, 48)).save(folder / path.name)
    return folder


def evaluate(*arguments):
    scores = score(*arguments)
    return scores.metrics, scores.rows


def paths(folder):
    return sorted(folder.glob("*.png"))


def test_clean_fid_features_and_distance_are_clean_fids_own(weights, photos):
    from cleanfid.fid import fid_from_feats, get_folder_features

    network = clean_fid(str(weights / CLEAN_FID))
    theirs = [
        get_folder_features(str(photos[size]), network.network, num_workers=0, mode="clean", verbose=False,
                            device=torch.device("cpu"))
        for size in (256, 512)
    ]  # fmt: skip
    mine = [network(map(read_picture, paths(photos[size]))) for size in (256, 512)]
    for a, b in zip(mine, theirs, strict=True):
        assert a.shape == (4, 2048)
        assert np.abs(a.numpy() - b).max() < 1e-4 * np.abs(b).max()
    few = slice(None), slice(512)  # clean-fid's square root of a matrix takes half a minute for all 2048
    ours = frechet_distance(*(features[few] for features in mine))
    assert ours == pytest.approx(fid_from_feats(*(features[few] for features in theirs)), rel=1e-3)


def test_pytorch_fid_features_are_pytorch_fids_own(weights, photos):
    """Equal to the pytorch-fid package, also for images that the network resizes."""
    import pytorch_fid.inception as library
    from pytorch_fid.fid_score import get_activations

    state = torch.load(weights / PYTORCH_FID, weights_only=True)
    with patch.object(library, "load_state_dict_from_url", lambda *_, **__: state):
        network = library.InceptionV3([3])
    mine = pytorch_fid(str(weights / PYTORCH_FID))
    for size in (256, 512):
        theirs = get_activations(paths(photos[size]), network, batch_size=8, device="cpu", num_workers=0)
        features = mine(map(read_picture, paths(photos[size]))).numpy()
        assert np.abs(features - theirs).max() < 1e-4 * np.abs(theirs).max()


def test_faces_are_prepared_as_egsde_does(weights, photos):
    """EGSDE's transforms for male → female, in torchvision."""
    from torchvision.transforms import Compose, Normalize, Resize, ToTensor

    steps = [Resize([256, 256]), Resize([299, 299]), ToTensor()]
    prepare = Compose([*steps, Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])])
    extractor = pytorch_fid(str(weights / PYTORCH_FID), celeba=True)
    with Image.open(photos[512] / "3.png") as image:
        assert (extractor.read(image) - prepare(image)).abs().max() < 1e-6
    assert "imagenet" in extractor.protocol


@pytest.mark.parametrize(("make", "name"), [(clean_fid, CLEAN_FID), (pytorch_fid, PYTORCH_FID)])
def test_random_weights_cannot_be_mistaken(make, name, weights, photos, small):
    extractor = make(str(weights / name))
    protocol = Protocol("x/1", 48, "bilinear", extractor, "photos")
    metrics, _ = evaluate(small, small, photos[512], None, protocol)
    assert extractor.random
    for key in ("fid", "kid"):
        assert "/RANDOM-" in metrics[key]["protocol"]
        assert metrics[key]["n_reference"] == 4


def test_unmarked_weights_are_not_called_random(weights, tmp_path):
    state = torch.load(weights / PYTORCH_FID, weights_only=True)
    changed = {key: value + 1e-3 if value.is_floating_point() else value for key, value in state.items()}
    torch.save(changed, tmp_path / PYTORCH_FID)
    extractor = pytorch_fid(str(tmp_path / PYTORCH_FID))
    assert not extractor.random
    assert extractor.protocol == "pt-inception-2015-12-05/network-bilinear299"


@pytest.mark.parametrize(("make", "name"), [(clean_fid, CLEAN_FID), (pytorch_fid, PYTORCH_FID)])
def test_wrong_files_get_a_sentence(make, name, tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        make(str(tmp_path / name))
    with pytest.raises(ValueError, match="must be named"):
        make(str(tmp_path / "inception.pt"))
    (tmp_path / name).write_bytes(b"PK nonsense")
    with pytest.raises(ValueError, match="get the file again"):
        make(str(tmp_path / name))


def test_reference_features_are_kept(weights, photos, small, tmp_path):
    extractor = clean_fid(str(weights / CLEAN_FID))
    protocol = Protocol("x/1", 48, "bilinear", extractor, "photos")
    first, _ = evaluate(small, small, photos[512], None, protocol, tmp_path)
    (cache,) = tmp_path.glob("*.safetensors")
    before = cache.stat().st_mtime_ns
    again, _ = evaluate(small, small, photos[512], None, protocol, tmp_path)
    assert again["fid"] == first["fid"]
    assert cache.stat().st_mtime_ns == before
    evaluate(small, small, photos[256], None, protocol, tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) == 2
