"""The submission archive: the checked files at their places; what the server would refuse."""
import tarfile

import numpy as np
import pytest
from PIL import Image

from clipwsss.errors import InputError
from clipwsss.pictures import voc_palette, write_mask
from clipwsss.segment.submission import FOLDER, pack


class Split:
    """The part of a data set that a submission uses."""
    names, classes = ["a", "b"], ["cat", "dog"]

    def __len__(self) -> int:
        return 2

    def image_size(self, index: int) -> tuple[int, int]:
        return (4, 6) if index else (5, 3)


def test_submission_archive_holds_the_checked_files(tmp_path):
    folder, palette = tmp_path / "predictions", voc_palette()
    write_mask(folder / "a.png", np.full((5, 3), 2, np.uint8), palette)
    write_mask(folder / "b.png", np.ones((4, 6), np.uint8), palette)
    write_mask(folder / "elsewhere.png", np.ones((4, 6), np.uint8), palette)
    pack(Split(), folder, tmp_path / "submit" / "results.tgz")
    with tarfile.open(tmp_path / "submit" / "results.tgz") as packed:
        assert sorted(packed.getnames()) == [f"{FOLDER}/a.png", f"{FOLDER}/b.png"]
        with Image.open(packed.extractfile(f"{FOLDER}/a.png")) as file:
            assert file.mode == "P" and np.array_equal(np.array(file), np.full((5, 3), 2))
    for spoil, message in ((np.zeros((6, 4), np.uint8), "6 x 4, its image is 4 x 6"),
                           (np.full((4, 6), 255, np.uint8), "value 255; valid are 0..2")):
        write_mask(folder / "b.png", spoil, palette)
        with pytest.raises(InputError, match=f"b.png: {message}"):
            pack(Split(), folder, tmp_path / "bad" / "results.tgz")
    (folder / "b.png").unlink()
    with pytest.raises(InputError, match="b.png: missing"):
        pack(Split(), folder, tmp_path / "bad" / "results.tgz")
    with pytest.raises(InputError, match="takes .tgz"):
        pack(Split(), folder, tmp_path / "bad" / "results.zip")
    assert not (tmp_path / "bad").exists()
