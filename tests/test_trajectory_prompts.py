"""Ten steps of each stage of SemPLeS beside loops as in test_trajectory.py."""
import test_trajectory
import torch
import torch.nn.functional as F
from test_trajectory import (CLASSES, NEUTRAL, STEPS, N, batches, close, compare, compare_networks, cosine,
                             flags_of, fresh, masked_views, published, rate, resize_then_minmax, start_of,
                             text_features)
from torch import nn

import train_prompt
from clipwsss.clip import tokenize
from clipwsss.files import read_network
from clipwsss.guidance.regions import load_clip
from clipwsss.guidance.words import load_words
from clipwsss.training import seed_everything

float64, world = test_trajectory.float64, test_trajectory.world  # fixtures
PROMPTS = ("prompt_lr", "prompt_start", "prompt_repulsion", "w_prompt_image", "w_prompt_class")
TINY_PROMPTS = {"prompt_epochs": STEPS, "prompt_batch_size": N,
                "background_template": "a photo of [C*9]."}  # the toy's CLIP has no room for 30


def adamw(parameters, lr, settings):
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=settings["weight_decay"])
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: rate("cosine", t / STEPS))


def prompt_text(clip, vectors):
    """Features of "a photo of [9 vectors]." for each of six classes."""
    begin, dot, end = clip.embed_tokens(tokenize("a photo of.", clip.context_length))[0, :6].split([4, 1, 1])
    parts = [part.expand(6, -1, -1) for part in (begin, vectors.view(6, 9, -1), dot, end)]
    return F.normalize(clip.encode_text_embeddings(torch.cat(parts, dim=1), torch.full((6,), 14)), dim=-1)


def learn_backgrounds(world, clip, generator, settings, class_text):
    """SemPLeS' stage (b), eq. 2 as its release has it, from U(0, 1): the vectors and the losses."""
    seed_everything(0)  # the script draws them before anything is trained
    vectors, losses = nn.Parameter(torch.rand(6 * 9, 64)), []
    optimizer, schedule = adamw([vectors], settings["prompt_lr"], settings)
    generator.eval()
    for batch in batches(world):
        k = batch.labels.nonzero()[:, 1]
        with torch.no_grad():
            maps = generator(batch.images)
            seen = masked_views(clip, batch.images, maps, batch.labels, resize_then_minmax(1e-4),
                                settings["clip_view"])
        text = prompt_text(clip, vectors)[k]
        loss = -settings["w_prompt_image"] * cosine(seen["bg"], text).log().mean()
        loss = loss + settings["w_prompt_class"] * cosine(class_text[k], text).log().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return vectors.detach(), losses


def match(world, clip, generator, settings, class_text, background=None):
    """SemPLeS' stages (a) and, with background prompts, (c): the losses."""
    optimizer, schedule = adamw(generator.parameters(), settings["lr"], settings)
    losses = []
    for batch in batches(world):
        k, maps = batch.labels.nonzero()[:, 1], generator(batch.images)
        seen = masked_views(clip, batch.images, maps, batch.labels, resize_then_minmax(0.1), settings["clip_view"])
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


def learned_vectors(out):
    return torch.load(out / "last_background_prompts.pt", weights_only=True)["prompt"]["vectors"]


def test_semples(world, tmp_path):
    settings = published(train_prompt, "train_prompt", "--method", "semples")
    assert settings["map_scale"] == "minmax" and settings["w_area"] == 0 and settings["restart"]
    assert settings["clip_view"] == "release"
    names = ("optimizer", "schedule", "weight_decay", "head_ratio", "freeze_stages", "lr", "w_fg", "w_bg",
             "w_suppress", "w_area", "suppress_threshold", "suppress_reduction", "map_scale", "clip_view",
             "restart",
             *PROMPTS)
    argv = [*start_of(world), "--method", "semples", "--out", str(tmp_path), "--epochs", str(STEPS),
            "--match-epochs", str(STEPS), "--match-lr", str(settings["lr"]), "--batch-size", str(N),
            *NEUTRAL, *flags_of({**settings, **TINY_PROMPTS}, *names, *TINY_PROMPTS)]
    assert train_prompt.main(argv) == 0

    clip, log, generator = load_clip("toy", "cpu"), tmp_path / "log.jsonl", fresh(world, stem=False)
    class_text = text_features(clip, [f"a photo of {name}." for name in load_words("toy", CLASSES).names])
    compare(log, "match", match(world, clip, generator, settings, class_text))
    vectors, losses = learn_backgrounds(world, clip, generator, settings, class_text)
    compare(log, "background_prompts", losses)
    assert close(learned_vectors(tmp_path), vectors)

    generator = fresh(world, stem=False)
    background = prompt_text(clip, vectors)
    compare(log, "guide", match(world, clip, generator, settings, class_text, background))
    compare_networks(tmp_path, generator)


def test_prompts_that_no_epoch_trains(world, tmp_path):
    """SemPLeS Table 5, row 2: --prompt-epochs 0 leaves the vectors as they were drawn."""
    assert train_prompt.main([*start_of(world), "--method", "semples", "--out", str(tmp_path), "--maps", "clip",
                              "--cams", str(world / "toy/train_cam/cams"), "--prompt-epochs", "0", *NEUTRAL[:4]]) == 0
    seed_everything(0)
    _, weights = read_network(tmp_path / "background_prompts.pt", "learned prompt")
    assert torch.equal(weights["vectors"], torch.rand(6 * 9, 64))
