"""The identity network: the published names and shapes, strict loading, and its energy."""

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file

from cyclediff.diffusion.noise import Noise
from cyclediff.errors import UserError
from cyclediff.models.identity import IdentityEnergy, cut_face, identity_energy, load_ir_se50

NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def published() -> dict[str, tuple[int, ...]]:
    """Names and shapes of model_ir_se50.pth: the 24 units of IR-SE50 (arXiv 1801.07698) with their heads."""

    def norm(name, channels):
        return {f"{name}.{part}": () if part == "num_batches_tracked" else (channels,) for part in NORM}

    found = {"input_layer.0.weight": (64, 3, 3, 3), **norm("input_layer.1", 64), "input_layer.2.weight": (64,)}
    widths = [64] * 3 + [128] * 4 + [256] * 14 + [512] * 3
    for unit, (before, after) in enumerate(zip([64, *widths], widths, strict=False)):
        body, here = f"body.{unit}", f"body.{unit}.res_layer"
        if before != after:
            found |= {
                f"{body}.shortcut_layer.0.weight": (after, before, 1, 1),
                **norm(f"{body}.shortcut_layer.1", after),
            }
        found |= norm(f"{here}.0", before) | {f"{here}.1.weight": (after, before, 3, 3), f"{here}.2.weight": (after,)}
        found |= {f"{here}.3.weight": (after, after, 3, 3)} | norm(f"{here}.4", after)
        found |= {
            f"{here}.5.fc1.weight": (after // 16, after, 1, 1),
            f"{here}.5.fc2.weight": (after, after // 16, 1, 1),
        }
    found |= norm("output_layer.0", 512) | norm("output_layer.4", 512)
    return found | {"output_layer.3.weight": (512, 25088), "output_layer.3.bias": (512,)}


def weights() -> dict[str, torch.Tensor]:
    """Small random ones; variances are positive."""
    torch.manual_seed(0)
    state = {}
    for name, shape in published().items():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(100)
        elif name.endswith(("running_var", "weight")) and len(shape) == 1:
            state[name] = torch.rand(shape) / 2 + 0.5
        else:
            state[name] = torch.randn(shape) / (torch.Size(shape[1:]).numel() ** 0.5 if len(shape) > 1 else 10)
    return state


@pytest.fixture(scope="module")
def state():
    return weights()


def by_hand(state, x):
    """The network from its definition, on plain functions."""

    def norm(x, name):
        return F.batch_norm(x, *(state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")))

    def convolve(x, name, **how):
        return F.conv2d(x, state[f"{name}.weight"], **how)

    x = F.prelu(norm(convolve(x, "input_layer.0", padding=1), "input_layer.1"), state["input_layer.2.weight"])
    for unit in range(24):
        stride, here = 2 if unit in (0, 3, 7, 21) else 1, f"body.{unit}.res_layer"
        h = convolve(norm(x, f"{here}.0"), f"{here}.1", padding=1)
        h = convolve(F.prelu(h, state[f"{here}.2.weight"]), f"{here}.3", padding=1, stride=stride)
        h = norm(h, f"{here}.4")
        gate = convolve(F.adaptive_avg_pool2d(h, 1), f"{here}.5.fc1").relu()
        h = h * convolve(gate, f"{here}.5.fc2").sigmoid()
        shortcut = f"body.{unit}.shortcut_layer"
        if f"{shortcut}.0.weight" in state:
            x = norm(convolve(x, f"{shortcut}.0", stride=stride), f"{shortcut}.1")
        else:
            x = x[:, :, ::stride, ::stride]
        x = x + h
    x = F.linear(norm(x, "output_layer.0").flatten(1), state["output_layer.3.weight"], state["output_layer.3.bias"])
    x = norm(x, "output_layer.4")
    return x / x.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("counters", [True, False])
def test_the_published_file_is_loaded(counters, state, tmp_path):
    """Files of old versions of torch have no counters of batches."""
    kept = {name: value for name, value in state.items() if counters or not name.endswith("num_batches_tracked")}
    torch.save(kept, tmp_path / "model_ir_se50.pth")
    network = load_ir_se50(str(tmp_path / "model_ir_se50.pth"))
    faces = torch.rand(1, 3, 112, 112, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = network(faces)
    assert found.shape == (1, 512)
    assert torch.allclose(found, by_hand(state, faces), atol=2e-5)
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"body.4.res_layer.5.fc1.weight": None}, "1 missing (body.4.res_layer.5.fc1.weight)"),
        ({"body.24.res_layer.2.weight": torch.ones(512)}, "body.24.res_layer.2.weight"),
        ({"output_layer.3.bias": torch.ones(256)}, "1 of another shape (output_layer.3.bias (256,) for (512,))"),
        ({"input_layer.2.weight": torch.full((64,), torch.nan)}, "holds NaN or Inf in input_layer.2.weight"),
    ],
)
def test_other_files_are_refused(change, said, state, tmp_path):
    changed = {name: value for name, value in (state | change).items() if value is not None}
    save_file(changed, tmp_path / "other.safetensors")
    with pytest.raises(UserError) as error:
        load_ir_se50(str(tmp_path / "other.safetensors"))
    assert said in str(error.value)


# The energy, with a network that keeps the picture


def flat(faces):
    return F.normalize(F.adaptive_avg_pool2d(faces, 4).flatten(1))


def picture(seed: int, width: int = 112, height: int = 112) -> Image.Image:
    values = torch.randint(0, 256, (height, width, 3), generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(values.to(torch.uint8).numpy())


def tensor_of(image: Image.Image) -> torch.Tensor:
    values = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return values.reshape(image.height, image.width, 3).permute(2, 0, 1)[None] / 255


def test_energy_is_one_minus_the_mean_cosine():
    one, other, third = (picture(seed) for seed in range(3))
    images = torch.cat([tensor_of(one), tensor_of(third)])
    found = identity_energy(flat, [one, other])(images, Noise(0, ["a", "b"]))
    features = [flat(cut_face(tensor_of(image))) for image in (one, other)]
    cosines = [F.cosine_similarity(flat(cut_face(images)), feature) for feature in features]
    assert torch.allclose(found, 1 - (cosines[0] + cosines[1]) / 2, atol=1e-6)
    alone = identity_energy(flat, [one])(tensor_of(one), Noise(0, ["a"]))
    assert alone.abs().max() < 1e-6


def test_range_that_the_network_was_trained_on():
    seen = []
    network = lambda faces: seen.append(faces) or flat(faces)  # noqa: E731
    for trained, low in ((False, 0.0), (True, -1.0)):
        energy = identity_energy(network, [picture(0)], trained_range=trained)
        energy(torch.zeros(1, 3, 256, 256), Noise(0, ["a"]))
        assert seen[-1].unique().tolist() == [low]
        assert (seen[-2].min() < 0) == trained


def test_references_are_resized_by_their_short_side():
    seen = []
    network = lambda faces: seen.append(faces) or flat(faces)  # noqa: E731
    wide = picture(3, width=400, height=300)
    identity_energy(network, [wide])
    small = wide.resize((149, 112), Image.Resampling.BILINEAR)
    assert seen[-1].equal(cut_face(tensor_of(small)))
    identity_energy(network, [wide], reference_size=None)
    assert seen[-1].equal(cut_face(tensor_of(wide)))


def test_face_of_a_large_picture():
    """The face is rows 35 … 222 and columns 32 … 219 of 256."""
    image = torch.zeros(1, 3, 256, 256)
    image[:, :, 35:223, 32:220] = 1
    assert cut_face(image).eq(1).all()
    image[:, :, 35:223, 32:220] = 0
    assert cut_face(1 - image).eq(1).all()
    image[:, :, 34], image[:, :, 223], image[:, :, :, 31], image[:, :, :, 220] = 1, 1, 1, 1
    assert cut_face(image).eq(0).all()


def test_a_reference_is_needed():
    with pytest.raises(UserError) as error:
        identity_energy(flat, [])
    assert str(error.value) == "the identity energy needs a picture of the person; got none"


def test_the_energy_has_a_gradient():
    energy = IdentityEnergy(flat, flat(cut_face(tensor_of(picture(0)))))
    with torch.enable_grad():
        images = torch.rand(1, 3, 64, 64).requires_grad_()
        (slope,) = torch.autograd.grad(energy(images, Noise(0, ["a"])).sum(), images)
    assert slope.abs().max() > 0
