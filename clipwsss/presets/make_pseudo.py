"""Blocks of make_pseudo.py: CAMs to pseudo masks, by the walk that --refine names."""

IRN = dict(
    block="IRN", source="jiwoon-ahn/irn, its defaults; the threshold is Otsu's",
    refine=["irn"],
    threshold="otsu",  # IRN's sem_seg_bg_thres of 0.25 was chosen by VOC's masks
    confident=[0.30, 0.05], radius=5, beta=10.0, exp_times=8,
    crf_gaussian=[3.0, 3.0], crf_bilateral=[50.0, 5.0, 10.0],  # crf_inference_label
    backbone="resnet50", weights="imagenet",
    optimizer="sgd", lr=0.1, schedule="poly", weight_decay=1e-4,
    momentum=0.0,  # IRN's PolyOptimizer passes the weight decay in the place of the momentum
    batch_size=32, epochs=3, crop_size=512, scales=[0.5, 1.5], train_radius=10, pad_to=512)

IRN_VOC = IRN | dict(
    block="IRN_VOC", source="CLIMS' release (VOC), run_sample.py, which POLE follows",
    threshold=0.2, confident=[0.30, 0.10],
    pad_to=0)  # net/resnet50_irn.py of CLIMS and POLE has the padding commented out

IRN_COCO = IRN | dict(
    block="IRN_COCO", source="CLIMS' release (COCO), run_sample_coco.py",
    threshold=0.25, confident=[0.35, 0.10], pad_to=0,
    segment_power=0.4)  # FMA-WSSS takes the best of 0.3, 0.4 and 0.5 by true masks

PSA = dict(
    block="PSA", source="jiwoon-ahn/psa; its step of 0.1 without momentum is taken as 0.01 with 0.9",
    refine=["psa"], threshold="alpha", alpha=16.0, confident=[4.0, 32.0], radius=5, beta=8.0, exp_times=8,
    crf_gaussian=[3.0, 3.0], crf_bilateral=[80.0, 13.0, 10.0],  # tool/imutils.py, crf_inference
    backbone="resnet50", weights="generator",
    optimizer="sgd", lr=0.01, schedule="poly", weight_decay=5e-4, momentum=0.9,
    batch_size=8, epochs=8, crop_size=448, scales=[1.0, 1.0], brightness=0.3, train_radius=5)

COLOR = dict(
    block="COLOR",
    source="this project: no paper has this walk, and nothing is trained. It takes POLE's CAMs of 8 "
    "VOC images from 41.7 to 46.5 mIoU",
    refine=["color"], threshold="otsu", radius=5, beta=1.0, exp_times=6, color_stride=4)

WEAKTR_MASKS = dict(
    block="WEAKTR_MASKS", source="hustvl/WeakTr, docs/Training.md and tool/imutils.py (VOC): a CRF, no walk",
    refine=["crf"], threshold=0.43, crf_gaussian=[4.0, 3.0], crf_bilateral=[83.0, 5.0, 3.0])

WEAKTR_MASKS_FOLDER = WEAKTR_MASKS | dict(
    block="WEAKTR_MASKS_FOLDER",
    source="as WEAKTR_MASKS; its threshold was chosen by VOC's masks, and Otsu's needs none",
    threshold="otsu")

WEAKTR_MASKS_COCO = WEAKTR_MASKS | dict(
    block="WEAKTR_MASKS_COCO",
    source="hustvl/WeakTr, docs/Training.md (COCO), in the copy that SemPLeS' release works with",
    threshold=0.42,  # with VOC's kernels; WeakTr's own code now has (3, 3) and (50, 5, 10) for COCO
    crowds="class", segment_power=0.4)

CLIP_ES_MASKS = dict(
    block="CLIP_ES_MASKS", source="linyq2117/CLIP-ES, eval_cam_with_crf.py: a CRF from scores, no walk",
    refine=["crf"], threshold="alpha", alpha=1.0,
    crf_start="scores", crf_gaussian=[1.0, 3.0], crf_bilateral=[67.0, 3.0, 4.0], unsure=0.95)

QUICK_IRN = IRN | dict(
    block="QUICK_IRN", source="this project: a first look; no published setting", backbone="resnet18")

QUICK_PSA = PSA | dict(
    block="QUICK_PSA", source="this project: a first look; no published setting", backbone="resnet18")

TOY_IRN = dict(
    block="TOY_IRN", source="toy world, chosen on training images",
    refine=["irn"], threshold=0.2, confident=[0.30, 0.05], radius=5, beta=10.0, exp_times=3,
    backbone="resnet_tiny", weights="generator",
    optimizer="sgd", lr=0.1, schedule="poly", weight_decay=1e-4, momentum=0.9,
    batch_size=16, epochs=4, crop_size=96, scales=[0.5, 1.5], train_radius=5, pad_to=96)

TOY_PSA = dict(
    block="TOY_PSA", source="toy world, chosen on training images",
    refine=["psa"], threshold="alpha", alpha=16.0, confident=[4.0, 32.0], radius=5, beta=8.0, exp_times=3,
    crf_gaussian=[3.0, 3.0], crf_bilateral=[80.0, 13.0, 10.0],
    backbone="resnet_tiny", weights="generator",
    optimizer="sgd", lr=0.01, schedule="poly", weight_decay=5e-4, momentum=0.9,
    batch_size=16, epochs=2, crop_size=96, scales=[1.0, 1.0], brightness=0.3, train_radius=5)

TOY_COLOR = dict(
    block="TOY_COLOR", source="toy world, chosen on training images",
    refine=["color"], threshold=0.25, radius=5, beta=1.0, exp_times=6, color_stride=2)

TOY_NO_WALK = dict(
    block="TOY_NO_WALK", source="toy world, chosen on training images",
    refine=["none"], threshold=0.25)

# The block by (data, generator) and the walk of --refine. "default" is that of a command without --refine,
# "none" that of stages without a walk.
QUICK_WALKS = {"default": COLOR, "irn": QUICK_IRN, "psa": QUICK_PSA, "color": COLOR, "none": QUICK_IRN}
TOY_WALKS = {"default": TOY_COLOR, "irn": TOY_IRN, "psa": TOY_PSA, "color": TOY_COLOR, "none": TOY_NO_WALK}
MAKE_PSEUDO = {
    ("voc12", "clip"): {"default": CLIP_ES_MASKS, "irn": IRN_VOC, "psa": PSA, "color": COLOR,
                        "none": CLIP_ES_MASKS},
    ("coco14", "clip"): {"default": CLIP_ES_MASKS, "irn": IRN_COCO, "psa": PSA, "color": COLOR,
                         "none": CLIP_ES_MASKS},
    ("folder", "clip"): {"default": CLIP_ES_MASKS, "irn": IRN, "psa": PSA, "color": COLOR,
                         "none": CLIP_ES_MASKS},
    ("quick", "clip"): {"default": CLIP_ES_MASKS, "irn": QUICK_IRN, "psa": QUICK_PSA, "color": COLOR,
                        "none": CLIP_ES_MASKS},
    ("toy", "clip"): {"default": CLIP_ES_MASKS, "irn": TOY_IRN, "psa": TOY_PSA, "color": TOY_COLOR,
                      "none": CLIP_ES_MASKS},
    ("voc12", "resnet"): {"default": IRN_VOC, "irn": IRN_VOC, "psa": PSA, "color": COLOR, "none": IRN_VOC},
    ("voc12", "weaktr"): {"default": WEAKTR_MASKS, "irn": IRN_VOC, "psa": PSA, "color": COLOR,
                          "none": WEAKTR_MASKS},
    ("coco14", "resnet"): {"default": IRN_COCO, "irn": IRN_COCO, "psa": PSA, "color": COLOR,
                           "none": IRN_COCO},
    ("coco14", "weaktr"): {"default": WEAKTR_MASKS_COCO, "irn": IRN_COCO, "psa": PSA, "color": COLOR,
                           "none": WEAKTR_MASKS_COCO},
    ("folder", "resnet"): {"default": IRN, "irn": IRN, "psa": PSA, "color": COLOR, "none": IRN},
    ("folder", "weaktr"): {"default": WEAKTR_MASKS_FOLDER, "irn": IRN, "psa": PSA, "color": COLOR,
                           "none": WEAKTR_MASKS_FOLDER},
    ("quick", "resnet"): QUICK_WALKS, ("quick", "weaktr"): QUICK_WALKS,
    ("toy", "resnet"): TOY_WALKS, ("toy", "weaktr"): TOY_WALKS,
}
