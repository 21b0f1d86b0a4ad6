"""PIE-Bench by its two rules in one pass: masks, JPEG, records, tables, and what is refused."""

import io
import warnings
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torchvision.models import squeezenet1_1

from cyclediff.data.edit_lists import prepare_edits, read_edit_list
from cyclediff.data.pie_bench import read_blended_words
from cyclediff.errors import UserError
from eval.evaluate import evaluate, main, save_scores
from eval.metrics.clip import open_clip_scorer
from eval.metrics.lpips import lpips_network
from eval.metrics.pairwise import mse, psnr, ssim, ssim_outside
from eval.metrics.pictures import to_tensor
from eval.metrics.pie_bench import CLEAN, OFFICIAL, PieBench, clean_background, compressed, official_background
from eval.metrics.structure import Structure, structure_network
from eval.protocols import Protocol
from eval.records import by_protocol, read_scores

from .test_edit_lists import as_json, picture, pie
from .tiny_clip import local_clip

SIDE = 64
OFFICIAL_KEYS = ["structure", "psnr", "lpips", "mse", "ssim", "clip", "clip_edited"]


def images(seed, n=2, side=SIDE):
    generator = torch.Generator().manual_seed(seed)
    small = torch.randint(0, 256, (n, 3, 8, 8), generator=generator).float()
    return torch.nn.functional.interpolate(small, (side, side), mode="bicubic").clamp(0, 255).to(torch.uint8)


def outside_of(box, side=SIDE):
    """True outside of a box and of the outermost lines, (1, 1, side, side)."""
    mask = torch.zeros(1, 1, side, side, dtype=torch.bool)
    mask[..., box, box] = True
    mask[..., [0, -1], :] = mask[..., :, [0, -1]] = True
    return ~mask


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """PIE-Bench's networks with random weights: small, but for SqueezeNet; CLIP's folder."""
    folder = tmp_path_factory.mktemp("networks")
    torch.manual_seed(0)
    torch.save(squeezenet1_1().state_dict(), folder / "squeezenet.pth")
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    save_file(vit.state_dict(), folder / "vit.safetensors")
    lpips = [lpips_network(str(folder / "squeezenet.pth"), "squeeze", rule=rule) for rule in ("lpips", "torchmetrics")]
    structure = structure_network(str(folder / "vit.safetensors"), "vit_tiny_patch16_224")
    return PieBench((CLEAN, OFFICIAL), structure, *lpips), open_clip_scorer(str(local_clip(folder / "clip")))


@pytest.fixture
def folders(tmp_path):
    """Three edits; the last one's mask covers everything."""
    for name, seed in (("source", 1), ("generated", 2)):
        (tmp_path / name).mkdir()
        for k, image in enumerate(images(seed, 3)):
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / name / f"i{k}.png")
    (tmp_path / "source" / "masks").mkdir()
    lines = ["id,source,target,category,mask"]
    for k, box in enumerate((slice(20, 40), slice(5, 30), slice(0, SIDE))):
        mask = ~outside_of(box)[0, 0].numpy()
        Image.fromarray(mask.astype(np.uint8) * 255).save(tmp_path / "source" / "masks" / f"i{k}.png")
        lines.append(f"i{k},a red cat,a red dog,{('change-object', 'random', 'random')[k]},masks/i{k}.png")
    (tmp_path / "source" / "edits.csv").write_text("\n".join(lines))
    return tmp_path


def protocol_of(networks, *rules):
    pie, clip = networks
    pie = replace(pie, rules=rules)
    return Protocol(rules[0], None, "bilinear", None, "", clip=clip, lpips=pie.lpips, pie=pie)


def scored(folders, protocol):
    with warnings.catch_warnings(action="ignore"):
        return evaluate(folders / "generated", folders / "source", None, None, protocol)


def test_one_pass_equals_two(folders, networks):
    both = scored(folders, protocol_of(networks, CLEAN, OFFICIAL))
    official = scored(folders, protocol_of(networks, OFFICIAL))
    clean = scored(folders, protocol_of(networks, CLEAN))
    assert list(official.metrics) == [f"official_{key}" for key in OFFICIAL_KEYS]
    assert set(both.metrics) == set(official.metrics) | set(clean.metrics)
    for alone in (clean, official):
        for item, row in alone.rows.items():
            assert {key: both.rows[item][key] for key in row} == {
                key: value if value is None else pytest.approx(value, rel=1e-5, abs=1e-9) for key, value in row.items()
            }


def test_numbers_of_a_folder(folders, networks):
    """Each is the function of the two images, the official ones of the image after JPEG."""
    found = scored(folders, protocol_of(networks, CLEAN, OFFICIAL)).rows["i0"]
    pie, clip = networks
    result, source = (to_tensor(Image.open(folders / name / "i0.png"))[None] for name in ("generated", "source"))
    outside = outside_of(slice(20, 40))
    file = io.BytesIO()
    Image.open(folders / "generated" / "i0.png").save(file, "JPEG", quality=75)
    jpeg = to_tensor(Image.open(file))[None]
    official = official_background(jpeg, source, outside, pie.official_lpips)
    clean = clean_background(result, source, outside, pie.lpips)
    expected = {f"official_{key}": value.item() for key, value in official.items()}
    expected |= {f"background_{key}": value.item() for key, value in clean.items()}
    expected["official_structure"] = pie.structure(jpeg, source, "255-noantialias").item()
    expected["structure"] = pie.structure(result, source, "unit-antialias").item()
    text = clip.network.encode_text(clip.tokenize(["a red dog"])).double()
    text = text / text.norm()
    for key, image in (
        ("official_clip", jpeg),
        ("official_clip_edited", jpeg * ~outside),
        ("clip_edited", result * ~outside),
    ):
        seen = clip.network.encode_image(
            clip.prepare(Image.fromarray(image[0].permute(1, 2, 0).numpy()))[None]
        ).double()
        cosine = (seen / seen.norm() @ text.T).item()
        expected[key] = 100 * max(cosine, 0) if key.startswith("official") else cosine
    assert {key: found[key] for key in expected} == pytest.approx(expected, rel=1e-4, abs=1e-8)


def test_masks_that_cover_everything_are_counted_and_named(folders, networks):
    with pytest.warns(
        UserWarning, match=r"the masks of 1 of 3 images cover everything \(i2\): these have no background"
    ):
        scores = evaluate(folders / "generated", folders / "source", None, None, protocol_of(networks, CLEAN, OFFICIAL))
    assert scores.metrics["background_ssim"]["n"] == scores.metrics["official_psnr"]["n"] == 2
    assert scores.rows["i2"]["official_lpips"] is scores.rows["i2"]["background_mse"] is None
    assert scores.metrics["official_clip_edited"]["n"] == scores.metrics["structure"]["n"] == 3
    mean = (scores.rows["i0"]["background_mse"] + scores.rows["i1"]["background_mse"]) / 2
    assert scores.metrics["background_mse"]["value"] == pytest.approx(mean)


def test_a_record_is_read_by_protocol(folders, networks):
    protocol = protocol_of(networks, CLEAN, OFFICIAL)
    save_scores(scored(folders, protocol), protocol, folders / "out")
    clean, official = by_protocol(read_scores(folders / "out"))
    assert (clean["protocol"], official["protocol"]) == ("pie_bench/3", "pie_bench/official")
    assert list(official["metrics"]) == [f"official_{key}" for key in OFFICIAL_KEYS]
    assert not set(clean["metrics"]) & set(official["metrics"])
    assert "jpeg75" in official["metrics"]["official_psnr"]["protocol"]
    assert "-torchmetrics-norm-" in official["metrics"]["official_lpips"]["protocol"]
    assert "-lpips-norm-" in clean["metrics"]["background_lpips"]["protocol"]
    (alone,) = by_protocol({**official, "metrics": official["metrics"]})
    assert alone["metrics"] == official["metrics"]


def test_without_a_hole_clean_numbers_are_the_usual_ones():
    """And the official ones with a hole are better: masked pixels count as equal."""
    a, b = images(1), images(2)
    everywhere = torch.ones(2, 1, SIDE, SIDE, dtype=torch.bool)
    found = clean_background(a, b, everywhere, None)
    assert torch.allclose(found["mse"], mse(a, b), rtol=1e-12)
    assert torch.allclose(found["psnr"], psnr(a, b), rtol=1e-12)
    hole = outside_of(slice(10, 50)).expand(2, -1, -1, -1)
    assert (official_background(a, b, hole, None)["psnr"] > clean_background(a, b, hole, None)["psnr"] + 1).all()


def test_what_is_inside_a_mask_has_no_part_in_clean_numbers(networks):
    a, b, outside = images(1), images(2), outside_of(slice(10, 40)).expand(2, -1, -1, -1)
    other = torch.where(outside, a, 255 - a)
    lpips = networks[0].lpips
    one, two = clean_background(a, b, outside, lpips), clean_background(other, b, outside, lpips)
    assert {key: torch.equal(one[key], two[key]) for key in one} == dict.fromkeys(
        ("psnr", "mse", "ssim", "lpips"), True
    )


def test_lpips_without_a_mask_is_the_usual_one(networks):
    a, b = images(1), images(2)
    everywhere = torch.ones(2, 1, SIDE, SIDE, dtype=torch.bool)
    lpips = networks[0].lpips
    assert torch.allclose(clean_background(a, b, everywhere, lpips)["lpips"], lpips(a, b), rtol=1e-5)


def test_ssim_outside_by_definition():
    """At a place near the mask, from the weighted moments of the pixels that its window may see."""
    a, b = images(3, 1, 24), images(4, 1, 24)
    outside = outside_of(slice(8, 14), 24)
    window = torch.tensor([np.exp(-(k**2) / 4.5) for k in range(-5, 6)], dtype=torch.float64)
    total, count = 0.0, 0
    x, y = a[0].double() / 255, b[0].double() / 255
    for i in range(24):
        for j in range(24):
            if not outside[0, 0, i, j]:
                continue
            weight = torch.zeros(24, 24, dtype=torch.float64)
            for di in range(-5, 6):
                for dj in range(-5, 6):
                    if 0 <= i + di < 24 and 0 <= j + dj < 24 and outside[0, 0, i + di, j + dj]:
                        weight[i + di, j + dj] = window[di + 5] * window[dj + 5]
            weight = weight / weight.sum()
            mx, my = ((weight * v).sum((1, 2)) for v in (x, y))
            vx, vy = ((weight * v * v).sum((1, 2)) - m * m for v, m in ((x, mx), (y, my)))
            cov = (weight * x * y).sum((1, 2)) - mx * my
            value = (2 * mx * my + 1e-4) * (2 * cov + 9e-4) / ((mx * mx + my * my + 1e-4) * (vx + vy + 9e-4))
            total, count = total + value.mean().item(), count + 1
    assert ssim_outside(a, b, outside).item() == pytest.approx(total / count, rel=1e-9)
    assert ssim(a, b).item() != pytest.approx(total / count, rel=1e-3)


def test_jpeg_alone_is_jpeg_of_the_strip_but_for_its_first_column():
    a, neighbour = images(1, 1, 512)[0], images(2, 1, 512)[0]
    strip = torch.cat([neighbour, neighbour, neighbour, a], dim=2)
    file = io.BytesIO()
    Image.fromarray(strip.permute(1, 2, 0).numpy()).save(file, "JPEG")
    theirs = to_tensor(Image.open(file))[..., -512:]
    alone = compressed(a[None])[0]
    assert torch.equal(alone[..., 1:], theirs[..., 1:])
    assert not torch.equal(alone, a)


def test_equal_images():
    a, outside = images(1), outside_of(slice(10, 40)).expand(2, -1, -1, -1)
    for background in (official_background, clean_background):
        found = background(a, a, outside, None)
        assert found["psnr"].tolist() == [100, 100]
        assert found["mse"].tolist() == [0, 0]
        assert found["ssim"].tolist() == pytest.approx([1, 1])


def test_structure_distance_of_a_batch_is_that_of_each(networks):
    structure = networks[0].structure
    a, b = images(1, 9), images(2, 9)
    whole = structure(a, b, "unit-antialias")
    alone = [structure(a[i : i + 1], b[i : i + 1], "unit-antialias").item() for i in (0, 8)]
    assert whole[[0, 8]].tolist() == pytest.approx(alone, rel=1e-4)
    assert structure(a[:1], a[:1], "unit-antialias").tolist() == [0]
    assert isinstance(structure, Structure)


def test_rules_are_checked():
    with pytest.raises(ValueError, match=r"protocol.rules must be some of pie_bench/3, pie_bench/official, each once"):
        PieBench(("pie_bench/2",))
    with pytest.raises(ValueError, match="each once"):
        PieBench((CLEAN, CLEAN))


def test_a_vit_that_does_not_fit_is_refused(tmp_path):
    save_file({"cls_token": torch.zeros(1, 1, 8)}, tmp_path / "vit.safetensors")
    with pytest.raises(
        ValueError, match=r"vit.safetensors does not fit vit_tiny_patch16_224: .* choose the model that"
    ):
        structure_network(str(tmp_path / "vit.safetensors"), "vit_tiny_patch16_224")
    with pytest.raises(ValueError, match=r"there is no file .*none.pth; give a file of weights, or hf-hub:"):
        structure_network(str(tmp_path / "none.pth"), "vit_tiny_patch16_224")
    with pytest.raises(ValueError, match="timm has no network vit_tinny"):
        structure_network(str(tmp_path / "vit.safetensors"), "vit_tinny")


# The list


def test_blended_words_are_kept_with_the_prepared_images(tmp_path):
    picture(tmp_path / "PIE" / "a.jpg", "blue", (512, 512))
    entries = {"1": pie("a.jpg", blended_word="[cat] dog"), "2": pie("a.jpg", blended_word=""), "3": pie("a.jpg")}
    edits = read_edit_list(as_json(tmp_path / "PIE" / "mapping_file.json", entries))
    assert [edit.blend for edit in edits.found] == [("cat", "dog"), None, None]
    folder = prepare_edits(edits, None, 64, "bilinear", tmp_path / "data")
    assert read_blended_words(folder) == {"1": ("cat", "dog")}
    other = replace(edits, found=(replace(edits.found[0], blend=("cat", "lion")), *edits.found[1:]))
    assert prepare_edits(other, None, 64, "bilinear", tmp_path / "data").digest != folder.digest


@pytest.mark.parametrize("word", ["cat", ["cat", "dog"], 5])
def test_bad_blended_words(tmp_path, word):
    picture(tmp_path / "PIE" / "a.jpg", "blue", (512, 512))
    path = as_json(tmp_path / "PIE" / "mapping_file.json", {"1": pie("a.jpg", blended_word=word)})
    with pytest.raises(
        UserError, match=r"entry '1': blended_word should be a word of the source prompt and one of the"
    ):
        read_edit_list(path)


def test_pie_bench_plus_plus_is_refused(tmp_path):
    entry = {"image_path": "a.jpg", "source_prompt": "a cat", "target_prompt": "a dog", "edit_action": {}, "mask": []}
    path = as_json(tmp_path / "mapping_file.json", {"1": entry})
    with pytest.raises(
        UserError, match=r"entry '1' has 'source_prompt', as PIE-Bench\+\+ has: the pictures of PIE-Bench"
    ):
        read_edit_list(path)


def test_command_line(folders, networks, capsys, monkeypatch):
    """Without files of LPIPS and of the structure distance; and a table by category."""
    local_clip(folders / "clip")
    options = [
        "--generated",
        str(folders / "generated"),
        "--source",
        str(folders / "source"),
        "--clip",
        str(folders / "clip"),
    ]
    main([*options, "--protocol", "pie_bench", "--output", str(folders / "out"), "--checkpoints", str(folders)])
    printed = capsys.readouterr().out
    assert "protocol pie_bench/3" in printed
    assert "official_ssim" in printed
    assert "official_structure" not in printed
    by_kind = (folders / "out" / "per_category.csv").read_text().splitlines()
    assert by_kind[0].startswith("category,n,")
    assert [line.split(",")[:2] for line in by_kind[1:]] == [["change-object", "1"], ["random", "2"]]
    rows = read_scores(folders / "out")["metrics"]
    assert rows["official_clip"]["header"] == "CLIP whole"
