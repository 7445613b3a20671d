"""The values of all published settings, as blocks: one for each stage, data set and method or network.

A command takes its settings from one block, which the tables at the end of this file name, and from the
values of its data set (`DATA_SET_VALUES`). A flag on the command line replaces a value; a setting that
neither names has the neutral default that `--help-all` shows. A block names at most one other block as its
base. No block depends on the value of a setting, and no key stands in both a block and `DATA_SET_VALUES`.
`block` is the block's own name, which `--dry-run` and report.html show, and `source` says where its values
come from. guidance/SETTINGS.md sets paper, release and these values side by side.

"paper" values serve VOC 2012, COCO 2014 and folders of one's own images. `toy` (--dataset toy) and `quick`
(--preset quick) have blocks of their own; those of `quick` are the same for every data set but the toy world.
"""
from .errors import InputError

# What a data set sets for all blocks of a stage: the splits that the papers train on and score, the box of
# CLIP's own maps (CLIP-ES), and the view of CLIP that the releases have. Their thresholds and weights were
# tuned under that view; on a folder CLIP sees images as it was trained on.
DATA_SET_VALUES = {
    "train_cam": {"voc12": dict(split="train_aug", score_split="train", cam_format="full"),
                  "coco14": dict(box=0.7),
                  "folder": dict(val_split="")},
    "train_prompt": {"voc12": dict(split="train_aug", score_split="train", cam_format="full",
                                   clip_view="release"),
                     "coco14": dict(box=0.7, clip_view="release")},
    "make_pseudo": {"voc12": dict(split="train_aug", score_split="train")},
    "train_seg": {"voc12": dict(split="train_aug"), "folder": dict(predict_split="train")},
}

# ----------------------------------------------------------------------------------------------------
# train_cam.py: the classifier and its CAMs

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

# train_cam.py --generator clip: CLIP's own maps, nothing trained

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

# ----------------------------------------------------------------------------------------------------
# train_prompt.py on VOC 2012: prompts, and a generator tuned under CLIP

POLE = dict(
    block="POLE", source="POLE sec. 4.1; CLIMS' release (VOC) for what POLE says it takes from there",
    class_prompt="word", adapter="learnable", background_prompt="list",
    map_scale="sigmoid", w_fg=10.0, w_bg=24.0, w_area=0.2,
    w_suppress=1.0, suppress_threshold=0.26, suppress_reduction="sum",  # CBS of CLIMS' release
    freeze_stages=1, frozen_bn=False, head_ratio=10.0,
    optimizer="sgd", lr=2.5e-4, schedule="cosine", weight_decay=1e-4,
    momentum=0.0,  # IRN's PolyOptimizer passes the weight decay in the place of the momentum
    batch_size=16, epochs=10, crop_size=512, resize_long=[320, 640],
    scales=[1.0, 0.5, 1.5, 2.0])

CLIMS = POLE | dict(
    block="CLIMS", source="CLIMS' release, README and run_sample.py (VOC)",
    class_prompt="name", adapter="none", schedule="poly", epochs=15)

MANUAL = POLE | dict(
    block="MANUAL", source="POLE Table 1, the hand-written template; the rest as POLE",
    class_prompt="name", adapter="none")

COOP = POLE | dict(
    block="COOP",
    source="POLE Table 1 and release: contexts start from words and are learned with the generator",
    class_prompt="learned", adapter="none", template="[S:a photo of] {}.", joint=True)

TARGET = POLE | dict(
    block="TARGET",
    source="POLE Table 1 and release: class vectors start from names, learned with the generator",
    class_prompt="learned", adapter="none", template="a photo of [C:{}].", joint=True)

DEFO = POLE | dict(
    block="DEFO", source="POLE Table 1 and release: contexts and class vectors, learned with the generator",
    class_prompt="learned", adapter="none", template="[S:a photo of] [C:{}].", joint=True)

SEMPLES = dict(
    block="SEMPLES", source="SemPLeS' release (VOC; paper sec. 4.2 in brackets), on a ResNet",
    class_prompt="name", background_prompt="learned", background_template="a photo of [C*30].",
    map_scale="minmax", w_fg=1.0, w_bg=2.4, w_area=0.0,
    w_suppress=0.05, suppress_threshold=0.0, suppress_reduction="mean",
    w_prompt_image=1.0, w_prompt_class=0.02,
    prompt_repulsion="release",  # +log s (paper: -log(1 - s))
    prompt_start="uniform", prompt_lr=0.025, prompt_batch_size=128,
    match_epochs=60, prompt_epochs=60, epochs=60,
    restart=True,  # stage (c) starts again from the generator before stage (a)
    freeze_stages=1, frozen_bn=False, head_ratio=1.0,
    optimizer="adamw", lr=6.4e-5,  # (5e-4)
    schedule="cosine", weight_decay=0.03,
    batch_size=64, crop_size=512, resize_long=[320, 640],
    scales=[1.0, 0.5, 1.5, 2.0])

BOTH = dict(
    block="BOTH",
    source="this project: POLE's words and guidance and SemPLeS' prompts on CLIP's own maps; tried on "
    "the toy world, not on photographs",
    clip="ViT-B/16", cams="clip", maps="geometric", test_precision="fp32",  # CLIP's own maps as in CLIP-ES
    class_prompt="word", adapter="learnable",
    background_prompt="list+learned", background_template="a photo of [C*30].",
    map_scale="sigmoid", w_fg=10.0, w_bg=24.0, w_area=0.2,
    w_suppress=1.0, suppress_threshold=0.26, suppress_reduction="sum",
    w_prompt_image=1.0, w_prompt_class=0.02, prompt_repulsion="release",
    prompt_start="uniform", prompt_lr=0.025, prompt_batch_size=128, prompt_epochs=60,
    freeze_stages=1, frozen_bn=False, head_ratio=10.0,
    optimizer="sgd", lr=2.5e-4, schedule="cosine", weight_decay=1e-4, momentum=0.0,
    batch_size=16, epochs=10, crop_size=512, resize_long=[320, 640],
    scales=[1.0, 0.5, 1.5, 2.0])

SEMPLES_WEAKTR = SEMPLES | dict(
    block="SEMPLES_WEAKTR",
    source="SemPLeS' release (VOC; paper sec. 4.2 in brackets), on WeakTr as published",
    pooling="max", drop_path=0.1,
    tune="head",  # models123.py detaches tokens and attention: the 3x3 convolution and the fusion learn
    crop_size=224, augment="strong", precision="auto",
    prompt_augment="area",  # main2.py learns the prompts on plain crops of any part
    scales=[1.0, 1.2])

POLE_WEAKTR = POLE | dict(
    block="POLE_WEAKTR",
    source="this project: no paper guides a transformer by POLE's terms; optimiser, rate and "
    "batch of WeakTr's own training",
    map_scale="minmax",  # its maps are not negative, so that a sigmoid would not reach 0
    pooling="max", drop_path=0.1, head_ratio=1.0,
    optimizer="adamw", lr=7.5e-5, weight_decay=0.03, batch_size=64,
    crop_size=224, augment="strong", precision="auto",
    scales=[1.0, 1.2])

CLIMS_WEAKTR = dict(
    block="CLIMS_WEAKTR",
    source="this project: no paper guides a transformer by CLIMS' terms; optimiser, rate and "
    "batch of WeakTr's own training",
    class_prompt="name", background_prompt="list",
    map_scale="minmax", w_fg=10.0, w_bg=24.0, w_area=0.2,
    w_suppress=1.0, suppress_threshold=0.26, suppress_reduction="sum",
    pooling="max", drop_path=0.1, head_ratio=1.0,
    optimizer="adamw", lr=7.5e-5, schedule="poly", weight_decay=0.03,
    batch_size=64, epochs=15, crop_size=224, augment="strong", precision="auto",
    scales=[1.0, 1.2])

BOTH_WEAKTR = BOTH | dict(
    block="BOTH_WEAKTR", source="this project: BOTH with POLE_WEAKTR's training; not tried on photographs",
    map_scale="minmax", pooling="max", drop_path=0.1, head_ratio=1.0,
    optimizer="adamw", lr=7.5e-5, weight_decay=0.03, batch_size=64,
    crop_size=224, augment="strong", precision="auto",
    scales=[1.0, 1.2])

# ----------------------------------------------------------------------------------------------------
# train_prompt.py on COCO 2014

POLE_COCO = POLE | dict(
    block="POLE_COCO",
    source="no paper has POLE on COCO: its weights are CLIMS' defaults, so CLIMS' for COCO",
    w_fg=2.0, w_bg=14.0, w_suppress=1.25, suppress_threshold=0.285)

CLIMS_COCO = POLE | dict(
    block="CLIMS_COCO", source="CLIMS' release, README (COCO)",
    class_prompt="name", adapter="none", schedule="poly",
    w_fg=2.0, w_bg=14.0,
    w_suppress=0.625,  # two processes of 16 images average their gradients, which halves the sum's 1.25
    suppress_threshold=0.285,
    lr=5e-4, batch_size=32, epochs=8)

MANUAL_COCO = POLE | dict(
    block="MANUAL_COCO", source="as POLE_COCO with the hand-written template",
    class_prompt="name", adapter="none", w_fg=2.0, w_bg=14.0, w_suppress=1.25, suppress_threshold=0.285)

COOP_COCO = POLE | dict(
    block="COOP_COCO", source="as POLE_COCO with COOP's prompts",
    class_prompt="learned", adapter="none", template="[S:a photo of] {}.", joint=True,
    w_fg=2.0, w_bg=14.0, w_suppress=1.25, suppress_threshold=0.285)

TARGET_COCO = POLE | dict(
    block="TARGET_COCO", source="as POLE_COCO with TARGET's prompts",
    class_prompt="learned", adapter="none", template="a photo of [C:{}].", joint=True,
    w_fg=2.0, w_bg=14.0, w_suppress=1.25, suppress_threshold=0.285)

DEFO_COCO = POLE | dict(
    block="DEFO_COCO", source="as POLE_COCO with DEFO's prompts",
    class_prompt="learned", adapter="none", template="[S:a photo of] [C:{}].", joint=True,
    w_fg=2.0, w_bg=14.0, w_suppress=1.25, suppress_threshold=0.285)

SEMPLES_COCO = SEMPLES | dict(
    block="SEMPLES_COCO", source="SemPLeS' release (COCO; paper sec. 4.2 in brackets), on a ResNet",
    person="person", w_bg=0.75, w_suppress=0.2, w_prompt_class=0.01,
    lr=2.4e-7,  # (5e-6)
    match_lr=3.2e-7,
    batch_size=24,  # (64)
    prompt_lr=0.0025)

BOTH_COCO = BOTH | dict(
    block="BOTH_COCO", source="this project: BOTH with CLIMS' weights for COCO; not tried on photographs",
    w_fg=2.0, w_bg=14.0, w_suppress=1.25, suppress_threshold=0.285, prompt_lr=0.0025)

SEMPLES_WEAKTR_COCO = SEMPLES | dict(
    block="SEMPLES_WEAKTR_COCO", source="SemPLeS' release (COCO; paper sec. 4.2 in brackets), as published",
    person="person", w_bg=0.75, w_suppress=0.2, w_prompt_class=0.01,
    lr=2.4e-7,  # (5e-6)
    match_lr=3.2e-7,
    batch_size=24,  # (64)
    prompt_lr=0.0025,
    pooling="avg", reduction=4, drop_path=0.1, tune="head",
    crop_size=224, augment="strong", prompt_augment="area", precision="auto",
    scales=[1.0, 0.8, 1.2], crowds="class")

POLE_WEAKTR_COCO = POLE | dict(
    block="POLE_WEAKTR_COCO", source="this project: POLE_WEAKTR with CLIMS' weights for COCO",
    map_scale="minmax", w_fg=2.0, w_bg=14.0, w_suppress=1.25, suppress_threshold=0.285,
    pooling="avg", reduction=4, drop_path=0.1, head_ratio=1.0,
    optimizer="adamw", lr=7.5e-5, weight_decay=0.03, batch_size=64,
    crop_size=224, augment="strong", precision="auto",
    scales=[1.0, 0.8, 1.2], crowds="class")

CLIMS_WEAKTR_COCO = POLE | dict(
    block="CLIMS_WEAKTR_COCO", source="this project: CLIMS_WEAKTR with CLIMS' weights for COCO",
    class_prompt="name", adapter="none",
    map_scale="minmax", w_fg=2.0, w_bg=14.0, w_suppress=0.625, suppress_threshold=0.285,
    pooling="avg", reduction=4, drop_path=0.1, head_ratio=1.0,
    optimizer="adamw", lr=7.5e-5, schedule="poly", weight_decay=0.03, batch_size=64, epochs=8,
    crop_size=224, augment="strong", precision="auto",
    scales=[1.0, 0.8, 1.2], crowds="class")

BOTH_WEAKTR_COCO = BOTH | dict(
    block="BOTH_WEAKTR_COCO",
    source="this project: BOTH_WEAKTR with CLIMS' weights for COCO; not tried on photographs",
    map_scale="minmax", w_fg=2.0, w_bg=14.0, w_suppress=1.25, suppress_threshold=0.285, prompt_lr=0.0025,
    pooling="avg", reduction=4, drop_path=0.1, head_ratio=1.0,
    optimizer="adamw", lr=7.5e-5, weight_decay=0.03, batch_size=64,
    crop_size=224, augment="strong", precision="auto",
    scales=[1.0, 0.8, 1.2], crowds="class")

# ----------------------------------------------------------------------------------------------------
# train_prompt.py --preset quick: a first look in minutes on 2 CPU cores; no published setting

QUICK_POLE = dict(
    block="QUICK_POLE", source="this project: a first look in minutes on 2 CPU cores; no published setting",
    class_prompt="word", adapter="learnable", background_prompt="list",
    map_scale="sigmoid", w_fg=10.0, w_bg=24.0, w_area=0.2,
    w_suppress=1.0, suppress_threshold=0.26, suppress_reduction="sum",
    freeze_stages=1, frozen_bn=False, head_ratio=10.0,
    optimizer="adamw", lr=5e-5, schedule="cosine", weight_decay=0.01,
    batch_size=8, epochs=3, prompt_batch_size=8, crop_size=224, resize_long=[256, 384],
    test_precision="auto", scales=[1.0])

QUICK_CLIMS = QUICK_POLE | dict(
    block="QUICK_CLIMS", source="as QUICK_POLE", class_prompt="name", adapter="none")

QUICK_MANUAL = QUICK_POLE | dict(
    block="QUICK_MANUAL", source="as QUICK_POLE", class_prompt="name", adapter="none")

QUICK_COOP = QUICK_POLE | dict(
    block="QUICK_COOP", source="as QUICK_POLE",
    class_prompt="learned", adapter="none", template="[S:a photo of] {}.", joint=True)

QUICK_TARGET = QUICK_POLE | dict(
    block="QUICK_TARGET", source="as QUICK_POLE",
    class_prompt="learned", adapter="none", template="a photo of [C:{}].", joint=True)

QUICK_DEFO = QUICK_POLE | dict(
    block="QUICK_DEFO", source="as QUICK_POLE",
    class_prompt="learned", adapter="none", template="[S:a photo of] [C:{}].", joint=True)

QUICK_SEMPLES = dict(
    block="QUICK_SEMPLES", source="this project: a first look; no published setting",
    class_prompt="name", background_prompt="learned", background_template="a photo of [C*30].",
    map_scale="minmax", w_fg=1.0, w_bg=2.4, w_area=0.0,
    w_suppress=0.05, suppress_threshold=0.0, suppress_reduction="mean",
    w_prompt_image=1.0, w_prompt_class=0.02, prompt_repulsion="release",
    prompt_start="uniform", prompt_lr=0.025, prompt_batch_size=8,
    match_epochs=3, prompt_epochs=3, epochs=3, restart=True,
    freeze_stages=1, frozen_bn=False, head_ratio=1.0,
    optimizer="adamw", lr=5e-5, schedule="cosine", weight_decay=0.01,
    batch_size=8, crop_size=224, resize_long=[256, 384],
    test_precision="auto", scales=[1.0])

QUICK_BOTH = QUICK_POLE | dict(
    block="QUICK_BOTH",
    source="this project: a first look in minutes on 2 CPU cores, by CLIP alone; no published setting",
    clip="ViT-B/16", maps="clip",
    background_template="a photo of [C*30].",  # as QUICK_SEMPLES, if prompts are learned
    w_prompt_image=1.0, w_prompt_class=0.02, prompt_repulsion="release",
    prompt_start="uniform", prompt_lr=0.025)

QUICK_SEMPLES_WEAKTR = QUICK_SEMPLES | dict(
    block="QUICK_SEMPLES_WEAKTR", source="as QUICK_SEMPLES, on WeakTr",
    pooling="max", drop_path=0.1, tune="head", prompt_augment="area", precision="auto")

QUICK_POLE_WEAKTR = QUICK_POLE | dict(
    block="QUICK_POLE_WEAKTR", source="as QUICK_POLE, on WeakTr",
    map_scale="minmax", pooling="max", drop_path=0.1, head_ratio=1.0, precision="auto")

QUICK_CLIMS_WEAKTR = QUICK_POLE | dict(
    block="QUICK_CLIMS_WEAKTR", source="as QUICK_CLIMS, on WeakTr",
    class_prompt="name", adapter="none",
    map_scale="minmax", pooling="max", drop_path=0.1, head_ratio=1.0, precision="auto")

# ----------------------------------------------------------------------------------------------------
# train_prompt.py --dataset toy: a tiny network and CLIP, 96 x 96 images; chosen on training images

TOY_POLE = dict(
    block="TOY_POLE", source="toy world, chosen on training images: a tiny network and CLIP, 96 x 96 images",
    clip="toy", map_template="a photo of {}.",
    class_prompt="word", adapter="learnable", background_prompt="list",
    map_scale="sigmoid", w_fg=1.0, w_bg=1.0, w_area=1.0, area_over="present",
    w_suppress=0.5, suppress_threshold=0.2, suppress_reduction="mean",
    freeze_stages=0, frozen_bn=False, head_ratio=1.0,
    optimizer="adamw", lr=0.002, adapter_lr=1e-4, schedule="cosine", weight_decay=0.01, clip_norm=5.0,
    batch_size=12, epochs=3, prompt_batch_size=12,
    crop_size=96, resize_long=[0, 0], brightness=0.2, precision="fp32", workers=0,
    scales=[1.0], cam_batch_size=50)

TOY_CLIMS = TOY_POLE | dict(
    block="TOY_CLIMS", source="as TOY_POLE", class_prompt="name", adapter="none", schedule="poly")

TOY_MANUAL = TOY_POLE | dict(
    block="TOY_MANUAL", source="as TOY_POLE", class_prompt="name", adapter="none")

TOY_COOP = TOY_POLE | dict(
    block="TOY_COOP", source="as TOY_POLE",
    class_prompt="learned", adapter="none", template="[S:a photo of] {}.", joint=True, prompt_lr=0.01)

TOY_TARGET = TOY_POLE | dict(
    block="TOY_TARGET", source="as TOY_POLE",
    class_prompt="learned", adapter="none", template="a photo of [C:{}].", joint=True, prompt_lr=0.01)

TOY_DEFO = TOY_POLE | dict(
    block="TOY_DEFO", source="as TOY_POLE",
    class_prompt="learned", adapter="none", template="[S:a photo of] [C:{}].", joint=True, prompt_lr=0.01)

TOY_SEMPLES = dict(
    block="TOY_SEMPLES", source="toy world, chosen on training images; SemPLeS' own weights of maps",
    clip="toy", map_template="a photo of {}.", class_prompt="name", background_prompt="learned",
    background_template="a photo of [C*9].",  # the toy CLIP reads 16 tokens, so that 9 vectors fit
    map_scale="minmax", w_fg=1.0, w_bg=2.4, w_area=0.0,
    w_suppress=0.5, suppress_threshold=0.0, suppress_reduction="mean",
    w_prompt_image=1.0, w_prompt_class=0.02, prompt_repulsion="release",
    prompt_start="uniform", prompt_lr=0.025, prompt_batch_size=12,
    match_epochs=3, match_lr=0.002, prompt_epochs=1, epochs=3, restart=True,
    freeze_stages=0, frozen_bn=False, head_ratio=1.0,
    optimizer="adamw", lr=0.001, adapter_lr=1e-4, schedule="cosine", weight_decay=0.01, clip_norm=5.0,
    batch_size=12, crop_size=96, resize_long=[0, 0], brightness=0.2, precision="fp32", workers=0,
    scales=[1.0], cam_batch_size=50)

TOY_BOTH = TOY_POLE | dict(
    block="TOY_BOTH", source="toy world, chosen on training images of seeds 0, 1 and 2",
    cams="clip", maps="geometric", test_precision="fp32",
    background_prompt="list+learned", background_template="a photo of [C*9].",
    w_prompt_image=1.0, w_prompt_class=0.02, prompt_repulsion="release",
    prompt_start="uniform", prompt_lr=0.025, prompt_epochs=1)

TOY_SEMPLES_WEAKTR = TOY_SEMPLES | dict(
    block="TOY_SEMPLES_WEAKTR", source="toy world, a first guess, not tuned: a tiny transformer",
    drop_path=0.0, tune="head", prompt_augment="area", lr=0.0005, match_lr=0.0005)

TOY_POLE_WEAKTR = TOY_POLE | dict(
    block="TOY_POLE_WEAKTR", source="toy world, a first guess, not tuned: a tiny transformer",
    map_scale="minmax", drop_path=0.0, lr=0.0005, match_lr=0.0005)

TOY_CLIMS_WEAKTR = TOY_POLE | dict(
    block="TOY_CLIMS_WEAKTR", source="toy world, a first guess, not tuned: a tiny transformer",
    class_prompt="name", adapter="none", schedule="poly",
    map_scale="minmax", drop_path=0.0, lr=0.0005, match_lr=0.0005)

TOY_BOTH_WEAKTR = TOY_POLE | dict(
    block="TOY_BOTH_WEAKTR", source="toy world, a first guess, not tuned: a tiny transformer",
    cams="clip", maps="geometric", test_precision="fp32",
    background_prompt="list+learned", background_template="a photo of [C*9].",
    w_prompt_image=1.0, w_prompt_class=0.02, prompt_repulsion="release",
    prompt_start="uniform", prompt_lr=0.025, prompt_epochs=1,
    map_scale="minmax", drop_path=0.0, lr=0.0005)

# ----------------------------------------------------------------------------------------------------
# make_pseudo.py: CAMs to pseudo masks, by the walk that --refine names

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

# ----------------------------------------------------------------------------------------------------
# train_seg.py: the segmenter

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

# ----------------------------------------------------------------------------------------------------
# Which block a command takes. Rows are (data, generator, method, walk of --refine, or network).

TRAIN_CAM = {
    ("voc12", "resnet"): CLIMS_CAM, ("voc12", "weaktr"): WEAKTR_CAM, ("voc12", "clip"): CLIP_CAM,
    ("coco14", "resnet"): CLIMS_CAM, ("coco14", "weaktr"): WEAKTR_CAM_COCO, ("coco14", "clip"): CLIP_CAM_COCO,
    ("folder", "resnet"): CLIMS_CAM, ("folder", "weaktr"): WEAKTR_CAM_FOLDER, ("folder", "clip"): CLIP_CAM,
    ("quick", "resnet"): QUICK_CAM, ("quick", "weaktr"): QUICK_WEAKTR_CAM, ("quick", "clip"): QUICK_CLIP_CAM,
    ("toy", "resnet"): TOY_CAM, ("toy", "weaktr"): TOY_WEAKTR_CAM, ("toy", "clip"): TOY_CLIP_CAM,
}

VOC_METHODS = {
    ("resnet", "clims"): CLIMS, ("resnet", "pole"): POLE, ("resnet", "manual"): MANUAL,
    ("resnet", "coop"): COOP, ("resnet", "target"): TARGET, ("resnet", "defo"): DEFO,
    ("resnet", "semples"): SEMPLES, ("resnet", "both"): BOTH,
    ("weaktr", "clims"): CLIMS_WEAKTR, ("weaktr", "pole"): POLE_WEAKTR, ("weaktr", "semples"): SEMPLES_WEAKTR,
    ("weaktr", "both"): BOTH_WEAKTR,
}
COCO_METHODS = {
    ("resnet", "clims"): CLIMS_COCO, ("resnet", "pole"): POLE_COCO, ("resnet", "manual"): MANUAL_COCO,
    ("resnet", "coop"): COOP_COCO, ("resnet", "target"): TARGET_COCO, ("resnet", "defo"): DEFO_COCO,
    ("resnet", "semples"): SEMPLES_COCO, ("resnet", "both"): BOTH_COCO,
    ("weaktr", "clims"): CLIMS_WEAKTR_COCO, ("weaktr", "pole"): POLE_WEAKTR_COCO,
    ("weaktr", "semples"): SEMPLES_WEAKTR_COCO, ("weaktr", "both"): BOTH_WEAKTR_COCO,
}
QUICK_METHODS = {
    ("resnet", "clims"): QUICK_CLIMS, ("resnet", "pole"): QUICK_POLE, ("resnet", "manual"): QUICK_MANUAL,
    ("resnet", "coop"): QUICK_COOP, ("resnet", "target"): QUICK_TARGET, ("resnet", "defo"): QUICK_DEFO,
    ("resnet", "semples"): QUICK_SEMPLES, ("resnet", "both"): QUICK_BOTH,
    ("weaktr", "clims"): QUICK_CLIMS_WEAKTR, ("weaktr", "pole"): QUICK_POLE_WEAKTR,
    ("weaktr", "semples"): QUICK_SEMPLES_WEAKTR,
}
TOY_METHODS = {
    ("resnet", "clims"): TOY_CLIMS, ("resnet", "pole"): TOY_POLE, ("resnet", "manual"): TOY_MANUAL,
    ("resnet", "coop"): TOY_COOP, ("resnet", "target"): TOY_TARGET, ("resnet", "defo"): TOY_DEFO,
    ("resnet", "semples"): TOY_SEMPLES, ("resnet", "both"): TOY_BOTH,
    ("weaktr", "clims"): TOY_CLIMS_WEAKTR, ("weaktr", "pole"): TOY_POLE_WEAKTR,
    ("weaktr", "semples"): TOY_SEMPLES_WEAKTR, ("weaktr", "both"): TOY_BOTH_WEAKTR,
}
TRAIN_PROMPT = {"voc12": VOC_METHODS, "folder": VOC_METHODS, "coco14": COCO_METHODS,
                "quick": QUICK_METHODS, "toy": TOY_METHODS}

# make_pseudo.py: the block by the walk of --refine. "default" is that of a command without --refine, "none"
# that of stages without a walk.
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


def usual_choices(stage: str, dataset: str, preset: str) -> dict[str, str]:
    """What selects the block where the command line does not: `--preset quick` works with CLIP alone."""
    if preset != "quick" or dataset == "toy":
        return {}
    if stage in ("train_cam", "make_pseudo"):
        return {"generator": "clip"}
    if stage == "train_prompt":
        return {"method": "both"}
    return {}


def find_block(stage: str, dataset: str, preset: str, choices: dict[str, object]) -> dict:
    """The block of a command; {} for eval.py, which has no settings to preset.

    dataset, preset: --dataset and --preset. choices: what else selects a block, by flag: `generator` and
    `method`, `refine` (None where it was not given), or `network` and `weights`. InputError where there is no
    such block.
    """
    data = dataset
    if preset == "quick" and dataset != "toy":
        data = "quick"
    if stage == "train_cam":
        return TRAIN_CAM[data, choices["generator"]]
    if stage == "train_prompt":
        methods = TRAIN_PROMPT[data]
        generator = choices["generator"]
        if (generator, choices["method"]) not in methods:
            valid = [method for kind, method in methods if kind == generator]
            raise InputError(f"--method {choices['method']}: there are no settings of it for --generator "
                             f"{generator} on this data set; there are for {', '.join(valid)}")
        return methods[generator, choices["method"]]
    if stage == "make_pseudo":
        blocks = MAKE_PSEUDO[data, choices["generator"]]
        if choices["refine"] is None:
            return blocks["default"]
        walks = [name for name in choices["refine"] if name in ("irn", "psa", "color")]
        return blocks[walks[0] if walks else "none"]
    if stage == "train_seg":
        if (data, choices["network"]) not in TRAIN_SEG:
            raise InputError(f"--network {choices['network']}: there is no --preset quick of it")
        if choices["weights"] == "imagenet" and (data, choices["network"]) in TRAIN_SEG_FROM_IMAGENET:
            return TRAIN_SEG_FROM_IMAGENET[data, choices["network"]]
        return TRAIN_SEG[data, choices["network"]]
    return {}
