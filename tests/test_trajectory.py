"""Ten steps of every method beside a plain loop after the paper and the authors' release, from equal weights.

What is published comes from the presets of voc12; network, CLIP and images are the toy's. The loops share no
code with the package but the network, CLIP's encoders and the loader of the batches, and all computes in
float64, so that rounding excuses no difference. Methods that learn background prompts are in
test_trajectory_prompts.py.
"""
import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import train_cam
import train_prompt
from clipwsss.cams.cam_files import read_cam, resize_cam
from clipwsss.cams.generator import build_generator, load_generator
from clipwsss.clip import tokenize
from clipwsss.datasets import build_dataset
from clipwsss.datasets.loaders import make_loader
from clipwsss.datasets.transforms import train_transform
from clipwsss.files import read_network, save_network
from clipwsss.guidance import regions
from clipwsss.guidance.regions import load_clip
from clipwsss.guidance.words import load_words
from clipwsss.options import parse
from clipwsss.toy.world import CLASSES, draw_world
from clipwsss.training import seed_everything

STEPS, N = 10, 8
TINY = {"backbone": "resnet_tiny", "output_stride": 4, "freeze_stages": 0, "frozen_bn": False}
NEUTRAL = ["--workers", "0", "--device", "cpu", "--precision", "fp32", "--brightness", "0", "--clip-norm",
           "0", "--warmup", "0", "--crop-size", "96", "--resize-long", "0", "0"]
# What the loops read from a method's settings and the script is therefore told.
GUIDED = ("optimizer", "schedule", "weight_decay", "momentum", "head_ratio", "freeze_stages", "lr", "w_fg",
          "w_bg", "w_suppress", "w_area", "suppress_threshold", "suppress_reduction", "area_over",
          "map_scale", "clip_view")
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.fixture(scope="module", autouse=True)
def float64():
    """New tensors are float64, also where the package casts to float; one thread, as they are small."""
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        patch.setattr(regions, "resize_cam", lambda *args: resize_cam(*args).astype("float64"))
        torch.set_default_dtype(torch.float64)
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(threads)
        torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A runs folder with 8 images, a random generator in train_cam's place and its CAMs."""
    runs = tmp_path_factory.mktemp("runs")
    draw_world(runs / "toy" / "data", 3, N, 1)
    torch.manual_seed(0)
    start = build_generator(CLASSES, weights="none", **TINY)
    save_network(start, "generator", start.config, runs / "start.pt")
    assert train_cam.main([*start_of(runs), "--epochs", "0", *NEUTRAL]) == 0
    return runs


def start_of(world):
    return ["--dataset", "toy", "--runs", str(world), "--init", str(world / "start.pt")]


def published(script, stage, *flags):
    """The settings that the script resolves for VOC."""
    return vars(parse(script.get_parser(), ["--dataset", "voc12", "--data-root", ".", *flags], stage))


def flags_of(settings, *names):
    """These settings as a command line."""
    line = []
    for name in names:
        flag, value = f"--{name.replace('_', '-')}", settings[name]
        if isinstance(value, bool):
            line += [flag if value else f"--no-{name.replace('_', '-')}"]
        elif value is not None:
            line += [flag, *map(str, value if isinstance(value, list | tuple) else [value])]
    return line


def batches(world, seed=0):
    """One batch for every epoch, as a script with this seed draws it."""
    data = build_dataset("toy", world / "toy" / "data", "train")
    data = data.with_transform(train_transform(96, None), masks=False)
    loader = make_loader(data, N, seed=seed, drop_last=True)
    for epoch in range(STEPS):
        seed_everything(seed, epoch)
        loader.sampler.set_epoch(epoch)
        batch = next(iter(loader))
        yield batch._replace(images=batch.images.contiguous(memory_format=torch.channels_last))


def fresh(world, stem=True):
    """The start; without `stem` the weights of its first convolution and batch norm stay, as under CLIMS."""
    generator = load_generator(world / "start.pt", CLASSES, **TINY).train()
    if not stem:
        generator.backbone.conv1.requires_grad_(False)
        generator.backbone.bn1.requires_grad_(False)
    return generator.to(memory_format=torch.channels_last)


def rate(schedule, t):
    return (1 - t) ** 0.9 if schedule == "poly" else 0.5 + 0.5 * math.cos(math.pi * t)


def sgd(groups, t, settings):
    """One step of the releases' PolyOptimizer (POLE: with a cosine): weight decay, no momentum."""
    with torch.no_grad():
        for parameters, lr in groups:
            for p in parameters:
                if p.grad is not None:  # what is detached or frozen does not decay either
                    p -= lr * rate(settings["schedule"], t) * (p.grad + settings["weight_decay"] * p)
                    p.grad = None


def compare(log, label, losses):
    """The logged losses of these ten steps are the loop's."""
    logged = [row["loss"] for row in map(json.loads, log.read_text().splitlines()) if row["label"] == label]
    assert len(logged) == STEPS and logged[0] != logged[-1]
    assert logged == pytest.approx(losses, rel=1e-11)


def compare_networks(out, reference):
    """The script's generator has the loop's weights and statistics."""
    trained = load_generator(out / "generator.pt", CLASSES, **TINY).state_dict()
    for name, value in reference.state_dict().items():
        assert close(trained[name], value), name


def close(tensor, reference):
    return torch.allclose(tensor, reference.detach(), rtol=0, atol=1e-11)


def text_features(clip, sentences):
    return F.normalize(clip.encode_text(tokenize(sentences)), dim=-1)


def masked_views(clip, images, maps, labels, squash, view):
    """X * P and X * (1 - P) at CLIP's size for every present class of every image, one after another.

    view `release`: as in the releases the network's own input, normalised for ImageNet, is what is enlarged.
    """
    side = clip.input_resolution
    views = {"fg": [], "bg": []}

    def resize(x):
        return F.interpolate(x, (side, side), mode="bilinear", align_corners=view == "release")

    for i, k in labels.nonzero().tolist():
        if view == "release":
            mean, std = torch.tensor(IMAGENET).view(2, 1, 3, 1, 1)
            x = resize((images[i:i + 1] - mean) / std)
        else:
            x = F.interpolate(images[i:i + 1], (side, side), mode="bilinear", antialias=True)
            x = (x - clip.pixel_mean) / clip.pixel_std
        p = squash(maps[i:i + 1, k:k + 1], resize)
        views["fg"].append(x * p)
        views["bg"].append(x * (1 - p))
    features = F.normalize(clip.encode_image(torch.cat(views["fg"] + views["bg"]), normalised=True), dim=-1)
    return dict(zip(views, features.chunk(2)))


def sigmoid_then_resize(m, resize):
    return resize(torch.sigmoid(m))


def resize_then_minmax(epsilon):
    def squash(m, resize):
        m = resize(F.relu(m))
        return (m - m.min()) / (m.max() - m.min() + epsilon)
    return squash


def cosine(a, b):
    return (a * b).sum(-1).clamp(1e-4, 0.9999)


def classify(generator, images, detached):
    """Mean of the maps; IRN detaches what comes out of layer2, CLIMS does not."""
    body = generator.backbone
    x = body.maxpool(F.relu(body.bn1(body.conv1((images - body.mean) / body.std))))
    x = body.layer2(body.layer1(x))
    x = body.layer4(body.layer3(x.detach() if detached else x))
    return generator.classifier(x).mean((2, 3))


@pytest.mark.parametrize("stages", [1, 3], ids=["clims", "irn"])
def test_train_cam(world, tmp_path, stages):
    settings = published(train_cam, "train_cam")
    assert (settings["lr"], settings["momentum"], settings["head_ratio"]) == (0.1, 0.0, 10.0)
    assert settings["freeze_stages"] == 1 and settings["frozen_bn"]
    lr = 0.01  # a random network does not bear 0.1
    settings["freeze_stages"] = stages
    flags = flags_of(settings, "freeze_stages", "frozen_bn", "optimizer", "schedule", "weight_decay",
                     "momentum", "head_ratio")
    assert train_cam.main([*start_of(world), "--out", str(tmp_path), "--epochs", str(STEPS), "--batch-size",
                           str(N), "--lr", str(lr), *NEUTRAL, *flags]) == 0
    generator, losses = fresh(world, stem=False), []
    for module in generator.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    for step, batch in enumerate(batches(world)):
        p = torch.sigmoid(classify(generator, batch.images, stages == 3))
        loss = -(batch.labels * p.log() + (1 - batch.labels) * (1 - p).log()).mean()  # POLE eq. 1
        loss.backward()
        sgd([(generator.backbone.parameters(), lr), (generator.classifier.parameters(), 10 * lr)],
            step / STEPS, settings)
        losses.append(loss.item())
    compare(tmp_path / "log.jsonl", "train_cam", losses)
    compare_networks(tmp_path, generator)


def sigmoid_area(maps):
    return torch.sigmoid(maps).mean()


def guide(world, generator, settings, text, background, groups=(), adapters=(nn.Identity(), nn.Identity()),
          scale=(sigmoid_then_resize, sigmoid_area)):
    """Ten steps of CLIMS and POLE, and their losses. text(pairs of image name and class): their features."""
    clip, lr, losses, (squash, area) = load_clip("toy", "cpu"), settings["lr"], [], scale
    groups = [(list(generator.backbone.parameters()), lr), ([generator.classifier.weight], 10 * lr), *groups]
    for step, batch in enumerate(batches(world)):
        maps = generator(batch.images)
        seen = masked_views(clip, batch.images, maps, batch.labels, squash, settings["clip_view"])
        image_side = {name: F.normalize(adapters[0](x), dim=-1) for name, x in seen.items()}
        pairs = [(batch.names[i], k) for i, k in batch.labels.nonzero().tolist()]
        text_side = F.normalize(adapters[1](text(pairs)), dim=-1)
        otm = -cosine(image_side["fg"], text_side).log().mean()
        btm = -(1 - cosine(image_side["bg"], text_side)).log().mean()
        k = batch.labels.nonzero()[:, 1]
        repelled = background if background.dim() == 2 else background[k]  # of all classes, or each one's own
        every = (seen["fg"][:, None] * repelled).sum(-1)
        every = every if background.dim() == 2 else every.clamp(1e-4, 0.9999)
        cbs = -((1 - every).log() * (every > settings["suppress_threshold"])).sum()
        cbs = cbs if settings["suppress_reduction"] == "sum" else cbs / len(every)
        assert cbs > 0, "no foreground is like a background word: the term is not tested"
        loss = (settings["w_fg"] * otm + settings["w_bg"] * btm + settings["w_suppress"] * cbs
                + settings["w_area"] * area(maps))
        loss.backward()
        sgd(groups, step / STEPS, settings)
        losses.append(loss.item())
    return losses


class PlainAdapter(nn.Module):
    """POLE eqs. 7-8: r * ReLU(x W1) W2 + (1 - r) * x, r a vector from 0.2."""

    def __init__(self, width):
        super().__init__()
        self.w1, self.w2 = nn.Linear(width, width // 4, bias=False), nn.Linear(width // 4, width, bias=False)
        self.r = nn.Parameter(torch.full((width,), 0.2))

    def forward(self, x):
        return self.r * self.w2(F.relu(self.w1(x))) + (1 - self.r) * x


def run_script(world, out, method, settings, *names):
    """train_prompt with these settings for ten steps of 8 images."""
    assert settings["momentum"] == 0.0 and settings["head_ratio"] == 10.0
    assert train_prompt.main([*start_of(world), "--method", method, "--out", str(out), "--epochs", str(STEPS),
                              "--batch-size", str(N), "--cams", str(world / "toy/train_cam/cams"), *NEUTRAL,
                              *flags_of(settings, *GUIDED, *names)]) == 0


@pytest.mark.parametrize("method", ["clims", "pole"])
def test_clims_and_pole(world, tmp_path, method):
    settings = published(train_prompt, "train_prompt", "--method", method)
    settings["adapter_lr"] = settings["lr"]  # toy has another
    assert settings["clip_view"] == "release"
    run_script(world, tmp_path, method, settings, "reselect_every", "adapter_lr")

    clip, words, generator = load_clip("toy", "cpu"), load_words("toy", CLASSES), fresh(world, stem=False)
    background = text_features(clip, [f"a photo of {word}." for word in words.background])
    adapters, groups = [nn.Identity(), nn.Identity()], []
    chosen = {}
    if method == "pole":
        seed_everything(0)
        adapters = [PlainAdapter(128), PlainAdapter(128)]
        groups = [([p for adapter in adapters for p in adapter.parameters()], settings["lr"])]
        chosen = chosen_words(world, clip, words)

    def text(pairs):
        named = [chosen.get(pair, words.names[pair[1]]) for pair in pairs]
        return text_features(clip, [f"a photo of {word}." for word in named])

    losses = guide(world, generator, settings, text, background, groups, adapters)
    compare(tmp_path / "log.jsonl", "guide", losses)
    compare_networks(tmp_path, generator)
    trained = torch.load(tmp_path / "last_guide.pt", weights_only=True)["adapters"].values()
    learned = [value for adapter in adapters for value in adapter.state_dict().values()]  # r, W1, W2 of each
    assert len(trained) == len(learned) and all(map(close, trained, learned))


def chosen_words(world, clip, words):
    """POLE eq. 6: of each image and class the candidate nearest to the image times its baseline CAM."""
    data, chosen = build_dataset("toy", world / "toy" / "data", "train"), {}
    for index, name in enumerate(data.names):
        cam = read_cam(world / "toy/train_cam/cams", name)
        for k, map_ in zip(cam.keys.tolist(), torch.from_numpy(resize_cam(cam, (96, 96)))):
            maps, labels = torch.zeros(1, 6, 96, 96), torch.zeros(1, 6)
            maps[0, k], labels[0, k] = map_, 1
            seen = masked_views(clip, data[index].image[None], maps, labels,
                                lambda m, resize: resize(m), "clip")["fg"]  # as POLE's release chooses words
            texts = text_features(clip, [f"a photo of {word}." for word in words.candidates[k]])
            chosen[name, k] = words.candidates[k][int((texts @ seen[0]).argmax())]
    return chosen


# What is learned of "a photo of NAME.": POLE's Table 1.
LEARNED = {"coop": ("context",), "target": ("name",), "defo": ("context", "name")}


@pytest.mark.parametrize("method", LEARNED)
def test_prompts_learned_with_the_generator(world, tmp_path, method):
    """Vectors start from words and are SGD's third group, at a rate of their own (POLE's PromptLearner)."""
    settings = published(train_prompt, "train_prompt", "--method", method)
    assert settings["joint"] and settings["prompt_lr"] != settings["lr"]
    run_script(world, tmp_path, method, settings, "template", "joint", "adapter", "prompt_lr")

    clip, words, generator = load_clip("toy", "cpu"), load_words("toy", CLASSES), fresh(world, stem=False)
    background = text_features(clip, [f"a photo of {word}." for word in words.background])
    tokens = tokenize([f"a photo of {name}." for name in words.names])
    start, context, name, rest = clip.embed_tokens(tokens)[:, :7].split([1, 3, 1, 2], dim=1)
    vectors = {"context": nn.Parameter(context[0].clone()), "name": nn.Parameter(name[:, 0].clone())}
    learned = [vectors[key] for key in LEARNED[method]]
    before = torch.cat(learned).detach()

    def features():
        parts = [start, vectors["context"].expand(6, 3, -1), vectors["name"][:, None], rest]
        return F.normalize(clip.encode_text_embeddings(torch.cat(parts, dim=1), torch.full((6,), 6)), dim=-1)

    losses = guide(world, generator, settings, lambda pairs: features()[[k for _, k in pairs]], background,
                   [(learned, settings["prompt_lr"])])
    compare(tmp_path / "log.jsonl", "guide", losses)
    compare_networks(tmp_path, generator)
    config, weights = read_network(tmp_path / "class_prompts.pt", "learned prompt")
    assert close(weights["vectors"], torch.cat(learned)) and close(config["text"], features())
    assert (torch.cat(learned) - before).abs().max() > 1e-4
