"""The kinds of class and background prompts: a new one is a function (or a Prompt class) and a table row."""
from pathlib import Path
from typing import NamedTuple

import torch

from ..clip import CLIP
from ..errors import InputError
from .prompts import (FixedPrompt, LearnedPrompt, Prompt, ReadPrompt, SelectedPrompt, encode_words,
                      read_learned)
from .selection import read_choices
from .words import Words


class PromptSettings(NamedTuple):
    """How a prompt is made: its template, the draw that learned vectors start from, a file of an earlier run.

    reselect_every: choose words anew in every so many epochs. joint: learn together with the generator.
    """
    template: str = "a photo of {}."
    start: str = "normal"
    stored: Path | None = None
    reselect_every: int = 0
    joint: bool = False


def name_prompt(clip: CLIP, words: Words, settings: PromptSettings) -> Prompt:
    """The class's name in the template (CLIMS)."""
    return FixedPrompt(encode_words(clip, settings.template, words.names))


def word_prompt(clip: CLIP, words: Words, settings: PromptSettings) -> Prompt:
    """The image's own word for the class (POLE), chosen from baseline CAMs or taken from a prompts.json."""
    prompt = SelectedPrompt(clip, settings.template, words.candidates, settings.reselect_every)
    if settings.stored:
        prompt.load_report(read_choices(settings.stored), words.classes)
    return prompt


def learned_prompt(clip: CLIP, words: Words, settings: PromptSettings) -> Prompt:
    """Learned vectors (CoOp, DeFo, SemPLeS' backgrounds), or those of an earlier run."""
    if settings.stored:
        return FixedPrompt(read_learned(settings.stored, clip, len(words.names))[1])
    return LearnedPrompt(clip, settings.template, words.names, settings.start, settings.joint)


def no_background(clip: CLIP, words: Words, settings: PromptSettings) -> Prompt:
    """Nothing is repelled."""
    return listed_background(clip, words._replace(background=[]), settings._replace(stored=None))


def listed_background(clip: CLIP, words: Words, settings: PromptSettings) -> Prompt:
    """CLIMS' list of words, the same for every class; with a file, each class's learned prompt beside it."""
    text = encode_words(clip, "a photo of {}.", words.background).expand(len(words.names), -1, -1)
    if settings.stored:
        _, learned = read_learned(settings.stored, clip, len(words.names))
        text = torch.cat([text, learned[:, None]], dim=1)
    return FixedPrompt(text)


def read_background(clip: CLIP, words: Words, settings: PromptSettings) -> Prompt:
    """Learned prompts read as words of the background's list: a list that fits the data, made by no one."""
    if not words.background:
        raise InputError("--background-prompt read: no words to read prompts as; --background-words names a "
                         "file of them that are no class's")
    text = encode_words(clip, "a photo of {}.", words.background)
    return ReadPrompt(learned_prompt(clip, words, settings), words.background, text)


CLASS_PROMPTS = {"name": name_prompt, "word": word_prompt, "learned": learned_prompt}
BACKGROUND_PROMPTS = {"none": no_background, "list": listed_background, "learned": learned_prompt,
                      "read": read_background}
