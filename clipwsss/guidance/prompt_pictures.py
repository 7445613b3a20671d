"""Draw where in images CLIP sees texts or learned prompts (SemPLeS Fig. 5), or list the nearest words.

    python -m clipwsss.guidance.prompt_pictures --image IMAGE --text "a photo of boat." --out DIR
"""
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor

from ..clip import CLIP
from ..datasets.image_files import read_image
from ..training import pick_device
from ..errors import InputError, run_script
from ..flags import Parser, whole
from .regions import CLIP_VIEWS, clip_view, encode_regions, load_clip
from ..pictures import contact_sheet, heat, save
from .prompts import read_learned
from .propose import clip_parser
from .words import encode_words, read_words


@torch.no_grad()
def patch_features(clip: CLIP, image: torch.Tensor, view: str = "clip") -> torch.Tensor:
    """Normalised features [h,w,D] of an image's patches; image [3,H,W] in [0,1] is stretched to a square.

    view: see `clip_view`.
    """
    seen = clip_view(clip, image[None].to(clip.text_projection.device), view)
    return F.normalize(clip.encode_image(seen, normalised=True, patches=True)[0].float(), dim=-1)


@torch.no_grad()
def window_features(clip: CLIP, image: torch.Tensor, view: str = "clip", steps: int = 12,
                    width: float = 0.18) -> torch.Tensor:
    """Normalised features [steps,steps,D] of an image seen through soft round windows, as training masks it.

    A Gaussian of deviation `width` (fraction of the side) around each grid position multiplies the image.
    view: see `clip_view`.
    """
    device = clip.text_projection.device
    centers = (torch.arange(steps) + 0.5) / steps
    pixels = (torch.arange(clip.input_resolution) + 0.5) / clip.input_resolution
    falls = torch.exp(-(pixels - centers[:, None]) ** 2 / (2 * width ** 2))
    windows = (falls[:, None, :, None] * falls[None, :, None, :]).flatten(0, 1).to(device)
    image, first = image[None].to(device), torch.zeros(len(windows), dtype=torch.long, device=device)
    features = []
    for part in windows.split(64):
        features.append(encode_regions(clip, image, first[:len(part)], part, False, view)[0])
    return torch.cat(features).unflatten(0, (steps, steps))


def draw(images: Sequence[Image.Image], names: Sequence[str], titles: Sequence[str],
         maps: np.ndarray) -> Image.Image:
    """A contact sheet of maps [images,texts,h,w] of cosines.

    The colours of a column span its range over all images, which its title shows.
    """
    lowest = maps.min((0, 2, 3), keepdims=True)
    highest = maps.max((0, 2, 3), keepdims=True)
    scaled = (maps - lowest) / np.maximum(highest - lowest, 1e-6)
    heads = ["image"]
    for title, low, high in zip(titles, lowest.flat, highest.flat):
        heads.append(f"{title} {low:.2f}..{high:.2f}")
    rows = []
    for image, row in zip(images, scaled):
        rows.append([image, *(heat(one, image) for one in row)])
    return contact_sheet(rows, heads, names)


def get_parser() -> Parser:
    """The command's flags."""
    parser = clip_parser("prompt_pictures", __doc__.splitlines()[0])
    add = parser.add_argument
    add("--image", type=Path, nargs="+", default=[], metavar="FILE",
        help="images in which the texts are looked for")
    add("--text", nargs="+", default=[], help='texts to look for, such as "a photo of boat."')
    add("--prompts", type=Path, nargs="+", default=[], metavar="FILE.pt",
        help="files of learned prompts to look for (class_prompts.pt, background_prompts.pt)")
    add("--words", type=Path,
        help="text file of words, one a line; those nearest to each text and prompt are printed")
    add("--n", type=whole(1), default=5, help="number of words printed for each text and prompt")
    add("--by", choices=("patches", "windows"), default="patches",
        help="compare a text with CLIP's features of each patch, or of the image seen through soft windows")
    add("--clip-view", choices=CLIP_VIEWS, default="clip",
        help="how CLIP sees the images, as --clip-view of train_prompt.py: release for prompts that were "
        "learned on VOC or COCO")
    add("--out", type=Path, default=Path("prompt_pictures"),
        help="folder to which prompt_pictures.png is written")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = get_parser().parse_args(argv)
    if not (args.text or args.prompts) or not (args.image or args.words):
        raise InputError("give texts (--text, --prompts) and what to compare them with (--image, --words)")
    images = [read_image(path, oriented=True) for path in args.image]
    words = read_words(args.words) if args.words else []
    device = pick_device(args.device)
    clip = load_clip(args.clip, device, args.clip_cache, args.clip_model)
    learned = {path: read_learned(path, clip) for path in args.prompts}
    texts = encode_words(clip, "{}", args.text)
    vocabulary = encode_words(clip, "a photo of {}.", words)
    titles = list(args.text)
    for path, (names, _) in learned.items():
        titles += [f"{path.stem.removesuffix('_prompts')}: {name}" for name in names]
    text = torch.cat([texts, *(rows.float() for _, rows in learned.values())])
    if words:
        for title, row in zip(titles, text @ vocabulary.T):
            cosines, indices = row.topk(min(args.n, len(words)))
            nearest = zip(cosines.tolist(), indices.tolist())
            print(f"{title}: " + ", ".join(f"{words[index]} {cosine:.2f}" for cosine, index in nearest))
    if images:
        see = window_features if args.by == "windows" else patch_features
        maps = []
        for image in images:
            maps.append(see(clip, pil_to_tensor(image).float() / 255, args.clip_view) @ text.T)
        maps = torch.stack(maps)
        out = args.out / "prompt_pictures.png"
        save(draw(images, [path.name for path in args.image], titles,
                  maps.permute(0, 3, 1, 2).cpu().numpy()), out)
        print(f"written to {out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_script(main))
