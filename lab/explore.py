"""An attention explorer: what each token reads and who reads it, as one page that needs nothing but a browser.

    python eval.py RUN [RUN ...] --explore page.html                                 ten held-out pictures, two questions about each
    python eval.py RUN [RUN ...] --explore page.html --image FILE --question "..."   a picture of yours; give --question twice to compare

The page is explore.html with one block of JSON in it. Of each run, picture and question it holds the row (the prompt, then the
run's own greedy answer), the mask, and the attention of every layer and head, where the mask lets there be any, in steps of 1/255.
"change" is what a question does to the picture: how far the hidden state of each image token after each layer lies from where the
first question puts it, |a - b| / mean(|a|, |b|), rounded to 1e-4. Under a causal mask that is 0, unless the question comes first.

Shapes:  L layers   H heads   T tokens of a row   n image tokens of all its pictures   Q questions about one picture
"""

import base64
import io
import json
from contextlib import ExitStack
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image

import data
from mma import Role, attention_mask
from model import MLLM

TEMPLATE = Path(__file__).with_name("explore.html")
PICTURES, QUESTIONS = 10, 2  # by default; questions about each
LIMIT = 2_000_000            # bytes of a page
LONGEST = 32                 # tokens of an answer


def pairs(examples: list[data.Example], n: int = PICTURES) -> list[list[data.Example]]:
    """Examples that show the same picture and ask different things, up to QUESTIONS (the last) for each of n pictures; first those
    that have as many, then what else there is."""
    groups = {}
    for i, e in enumerate(examples):
        groups.setdefault(tuple(e.images) or i, {}).setdefault(tuple(message for message, _ in e.turns), e)
    asked = [list(group.values())[-QUESTIONS:] for group in groups.values()]
    return sorted(asked, key=lambda some: -len(some))[:n]


@torch.no_grad()
def trace(model: MLLM, tokenizer: data.Tokenizer, asked: list[data.Example]) -> dict:
    """What one run does with the questions about one picture. Tensors by question: ids, role, turn [T], mask bool [T, T], weights
    [L, H, T, T], change [L, n] (None where there is no picture); and `given`, the answers as text."""
    config, device = model.config, model.embed.weight.device

    def batch_of(rows):
        return {name: x.to(device) for name, x in data.collate(rows, tokenizer.pad, config.image_size).items()}

    rows = [data.encode(e, tokenizer, config.n_image_tokens, upto=len(e.turns) - 1, text_first=config.text_first) for e in asked]
    answers = model.generate(**batch_of(rows), eos=tokenizer.eos, max_new_tokens=LONGEST)
    for row, answer in zip(rows, answers):
        row.add(answer, Role.ANSWER, row.turn[-1])
    batch, weights, states = batch_of(rows), [], []
    with ExitStack() as hooks:
        for block in model.blocks:
            hooks.enter_context(block.register_forward_hook(lambda block, inputs, output: states.append(output)))
        model(**batch, weights=weights)
    mask = attention_mask(config.mask, batch["role"], batch["turn"], grid=(config.grid, config.grid))[:, 0].cpu()
    weights, states = torch.stack(weights, 1).cpu(), torch.stack(states, 1).float().cpu()  # [Q, L, H, T, T], [Q, L, T, D]
    out = {"ids": [], "role": [], "turn": [], "mask": [], "weights": [], "change": [],
           "given": [tokenizer.decode(answer) for answer in answers]}
    for q, row in enumerate(rows):
        T = len(row.ids)
        for name in ("ids", "role", "turn"):
            out[name].append(torch.tensor(getattr(row, name)))
        out["mask"].append(mask[q, :T, :T])
        out["weights"].append(weights[q, :, :, :T, :T])
        a, b = (states[k][:, batch["role"][k].cpu() == Role.IMAGE] for k in (0, q))  # [L, n, D]
        out["change"].append(2 * (a - b).norm(dim=-1) / (a.norm(dim=-1) + b.norm(dim=-1)) if a.numel() else None)
    return out


# --------------------------------------------------------------------------------------------------------------------
# What the page holds

def text64(values: torch.Tensor) -> str:
    """uint8 as base64."""
    return base64.b64encode(bytes(values.flatten().tolist())).decode()


def bits(mask: torch.Tensor) -> torch.Tensor:
    """bool -> uint8, eight to a byte in reading order, the first one lowest."""
    eights = F.pad(mask.flatten().int(), (0, -mask.numel() % 8)).view(-1, 8)
    return (eights << torch.arange(8)).sum(1).to(torch.uint8)


def png(image, size: int, side: int) -> str:
    """A picture as the model gets it, as a data URI; side: how many pixels of each line are in a patch."""
    file = io.BytesIO()
    Image.fromarray(data.pixels_of(image, size, "")[:, :side, :side].permute(1, 2, 0).numpy()).save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def record(runs: list[tuple[str, MLLM, data.Tokenizer]], asked: list[data.Example]) -> dict:
    """One picture, or row of pictures, with its questions: an example of the page."""
    config, questions = runs[0][1].config, []
    for e in asked:
        question, answer = e.turns[-1]
        questions.append({"text": question.replace(data.IMAGE, " ").strip(), "answer": answer, "family": e.family, "rows": []})
    for _, model, tokenizer in runs:
        seen = trace(model, tokenizer, asked)
        for q, question in enumerate(questions):
            mask, role, given, change = (seen[name][q] for name in ("mask", "role", "given", "change"))
            question["rows"].append({
                "tokens": ["" if r == Role.IMAGE else tokenizer.piece(i)
                           for i, r in zip(seen["ids"][q].tolist(), role.tolist())],
                "role": role.tolist(), "turn": seen["turn"][q].tolist(), "given": given,
                "correct": data.normalise(given) == data.normalise(question["answer"]) if question["answer"] else None,
                "mask": text64(bits(mask)),
                "weights": text64((seen["weights"][q][:, :, mask] * 255).round().to(torch.uint8)),
                "change": None if change is None else [[round(x, 4) for x in layer] for layer in change.tolist()]})
    return {"pictures": [png(image, config.image_size, config.patches * config.patch_size) for image in asked[0].images],
            "questions": questions}


def write(path: Path, runs: list[tuple[str, MLLM, data.Tokenizer]], groups: list[list[data.Example]]) -> str:
    """The page; runs: name, model and tokenizer of each. Returns what to print: what is in it, and what had to be left out."""
    about = [{"name": name, "mask": m.config.mask, "text_first": m.config.text_first, "layers": m.config.n_layer,
              "heads": m.config.n_head, "grid": m.config.grid} for name, m, _ in runs]
    template, examples, size = TEMPLATE.read_text(encoding="utf-8"), [], TEMPLATE.stat().st_size + 1000 * len(runs)
    for asked in groups:
        example = record(runs, asked)
        size += len(json.dumps(example))
        if examples and size > LIMIT:
            break
        examples.append(example)
    block = json.dumps({"runs": about, "examples": examples}, separators=(",", ":")).replace("<", "\\u003c")  # no tag can end it
    page = template.replace("{{DATA}}", block)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise data.DataError(f"--explore {path} cannot be written: {error.strerror}") from None
    said = f"wrote {path}: {len(examples)} pictures, {sum(len(e['questions']) for e in examples)} questions, {len(runs)} runs, "
    said += f"{len(page.encode()) / 1e6:.2f} MB"
    if len(examples) < len(groups):
        said += f"; {len(groups) - len(examples)} of {len(groups)} pictures left out, to stay below {LIMIT / 1e6:.0f} MB"
    return said
