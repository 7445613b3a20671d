"""What the flags of train_prompt.py ask for: whether they fit together, and the prompts before training."""
import argparse

import torch
from torch import nn

from .clip import CLIP
from .errors import InputError
from .guidance.choices import WordChoices, read_choices
from .guidance.losses import Adapter
from .guidance.method_flags import CLIP_CAMS, UNUSED_BY_CLIP
from .guidance.prompts import LearnedPrompt, read_learned
from .guidance.words import Words, encode_words, load_clip_words
from .options import COMMAND_LINE, refuse_unused
from .presets import find_block

# Flags of guidance and its losses that do not take part in learning prompts.
GUIDANCE_ALONE = ("map_scale", "w_suppress", "suppress_threshold", "suppress_reduction", "w_area",
                  "area_over", "epochs", "match_epochs", "match_lr", "restart", "adapter", "adapter_lr",
                  "tune", "reselect_every", "prompt_augment")


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
    learns_before = args.class_prompt == "learned" and not args.joint and not args.prompts
    if learns_before and not args.prompt_epochs and "prompt_epochs" not in given:
        raise InputError(f"--no-joint: --method {args.method} has no number of epochs in which class prompts "
                         "learn before the generator; give --prompt-epochs")
    check_maps(args)


def check_maps(args: argparse.Namespace) -> None:
    """InputError for a flag of the command line that means nothing to these --maps."""
    if args.maps == "clip":
        if args.set_by.get("init") == COMMAND_LINE:
            print(f"--maps clip reads no generator; --init {args.init} is not used")
        refuse_unused(args, (*UNUSED_BY_CLIP, *GUIDANCE_ALONE), "--maps clip tunes no generator")
    elif args.maps == "generator" and args.cams != CLIP_CAMS:
        refuse_unused(args, ("box", "map_template"),
                      "--maps generator makes no maps of CLIP, except for --cams clip")


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
    elif "learned" in args.background_prompt:
        background_vectors = LearnedPrompt(clip, args.background_template, words.names, args.prompt_start,
                                           "--background-template")
    return choices, class_vectors, class_text, background_vectors, learned
