"""LPIPS against its package and torchmetrics, with the same random backbone; nothing is downloaded."""

import sys
import warnings
from unittest.mock import patch

import pytest
import torch

from eval.metrics.lpips import CHUNK, LENGTHS, SMALLEST, lpips_network
from eval.random_mark import MARK

NAMES = {"alex": "alexnet", "squeeze": "squeezenet1_1", "vgg": "vgg16"}


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    """Random weights in torchvision's files, whole or features only, which make small features: they tell the rules."""
    import torchvision

    folder = tmp_path_factory.mktemp("backbones")
    paths, generator = {}, torch.Generator().manual_seed(0)
    for net, name in NAMES.items():
        with torch.device("meta"), warnings.catch_warnings(action="ignore"):
            shapes = {
                key: value.shape for key, value in getattr(torchvision.models, name)(weights=None).state_dict().items()
            }
        state = {}
        for key, shape in shapes.items():
            if net == "squeeze" or key.startswith("features."):
                scale = (2 / shape[1:].numel()) ** 0.5 if len(shape) > 1 else 1e-5
                state[key] = (
                    torch.randn(shape, generator=generator) * scale * (1e-4 if key == "features.0.weight" else 1)
                )
        paths[net] = folder / f"{name}.pth"
        torch.save(state, paths[net])
    return paths


def images(n, size, seed):
    return torch.randint(
        0, 256, (n, 3, size, size + 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8
    )


def official(rule, net, path):
    """The network of the package, or of torchmetrics, its backbone filled by hand, module by module."""
    import lpips
    from torchmetrics.functional.image.lpips import _LPIPS

    with warnings.catch_warnings(action="ignore"):
        network = (
            lpips.LPIPS(net=net, pnet_rand=True, verbose=False) if rule == "lpips" else _LPIPS(net=net, pnet_rand=True)
        )
    state = torch.load(path, weights_only=True)
    pieces = [piece for name, piece in network.net.named_children() if name.startswith("slice")]
    for piece in pieces[0] if isinstance(pieces[0], torch.nn.ModuleList) else pieces:
        for number, layer in piece.named_children():
            layer.load_state_dict({key: state[f"features.{number}.{key}"] for key in layer.state_dict()})
    return network


@pytest.mark.parametrize("rule", ["lpips", "torchmetrics"])
@pytest.mark.parametrize("net", ["alex", "squeeze", "vgg"])
def test_distances_are_the_packages_own(net, rule, backbones):
    import lpips

    n = CHUNK + 3
    a, b = images(n, 40, 1), images(n, 40, 2)
    b[0] = a[0]
    found = lpips_network(str(backbones[net]), net, rule=rule)(a, b)
    assert found.shape == (n,)
    assert found.dtype == torch.float64
    assert found[0] == 0
    network = official(rule, net, backbones[net])
    x, y = (torch.cat([lpips.im2tensor(one.permute(1, 2, 0).numpy()) for one in side]) for side in (a, b))
    assert (found - network(x, y).flatten()).abs().max() < 1e-6
    assert found[1:].min() > 0.01


def test_the_rules_differ(backbones):
    pair = images(1, 40, 1), images(1, 40, 2)
    one, other = (lpips_network(str(backbones["squeeze"]), "squeeze", rule=rule)(*pair) for rule in LENGTHS)
    assert (one - other).abs() > 1e-4


def test_the_protocol_names_backbone_and_file(backbones, tmp_path):
    network = lpips_network(str(backbones["squeeze"]), "squeeze")
    assert network.protocol.startswith("lpips-squeeze-0.1-lpips-norm-")
    assert len(network.protocol) == len("lpips-squeeze-0.1-lpips-norm-") + 8
    other = lpips_network(str(backbones["squeeze"]), "squeeze", rule="torchmetrics")
    assert other.protocol == network.protocol.replace("lpips-norm", "torchmetrics-norm")
    assert not network.random
    state = torch.load(backbones["squeeze"], weights_only=True)
    state["features.0.bias"][: len(MARK)] = MARK
    torch.save(state, tmp_path / "marked.pth")
    marked = lpips_network(str(tmp_path / "marked.pth"), "squeeze")
    assert marked.random
    assert marked.protocol.startswith("RANDOM-lpips-squeeze-0.1-lpips-norm-")
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
        network.distances(torch.zeros(1, 3, size - 1, size), torch.zeros(1, 3, size - 1, size))


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
    with pytest.raises(ValueError, match="by the rules lpips, torchmetrics; got piq"):
        lpips_network(str(backbones["alex"]), rule="piq")


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
