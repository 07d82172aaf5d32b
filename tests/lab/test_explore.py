"""The attention explorer: what is in its page, and what that shows in a browser, where a Chromium
is installed."""

import base64
import io
import json
import re

import numpy as np
import pytest
import torch
from pages import browse, make_run, opened, stands_alone
from PIL import Image

import data
import eval as evaluation
from data.shapes import Shapes
from lab import explore
from lab.recording import recorded
from lab.variants import ring_positions
from mma import Role, attention_mask

L, H = 3, 4


@pytest.fixture(scope="module", autouse=True)
def short_answers():
    """What random weights say seldom ends."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(explore, "LONGEST", 8)
        yield


def write(out, *args):
    explore.main(["--device", "cpu", "--out", *map(str, (out, *args))])
    return out


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("explore")
    return [make_run(folder / mask, tokenizer, mask=mask) for mask in ("causal", "mma")]


@pytest.fixture(scope="module")
def page(runs, tmp_path_factory):
    return write(tmp_path_factory.mktemp("page") / "new" / "page.html", *runs)


@pytest.fixture
def other_runs(llava, tokenizer, tmp_path):
    """On a question about two pictures, a dialogue that shows them one after the other, and a row
    without any: a run with rings, and one of other sizes that reads the text first."""
    said = "<image>Which colour is this?", "Red.", "And " + "this one over there " * 9 + "?", "No."
    words = [*said, "<image>And here?", "Green."]
    messages = [{"from": who, "value": words[i]} for i, who in enumerate(("human", "gpt") * 3)]
    two, none = (e for e in json.loads(llava.read_text()) if e["id"] in ("two", "none"))
    talk = {"id": "talk", "image": two["image"], "conversations": messages}
    llava.write_text(json.dumps([two, talk, none]))
    sizes = dict(image_size=32, patch_size=8, n_layer=2, n_head=2)
    return [
        make_run(tmp_path / "a", tokenizer, "llava", llava, variant="cca", mask="causal"),
        make_run(tmp_path / "b", tokenizer, "llava", llava, variant="text-first", **sizes),
    ]


@pytest.fixture
def other_page(other_runs, tmp_path):
    return write(tmp_path / "page.html", *other_runs, "--split", "all", "--mask", "mma")


def contents(page):
    block = r'<script type="application/json" id="data">(.*?)</script>'
    return json.loads(re.search(block, page.read_text(encoding="utf-8"), re.S)[1])


def rows_of(content):
    """(example, turn, number of the run, row) of everything on the page."""
    return [
        (example, turn, r, row)
        for example in content["examples"]
        for question in example["questions"]
        for turn in question["turns"]
        for r, row in enumerate(turn["rows"])
    ]


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


# --- What is in the page


def test_masks_attention_and_answers_are_the_models(runs, page):
    stands_alone(page, explore.TEMPLATE, explore.LIMIT)
    content, models = contents(page), [opened(run) for run in runs]
    groups, rows = explore.pairs(Shapes().heldout("test")), rows_of(content)
    assert [run["mask"] for run in content["runs"]] == ["causal", "mma"]
    assert len(rows) == 10 * 2 * 2
    for k in range(0, len(rows), 7):  # of both runs and both questions
        (example, turn, r, row), e = rows[k], groups[k // 4][k // 2 % 2]
        picture = io.BytesIO(base64.b64decode(example["pictures"][0].split(",")[1]))
        assert torch.equal(data.pixels_of(picture, 64, ""), e.images[0])
        assert (data.IMAGE_TOKEN + turn["text"], turn["answer"]) == e.turns[0]
        model, tokenizer = models[r]
        prompt = data.encode(e, tokenizer, model.config.n_image_tokens, upto=0)
        options = dict(eos=tokenizer.eos, max_new_tokens=explore.LONGEST)
        answer = model.generate(**data.collate([prompt], tokenizer.pad, 64), **options)[0]
        prompt.add(answer, Role.ANSWER, 1)
        assert (row["role"], row["turn"]) == (prompt.role, prompt.turn)
        assert row["given"] == tokenizer.decode(answer)
        assert row["correct"] == (row["given"] == turn["answer"])
        text = [tokenizer.sp.id_to_piece(i).replace("▁", " ") for i in prompt.ids]
        assert row["tokens"] == ["" if piece == data.IMAGE_TOKEN else piece for piece in text]
        batch = data.collate([prompt], tokenizer.pad, 64)
        with torch.no_grad(), recorded(model) as seen:
            model(**batch)
        mask, weights = unpack(row)
        expected = attention_mask(model.config.mask, batch["role"], batch["turn"])[0, 0]
        assert torch.equal(mask, expected)
        assert (weights - torch.cat(seen)).abs().max() < 0.51 / 255


def test_a_question_changes_the_image_tokens_under_mma_alone(runs, page):
    for example in contents(page)["examples"]:
        first, second = (question["turns"][0]["rows"] for question in example["questions"])
        for row in (*first, second[0]):  # the first question against itself; causal
            assert row["change"] == [[0.0] * 16] * L
        assert len(second[1]["change"]) == L
        assert all(0 < x <= 2 for layer in second[1]["change"] for x in layer)

    model, tokenizer = opened(runs[1])  # and by hand
    asked = explore.pairs(Shapes().heldout("test"), 1)[0]
    seen = explore.trace(model, tokenizer, asked)
    # A layer's state is what is returned where no layer follows
    model.blocks, model.norm = model.blocks[:1], torch.nn.Identity()
    picture = dict(images=asked[0].images[0][None], image_index=torch.tensor([0]))
    rows = [{name: seen[name][q][None] for name in ("ids", "role", "turn")} for q in range(2)]
    with torch.no_grad():
        a, b = (model(**row, **picture)[0, 1:17] for row in rows)
    expected = (a - b).norm(dim=1) / ((a.norm(dim=1) + b.norm(dim=1)) / 2)
    assert torch.allclose(seen["change"][1][0], expected, atol=1e-5)


def test_pictures_of_ones_own_and_text_that_looks_like_a_tag(runs, tmp_path, capsys):
    """With the answers that eval.py prints."""
    Image.new("RGB", (100, 50), "red").save(tmp_path / "missing.png")
    asked = "</script><!--<script>?", "is there a red circle?"
    own = "--image", str(tmp_path / "missing.png"), "--question", asked[0], "--question", asked[1]
    page = write(tmp_path / "page.html", runs[0], *own)
    stands_alone(page, explore.TEMPLATE, explore.LIMIT)
    assert "<!--" not in page.read_text(encoding="utf-8")
    rows = rows_of(contents(page))
    assert [(turn["text"], row["correct"]) for _, turn, _, row in rows] == [
        (a, None) for a in asked
    ]
    capsys.readouterr()
    evaluation.main([str(runs[0]), *own, "--device", "cpu"])
    lines = capsys.readouterr().out.split("\n")[-3:]
    assert all(line.startswith(row["given"]) for line, (*_, row) in zip(lines, rows))


def test_any_data_set_any_prompt_every_turn(llava, other_runs, other_page):
    """As eval.py asks it, earlier turns with true answers and with the pictures that were shown;
    compared with the first question where as many are."""
    content = contents(other_page)
    names = ("mask", "layers", "grid", "text_first")
    about = [[run[name] for name in names] for run in content["runs"]]
    assert about == [["mma", 3, 4, False], ["mma", 2, 4, True]]
    examples = data.load("llava", llava, images=llava.parent).heldout("train")
    results = [
        evaluation.answer_all(*evaluation.open_run(run, "cpu", "mma"), examples,
                              max_new_tokens=explore.LONGEST)
        for run in other_runs
    ]  # fmt: skip
    rows, shown = rows_of(content), [(2, 1), (1, 1), (1, 2), (2, 3), (0, 1)]  # pictures, turn
    assert len(rows) == 2 * len(shown)
    for k, (_, turn, r, row) in enumerate(rows):
        said = (turn["text"], turn["answer"], row["given"])
        assert said == tuple(results[r][k // 2][name] for name in ("question", "answer", "given"))
        role, turns = (torch.tensor([row[name]]) for name in ("role", "turn"))
        assert ((role == Role.IMAGE).sum(), turns.max()) == (
            16 * shown[k // 2][0],
            shown[k // 2][1],
        )
        assert turns[0, -1] == turns.max()
        mask, weights = unpack(row, *((L, H), (2, 2))[r])
        order = None if r else ring_positions(role, None, 4)
        assert torch.equal(mask, attention_mask("mma", role, turns, order=order)[0, 0])
        assert (weights.sum(-1) - 1).abs().max() < 0.51 / 255 * len(mask)
    both, first, second, third, none = (row["change"] for *_, r, row in rows if r == 0)
    assert both == [[0.0] * 32] * L and first is second is none is None
    assert [len(layer) for layer in third] == [32] * L


def test_pairs_by_hand():
    a, b = [torch.zeros(3, 4, 4)], [torch.zeros(3, 4, 4)]
    shown = zip((a, b, b, [], b, [], b), "1223456")
    examples = [data.Example(images, [(words, "")]) for images, words in shown]
    asked = [[e.turns[0][0] for e in some] for some in explore.pairs(examples)]
    assert asked == [["4", "6"], ["1"], ["3"], ["5"]]
    assert explore.pairs(examples, 2) == explore.pairs(examples)[:2]


def test_pictures_that_would_make_it_too_large_are_left_out(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(explore, "LIMIT", 200_000)
    page = write(tmp_path / "page.html", *runs)
    n = len(contents(page)["examples"])
    assert 1 <= n < 10 and f"{10 - n} of 10 examples left out" in capsys.readouterr().out
    assert page.stat().st_size < 200_000


@pytest.mark.parametrize("args, message", [
    (["--image", "missing.png"], "belong together"),
    (["--image", "missing.png", "--question", "why?"], "missing.png: no such picture"),
    (["--split", "dev"], "no split 'dev'"),
    (["--out", "."], "cannot be written"),
])  # fmt: skip
def test_bad_input_is_one_clear_error(runs, tmp_path, monkeypatch, args, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=f"^error: .*{re.escape(message)}"):
        write("page.html", runs[0], "--limit", "1", *args)
    assert not (tmp_path / "page.html").exists()


# --- What it shows in a browser

LOOK = """
const $ = (selector, from = document) => [...from.querySelectorAll(selector)];
const alpha = button => {  // of a patch's veil, or of a word's colour
  const style = getComputedStyle(button);
  const from = button.closest(".cells") ? style.backgroundColor : style.backgroundImage;
  const colour = from.match(/rgba?\\(([^)]*)\\)/);
  return colour && +(colour[1].split(/[ ,/]+/)[3] ?? 1);
};
const look = b => [+b.dataset.weight, b.dataset.kind, alpha(b), b.matches(".here")];
const pixels = canvas =>
  [...canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data];
const out = [];
for (const [example, question, layer, head, direction] of [
    [0, 0, "mean", "mean", "reads"], [0, 1, 0, 3, "reads"],
    [9, 1, 2, "mean", "read"], [4, 0, "mean", 1, "read"]]) {
  const choice = {example, question, layer, head, direction}, looks = [];
  for (const [name, value] of Object.entries(choice))
    $(`#controls input[name=${name}]`).find(input => input.value === String(value)).click();
  for (const r of [0, 1]) for (const i of [1, 8, 17, 20]) {
    const token = $(`.run[data-run="${r}"] .token`)[i];
    i % 2 ? token.focus() : token.dispatchEvent(new MouseEvent("mouseenter"));
    looks.push({i, panels: $(".run").map(run => $(".token", run).map(look))});
  }
  out.push({...choice, looks, masks: $(".run canvas").map(pixels),
    stops: $(".run").map(run => $(".token", run).filter(b => b.tabIndex === 0).length),
    changes: $(".run").map(run => $(".map i", run).map(i => +i.dataset.change)),
    unnamed: $(".token").filter(b => !b.getAttribute("aria-label")).length});
}
return out;
"""


def check_panel(choice, i, row, panel) -> None:
    """One run's tokens, as the page shows them, against its data: what token i reads of each, or
    each of it, mean over the layers and heads that were picked."""
    mask, w = unpack(row)
    w = w if choice["layer"] == "mean" else w[[choice["layer"]]]
    w = (w if choice["head"] == "mean" else w[:, [choice["head"]]]).mean((0, 1))
    values = (w[i] if choice["direction"] == "reads" else w[:, i]).tolist()
    is_patch = [role == Role.IMAGE for role in row["role"]]
    strongest = {
        patch: max(1 / len(values), *(x for x, p in zip(values, is_patch) if p == patch))
        for patch in (True, False)
    }
    for j, (value, kind, alpha, here) in enumerate(panel):
        a, b = (i, j) if choice["direction"] == "reads" else (j, i)
        assert kind == ("shut" if not mask[a, b] else "opened" if b > a else "past")
        assert here == (i == j) and abs(value - values[j]) < 1e-4
        shade = value / strongest[is_patch[j]]
        if is_patch[j] or kind != "shut":
            expected = 0.7 - 0.7 * shade if is_patch[j] else 0.55 * shade
            assert abs(alpha - expected) < 0.01


def test_what_is_picked_and_pointed_at_is_shown(page):
    examples = contents(page)["examples"]
    for choice in browse(page, LOOK):
        question = examples[choice["example"]]["questions"][choice["question"]]
        rows = question["turns"][0]["rows"]
        for look in choice["looks"]:  # prompts are alike, so both runs show the same token
            for row, panel in zip(rows, look["panels"], strict=True):
                check_panel(choice, look["i"], row, panel)
        for row, pixels in zip(rows, choice["masks"]):
            mask, _ = unpack(row)
            red, _, blue, _ = torch.tensor(pixels).view(*mask.shape, 4).unbind(-1)
            assert torch.equal(red > blue + 20, mask.triu(1))
            assert torch.equal(blue > red + 20, mask.tril())
        causal, mma = choice["changes"]
        assert set(causal) == {0} and min(mma) > 0
        assert len(mma) == len(causal) == 16 * L
        assert choice["stops"] == [1, 1] and choice["unnamed"] == 0


TURNS = """
const inputs = name => [...document.querySelectorAll(`#controls input[name=${name}]`)];
const shown = () => [inputs("turn").findIndex(input => input.checked),
  ...[".token", ".picture"].map(x => document.querySelector(".run").querySelectorAll(x).length),
  document.querySelector(".said").textContent];
const seen = [inputs("turn").length];
inputs("question")[1].focus();
inputs("question")[1].click();
seen.push(document.activeElement === inputs("question")[1], shown());
for (const k of [0, 1, 2]) {
  inputs("turn")[k].click();
  seen.push(shown());
}
return [document.documentElement.scrollWidth, ...seen];
"""


def test_turns_are_picked(other_page):
    """The last one is shown first; each has its own tokens, pictures and answer; the keyboard's
    place is kept; a long question fits a phone."""
    width, none, held, *seen = browse(other_page, TURNS, width=390)
    expected, question = [], contents(other_page)["examples"][0]["questions"][1]
    for t, turn in enumerate(question["turns"]):
        row = turn["rows"][0]
        said = f"answers “{row['given']}” ✗ ({turn['answer']})"
        expected.append([t, len(row["tokens"]), 1 + (t == 2), said])
    assert seen == [expected[2], *expected]
    assert width <= 390 and held and none == 0  # of one turn, nothing to choose
