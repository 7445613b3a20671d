"""The command line of train_prompt.py: its flags, whether they fit together, and the prompts they ask for."""
import argparse
from pathlib import Path

import torch
from torch import nn

from .cams.mean import MEANS
from .clip import CLIP
from .datasets.transforms import AUGMENTS
from .errors import InputError
from .flags import clip_flags, real, whole
from .generator_options import UNUSED_BY_CLIP, box_flag
from .guidance.choices import WordChoices, read_choices
from .guidance.losses import ADAPTERS, Adapter
from .guidance.prompts import PROMPT_STARTS, LearnedPrompt, read_learned
from .guidance.regions import CLIP_VIEWS
from .guidance.words import Words, encode_words, load_clip_words
from .options import COMMAND_LINE, first_command, refuse_unused
from .presets import find_block
from .run import read_settings

CLIP_CAMS = "clip"  # --cams clip: CLIP's own maps, which train_prompt.py makes itself
METHODS = ("clims", "pole", "semples", "manual", "coop", "target", "defo", "both")
# Flags of guidance and its losses that do not take part in learning prompts.
GUIDANCE_ALONE = ("map_scale", "w_suppress", "suppress_threshold", "suppress_reduction", "w_area",
                  "area_over", "epochs", "match_epochs", "match_lr", "restart", "adapter", "adapter_lr",
                  "tune", "reselect_every", "prompt_augment")


def cam_source(text: str) -> Path | str:
    """Parse --cams: a folder, or CLIP_CAMS."""
    return text if text == CLIP_CAMS else Path(text)


def prompt_flags(parser: argparse.ArgumentParser) -> None:
    """What stands for classes and backgrounds, and the files that are read."""
    switch = argparse.BooleanOptionalAction
    add = parser.add_argument_group("method and prompts").add_argument
    add("--method", choices=METHODS, default="pole",
        help="method whose published settings are the defaults of the other flags; `both` joins POLE and "
        "SemPLeS and is this project's own")
    add("--class-prompt", choices=("name", "word", "learned"), default="name",
        help="what stands for a class in its prompt: its name, the word that CLIP selects for each image "
        "(POLE), or learned vectors")
    add("--background-prompt", choices=("none", "list", "learned", "list+learned"), default="none",
        help="texts that the foreground must not match: none, CLIMS' list of background words, SemPLeS' "
        "learned prompts, or both")
    add("--background-words", type=Path, metavar="FILE",
        help="file of words, one a line; they replace CLIMS' list of --background-prompt list, and the list "
        "that CLIP's own maps have from CLIP-ES")
    add("--maps", choices=("generator", "clip", *MEANS), default="generator",
        help="whose maps become the CAM files: those of the generator that is tuned; CLIP's own, by class "
        "and background prompts, for which no generator is read; or the mean or geometric mean of both. "
        "Unless it is generator, prompts are learned by the CAM files of --cams")
    add("--template", default="a photo of {}.",
        help="template of the class prompt: {} is the class's name or word, [S*n] are n learned vectors that "
        "all classes share, [C*n] are n learned vectors of each class, and [S:words] and [C:words] are "
        "learned vectors that start from the embeddings of words")
    add("--map-template", default="a clean origami {}.",
        help="text of a class and of a listed background in CLIP's own maps; {} is its name or word")
    add("--background-template", default="a photo of [C*30].",
        help="template of SemPLeS' background prompt, written like --template")
    add("--prompt-start", choices=PROMPT_STARTS, default="normal",
        help="distribution of learned vectors that do not start from words: normal is N(0, 0.02^2), uniform "
        "is U(0, 1)")
    add("--synonyms", type=Path, help="candidate words of each class: a JSON file (class -> list), or the "
        "name of a built-in list (voc12: chatgpt, chatgpt-long, bnc, news, wikipedia; toy: mixed)")
    add("--n-synonyms", type=whole(0), metavar="N",
        help="use only the first N synonyms of each class (POLE Fig. 3)")
    add("--person", metavar="WORD", help="name of the class person in prompts; without it, `player` on VOC "
        "and COCO, as in CLIMS' and POLE's code")
    add("--reselect-every", type=whole(0), default=0, metavar="N",
        help="select words again by the maps of the generator in training, in epochs 0, N, 2N, ...; 0 keeps "
        "the words that were selected by the CAMs of --cams")
    add("--joint", action=switch, default=False,
        help="learn class prompts together with the generator, as POLE's release does, and not before it")
    add("--adapter", choices=ADAPTERS, default="none",
        help="POLE's adapters of image and text features (eqs. 7-8): none, with a fixed ratio r = 0.2, or "
        "with a learnable r")
    add = parser.add_argument_group("inputs").add_argument
    add("--init", type=Path,
        help="file of the generator to start from (default: the generator.pt of train_cam.py)")
    add("--cams", type=cam_source, metavar="FOLDER|clip",
        help="folder of the CAMs by which words are selected and, unless --maps is generator, prompts are "
        "learned (default: the CAMs of train_cam.py); clip: CLIP's own maps of the class names, which this "
        "run makes first (the default of --maps clip where train_cam.py has not run)")
    add("--prompts", type=Path, metavar="FILE", help="class prompts of an earlier run, which are used as "
        "they are: prompts.json or class_prompts.pt")
    add("--background-prompts", type=Path, metavar="FILE",
        help="background_prompts.pt of an earlier run, used instead of learning background prompts; with "
        "--background-prompt list they are added to the list")
    clip_flags(add)
    box_flag(add)


def loss_flags(parser: argparse.ArgumentParser) -> None:
    """What guidance and prompt learning reward, the stages before guidance, and which epoch is kept."""
    add = parser.add_argument_group("losses (P is the map of a class in [0, 1], X the image)").add_argument
    add("--map-scale", choices=("sigmoid", "minmax"), default="sigmoid",
        help="how the generator's maps become P: by a sigmoid (CLIMS, POLE), or scaled by their minimum and "
        "maximum (SemPLeS)")
    add("--clip-view", choices=CLIP_VIEWS, default="clip",
        help="how CLIP sees X and P in training: as the releases of CLIMS, POLE and SemPLeS show them "
        "(ImageNet's mean and deviation, aligned corners, no antialiasing), or as CLIP was trained (its own "
        "mean and deviation, antialiasing)")
    add("--w-fg", type=real(0), default=1.0,
        help="weight of the foreground term, which attracts PX to the class prompt (alpha)")
    add("--w-bg", type=real(0), default=1.0,
        help="weight of the background term, which repels (1 - P)X from the class prompt (beta, lambda_b)")
    add("--w-suppress", type=real(0), default=0.0,
        help="weight of background suppression, which repels PX from background prompts (CBS, lambda)")
    add("--w-area", type=real(0), default=0.0,
        help="weight of the area term, the mean of P, which keeps maps small (REG)")
    add("--w-prompt-image", type=real(0), default=1.0,
        help="weight of prompt-I in SemPLeS eq. 2, which attracts background prompts to (1 - P)X")
    add("--w-prompt-class", type=real(0), default=0.02,
        help="weight of prompt-T in SemPLeS eq. 2, which repels background prompts from the class (lambda_T)")
    add("--prompt-repulsion", choices=("paper", "release"), default="paper",
        help="prompt-T of a similarity s: -log(1 - s) as in SemPLeS' paper, or +log s as in its release")
    add("--suppress-threshold", type=real(-1, 1), default=0.0,
        help="similarity of PX and a background prompt above which background suppression acts")
    add("--suppress-reduction", choices=("sum", "mean"), default="mean",
        help="whether background suppression is the sum or the mean over pairs of image and class")
    add("--area-over", choices=("all", "present"), default="all",
        help="maps of the area term: those of all classes, or those of the classes that the image shows")
    add = parser.add_argument_group("stages (SemPLeS: a, match; b, learn prompts; c, refine for "
                                    "--epochs)").add_argument
    add("--match-epochs", type=whole(0), default=0,
        help="epochs of stage a, in which the generator trains without background suppression")
    add("--match-lr", type=real(0, 100), help="learning rate of stage a (default: --lr)")
    add("--restart", action=argparse.BooleanOptionalAction, default=False,
        help="start stage c from the generator before stage a (SemPLeS' release), not after it")
    add("--prompt-epochs", type=whole(0), default=0,
        help="epochs in which prompts are learned and the generator is fixed (stage b)")
    add("--prompt-lr", type=real(0, 100), default=5e-4, help="learning rate of prompts")
    add("--prompt-batch-size", type=whole(1, 65536),
        help="number of images in a batch that prompts are learned from (default: --batch-size)")
    add("--prompt-augment", choices=AUGMENTS,
        help="training crops that prompts are learned from (default: --augment)")
    add("--adapter-lr", type=real(0, 100), help="learning rate of adapters (default: --lr)")
    add("--tune", choices=("all", "head", "fusion"), default="all",
        help="weaktr: part of the generator that is trained: all of it, head (the 3x3 convolution and the "
        "attention fusion, as in SemPLeS' release), or the attention fusion alone")


# ---- what the flags ask for

def class_prompt_learns_first(args: argparse.Namespace) -> bool:
    """Whether class prompts learn before the generator, which is fixed meanwhile."""
    return args.class_prompt == "learned" and not args.joint and not args.prompts


def background_prompt_learns(args: argparse.Namespace) -> bool:
    """Whether background prompts learn."""
    return "learned" in args.background_prompt and not args.background_prompts


def check_flags(args: argparse.Namespace) -> None:
    """InputError for flags that do not fit together, where one would be ignored or mean something else."""
    given = {name for name, source in args.set_by.items() if source == COMMAND_LINE}
    block = find_block("train_prompt", args.dataset, args.preset, vars(args))
    usual = block["background_prompt"]
    if args.background_prompt not in (usual, "none"):
        needed = []
        if args.maps != "clip" and ("list" in args.background_prompt) != ("list" in usual):
            needed = ["w_suppress", "suppress_threshold", "suppress_reduction"]
        if "learned" in args.background_prompt and "learned" not in usual and not args.background_prompts:
            needed.append("prompt_epochs")
        missing = [f"--{name.replace('_', '-')}" for name in needed if name not in given]
        if missing:
            raise InputError(f"--background-prompt {args.background_prompt}: --method {args.method} has "
                             f"settings for {usual!r} only; give {', '.join(missing)} too (SETTINGS.md has "
                             "those of CLIMS for list and of SemPLeS for learned)")
    if "joint" in given and args.joint and (args.class_prompt != "learned" or args.prompts):
        raise InputError("--joint: only class prompts that learn can learn together with the generator; use "
                         "--class-prompt learned without --prompts")
    if args.prompts and args.class_prompt == "name":
        raise InputError("--prompts: --class-prompt name takes no prompts of an earlier run; use word or "
                         "learned")
    if args.reselect_every and args.class_prompt != "word":
        raise InputError(f"--reselect-every: --class-prompt {args.class_prompt} chooses no words; use word")
    if args.background_prompts and args.background_prompt == "none":
        raise InputError("--background-prompts: --background-prompt none repels nothing; use learned or list")
    if args.background_words and "list" not in args.background_prompt:
        raise InputError(f"--background-words: --background-prompt {args.background_prompt} takes no words; "
                         "use list")
    if args.class_prompt != "learned" or args.prompts:
        args.joint = False
    if args.maps == "clip" and args.joint:
        raise InputError("--maps clip: no generator learns together with class prompts; use --no-joint and "
                         "--prompt-epochs")
    if class_prompt_learns_first(args) and not args.prompt_epochs and "prompt_epochs" not in given:
        raise InputError(f"--class-prompt learned: --method {args.method} has no epochs in which class "
                         "prompts learn before the generator; give --prompt-epochs, or --joint to learn both "
                         "together")
    if args.maps == "clip":
        if args.set_by.get("init") == COMMAND_LINE:
            print(f"--maps clip reads no generator; --init {args.init} is not used")
        refuse_unused(args, (*UNUSED_BY_CLIP, *GUIDANCE_ALONE), "--maps clip tunes no generator")
        if not class_prompt_learns_first(args) and not background_prompt_learns(args):
            refuse_unused(args, ("prompt_epochs", "prompt_lr"), "no prompt is learned here, as "
                          "--background-prompt learned and --class-prompt learned would")
    elif args.maps == "generator" and args.cams != CLIP_CAMS:
        refuse_unused(args, ("box", "map_template"),
                      "--maps generator makes no maps of CLIP, except for --cams clip")


def missing_generator(args: argparse.Namespace, baseline: Path) -> str:
    """The error line where train_cam.py has left no generator in its folder `baseline`."""
    kind = ()
    if args.preset != "paper":
        kind = ("--generator", args.generator)
    kept = baseline / "args.json"
    if not kept.is_file() or read_settings(kept).get("generator") != "clip":
        return f"{args.init}: no such checkpoint; {first_command(args, 'train_cam', *kind)}"
    other = baseline.with_name("classifier")
    return (f"{args.init}: {baseline} holds CLIP's own maps, which have no generator; "
            f"{first_command(args, 'train_cam', *kind, '--out', str(other))}, and then give --init "
            f"{other / 'generator.pt'} --cams {other / 'cams'} here")


def map_words(args: argparse.Namespace, words: Words) -> tuple[list[str], list[str]]:
    """(class names, background words) of CLIP's own maps; --background-words replace the latter."""
    candidates = dict(zip(words.classes, words.candidates))
    names, listed = load_clip_words(args.dataset, words.classes, candidates)
    if args.background_words or "list" not in args.background_prompt:
        listed = words.background
    return names, listed


def check_texts(args: argparse.Namespace, clip: CLIP, words: Words) -> None:
    """InputError for words that this CLIP cannot read, before the run's folder is changed."""
    if args.maps != "clip":
        encode_words(clip, "a photo of {}.", words.background)
    if args.maps != "generator" or args.cams == CLIP_CAMS:
        names, listed = map_words(args, words)
        encode_words(clip, args.map_template, [*names, *listed])
        if args.class_prompt == "word":
            encode_words(clip, args.map_template, [word for row in words.candidates for word in row])


def start_adapters(clip: CLIP, kind: str) -> nn.ModuleList:
    """POLE's adapters of image and text features (eqs. 7-8), which change nothing if `kind` is none."""
    width = clip.text_projection.shape[1]
    return nn.ModuleList([Adapter(width, kind), Adapter(width, kind)]).to(clip.text_projection.device)


def start_prompts(args: argparse.Namespace, clip: CLIP, words: Words) -> tuple:
    """The prompts before training.

    (POLE's choices, class vectors to learn, class texts [K,D], background vectors to learn, background texts
    that are learned already [K,L,D]); L is 0 or 1, and of the others those are None that are not used.
    """
    choices = None
    class_vectors = None
    class_text = encode_words(clip, args.template, words.names) if args.class_prompt == "name" else None
    if args.class_prompt == "word":
        choices = WordChoices(clip, args.template, words.candidates)
        if args.prompts:
            choices.take_table(read_choices(args.prompts), words.classes)
    elif args.prompts:
        _, class_text = read_learned(args.prompts, clip, len(words.names))
    elif args.class_prompt == "learned":
        class_vectors = LearnedPrompt(clip, args.template, words.names, args.prompt_start)
    background_vectors = None
    width = clip.text_projection.shape[1]
    learned = torch.empty(len(words.names), 0, width, device=clip.text_projection.device)
    if args.background_prompts:
        _, stored = read_learned(args.background_prompts, clip, len(words.names))
        learned = stored[:, None]
    elif background_prompt_learns(args):
        background_vectors = LearnedPrompt(clip, args.background_template, words.names, args.prompt_start,
                                           "--background-template")
    return choices, class_vectors, class_text, background_vectors, learned
