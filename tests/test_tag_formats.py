"""Tags as tools export them, with every field that they write; FORMATS.md has the table that comes out."""
import csv
import json
from pathlib import Path

import numpy as np
import pytest

from clipwsss.datasets import build_dataset
from clipwsss.datasets.tag_formats import FORMATS, IMAGE_COLUMNS, LABEL_COLUMNS, open_table
from clipwsss.errors import InputError
from test_datasets import save_image, write

PAGE = Path(__file__).resolve().parents[1] / "clipwsss/datasets/FORMATS.md"
IMAGES = ("images/one.jpg", "images/two.png")
DATES = {"created_at": "2026-11-02T09:15:21.118520Z", "updated_at": "2026-11-02T09:15:24.000913Z", "lead_time": 3.408}
TASKS = [{"image": "/data/upload/3/8c1f2a3b-one.jpg", "id": 11, "choice": "cat", "annotator": 1, "annotation_id": 21, **DATES},
         {"image": "/data/local-files/?d=photos/two.png", "id": 12, "choice": {"choices": ["cat", "hot dog"]}, "annotator": 1,
          "annotation_id": 22, **DATES}]
LABEL_STUDIO_WHOLE = [{"id": 11, "annotations": [{
    "id": 21, "completed_by": 1, "result": [{"value": {"choices": ["cat"]}, "id": "Dx_aB91ISN", "from_name": "choice",
                                             "to_name": "image", "type": "choices", "origin": "manual"}],
    "was_cancelled": False, "ground_truth": False, **DATES, "task": 11}], "file_upload": "8c1f2a3b-one.jpg", "drafts": [],
    "predictions": [], "data": {"image": "/data/upload/3/8c1f2a3b-one.jpg"}, "meta": {}, "project": 3}]
CVAT_META = """<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version><meta><task><id>5</id><name>beach</name><size>2</size><mode>annotation</mode>
<overlap>0</overlap><bugtracker></bugtracker><created>2026-11-02 09:15:21.118520+00:00</created><updated>2026-11-02</updated>
<subset>default</subset><start_frame>0</start_frame><stop_frame>1</stop_frame><frame_filter></frame_filter>
<segments><segment><id>5</id><start>0</start><stop>1</stop><url>http://localhost:8080/api/jobs/5</url></segment></segments>
<owner><username>me</username><email></email></owner><assignee></assignee><labels>
<label><name>cat</name><color>#fa3253</color><type>any</type><attributes></attributes></label>
<label><name>hot dog</name><color>#34d1b7</color><type>any</type><attributes></attributes></label>
</labels></task><dumped>2026-11-02 09:20:00.000000+00:00</dumped></meta>"""
CVAT_IMAGES = CVAT_META + """
<image id="0" name="one.jpg" width="20" height="12"><tag label="cat" source="manual"></tag></image>
<image id="1" name="two.png" width="20" height="12" subset="default" task_id="5"><tag label="hot dog" source="manual">
<attribute name="side">left</attribute></tag><box label="cat" source="manual" occluded="0" xtl="1.00" ytl="1.00" xbr="9.00"
ybr="8.00" z_order="0"></box></image></annotations>"""
CVAT_VIDEO = CVAT_META + """<track id="0" label="cat" source="manual"><box frame="0" keyframe="1" outside="0" occluded="0"
xtl="1.00" ytl="1.00" xbr="9.00" ybr="8.00" z_order="0"></box></track></annotations>"""
OPEN_IMAGES = ("ImageID,Source,LabelName,Confidence\none,verification,cat,1\none,verification,hot dog,0\n"
               "two,crowdsource-verification,cat,1\ntwo,verification,hot dog,1\n")


def labelimg(name, objects):
    """The XML file of an image as LabelImg writes it."""
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>8</ymax></bndbox>"
    parts = [f"\n\t<object><name>{label}</name><pose>Unspecified</pose><truncated>0</truncated>"
             f"<difficult>0</difficult>{box}</object>" for label in objects]
    return (f"<annotation>\n\t<folder>images</folder>\n\t<filename>{name}</filename>\n\t<path>C:\\photos\\{name}</path>"
            "\n\t<source><database>Unknown</database></source>\n\t<size><width>20</width><height>12</height>"
            f"<depth>3</depth></size>\n\t<segmented>0</segmented>{''.join(parts)}\n</annotation>\n")


def coco(names):
    """COCO's JSON as Roboflow writes it, with its first category, of which there are no annotations."""
    images = [{"id": number, "license": 1, "file_name": name, "height": 12, "width": 20,
               "date_captured": "2026-11-02T09:15:21+00:00", "extra": {"name": name}} for number, name in enumerate(names)]
    annotations = [{"id": number, "image_id": image, "category_id": category, "bbox": [1, 1, 8, 7], "area": 56,
                    "segmentation": [], "iscrowd": 0} for number, (image, category) in enumerate([(0, 1), (1, 1), (1, 2)])]
    return json.dumps({"info": {"year": "2026", "version": "1", "description": "Exported from roboflow.com"},
                       "licenses": [{"id": 1, "url": "https://creativecommons.org/licenses/by/4.0/", "name": "CC BY 4.0"}],
                       "categories": [{"id": 0, "name": "food", "supercategory": "none"},
                                      {"id": 1, "name": "cat", "supercategory": "food"},
                                      {"id": 2, "name": "hot dog", "supercategory": "food"}],
                       "images": images, "annotations": annotations})


def label_studio_csv():
    """The same answers as Label Studio's CSV: its columns sorted, text quoted, several choices as JSON."""
    lines = []
    for task in TASKS:
        cells = {name: json.dumps(value) if isinstance(value, dict) else value for name, value in task.items()}
        lines.append([cells[name] for name in sorted(cells)])
    file = []
    writer = csv.writer(type("File", (), {"write": lambda _, text: file.append(text)})(), quoting=csv.QUOTE_NONNUMERIC)
    writer.writerows([sorted(TASKS[0]), *lines])
    return "".join(file)


HASHES = ("one_jpg.rf.0c1b5f9a7d3e42c6b8a19f0e5d7c3b21.jpg", "two_png.rf.9f8e7d6c5b4a39281706f5e4d3c2b1a0.jpg")
FIFTYONE = {"classes": ["cat", "hot dog"], "labels": {"one": 0, "two": [{"label": 0, "confidence": 0.9, "attributes": {}}, 1]}}
ROBOFLOW = "filename, cat, hot dog\n"
# (tool and form, where its files lie, path -> text or None for an image), as in the table of FORMATS.md
EXPORTS = [
    ("Label Studio, JSON-MIN", "`labels.json`", {"labels.json": json.dumps(TASKS, indent=2)}),
    ("Label Studio, CSV", "`labels.csv`", {"labels.csv": label_studio_csv()}),
    ("Label Studio, JSON", "`labels.json`", {"labels.json": json.dumps(LABEL_STUDIO_WHOLE)}),
    ("CVAT for images 1.1: tags, also shapes", "`annotations.xml`", {"annotations.xml": CVAT_IMAGES}),
    ("CVAT for video 1.1", "`annotations.xml`", {"annotations.xml": CVAT_VIDEO}),
    ("FiftyOneImageClassificationDataset", "`labels.json`, `data/`",
     {"labels.json": json.dumps(FIFTYONE), "data/one.jpg": None, "data/two.png": None}),
    ("FiftyOne, CSVDataset with `fields=[\"filepath\", \"tags\", \"ground_truth.label\"]`", "`labels.csv`, `data/`",
     {"labels.csv": "filepath,tags,ground_truth.label\r\none.jpg,validation,cat\r\n/photos/two.png,,\"cat,hot dog\"\r\n",
      "data/one.jpg": None, "data/two.png": None}),
    ("Roboflow, Multi-Label Classification CSV", "`train/_classes.csv`, `valid/_classes.csv` beside the images",
     {"train/_classes.csv": f"{ROBOFLOW}{HASHES[0]}, 1, 0\n", "valid/_classes.csv": f"{ROBOFLOW}{HASHES[1]}, 1, 1\n",
      f"train/{HASHES[0]}": None, f"valid/{HASHES[1]}": None, "README.roboflow.txt": "exported via roboflow.com\n"}),
    ("Roboflow, COCO JSON", "`train/_annotations.coco.json` beside the images",
     {"train/_annotations.coco.json": coco(HASHES), f"train/{HASHES[0]}": None, f"train/{HASHES[1]}": None}),
    ("Roboflow, Tensorflow Object Detection CSV", "`train/_annotations.csv` beside the images",
     {"train/_annotations.csv": "filename,width,height,class,xmin,ymin,xmax,ymax\n" + "".join(
         f"{name},20,12,{label},1,1,9,8\n" for name, label in zip((HASHES[0], *HASHES[1:] * 2), ("cat", "cat", "hot dog"))),
      f"train/{HASHES[0]}": None, f"train/{HASHES[1]}": None}),
    ("torchvision's ImageFolder", "`train/CLASS/`, `val/CLASS/`",
     {"train/cat/black/one.jpg": None, "val/hot dog/two.png": None}),
    ("Kaggle, blanks between labels", "`labels.csv`",
     {"labels.csv": "image_name,tags\none,haze primary\ntwo,primary\n", "classes.txt": "haze\nprimary\n"}),
    ("Kaggle, bars between labels", "`labels.csv`", {"labels.csv": "ID,Label\none,cat\ntwo,cat|hot dog\n"}),
    ("Open Images, a row for each label", "`labels.csv`", {"labels.csv": OPEN_IMAGES}),
    ("`cls_labels.npy` of IRN, CLIMS, WeakTr, SemPLeS", "`cls_labels.npy`", {"cls_labels.npy": ""}),
    ("LabelImg, XML beside the images", "`images/NAME.xml`",
     {"images/one.xml": labelimg("one.jpg", ["cat", "cat"]), "images/two.xml": labelimg("old.png", ["cat", "hot dog"])}),
    ("VOC with own classes", "`Annotations/NAME.xml`, `JPEGImages/`",
     {"Annotations/one.xml": labelimg("one.jpg", ["cat"]), "Annotations/two.xml": labelimg("two.jpg", ["cat", "hot dog"]),
      "JPEGImages/one.jpg": None, "JPEGImages/two.jpg": None}),
    ("COCO's JSON", "`labels.json`", {"labels.json": coco(("one.jpg", "two.png"))}),
    ("a table from another computer", "`labels.csv`",
     {"labels.csv": "image,labels\nC:\\photos\\images\\ONE.JPG,cat\n./images/Two.png,cat;hot dog\n"}),
]


def unpack(root, files):
    """Write an export's files; the images are in images/ unless the export has its own."""
    write(root / "classes.txt", files.get("classes.txt", "cat\nhot dog\n"))
    own = any(text is None for text in files.values())
    for name, text in (files if own else files | dict.fromkeys(IMAGES)).items():
        if text is None:
            save_image(root / name)
        elif name.endswith(".npy"):
            np.save(root / name, {"one": np.array([1, 0], np.float32), "two": np.ones(2, np.float32)}, allow_pickle=True)
        else:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text, encoding="utf-8", newline="")


def outcome(root):
    """What the data set in a folder holds, or the error, in one line."""
    try:
        splits = build_dataset("folder", root, "train").splits
        found = []
        for split in splits:
            data = build_dataset("folder", root, split)
            for name, labels in zip(data.names, data.labels, strict=True):
                shown = name.partition(".rf.")[0]
                found.append(f"{shown} {' + '.join(np.array(data.classes)[labels.numpy() == 1])} ({split})")
    except InputError as error:
        return str(error).replace(f"{root}/", "")
    return "loads: " + ", ".join(found)


def test_every_export_loads_or_says_what_to_do_as_the_table_tells(tmp_path, capsys):
    page = PAGE.read_text(encoding="utf-8")
    lines = []
    for number, (name, place, files) in enumerate(EXPORTS):
        unpack(tmp_path / str(number), files)
        lines.append(f"| {name} | {place} | {outcome(tmp_path / str(number))} |")
    table = "\n".join(lines)
    assert table in page, table
    notes = capsys.readouterr().err
    assert notes.count("the table names 2 of 2 images by another path or spelling, such as") == 6, "3 tables, read twice"
    assert "blanks separate the labels, as in 'haze primary'" in notes
    for column in (*IMAGE_COLUMNS, *LABEL_COLUMNS):
        assert f"`{column}`" in page, column


def test_every_form_is_one_that_an_export_shows(tmp_path):
    shown = set()
    for number, (_, _, files) in enumerate([*EXPORTS, ("", "", {"labels.csv": "image,labels\n"})]):
        unpack(tmp_path / str(number), files)
        for name in files:
            if Path(name).stem in ("labels", "annotations", "_classes", "cls_labels", "one", "_annotations.coco") and files[name] is not None:
                kind, keys, _ = open_table(tmp_path / str(number) / name)
                shown.add(next(form.name for form in FORMATS if form.kind == kind and form.keys <= keys))
    assert shown == {form.name for form in FORMATS}


@pytest.mark.parametrize("name, text, pattern", [
    ("labels.csv", "picture,labels\none,cat\n", r"labels.csv:1: the first line must be .* called image, file_name, .* choice, choices"),
    ("labels.csv", "image,label,class\none,0,cat\n", "labels.csv: the columns label and class may both hold the labels"),
    ("labels.csv", "image,cat,cat\none,0,1\n", "labels.csv:1: two columns are called 'cat'"),
    ("labels.csv", "filepath,a.label,b.label\none,cat,cat\n", "labels.csv: the columns a.label and b.label may both hold"),
    ("labels.csv", OPEN_IMAGES.replace(",0\n", ",0.7\n"), "labels.csv:3: confidence 0.7 is a machine's guess"),
    ("labels.csv", "image,label,confidence\none,cat,0.04\n", "labels.csv:2: confidence 0.04 is a machine's guess"),
    ("labels.csv", "image,label,confidence\none,cat,\n", "labels.csv:2: confidence  is a machine's guess"),
    ("labels.csv", "image,labels\na/one.jpg,cat\nb/one.jpg,hot dog\n",
     r"labels.csv:3: image 'b/one.jpg' may be one.jpg, which .*labels.csv:2 calls 'a/one.jpg'; call one image by one name"),
    ("labels.xlsx", "", "labels.csv: no such file; write one, save labels.xlsx as CSV, or put"),
    ("labels.json", json.dumps([{**TASKS[0], "animal": ["cat"]}]), "labels.json: the labels may be in choice, animal; delete"),
    ("labels.json", json.dumps([{"annotation_id": 1, "annotator": 1, "choice": "cat"}]), "labels.json: no column holds images"),
    ("labels.json", json.dumps(TASKS).replace('"cat"', '"wolf"'), r"labels.json: \[0\]: unknown class 'wolf'; valid are cat, hot dog"),
    ("labels.json", '{"classes": ["cat"], "labels": {"one": 1}}', "labels.json: image one has class 1, but `classes` has 1 names"),
    ("labels.json", '{"classes": null, "labels": {"one": null}}', r"labels.json \(image one\): image one has no tag"),
    ("annotations.xml", CVAT_IMAGES[:700], "annotations.xml: not a readable XML file"),
    ("annotations.xml", "", "annotations.xml: not a readable XML file"),
    ("labels.xml", "<html/>", "labels.xml: <html> is no table of tags; expected <annotations> of CVAT"),
    ("images/one.xml", labelimg("one.jpg", []), "one.xml: image one has no tag"),
    ("train.csv", "image,labels\none,cat\n", "labels.csv: no such file; write one, rename the right one of train.csv, or put")])
def test_what_is_wrong_is_said_in_one_line(tmp_path, name, text, pattern):
    unpack(tmp_path, {name: text})
    with pytest.raises(InputError, match=pattern) as caught:
        build_dataset("folder", tmp_path, "train")
    assert "\n" not in str(caught.value)


def test_byte_order_marks_and_answers_of_several_people(tmp_path):
    tasks = [*TASKS, {**TASKS[0], "choice": "hot dog", "annotator": "me@example.org", "annotation_id": 23}]
    for number, (name, text) in enumerate((("labels.json", json.dumps(tasks)), ("labels.csv", OPEN_IMAGES),
                                           ("annotations.xml", CVAT_IMAGES))):
        unpack(tmp_path / str(number), {name: "\ufeff" + text})
        first = "cat + hot dog" if number == 0 else "cat"
        assert outcome(tmp_path / str(number)) == f"loads: one {first} (train), two cat + hot dog (train)", name


def test_a_confidence_says_whether_a_label_is_there(tmp_path):
    """In JSON lines and tables of other names as in Open Images; a class may be called so too."""
    lines = [{"file_name": "one", "class": label, "confidence": mark} for label, mark in (("cat", 1), ("hot dog", 0))]
    for number, (name, text) in enumerate((
            ("labels.jsonl", "".join(json.dumps(line) + "\n" for line in lines)),
            ("labels.csv", "image,label,Confidence\none,cat,1.0\none,hot dog,0\n"))):
        unpack(tmp_path / str(number), {name: text})
        assert outcome(tmp_path / str(number)) == "loads: one cat (train)"
    unpack(tmp_path / "class", {"classes.txt": "confidence\nfear\n", "labels.csv": "image,confidence,fear\none,1,0\n"})
    assert outcome(tmp_path / "class") == "loads: one confidence (train)"
