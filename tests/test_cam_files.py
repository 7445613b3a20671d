"""CAM files: every format keeps its values, no pickle runs code, and files are compared with their images."""
import collections
import io
import os
import pickle
import warnings

import numpy as np
import pytest
import torch

from clipwsss.cams.cam_files import CamFile, check_cam, list_cams, read_cam, resize_cam, write_cam
from clipwsss.errors import InputError

KEYS = np.array([2, 7])


def maps(shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((2, *shape)).astype(np.float32)


def save_pickled(path, value, protocol: int = 3) -> None:
    """As numpy.save does for objects, with the protocol chosen."""
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
        array = np.empty((), object)
        array[()] = value
        pickle.dump(array, file, protocol=protocol)


@pytest.mark.smoke
def test_npz_round_trip(tmp_path):
    cam = maps((5, 9))
    path = write_cam(tmp_path, "a.b", KEYS, torch.from_numpy(cam))
    file = read_cam(tmp_path, "a.b")
    assert path.name == "a.b.npz" and list_cams(tmp_path) == ["a.b"] and os.listdir(tmp_path) == ["a.b.npz"]
    assert file.keys.dtype == np.int64 and file.keys.tolist() == [2, 7] and file.high_res is None
    assert file.cam.dtype == np.float32 and np.array_equal(file.cam, cam.astype(np.float16))
    with np.load(path, allow_pickle=False) as stored:
        assert stored["cam"].dtype == np.float16


def test_irn_round_trip_as_irn_reads_it(tmp_path):
    cam, high_res = maps((5, 9)), maps((17, 35))
    write_cam(tmp_path, "a", torch.tensor([2, 7]), cam, fmt="irn", high_res=high_res)
    theirs = np.load(tmp_path / "a.npy", allow_pickle=True).item()
    assert theirs["keys"].dtype == torch.int64 and theirs["cam"].dtype == torch.float32
    assert theirs["keys"].tolist() == [2, 7] and np.array_equal(theirs["cam"].numpy(), cam)
    assert isinstance(theirs["high_res"], np.ndarray) and np.array_equal(theirs["high_res"], high_res)
    file = read_cam(tmp_path, "a")
    assert file.keys.tolist() == [2, 7]
    assert np.array_equal(file.cam, cam) and np.array_equal(file.high_res, high_res)


def test_every_protocol_and_value_type(tmp_path):
    cam = torch.rand(2, 4, 6)
    values = [(torch.tensor([0, 1]), cam), (np.array([0, 1]), cam.numpy()), ([0, 1], cam.half()),
              (np.array([0, 1], np.int32), cam.double()), ((np.int64(0), np.int64(1)), cam.transpose(1, 2))]
    for protocol in (2, 3, 4, 5):
        for index, (keys, value) in enumerate(values):
            save_pickled(tmp_path / f"{index}.npy", {"keys": keys, "cam": value}, protocol)
            file = read_cam(tmp_path, str(index))
            assert file.keys.tolist() == [0, 1], (protocol, index)
            assert np.allclose(file.cam, np.asarray(value, np.float32)), (protocol, index)
            assert file.cam.flags.c_contiguous, (protocol, index)


def test_old_and_new_numpy_names(tmp_path):
    save_pickled(tmp_path / "new.npy", {"keys": np.array([1]), "cam": np.ones((1, 2, 2), np.float32)}, 2)
    data = (tmp_path / "new.npy").read_bytes()
    written, other = b"numpy._core", b"numpy.core"
    if written not in data:
        written, other = other, written
    (tmp_path / "old.npy").write_bytes(data.replace(written, other))
    assert written not in (tmp_path / "old.npy").read_bytes()
    assert np.array_equal(read_cam(tmp_path, "old").cam, read_cam(tmp_path, "new").cam)


def test_published_files(voc_sample):
    names = list_cams(voc_sample / "cams")
    assert len(names) == 8
    for name in names:
        file = read_cam(voc_sample / "cams", name)
        theirs = np.load(voc_sample / "cams" / f"{name}.npy", allow_pickle=True).item()
        for field in ("keys", "cam", "high_res"):
            assert np.array_equal(getattr(file, field), np.asarray(theirs[field]))
        assert resize_cam(file, file.high_res.shape[1:]) is file.high_res


def test_dictionaries_of_maps_by_class(tmp_path):
    """PSA, SEAM, MCTformer, WeakTr: {0-based class: float [H, W] at the image's size}."""
    theirs = {3: maps((9, 14))[0], 0: maps((9, 14))[1]}
    for name, keys in (("int", [3, 0]), ("numpy", [np.int64(3), np.int64(0)])):
        np.save(tmp_path / f"{name}.npy", dict(zip(keys, theirs.values())), allow_pickle=True)
        file = read_cam(tmp_path, name)
        assert file.keys.tolist() == [3, 0] and file.high_res is None
        assert np.array_equal(resize_cam(file, (9, 14)), np.stack(list(theirs.values())))
    write_cam(tmp_path, "ours", [3, 0], maps((3, 4)), "psa", file.cam)
    back = np.load(tmp_path / "ours.npy", allow_pickle=True).item()
    assert list(back) == [3, 0] and all(type(key) is int for key in back)
    assert all(np.array_equal(back[key], theirs[key]) and back[key].dtype == np.float32 for key in back)
    for bad, pattern in (({0: np.ones((2, 2)), 1: np.ones((2, 3))}, "not a readable CAM file"),
                         ({0: "x"}, "no array of numbers"), ({-1: np.ones((2, 2))}, "class numbers from 0"),
                         ({}, "no field 'keys'"), ({0: np.ones((2, 2)), "a": 1}, "no field 'keys'")):
        np.save(tmp_path / "bad.npy", bad, allow_pickle=True)
        with pytest.raises(InputError, match=f"bad.npy: .*{pattern}"):
            read_cam(tmp_path, "bad")


class Malicious:
    """Unpickles to a call."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def test_code_in_a_pickle_is_refused_and_not_run(tmp_path):
    target = tmp_path / "made"
    good = {"keys": torch.tensor([0]), "cam": torch.ones(1, 2, 2)}
    code = f"__import__('os').mkdir({str(target)!r})"
    for function, arguments in ((os.mkdir, (str(target),)), (eval, (code,)), (exec, (code,)),
                                (torch.load, (str(target),)), (np.load, (str(target), None, True)),
                                (getattr, ("", "join")), (collections.Counter, ())):
        for protocol in (2, 4):
            save_pickled(tmp_path / "bad.npy", {**good, "extra": Malicious(function, *arguments)}, protocol)
            with pytest.raises(InputError, match=r"bad.npy: its pickle asks for '[\w.]+'; only numpy arrays"):
                read_cam(tmp_path, "bad")
            assert not target.exists(), (function, protocol)


def test_code_inside_a_tensors_storage_is_not_run(tmp_path):
    """torch's own _load_from_bytes is a full torch.load; ours must not be."""
    target = tmp_path / "made"
    inner = io.BytesIO()
    torch.save(Malicious(os.mkdir, str(target)), inner, _use_new_zipfile_serialization=False)
    bad = Malicious(torch.storage._load_from_bytes, inner.getvalue())
    save_pickled(tmp_path / "bad.npy", {"keys": torch.tensor([0]), "cam": bad})
    with pytest.raises(InputError, match="bad.npy: not a readable CAM file"):
        read_cam(tmp_path, "bad")
    assert not target.exists()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.load(tmp_path / "bad.npy", allow_pickle=True)
    assert target.exists(), "the file is a real attack: numpy's reader runs it"


def test_object_arrays_in_npz_and_tensors_outside_their_storage_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", keys=np.array([0]), cam=np.array([{}], dtype=object))
    with pytest.raises(InputError, match="a.npz: not a readable CAM file"):
        read_cam(tmp_path, "a")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        storage = torch.zeros(4).storage()
    state = (storage, 0, (1, 50, 50), (2500, 50, 1), False, collections.OrderedDict())
    outside = Malicious(torch._utils._rebuild_tensor_v2, *state)
    save_pickled(tmp_path / "b.npy", {"keys": np.array([0]), "cam": outside})
    with pytest.raises(InputError, match="b.npy: not a readable CAM file"):
        read_cam(tmp_path, "b")


def test_forged_numpy_state_is_an_error_not_a_crash(tmp_path):
    """numpy's unpickling trusts a dtype's state: with the flags of objects in a number's dtype it crashes."""
    def forged(code: str, state: tuple) -> Malicious:
        dtype = Malicious(np.dtype, code, False, True)
        dtype.call += ((3, "<", None, None, None, -1, -1, 63),)
        array = Malicious(np.array(0).__reduce__()[0], np.ndarray, (0,), b"b")
        array.call += ((1, (1, 2, 2), dtype, False, state),)
        return array

    for code, data in (("f4", bytes(16)), ("f4", bytes(15)), ("O8", bytes(32)), ("O8", [1] * 4), ("V4", b"")):
        save_pickled(tmp_path / "a.npy", {"keys": np.array([0]), "cam": forged(code, data)})
        if data == bytes(16):
            assert read_cam(tmp_path, "a").cam.shape == (1, 2, 2)
        else:
            with pytest.raises(InputError, match="a.npy: not a readable CAM file"):
                read_cam(tmp_path, "a")


BAD_VALUES = [
    ({"keys": np.array([0, 1]), "cam": np.ones((1, 2, 2))}, r"keys \[2\] and cam \[1, 2, 2\] are not"),
    ({"keys": np.array([0]), "cam": np.ones((2, 2))}, r"cam \[2, 2\] are not"),
    ({"keys": np.array([0]), "cam": np.ones((1, 0, 2))}, r"cam \[1, 0, 2\] are not"),
    ({"keys": np.zeros(0, int), "cam": np.ones((0, 2, 2))}, "it holds no class"),
    ({"keys": np.array([1, 1]), "cam": np.ones((2, 2, 2))}, "are not different class numbers"),
    ({"keys": np.array([-1]), "cam": np.ones((1, 2, 2))}, "are not different class numbers"),
    ({"keys": np.array([0]), "cam": np.full((1, 2, 2), np.nan)}, "cam holds NaN or infinity"),
    ({"keys": KEYS, "cam": np.ones((2, 2, 2)), "high_res": np.full((2, 8, 8), np.inf)}, "high_res holds NaN"),
    ({"keys": KEYS, "cam": np.ones((2, 2, 2)), "high_res": np.ones((1, 8, 8))}, r"high_res \[1, 8, 8\]"),
    ({"keys": np.array([0.5]), "cam": np.ones((1, 2, 2))}, "a field is no array of numbers"),
    ({"keys": np.array([0]), "cam": np.array([["x"]])}, "(a field is no array of|an array of type 'U1')"),
    ({"keys": np.array([0]), "cam": np.ones((1, 2, 2), complex)}, "(no array of|array of type 'c16')"),
    ({"keys": np.array([0])}, "no field 'cam'; found .'keys'."),
]


def test_bad_values(tmp_path):
    for contents, pattern in BAD_VALUES:
        np.savez(tmp_path / "a.npz", **contents)
        save_pickled(tmp_path / "b.npy", contents)
        for name in ("a", "b"):
            with pytest.raises(InputError, match=rf"{name}.np[yz]: .*{pattern}"):
                read_cam(tmp_path, name)


def test_files_are_compared_with_their_image_and_data():
    def fits(shape, size, keys=(0,), n_classes=2, tags=(), high_res=None):
        file = CamFile(np.array(keys), np.ones((len(keys), *shape)), high_res)
        return check_cam(file, "a.npz", size, n_classes, tags) is file

    for shape in ((8, 10), (7, 10), (30, 40), (2, 2), (1, 1)):
        assert fits(shape, (30, 40)), shape
    for shape in ((16, 7), (16, 8), (15, 7), (15, 8)):
        assert fits(shape, (61, 30)), shape
    for shape, size in (((10, 8), (30, 40)), ((31, 41), (30, 40)), ((6, 10), (30, 40)), ((16, 9), (61, 30))):
        with pytest.raises(InputError, match=r"a.npz: maps of \[\d+, \d+\] do not fit an image of"):
            fits(shape, size)
    assert fits((8, 10), (30, 40), keys=(1,), tags=(0, 1))
    with pytest.raises(InputError, match=r"a.npz: class 2 in its keys; this data has 0\.\.1"):
        fits((8, 10), (30, 40), keys=(2,))
    with pytest.raises(InputError, match="a.npz: class 0 in its keys, the image's tags are 1"):
        fits((8, 10), (30, 40), keys=(0, 1), tags=(1,))
    with pytest.raises(InputError, match=r"a.npz: high_res is \[29, 40\], its image \[30, 40\]"):
        fits((8, 10), (30, 40), high_res=np.ones((1, 29, 40)))


def test_damaged_missing_and_doubled_files(tmp_path):
    with pytest.raises(InputError, match=r"a.npz \(or .npy\): no such CAM file"):
        read_cam(tmp_path, "a")
    for fmt, suffix in (("npz", ".npz"), ("irn", ".npy")):
        path = write_cam(tmp_path, "a", KEYS, maps((3, 3)), fmt, maps((12, 12)))
        whole = path.read_bytes()
        for length in (0, 5, 100, len(whole) // 2, len(whole) - 30):
            path.write_bytes(whole[:length])
            with pytest.raises(InputError, match=f"a{suffix}: not a readable CAM file"):
                read_cam(tmp_path, "a")
        path.unlink()
    np.save(tmp_path / "a.npy", np.ones(3))
    with pytest.raises(InputError, match=r"an array \[3\] of float64, not a dictionary"):
        read_cam(tmp_path, "a")
    save_pickled(tmp_path / "a.npy", [1, 2])
    with pytest.raises(InputError, match="holds a list, not a dictionary"):
        read_cam(tmp_path, "a")
    write_cam(tmp_path, "a", KEYS, maps((3, 3)))
    with pytest.raises(InputError, match="both are there"):
        read_cam(tmp_path, "a")


def test_writing_refuses_what_reading_would_and_leaves_no_part(tmp_path):
    for cam, options, pattern in ((np.full((2, 3, 3), np.nan), {}, "holds NaN"),
                                  (maps((3, 3))[:1], {}, "are not"),
                                  (maps((3, 3)), {"fmt": "irn"}, "needs high_res"),
                                  (maps((3, 3)) * 1e6, {}, "holds NaN or infinity"),
                                  (maps((3, 3)), {"fmt": "zip"}, "valid: npz, full, irn, psa")):
        with pytest.raises(ValueError, match=pattern):
            write_cam(tmp_path / "cams", "a", KEYS, cam, **options)
    assert not (tmp_path / "cams").exists() or os.listdir(tmp_path / "cams") == []
    with pytest.raises(InputError, match="no such folder of CAM files"):
        list_cams(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no CAM files"):
        list_cams(tmp_path)


def test_resizing_follows_irns_grid():
    cam = maps((3, 5))
    up = resize_cam(CamFile(KEYS, cam, None), (10, 18))
    grid = torch.nn.functional.interpolate(torch.from_numpy(cam)[None], scale_factor=4, mode="bilinear")[0]
    assert up.shape == (2, 10, 18) and np.allclose(up, grid[:, :10, :18])
    other = resize_cam(CamFile(KEYS, cam, None), (30, 50))
    direct = torch.nn.functional.interpolate(torch.from_numpy(cam)[None], (30, 50), mode="bilinear")[0]
    assert other.shape == (2, 30, 50) and np.allclose(other, direct)
    high_res = maps((10, 18))
    assert resize_cam(CamFile(KEYS, cam, high_res), (10, 18)) is high_res
    assert resize_cam(CamFile(KEYS, cam, high_res), (20, 36)).shape == (2, 20, 36)


def test_maps_of_any_stride_fit_their_image():
    for size in ((375, 500), (500, 333), (96, 96), (281, 7)):
        for stride in (1, 4, 16):
            for shape in ([-(-side // stride) for side in size], [max(1, round(side / stride)) for side in size]):
                file = CamFile(np.array([0]), np.zeros((1, *shape), np.float32), None)
                assert check_cam(file, "x", size, 1) is file, (size, stride, shape)


def test_maps_of_another_scale_are_named(tmp_path):
    cam = maps((3, 3))
    for values, told in ((cam * 255, r"cam holds values from .* to 2\d\d.*, CAMs have 0 to 1; .*an image's 0 to 255: divide"),
                         (cam * 9 - 4, r"cam holds values from -.*they look like logits"),
                         (cam * 900, r"cam holds values .*they look like logits")):
        np.savez(tmp_path / "a.npz", keys=KEYS, cam=values)
        with pytest.raises(InputError, match=f"a.npz: {told}"):
            read_cam(tmp_path, "a")
    np.savez(tmp_path / "a.npz", keys=KEYS, cam=cam * 1.002 - 0.001)
    assert read_cam(tmp_path, "a").cam.max() < 1.01, "rounding is no other scale"


def test_files_are_found_under_another_spelling(tmp_path):
    np.savez(tmp_path / "cafe\u0301.1 b.npz", keys=KEYS, cam=maps((3, 3)))
    assert list_cams(tmp_path) == ["caf\u00e9.1 b"]
    assert len(read_cam(tmp_path, "caf\u00e9.1 b").keys) == 2
