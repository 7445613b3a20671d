"""Blocks of train_cam.py: the classifier and its CAMs, and CLIP's own maps."""

CLIMS_CAM = dict(
    block="CLIMS_CAM",
    source="CLIMS' release, step/train_cam.py (VOC), which POLE shares: as IRN, but layer1 and layer2 learn",
    backbone="resnet50", weights="imagenet", output_stride=16,
    freeze_stages=1, frozen_bn=True, head_ratio=10.0,
    optimizer="sgd", lr=0.1, schedule="poly", weight_decay=1e-4,
    momentum=0.0,  # IRN's PolyOptimizer passes the weight decay in the place of the momentum
    batch_size=16, epochs=5, crop_size=512, resize_long=[320, 640],
    scales=[1.0, 0.5, 1.5, 2.0])

WEAKTR_CAM = dict(
    block="WEAKTR_CAM", source="hustvl/WeakTr, main.py and docs/Training.md (VOC)",
    backbone="deit_small", weights="imagenet", pooling="max", reduction=8, drop_path=0.1, head_ratio=1.0,
    optimizer="adamw", lr=7.5e-5,  # 6e-4 * 64 / 512
    schedule="cosine", min_lr=1e-5,  # per step; the release changes it per epoch
    weight_decay=0.03,  # also of biases and norms, as in the release
    warmup=825,  # 5 epochs in steps
    batch_size=64, epochs=60, crop_size=224, augment="strong", precision="auto",
    scales=[1.0, 1.2])

WEAKTR_CAM_COCO = WEAKTR_CAM | dict(
    block="WEAKTR_CAM_COCO", source="the checkpoint that SemPLeS' release starts from (its docs/Training.md)",
    pooling="avg", reduction=4,  # WeakTr's own documents now say max and 8
    lr=6.25e-5,  # 5e-4 * 64 / 512; WeakTr's own documents now say 2e-4
    weight_decay=0.05,  # the default of main.py, which the command for COCO does not replace
    warmup=6410,  # 5 epochs in steps
    scales=[1.0, 0.8, 1.2], crowds="class")

WEAKTR_CAM_FOLDER = WEAKTR_CAM | dict(
    block="WEAKTR_CAM_FOLDER", source="as WEAKTR_CAM; the steps of an epoch are not known, so no warm-up",
    warmup=0)

QUICK_CAM = dict(
    block="QUICK_CAM", source="this project: a first look in minutes on 2 CPU cores; no published setting",
    backbone="resnet18", weights="auto", output_stride=16,
    freeze_stages=0, frozen_bn=False, head_ratio=10.0,
    optimizer="adamw", lr=1e-4, schedule="cosine", weight_decay=0.01,
    batch_size=8, epochs=8, crop_size=224, resize_long=[256, 384],
    test_precision="auto", scales=[1.0])

QUICK_WEAKTR_CAM = dict(
    block="QUICK_WEAKTR_CAM", source="this project: a first look; no published setting",
    backbone="deit_small", weights="auto", pooling="max", reduction=8, drop_path=0.1, head_ratio=1.0,
    optimizer="adamw", lr=1e-4, schedule="cosine", weight_decay=0.01,
    batch_size=8, epochs=8, crop_size=224, resize_long=[256, 384], precision="auto",
    test_precision="auto", scales=[1.0])

TOY_CAM = dict(
    block="TOY_CAM", source="toy world, chosen on training images: a tiny network, 96 x 96 images",
    backbone="resnet_tiny", weights="none", output_stride=4,
    freeze_stages=0, frozen_bn=False, head_ratio=1.0,
    optimizer="adamw", lr=0.003, schedule="cosine", weight_decay=0.01, warmup=20,
    batch_size=16, epochs=8, crop_size=96, resize_long=[0, 0], brightness=0.2, precision="fp32", workers=0,
    scales=[1.0], cam_batch_size=50)

TOY_WEAKTR_CAM = dict(
    block="TOY_WEAKTR_CAM", source="toy world, a first guess, not tuned: a tiny transformer from scratch",
    backbone="deit_toy", weights="none", pooling="max", reduction=4, drop_path=0.0, head_ratio=1.0,
    optimizer="adamw", lr=0.001, schedule="cosine", weight_decay=0.03, warmup=76,
    batch_size=16, epochs=24, crop_size=96, resize_long=[0, 0], brightness=0.2, precision="fp32", workers=0,
    scales=[1.0], cam_batch_size=50)

# --generator clip: CLIP's own maps, nothing trained

CLIP_CAM = dict(
    block="CLIP_CAM", source="linyq2117/CLIP-ES, generate_cams_voc12.py",
    clip="ViT-B/16", template="a clean origami {}.", test_precision="fp32")  # the release: float16

CLIP_CAM_COCO = CLIP_CAM | dict(
    block="CLIP_CAM_COCO", source="linyq2117/CLIP-ES, generate_cams_coco14.py")

QUICK_CLIP_CAM = CLIP_CAM | dict(
    block="QUICK_CLIP_CAM", source="as CLIP_CAM, which trains nothing", test_precision="auto")

TOY_CLIP_CAM = dict(
    block="TOY_CLIP_CAM", source="toy world: its CLIP is a ResNet, which has MaskCLIP's maps",
    clip="toy", template="a photo of {}.", test_precision="fp32", workers=0, cam_batch_size=50)

# The block by (data, generator).
TRAIN_CAM = {
    ("voc12", "resnet"): CLIMS_CAM, ("voc12", "weaktr"): WEAKTR_CAM, ("voc12", "clip"): CLIP_CAM,
    ("coco14", "resnet"): CLIMS_CAM, ("coco14", "weaktr"): WEAKTR_CAM_COCO, ("coco14", "clip"): CLIP_CAM_COCO,
    ("folder", "resnet"): CLIMS_CAM, ("folder", "weaktr"): WEAKTR_CAM_FOLDER, ("folder", "clip"): CLIP_CAM,
    ("quick", "resnet"): QUICK_CAM, ("quick", "weaktr"): QUICK_WEAKTR_CAM, ("quick", "clip"): QUICK_CLIP_CAM,
    ("toy", "resnet"): TOY_CAM, ("toy", "weaktr"): TOY_WEAKTR_CAM, ("toy", "clip"): TOY_CLIP_CAM,
}
