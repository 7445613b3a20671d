"""The flags of train_prompt.py that say what a method is: its prompts, its losses and its stages."""
import argparse
from pathlib import Path

from ..datasets.transforms import AUGMENTS
from ..flags import real, whole
from .losses import ADAPTERS
from .prompts import PROMPT_STARTS

METHODS = ("clims", "pole", "semples", "manual", "coop", "target", "defo", "both")


def prompt_flags(parser: argparse.ArgumentParser) -> None:
    """What stands for classes and backgrounds, and the files that are read."""
    switch = argparse.BooleanOptionalAction
    add = parser.add_argument_group("method and prompts").add_argument
    add("--method", choices=METHODS, default="pole",
        help="method, whose settings are the defaults of the other flags; `both` is this project's own")
    add("--class-prompt", choices=("name", "word", "learned"), default="name",
        help="prompt of a class: its name, the word that POLE chooses for each image, or learned vectors")
    add("--background-prompt", choices=("none", "list", "learned"), default="none",
        help="what the foreground must not resemble: nothing, CLIMS' list of words, or SemPLeS' prompts")
    add("--background-words", type=Path, metavar="FILE",
        help="file with the words of --background-prompt list, one a line, in place of CLIMS' list")
    add("--template", default="a photo of {}.",
        help="class prompt; {} is the name, [S*n] n vectors shared by all classes, [C*n] n vectors of each "
        "class, [S:words] and [C:words] vectors that start from words")
    add("--background-template", default="a photo of [C*30].",
        help="template of a learned background prompt, written as --template is")
    add("--prompt-start", choices=PROMPT_STARTS, default="normal",
        help="random start of vectors without words: normal is N(0, 0.02^2), uniform is U(0, 1)")
    add("--synonyms", type=Path, help="JSON file of candidate words (class -> list), or a built-in list "
        "(voc12: chatgpt, chatgpt-long, bnc, news, wikipedia; toy: mixed)")
    add("--n-synonyms", type=whole(0), help="number of synonyms of each class that are used (POLE Fig. 3)")
    add("--person", metavar="WORD",
        help="name of the class person in prompts (default: that of the data set)")
    add("--reselect-every", type=whole(0), default=0,
        help="N chooses words again with the present generator in epochs 0, N, 2N, ...; 0 keeps the words "
        "that were chosen with the baseline CAMs")
    add("--joint", action=switch, default=False,
        help="learn class prompts together with the generator, as POLE's variants do")
    add("--adapter", choices=ADAPTERS, default="none", help="POLE's adapters (eqs. 7-8)")
    add = parser.add_argument_group("inputs").add_argument
    add("--init", type=Path, help="generator to start from (default: that of train_cam.py)")
    add("--cams", type=Path,
        help="folder of the CAMs that words are chosen with (default: those of train_cam.py)")
    add("--prompts", type=Path, metavar="FILE", help="class prompts of an earlier run: prompts.json or "
        "class_prompts.pt")
    add("--background-prompts", type=Path, metavar="FILE",
        help="background_prompts.pt of an earlier run, in place of learning them; with --background-prompt "
        "list they are added to the list")
    add("--prompts-only", action="store_true",
        help="choose or learn prompts with --cams and stop; no generator is read or trained")
    add("--clip", default="ViT-B/32", help="CLIP by its published name, or a file")
    add("--clip-cache", type=Path, metavar="FOLDER",
        help="folder of CLIP weights (default: torch hub's folder)")


def loss_flags(parser: argparse.ArgumentParser) -> None:
    """What guidance and prompt learning reward, the stages before guidance, and which epoch is kept."""
    add = parser.add_argument_group("losses").add_argument
    add("--map-scale", choices=("sigmoid", "minmax"), default="sigmoid",
        help="how maps become P in [0, 1]: by a sigmoid (CLIMS, POLE) or by their extremes (SemPLeS)")
    add("--w-fg", type=real(0), default=1.0, help="weight of the foreground term (alpha)")
    add("--w-bg", type=real(0), default=1.0, help="weight of the background term (beta, lambda_b)")
    add("--w-suppress", type=real(0), default=0.0, help="weight of background suppression (CBS, lambda)")
    add("--w-area", type=real(0), default=0.0, help="weight of the area term (REG)")
    add("--w-prompt-image", type=real(0), default=1.0,
        help="weight of prompt-I in SemPLeS eq. 2, which attracts background prompts to (1 - P)X")
    add("--w-prompt-class", type=real(0), default=0.02,
        help="weight of prompt-T in SemPLeS eq. 2, which repels background prompts from the class (lambda_T)")
    add("--prompt-repulsion", choices=("paper", "release"), default="paper",
        help="form of prompt-T: -log(1 - s) as in SemPLeS' paper, or +log s as in its release")
    add("--suppress-threshold", type=real(-1, 1), default=0.0,
        help="similarity above which background suppression acts")
    add("--suppress-reduction", choices=("sum", "mean"), default="mean",
        help="background suppression is the sum or the mean over pairs of image and class")
    add("--area-over", choices=("all", "present"), default="all",
        help="classes whose maps the area term is over: all, or those of the image's tags")
    add = parser.add_argument_group("stages").add_argument
    add("--match-epochs", type=whole(0), default=0,
        help="epochs of the generator without background suppression (SemPLeS' stage a)")
    add("--match-lr", type=real(0, 100), help="learning rate of that stage (default: --lr)")
    add("--restart", action=argparse.BooleanOptionalAction, default=False,
        help="start guidance from the generator as it was before that stage (SemPLeS' release)")
    add("--prompt-epochs", type=whole(0), default=0,
        help="epochs in which prompts learn and the generator is fixed")
    add("--prompt-lr", type=real(0, 100), default=5e-4, help="learning rate of prompts (AdamW)")
    add("--prompt-batch-size", type=whole(1, 65536), help="images in a batch that prompts learn from "
        "(default: --batch-size)")
    add("--prompt-augment", choices=AUGMENTS, help="crops that prompts learn from (default: --augment)")
    add("--adapter-lr", type=real(0, 100), help="learning rate of adapters (default: --lr)")
    add("--tune", choices=("all", "head", "fusion"), default="all",
        help="weaktr: what learns under guidance: all of it, the 3x3 convolution and the attention fusion "
        "(head, SemPLeS' release), or the fusion")
    add("--keep-best", metavar="SPLIT",
        help="keep the epoch with the best CAM mIoU on the true masks of this split, as SemPLeS' release "
        "does; without it the last epoch is kept and no mask is used")
