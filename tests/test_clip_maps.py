"""CLIP's own maps against a plain loop over tags, batched = single, sizes, precisions, files and refusals."""
import copy
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import train_cam
from clipwsss.cams.cam_files import list_cams, read_cam
from clipwsss.cams.clip_maps import class_affinity, clip_maps, grad_cam, patch_maps, round_up
from clipwsss.clip import CLIP, Architecture
from clipwsss.errors import InputError
from clipwsss.toy.clip import load_toy_clip
from clipwsss.toy.world import draw_world


@torch.no_grad()
def random_clip(vision=(10, 128, 16), sharpness=3.0):
    """A CLIP of 64 x 64 pixels with sharp attention and no parameter at its neutral start."""
    torch.manual_seed(0)
    layers, width, patch = vision
    clip = CLIP(Architecture(32, 64, layers, width, patch, 77, 100, 64, 1, 1))
    for name, value in clip.visual.state_dict().items():
        if value.ndim == 1 and value.is_floating_point():
            value.add_(0.1 * torch.rand_like(value))
        if name.endswith("in_proj_weight"):
            value.mul_(sharpness)
        if name.endswith("bn3.weight"):
            value.add_(0.2)
    clip.logit_scale.fill_(3.0)
    return clip.eval().requires_grad_(False)


def features(*shape):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))), dim=-1)


def pictures(count, height, width):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(height))


def stretched(m):
    m = m - m.min()
    return m / (m.max() + 1e-7)


def plain_grad_cam(clip, image, text, backgrounds):
    """GradCAM and attention of one image by torch's own attention layer, one forward and backward for each tag."""
    tower = clip.visual
    layers = []
    for block in tower.transformer.resblocks:
        layer = torch.nn.MultiheadAttention(128, 2, batch_first=True)
        layer.load_state_dict(block.attn.state_dict())
        layers.append(layer)
    patches = F.conv2d(image, tower.conv1.weight, stride=16)
    h, w = patches.shape[-2:]
    table = tower.positional_embedding[1:].reshape(4, 4, 128).permute(2, 0, 1)[None]
    table = F.interpolate(table, (h, w), mode="bilinear")[0].permute(1, 2, 0).reshape(h * w, 128)
    tokens = torch.cat([tower.class_embedding[None] + tower.positional_embedding[:1],
                        patches[0].reshape(128, h * w).T + table])[None]
    x = tower.ln_pre(tokens)

    def run(block, layer, x, normed):
        mixed, weights = layer(normed, normed, normed, need_weights=True)
        x = x + mixed
        hidden = block.mlp.c_fc(block.ln_2(x))
        return x + block.mlp.c_proj(hidden * torch.sigmoid(1.702 * hidden)), weights[0, 1:, 1:].detach()

    seen = []
    blocks = list(zip(tower.transformer.resblocks, layers))
    for block, layer in blocks[:-1]:
        with torch.no_grad():
            x, weights = run(block, layer, x, block.ln_1(x))
        seen.append(weights)
    maps = []
    for tag in range(len(text)):
        block, layer = blocks[-1]
        normed = block.ln_1(x).requires_grad_(True)
        out, weights = run(block, layer, x, normed)
        feature = F.normalize(tower.ln_post(out)[0, 1:].mean(0) @ tower.proj, dim=0)
        logits = clip.logit_scale.exp() * torch.cat([text, backgrounds]) @ feature
        logits.softmax(0)[tag].backward()
        channels = normed.grad[0, 1:].mean(0)
        maps.append(stretched(stretched((normed[0, 1:].detach() * channels).sum(1).clamp(min=0).reshape(h, w))))
    return torch.stack(maps), torch.stack([*seen, weights][-8:]).mean(0)


def plain_affinity(one, attention, box):
    """The refined map of one class: parts by flood fill, their boxes, and a matrix product."""
    for _ in range(3):
        attention = attention / attention.sum(0)
        attention = (attention.T / attention.sum(1)).T
    attention = (attention + attention.T) / 2
    level = (one * 255).int()
    bright = {(r, c) for r, c in (level > int(box * int(level.max()))).nonzero().tolist()}
    mask = torch.zeros_like(one)
    while bright:
        part, waiting = set(), [bright.pop()]
        while waiting:
            r, c = waiting.pop()
            part.add((r, c))
            near = {(r + i, c + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & bright
            bright -= near
            waiting += near
        rows, columns = zip(*part)
        for r in range(min(rows), min(max(rows), one.shape[0] - 2) + 1):
            for c in range(min(columns), min(max(columns), one.shape[1] - 2) + 1):
                mask[r, c] = 1
    return (torch.linalg.matrix_power(attention, 2) * mask.flatten() @ one.flatten()).reshape(one.shape)


@pytest.mark.smoke
@pytest.mark.parametrize("height, width, tags, behind", [(64, 64, 1, 4), (48, 96, 3, 5), (112, 80, 2, 0)])
def test_a_vits_maps_equal_a_plain_loop_over_tags(height, width, tags, behind):
    clip = random_clip()
    image = clip.normalise(pictures(1, height, width))
    text, backgrounds = features(tags, 32), features(behind, 32)
    expected, attention = plain_grad_cam(clip, image, text, backgrounds)
    maps, found = grad_cam(clip, image, torch.zeros(tags, dtype=torch.long), text, backgrounds)
    assert found.shape == (1, height * width // 256, height * width // 256)
    torch.testing.assert_close(found[0], attention, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(maps, expected, atol=1e-4, rtol=0)
    assert (maps.amax((1, 2)) > 0.9).all()
    for box in (0.4, 0.7):
        refined = class_affinity(expected, attention, box)
        plain = torch.stack([plain_affinity(one, attention, box) for one in expected])
        torch.testing.assert_close(refined, plain, atol=1e-6, rtol=1e-5)


def test_affinity_by_hand():
    """Even attention spreads what lies in the boxes over all positions; the last row and column are no box's."""
    attention = torch.full((12, 12), 1 / 12)
    one = torch.zeros(3, 4)
    one[0, 0], one[0, 2], one[1, 1], one[2, 3] = 1.0, 0.5, 0.2, 0.9  # 0.2 is dark, and box 0.7 leaves 0.5 out
    found = class_affinity(torch.stack([one, torch.zeros(3, 4)]), attention, 0.4)
    torch.testing.assert_close(found[0], torch.full((3, 4), 1.5 / 12))
    assert found[1].eq(0).all()
    torch.testing.assert_close(class_affinity(one[None], attention, 0.7)[0], torch.full((3, 4), 1.0 / 12))
    row = torch.tensor([[[0.0, 1.0, 0.5]]])  # an image of up to 16 pixels in height has one row of patches
    for one in (row, row.mT):
        found = class_affinity(one, torch.full((3, 3), 1 / 3), 0.6)
        torch.testing.assert_close(found, torch.full_like(one, 1 / 3))
    ring = torch.ones(5, 5)
    ring[1:4, 1:4] = 0.3  # the box of a ring holds what the ring surrounds
    found = class_affinity(ring[None], torch.full((25, 25), 1 / 25), 0.4)
    torch.testing.assert_close(found[0], torch.full((5, 5), (7 + 9 * 0.3) / 25))


def plain_patch_maps(clip, image, text, backgrounds):
    """Shares of the texts at every position of a ResNet's last map, three sizes and their mirror images."""
    height, width = image.shape[-2:]
    pool, total, seen = clip.visual.attnpool, 0, []
    hook = clip.visual.layer4.register_forward_hook(lambda _, inputs, output: seen.append(output[0]))
    for scale in (1.5, 2, 3):
        factor = scale * clip.input_resolution / min(height, width)
        size = [max(1, round(side * factor / 32)) * 32 for side in (height, width)]
        view = clip.normalise(F.interpolate(image, size, mode="bilinear", antialias=True))
        for turned in (False, True):
            clip.visual(view.flip(-1) if turned else view, patches=True)
            shares = torch.empty(len(text), *seen[-1].shape[1:])
            for r in range(shares.shape[1]):
                for c in range(shares.shape[2]):
                    feature = F.normalize(pool.c_proj(pool.v_proj(seen[-1][:, r, c])), dim=0)
                    logits = clip.logit_scale.exp() * torch.cat([text, backgrounds]) @ feature
                    shares[:, r, c] = logits.softmax(0)[:len(text)]
            shares = shares.flip(-1) if turned else shares
            total = total + F.interpolate(shares[None], (height, width), mode="bilinear")[0]
    hook.remove()
    return torch.stack([stretched(one) for one in total])


@torch.no_grad()
@pytest.mark.parametrize("size", [(48, 70), (96, 64)])
def test_a_resnets_maps_equal_a_plain_loop_over_positions(size):
    clip = random_clip(((1, 1, 1, 1), 12, None))
    image = pictures(1, *size)
    text, backgrounds = features(2, 32), features(3, 32)
    found = clip_maps(clip, image, torch.tensor([0, 0]), text, backgrounds)
    torch.testing.assert_close(found, plain_patch_maps(clip, image, text, backgrounds), atol=1e-4, rtol=0)
    assert found.shape == (2, *size) and found.amin() == 0 and found.amax() > 0.99


def test_a_long_image_has_no_more_positions_than_others(monkeypatch):
    clip = random_clip(((1, 1, 1, 1), 12, None))
    seen = []
    encode = clip.encode_image

    def recorded(images, **options):
        seen.append(images.shape[-2] * images.shape[-1] // 32 ** 2)
        return encode(images, **options)

    monkeypatch.setattr(clip, "encode_image", recorded)
    found = clip_maps(clip, pictures(1, 2, 900), torch.tensor([0]), features(1, 32), features(3, 32))
    assert found.shape == (1, 2, 900) and found.amax() > 0.99
    assert max(seen) <= 2400 and len(seen) == 6


@pytest.mark.parametrize("vision", [(10, 128, 16), ((1, 1, 1, 1), 12, None)])
def test_batched_equals_single_and_backgrounds_may_be_each_pairs_own(vision):
    clip = random_clip(vision)
    images = pictures(3, 57, 75)
    image_index, text = torch.tensor([0, 0, 2]), features(3, 32)  # the second image has no tag
    shared, own = features(4, 32), features(3, 4, 32)
    found = clip_maps(clip, images, image_index, text, shared)
    assert found.shape == (3, 57, 75) and 0 <= found.amin() and found.amax() <= 1
    singly = [clip_maps(clip, images[:1], torch.tensor([0, 0]), text[:2], shared),
              clip_maps(clip, images[2:], torch.tensor([0]), text[2:], shared)]
    torch.testing.assert_close(found, torch.cat(singly), atol=2e-3, rtol=0)
    torch.testing.assert_close(found, clip_maps(clip, images, image_index, text, shared.expand(3, -1, -1)))
    by_pair = clip_maps(clip, images, image_index, text, own)
    assert (by_pair - found).abs().max() > 0.05
    for pair in (0, 1):  # a pair's map depends on its own backgrounds alone
        one = clip_maps(clip, images[:1], torch.tensor([0, 0]), text[:2], own[pair])
        torch.testing.assert_close(by_pair[pair], one[pair], atol=2e-3, rtol=0)
    assert clip_maps(clip, images, torch.empty(0, dtype=torch.long), text[:0], shared).shape == (0, 57, 75)
    alone = clip_maps(clip, images[:1], torch.tensor([0]), text[:1], shared[:0])  # all of one tag everywhere
    assert alone.eq(0).all()


def test_half_precision():
    clip = random_clip(sharpness=1.0)
    image_index, text, backgrounds = torch.tensor([0, 1, 1]), features(3, 32), features(4, 32)
    images = pictures(2, 64, 96)
    exact, attention = grad_cam(clip, images, image_index, text, backgrounds)
    bfloat16, float16 = copy.deepcopy(clip), copy.deepcopy(clip)
    bfloat16.visual.bfloat16()
    float16.visual.half()
    for network, bf16 in ((clip, True), (bfloat16, False), (float16, False)):
        maps, seen = grad_cam(network, images, image_index, text, backgrounds, bf16)
        assert maps.dtype == seen.dtype == torch.float32 and 0 < (maps - exact).abs().mean() < 0.03
        assert 0 < (seen - attention).abs().max() < 0.01 * attention.max()
        final = clip_maps(network, images, image_index, text, backgrounds, bf16=bf16)
        assert final.dtype == torch.float32 and final.isfinite().all()
    toy = load_toy_clip()
    arguments = (images[:1], torch.tensor([0, 0]), features(2, 128), features(4, 128))
    exact = clip_maps(toy, *arguments)
    assert 0 < (clip_maps(toy, *arguments, bf16=True) - exact).abs().mean() < 0.05


def test_images_are_rounded_up_as_pillow_does_it():
    rng = np.random.default_rng(0)
    pixels = np.asarray(Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8)).resize((75, 57)))
    expected = np.asarray(Image.fromarray(pixels).resize((80, 64), Image.BICUBIC))
    found = round_up(torch.from_numpy(pixels / np.float32(255)).permute(2, 0, 1)[None], 16)
    levels = (found[0].permute(1, 2, 0) * 255).round().numpy().astype(int)
    different = np.abs(levels - expected)
    assert different.max() <= 1 and (different > 0).mean() < 0.01
    image = torch.rand(1, 3, 32, 48)
    assert round_up(image, 16) is image
    assert round_up(torch.zeros(1, 3, 640, 640), 14).shape[-2:] == (644, 644)
    large = round_up(torch.zeros(1, 3, 960, 1280), 16).shape[-2:]
    assert large == (42 * 16, 56 * 16) and 42 * 56 <= 2400  # a photograph keeps its shape
    assert round_up(torch.zeros(1, 3, 8, 40000), 16).shape[-2:] == (16, 2400 * 16)


def test_a_tower_of_another_kind_is_refused():
    clip = random_clip((2, 128, 16))
    clip.visual = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3))
    with pytest.raises(InputError, match="neither a ViT with a class token nor a ResNet .* use another --clip"):
        clip_maps(clip, pictures(1, 64, 64), torch.tensor([0]), features(1, 32), features(2, 32))


# ---- train_cam.py --generator clip

@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    draw_world(root / "toy" / "data", 0, 6, 2)
    return root


def make(runs, out, *flags):
    argv = ["--dataset", "toy", "--runs", str(runs), "--out", str(out), "--device", "cpu", "--generator", "clip"]
    return train_cam.main([*argv, *flags])


def test_files_report_and_resumption(runs, tmp_path, capsys):
    assert make(runs, tmp_path / "all") == 0
    told = capsys.readouterr().out
    assert "classifier mAP: none, because --generator clip has no classifier" in told
    assert "8 background words" in told and "best CAM mIoU" in told
    result = json.loads((tmp_path / "all" / "result.json").read_text())
    assert "mAP" not in result and result["miou"] > 20
    assert not (tmp_path / "all" / "generator.pt").exists() and (tmp_path / "all" / "report.html").exists()
    cams = tmp_path / "all" / "cams"
    names = list_cams(cams)
    assert len(names) == 6
    assert read_cam(cams, names[0]).cam.shape[1:] == (24, 24)
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in cams.iterdir()}
    missing = cams / f"{names[2]}.npz"
    missing.unlink()
    assert make(runs, tmp_path / "all", "--resume") == 0
    after = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in cams.iterdir()}
    assert [path for path in before if after[path] != before[path]] == [missing]
    rewritten = read_cam(cams, names[2]).cam
    assert make(runs, tmp_path / "all", "--overwrite") == 0
    assert np.abs(read_cam(cams, names[2]).cam - rewritten).max() < 2e-3
    assert make(runs, tmp_path / "single", "--cam-batch-size", "1", "--cam-format", "full") == 0
    for name in names:
        found = read_cam(tmp_path / "single" / "cams", name)
        assert np.abs(found.cam - read_cam(cams, name).cam).max() < 2e-3 and found.high_res.shape[1:] == (96, 96)


def test_flags_that_mean_nothing_are_refused(runs, tmp_path):
    for flags, message in ((["--epochs", "3"], "--epochs: --generator clip trains nothing"),
                           (["--batch-size", "3"], "--batch-size: --generator clip trains nothing"),
                           (["--precision", "bf16"], "--precision: --generator clip trains nothing"),
                           (["--val-split", "val"], "--val-split: --generator clip trains nothing"),
                           (["--box", "1"], "--box: .*0.99"),  # no part of a map exceeds its maximum
                           (["--no-flip"], "--flip: --generator clip trains nothing"),
                           (["--init", "g.pt"], "--init: --generator clip trains nothing"),
                           (["--generator", "resnet", "--box", "0.4"], "--box: --generator resnet does without")):
        with pytest.raises(InputError, match=message):
            make(runs, tmp_path, *flags)
    with pytest.raises(InputError, match="neither a file nor a published CLIP"):
        make(runs, tmp_path, "--clip", "ViT-Q/99")
    with pytest.raises(InputError, match="write {} for the class"):
        make(runs, tmp_path, "--template", "a photo")
    assert not list(tmp_path.iterdir())


def test_the_toy_clip_sees_its_objects(runs):
    """The best map of a tagged object lies on it: brighter inside its mask than outside."""
    clip = load_toy_clip()
    dataset = train_cam.open_dataset(train_cam.parse(train_cam.get_parser(), ["--dataset", "toy", "--runs", str(runs)],
                                                     "train_cam"))
    names, listed = train_cam.load_clip_words("toy", dataset.classes)
    text = train_cam.encode_words(clip, "a photo of {}.", names)
    behind = train_cam.encode_words(clip, "a photo of {}.", listed)
    better = []
    for index in range(len(dataset)):
        sample = dataset[index]
        classes = sample.label.nonzero()[:, 0]
        maps = patch_maps(clip, sample.image[None], torch.zeros_like(classes), text[classes], behind)
        for one, label in zip(maps, classes.tolist()):
            better.append(float(one[sample.mask == label + 1].mean() - one[sample.mask != label + 1].mean()))
    assert sum(value > 0 for value in better) >= 0.8 * len(better) and sum(better) / len(better) > 0.15
