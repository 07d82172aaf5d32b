"""What the tests of both pages use: a small run, and a headless Chromium."""

import html
import json
import re
import shutil
import subprocess

import pytest
import torch

import eval as evaluation
from engine import wings
from engine.checkpoint import save_model
from lab.explore import page_of
from model import MLLM, Config

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
PROBE = """<head><script>
const errors = [];
for (const kind of ["error", "unhandledrejection"])
  addEventListener(kind, event => errors.push(String(event.message ?? event.reason)));
const asked = async () => {
  if (typeof ready !== "undefined") await ready;
  %s
};
addEventListener("load", async () => {
  window.focus();
  const said = await asked().catch(String);
  parent.postMessage(JSON.stringify([errors, said]), "*");
});
</script>"""
FRAME = """<iframe src="probe.html" width="%d" height="900"></iframe>
<script>onmessage = event => document.documentElement.textContent = event.data</script>"""


def browse(page, script: str, width: int = 1000, dark: bool = False):
    """What a script, the body of an async function, returns in the page; no error may be raised
    there."""
    if not CHROMIUM:
        pytest.skip("no Chromium on PATH")
    probe, frame = page.with_name("probe.html"), page.with_name("frame.html")
    text = page.read_text(encoding="utf-8")
    probe.write_text(text.replace("<head>", PROBE % script, 1), encoding="utf-8")
    frame.write_text(FRAME % width)
    options = "--headless --no-sandbox --disable-gpu --virtual-time-budget=100000 --dump-dom"
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    profile = f"--user-data-dir={page.with_name('profile')}"  # not the one of who runs the tests
    call = [CHROMIUM, *options.split(), scheme, profile, frame.as_uri()]
    said = subprocess.run(call, capture_output=True, encoding="utf-8", timeout=120).stdout
    errors, result = json.loads(html.unescape(re.search("<html>(.*)</html>", said, re.S)[1]))
    assert errors == []
    return result


def make_run(folder, tokenizer, name="shapes", source=None, variant=None, **settings):
    """A run of random weights, large enough that heads differ."""
    torch.manual_seed(5)
    args = {"data": name, "source": source and str(source), "images": None, "variant": variant}
    sizes = dict(encoder_width=16, encoder_layers=1, encoder_heads=2, d_model=32, n_layer=3,
                 n_head=4, d_ff=48)  # fmt: skip
    model_class = wings.variant_of(args).model_class or MLLM
    model = model_class(Config(vocab_size=len(tokenizer), **{**sizes, **settings}))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(2)
    folder.mkdir(parents=True)
    save_model(folder / "model.pt", model)
    (folder / "tokenizer.model").write_bytes(tokenizer.model)
    (folder / "run.json").write_text(json.dumps({"args": args}))
    return folder


def opened(run):
    return evaluation.open_run(run, "cpu")


def stands_alone(page, template, most: int):
    """The page is small enough, and asks for nothing that is not in it."""
    asks = (
        r"https?:|url\(|@import|\bimport\b|fetch\(|XMLHttpRequest|WebSocket|<link rel=.stylesheet"
    )
    text, frame = page.read_text(encoding="utf-8"), page_of(template, None)
    assert not re.search(asks + r"|(src|href)\s*=\s*(?![\"']data:)", frame)
    assert len(text.encode()) < most and text.count("<script") == text.count("</script") == 2
