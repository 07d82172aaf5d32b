"""The playground: what its page computes is what PyTorch computes, and what a person sees and does
there. In a browser, where a Chromium is installed."""

import base64
import json
import re

import pytest
import torch
from helpers import ROOT
from pages import browse, make_run, opened, stands_alone

import data
from data import shapes
from data.shapes import Shapes
from data.shapes import scenes as shapes_scenes
from lab import playground, weights
from lab.recording import recorded
from mma import EXTRA_PAIRS, attention_mask

RUNS = [ROOT / "weights" / name for name in ("shapes-causal", "shapes-mma")]  # in half precision
ODD = (
    "a\0b", "\0", "  a  ", "a\u2028b", "<0x41>", "<image>", "</s>x", "<unk>", "🙂 x", "é ok", "▁a",
    "how many\nred", " ", "", "RED circle", "circlecirclecircle", "\ufeffred", "zzzz", "a▁▁b",
    "is there a red circle ?", "\u0301", "eee lll", "日本", "the the  the", "ircle", "?,?,",
)  # fmt: skip
ANSWER_TOKENS = 6  # what random weights say seldom ends


def write(out, *runs):
    playground.main([*map(str, runs), "--out", str(out)])
    return out


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return write(tmp_path_factory.mktemp("page") / "new" / "page.html", *RUNS)


@pytest.fixture(scope="module")
def odd_run(tokenizer, tmp_path_factory):
    """Widths that no four divides, more patches, a head of its own for the vocabulary, every query
    head with its own keys, another mask."""
    sizes = dict(d_model=36, n_head=6, n_kv_head=6, d_ff=50, encoder_width=18, encoder_heads=3)
    folder = tmp_path_factory.mktemp("odd")
    run = make_run(folder / "a", tokenizer, mask="prefix", patch_size=8, tied=False, **sizes)
    weights.main([str(run), str(folder / "half")])  # rounded as the page rounds
    return folder / "half"


@pytest.fixture(scope="module")
def odd_page(odd_run):
    return write(odd_run.parent / "page.html", odd_run)


def question_of(example) -> str:
    return example.turns[0][0].replace(data.IMAGE_TOKEN, "")


def test_the_page_needs_nothing_else_and_two_runs_fit(page):
    stands_alone(page, playground.TEMPLATE, 6_000_000)


@pytest.mark.parametrize("options, why", [
    (dict(name="llava"), "not llava"),
    (dict(variant="text-first"), "mirrors model.py alone, not text-first"),
    (dict(image_size=128), "64 pixels, not 128"),
])  # fmt: skip
def test_runs_that_the_page_cannot_hold(tokenizer, tmp_path, options, why):
    run = make_run(tmp_path / "run", tokenizer, **options)
    with pytest.raises(SystemExit, match=why):
        write(tmp_path / "no.html", run)
    with pytest.raises(SystemExit):
        write(tmp_path / "no.html", run, run, run)
    assert not (tmp_path / "no.html").exists()


# --- The model, the prompt and the world in JavaScript

FORWARD = """
return %s.map(kind => %s.map(([pixels, question]) => {
  const {model, tokenizer, grid} = data.runs[%d], image = Uint8Array.from(atob(pixels),
    c => c.charCodeAt(0)), {ids, role, turn} = encode(question, tokenizer, grid ** 2);
  const out = model.generate(ids, role, image, turn, kind, tokenizer.eos, %d);
  return [[ids, role, turn], [...out.logits], out.answer];
}));
"""


def assert_alike(page, run, n, which, kinds):
    """The rows, answers and logits of the page's run number `which` are PyTorch's, for one question
    about each of n pictures, all families in turn. Returns the logits, [kind, n, vocabulary]."""
    every, (model, tokenizer) = Shapes().heldout("val"), opened(run)
    examples = [every[i * shapes.QUESTIONS + i % shapes.QUESTIONS] for i in range(n)]
    pixels = [base64.b64encode(e.images[0].numpy().tobytes()).decode() for e in examples]
    asked = json.dumps([*zip(pixels, map(question_of, examples))])
    found = browse(page, FORWARD % (json.dumps(kinds), asked, which, ANSWER_TOKENS))
    for model.config.mask, of_kind in zip(kinds, found, strict=True):
        for e, (page_row, page_logits, page_answer) in zip(examples, of_kind, strict=True):
            row = data.encode(e, tokenizer, model.config.n_image_tokens, upto=0)
            batch = data.collate([row], tokenizer.pad, model.config.image_size)
            options = dict(eos=tokenizer.eos, max_new_tokens=ANSWER_TOKENS)
            assert page_row == [row.ids, row.role, row.turn]
            assert page_answer == model.generate(**batch, **options)[0]
            with torch.inference_mode():
                logits = model.head(model(**batch)[0, -1])
            assert (torch.tensor(page_logits) - logits).abs().max() < 1e-3
            assert logits.std() > 0.1
    return torch.tensor([[logits for _, logits, _ in of_kind] for of_kind in found])


def test_the_forward_pass_is_pytorchs(page):
    """Of the causal run, of the mma run, and of that one with its rectangle shut, which matters."""
    assert_alike(page, RUNS[0], 9, 0, ["causal"])
    open_, shut = assert_alike(page, RUNS[1], 9, 1, ["mma", "causal"])
    assert ((open_ - shut).abs().amax(1) > 0.01).all()


def test_a_model_of_other_sizes_stands_on_both_sides(odd_page, odd_run):
    assert_alike(odd_page, odd_run, 4, 0, ["prefix", "mma", "causal"])
    script = (
        "return [text('#runs h2'), $('opening').hidden, number, $('text').value === questions[0]]"
    )
    said = browse(odd_page, TEXT + script)
    titles = ["trained with prefix, under causal", "trained with prefix, under prefix"]
    assert said == [titles, True, 0, True]


def test_attention_and_masks_are_the_models(page):
    """Of the second side, from the first to the last token but one of its answer; and every kind of
    mask over two turns."""
    pairs = json.dumps({kind: playground.opens(kind) for kind in EXTRA_PAIRS})
    two = [1, 2, 2, 3, 3, 4, 4, 1, 2, 3, 4], [0, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2]
    row, picture, masks = browse(
        page,
        f"""const {{row}} = panels[1], pairs = EXTRA_PAIRS = {pairs}, two = {json.dumps(two)};
        return [{{...row, w: row.w.map(heads => heads.map(w => [...w]))}}, [...picture],
                Object.keys(pairs).map(kind => attention_mask(kind, ...two))]""",
    )
    T, (model, _) = row["T"], opened(RUNS[1])
    ids, role, turn = (torch.tensor([row[name]]) for name in ("ids", "role", "turn"))
    image = torch.tensor(picture, dtype=torch.uint8).view(1, 3, 64, 64)
    with torch.inference_mode(), recorded(model) as seen:
        model(ids, role, image, torch.tensor([0]), turn)
    mask = attention_mask("mma", role, turn)[0, 0]
    assert mask.flatten().tolist() == [bool(x) for x in row["readable"]] and mask.triu(1).any()
    found = torch.tensor(row["w"]).view(model.config.n_layer, model.config.n_head, T, T)
    assert (found - torch.cat(seen)).abs().max() < 1e-3
    role, turn = torch.tensor(two)[:, None]
    assert masks == [attention_mask(kind, role, turn)[0, 0].tolist() for kind in EXTRA_PAIRS]


def test_the_tokenizer_is_sentencepieces_and_an_empty_question_a_picture_alone(odd_page, tokenizer):
    texts = [question_of(e) for e in Shapes().heldout("test")[:300]]
    texts += [text.strip() for text in ODD] + list(ODD)
    encoded = [list(tokenizer.encode(text)) for text in texts]
    ids = encoded + [[tokenizer.bos, *some, tokenizer.eos] for some in encoded]
    g = torch.Generator().manual_seed(0)  # half of the pieces are bytes, and what is no character
    ids += [torch.randint(len(tokenizer), (8,), generator=g).tolist() for _ in range(300)]
    asked = ["", " \n", "is there <image> a red circle? "]
    found, decoded, stripped, rows = browse(
        odd_page,
        f"""const {{tokenizer}} = data.runs[0], plain = id => tokenizer.types[id] !== "c";
        return [{json.dumps(texts)}.map(text => tokenizer.encode(text)),
          {json.dumps(ids)}.map(ids => tokenizer.decode(ids.filter(plain))),
          {json.dumps(ODD)}.map(strip),
          {json.dumps(asked)}.map(question => encode(question, tokenizer, 16))]""",
    )
    assert found == encoded and decoded == [tokenizer.decode(some) for some in ids]
    assert stripped == [text.strip() for text in ODD]
    for question, found in zip(asked, rows):
        message = data.IMAGE_TOKEN + question.replace(data.IMAGE_TOKEN, " ")
        row = data.encode(data.Example([0], [(message, "")]), tokenizer, 16, upto=0)
        assert [found[name] for name in ("ids", "role", "turn")] == [row.ids, row.role, row.turn]


def test_pictures_are_what_training_draws(odd_page):
    """Each pixel of the page's picture lies within what render draws at that place for some draw;
    and where nothing varies but noise, it is the shape that render draws."""
    layout = torch.tensor(Shapes().layouts("test")[:6])
    found = browse(odd_page, f"return {layout.tolist()}.map(cells => [...render(cells, world)])")
    found = torch.tensor(found).view(6, 3, 64, 64)
    for cells, picture in zip(layout.tolist(), found):
        assert torch.equal(playground.picture_of(cells).long(), picture)
    g = torch.Generator().manual_seed(0)
    drawn = torch.stack([shapes_scenes.render(layout, g).long() for _ in range(100)])
    assert (found >= drawn.amin(0) - 2).all() and (found <= drawn.amax(0) + 2).all()
    ink = (found != playground.BACKGROUND).any(1)  # [6, 64, 64]
    cells = ink.view(6, 4, 16, 4, 16).transpose(2, 3).reshape(6, 16, 16, 16)
    kinds, there = layout.clamp(min=0) % len(shapes_scenes.SHAPE), layout >= 0
    expected = shapes_scenes.SPRITES[kinds, playground.SIZE] & there[..., None, None]
    assert torch.equal(cells, expected)


def test_right_answers_are_the_worlds(odd_page):
    """Of 600 questions; none where a question is about what is not there, or is no question of
    training."""
    layouts, examples = Shapes().layouts("val"), Shapes().heldout("val")[:600]
    asked = [(question_of(e), layouts[k // shapes.QUESTIONS]) for k, e in enumerate(examples)]
    none = [q for q, _ in asked if not re.match("is there|how many|are there", q)]
    none += ["how many circles are there?", "is there a red circle", "constructor?"]
    asked += [(question, [-1] * shapes.CELLS) for question in none]
    script = f"return {json.dumps(asked)}.map(([q, cells]) => right_answer(q, cells, world))"
    assert browse(odd_page, script) == [e.turns[0][1] for e in examples] + [None] * len(none)


# --- What a person sees and does

TEXT = "const text = selector => [...document.querySelectorAll(selector)].map(x => x.textContent);"
VISIT = (
    TEXT
    + """
const click = (selector, nth = 0) => document.querySelectorAll(selector)[nth].click();
const press = key => document.activeElement.dispatchEvent(
  new KeyboardEvent("keydown", {key, bubbles: true, cancelable: true}));
const ask = question => {
  $("text").value = question;
  $("text").dispatchEvent(new Event("input"));
};
const seen = [];
const look = () => seen.push({cells, picture: [...picture], asked: $("text").value,
  said: $("said").textContent, under: text(".answer small"), answers: text(".answer b"),
  marks: text("mark"), unsure: text(".answer.unsure").length,
  verdicts: $("answers").textContent.match(/[✓✗]/g)?.length ?? 0,
  likely: text(".bars small").map(parseFloat), objects: $("objects").textContent,
  images: [...document.querySelectorAll(".picture img")].map(x => x.src === address),
  rims: [...document.querySelectorAll(".rim")].map(x => x.getAttribute("d") !== "")});
look();
const opening = [number, $("opening").offsetHeight > 0];
click("#clear");
click("#brush input[value=blue]");
click("#brush input[value=triangle]");
click("#board button", 5);
click("#board button", 6);
click("#brush input[value=nothing]");
click("#board button", 6);
for (const question of ["how many Red zebras are there!", "<b>&", "there red many?",
    "how many blue triangles are there?"]) {
  ask(question);
  look();
}
click(".switch", 1);
look();
click(".switch", 0);
document.querySelector("#board button").focus();
for (const key of ["ArrowUp", "ArrowRight", "ArrowDown"]) press(key);
const label = document.activeElement.getAttribute("aria-label");
press("Delete");
look();
click("#another");
click("#suggestions button", 3);
look();
const weights = () => [...document.querySelectorAll("#runs .token")].map(x => x.dataset.weight);
const before = weights().join();
click("#controls input[name=layer]", 2);
click("#controls input[name=head]", 1);
document.querySelectorAll("#runs .token")[5].focus();
press("ArrowLeft");
const here = document.activeElement.matches(".here") && document.activeElement.dataset.i;
return {opening, label, seen, scenes: world.scenes, fourth: questions[3], here,
  picked: [state.layer, state.head, before !== weights().join()]};
"""
)


def check(look, models, kinds) -> None:
    """The page says what PyTorch says to the scene and the question that it shows: the answers,
    and how likely the first token's five likeliest are, in %."""
    image = torch.tensor(look["picture"], dtype=torch.uint8).view(3, 64, 64)
    example, likely = data.Example([image], [(data.IMAGE_TOKEN + look["asked"], "")]), []
    for k, (model, tokenizer) in enumerate(models):
        model.config.mask = kinds[k]
        batch = data.collate([data.encode(example, tokenizer, 16, upto=0)], tokenizer.pad, 64)
        ids = model.generate(**batch, eos=tokenizer.eos, max_new_tokens=32)[0]
        assert look["answers"][k] == (tokenizer.decode(ids).strip() or "(nothing)")
        with torch.inference_mode():
            logits = model.head(model(**batch)[0, -1])
        likely += (100 * logits.softmax(0).topk(5).values).tolist()
    assert look["likely"] == pytest.approx(likely, abs=0.1)
    assert look["under"] == [f"under {kind}: " for kind in kinds]
    assert look["rims"] == [kind == "mma" for kind in kinds] and look["images"] == [True, True]
    assert look["objects"].startswith(f"{sum(kind >= 0 for kind in look['cells'])} objects")


def test_a_scene_is_built_a_question_asked_and_the_rectangle_switched(page):
    """By clicks and by keys. The page opens with the first question that the two answer
    differently; words that training never had are marked; a switch changes its side alone."""
    said, models = browse(page, VISIT), [opened(run) for run in RUNS]
    first, unknown, tag, odd, built, shut, emptied, other = said["seen"]
    for look, kinds in zip(
        said["seen"], [("causal", "mma")] * 5 + [("causal", "causal")] + [("mma", "causal")] * 2
    ):
        check(look, models, kinds)
    marked = [["Red", "zebras", "!"], ["<", "b", ">", "&"], [], []]
    for look, words in zip((unknown, tag, odd, built), marked):
        assert (look["marks"], look["unsure"]) == (words, 2 * bool(words))
        assert look["verdicts"] == 2 * (look is built)
    assert tag["said"].startswith("<b>&") and "no answer is right" in odd["said"]
    models[0][0].config.mask, models[1][0].config.mask = "causal", "mma"
    number, is_said = said["opening"]
    earlier = said["scenes"][:number]
    runs = [("", *model) for model in models]
    assert is_said and first["answers"][0] != first["answers"][1]
    assert not (earlier and playground.opening(earlier, runs)["differ"])
    assert built["cells"] == [2 * 4 + 2 if i == 5 else -1 for i in range(16)]
    assert said["label"] == "row 2, column 2: blue triangle" and {*emptied["cells"]} == {-1}
    asked = built["asked"], emptied["asked"], other["asked"]
    assert asked == ("how many blue triangles are there?", asked[0], said["fourth"])
    assert (built["said"], emptied["said"]) == ("Right: 1.", "Right: 0.")
    assert "Right: " in other["said"]
    assert other["cells"] in [scene["cells"] for scene in said["scenes"]]
    assert said["picked"] == [1, 0, True] and said["here"] == "4"


STYLE = """
const beyond = [...document.querySelectorAll("main *")].filter(x => {
  const box = x.getBoundingClientRect();
  return box.width && (box.right > innerWidth || box.left < 0);
}).map(x => x.outerHTML.slice(0, 80));
const {backgroundColor, color} = getComputedStyle(document.body), {canvas, row} = panels[1];
const shut = [...canvas.getContext("2d").getImageData(row.T - 1, 0, 1, 1).data].slice(0, 3);
return [document.documentElement.scrollWidth, beyond, backgroundColor, color, shut];
"""


@pytest.mark.parametrize("dark, back, ink", [
    (False, "rgb(246, 246, 243)", "rgb(29, 31, 35)"),
    (True, "rgb(19, 21, 24)", "rgb(233, 234, 236)"),
])  # fmt: skip
def test_a_narrow_window_in_the_light_and_in_the_dark(page, dark, back, ink):
    """Nothing is cut off; what the mask shuts has the page's colour."""
    width, *style, shut = browse(page, STYLE, width=390, dark=dark)
    assert width <= 390 and style == [[], back, ink] and (sum(shut) < 3 * 128) == dark
