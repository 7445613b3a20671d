"""Blocks of train_prompt.py: prompts, and a generator tuned under CLIP."""

# ----------------------------------------------------------------------------------------------------
# VOC 2012 and folders

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
# COCO 2014

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
# --preset quick: a first look in minutes on 2 CPU cores; no published setting

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
# --dataset toy: a tiny network and CLIP, 96 x 96 images; chosen on training images

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
# The block by data and (generator, method).

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
