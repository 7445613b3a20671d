"""Ten steps of every method beside a plain loop after the paper and the authors' release, from the same weights.

What is published comes from the presets of voc12; network, CLIP and images are the toy's. The loops share no
code with the package but the network, CLIP's encoders and the loader of the batches.
"""
import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import train_cam
import train_prompt
from clipwsss.cams.files import read_cam, resize_cam
from clipwsss.cams.base import GeneratorSettings
from clipwsss.cams.generator import build_generator, load_generator, save_generator
from clipwsss.clip import tokenize
from clipwsss.datasets import build_dataset
from clipwsss.datasets.loaders import make_loader
from clipwsss.datasets.transforms import train_transform
from clipwsss.guidance.regions import load_clip
from clipwsss.guidance.words import load_words
from clipwsss.options import parse
from clipwsss.toy.world import CLASSES, draw_world
from clipwsss.training import seed_everything

STEPS, N = 10, 8
NEUTRAL = ["--workers", "0", "--device", "cpu", "--precision", "fp32", "--brightness", "0", "--clip-norm", "0",
           "--warmup", "0", "--crop-size", "96", "--resize-long", "0", "0"]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Several threads add in an order of their own, and AdamW makes much of gradients that are nearly zero."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A runs folder with 8 images, a random generator in train_cam's place and its CAMs."""
    runs = tmp_path_factory.mktemp("runs")
    draw_world(runs / "toy" / "data", 3, N, 1)
    torch.manual_seed(0)
    save_generator(build_generator(CLASSES, GeneratorSettings("resnet_tiny", "none", 4, 0)), runs / "start.pt")
    argv = ["--dataset", "toy", "--runs", str(runs), "--init", str(runs / "start.pt"), "--epochs", "0", *NEUTRAL]
    assert train_cam.main(argv) == 0
    return runs


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
    data = build_dataset("toy", world / "toy" / "data", "train").with_transform(train_transform(96, None), masks=False)
    loader = make_loader(data, N, seed=seed, drop_last=True)
    for epoch in range(STEPS):
        seed_everything(seed, epoch)
        loader.sampler.set_epoch(epoch)
        batch = next(iter(loader))
        yield batch._replace(images=batch.images.contiguous(memory_format=torch.channels_last))


def fresh(world):
    generator = load_generator(world / "start.pt", CLASSES, GeneratorSettings(freeze_stages=0)).train()
    return generator.to(memory_format=torch.channels_last)


def rate(schedule, t):
    return (1 - t) ** 0.9 if schedule == "poly" else 0.5 + 0.5 * math.cos(math.pi * t)


def sgd(groups, t, settings):
    """One step of the releases' PolyOptimizer (POLE: with a cosine): weight decay, no momentum."""
    with torch.no_grad():
        for parameters, lr in groups:
            for p in parameters:
                p -= lr * rate(settings["schedule"], t) * (p.grad + settings["weight_decay"] * p)
                p.grad = None


def compare(log, label, losses, out, reference):
    """Losses and weights alike. Batch norm and clamped logarithms amplify float32's rounding in ten steps, by more
    or less with the machine's load: single weights may differ by more than 1e-5, their mean may not.
    """
    logged = [row["loss"] for row in map(json.loads, log.read_text().splitlines()) if row["label"] == label]
    assert len(logged) == STEPS and logged[0] != logged[-1]
    assert logged == pytest.approx(losses, rel=2e-5, abs=1e-5)
    if reference is not None:
        trained = dict(load_generator(out / "generator.pt", CLASSES, GeneratorSettings(freeze_stages=0)).named_parameters())
        for name, value in reference.named_parameters():
            difference = (trained[name] - value).abs()
            assert difference.mean() < 1e-5 and difference.max() < 2e-4, name


def text_features(clip, sentences):
    return F.normalize(clip.encode_text(tokenize(sentences)), dim=-1)


def masked_views(clip, images, maps, labels, squash):
    """X * P and X * (1 - P) at CLIP's size for every present class of every image, one after another."""
    side = clip.input_resolution
    views = {"fg": [], "bg": []}
    for i, k in labels.nonzero().tolist():
        view = F.interpolate(images[i:i + 1], (side, side), mode="bilinear", antialias=True)
        view = (view - clip.pixel_mean) / clip.pixel_std
        p = squash(maps[i:i + 1, k:k + 1], side)
        views["fg"].append(view * p)
        views["bg"].append(view * (1 - p))
    features = F.normalize(clip.encode_image(torch.cat(views["fg"] + views["bg"]), normalised=True), dim=-1)
    return dict(zip(views, features.chunk(2)))


def sigmoid_then_resize(m, side):
    return F.interpolate(torch.sigmoid(m), (side, side), mode="bilinear")


def resize_then_minmax(epsilon):
    def squash(m, side):
        m = F.interpolate(F.relu(m), (side, side), mode="bilinear")
        return (m - m.min()) / (m.max() - m.min() + epsilon)
    return squash


def cosine(a, b):
    return (a * b).sum(-1).clamp(1e-4, 0.9999)


def test_train_cam(world, tmp_path):
    settings = published(train_cam, "train_cam")
    assert (settings["lr"], settings["momentum"], settings["head_ratio"]) == (0.1, 0.0, 10.0)
    lr = 0.01  # a random network does not bear 0.1
    argv = ["--dataset", "toy", "--runs", str(world), "--init", str(world / "start.pt"), "--out", str(tmp_path),
            "--epochs", str(STEPS), "--batch-size", str(N), "--lr", str(lr), "--freeze-stages", "0", *NEUTRAL,
            *flags_of(settings, "optimizer", "schedule", "weight_decay", "momentum", "head_ratio")]
    assert train_cam.main(argv) == 0
    generator, losses = fresh(world), []
    for step, batch in enumerate(batches(world)):
        scores = generator(batch.images).mean((2, 3))
        p = torch.sigmoid(scores)
        loss = -(batch.labels * p.log() + (1 - batch.labels) * (1 - p).log()).mean()  # POLE eq. 1
        loss.backward()
        sgd([(generator.backbone.parameters(), lr), (generator.classifier.parameters(), 10 * lr)], step / STEPS,
            settings)
        losses.append(loss.item())
    compare(tmp_path / "log.jsonl", "train_cam", losses, tmp_path, generator)


class PlainAdapter(nn.Module):
    """POLE eqs. 7-8: r * ReLU(x W1) W2 + (1 - r) * x, r a vector from 0.2."""

    def __init__(self, width):
        super().__init__()
        self.w1, self.w2 = nn.Linear(width, width // 4, bias=False), nn.Linear(width // 4, width, bias=False)
        self.r = nn.Parameter(torch.full((width,), 0.2))

    def forward(self, x):
        return self.r * self.w2(F.relu(self.w1(x))) + (1 - self.r) * x


@pytest.mark.parametrize("method", ["clims", "pole"])
def test_clims_and_pole(world, tmp_path, method):
    settings = published(train_prompt, "train_prompt", "--method", method)
    names = ("optimizer", "schedule", "weight_decay", "momentum", "head_ratio", "lr", "w_fg", "w_bg", "w_suppress",
             "w_area", "suppress_threshold", "suppress_reduction", "area_over", "map_scale", "reselect_every")
    argv = ["--dataset", "toy", "--method", method, "--runs", str(world), "--out", str(tmp_path), "--init",
            str(world / "start.pt"), "--cams", str(world / "toy/train_cam/cams"), "--epochs", str(STEPS),
            "--batch-size", str(N), "--adapter-lr", str(settings["lr"]), *NEUTRAL, *flags_of(settings, *names)]
    assert train_prompt.main(argv) == 0

    clip, words, generator = load_clip("toy", "cpu"), load_words("toy", CLASSES), fresh(world)
    background = text_features(clip, [f"a photo of {word}." for word in words.background])
    lr, groups, adapters = settings["lr"], [], [nn.Identity(), nn.Identity()]
    if method == "pole":
        seed_everything(0)
        adapters = [PlainAdapter(128), PlainAdapter(128)]
        groups = [([p for adapter in adapters for p in adapter.parameters()], lr)]
    chosen = chosen_words(world, clip, words) if method == "pole" else None
    losses = []
    for step, batch in enumerate(batches(world)):
        maps = generator(batch.images)
        seen = masked_views(clip, batch.images, maps, batch.labels, sigmoid_then_resize)
        pairs = [(batch.names[i], k) for i, k in batch.labels.nonzero().tolist()]
        text = text_features(clip, [f"a photo of {chosen[pair] if chosen else words.names[pair[1]]}."
                                    for pair in pairs])
        image_side = {name: F.normalize(adapters[0](x), dim=-1) for name, x in seen.items()}
        text = F.normalize(adapters[1](text), dim=-1)
        otm = -cosine(image_side["fg"], text).log().mean()
        btm = -(1 - cosine(image_side["bg"], text)).log().mean()
        every = (seen["fg"][:, None] * background).sum(-1)
        cbs = -((1 - every).log() * (every > settings["suppress_threshold"])).sum()
        loss = (settings["w_fg"] * otm + settings["w_bg"] * btm + settings["w_suppress"] * cbs
                + settings["w_area"] * torch.sigmoid(maps).mean())
        loss.backward()
        sgd([(generator.backbone.parameters(), lr), (generator.classifier.parameters(), 10 * lr), *groups],
            step / STEPS, settings)
        losses.append(loss.item())
    compare(tmp_path / "log.jsonl", "guide", losses, tmp_path, generator)


def chosen_words(world, clip, words):
    """POLE eq. 6: of each image and class the candidate nearest to the image times its baseline CAM."""
    data, chosen = build_dataset("toy", world / "toy" / "data", "train"), {}
    for index, name in enumerate(data.names):
        cam = read_cam(world / "toy/train_cam/cams", name)
        for k, map_ in zip(cam.keys.tolist(), torch.from_numpy(resize_cam(cam, (96, 96)))):
            maps, labels = torch.zeros(1, 6, 96, 96), torch.zeros(1, 6)
            maps[0, k], labels[0, k] = map_, 1
            seen = masked_views(clip, data[index].image[None], maps, labels,
                                lambda m, side: F.interpolate(m, (side, side), mode="bilinear"))["fg"]
            texts = text_features(clip, [f"a photo of {word}." for word in words.candidates[k]])
            chosen[name, k] = words.candidates[k][int((texts @ seen[0]).argmax())]
    return chosen


def test_semples(world, tmp_path):
    settings = published(train_prompt, "train_prompt", "--method", "semples")
    assert settings["map_scale"] == "minmax" and settings["w_area"] == 0 and settings["restart"]
    names = ("optimizer", "schedule", "weight_decay", "head_ratio", "lr", "w_fg", "w_bg", "w_suppress", "w_area",
             "w_prompt_image", "w_prompt_class", "suppress_threshold", "suppress_reduction", "map_scale", "restart",
             "prompt_lr", "prompt_start", "prompt_repulsion")
    argv = ["--dataset", "toy", "--method", "semples", "--runs", str(world), "--out", str(tmp_path), "--init",
            str(world / "start.pt"), "--epochs", str(STEPS), "--match-epochs", str(STEPS), "--prompt-epochs",
            str(STEPS), "--batch-size", str(N), "--prompt-batch-size", str(N), *NEUTRAL, *flags_of(settings, *names),
            "--match-lr", str(settings["lr"]), "--background-template", "a photo of [C*9]."]
    assert train_prompt.main(argv) == 0

    clip, words = load_clip("toy", "cpu"), load_words("toy", CLASSES)
    class_text = text_features(clip, [f"a photo of {name}." for name in words.names])
    log = tmp_path / "log.jsonl"

    def adamw(parameters, lr):
        optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=settings["weight_decay"])
        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: rate("cosine", t / STEPS))

    def guided(generator, background=None):
        optimizer, schedule = adamw(generator.parameters(), settings["lr"])
        losses = []
        for batch in batches(world):
            k = batch.labels.nonzero()[:, 1]
            seen = masked_views(clip, batch.images, generator(batch.images), batch.labels, resize_then_minmax(0.1))
            loss = -cosine(seen["fg"], class_text[k]).log().mean()
            loss = loss - settings["w_bg"] * (1 - cosine(seen["bg"], class_text[k])).log().mean()
            if background is not None:
                loss = loss - settings["w_suppress"] * (1 - cosine(seen["fg"], background[k])).log().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        return losses

    matched = fresh(world)
    matching = guided(matched)
    seed_everything(0)  # the script draws them before anything is trained
    start = nn.Parameter(torch.rand(6 * 9, 64))
    compare(log, "match", matching, tmp_path, None)

    vectors = torch.load(tmp_path / "last_background_prompts.pt", weights_only=True)["prompt"]["vectors"]
    optimizer, schedule = adamw([start], settings["prompt_lr"])
    begin, dot, end = clip.embed_tokens(tokenize("a photo of.", clip.context_length))[0, :6].split([4, 1, 1])
    losses = []
    matched.eval()
    for batch in batches(world):
        k = batch.labels.nonzero()[:, 1]
        with torch.no_grad():
            seen = masked_views(clip, batch.images, matched(batch.images), batch.labels, resize_then_minmax(1e-4))
        sentences = torch.cat([begin.expand(6, -1, -1), start.view(6, 9, -1), dot.expand(6, -1, -1),
                               end.expand(6, -1, -1)], dim=1)
        text = F.normalize(clip.encode_text_embeddings(sentences, torch.full((6,), 14)), dim=-1)[k]
        loss = -cosine(seen["bg"], text).log().mean()
        loss = loss + settings["w_prompt_class"] * cosine(class_text[k], text).log().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    compare(log, "background_prompts", losses, tmp_path, None)
    difference = (vectors - start.detach()).abs()
    assert difference.mean() < 1e-5 and difference.max() < 2e-4

    with torch.no_grad():
        sentences = torch.cat([begin.expand(6, -1, -1), start.view(6, 9, -1), dot.expand(6, -1, -1),
                               end.expand(6, -1, -1)], dim=1)
        background = F.normalize(clip.encode_text_embeddings(sentences, torch.full((6,), 14)), dim=-1)
    restarted = fresh(world)
    compare(log, "guide", guided(restarted, background), tmp_path, restarted)
