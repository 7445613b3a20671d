"""The toy world's CLIP: trained in minutes on scenes where the background tells nothing about the object.

It knows class, sub-type and background words. As in the real CLIP a class word fits its prototype best and is
a little entangled with the background the class is usually seen on; sub-type words are precise.
"""
import copy
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..clip import CLIP, Architecture, tokenize
from ..clip.tokenizer import decode
from ..files import load_network, save_network
from ..progress import Progress
from .scenes import ScenePainter
from .shapes import ALL_SUBTYPES, BACKGROUNDS, CLASSES

KIND, CLIP_WEIGHTS = "toy CLIP", Path(__file__).with_name("clip.pt")
WORDS = [*CLASSES, *ALL_SUBTYPES, *BACKGROUNDS, "nothing"]
CLASS = slice(0, len(CLASSES))
SUBTYPE = slice(CLASS.stop, CLASS.stop + len(ALL_SUBTYPES))
BACKGROUND = slice(SUBTYPE.stop, SUBTYPE.stop + len(BACKGROUNDS))
PER_CLASS = len(ALL_SUBTYPES) // len(CLASSES)
# The last ones put the word and the end of text on the later positions, which learned prompts use.
TEMPLATES = ("a photo of {}.", "a photo of a {}.", "{}", "a picture of {}.", "there is {}.",
             "an image of {}.", "a clean origami of {}.", "there is a photo of the {}.",
             "an image of a clean picture of {}.", "there is a picture of an image of a {}.",
             "{} in a photo of a clean picture.", "there is an image of a picture of a photo of {}.")
CONTEXT_LENGTH, IMAGE_SIZE, EMBED_DIM, TEXT_WIDTH, VISION_WIDTH = 16, 64, 128, 64, 12
SCALE = 14.0  # logit scale, not learned
NO, UNSURE, YES = 0, 1, 2  # does a word describe a picture; what is unsure takes no part in the loss


class ToyCLIP(CLIP):
    """A CLIP whose vocabulary is a few of CLIP's tokens: `token_ids`, rising.

    They are among its weights, so that no other CLIP loads these by mistake.
    """

    def __init__(self, token_ids: list[int]):
        super().__init__(Architecture(EMBED_DIM, IMAGE_SIZE, (1, 1, 1, 1), VISION_WIDTH, None, CONTEXT_LENGTH,
                                      len(token_ids), TEXT_WIDTH, text_heads=2, text_layers=2))
        self.register_buffer("token_ids", torch.tensor(token_ids))

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        """Tokens [N,L] -> embeddings [N,L,W]; ValueError for words that are not in the vocabulary.

        Zeros behind the end of text are padding and may be any row.
        """
        rows = torch.searchsorted(self.token_ids, tokens.contiguous()).clamp(max=len(self.token_ids) - 1)
        behind = torch.arange(tokens.shape[1], device=tokens.device) > tokens.argmax(dim=-1, keepdim=True)
        unknown = tokens[(self.token_ids[rows] != tokens) & ~(behind & (tokens == 0))].unique().tolist()
        if unknown:
            words = ", ".join(f"{decode([token]).strip()!r} (token {token})" for token in unknown[:5])
            raise ValueError(f"this small CLIP knows {len(self.token_ids)} tokens, and not {words}")
        return self.token_embedding(rows)


def save_toy_clip(model: ToyCLIP, path: Path) -> None:
    """The weights in half precision, with the vocabulary."""
    save_network(copy.deepcopy(model).half(), KIND, {"token_ids": model.token_ids.tolist()}, path)


def load_toy_clip(path: Path = CLIP_WEIGHTS) -> ToyCLIP:
    """The shipped toy CLIP, or one of `python -m clipwsss.toy --train-clip`: frozen, float32, eval."""
    return load_network(path, KIND, ToyCLIP).float().requires_grad_(False)


class Scenes(NamedTuple):
    """images [N,3,64,64], instances, regions [N,64,64] uint8; objects, backgrounds int64 [N,2], -1: none."""
    images: Tensor
    instances: Tensor
    regions: Tensor
    objects: Tensor
    backgrounds: Tensor


def draw_scenes(count: int, seed: int, stream: str) -> Scenes:
    """`count` scenes of ScenePainter's stream "clip" (training) or "clip_val" (held out)."""
    painter, progress, scenes = ScenePainter(seed, stream, IMAGE_SIZE), Progress(f"draw {stream}", count), []
    for _ in range(count):
        scenes.append(painter.free_scene())
        progress.update(1)
    progress.close()

    def indices(rows: tuple[list[str], ...], words: list[str]) -> Tensor:
        return torch.tensor([([words.index(word) for word in row] + [-1, -1])[:2] for row in rows])

    *maps, objects, backgrounds = zip(*scenes)
    images, instances, regions = (torch.from_numpy(np.stack(arrays)) for arrays in maps)
    return Scenes(images.permute(0, 3, 1, 2).contiguous(), instances, regions, indices(objects, ALL_SUBTYPES),
                  indices(backgrounds, BACKGROUNDS))


def random_masks(scenes: Scenes, generator: torch.Generator) -> Tensor:
    """Masks [B,1,64,64] in [0,1] like those a generator asks CLIP about.

    35 % all ones, 22 % an object or all objects (grown and blurred), 18 % the complement, 25 % smooth blobs;
    of the masked ones 35 % do not reach 0 and 1.
    """
    count, side = len(scenes.images), scenes.images.shape[-1]

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=generator)

    which = torch.randint(0, 3, (count, 1, 1), generator=generator)
    shapes = torch.where(which == 0, scenes.instances > 0, scenes.instances == which).float()[:, None]
    grow, blur, cells = (int(torch.randint(below, (), generator=generator)) for below in (4, 5, 6))
    shapes = F.max_pool2d(shapes, 2 * grow + 1, 1, grow)
    for _ in range(2):
        shapes = F.avg_pool2d(shapes, 2 * blur + 1, 1, blur, count_include_pad=False)
    hills = torch.randn(count, 1, 3 + cells, 3 + cells, generator=generator)
    hills = F.interpolate(hills, (side, side), mode="bicubic")
    level = torch.randn(count, 1, 1, 1, generator=generator) * 0.4
    blobs = torch.sigmoid((hills + level) * uniform(3, 12))
    kind = torch.multinomial(torch.tensor([.35, .22, .18, .25]), count, replacement=True, generator=generator)
    masks = torch.stack([torch.ones_like(shapes), shapes, 1 - shapes, blobs])[kind, torch.arange(count)]
    soft = ((uniform(0, 1, count) < 0.35) & (kind > 0)).float()
    low, high = uniform(0, .2, count) * soft, 1 - uniform(0, .3, count) * soft
    return low.view(-1, 1, 1, 1) + (high - low).view(-1, 1, 1, 1) * masks


def word_truth(scenes: Scenes, masks: Tensor, generator: torch.Generator, class_rate: float = 0.35,
               company_rate: float = 0.05) -> Tensor:
    """[B, words] of NO, UNSURE or YES: which WORDS describe what the masks [B,1,64,64] leave visible.

    A class word always describes the prototype sub-type, the others with probability `class_rate`; a visible
    background calls the word of its class with probability `company_rate`: the faults POLE and SemPLeS mend.
    """
    count, masks = len(masks), masks[:, 0]
    truth = torch.zeros(count, len(WORDS), dtype=torch.int64)

    def mark(words: Tensor, verdict: Tensor) -> None:
        truth.scatter_reduce_(1, words[:, None], verdict[:, None], "amax")

    for slot in (0, 1):  # a missing object or background covers nothing: NO
        shape = scenes.instances == slot + 1
        area = shape.sum((1, 2))
        seen = (masks * shape).sum((1, 2)) / area.clamp(min=1)
        verdict = torch.where((seen < .25) | (area < 10), NO, UNSURE)
        verdict[(seen > .55) & (area > 40)] = YES
        subtype = scenes.objects[:, slot].clamp(min=0)
        mark(SUBTYPE.start + subtype, verdict)
        called = (subtype % PER_CLASS == 0) | (torch.rand(count, generator=generator) < class_rate)
        mark(subtype // PER_CLASS, verdict * called)
        seen = (masks * ((scenes.instances == 0) & (scenes.regions == slot))).mean((1, 2))
        mark(BACKGROUND.start + scenes.backgrounds[:, slot].clamp(min=0),
             torch.where(seen > .10, YES, torch.where(seen < .03, NO, UNSURE)))
    truth[:, -1] = torch.where((truth == NO).all(dim=1), YES, NO)
    own = truth[:, BACKGROUND][:, :len(CLASSES)]
    company = (own == YES) & (torch.rand(own.shape, generator=generator) < company_rate)
    truth[:, CLASS][company & (truth[:, CLASS] == NO)] = YES
    return truth


def contrastive_loss(cosines: Tensor, truth: Tensor) -> Tensor:
    """InfoNCE with several positives, both ways: a YES competes with the NOs of its picture and of its word.

    cosines [B, words], truth [B, words] of NO, UNSURE or YES -> scalar. Adds
    4 * SCALE * mean relu(.02 - cosine)^2, which keeps cosines above 0, where guidance losses clamp them.
    """
    logits, positive = SCALE * cosines, truth == YES
    loss = 4 * SCALE * F.relu(0.02 - cosines).square().mean()
    for dim in (0, 1):
        rivals = logits.masked_fill(truth != NO, -1e4).logsumexp(dim, keepdim=True)
        each = (F.softplus(rivals - logits) * positive).sum(dim) / positive.sum(dim).clamp(min=1)
        loss = loss + each[positive.any(dim)].mean() / 2
    return loss


def train_clip(steps: int = 600, seed: int = 0, n_scenes: int = 12000,
               batch_size: int = 256) -> tuple[ToyCLIP, list[float]]:
    """A toy CLIP of 0.9 M weights, trained from nothing, in eval mode, and the loss of every step.

    AdamW (betas .9, .98; decay .05 on matrices), warm-up of 40 steps, cosine to 2 %. A step draws a template
    for each word.
    """
    scenes, generator = draw_scenes(n_scenes, seed, "clip"), torch.Generator().manual_seed(seed)
    tokens = torch.stack([tokenize([template.format(word) for word in WORDS], CONTEXT_LENGTH)
                          for template in TEMPLATES])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ToyCLIP(tokens.unique().tolist())
    model.to(memory_format=torch.channels_last).logit_scale.data.fill_(math.log(SCALE))
    weights = [weight for name, weight in model.named_parameters() if name != "logit_scale"]
    groups = [{"params": weight, "weight_decay": 0.05 if weight.ndim >= 2 else 0.0} for weight in weights]
    optimizer = torch.optim.AdamW(groups, 4e-3, betas=(0.9, 0.98))
    warmup = min(40, max(steps // 4, 1))
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda t: min(1, (t + 1) / warmup) * (0.02 + 0.49 * (1 + math.cos(math.pi * t / steps))))
    losses, progress = [], Progress("toy CLIP", steps, "steps")
    for _ in range(steps):
        drawn = torch.randint(n_scenes, (batch_size,), generator=generator)
        batch = Scenes(*(part[drawn] for part in scenes))
        images = model.normalise(batch.images / 255)
        gain, shift = torch.rand(2, batch_size, 1, 1, 1, generator=generator)
        masks = random_masks(batch, generator)
        images = (images * (0.8 + 0.4 * gain) + 0.4 * shift - 0.2) * masks
        if torch.rand((), generator=generator) < 0.5:
            images = images.flip(-1)
        images = images.contiguous(memory_format=torch.channels_last)
        features = F.normalize(model.encode_image(images, normalised=True), dim=-1)
        chosen = torch.randint(len(TEMPLATES), (len(WORDS),), generator=generator)
        texts = F.normalize(model.encode_text(tokens[chosen, torch.arange(len(WORDS))]), dim=-1)
        loss = contrastive_loss(features @ texts.T, word_truth(batch, masks, generator))
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        scheduler.step()
        losses.append(loss.item())
        progress.update(1, loss=losses[-1])
    progress.close(loss=float(np.mean(losses[-20:])))
    return model.to(memory_format=torch.contiguous_format).eval(), losses


@torch.no_grad()
def zero_shot(model: CLIP, scenes: Scenes) -> dict[str, float]:
    """Shares of unmasked scenes named right with "a photo of {}.", each kind among its own words.

    Class and sub-type on scenes that show one, background where any visible one counts.
    """
    masks = torch.ones(len(scenes.images), 1, 1, 1)
    truth = word_truth(scenes, masks, torch.Generator(), class_rate=1.0, company_rate=0.0) == YES
    images = torch.cat([model.encode_image(part / 255) for part in scenes.images.split(250)])
    texts = model.encode_text(tokenize([f"a photo of {word}." for word in WORDS]))
    cosines = F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T
    right = {}
    for name, words in (("class", CLASS), ("subtype", SUBTYPE), ("background", BACKGROUND)):
        true = truth[:, words]
        usable = true.any(1) if name == "background" else true.sum(1) == 1
        best = cosines[usable, words].argmax(1, keepdim=True)
        right[name] = true[usable].gather(1, best).float().mean().item()
    return right
