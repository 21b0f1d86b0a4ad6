"""LPIPS against the package itself, with the same random backbone; nothing is downloaded."""

import sys
import warnings
from unittest.mock import patch

import pytest
import torch

from eval.metrics.lpips import CHUNK, SMALLEST, lpips_network
from eval.random_mark import MARK

NAMES = {"alex": "alexnet", "squeeze": "squeezenet1_1", "vgg": "vgg16"}


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    """Random weights in torchvision's files: whole, or features only."""
    import torchvision

    folder = tmp_path_factory.mktemp("backbones")
    paths = {}
    with torch.random.fork_rng(), warnings.catch_warnings(action="ignore"):
        torch.manual_seed(0)
        for net in ("alex", "squeeze"):
            state = getattr(torchvision.models, NAMES[net])(weights=None).state_dict()
            paths[net] = folder / f"{NAMES[net]}.pth"
            kept = {key: value for key, value in state.items() if net == "squeeze" or key.startswith("features.")}
            torch.save(kept, paths[net])
    return paths


def images(n, size, seed):
    return torch.randint(
        0, 256, (n, 3, size, size + 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8
    )


@pytest.mark.parametrize("net", ["alex", "squeeze"])
def test_distances_are_the_packages_own(net, backbones):
    """The package as its README has it, its backbone filled by hand, module by module."""
    import lpips
    import torchvision

    with warnings.catch_warnings(action="ignore"):
        official = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
        whole = getattr(torchvision.models, NAMES[net])(weights=None)
    whole.load_state_dict(torch.load(backbones[net], weights_only=True), strict=False)
    for piece in (official.net.slice1, *[getattr(official.net, f"slice{i}") for i in range(2, official.L + 1)]):
        for number, layer in piece.named_children():
            layer.load_state_dict(whole.features[int(number)].state_dict())
    a, b = images(CHUNK + 3, 40, 1), images(CHUNK + 3, 40, 2)
    b[0] = a[0]
    found = lpips_network(str(backbones[net]), net)(a, b)
    assert found.shape == (CHUNK + 3,)
    assert found.dtype == torch.float64
    assert found[0] == 0
    for i in range(CHUNK + 3):
        x, y = (lpips.im2tensor(side[i].permute(1, 2, 0).numpy()) for side in (a, b))
        assert found[i].item() == pytest.approx(official(x, y).item(), rel=1e-5, abs=1e-7)
    assert found[1:].min() > 0.01


def test_the_protocol_names_backbone_and_file(backbones, tmp_path):
    network = lpips_network(str(backbones["squeeze"]), "squeeze")
    assert network.protocol.startswith("lpips-squeeze-0.1-")
    assert len(network.protocol) == len("lpips-squeeze-0.1-") + 8
    assert not network.random
    state = torch.load(backbones["squeeze"], weights_only=True)
    state["features.0.bias"][: len(MARK)] = MARK
    torch.save(state, tmp_path / "marked.pth")
    marked = lpips_network(str(tmp_path / "marked.pth"), "squeeze")
    assert marked.random
    assert marked.protocol.startswith("RANDOM-lpips-squeeze-0.1-")
    assert marked.protocol[-8:] != network.protocol[-8:]


def test_the_global_random_state_stays(backbones):
    lpips_network.cache_clear()
    state = torch.get_rng_state()
    lpips_network(str(backbones["squeeze"]), "squeeze")
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("net", ["alex", "squeeze"])
def test_images_too_small_for_the_backbone_get_a_sentence(net, backbones):
    network, size = lpips_network(str(backbones[net]), net), SMALLEST[net]
    assert network(images(1, size, 1), images(1, size, 2)).isfinite().all()
    with pytest.raises(ValueError, match=f"needs images of {size}×{size} pixels at least; got {size - 1}×{size + 2}"):
        network(images(1, size - 1, 1), images(1, size - 1, 2))
    with pytest.raises(RuntimeError):  # and no smaller size would do
        network.network(torch.zeros(1, 3, size - 1, size), torch.zeros(1, 3, size - 1, size))


def test_mistakes_get_a_sentence(backbones, tmp_path):
    with pytest.raises(ValueError, match="there is no file"):
        lpips_network(str(tmp_path / "none.pth"))
    (tmp_path / "broken.pth").write_bytes(b"no weights")
    with pytest.raises(ValueError, match="is damaged or holds no weights"):
        lpips_network(str(tmp_path / "broken.pth"))
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="holds other things than tensors"):
        lpips_network(str(tmp_path / "list.pth"))
    with pytest.raises(ValueError, match="alex, vgg, squeeze; got resnet"):
        lpips_network(str(backbones["alex"]), "resnet")


def without(state):
    state.pop("features.3.bias")


def more(state):
    state["features.99.bias"] = torch.zeros(3)


def wider(state):
    state["features.3.bias"] = torch.zeros(3)


@pytest.mark.parametrize("spoil", [without, more, wider])
def test_weights_must_fit(spoil, backbones, tmp_path):
    state = torch.load(backbones["alex"], weights_only=True)
    spoil(state)
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="are not those of torchvision's alex backbone"):
        lpips_network(str(tmp_path / "x.pth"), "alex")
    with pytest.raises(ValueError, match="are not those of torchvision's alex backbone"):
        lpips_network(str(backbones["squeeze"]), "alex")


def test_without_the_package_the_extra_is_named(backbones):
    lpips_network.cache_clear()
    with patch.dict(sys.modules, {"lpips": None}), pytest.raises(ValueError, match=r"pip install 'cyclediff\[lpips\]'"):
        lpips_network(str(backbones["alex"]))
