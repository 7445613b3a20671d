"""The place within an epoch of training from which a run goes on after an interruption."""
import random

import numpy as np
import torch
from torch import Tensor

from .distributed import gather, mean_over_processes, rank


class Position:
    """The place within an epoch from which training goes on, as a checkpoint keeps it.

    batches: the number of batches that are done, 0 between two epochs. sums: of each loss term over them.
    random: the states of the random generators of each process after them.
    """

    def __init__(self):
        self.begin()

    def begin(self) -> None:
        """Set the place to the beginning of an epoch."""
        self.batches = 0
        self.sums: dict[str, Tensor] = {}
        self.random: list[dict] = []

    def note_random(self, device: torch.device) -> None:
        """Note the states of the random generators of all processes."""
        kind, words, index, has_gauss, gauss = np.random.get_state()
        state = {"torch": torch.get_rng_state(), "random": random.getstate(),
                 "numpy": (kind, words.tolist(), index, has_gauss, gauss)}
        if device.type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state(device)
        self.random = gather(state)

    def restore_random(self, device: torch.device) -> None:
        """Give the random generators the states that were noted, if any."""
        if not self.random:
            return
        state = self.random[min(rank(), len(self.random) - 1)]
        torch.set_rng_state(state["torch"])
        random.setstate(state["random"])
        kind, words, *rest = state["numpy"]
        np.random.set_state((kind, np.array(words, np.uint32), *rest))
        if "cuda" in state and device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda"], device)

    def state_dict(self) -> dict:
        """What a checkpoint keeps."""
        sums = {name: mean_over_processes(value) for name, value in self.sums.items()}
        return {"batches": self.batches, "sums": sums, "random": self.random}

    def load_state_dict(self, state: dict) -> None:
        """Take what a checkpoint kept."""
        self.batches = state["batches"]
        self.sums = state["sums"]
        self.random = state["random"]

    def place(self, epoch: int) -> str:
        """In words: so many epochs are done, and so many batches of the next one."""
        if self.batches:
            return f"after step {self.batches} of epoch {epoch + 1}"
        return f"after epoch {epoch}" if epoch else "from its beginning"
