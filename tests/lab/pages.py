"""Pages of small runs, the explorer's and the playground's, and how they are read."""

import base64
import json
import re
import shutil

import numpy as np
import torch

import eval as evaluation
from engine import wings
from engine.checkpoint import save_model
from lab import explore, playground
from model import MLLM, Config

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
L, H = 3, 4


def make_run(folder, tokenizer, name="shapes", source=None, variant=None, **settings):
    """A run of random weights, large enough that heads differ."""
    torch.manual_seed(5)
    args = {"data": name, "source": source and str(source), "images": None, "variant": variant}
    sizes = dict(
        encoder_width=16, encoder_layers=1, encoder_heads=2,
        d_model=32, n_layer=L, n_head=H, d_ff=48,
    )  # fmt: skip
    model_class = wings.variant_of(args).model_class or MLLM
    model = model_class(Config(vocab_size=len(tokenizer), **{**sizes, **settings}))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(2)
    folder.mkdir(parents=True)
    save_model(folder / "model.pt", model)
    (folder / "tokenizer.model").write_bytes(tokenizer.model)
    (folder / "run.json").write_text(json.dumps({"args": args}))
    return str(folder)


def write(*args):
    explore.main([*map(str, args), "--device", "cpu"])


def write_playground(out, *runs):
    playground.main([*map(str, runs), "--out", str(out)])
    return out


def opened(run):
    return evaluation.open_run(explore.Path(run), "cpu")


def contents(page):
    block = r'<script type="application/json" id="data">(.*?)</script>'
    return json.loads(re.search(block, page.read_text(encoding="utf-8"), re.S)[1])


def unpack(row, layers=L, heads=H):
    """The mask [T, T] and the attention [L, H, T, T] of a row of the page; written apart from
    explore.py."""
    T = len(row["tokens"])
    packed, values = (np.frombuffer(base64.b64decode(row[name]), np.uint8)
                      for name in ("mask", "weights"))  # fmt: skip
    mask = torch.tensor(np.unpackbits(packed, count=T * T, bitorder="little")).bool().view(T, T)
    weights = torch.zeros(layers, heads, T, T)
    weights[:, :, mask] = torch.tensor(values).view(layers, heads, -1) / 255
    return mask, weights


def stands_alone(page, template, most: int):
    """The page needs no network, is small enough, and whole."""
    text, frame = page.read_text(encoding="utf-8"), explore.page_of(template, None)
    assert len(text.encode()) < most and not re.search(r"https?:", text)
    assert not re.search(r"(src|href)\s*=\s*(?![\"']data:)", text)
    calls = (
        r"url\(|@import|\bimport\b|fetch\(|XMLHttpRequest|WebSocket|<link rel=.stylesheet|\beval\b"
    )
    assert not re.search(calls, frame) and "{{" not in frame.replace("${{", "")
    assert text.count("<script") == text.count("</script") == 2


def rows_of(content):
    """(example, turn, number of the run, row) of everything on the page."""
    return [
        (example, turn, r, row)
        for example in content["examples"]
        for question in example["questions"]
        for turn in question["turns"]
        for r, row in enumerate(turn["rows"])
    ]
