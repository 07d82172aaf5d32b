"""The attention explorer: what is in its page, and, where a Chromium is installed, what the page does with it."""

import base64
import html
import io
import json
import re
import shutil
import subprocess

import pytest
import torch
from PIL import Image

import data
import eval as evaluation
import explore
from data.shapes import Shapes
from mma import Role, attention_mask
from model import MLLM, Config, save

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
L, H = 3, 4


@pytest.fixture(scope="module", autouse=True)
def short_answers():
    """What random weights say seldom ends."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(explore, "LONGEST", 8)
        yield


def make_run(folder, tokenizer, name="shapes", source=None, **settings):
    """A run of random weights, large enough that heads differ."""
    torch.manual_seed(5)
    sizes = dict(encoder_width=16, encoder_layers=1, encoder_heads=2, d_model=32, n_layer=L, n_head=H, d_ff=48)
    model = MLLM(Config(vocab_size=len(tokenizer), **{**sizes, **settings}))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(2)
    folder.mkdir(parents=True)
    save(folder / "model.pt", model)
    (folder / "tokenizer.model").write_bytes(tokenizer.model)
    (folder / "run.json").write_text(json.dumps({"args": {"data": name, "source": source and str(source), "images": None}}))
    return str(folder)


def write(*args):
    evaluation.main([*map(str, args), "--device", "cpu"])


def contents(page):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(encoding="utf-8"), re.S)[1])


def unpack(row, layers=L, heads=H):
    """The mask [T, T] and the attention [L, H, T, T] of a row of the page; written apart from explore.py."""
    T = len(row["tokens"])
    stream = "".join(f"{byte:08b}"[::-1] for byte in base64.b64decode(row["mask"]))
    mask = torch.tensor([bit == "1" for bit in stream[:T * T]]).view(T, T)
    weights = torch.zeros(layers, heads, T, T)
    weights[:, :, mask] = torch.tensor(list(base64.b64decode(row["weights"]))).view(layers, heads, -1) / 255
    return mask, weights


def rows_of(content):
    return [(example, question, r, row) for example in content["examples"] for question in example["questions"]
            for r, row in enumerate(question["rows"])]


@pytest.fixture
def few(llava):
    """One picture and two turns, two pictures, none."""
    entries = [e for e in json.loads(llava.read_text()) if e["id"] in ("0", "two", "none")]
    llava.write_text(json.dumps(entries))
    return llava


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("explore")
    return [make_run(folder / mask, tokenizer, mask=mask) for mask in ("causal", "mma")]


@pytest.fixture(scope="module")
def page(runs, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "new" / "page.html"
    write(*runs, "--explore", path)
    return path


def test_the_page_needs_nothing_else(page):
    text, template = page.read_text(encoding="utf-8"), explore.TEMPLATE.read_text(encoding="utf-8")
    assert len(text.encode()) < 2_000_000
    assert not re.search(r"https?:", text) and not re.search(r"(src|href)\s*=\s*(?![\"']data:)", text)
    assert not re.search(r"url\(|@import|\bimport\b|fetch|XMLHttpRequest|WebSocket|<link rel=.stylesheet", template)
    content = contents(page)
    assert [run["mask"] for run in content["runs"]] == ["causal", "mma"] and len(content["examples"]) == 10
    for example in content["examples"]:
        assert len(example["pictures"]) == 1 and len({q["text"] for q in example["questions"]}) == 2


def test_its_attention_masks_and_answers_are_the_models(runs, page):
    heldout, content = {(e.turns[0], k // 5): e for k, e in enumerate(Shapes().heldout("test"))}, contents(page)
    models = [evaluation.open_run(explore.Path(run), "cpu") for run in runs]
    for k, (example, question, r, row) in enumerate(rows_of(content)):
        e = heldout[(data.IMAGE + question["text"], question["answer"]), k // 4]
        model, tokenizer, _ = models[r]
        picture = Image.open(io.BytesIO(base64.b64decode(example["pictures"][0].split(",")[1])))
        assert torch.equal(torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(64, 64, 3).permute(2, 0, 1), e.images[0])
        prompt = data.encode(e, tokenizer, model.config.n_image_tokens, upto=0)
        answer = model.generate(**data.collate([prompt], tokenizer.pad, 64), eos=tokenizer.eos, max_new_tokens=explore.LONGEST)[0]
        prompt.add(answer, Role.ANSWER, 1)
        assert row["role"] == prompt.role and row["turn"] == prompt.turn and row["given"] == tokenizer.decode(answer)
        assert row["correct"] == (row["given"] == question["answer"])
        text = [tokenizer.sp.id_to_piece(i).replace("▁", " ") for i in prompt.ids]
        assert row["tokens"] == ["" if piece == data.IMAGE else piece for piece in text]
        batch, seen = data.collate([prompt], tokenizer.pad, 64), []
        with torch.no_grad():
            model(**batch, weights=seen)
        mask, weights = unpack(row)
        assert torch.equal(mask, attention_mask(model.config.mask, batch["role"], batch["turn"])[0, 0])
        assert (weights - torch.cat(seen)).abs().max() < .51 / 255


def test_a_question_changes_the_image_tokens_under_mma_alone(page):
    for example in contents(page)["examples"]:
        first, second = (question["rows"] for question in example["questions"])
        for row in (*first, second[0]):  # the first question against itself; causal
            assert row["change"] == [[0.0] * 16] * L
        assert len(second[1]["change"]) == L and all(0 < x <= 2 for layer in second[1]["change"] for x in layer)


def test_change_by_hand(runs):
    model, tokenizer, _ = evaluation.open_run(explore.Path(runs[1]), "cpu")
    asked = explore.pairs(Shapes().heldout("test"), 1)[0]
    seen = explore.trace(model, tokenizer, asked)
    assert not model.blocks[0]._forward_hooks
    model.blocks, model.norm = model.blocks[:1], torch.nn.Identity()  # a layer's state is what is returned where no layer follows
    with torch.no_grad():
        a, b = (model(**{name: seen[name][q][None] for name in ("ids", "role", "turn")}, images=asked[0].images[0][None],
                      picture=torch.tensor([0]))[0, 1:17] for q in range(2))
    expected = (a - b).norm(dim=1) / ((a.norm(dim=1) + b.norm(dim=1)) / 2)
    assert torch.allclose(seen["change"][1][0], expected, atol=1e-5)


def test_pictures_of_ones_own_and_text_that_looks_like_a_tag(runs, tmp_path, capsys):
    Image.new("RGB", (100, 50), "red").save(tmp_path / "x.png")
    own, ask = ("--image", tmp_path / "x.png"), ("--question", "</script><!--<script>?", "--question", "is there a red circle?")
    write(*runs, "--explore", tmp_path / "page.html", *own, *ask)
    content, text = contents(tmp_path / "page.html"), (tmp_path / "page.html").read_text(encoding="utf-8")
    assert [q["text"] for q in content["examples"][0]["questions"]] == list(ask[1::2])
    assert {row["correct"] for *_, row in rows_of(content)} == {None}
    template = explore.TEMPLATE.read_text(encoding="utf-8")
    assert all(text.count(tag) == template.count(tag) for tag in ("<script", "</script", "<!--"))
    capsys.readouterr()
    write(runs[0], *own, *ask)  # and without a page one answer for each question
    given = [row["given"] for *_, r, row in rows_of(content) if r == 0]
    assert all(line.startswith(said) for line, said in zip(capsys.readouterr().out.split("\n"), given))


def test_any_data_set_any_prompt(few, tokenizer, tmp_path):
    """Rows of several turns, two pictures and none; text first; another grid; another mask for the test."""
    usual = make_run(tmp_path / "a", tokenizer, "llava", few)
    other = make_run(tmp_path / "b", tokenizer, "llava", few, text_first=True, patch_size=8, pool=2, n_layer=2, n_head=2)
    write(usual, other, "--explore", tmp_path / "page.html", "--split", "all", "--mask", "mma+cca")
    content, pictures = contents(tmp_path / "page.html"), set()
    assert [(run["mask"], run["layers"], run["grid"]) for run in content["runs"]] == [("mma+cca", 3, 4), ("mma+cca", 2, 4)]
    for example, question, r, row in rows_of(content):
        n = len(example["pictures"])
        pictures.add(n)
        assert row["role"].count(Role.IMAGE) == 16 * n and (row["change"] is None) == (n == 0)
        role, turn = torch.tensor([row["role"]]), torch.tensor([row["turn"]])
        mask, weights = unpack(row, *((L, H), (2, 2))[r])
        assert torch.equal(mask, attention_mask("mma+cca", role, turn, grid=(4, 4))[0, 0])
        assert (weights.sum(-1) - 1).abs().max() < .51 / 255 * len(mask)
        assert question["text"] == "Really?" or row["role"][-1] == Role.ANSWER and max(row["turn"]) == 1
    assert pictures == {0, 1, 2}


def test_pairs_by_hand():
    a, b = torch.zeros(3, 4, 4), torch.zeros(3, 4, 4)
    examples = [data.Example([image] if image is not None else [], [(words, "")])
                for image, words in ((a, "1"), (b, "2"), (b, "2"), (None, "3"), (b, "4"), (None, "5"), (b, "6"))]
    assert [[e.turns[0][0] for e in some] for some in explore.pairs(examples)] == [["4", "6"], ["1"], ["3"], ["5"]]
    assert len(explore.pairs(examples, 2)) == 2


def test_pictures_that_would_make_it_too_large_are_left_out(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(explore, "LIMIT", 200_000)
    write(*runs, "--explore", tmp_path / "page.html")
    n = len(contents(tmp_path / "page.html")["examples"])
    assert 1 <= n < 10 and f"{10 - n} of 10 pictures left out" in capsys.readouterr().out
    assert (tmp_path / "page.html").stat().st_size < 200_000


@pytest.mark.parametrize("args, message", [
    (["--question", "why?"], "--question needs an --image"), (["--image", "x.png"], "--explore of an --image needs a --question"),
    (["--image", "x.png", "--question", "why?"], "x.png: no such picture"), (["--aif", "0.5"], "attention without --aif"),
    (["--limit", "0"], "--limit 0 leaves no picture"), (["--split", "dev"], "no split 'dev'"), (["--explore", "."], "cannot be written")])
def test_bad_input_is_one_clear_error(runs, tmp_path, monkeypatch, args, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=f"^error: .*{re.escape(message)}"):
        write(runs[0], "--explore", "page.html", "--limit", "1", *args)
    assert not (tmp_path / "page.html").exists()


# --------------------------------------------------------------------------------------------------------------------
# In a browser

def browse(page, script, folder, *options):
    """What the script, put at the end of a copy of the page, passes to done(...), and what the browser's console said."""
    copy = folder / "copy.html"
    end = """const done = result => document.body.append(Object.assign(document.createElement("pre"),
             {id: "result", textContent: JSON.stringify(result)}));"""
    copy.write_text(page.read_text(encoding="utf-8").replace("</body>", f"<script>{end}\n{script}</script></body>"), encoding="utf-8")
    ran = subprocess.run([CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
                          "--disable-component-update", "--disable-sync", f"--user-data-dir={folder / 'profile'}", *options,
                          "--virtual-time-budget=5000", "--enable-logging=stderr", "--dump-dom", copy.as_uri()],
                         capture_output=True, text=True, encoding="utf-8", timeout=120)
    result = re.search(r'<pre id="result">(.*?)</pre>', ran.stdout, re.S)
    return result and json.loads(html.unescape(result[1])), [line for line in ran.stderr.splitlines() if "CONSOLE" in line]


LOOK = """
const $ = (selector, from = document) => [...from.querySelectorAll(selector)];
const pick = (name, value) => $(`#controls input[name=${name}]`).find(input => input.value === String(value)).click();
const alpha = button => {  // of a patch's veil, or of a word's colour
  const style = getComputedStyle(button);
  const colour = (button.closest(".cells") ? style.backgroundColor : style.backgroundImage).match(/rgba?\\(([^)]*)\\)/);
  return colour && +(colour[1].split(/[ ,/]+/)[3] ?? 1);
};
const shown = () => $(".run").map(run => $(".token", run).map(b => [+b.dataset.weight, b.dataset.kind, alpha(b), b.matches(".here")]));
const out = {looks: [], masks: [], changes: [], keys: [], stops: []};
for (const [example, question, layer, head, direction] of [
    [0, 0, "mean", "mean", "reads"], [0, 1, 0, 3, "reads"], [9, 1, 2, "mean", "read"], [4, 0, "mean", 1, "read"]]) {
  for (const [name, value] of Object.entries({example, question, layer, head, direction})) pick(name, value);
  for (const r of [0, 1]) for (const i of [0, 1, 8, 16, 17, 20]) {
    const token = $(`.run[data-run="${r}"] .token`)[i];
    if (i % 2) token.focus(); else token.dispatchEvent(new MouseEvent("mouseenter"));
    out.looks.push({example, question, layer, head, direction, r, i, panels: shown()});
  }
  out.stops.push(...$(".run").map(run => $(".token", run).filter(b => b.tabIndex === 0).length));
  const pixels = canvas => [...canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data];
  out.masks.push({example, question, panels: $(".run canvas").map(pixels)});
  out.changes.push($(".run").map(run => $(".map i", run).map(i => +i.dataset.change)));
}
const press = key => {
  document.activeElement.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
  out.keys.push([+document.activeElement.closest(".run").dataset.run, +document.activeElement.dataset.i]);
};
$('.run[data-run="1"] .token')[6].focus();
["ArrowRight", "ArrowDown", "ArrowUp", "ArrowLeft", "End", "ArrowRight", "Home"].forEach(press);
out.said = $(".said").map(x => x.textContent);
out.unnamed = $(".token").filter(b => !b.getAttribute("aria-label")).length;
done(out);
"""


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium on PATH")
def test_in_a_browser(page, tmp_path):
    out, console = browse(page, LOOK, tmp_path, "--window-size=1280,900")
    assert console == [] and out is not None
    content = contents(page)
    for look in out["looks"]:
        question, values = content["examples"][look["example"]]["questions"][look["question"]], {}
        for r, (row, panel) in enumerate(zip(question["rows"], look["panels"])):
            mask, weights = unpack(row)
            w = weights if look["layer"] == "mean" else weights[[look["layer"]]]
            w = (w if look["head"] == "mean" else w[:, [look["head"]]]).mean((0, 1))
            i = look["i"]  # the prompts are alike, so the same token is looked at in both runs
            values[r] = [w[i, j].item() if look["direction"] == "reads" else w[j, i].item() for j in range(len(w))]
            strongest = {patch: max(1 / len(w), *(x for x, role in zip(values[r], row["role"]) if (role == Role.IMAGE) == patch))
                         for patch in (True, False)}
            for j, (value, kind, alpha, here) in enumerate(panel):
                a, b = (i, j) if look["direction"] == "reads" else (j, i)
                assert kind == ("blocked" if not mask[a, b] else "opened" if b > a else "past").replace("blocked", "shut")
                assert here == (i == j) and abs(value - values[r][j]) < 1e-4
                patch = row["role"][j] == Role.IMAGE
                shade = value / strongest[patch]
                if patch or kind != "shut":
                    assert abs(alpha - (.7 - .7 * shade if patch else .55 * shade)) < .01
        assert look["i"] != 8 or values[0] != values[1]  # a patch; the weights are alike, so some words read alike in the first layer
    assert len({json.dumps(look["panels"]) for look in out["looks"]}) == len(out["looks"]) // 2  # once from each run
    for drawn in out["masks"]:
        for row, pixels in zip(content["examples"][drawn["example"]]["questions"][drawn["question"]]["rows"], drawn["panels"]):
            mask, _ = unpack(row)
            red, green, blue, _ = torch.tensor(pixels).view(*mask.shape, 4).unbind(-1)
            assert torch.equal(red > blue + 20, mask.triu(1)) and torch.equal(blue > red + 20, mask.tril())
    assert all(set(causal) == {0} and min(mma) > 0 and len(mma) == len(causal) == 16 * L for causal, mma in out["changes"])
    T = len(content["examples"][4]["questions"][0]["rows"][1]["tokens"])
    assert out["keys"] == [[1, 7], [1, 11], [1, 7], [1, 6], [1, T - 1], [1, T - 1], [1, 0]]
    assert set(out["stops"]) == {1} and out["unnamed"] == 0 and all(said.startswith("answers “") for said in out["said"])


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium on PATH")
def test_in_a_browser_with_pictures_of_all_kinds_in_the_dark(few, tokenizer, tmp_path):
    runs = [make_run(tmp_path / "a", tokenizer, "llava", few), make_run(tmp_path / "b", tokenizer, "llava", few, text_first=True)]
    write(*runs, "--explore", tmp_path / "page.html", "--split", "all")
    every = """
    const seen = [], inputs = () => [...document.querySelectorAll("#controls input[name=example]")];
    for (const k of inputs().keys()) {
      inputs()[k].click();
      document.querySelectorAll(".run .token").forEach(t => t.focus());
      seen.push([...document.querySelectorAll(".run")].map(run => run.querySelectorAll(".picture img").length));
    }
    const phone = document.createElement("iframe");  // a window of Chromium's own is never that narrow
    phone.style.width = "360px";
    phone.onload = () => {
      const root = phone.contentDocument.documentElement;
      done({seen, width: [phone.contentWindow.innerWidth, root.scrollWidth], dark: getComputedStyle(document.body).backgroundColor});
    };
    phone.src = "page.html";
    document.body.append(phone);
    """
    options = "--allow-file-access-from-files", "--blink-settings=preferredColorScheme=0"
    out, console = browse(tmp_path / "page.html", every, tmp_path, *options)
    assert console == []
    assert out["seen"] == [[len(example["pictures"])] * 2 for example in contents(tmp_path / "page.html")["examples"]]
    assert out["width"][1] <= out["width"][0] <= 360 and out["dark"] == "rgb(19, 21, 24)"


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium on PATH")
def test_an_error_in_the_browser_would_be_seen(page, tmp_path):
    assert browse(page, "nothing.at.all", tmp_path)[1] and browse(page, "done(1); console.error('x')", tmp_path)[1]
