"""Blocks of train_seg.py: the segmenter."""

DEEPLABV2 = dict(
    block="DEEPLABV2", source="kazuto1011/deeplab-pytorch, configs/voc12.yaml",
    backbone="resnet101", weights="imagenet", output_stride=8, frozen_bn=True, head_ratio=10.0,
    optimizer="sgd", lr=2.5e-4, schedule="poly", weight_decay=5e-4, momentum=0.9,
    batch_size=5, accumulate=2, iterations=20000, crop_size=321, scales=[0.5, 0.75, 1.0, 1.25, 1.5],
    test_scales=[1.0, 0.75, 0.5], test_fusion="max", test_flip=False,
    crf=True, crf_gaussian=[1.0, 3.0], crf_bilateral=[67.0, 3.0, 4.0])

DEEPLABV2_IMAGENET = DEEPLABV2 | dict(
    block="DEEPLABV2_IMAGENET",
    source="CVI-SZU/CLIMS, segmentation/deeplabv2/configs/voc12_imagenet_pretrained.yaml and main_v2.py: the "
    "recipe of a start from ImageNet's weights",
    balanced=True, batch_size=10, iterations=30000, scales=[0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0])

DEEPLABV2_IMAGENET_COCO = DEEPLABV2 | dict(
    block="DEEPLABV2_IMAGENET_COCO",
    source="as DEEPLABV2_IMAGENET, with the iterations of deeplab-pytorch's COCO configurations; CLIMS' "
    "release trains no segmenter on COCO",
    balanced=True, batch_size=10, iterations=100000, scales=[0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0])

DEEPLABV2_COCO = DEEPLABV2 | dict(
    block="DEEPLABV2_COCO", source="kazuto1011/deeplab-pytorch, its COCO configurations",
    iterations=100000)

DEEPLABV3PLUS = DEEPLABV2 | dict(
    block="DEEPLABV3PLUS", source="trained as DEEPLABV2; tested as DeepLabV3 (Chen et al. 2017)",
    test_scales=[0.5, 0.75, 1.0, 1.25, 1.5, 1.75], test_fusion="mean", test_flip=True)

DEEPLABV3PLUS_COCO = DEEPLABV2 | dict(
    block="DEEPLABV3PLUS_COCO", source="trained as DEEPLABV2_COCO; tested as DeepLabV3 (Chen et al. 2017)",
    iterations=100000,
    test_scales=[0.5, 0.75, 1.0, 1.25, 1.5, 1.75], test_fusion="mean", test_flip=True)

MASK2FORMER = dict(
    block="MASK2FORMER",
    source="FMA-WSSS (arXiv 2312.03585, HAL-42/FMA-WSSS), to which SemPLeS hands its masks: AdamW 1e-4, "
    "backbone at 0.1, Swin-L of ImageNet-22k, tested at step 30,000; its mmsegmentation fork is not public: "
    "clipping, sizes and distortion are those of mmsegmentation's own Mask2Former and VOC configurations",
    weights="microsoft/swin-large-patch4-window12-384-in22k", head_ratio=10.0,
    optimizer="adamw", lr=1e-5, schedule="poly", weight_decay=0.05, momentum=0.9, clip_norm=0.01,
    batch_size=4, accumulate=1, iterations=80000, stop_at=30000,
    pipeline="mmsegmentation", crop_size=512, scales=[0.5, 2.0],
    short_side=512, test_scales=[1.0], test_fusion="mean", test_flip=False, crf=False)

MASK2FORMER_COCO = MASK2FORMER | dict(
    block="MASK2FORMER_COCO", source="as MASK2FORMER; FMA-WSSS' COCO configuration and README",
    iterations=100000, stop_at=90000)

MASK2FORMER_FOLDER = MASK2FORMER | dict(
    block="MASK2FORMER_FOLDER", source="as MASK2FORMER, to the last step", stop_at=0)

QUICK_DEEPLABV2 = dict(
    block="QUICK_DEEPLABV2",
    source="this project: a first look in minutes on 2 CPU cores; no published setting",
    backbone="resnet18", weights="auto", output_stride=16, rates=[3, 6, 9, 12], frozen_bn=False,
    multi_scale=False, head_ratio=10.0,
    optimizer="adamw", lr=2e-4, schedule="poly", weight_decay=0.01, momentum=0.9,
    batch_size=8, accumulate=1, iterations=100, crop_size=224, scales=[0.5, 0.75, 1.0, 1.25, 1.5],
    test_scales=[1.0], test_fusion="max", test_flip=False, test_precision="auto", crf=False)

QUICK_DEEPLABV3PLUS = QUICK_DEEPLABV2 | dict(
    block="QUICK_DEEPLABV3PLUS", source="as QUICK_DEEPLABV2", test_fusion="mean")

TOY_DEEPLABV2 = dict(
    block="TOY_DEEPLABV2",
    source="toy world, chosen on training images (network and epochs after the held-out "
    "images of seed 0 had been seen)",
    backbone="resnet_tiny", weights="generator", output_stride=4, rates=[1, 2, 4, 6], frozen_bn=False,
    multi_scale=False, head_ratio=1.0,
    optimizer="adamw", lr=0.003, schedule="poly", weight_decay=0.01, momentum=0.9,
    batch_size=16, accumulate=1, epochs=6, crop_size=96, scales=[1.0, 1.0], brightness=0.2, precision="fp32",
    workers=0,
    test_scales=[1.0], test_fusion="mean", test_flip=True, test_batch_size=50, crf=True)

TOY_DEEPLABV3PLUS = TOY_DEEPLABV2 | dict(
    block="TOY_DEEPLABV3PLUS", source="as TOY_DEEPLABV2")

TOY_MASK2FORMER = dict(
    block="TOY_MASK2FORMER", source="this project: to try the network on the toy world; not tuned",
    weights="none", head_ratio=10.0,
    optimizer="adamw", lr=1e-4, schedule="poly", weight_decay=0.05, momentum=0.9,
    batch_size=4, accumulate=1, epochs=6, crop_size=96, scales=[1.0, 1.0], precision="fp32", workers=0,
    test_scales=[1.0], test_fusion="mean", test_flip=False, crf=False)

# The block by (data, network).
TRAIN_SEG = {
    ("voc12", "deeplabv2"): DEEPLABV2, ("voc12", "deeplabv3plus"): DEEPLABV3PLUS,
    ("voc12", "mask2former"): MASK2FORMER,
    ("coco14", "deeplabv2"): DEEPLABV2_COCO, ("coco14", "deeplabv3plus"): DEEPLABV3PLUS_COCO,
    ("coco14", "mask2former"): MASK2FORMER_COCO,
    ("folder", "deeplabv2"): DEEPLABV2, ("folder", "deeplabv3plus"): DEEPLABV3PLUS,
    ("folder", "mask2former"): MASK2FORMER_FOLDER,
    ("quick", "deeplabv2"): QUICK_DEEPLABV2, ("quick", "deeplabv3plus"): QUICK_DEEPLABV3PLUS,
    ("toy", "deeplabv2"): TOY_DEEPLABV2, ("toy", "deeplabv3plus"): TOY_DEEPLABV3PLUS,
    ("toy", "mask2former"): TOY_MASK2FORMER,
}

# What `--weights imagenet`, the default, selects in place of the rows above: a recipe belongs to its start.
TRAIN_SEG_FROM_IMAGENET = {
    ("voc12", "deeplabv2"): DEEPLABV2_IMAGENET, ("coco14", "deeplabv2"): DEEPLABV2_IMAGENET_COCO,
    ("folder", "deeplabv2"): DEEPLABV2_IMAGENET,
}
