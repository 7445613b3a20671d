"""The toy world's CLIP, trained in minutes on scenes whose backgrounds tell nothing about their objects.

It knows the words of classes, sub-types and backgrounds. It has the two faults of the real CLIP that POLE and
SemPLeS are about: a class word fits the class's prototype better than its other sub-types, and it also fits,
a little, the background on which the class is usually seen. The words of sub-types are precise.
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
from ..errors import input_errors
from ..files import load_weights_into, read_network, save_network
from ..progress import Progress
from .scenes import ALL_SUBTYPES, BACKGROUNDS, CLASSES, ScenePainter

TOY_CLIP = "toy CLIP"  # the kind of network that a file holds
CLIP_WEIGHTS = Path(__file__).with_name("clip.pt")
WORDS = [*CLASSES, *ALL_SUBTYPES, *BACKGROUNDS, "nothing"]
# Where WORDS has the words of each sort.
CLASS = slice(0, len(CLASSES))
SUBTYPE = slice(CLASS.stop, CLASS.stop + len(ALL_SUBTYPES))
BACKGROUND = slice(SUBTYPE.stop, SUBTYPE.stop + len(BACKGROUNDS))
PER_CLASS = len(ALL_SUBTYPES) // len(CLASSES)
# The last templates put the word and the end of the text on late positions, as learned prompts do.
TOY_TEMPLATES = (
    "a photo of {}.", "a photo of a {}.", "{}", "a picture of {}.", "there is {}.",
    "an image of {}.", "a clean origami of {}.", "there is a photo of the {}.",
    "an image of a clean picture of {}.", "there is a picture of an image of a {}.",
    "{} in a photo of a clean picture.", "there is an image of a picture of a photo of {}.")
TOY_CLIP_SIZE = 64  # side of its images
CONTEXT_LENGTH = 16
EMBED_DIM = 128
TEXT_WIDTH = 64
VISION_WIDTH = 12
LOGIT_SCALE = 14.0  # not learned
# Does a word describe a picture? Pairs that are MAYBE take no part in the loss.
NO = 0
MAYBE = 1
YES = 2


class ToyCLIP(CLIP):
    """A CLIP whose vocabulary is a few of CLIP's tokens.

    token_ids: their numbers in CLIP's vocabulary, in ascending order. They are stored among the weights, so
    that another CLIP refuses to load these weights.
    """

    def __init__(self, token_ids: list[int]):
        super().__init__(Architecture(
            EMBED_DIM, TOY_CLIP_SIZE, (1, 1, 1, 1), VISION_WIDTH, None, CONTEXT_LENGTH, len(token_ids),
            TEXT_WIDTH, text_heads=2, text_layers=2))
        self.register_buffer("token_ids", torch.tensor(token_ids))

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        """Tokens [N, L] -> embeddings [N, L, W]; ValueError for words that are not in the vocabulary.

        Zeros behind the end of the text are padding; their embeddings are not used.
        """
        rows = torch.searchsorted(self.token_ids, tokens.contiguous()).clamp(max=len(self.token_ids) - 1)
        end = tokens.argmax(dim=-1, keepdim=True)  # CLIP's token for the end of the text is its largest
        behind = torch.arange(tokens.shape[1], device=tokens.device) > end
        padding = behind & (tokens == 0)
        unknown = tokens[(self.token_ids[rows] != tokens) & ~padding].unique().tolist()
        if unknown:
            words = ", ".join(f"{decode([token]).strip()!r} (token {token})" for token in unknown[:5])
            raise ValueError(f"this small CLIP knows {len(self.token_ids)} tokens, and not {words}")
        return self.token_embedding(rows)


def save_toy_clip(model: ToyCLIP, path: Path) -> None:
    """Save the weights in half precision, with the vocabulary."""
    save_network(copy.deepcopy(model).half(), TOY_CLIP, {"token_ids": model.token_ids.tolist()}, path)


def load_toy_clip(path: Path = CLIP_WEIGHTS) -> ToyCLIP:
    """The toy CLIP of this package, or of another file of `python -m clipwsss.toy --train-clip`.

    It is frozen, in float32 and in eval mode. InputError: a file that is missing, damaged or no toy CLIP.
    """
    config, state = read_network(path, TOY_CLIP)
    with input_errors(f"{path}: damaged; its config builds no toy CLIP: ", Exception):
        model = ToyCLIP(**config)
    load_weights_into(model, state, path)
    return model.float().eval().requires_grad_(False)


class SceneBatch(NamedTuple):
    """N scenes as tensors.

    images: [N, 3, 64, 64] uint8. instances and regions: [N, 64, 64] uint8, as in `Scene`. objects and
    backgrounds: [N, 2] int64, indices into ALL_SUBTYPES and BACKGROUNDS, -1 where there is none.
    """
    images: Tensor
    instances: Tensor
    regions: Tensor
    objects: Tensor
    backgrounds: Tensor


def draw_scenes(count: int, seed: int, stream: str) -> SceneBatch:
    """`count` scenes of ScenePainter's stream "clip" (training) or "clip_val" (held out)."""
    painter = ScenePainter(seed, stream, TOY_CLIP_SIZE)
    progress = Progress(f"draw {stream}", count)
    scenes = []
    for _ in range(count):
        scenes.append(painter.free_scene())
        progress.update(1)
    progress.close()

    def indices(words: list[str], vocabulary: list[str]) -> list[int]:
        """Two indices: ["ship"] -> [0, -1]."""
        found = [vocabulary.index(word) for word in words]
        return found + [-1] * (2 - len(found))

    images = torch.from_numpy(np.stack([scene.image for scene in scenes]))
    return SceneBatch(
        images=images.permute(0, 3, 1, 2).contiguous(),
        instances=torch.from_numpy(np.stack([scene.instances for scene in scenes])),
        regions=torch.from_numpy(np.stack([scene.regions for scene in scenes])),
        objects=torch.tensor([indices(scene.objects, ALL_SUBTYPES) for scene in scenes]),
        backgrounds=torch.tensor([indices(scene.backgrounds, BACKGROUNDS) for scene in scenes]))


def random_masks(scenes: SceneBatch, generator: torch.Generator) -> Tensor:
    """Masks [B, 1, 64, 64] in [0, 1] like those that a CAM generator multiplies images with.

    35 % are all ones, 22 % show an object or all objects (enlarged and blurred), 18 % show the complement of
    that, and 25 % are smooth random blobs. Of those that are not all ones, 35 % do not reach 0 and 1.
    """
    count = len(scenes.images)
    side = scenes.images.shape[-1]

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=generator)

    which = torch.randint(0, 3, (count, 1, 1), generator=generator)  # 0: all objects
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
    of_each_kind = torch.stack([torch.ones_like(shapes), shapes, 1 - shapes, blobs])
    masks = of_each_kind[kind, torch.arange(count)]
    soft = ((uniform(0, 1, count) < 0.35) & (kind > 0)).float()
    low = (uniform(0, .2, count) * soft).view(-1, 1, 1, 1)
    high = (1 - uniform(0, .3, count) * soft).view(-1, 1, 1, 1)
    return low + (high - low) * masks


def word_truth(scenes: SceneBatch, masks: Tensor, generator: torch.Generator, class_rate: float = 0.35,
               company_rate: float = 0.05) -> Tensor:
    """[B, words] of NO, MAYBE or YES: which WORDS describe what the masks [B, 1, 64, 64] leave visible.

    A class word describes the prototype always and the other sub-types with probability `class_rate`. A
    visible background makes its class's word a YES with probability `company_rate`.
    """
    count = len(masks)
    masks = masks[:, 0]
    truth = torch.zeros(count, len(WORDS), dtype=torch.int64)

    def mark(words: Tensor, verdict: Tensor) -> None:
        """Raise the entries of one word [B] in each row to the verdicts [B]."""
        truth.scatter_reduce_(1, words[:, None], verdict[:, None], "amax")

    for slot in (0, 1):  # where there is no second object or background, it covers nothing: NO
        shape = scenes.instances == slot + 1
        area = shape.sum((1, 2))
        seen = (masks * shape).sum((1, 2)) / area.clamp(min=1)
        verdict = torch.where((seen < .25) | (area < 10), NO, MAYBE)
        verdict[(seen > .55) & (area > 40)] = YES
        subtype = scenes.objects[:, slot].clamp(min=0)
        mark(SUBTYPE.start + subtype, verdict)
        prototype = subtype % PER_CLASS == 0
        called = prototype | (torch.rand(count, generator=generator) < class_rate)
        mark(subtype // PER_CLASS, torch.where(called, verdict, NO))
        seen = (masks * ((scenes.instances == 0) & (scenes.regions == slot))).mean((1, 2))
        verdict = torch.where(seen < .03, NO, MAYBE)
        verdict[seen > .10] = YES
        mark(BACKGROUND.start + scenes.backgrounds[:, slot].clamp(min=0), verdict)
    truth[:, -1] = torch.where((truth == NO).all(dim=1), YES, NO)  # the word "nothing"
    own = truth[:, BACKGROUND][:, :len(CLASSES)]  # the classes' own backgrounds, in the classes' order
    company = (own == YES) & (torch.rand(own.shape, generator=generator) < company_rate)
    truth[:, CLASS][company & (truth[:, CLASS] == NO)] = YES
    return truth


def contrastive_loss(cosines: Tensor, truth: Tensor) -> Tensor:
    """InfoNCE with several positives in both directions -> scalar.

    cosines: [B, words]. truth: [B, words] of NO, MAYBE or YES. A YES competes with the NOs of its picture and
    with the NOs of its word. The term 4 * LOGIT_SCALE * mean(relu(0.02 - cosine)^2) keeps cosines above 0,
    where the guidance losses clamp them.
    """
    logits = LOGIT_SCALE * cosines
    positive = truth == YES
    loss = 4 * LOGIT_SCALE * F.relu(0.02 - cosines).square().mean()
    for dim in (0, 1):
        rivals = logits.masked_fill(truth != NO, -1e4).logsumexp(dim, keepdim=True)
        each = (F.softplus(rivals - logits) * positive).sum(dim) / positive.sum(dim).clamp(min=1)
        loss = loss + each[positive.any(dim)].mean() / 2
    return loss


def train_clip(steps: int = 600, seed: int = 0, n_scenes: int = 12000,
               batch_size: int = 256) -> tuple[ToyCLIP, list[float]]:
    """Train a toy CLIP of 0.9 million weights; the model in eval mode and the loss of every step.

    AdamW (betas 0.9 and 0.98, weight decay 0.05 on matrices), warm-up over 40 steps, cosine schedule to 2 %.
    Every step draws a template for each word.
    """
    scenes = draw_scenes(n_scenes, seed, "clip")
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.stack([tokenize([template.format(word) for word in WORDS], CONTEXT_LENGTH)
                          for template in TOY_TEMPLATES])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ToyCLIP(tokens.unique().tolist())
    model.to(memory_format=torch.channels_last)
    model.logit_scale.data.fill_(math.log(LOGIT_SCALE))
    weights = [weight for name, weight in model.named_parameters() if name != "logit_scale"]
    groups = [{"params": weight, "weight_decay": 0.05 if weight.ndim >= 2 else 0.0} for weight in weights]
    optimizer = torch.optim.AdamW(groups, 4e-3, betas=(0.9, 0.98))
    warmup = min(40, max(steps // 4, 1))

    def rate(step: int) -> float:
        """The learning rate over its maximum."""
        return min(1, (step + 1) / warmup) * (0.02 + 0.49 * (1 + math.cos(math.pi * step / steps)))

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    losses = []
    progress = Progress("toy CLIP", steps, "steps")
    for _ in range(steps):
        drawn = torch.randint(n_scenes, (batch_size,), generator=generator)
        batch = SceneBatch(*(part[drawn] for part in scenes))
        images = model.normalise(batch.images / 255)
        gain, shift = torch.rand(2, batch_size, 1, 1, 1, generator=generator)
        masks = random_masks(batch, generator)
        images = (images * (0.8 + 0.4 * gain) + 0.4 * shift - 0.2) * masks
        if torch.rand((), generator=generator) < 0.5:
            images = images.flip(-1)
        images = images.contiguous(memory_format=torch.channels_last)
        features = F.normalize(model.encode_image(images, normalised=True), dim=-1)
        chosen = torch.randint(len(TOY_TEMPLATES), (len(WORDS),), generator=generator)
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
def zero_shot(model: CLIP, scenes: SceneBatch) -> dict[str, float]:
    """Zero-shot accuracies in [0, 1] of "a photo of {}." on unmasked scenes: class, subtype and background.

    Each is chosen among the words of its sort. Class and sub-type are asked where exactly one is visible; for
    the background any visible one counts as right.
    """
    masks = torch.ones(len(scenes.images), 1, 1, 1)
    truth = word_truth(scenes, masks, torch.Generator(), class_rate=1.0, company_rate=0.0) == YES
    images = torch.cat([model.encode_image(part / 255) for part in scenes.images.split(250)])
    texts = model.encode_text(tokenize([f"a photo of {word}." for word in WORDS]))
    cosines = F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T
    accuracy = {}
    for name, words in (("class", CLASS), ("subtype", SUBTYPE), ("background", BACKGROUND)):
        true = truth[:, words]
        usable = true.any(1) if name == "background" else true.sum(1) == 1
        best = cosines[usable, words].argmax(1, keepdim=True)
        accuracy[name] = true[usable].gather(1, best).float().mean().item()
    return accuracy
