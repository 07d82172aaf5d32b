"""The answers to the built-in worlds' questions by a slow reading of the scene, and what else
several tests ask of scenes. What a question says of a scene must be so: else an assertion fails."""

import re

import torch

from data.families import EMPTY
from data.shapes.pairs import WHICH
from data.shapes.scenes import GRID, NAMES
from data.sounds.notes import NAMES as NOTES


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def questions_of(world, S: int, per_scene: int, seed: int, families=()):
    """Layouts of training, and what is asked about each."""
    g = generator(seed)
    facts = world.facts(world.new_layouts("train", S, g), g)
    return facts.layout.tolist(), world.questions(facts, per_scene, families)


def words_of(question: str) -> list[str]:
    return re.sub("[?,]", "", question).split()


def found(cells, *name: str) -> list[int]:
    """Where things of that name stand: "red", "circle"; "red", "objects"; "circles"."""
    wanted = {word.removesuffix("s") for word in name} - {"object"}
    return [i for i, k in enumerate(cells) if k != EMPTY and wanted <= {*NAMES[k].split()}]


def of_shapes(cells, question: str) -> str:
    def only(*name):
        (cell,) = found(cells, *name)
        return cell

    match words_of(question):
        case "is", "there", "a", colour, shape:
            assert found(cells, colour) and found(cells, shape)
            return "yes" if found(cells, colour, shape) else "no"
        case "how", "many", *name, "are", "there":
            return str(len(found(cells, *name)))
        case "what", "shape" | "color" as what, "is", "the", *name:
            return NAMES[cells[only(*name)]].split()[what == "shape"]
        case "are", "there", "more", *both:
            more, less = both[: len(both) // 2], both[len(both) // 2 + 1 :]
            assert more[1:] == less[1:] and found(cells, *more) and found(cells, *less)
            return "yes" if len(found(cells, *more)) > len(found(cells, *less)) else "no"
        case "in", "which", axis, "is", "the", *name:
            return str(divmod(only(*name), GRID)[axis == "column"] + 1)
        case "which", "is", "higher" | "lower" | "further", way, "the", *a, "or", "the", b, c:
            side, last = way in ("left", "right"), way in ("right", "down")
            at = {name: divmod(only(*name), GRID)[side] for name in (tuple(a), (b, c))}
            assert len({*at.values()}) == 2
            return " ".join((max if last else min)(at, key=at.get))
    raise AssertionError(question)


def of_pairs(pair, question: str) -> str:
    def counts(name):
        return [len(found(cells, *name)) for cells in pair]

    def one(some):
        """The only picture of which that is so."""
        assert sum(some) == 1, question
        return WHICH[some.index(True)]

    match words_of(question):
        case "is", "there", "a", *name, "in", "both", "pictures":
            return "yes" if all(counts(name)) else "no"
        case "is", "there", "a", *name, "in", "the", which, "picture":
            assert sum(n > 0 for n in counts(name)) == 1  # so that they must be told apart
            return "yes" if counts(name)[WHICH.index(which)] else "no"
        case "in", "which", "picture", "is", "there", "a", *name:
            return one([n > 0 for n in counts(name)])
        case "how", "many", *name, "are", "there", "in", "the", which, "picture":
            return str(counts(name)[WHICH.index(which)])
        case "which", "picture", "has", "more", *name:
            return one([n > min(counts(name)) for n in counts(name)])
    raise AssertionError(question)


def of_sounds(beats, question: str) -> str:
    heard = [(beat, n % 2) for beat, n in enumerate(beats) if n != EMPTY]
    names = [NOTES[beats[beat] // 2] for beat, _ in heard]

    def only(*name):
        assert names.count(" ".join(name)) == 1, question
        return names.index(" ".join(name))

    match words_of(question):
        case "is", "there", "a", pitch, instrument:
            return "yes" if f"{pitch} {instrument}" in names else "no"
        case "how", "many", pitch, instruments, "are", "there":
            return str(names.count(f"{pitch} {instruments.removesuffix('s')}"))
        case "in", "which", "half", "is", "the", *name:
            return "first" if heard[only(*name)][0] < 4 else "second"
        case "what", "comes", "after" | "before" as way, "the", *name:
            return ["", *names, ""][only(*name) + (2 if way == "after" else 0)]
        case "which", "is", "louder", "the", *a, "or", "the", b, c:
            assert heard[only(*a)][1] != heard[only(b, c)][1]
            return " ".join(a) if heard[only(*a)][1] else f"{b} {c}"
    raise AssertionError(question)
