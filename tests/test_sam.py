"""SAM on a grid of points: each filter by hand, and a tiny random network from the command to its files."""
import json

import numpy as np
import pytest
import torch
from finished_runs import draw_data

from clipwsss.errors import InputError
from clipwsss.refine import sam
from clipwsss.refine.sam import Masks
from clipwsss.refine.segments import main, read_segments


def boxed(*rows, levels, ious=None, size=(40, 60)):
    """`Masks` of filled boxes (x0, y0, x1, y1), both ends included."""
    masks = torch.zeros(len(rows), *size, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, rows):
        mask[y0:y1 + 1, x0:x1 + 1] = True
    return Masks(masks, torch.tensor(levels), torch.tensor(ious or [0.9] * len(rows)),
                 torch.tensor(rows, dtype=torch.float32))


def test_points_and_crops_by_hand():
    assert sam.point_grid(2).tolist() == [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]]
    # overlap int(0.3413 * 375) = 128 pixels; a crop is (500 + 128) / 2 = 314 wide, (375 + 128) / 2 = 252 high
    assert sam.crop_boxes((375, 500)) == [(0, 0, 500, 375), (0, 0, 314, 252), (0, 124, 314, 375),
                                          (186, 0, 500, 252), (186, 124, 500, 375)]


def test_a_whole_needs_a_tenth_less():
    ious = torch.tensor([[0.87, 0.85, 0.77], [0.86, 0.9, 0.75]])
    logits = torch.arange(6.0).view(2, 3, 1, 1)
    kept, levels, values = sam.well_rated(logits, ious, (0.86, 0.86, 0.76))
    assert kept.flatten().tolist() == [0, 2, 4] and levels.tolist() == [0, 2, 1]
    assert values.tolist() == pytest.approx([0.87, 0.77, 0.9])


def test_stability_is_the_iou_of_two_thresholds():
    logits = torch.full((3, 4, 5), -3.0)
    logits[0, :2], logits[1, :2], logits[1, 2] = 3.0, 3.0, 0.5  # 10 of 10, 10 of 15, none
    assert sam.stability(logits)[:2].tolist() == pytest.approx([1.0, 10 / 15])
    assert not (sam.stability(logits) >= 0.0)[2]


def test_masks_that_a_crop_cuts_off():
    boxes = torch.tensor([[0.0, 0, 90, 90], [150, 40, 199, 90], [0, 0, 199, 60]])
    # the crop ends at x = 200, where the image goes on; at x = 0 and y = 0 both end
    assert sam.cut_off(boxes, (0, 0, 200, 300), (300, 400)).tolist() == [False, True, True]


def test_small_holes_and_regions_go_and_the_largest_region_stays():
    mask = np.zeros((12, 20), bool)
    mask[1:9, 1:9] = True
    mask[4, 4] = False  # a hole of 1 pixel
    mask[2:4, 15:17] = True  # a region of 4 pixels
    tidy = sam.tidy(mask, 5)
    assert tidy[4, 4] and not tidy[:, 15:].any() and tidy.sum() == 64
    small = np.zeros((12, 20), bool)
    small[2:4, 2:4], small[8, 8] = True, True
    assert sam.tidy(small, 5).sum() == 4  # all are small: the largest stays
    diagonal = np.eye(6, dtype=bool)  # neighbours over a corner are one region
    assert sam.tidy(diagonal, 5).sum() == 6


def test_masks_that_need_no_tidying_win():
    found = boxed((0, 0, 19, 19), (0, 0, 20, 19), levels=[0, 1])
    found.masks[0, 5, 5] = False
    kept = sam.without_small_regions(found, 5)
    assert kept.levels.tolist() == [1]
    assert len(sam.without_small_regions(found.take(torch.tensor([], dtype=torch.int64)), 5).levels) == 0


def test_a_mask_that_higher_levels_cover_goes():
    # whole 0..19; a part that lies in it by 0.4; one by 0.2, which stays; a part of a part in the part that stayed
    found = boxed((30, 0, 39, 9), (0, 0, 19, 19), (12, 0, 31, 19), (16, 20, 35, 39), (16, 0, 35, 19),
                  levels=[0, 2, 1, 1, 1])
    kept = sam.without_covered(found, 0.3)
    assert kept.levels.tolist() == [2, 1, 1]
    assert kept.boxes[:, 0].tolist() == [0, 16, 16]  # (30, 0, ..) lies in (16, 0, 35, 19) by 0.6
    parts_alone = found.take(found.levels < 2)
    assert sam.without_covered(parts_alone, 0.3).levels.tolist() == [1, 1, 1]


@pytest.fixture(scope="module")
def tiny_sam(tmp_path_factory):
    """A folder with a SAM of 64 x 64 pixels with random weights, which is sure of its sharp masks."""
    transformers = pytest.importorskip("transformers")
    vision = transformers.SamVisionConfig(
        hidden_size=16, output_channels=16, num_hidden_layers=2, num_attention_heads=2, image_size=64, patch_size=8,
        window_size=4, global_attn_indexes=[1], num_pos_feats=8, mlp_dim=32)
    prompt = transformers.SamPromptEncoderConfig(hidden_size=16, image_size=64, patch_size=8, mask_input_channels=4)
    decoder = transformers.SamMaskDecoderConfig(hidden_size=16, mlp_dim=32, num_attention_heads=2,
                                                iou_head_hidden_dim=16)
    torch.manual_seed(0)
    model = transformers.SamModel(transformers.SamConfig(vision_config=vision, prompt_encoder_config=prompt,
                                                         mask_decoder_config=decoder))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 2 / parameter[0].numel() ** 0.5)
        model.mask_decoder.iou_prediction_head.proj_out.bias.fill_(0.86)
        for head in model.mask_decoder.output_hypernetworks_mlps:
            head.proj_out.weight.mul_(30)
    folder = tmp_path_factory.mktemp("sam")
    model.save_pretrained(folder)
    return folder


def test_a_network_s_masks_are_those_of_its_own_postprocessing(tiny_sam):
    """Input and masks equal those of transformers' SamImageProcessor, and batches of points change nothing."""
    transformers = pytest.importorskip("transformers")
    model = sam.load_sam(str(tiny_sam), torch.device("cpu"))
    pixels = np.random.default_rng(1).integers(0, 256, (6, 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)  # 48 x 64
    processor = transformers.SamImageProcessor(size={"longest_edge": 64}, pad_size={"height": 64, "width": 64})
    batch = processor(images=[pixels], return_tensors="pt")
    image, scaled = sam.sam_image(pixels, 64)
    torch.testing.assert_close(image, batch["pixel_values"], atol=1e-5, rtol=1e-5)
    with torch.inference_mode():
        answer = model(pixel_values=image, input_points=torch.tensor([[[[20.0, 30]], [[50.0, 10]]]]))
        expected = processor.post_process_masks(answer.pred_masks, batch["original_sizes"],
                                                batch["reshaped_input_sizes"], binarize=False,
                                                pad_size={"height": 64, "width": 64})[0]
        logits = sam.enlarge(answer.pred_masks[0].flatten(0, 1), 64, scaled, (48, 64))
        torch.testing.assert_close(logits, expected.flatten(0, 1))
        one = sam.segment_image(model, pixels, 8, 1, least_stability=0.5, smallest_region=4)
        many = sam.segment_image(model, pixels, 8, 64, least_stability=0.5, smallest_region=4)
    assert len(one.levels) > 1 and one.masks.shape[1:] == (48, 64)
    assert torch.equal(one.masks, many.masks) and torch.equal(one.levels, many.levels)


def test_the_command_writes_goes_on_and_refuses_what_it_did_not_write(tiny_sam, tmp_path, capsys):
    draw_data(tmp_path / "data")
    out = tmp_path / "segments"
    command = ["--dataset", "folder", "--data-root", str(tmp_path / "data"), "--sam", str(tiny_sam), "--out",
               str(out), "--points-per-side", "4", "--device", "cpu"]
    assert main(command) == 0
    files = {path.name: path.read_bytes() for path in out.glob("*.json")}
    regions = [region for text in files.values() for region in json.loads(text)]
    assert regions and all(region["level"] in (0, 1, 2) and region["predicted_iou"] > 0.76 for region in regions)
    name, size = next((path.stem, json.loads(path.read_text())[0]["segmentation"]["size"])
                      for path in sorted(out.glob("*.json")) if json.loads(path.read_text()))
    assert read_segments(out, name, tuple(size))[0].mask.any()

    (out / f"{name}.json").unlink()
    capsys.readouterr()
    assert main(command) == 0
    assert f"{len(files) - 1} of them have their segments already" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in out.glob("*.json")} == files

    with pytest.raises(InputError, match="made with .*--points-per-side 4, now it is .*--points-per-side 5"):
        main([*command, "--points-per-side", "5"])
    own = tmp_path / "own"
    own.mkdir()
    (own / "a.png").write_bytes(b"mine")
    with pytest.raises(InputError, match="holds files that this command did not write"):
        main([*command, "--out", str(own)])
    with pytest.raises(InputError, match="no such folder"):
        sam.load_sam(str(tmp_path / "nothing"), torch.device("cpu"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"model_type": "swin"}')
    with pytest.raises(InputError, match="is a model of type swin, not sam"):
        sam.load_sam(str(tmp_path / "other"), torch.device("cpu"))


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(ModuleNotFoundError, match="pip install transformers"):
        sam.load_sam("facebook/sam-vit-huge", torch.device("cpu"))
