"""Patch and window features against plain encodings, learned prompts drawn and named, bad input in one line."""
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from clipwsss.guidance import prompt_pictures
from clipwsss.errors import run_script
from clipwsss.guidance.regions import load_clip
from clipwsss.guidance.prompts import LearnedPrompt, save_learned
from clipwsss.guidance.words import encode_words
from clipwsss.toy.world import draw_world


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """The toy CLIP and two images."""
    root = tmp_path_factory.mktemp("toy") / "world"
    draw_world(root, 0, 2, 1)
    return load_clip("toy", "cpu"), sorted((root / "JPEGImages").glob("train*.jpg"))


def square(clip, image):
    return F.interpolate(image[None], (clip.input_resolution,) * 2, mode="bilinear", antialias=True)


def test_patches_are_clips_own(toy, tiny_clip):
    image = torch.rand(3, 30, 50, generator=torch.Generator().manual_seed(0))
    for clip in (toy[0], tiny_clip):
        plain = F.normalize(clip.encode_image(square(clip, image), patches=True)[0], dim=-1)
        assert torch.allclose(prompt_pictures.patch_features(clip, image), plain, atol=1e-5)
        mean, deviation = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None]
        shown = F.interpolate(((image - mean) / deviation)[None], (clip.input_resolution,) * 2, mode="bilinear",
                              align_corners=True)  # as the releases train
        plain = F.normalize(clip.encode_image(shown, normalised=True, patches=True)[0], dim=-1)
        assert torch.allclose(prompt_pictures.patch_features(clip, image, "release"), plain, atol=1e-5)


def test_windows_are_masked_images(toy):
    clip, image = toy[0], torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(2))
    found = prompt_pictures.window_features(clip, image, steps=3, width=0.2)
    place = (torch.arange(64) + 0.5) / 64
    mask = torch.exp(-(place[:, None] - 1 / 6) ** 2 / 0.08) * torch.exp(-(place - 5 / 6) ** 2 / 0.08)  # row 0, column 2
    plain = F.normalize(clip.encode_image(clip.normalise(image[None]) * mask, normalised=True), dim=-1)[0]
    assert found.shape == (3, 3, 128) and torch.allclose(found[0, 2], plain, atol=1e-4)


def test_water_is_found_where_the_water_is(toy):
    """Image 0 has water above and a road below; the maps of their words must say so."""
    clip, files = toy
    text = encode_words(clip, "a photo of {}.", ["water", "road"])
    image = prompt_pictures.pil_to_tensor(prompt_pictures.read_image(files[0])).float() / 255
    for features in (prompt_pictures.patch_features(clip, image), prompt_pictures.window_features(clip, image, steps=4)):
        water, road = (features @ text.T).unbind(-1)
        assert water[0].mean() > road[0].mean() + 0.3 and road[-1].mean() > water[-1].mean() + 0.3


def test_pictures_and_words_of_learned_prompts(toy, tmp_path, capsys):
    clip, files = toy
    prompts, words = tmp_path / "background_prompts.pt", tmp_path / "words.txt"
    learned = LearnedPrompt(clip, "a photo of [C:{}].", ["water", "sky"])
    learned.names = ["boat", "plane"]
    save_learned(learned, clip, prompts)
    words.write_text("water\nsky\nroad\n")
    argv = ["--image", *map(str, files), "--text", "a photo of boat.", "--prompts", str(prompts), "--words", str(words),
            "--clip", "toy", "--n", "2", "--out", str(tmp_path / "out")]
    assert prompt_pictures.main(argv) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("a photo of boat.: water ") and lines[1].startswith("background: boat: water 1.00, ")
    assert lines[2].startswith("background: plane: sky 1.00, ")
    sheet = Image.open(tmp_path / "out" / "prompt_pictures.png")
    assert sheet.width > 4 * 192 and len(sheet.getcolors(sheet.width * sheet.height)) > 1000
    (tmp_path / "bad.jpg").write_text("x")
    torch.save({"kind": "learned prompt", "config": {"text": torch.zeros(2, 3), "names": ["a", "b"]}, "state_dict": {}},
               tmp_path / "other.pt")
    for flags, message in ((["--image", str(tmp_path / "bad.jpg"), "--text", "boat"], "bad.jpg: not a readable image"),
                           (["--image", str(files[0]), "--prompts", str(tmp_path / "other.pt")], "a CLIP of 3 dimensions; this CLIP has 128"),
                           (["--image", str(files[0]), "--text", "a zebra"], "not 'zebra'"),
                           (["--image", str(files[0])], "give texts"), (["--text", "boat"], "what to compare them with"),
                           (["--image", str(files[0]), "--text", "boat", "--n", "0"], "'0' is not a whole number")):
        assert run_script(lambda: prompt_pictures.main([*flags, "--clip", "toy"])) == 2
        error = capsys.readouterr().err
        assert message in error and len(error.splitlines()) == 1
