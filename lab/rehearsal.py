"""What a language model says to plain prompts before it gets eyes, to be rehearsed while it does.

    python -m lab.eyes --rehearse 4 ...      four rows of it in every training step, in both stages

Training on short answers about pictures alone leaves nothing of a model's language. No text of
others is needed against it: before training the model answers prompts.txt, greedily, and goes on
learning what it said (Learning without Forgetting, arXiv 1606.09282, is the same idea with its
probabilities). A row without a picture is causal under every mask.
"""

import re
from pathlib import Path

import torch

import data
from eval import answer_all
from model import MLLM

LONGEST = 48  # tokens of an answer; of a longer one its whole sentences are kept

PROMPTS = Path(__file__).with_name("prompts.txt").read_text(encoding="utf-8").splitlines()


def whole_sentences(text: str) -> str:
    """The beginning of a text up to the end of its last sentence; a list's "2." ends none."""
    match = re.match(r".*[^\d\s][.!?](?=\s|$)", text, re.DOTALL)
    return match[0] if match else ""


def own_answers(model: MLLM, tokenizer: data.Tokenizer, prompts=PROMPTS) -> list[data.Example]:
    """The model's answers to prompts, as dialogues without pictures; of one that was cut without a
    whole sentence there is none."""
    asked = [data.Example([], [(prompt, "")]) for prompt in prompts]
    answers = answer_all(model, tokenizer, asked, progress=True, max_new_tokens=LONGEST)
    said = [whole_sentences(r["given"]) if r["unparsed"] else r["given"] for r in answers]
    return [
        data.Example([], [(prompt, words)], "rehearsed")
        for prompt, words in zip(prompts, map(str.strip, said))
        if words
    ]


class Rehearsal(data.Wrapped):
    """A data set whose steps have n rows more, of dialogues; which is a function of stage, step and
    seed."""

    def __init__(self, source, dialogues: list[data.Example], n: int):
        super().__init__(source)
        self.dialogues, self.n = dialogues, n

    def draw(self, stage: str, step: int, pictures: int, per_picture: int, seed: int):
        examples = self.source.draw(stage, step, pictures, per_picture, seed)
        g = torch.Generator().manual_seed(data.seed_of("rehearsal", stage, seed, step))
        some = torch.randint(len(self.dialogues), (self.n,), generator=g).tolist()
        return [*examples, *(self.dialogues[i] for i in some)]
