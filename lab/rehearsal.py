"""What a language model says to plain prompts before it gets eyes, to be rehearsed while it does.

    python -m lab.eyes --rehearse 4 ...      four rows of it in every training step, in both stages
    python -m lab.rehearsal                  print the prompts

Training on short answers about pictures alone leaves nothing of a model's language. No text of
others is needed against it: before training the model answers PROMPTS, greedily, and goes on
learning what it said (Learning without Forgetting, arXiv 1606.09282, is the same idea with its
probabilities). A row without a picture is causal under every mask.
"""

import re

import torch

import data
from engine.run import one_line_errors
from eval import answer_all
from model import MLLM

LONGEST = 48  # tokens of an answer; of a longer one its whole sentences are kept

FORMS = {
    "What is the capital of {}?": (
        "Italy, Spain, Germany, Japan, Egypt, Canada, India, China, Kenya, Norway, Greece, Mexico, "
        "Peru, Poland, Turkey, Australia, Portugal, Sweden, Ireland, Russia"
    ),
    "Where is {}?": (
        "Brazil, Iceland, New Zealand, Morocco, Vietnam, Cuba, Nepal, Finland, Ethiopia, Chile, "
        "the Sahara, the Amazon river, Mount Everest, the Great Wall, the Alps"
    ),
    "Who wrote {}?": (
        "Hamlet, the Odyssey, Don Quixote, War and Peace, Pride and Prejudice, Moby Dick, Faust, "
        "Dracula, Frankenstein, Oliver Twist, Robinson Crusoe, The Hobbit"
    ),
    "Who was {}?": (
        "Isaac Newton, Albert Einstein, Cleopatra, Mozart, Marie Curie, Napoleon, Gandhi, Galileo, "
        "Charles Darwin, Leonardo da Vinci, Plato, Nelson Mandela"
    ),
    "What is {}?": (
        "5 plus 4, 7 plus 1, 6 plus 6, 9 minus 2, 8 minus 5, 3 times 3, 10 times 2, 12 minus 4, "
        "a bicycle, photosynthesis, gravity, a poem, inflation, an island, a robot, jazz, chess"
    ),
    "Write one sentence about {}.": (
        "the rain, a bridge, the moon, winter, a dog, an old house, coffee, a train, the desert, "
        "friendship, a garden, the city at night, birds, a market, bread, the mountains"
    ),
    "Describe {} in a few words.": (
        "a forest, a busy street, a kitchen, a storm, a library, a lake, a school, a farm, an "
        "airport, a beach, a castle, a birthday party"
    ),
    "Name three {}.": (
        "animals, fruits, musical instruments, sports, planets, vegetables, tools, rivers, "
        "languages, metals, flowers, jobs"
    ),
    "How do I {}?": (
        "cook rice, learn a language, sleep better, save money, grow tomatoes, make tea, clean a "
        "window, write a letter, stay healthy, find a job, train a dog, tie a knot"
    ),
    "Why {}?": (
        "is the sky blue, do leaves fall in autumn, do people dream, is sleep important, do cats "
        "purr, is the ocean salty, do we have seasons, do birds fly south, is exercise good for you"
    ),
    'What does the word "{}" mean?': (
        "brave, ancient, curious, fragile, gentle, rapid, scarce, humble, vivid, reluctant"
    ),
    "Continue the story: {}": (
        "The old man opened the door and looked at the snow., The girl found a key in the grass., "
        "It was the last day of the holidays., The ship left the harbour before dawn., Nobody had "
        "lived in the village for years., The letter came on a Monday., In the morning the river "
        "was frozen., The baker could not sleep., A stranger sat down beside the fire., The train "
        "stopped in the middle of the field., My uncle kept bees behind his house., They walked "
        "all night through the rain."
    ),
}
PROMPTS = [form.format(word) for form, words in FORMS.items() for word in words.split(", ")]


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


if __name__ == "__main__":
    with one_line_errors():  # `| head` ends it, too
        print("\n".join(PROMPTS))
