"""How much of NLVR's training sentences the world's grammar says, and whether it means the same.

    python -m lab.nlvr --source PATH               what is covered; agreement with the labels
    python -m lab.nlvr --source PATH --missing 40  the most frequent templates that are not

Sentences are drawn about NLVR's own training scenes (structured_rep), val left out. Where one of
them is a person's sentence too, its truth by the grammar is compared with the label. A template is
a sentence without its numbers, colours and nouns.

Shapes:  S scenes of one kind of picture
"""

import random
import re
from collections import Counter
from pathlib import Path

from data import DataError
from data.nlvr import NLVR, picture_kind, read_entry, read_lines
from data.nlvr.phrases import NUMBER
from data.nlvr.scenes import COLOUR, SHAPE, Scenes
from data.nlvr.sentences import Speaker
from data.nlvr.world import CYCLE
from engine.options import Parser, positive
from engine.run import one_line_errors
from engine.tables import markdown

KINDS = {"towers": "tower", "scattered": "item"}  # of pictures -> of the world's families
NOUNS = (*SHAPE, "item", "object", "block")
IN_FILES = {"black": 0, "yellow": 1, "blue": 2, "#0099ff": 2}  # a colour's name in structured_rep


def template(sentence: str) -> str:
    """The sentence with N, C and S for numbers, colours and nouns."""
    text = re.sub(rf"\b({'|'.join(NUMBER[1:])})\b", "N", sentence)
    text = re.sub(rf"\b({'|'.join(COLOUR)})\b", "C", text)
    return re.sub(rf"\b({'|'.join(NOUNS)})(s?)\b", r"S\2", text)


def item_of(thing: dict) -> tuple[int, int, int, int, int]:
    """An item of structured_rep as data.nlvr.scenes has it."""
    colour, shape = IN_FILES[thing["color"].lower()], SHAPE.index(thing["type"])
    return colour, shape, thing["size"] // 10 - 1, thing["x_loc"], thing["y_loc"]


def boxes_of(entry: dict) -> list[list[tuple]]:
    """The boxes of an entry; a tower's items from the base up."""
    boxes = [[item_of(thing) for thing in box] for box in entry["structured_rep"]]
    return [sorted(box, key=lambda item: -item[4]) for box in boxes]


def read_train(source: NLVR) -> dict[str, list[tuple]]:
    """kind of picture -> (sentence, label, boxes) of every training example."""
    kept = {example.id for group in source.splits["train"] for example in group}
    by_kind, file = {kind: [] for kind in KINDS}, source.files["train"]
    for number, line in enumerate(read_lines(file), 1):
        where = f"{file}: line {number}"
        entry = read_entry(line, where) if line.strip() else {}
        if not entry or f"{where} ({entry['identifier']})" not in kept:
            continue
        kind = picture_kind(entry.get("structured_rep"))
        try:
            by_kind[kind].append((entry["sentence"], entry["label"] == "true", boxes_of(entry)))
        except (KeyError, ValueError) as error:
            raise DataError(f"{where}: no structured_rep of NLVR's ({error})") from None
    for kind, rows in by_kind.items():
        if not rows:
            raise DataError(f"{file}: no example shows {kind}")
    return by_kind


def compare(rows: list[tuple], family: str, draws: int) -> tuple[set[str], Counter]:
    """The sentences drawn about the rows' scenes, and how often their truth is the label's: counts
    of True and False, an example once for each time its sentence is drawn."""
    scenes, r = Scenes([boxes for *_, boxes in rows]), random.Random(0)
    said, drawn, agree = {}, set(), Counter()
    for i, (sentence, label, _) in enumerate(rows):
        said.setdefault(sentence, []).append((i, label))
    methods = [name for name in CYCLE if name.startswith(family)]
    for k in range(draws):
        method = methods[k % len(methods)].replace(" ", "_")
        words, holds, _ = getattr(Speaker(scenes, r, family == "tower"), method)()
        drawn.add(words)
        agree.update(bool(holds[i]) == label for i, label in said.get(words, ()))
    return drawn, agree


def report(by_kind: dict[str, list[tuple]], draws: int, missing: int) -> str:
    """What is covered, in % of the examples, as a table; then the templates that are not."""
    table = [["% of examples", "known words alone", "template drawn", "sentence drawn", "agree"]]
    table[0] += ["examples"]
    uncovered = Counter()
    for kind, family in KINDS.items():
        rows = by_kind[kind]
        drawn, agree = compare(rows, family, draws)
        words, templates = {w for s in drawn for w in s.split()}, set(map(template, drawn))
        n_known = sum(words.issuperset(sentence.split()) for sentence, *_ in rows)
        n_templates = sum(template(sentence) in templates for sentence, *_ in rows)
        n_drawn = sum(sentence in drawn for sentence, *_ in rows)
        shares = [n / len(rows) for n in (n_known, n_templates, n_drawn)]
        shares.append(agree[True] / max(1, agree.total()))
        table.append([kind, *(f"{100 * share:.1f}" for share in shares), f"{len(rows):,}"])
        uncovered.update(template(s) for s, *_ in rows if template(s) not in templates)
    lines = [f"{n:>5}  {text}" for text, n in uncovered.most_common(missing)]
    return "\n".join([markdown(table), *lines])


def main(argv=None) -> None:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("-h", "--help", action="help", help="show this and exit")
    add("--source", type=Path, required=True, metavar="PATH", help="NLVR's folder")
    add("--draws", type=positive, default=6000, metavar="N", help="of each kind (default: 6000)")
    add("--missing", type=int, default=0, metavar="N", help="templates to list (default: 0)")
    args = parser.parse_args(argv)
    with one_line_errors():
        print(report(read_train(NLVR(args.source)), args.draws, args.missing))


if __name__ == "__main__":
    main()
