"""Several questions about one picture, turn after turn: what a mask does to a dialogue.

    python train.py --variant dialogues-half --mask mma
    python -m lab.dialogues RUN [RUN ...]      accuracy by turn on the test questions of a world

Under mma a picture reads the question of its own turn and no later one: a second question meets a
picture that has read the first. The variants train on dialogues of three turns, on as many
questions a step as without them: in all steps of stage 2, in every second one, and there in two
ways that may answer later questions better.
"""

import json
from functools import partial
from itertools import groupby
from pathlib import Path

from torch import Tensor

import data
from data import IMAGE_TOKEN, Example
from engine.options import Parser, positive
from engine.precision import check_device, default_device
from engine.run import check_writable, one_line_errors, read_record
from engine.wings import VARIANTS, Variant
from eval import answer_all, open_run
from mma import Role
from model import MLLM

TURNS = 3


def to_dialogues(examples: list[Example], again: bool = False) -> list[Example]:
    """Neighbouring questions about the same pictures as dialogues of TURNS turns. again: the
    pictures are shown with each question, not with the first alone."""
    dialogues = []
    for _, same in groupby(examples, key=lambda example: [id(image) for image in example.images]):
        same = list(same)
        for part in (same[first : first + TURNS] for first in range(0, len(same), TURNS)):
            turns = [turn for example in part for turn in example.turns]
            images = part[0].images * (len(turns) if again else 1)
            if not again:
                later = [(q.replace(IMAGE_TOKEN, "").strip(), answer) for q, answer in turns[1:]]
                turns = [turns[0], *later]
            dialogues.append(Example(images, turns, "dialogue", part[0].id))
    return dialogues


class Dialogues(data.Wrapped):
    """A source whose questions come as dialogues in every `every`-th step of stage 2."""

    def __init__(self, source, args, every: int = 1, again: bool = False):
        super().__init__(source)
        self.every, self.again = every, again

    def draw(self, stage: str, step: int, *key) -> list[Example]:
        examples = self.source.draw(stage, step, *key)
        if stage == "pt" or (step + 1) % self.every:
            return examples
        return to_dialogues(examples, self.again)


def goes_on(turn: Tensor, document: Tensor | None) -> Tensor:
    """bool [B, T]: has the token's dialogue a second turn? turn, document: int64 [B, T], as in
    mma.attention_mask."""
    index = turn.new_zeros(turn.shape) if document is None else document.clamp(min=0)
    last = turn.new_zeros(len(turn), int(index.max()) + 1).scatter_reduce(1, index, turn, "amax")
    return last.gather(1, index) > 1


class FirstTurnMLLM(MLLM):
    """The mask opens what it opens where a dialogue has one turn; where it goes on, all is causal.
    So the picture of a second question has read no question, and is computed anew."""

    def context_of(self, mask, role, turn=None, document=None):
        if turn is not None:
            closed = goes_on(turn, document) & (role == Role.QUESTION)
            role = role.masked_fill(closed, int(Role.TEXT))
        return super().context_of(mask, role, turn, document)


half = partial(Dialogues, every=2)
VARIANTS |= {
    "dialogues": Variant("questions come as dialogues of three turns", wrap_source=Dialogues),
    "dialogues-half": Variant("the same in every second step", wrap_source=half),
    "dialogues-again": Variant(
        "dialogues-half, the picture shown with each question",
        wrap_source=partial(half, again=True),
    ),
    "dialogues-first": Variant(
        "dialogues-half, the mask in dialogues of one turn alone", FirstTurnMLLM, wrap_source=half
    ),
}


def by_turn(run: Path, device: str, limit: int | None = None) -> dict:
    """What a run answers to the test questions of its world, in %: each asked alone, and turn after
    turn of dialogues, where earlier turns have their true answers. tokens: of the prompts of a
    dialogue, on average, each token once, and where its questions are asked alone."""
    trained = read_record(run)["args"]
    model, tokenizer = open_run(run, device)
    source = data.load(trained["data"])
    alone = source.heldout(source.final_split, limit)
    dialogues = to_dialogues(alone, again=trained["variant"] == "dialogues-again")

    def accuracy(results: list[dict], turn: int) -> float:
        right = [result["correct"] for result in results if result["prompt"][1] == turn]
        return 100 * sum(right) / max(1, len(right))

    def tokens(examples: list[Example]) -> float:
        n = model.config.n_image_tokens
        rows = [data.encode(e, tokenizer, n, upto=len(e.turns) - 1) for e in examples]
        return sum(len(row.ids) for row in rows) / len(dialogues)

    results = answer_all(model, tokenizer, dialogues, source.answers)
    asked_alone = accuracy(answer_all(model, tokenizer, alone, source.answers), 0)
    return {
        "run": run.name, "alone": asked_alone,
        "turns": {f"turn {turn + 1}": accuracy(results, turn) for turn in range(TURNS)},
        "tokens": {"dialogue": tokens(dialogues), "alone": tokens(alone)},
    }  # fmt: skip


def main(argv=None) -> None:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN", help="folders that --out named")
    add("--limit", type=positive, metavar="N", help="the first N questions (default: all)")
    add("--device", default=default_device(), metavar="NAME", help="cuda, mps or cpu")
    add("--json", type=Path, metavar="FILE", help="write the results here")
    args = parser.parse_args(argv)
    with one_line_errors():
        check_device(args.device)
        check_writable(args.json)
        rows = [by_turn(run, args.device, args.limit) for run in args.runs]
        for row in rows:
            turns = ", ".join(f"{name} {value:.1f}" for name, value in row["turns"].items())
            print(f"{row['run']}: alone {row['alone']:.1f}, {turns}")
        if args.json:
            args.json.write_text(json.dumps({"runs": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
