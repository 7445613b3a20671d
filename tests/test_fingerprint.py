"""Fingerprints follow contents, names and order of files, not times and places."""
import os

from clipwsss.fingerprint import TAIL, digest, fingerprint


def test_a_file_is_known_by_its_size_and_end(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"a" * 3 * TAIL)
    two.write_bytes(b"a" * 3 * TAIL)
    os.utime(two, (1, 1))
    assert fingerprint(one) == fingerprint(str(two)) and len(fingerprint(one)) == 16
    two.write_bytes(b"a" * (3 * TAIL - 1) + b"b")
    assert fingerprint(one) != fingerprint(two)
    two.write_bytes(b"a" * (3 * TAIL + 1))
    assert fingerprint(one) != fingerprint(two)


def test_a_folder_is_its_visible_files(tmp_path):
    folder = tmp_path / "cams"
    (folder / "deeper").mkdir(parents=True)
    empty = fingerprint(folder)
    for name in ("b", "a"):
        (folder / name).write_text(name)
    both = fingerprint(folder)
    (folder / ".hidden").write_text("x")
    (folder / "deeper" / "c").write_text("x")
    assert fingerprint(folder) == both != empty
    folder.rename(tmp_path / "moved")
    assert fingerprint(tmp_path / "moved") == both
    (tmp_path / "moved" / "b").rename(tmp_path / "moved" / "c")
    assert fingerprint(tmp_path / "moved") != both


def test_values_have_borders():
    assert digest([1, 23]) != digest([12, 3]) and digest(["a", None]) == digest(("a", None))
