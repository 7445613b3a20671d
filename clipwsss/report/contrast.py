"""Classes whose text lets CLIP see nothing: their maps have no contrast in many of their images."""
from pathlib import Path

from ..cams.cam_files import read_cam
from ..datasets import TagDataset
from ..distributed import gather, shard

COVERED = 0.9  # a map that exceeds half its maximum in more than this part of the image has no contrast
OFTEN = 0.2  # part of a class's images in which its map must have no contrast for the class to be named
NAMES_ADVICE = ("Try another --template, another name for it in classes.txt, or train_prompt.py --maps clip, "
                "which takes other words (--synonyms, --background-words FILE)")  # of train_cam.py
WORDS_ADVICE = ("Try other words for it (classes.txt or --synonyms), another --map-template, or background "
                "words that do not mean the class (--background-words FILE)")
ALONE_ADVICE = ("With --background-prompt none, CLIP compares nothing in an image of one tag: give "
                "--background-prompt list, or list and --background-words FILE")


def contrast_notes(dataset: TagDataset, cams: Path, advice: str) -> list[str]:
    """A line for each class that CLIP often does not see, by the CAM files of its own maps.

    A map without contrast is 0 in the whole image, or stands out nowhere. advice: what to try, the end of
    each line. InputError names a bad file.
    """
    maps = [0] * len(dataset.classes)  # of each class
    flat = [0] * len(dataset.classes)  # those without contrast
    own_part = shard(range(len(dataset)))
    for index in own_part:
        file = read_cam(cams, dataset.names[index])
        for key, cam in zip(file.keys.tolist(), file.cam):
            highest = cam.max()
            maps[key] += 1
            flat[key] += bool(highest < 0.5 or (cam > highest / 2).mean() > COVERED)
    maps = [sum(counts) for counts in zip(*gather(maps))]
    flat = [sum(counts) for counts in zip(*gather(flat))]
    notes = []
    for label, of_class, without in zip(dataset.classes, maps, flat):
        if without > OFTEN * of_class:
            notes.append(f"CLIP sees nothing of {label!r} in {without} of {of_class} images: its maps have "
                         f"no contrast there. {advice}.")
    return notes
