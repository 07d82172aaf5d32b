"""What several test files use and pytest need not make: options of short runs, the rule of a mask
written slowly, layouts of files, ways to stop a run."""

import functools
import io
import itertools
import json
import tempfile
from itertools import permutations
from pathlib import Path

import pytest
import torch
from PIL import Image

import eval as evaluation
import train
from data.nlvr import BOXES
from lab import watch
from mma import EXTRA_PAIRS, IMAGE, QUESTION, TEXT, Role

ROOT = Path(__file__).parent.parent
KINDS = list(EXTRA_PAIRS)  # a fork may have added to them: see `opens`
LETTERS = dict(zip("-tVQA", Role))

# A run of a few steps on the built-in world
TINY = (
    "--preset tiny --device cpu --workers 0 --pt-pictures 4 --pictures 4 --questions 2 "
    "--pt-steps 2 --steps 3 --eval-every 2 --limit 100 --val-limit 40"
).split()
# One that saves often; see the fixture `small`
RUN = (
    "--preset tiny --device cpu --workers 0 --pt-pictures 2 --pictures 2 --questions 2 "
    "--pt-steps 4 --steps 6 --eval-every 3 --save-every 2 --limit 20"
).split()


def enlarge(model):
    """float64 weights twice as large, so that every input matters."""
    model = model.double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(2)
    return model


# --- The rule, slowly

# What this project's kinds open for a query of role a and a later key of role b, in plain words,
# written without a look at mma.EXTRA_PAIRS
OPENS = {
    "causal": lambda a, b: False,
    "mma": lambda a, b: a == IMAGE and b == QUESTION,
    "prefix": lambda a, b: {a, b} <= {IMAGE, QUESTION},
    "v2v": lambda a, b: a == b == IMAGE,
    "f": lambda a, b: a == IMAGE and b in (IMAGE, QUESTION),
    "mutual": lambda a, b: (a == IMAGE) != (b == IMAGE) and {a, b} <= {TEXT, IMAGE, QUESTION},
    "leaky": lambda a, b: a == IMAGE and b != IMAGE,
}


def opens(kind: str, a: int, b: int) -> bool:
    """May a query of role a read a later key of role b? A kind that a fork has added is known by
    its rule alone."""
    rule = OPENS.get(kind, EXTRA_PAIRS[kind])
    return bool(rule(*(x if kind in OPENS else torch.tensor(int(x)) for x in (a, b))))


def opens_answers(kind: str) -> bool:
    """Then labels can be read, and a cache, which is filled before an answer is there, differs."""
    return any(opens(kind, a, Role.ANSWER) for a in Role)


def row(letters: str, turns: str | None = None):
    """role and turn, int64 [1, T], from a letter and a digit for each token."""
    role = torch.tensor([[int(LETTERS[c]) for c in letters]])
    return role, None if turns is None else torch.tensor([[int(c) for c in turns]])


def reach(mask, hops: int):
    """bool [B, T, T]: what a row knows of a column after so many layers of a mask [B, 1, T, T]."""
    step = mask[:, 0].float() + torch.eye(mask.shape[-1])
    found = step
    for _ in range(hops - 1):
        found = ((found @ step) > 0).float()
    return found > 0


# --- Data


@functools.cache
def three_boxes(k: int) -> bytes:
    """A PNG of NLVR's size: red, green and blue boxes in the order k."""
    picture, out = Image.new("RGB", (400, 100), (128, 128, 128)), io.BytesIO()
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    for box, colour in zip(BOXES, list(permutations(colours))[k]):
        picture.paste(colour, box)
    picture.convert("P").save(out, "PNG")
    return out.getvalue()


def write_nlvr_split(root, split, identifiers, flat=False, orders=(0,)):
    """A split in NLVR's layout: its boxes are red, green, blue in the order K of `orders`; the
    label is true for even m."""
    lines = []
    for n, m in identifiers:
        directory = {} if flat else {"directory": str(n % 20)}
        folder = root / split / "images" / directory.get("directory", "")
        folder.mkdir(parents=True, exist_ok=True)
        for k in orders:
            (folder / f"{split}-{n}-{m}-{k}.png").write_bytes(three_boxes(k))
        line = {"sentence": f"There are {n} Black squares.", "label": ("true", "false")[m % 2]}
        lines.append(json.dumps({**line, "identifier": f"{n}-{m}", **directory}))
    (root / split / f"{split}.json").write_text("\n".join(lines) + "\n\n")


# --- Runs


def without_drawing(patch) -> None:
    patch.setattr(watch, "write_curves", lambda path, records: None)
    patch.setattr(watch, "write_sheet", lambda *args, **kwargs: None)


def weights_of(out) -> dict:
    return torch.load(out / "model.pt", weights_only=True)["weights"]


def own_data(file) -> list[str]:
    """The options of a run on the fixture `llava`."""
    return ["--data", "llava", "--source", str(file), "--image-size", "32"]


def train_tiny(out, *options) -> None:
    train.main([*TINY, *map(str, options), "--out", str(out)])


def evaluated(*line) -> list[dict]:
    """What eval.py writes of runs to --json."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "r.json"
        evaluation.main([*map(str, line), "--device", "cpu", "--json", str(file)])
        return json.loads(file.read_text())["runs"]


def record_of(out) -> dict:
    return json.loads((out / "run.json").read_text())


def lines_of(out) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


class Crash(BaseException):
    pass


def crash(*args, **kwargs):
    raise Crash


def at_steps(monkeypatch, which, what) -> None:
    """Call what(model) before the forward pass of those of the process's training steps, counted
    from 1 over both stages, for which which(step) is true."""
    steps, forward_backward = itertools.count(1), train.forward_backward

    def counted(loss_of, *rest):
        if which(next(steps)):
            what(loss_of.__self__)
        return forward_backward(loss_of, *rest)

    monkeypatch.setattr(train, "forward_backward", counted)


def train_and_crash(out, step: int, *options) -> None:
    """RUN until just before the given step."""
    with pytest.MonkeyPatch.context() as patch:
        at_steps(patch, lambda s: s == step, crash)
        with pytest.raises(Crash):
            train.main([*RUN, *options, "--out", str(out)])


# --- The model


def hidden_of(model, batch, kind):
    with torch.no_grad():
        return model(**batch, mask=kind)


def loss_and_gradients(model, loss_function, *args, **batch) -> list:
    """loss_function(*args, **batch) and the gradient of every parameter (zeros where none)."""
    model.zero_grad()
    loss = loss_function(*args, **batch)
    loss.backward()
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    return [loss.detach(), *gradients]
