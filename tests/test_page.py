"""report.html: what it gathers, that no name becomes markup, and, where a Chromium is, that a browser draws it."""
import json
import shutil

import numpy as np
import pytest

import eval as eval_script
from clipwsss.cams.cam_files import write_cam
from clipwsss.datasets import build_dataset
from clipwsss.errors import InputError
from clipwsss.files import write_json
from clipwsss.pictures import write_mask
from clipwsss.report.page import (DATA_ELEMENT, SAMPLED_IMAGES, PAGE_TEMPLATE, command_of, compare, curves_of,
                                  read_report, render, write_report)
from clipwsss.report.scoring import read_labels
from clipwsss.toy.world import draw_world

EVIL = "</script><script>window.stolen = 1</script><img src=x onerror='window.stolen = 1'>"
ARGS = {"dataset": "toy", "method": "pole", "epochs": 2, "lr": 0.002, "init": None, "scales": [1.0, 0.5], "restart": False,
        "out": "runs/my run", "resume": True,
        "set_by": {"out": "the command line", "lr": "toy world", "scales": "the command line",
                   "restart": "the command line", "resume": "the command line"}}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of a train_cam, a train_prompt and a make_pseudo over 14 drawn images; a class has an evil name."""
    root = tmp_path_factory.mktemp("page")
    draw_world(root / "data", 0, 14, 1)
    dataset = build_dataset("toy", root / "data", "train")
    dataset.classes = [EVIL, *dataset.classes[1:]]
    for number, stage in enumerate(("train_cam", "train_prompt", "make_pseudo")):
        run = root / stage
        write_json(ARGS, run / "args.json")
        rows = [{"label": "guide", "epoch": epoch, "loss": 3.0 / epoch, "fg": float("nan")} for epoch in (1, 2, 2)]
        (run / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        write_json({"threshold": 0.4, "miou": 40.0 + number, "iou": {EVIL: 10.0, "background": 80.0},
                    "taken_for": {EVIL: {"background": 70.0}}}, run / "result.json")
        for index, name in enumerate(dataset.names):
            keys = dataset.labels[index].nonzero()[:, 0].numpy()
            truth = dataset.load_mask(index)
            maps = np.stack([(truth == key + 1) * (0.8 if index else 0.3) for key in keys]).astype(np.float32)
            write_cam(run / "cams", name, keys, maps[:, ::4, ::4])
            if stage == "make_pseudo":
                write_mask(run / "masks" / f"{name}.png", truth, dataset.palette)
    words = {name: {EVIL: {"word": "canoe" if index else "boat", "similarity": {"boat": 0.1, "canoe": 0.2}}}
             for index, name in enumerate(dataset.names)}
    write_json(words, root / "train_prompt" / "prompts.json")
    for stage in ("train_cam", "train_prompt", "make_pseudo"):
        folder = root / stage
        masks = folder / "masks" if stage == "make_pseudo" else None
        write_report(folder, stage, dataset, folder / "cams", masks)
    return root


@pytest.mark.smoke
def test_the_report_holds_what_the_run_recorded(runs):
    run, = read_report(runs / "train_prompt" / "report.html")["runs"]
    assert run["command"] == "python train_prompt.py --out 'runs/my run' --scales 1.0 0.5 --no-restart"
    assert run["settings"][0] == ["lr", 0.002, "toy world"] and ["epochs", 2, ""] in run["settings"][3:]
    assert run["curves"] == {"guide": {"loss": [3.0, 1.5], "fg": [None, None]}}
    assert run["before"]["miou"] == 40 and run["result"]["miou"] == 41 and run["files"][1] == "cams/: 14 files"
    assert [row[:2] for row in run["words"][EVIL]] == [["canoe", 13], ["boat", 1]]
    assert all(uri.startswith("data:image/jpeg;base64,") for _, _, uri in run["words"][EVIL])


def test_the_worst_pictures_come_first_and_the_first_images_follow(runs):
    pictures = read_report(runs / "train_cam" / "report.html")["runs"][0]["pictures"]
    assert len(pictures) == 12 and [item["name"] for item in pictures[8:]] == [f"train_{n:05d}" for n in range(4)]
    worst = [item["miou"] for item in pictures[:8]]
    assert worst == sorted(worst) and pictures[8]["miou"] < 50  # its maps lie below the threshold of 0.4
    assert pictures[0]["cams"]["size"] == [24, 24] and pictures[0].keys() >= {"image", "truth", "tags"}
    masks = read_report(runs / "make_pseudo" / "report.html")["runs"][0]["pictures"]
    assert masks[0]["miou"] == 100 and masks[0]["mask"] == masks[0]["truth"]


def test_only_a_sample_is_scored_and_no_mask_is_needed(runs, monkeypatch):
    dataset = build_dataset("toy", runs / "data", "train")
    monkeypatch.setattr("clipwsss.report.page.SAMPLED_IMAGES", 7)
    scored = []

    def noted_read_labels(folder, name, size, threshold):
        scored.append(name)
        return read_labels(folder, name, size, threshold)

    monkeypatch.setattr("clipwsss.report.page.read_labels", noted_read_labels)
    write_report(runs / "train_cam", "train_cam", dataset, runs / "train_cam" / "cams")
    assert scored == dataset.names[:14:2] and SAMPLED_IMAGES == 200
    dataset.entries = [entry._replace(mask=None) for entry in dataset.entries]
    dataset.masked = [False] * len(dataset)
    write_report(runs / "train_cam", "train_cam", dataset, runs / "train_cam" / "cams")
    pictures = read_report(runs / "train_cam" / "report.html")["runs"][0]["pictures"]
    assert [item["name"] for item in pictures] == dataset.names[:12] and pictures[0]["miou"] is None


def test_no_text_ends_the_script_and_nothing_is_asked_for(runs):
    page = (runs / "train_prompt" / "report.html").read_text()
    assert EVIL not in page and page.count("</script>") == PAGE_TEMPLATE.read_text().count("</script>") == 2
    assert "default-src 'none'" in page and "http" not in DATA_ELEMENT.sub("", page).replace("http://www.w3.org/2000/svg", "").replace(
        "http-equiv", "")
    assert "innerHTML" not in page and len(page) < 3_000_000


def test_a_page_is_refused_that_is_none(runs, tmp_path):
    with pytest.raises(InputError, match="no report; every script writes one"):
        compare([tmp_path], tmp_path / "x.html")
    (tmp_path / "report.html").write_text("<html>")
    with pytest.raises(InputError, match="no report"):
        read_report(tmp_path / "report.html")
    render({"runs": [float("nan")]}, tmp_path / "report.html")  # browsers do not read NaN
    assert read_report(tmp_path / "report.html") == {"runs": [None]}


def test_eval_puts_runs_side_by_side_without_a_data_set(runs, tmp_path, capsys):
    folders = [str(runs / stage) for stage in ("train_cam", "train_prompt", "make_pseudo")]
    assert eval_script.main(["--report", *folders, "--out", str(tmp_path)]) == 0
    assert [run["name"] for run in read_report(tmp_path / "report.html")["runs"]] == ["train_cam", "train_prompt", "make_pseudo"]
    assert str(tmp_path / "report.html") in capsys.readouterr().out


def test_the_report_of_a_bare_run(runs, tmp_path):
    assert command_of("train_cam", {"set_by": {}}) == "python train_cam.py"
    write_json({"set_by": {}}, tmp_path / "args.json")
    write_json({"miou": float("nan")}, tmp_path / "result.json")
    (tmp_path / "log.jsonl").write_text('{"label": "result", "miou": NaN}\n')
    assert curves_of(tmp_path / "log.jsonl") == {}
    (tmp_path / ".lock").touch()
    (tmp_path / "cams").mkdir()
    (tmp_path / "cams" / "one.npz").touch()
    write_report(tmp_path, "train_cam", build_dataset("toy", runs / "data", "train"))
    run, = read_report(tmp_path / "report.html")["runs"]
    assert run["files"] == ["args.json: 0 kB", "cams/: 1 files", "log.jsonl: 0 kB", "result.json: 0 kB"]
    assert run["result"] == {"miou": None} and run["curves"] == run["before"] == run["words"] == {}


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium; skipped without it, its driver or selenium."""
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("no chromium with its driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=390,800"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield opened
    opened.quit()


PIXELS = """const canvas = document.querySelectorAll('canvas.mask')[arguments[0]];
return Array.from(canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data).reduce((a, b) => a + b);"""
MOVE = """const input = document.querySelector('input[type=range]'); input.value = arguments[0];
input.dispatchEvent(new Event('input'));"""


def test_a_browser_draws_it_and_the_slider_changes_the_mask(runs, browser):
    browser.get((runs / "train_prompt" / "report.html").as_uri())
    sizes = browser.execute_script("return Array.from(document.images, image => image.naturalWidth)")
    assert len(sizes) == 2 * 12 + 2 and set(sizes) == {96}  # images, true masks, examples of words
    at_first = browser.execute_script(PIXELS, 0)
    browser.execute_script(MOVE, 0.95)
    nothing = browser.execute_script(PIXELS, 0)
    browser.execute_script(MOVE, 0.4)
    assert nothing != at_first == browser.execute_script(PIXELS, 0)
    text = browser.execute_script("return document.body.innerText")
    assert EVIL in text and "canoe: 13" in text and "+1.0" in text and "--no-restart" in text
    assert browser.execute_script("return window.stolen") is None
    assert browser.execute_script("return document.body.scrollWidth <= innerWidth")
    assert browser.get_log("browser") == []


def test_a_browser_draws_runs_side_by_side(runs, browser, tmp_path):
    compare([runs / "train_cam", runs / "train_prompt", runs / "make_pseudo"], tmp_path / "report.html", ["first note"])
    browser.get((tmp_path / "report.html").as_uri())
    browser.execute_script("document.querySelectorAll('details').forEach(box => box.open = true)")
    text = browser.execute_script("return document.body.innerText")
    assert "3 runs side by side" in text and "first note" in text and EVIL in text
    assert browser.execute_script("return document.querySelectorAll('canvas.mask').length") >= 2
    assert browser.get_log("browser") == []
