"""Draw a toy world, or train the tiny CLIP that knows its words.

    python -m clipwsss.toy --draw DIR --seed 0    draw 800 training and 200 held-out images, tags and masks
    python -m clipwsss.toy --train-clip           train the CLIP from scratch, which takes minutes
"""
from pathlib import Path

from ..errors import run_script
from ..flags import Parser, real, whole
from .clip import CLIP_WEIGHTS, draw_scenes, load_toy_clip, save_toy_clip, train_clip, zero_shot
from .scenes import CO_OCCURRENCE, LARGEST_OBJECT, SMALLEST_OBJECT, TINIEST
from .world import N_TRAIN, N_VAL, draw_world


def get_parser() -> Parser:
    """The command's flags."""
    parser = Parser(prog="python -m clipwsss.toy", description=__doc__.splitlines()[0])
    add = parser.add_argument
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--draw", type=Path, metavar="DIR", help="draw a toy world into the new folder DIR")
    task.add_argument("--train-clip", action="store_true", help="train the toy CLIP from scratch")
    add("--seed", type=whole(0, 2**32 - 1), default=0, help="seed of the toy world or of the CLIP's training")
    add("--n-train", type=whole(1), default=N_TRAIN, help="--draw: number of training images")
    add("--n-val", type=whole(1), default=N_VAL, help="--draw: number of held-out images")
    add("--co-occurrence", type=real(0, 1), default=CO_OCCURRENCE,
        help="--draw: probability that a class is drawn on its own background")
    add("--smallest", type=real(TINIEST, LARGEST_OBJECT), default=SMALLEST_OBJECT,
        help="--draw: half-size of the smallest object as a fraction of the image's side; at most that of "
        f"the largest object, {LARGEST_OBJECT}")
    add("--out", type=Path, default=CLIP_WEIGHTS, help="--train-clip: file for the trained CLIP")
    add("--steps", type=whole(1), default=600, help="--train-clip: number of training steps")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = get_parser().parse_args(argv)
    if args.draw:
        draw_world(args.draw, args.seed, args.n_train, args.n_val, args.co_occurrence, args.smallest)
        return 0
    save_toy_clip(train_clip(args.steps, args.seed)[0], args.out)
    accuracy = zero_shot(load_toy_clip(args.out), draw_scenes(1000, 0, "clip_val"))
    shown = ", ".join(f"{sort} {share:.1%}" for sort, share in accuracy.items())
    megabytes = args.out.stat().st_size / 1e6
    print(f"{args.out}: {megabytes:.2f} MB; zero-shot accuracy on 1000 held-out scenes: {shown}")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_script(main))
