"""The toy world's files: reproducible, whole, and true about what was drawn."""
import json
import os
import xml.etree.ElementTree as ElementTree
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipwsss.datasets import build_dataset
from clipwsss.errors import InputError, run_script
from clipwsss.guidance.words import load_words
from clipwsss.toy import __main__ as command
from clipwsss.toy import world as toy
from clipwsss.toy.scenes import (ALL_SUBTYPES, BACKGROUNDS, CLASSES, SUBTYPES, Scene, ScenePainter,
                                  coloured_parts, texture)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("toy") / "world"
    toy.draw_world(root, seed=3, n_train=40, n_val=12)
    return root


def contents(root: Path, only: str = "*") -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob(only) if path.is_file()}


@pytest.mark.smoke
def test_same_seed_draws_the_same_files_and_a_smaller_world_is_a_beginning(world, tmp_path):
    toy.draw_world(tmp_path / "again", seed=3, n_train=5, n_val=12)
    again, first = contents(tmp_path / "again", "*_0*"), contents(world)
    assert len(again) == 3 * 17
    assert all(first[name] == data for name, data in again.items())
    toy.draw_world(tmp_path / "other", seed=4, n_train=5, n_val=1)
    other = contents(tmp_path / "other", "*.jpg")
    assert all(first[name] != data for name, data in other.items())


def test_splits_are_disjoint_and_differ(world):
    names = {split: (world / "ImageSets" / "Segmentation" / f"{split}.txt").read_text().split()
             for split in ("train", "val")}
    assert len(names["train"]) == 40 and len(names["val"]) == 12
    assert not set(names["train"]) & set(names["val"])
    files = contents(world, "*.jpg")
    assert len(set(files.values())) == len(files) == 52


def test_tags_sizes_and_subtypes_agree_with_the_masks(world):
    for split in ("train", "val"):
        dataset = build_dataset("toy", world, split)
        assert dataset.classes == CLASSES and dataset.has_masks and not dataset.skipped
        for index, name in enumerate(dataset.names):
            mask = dataset.load_mask(index)
            assert dataset.load_image(index).size == (96, 96) and mask.shape == (96, 96) == dataset.sizes[index], name
            tags = {k + 1 for k in dataset.labels[index].nonzero().flatten().tolist()}
            assert tags and set(np.unique(mask)) - {0} == tags, name
            subtypes = dataset.subtypes(index)
            assert {CLASSES.index(label) + 1 for label in subtypes} == tags, name
            assert all(set(words) <= set(SUBTYPES[label]) for label, words in subtypes.items()), name


def test_masks_carry_the_palette_and_images_keep_their_colours(world):
    painter = ScenePainter(3, "train", toy.TOY_IMAGE_SIZE)
    scene = painter.tagged_scene()
    with Image.open(world / "JPEGImages" / "train_00000.jpg") as image:
        assert np.abs(np.asarray(image).astype(int) - scene.image).mean() < 4
    with Image.open(world / "SegmentationClassAug" / "train_00000.png") as mask:
        assert mask.mode == "P" and mask.getpalette()[3:6] == [128, 0, 0]
        assert np.array_equal(np.asarray(mask) > 0, scene.instances > 0)


def on_own_background(scene: Scene) -> bool:
    return scene.backgrounds[0] == BACKGROUNDS[CLASSES.index(toy.CLASS_OF[scene.objects[0]])]


def test_classes_mostly_stand_on_their_own_background():
    painter = ScenePainter(0, "train", 48)
    scenes = [painter.tagged_scene() for _ in range(400)]
    own = [on_own_background(scene) for scene in scenes]
    assert 0.70 < np.mean(own) < 0.86  # .75 and an eighth of the rest
    assert {len(scene.objects) for scene in scenes} == {1, 2, 3}
    assert {word for scene in scenes for word in scene.objects} == set(ALL_SUBTYPES)


def test_free_scenes_have_no_company_to_learn_from():
    painter = ScenePainter(0, "clip", 64)
    scenes = [painter.free_scene() for _ in range(600)]
    alone = [scene for scene in scenes if len(scene.objects) == 1]
    assert 0.05 < np.mean([on_own_background(scene) for scene in alone]) < 0.22  # an eighth
    assert {len(scene.objects) for scene in scenes} == {0, 1, 2}
    assert all(scene.image.shape == (64, 64, 3) for scene in scenes)
    assert all(scene.instances.max() <= len(scene.objects) for scene in scenes)


def test_every_subtype_has_polygons_within_its_frame():
    for subtype in ALL_SUBTYPES:
        parts = coloured_parts(subtype, np.random.default_rng(0))
        assert len(parts) >= 4, subtype
        for corners, colour in parts:
            assert corners.shape[1] == 2 and np.abs(corners).max() <= 1.05, subtype
            assert len(colour) == 3 and all(type(value) is int and 0 <= value <= 255 for value in colour), subtype


def test_textures_are_tiles_that_vary():
    for background in BACKGROUNDS:
        rng = np.random.default_rng(0)
        first, second = texture(background, rng, 100), texture(background, rng, 100)
        assert first.shape == (100, 100, 3) and first.dtype == np.uint8, background
        assert first.std() > 3 and not np.array_equal(first, second), background


def test_a_wholly_hidden_object_is_no_tag(tmp_path):
    for folder in ("JPEGImages", "SegmentationClassAug", "Annotations"):
        (tmp_path / folder).mkdir()
    instances = np.zeros((8, 6), np.uint8)
    instances[2:4, 1:3] = 2
    image = np.zeros((8, 6, 3), np.uint8)
    scene = Scene(image, instances, np.zeros_like(instances), ["ship", "van"], ["sky"])
    toy._write_scene(tmp_path, "x", scene)
    annotation = ElementTree.parse(tmp_path / "Annotations" / "x.xml")
    assert [item.findtext("subtype") for item in annotation.iter("object")] == ["van"]
    with Image.open(tmp_path / "SegmentationClassAug" / "x.png") as mask:
        assert np.array_equal(np.unique(mask), [0, 1 + CLASSES.index("car")])


def test_an_interrupted_drawing_leaves_nothing(tmp_path, monkeypatch):
    painted = iter(range(3))

    def stop(painter):
        if next(painted) == 2:
            raise KeyboardInterrupt
        return ScenePainter.free_scene(painter)

    monkeypatch.setattr(ScenePainter, "tagged_scene", stop)
    with pytest.raises(KeyboardInterrupt):
        toy.draw_world(tmp_path / "world", n_train=5, n_val=5)
    assert not list(tmp_path.iterdir())


def test_only_its_own_abandoned_drawings_are_removed(tmp_path):
    old = [".data.drawing.123", ".data.backup", ".data.2024", ".data.drawing.12a", ".other.drawing.123"]
    for name in (*old, ".data.drawing.456"):  # the last is of a process that may still draw
        (tmp_path / name / "JPEGImages").mkdir(parents=True)
    for name in old:
        os.utime(tmp_path / name, (0, 0))
    toy.draw_world(tmp_path / "data", n_train=1, n_val=1)
    assert {path.name for path in tmp_path.iterdir()} == {*old[1:], ".data.drawing.456", "data"}


def test_co_occurrence_is_the_share_of_classes_on_their_own_background():
    def shares_on_own_background(co_occurrence):
        painter = ScenePainter(0, "train", 32, co_occurrence)
        own = []
        for _ in range(60):
            scene = painter.tagged_scene()
            classes = {toy.CLASS_OF[subtype] for subtype in scene.objects}
            own += [BACKGROUNDS[toy.CLASSES.index(name)] in scene.backgrounds for name in classes]
        return np.mean(own)

    assert shares_on_own_background(0.0) < 0.5 and shares_on_own_background(1.0) == 1


def test_the_smallest_object_may_be_smaller():
    def shares(smallest):
        painter = ScenePainter(0, "train", 64, smallest=smallest)
        return [(scene.instances == 1).mean() for scene in (painter.tagged_scene() for _ in range(80))]

    usual, mixed = shares(0.24), shares(0.08)
    assert min(mixed) < 0.5 * min(usual) and max(mixed) > 0.7 * max(usual)


def test_dataset_draws_a_missing_or_empty_root_and_refuses_any_other(tmp_path, monkeypatch, world):
    monkeypatch.setattr("clipwsss.datasets.draw_world", partial(toy.draw_world, n_train=3, n_val=2))
    assert len(build_dataset("toy", tmp_path / "new" / "world", "train")) == 3
    (tmp_path / "empty").mkdir()
    assert len(build_dataset("toy", tmp_path / "empty", "val")) == 2
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(InputError, match="mine: already exists.*toy.json"):
        build_dataset("toy", tmp_path / "mine", "train")
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep"
    with pytest.raises(InputError, match="test.*train, val"):
        build_dataset("toy", world, "test")


def test_command_draws_and_names_bad_options(tmp_path, capsys):
    draw = ["--draw", str(tmp_path / "world"), "--seed", "5", "--n-train", "2", "--n-val", "1"]
    assert run_script(partial(command.main, draw)) == 0
    recipe = json.loads((tmp_path / "world" / "toy.json").read_text())
    assert recipe == {"seed": 5, "n_train": 2, "n_val": 1, "co_occurrence": 0.75, "smallest": 0.24}
    before = contents(tmp_path)
    assert run_script(partial(command.main, draw)) == 2
    assert "world: already exists" in capsys.readouterr().err and contents(tmp_path) == before
    assert run_script(partial(command.main, ["--draw", str(tmp_path / "none"), "--n-val", "0"])) == 2
    assert "not a whole number of at least 1" in capsys.readouterr().err and not (tmp_path / "none").exists()


def test_prompt_words_are_the_worlds_own():
    words = load_words("toy", CLASSES)
    assert words.candidates == [[name, *SUBTYPES[name]] for name in CLASSES]
    assert words.background == BACKGROUNDS
