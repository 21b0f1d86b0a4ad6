"""CLIP scores against the official code's numbers, and CLIPs of open_clip's formats against open_clip itself."""

import shutil
import warnings

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from eval.metrics.clip import CONFIG, WEIGHTS, clip_score, directional_clip, is_defined, open_clip_scorer
from eval.metrics.features import file_digest
from eval.protocols import load_protocol
from eval.random_mark import MARK

from .nets import golden
from .tiny_clip import local_clip, tiny_clip

TEXTS = ["a small ginger cat", "a big dog, looking left", "a small ginger cat"]


def features(seed, n=4, d=16):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pictures(*sizes):
    generator = np.random.default_rng(3)
    return [Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]


# the scores


def test_scores_equal_the_official_code(parity):
    recorded = {key.removeprefix("score."): value for key, value in golden("dclip").items() if "score." in key}
    image, original, source, target = (recorded[f"{key}_feat"] for key in ("img", "orig", "src_text", "tgt_text"))
    directional = directional_clip(image, original, source, target)
    parity("CLIP scores", "CLIP", clip_score(image, target), recorded["clip_score"], 1e-5)
    changed = torch.tensor([0, 1, 2, 7])
    parity("CLIP scores", "D-CLIP", directional[changed], recorded["dclip_score"][changed], 1e-5)
    parity("CLIP scores", "D-CLIP, nearly unchanged", directional[5:6], recorded["dclip_score"][5:6], 1e-3)


def test_a_score_without_direction_never_wins():
    """Rows 3 (pictures) and 4 (texts) are 0 / 0 in the official code; row 6 (original × 7.5) is rounding alone."""
    recorded = {key.removeprefix("score."): value for key, value in golden("dclip").items() if "score." in key}
    four = [recorded[f"{key}_feat"] for key in ("img", "orig", "src_text", "tgt_text")]
    assert recorded["dclip_score"].isnan().nonzero().flatten().tolist() == [3, 4]
    assert (~is_defined(*four)).nonzero().flatten().tolist() == [3, 4, 6]
    assert directional_clip(*four)[[3, 6]].tolist() == [0, 0]  # an unchanged picture agrees with nothing
    assert directional_clip(*four).isnan().nonzero().flatten().tolist() == [4]  # an unchanged text asks for nothing
    assert directional_clip(four[1], four[1], four[2], four[2]).isnan().all()


def test_directional_clip_by_hand():
    """In the plane: unit vectors at angles; a chord's direction is the mean of its ends' angles plus a right angle."""

    def at(degrees, length=1.0):
        return length * torch.tensor([[np.cos(np.radians(degrees)), np.sin(np.radians(degrees))]])

    value = directional_clip(at(50, 3.0), at(10), at(20, 0.5), at(100))
    assert value.item() == pytest.approx(np.cos(np.radians((20 + 100) / 2 - (10 + 50) / 2)), abs=1e-12)
    assert directional_clip(at(10), at(50), at(20), at(100)).item() == pytest.approx(-value.item(), abs=1e-12)
    assert clip_score(at(50, 3.0), at(100)).item() == pytest.approx(np.cos(np.radians(50)), abs=1e-12)


def test_scores_are_cosines():
    four = [features(seed) for seed in range(4)]
    unit = [nn.functional.normalize(x, dim=1) for x in four]
    expected = nn.functional.cosine_similarity(unit[0] - unit[1], unit[3] - unit[2])
    assert torch.allclose(directional_clip(*four), expected, atol=1e-12)
    assert torch.allclose(clip_score(four[0], four[3]), nn.functional.cosine_similarity(four[0], four[3]), atol=1e-12)


def test_candidates_broadcast():
    candidates, one = features(1, n=5), features(2, n=1)
    together = directional_clip(candidates, one, features(3, n=1), features(4, n=1))
    apart = [directional_clip(row[None], one, features(3, n=1), features(4, n=1)).item() for row in candidates]
    assert together.tolist() == pytest.approx(apart)


# the networks


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_clip(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    return local_clip(tmp_path_factory.mktemp("clips") / "local")


def reference(name, pretrained=None, size=((64, 64), (80, 50))):
    """Features by open_clip's own functions."""
    network, _, prepare = open_clip.create_model_and_transforms(name, pretrained=pretrained)
    network.eval()
    image = torch.stack([prepare(picture) for picture in pictures(*size)])
    text = open_clip.get_tokenizer(name)(TEXTS)
    return network.encode_image(image, normalize=True), network.encode_text(text, normalize=True)


def check(scorer, expected):
    images, texts = scorer.images(pictures((64, 64), (80, 50))), scorer.texts(TEXTS)
    assert images.dtype == texts.dtype == torch.float64
    for mine, theirs in zip((images, texts), expected, strict=True):
        assert (mine - theirs).abs().max() < 1e-6
        assert torch.allclose(mine.norm(dim=1), torch.ones(len(mine)).double())
    assert texts[0].equal(texts[2])


def test_a_file_for_a_built_in_architecture(tiny):
    path, _ = tiny
    scorer = open_clip_scorer(str(path), "tiny-quickgelu")
    assert scorer.protocol == f"tiny-quickgelu-{file_digest(path)}/pil-bicubic224"
    assert not scorer.random
    check(scorer, reference("tiny-quickgelu", str(path)))


def test_a_local_folder(local):
    scorer = open_clip_scorer(str(local))
    assert scorer.protocol == f"local-gelu-{file_digest(local / WEIGHTS, local / CONFIG)}/pil-bicubic64"
    check(scorer, reference(f"local-dir:{local}"))


def test_batches_do_not_matter(local):
    scorer = open_clip_scorer(str(local))
    many = pictures(*[(64, 64)] * 40)
    apart = torch.cat([scorer.images([picture]) for picture in many])
    assert (scorer.images(many) - apart).abs().max() < 1e-6
    texts = scorer.texts(TEXTS)
    assert not is_defined(scorer.images(many)[:1], apart[:1], texts[:1], texts[1:2])


def test_texts_are_encoded_once(local):
    scorer = open_clip_scorer(str(local))
    scorer.known.clear()
    seen = []
    object.__setattr__(scorer, "tokenize", lambda texts, own=scorer.tokenize: seen.append(texts) or own(texts))
    scorer.texts(TEXTS)
    scorer.texts([*TEXTS, "a dog"])
    assert seen == [TEXTS[:2], ["a dog"]]


def test_openais_own_archive(tiny, tmp_path):
    """A TorchScript program in 16 bits with three constants among its tensors, as OpenAI published it."""
    path, network = tiny
    archive = nn.Module()
    for key, value in network.state_dict().items():
        *parents, name = key.split(".")
        place = archive
        for parent in parents:
            if parent not in dict(place.named_children()):
                place.add_module(parent, nn.Module())
            place = place.get_submodule(parent)
        place.register_buffer(name, value.half())
    for name, number in {"input_resolution": 224, "context_length": 77, "vocab_size": 49408}.items():
        archive.register_buffer(name, torch.tensor(number))
    file = tmp_path / "ViT.pt"
    with warnings.catch_warnings(action="ignore"):  # TorchScript is of old
        torch.jit.save(torch.jit.script(archive), str(file))
    mine = open_clip_scorer(str(file), "tiny-quickgelu").images(pictures((64, 64)))
    assert (mine - open_clip_scorer(str(path), "tiny-quickgelu").images(pictures((64, 64)))).abs().max() < 1e-2
    halves = {key: value.half() for key, value in network.state_dict().items()}
    torch.save({"state_dict": {f"module.{key}": value for key, value in halves.items()}}, tmp_path / "state.pt")
    assert mine.equal(open_clip_scorer(str(tmp_path / "state.pt"), "tiny-quickgelu").images(pictures((64, 64))))
    with pytest.raises(ValueError, match=r"trained with QuickGELU.* choose model=tiny-quickgelu"):
        open_clip_scorer(str(file), "tiny")
    with pytest.raises(ValueError, match="does not fit ViT-B-32-quickgelu"):  # an archive is one of OpenAI's
        load_protocol("zero_shot", None, tmp_path, clip=str(file))


def test_openais_network_has_quickgelu(tiny):
    with torch.device("meta"):
        network = open_clip.create_model("ViT-B-32-quickgelu", load_weights=False, device="meta")
    kinds = {type(module).__name__ for module in network.modules()}
    assert "QuickGELU" in kinds
    assert "GELU" not in kinds
    assert sum(p.numel() for p in network.parameters()) == 151_277_313
    quick, plain = (
        open_clip_scorer(str(tiny[0]), name).images(pictures((64, 64))) for name in ("tiny-quickgelu", "tiny")
    )
    assert (quick - plain).abs().max() > 1e-4


def test_pictures_are_prepared_as_clips_own_code_does(tiny, parity):
    """Resize, crop and normalisation on 8 bits by PIL, for portrait, landscape and large pictures."""
    prepare, recorded = open_clip_scorer(str(tiny[0]), "tiny-quickgelu").prepare, golden("dclip")
    large = recorded["pre512x512.small_u8_nearest_x4"].repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    for name, image in {
        "96x80": recorded["pre96x80.u8"],
        "160x200": recorded["pre160x200.u8"],
        "512x512": large,
    }.items():
        found = prepare(Image.fromarray(image[0].permute(1, 2, 0).numpy()))[None]
        found = found[:, :, 64:160, 64:160] if name == "512x512" else found
        parity("CLIP scores", "preparation on 8 bits", found, recorded[f"pre{name}.pil"], 1.3e-3)
        other = recorded[f"pre{name}.tensor_noaa"]
        assert (found - other).abs().max() > 0.2  # what the official code does on floats is another thing


def test_pictures_of_any_mode(local):
    scorer, (picture,) = open_clip_scorer(str(local)), pictures((64, 64))
    transparent = picture.copy()
    transparent.putalpha(255)
    assert scorer.images([transparent]).equal(scorer.images([picture]))


def test_the_global_generator_is_left_alone(local, tmp_path):
    shutil.copytree(local, tmp_path / "copy")
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    open_clip_scorer(str(tmp_path / "copy"))
    assert torch.rand(1).equal(expected)


def test_loading_is_quiet(local, tmp_path, caplog):
    shutil.copytree(local, tmp_path / "copy")
    open_clip_scorer(str(tmp_path / "copy"))
    assert not caplog.records


@pytest.mark.parametrize("half", [False, True])
def test_random_weights_cannot_be_mistaken(local, tmp_path, half):
    folder = tmp_path / "marked"
    shutil.copytree(local, folder)
    state = open_clip.create_model(f"local-dir:{folder}").state_dict()
    state["ln_final.bias"][: len(MARK)] = MARK
    save_file({key: value.half() if half else value for key, value in state.items()}, folder / WEIGHTS)
    scorer = open_clip_scorer(str(folder))
    assert scorer.random
    assert scorer.protocol.startswith("RANDOM-marked-")


# mistakes


def refused(match, path, *model):
    with pytest.raises(ValueError, match=match) as caught:
        open_clip_scorer(str(path), *model)
    assert "\n" not in str(caught.value)


def test_there_is_nothing(tmp_path):
    refused("no CLIP weights at .*nowhere.pt; give a file", tmp_path / "nowhere.pt")


def test_a_folder_without_weights_or_config(local, tmp_path):
    (tmp_path / "a").mkdir()
    refused(f"has no {CONFIG} and no {WEIGHTS}; a CLIP folder holds", tmp_path / "a")
    shutil.copy(local / CONFIG, tmp_path / "a")
    refused(f"a has no {WEIGHTS}; a CLIP folder holds", tmp_path / "a")


def test_a_folder_without_tokenizer_or_with_a_wrong_config(local, tmp_path):
    for name in (CONFIG, WEIGHTS):
        shutil.copy(local / name, tmp_path)
    refused("cannot build a network from .* tokenizer's files", tmp_path)
    (tmp_path / CONFIG).write_text('{"model_cfg": {"embed_dim": 3}}')
    refused("cannot build a network from", tmp_path)


def test_weights_of_another_network(tiny, local, tmp_path):
    refused(r"does not fit ViT-B-32-quickgelu: .* missing \(.*; choose the model", tiny[0], "ViT-B-32-quickgelu")
    shutil.copytree(local, tmp_path / "copy")
    shutil.copy(tiny[0], tmp_path / "copy" / WEIGHTS)
    refused("does not fit copy: .* of another shape", tmp_path / "copy")


def test_damaged_weights(tmp_path):
    for name in ("a.pt", "a.safetensors"):
        (tmp_path / name).write_bytes(b"PK nonsense")
        refused("is damaged or holds no weights; get it again", tmp_path / name, "tiny-quickgelu")
    torch.save({"a": 1}, tmp_path / "b.pt")
    refused("holds other things than tensors", tmp_path / "b.pt", "tiny-quickgelu")


def test_an_unknown_architecture(tiny):
    refused("has no model ViT-B-32-quickgellu; .*ViT-B-32-quickgelu", tiny[0], "ViT-B-32-quickgellu")
    refused("has no model local-dir:", tiny[0], "local-dir:elsewhere")


@pytest.mark.parametrize(
    ("path", "model"),
    [("openai", "ViT-B-32-quickgelu"), ("hf-hub:someone/clip", None), ("hf-hub:no:such/name/at all", None)],
)
def test_no_network(path, model, tmp_path, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    refused("on the Hugging Face hub.* cannot be downloaded .*; get open_clip_config.json", path, model)


def test_openai_did_not_train_it(tiny):
    refused("OpenAI published no tiny-quickgelu; choose one of .*ViT-B-32-quickgelu", "openai", "tiny-quickgelu")
    refused("choose model=ViT-B-32-quickgelu", "openai", "ViT-B-32")


def test_the_hub(local, monkeypatch):
    import huggingface_hub

    asked = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: asked.append(name) or str(local))
    scorer = open_clip_scorer("hf-hub:someone/tiny-clip")
    assert asked == ["someone/tiny-clip"]
    assert scorer.protocol.startswith("tiny-clip-")
    assert scorer.images(pictures((64, 64))).equal(open_clip_scorer(str(local)).images(pictures((64, 64))))
