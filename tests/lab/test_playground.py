"""The playground: what its page holds, and that what it computes is what PyTorch computes."""

import base64
import json
import re

import pytest
import torch
from pages import make_run, opened, stands_alone, write_playground

import data
from data import shapes
from data.shapes import Shapes
from data.shapes import scenes as shapes_scenes
from lab import playground, weights
from lab.recording import recorded
from mma import EXTRA_PAIRS, attention_mask

ODD = (
    "a\0b", "\0", "  a  ", "a\u2028b", "<0x41>", "<image>", "</s>x", "<unk>", "🙂 x", "é ok", "▁a",
    "how many\nred", " ", "", "RED circle", "circlecirclecircle", "\ufeffred", "zzzz", "a▁▁b",
    "is there a red circle ?", "\u0301", "eee lll", "日本", "the the  the", "ircle", "?,?,",
)  # fmt: skip
ANSWER_TOKENS = 6  # what random weights say seldom ends


def test_the_page_needs_nothing_else_and_two_runs_fit(playground_page):
    stands_alone(playground_page, playground.TEMPLATE, 6_000_000)


@pytest.mark.parametrize("options, why", [
    (dict(name="llava"), "not llava"),
    (dict(variant="text-first"), "mirrors model.py alone, not text-first"),
    (dict(image_size=128), "64 pixels, not 128"),
])  # fmt: skip
def test_runs_that_the_page_cannot_hold(tokenizer, tmp_path, options, why):
    run = make_run(tmp_path / "run", tokenizer, **options)
    with pytest.raises(SystemExit, match=why):
        write_playground(tmp_path / "no.html", run)
    with pytest.raises(SystemExit):
        write_playground(tmp_path / "no.html", run, run, run)
    assert not (tmp_path / "no.html").exists()


def question_of(example) -> str:
    return example.turns[0][0].replace(data.IMAGE_TOKEN, "")


def assert_alike(browser, run, n, which, kind):
    """The rows, answers and logits of the page's run number `which` are PyTorch's, for one question
    about each of n pictures, all families in turn. Returns the logits, [n, vocabulary]."""
    every, (model, tokenizer) = Shapes().heldout("val"), opened(run)
    examples = [every[i * shapes.QUESTIONS + i % shapes.QUESTIONS] for i in range(n)]
    pixels = [base64.b64encode(e.images[0].numpy().tobytes()).decode() for e in examples]
    found = browser.js(
        f"""{json.dumps([*zip(pixels, map(question_of, examples))])}.map(([pixels, question]) => {{
          const {{model, tokenizer, grid}} = data.runs[{which}];
          const image = Uint8Array.from(atob(pixels), c => c.charCodeAt(0));
          const {{ids, role, turn}} = encode(question, tokenizer, grid ** 2);
          const out = model.generate(ids, role, image, turn, {json.dumps(kind)}, tokenizer.eos,
                                     {ANSWER_TOKENS});
          return [[ids, role, turn], [...out.logits], out.answer];
        }})"""
    )
    model.config.mask = kind
    for e, (page_row, page_logits, page_answer) in zip(examples, found, strict=True):
        row = data.encode(e, tokenizer, model.config.n_image_tokens, upto=0)
        batch = data.collate([row], tokenizer.pad, model.config.image_size)
        options = dict(eos=tokenizer.eos, max_new_tokens=ANSWER_TOKENS)
        assert page_row == [row.ids, row.role, row.turn]
        assert page_answer == model.generate(**batch, **options)[0]
        with torch.inference_mode():
            logits = model.head(model(**batch)[0, -1])
        assert (torch.tensor(page_logits) - logits).abs().max() < 1e-3
        assert logits.std() > 0.1
    return torch.tensor([logits for _, logits, _ in found])


def test_the_forward_pass_is_pytorchs(shown, half_runs):
    """Of the causal run, of the mma run, and of that one with its rectangle shut, which matters."""
    causal, mma = half_runs
    assert_alike(shown, causal, 24, 0, "causal")
    opened_, shut = (assert_alike(shown, mma, 24, 1, kind) for kind in ("mma", "causal"))
    assert ((opened_ - shut).abs().amax(1) > 0.01).all()


def test_a_model_of_other_sizes(browser, tokenizer, tmp_path):
    """Widths that no four divides, more patches, a head of its own for the vocabulary, every query
    head with its own keys, another mask."""
    sizes = dict(d_model=36, n_head=6, n_kv_head=6, d_ff=50, encoder_width=18, encoder_heads=3)
    full, run = tmp_path / "full", str(tmp_path / "half")  # rounded as the page rounds
    weights.main([make_run(full, tokenizer, mask="prefix", patch_size=8, tied=False, **sizes), run])
    browser.open(write_playground(tmp_path / "page.html", run))
    for kind in ("prefix", "mma", "causal"):
        assert_alike(browser, run, 4, 0, kind)
    titles = browser.js("[...document.querySelectorAll('#runs h2')].map(x => x.textContent)")
    assert titles == ["trained with prefix, under causal", "trained with prefix, under prefix"]


def test_attention_and_masks_are_the_models(shown, half_runs):
    """Of the second side, from the first to the last token but one of its answer; and every kind of
    mask over two turns."""
    row = shown.js(
        "(({row}) => ({...row, w: row.w.map(heads => heads.map(w => [...w]))}))(panels[1])"
    )
    T, (model, _) = row["T"], opened(half_runs[1])
    ids, role, turn = (torch.tensor([row[name]]) for name in ("ids", "role", "turn"))
    image = torch.tensor(shown.js("[...picture]"), dtype=torch.uint8).view(1, 3, 64, 64)
    with torch.inference_mode(), recorded(model) as weights:
        model(ids, role, image, torch.tensor([0]), turn)
    mask = attention_mask("mma", role, turn)[0, 0]
    assert mask.flatten().tolist() == [bool(x) for x in row["readable"]] and mask.triu(1).any()
    found = torch.tensor(row["w"]).view(model.config.n_layer, model.config.n_head, T, T)
    assert (found - torch.cat(weights)).abs().max() < 1e-3

    shown.js(f"EXTRA_PAIRS = {json.dumps({kind: playground.opens(kind) for kind in EXTRA_PAIRS})}")
    role, turn = [1, 2, 2, 3, 3, 4, 4, 1, 2, 3, 4], [0, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2]
    for kind in EXTRA_PAIRS:
        expected = attention_mask(kind, torch.tensor([role]), torch.tensor([turn]))[0, 0].tolist()
        assert shown.js(f"attention_mask({json.dumps(kind)}, {role}, {turn})") == expected


def test_the_tokenizer_is_sentencepieces_and_an_empty_question_a_picture_alone(shown, half_runs):
    _, tokenizer = opened(half_runs[0])
    texts = [question_of(e) for e in Shapes().heldout("test")[:300]]
    texts += [text.strip() for text in ODD] + list(ODD)
    found = shown.js(f"{json.dumps(texts)}.map(text => data.runs[0].tokenizer.encode(text))")
    ids = [list(tokenizer.encode(text)) for text in texts]
    assert found == ids
    ids += [[tokenizer.bos, *some, tokenizer.eos] for some in ids] + [[1, *ids[0]]]
    g = torch.Generator().manual_seed(0)  # half of the pieces are bytes, and what is no character
    ids += [torch.randint(len(tokenizer), (8,), generator=g).tolist() for _ in range(300)]
    controls = "ids.filter(id => tokenizer.types[id] !== 'c')"
    decode = f"({{tokenizer}}) => {json.dumps(ids)}.map(ids => tokenizer.decode({controls}))"
    found = shown.js(f"({decode})(data.runs[0])")
    assert found == [tokenizer.decode(some) for some in ids]
    assert shown.js(f"{json.dumps(ODD)}.map(strip)") == [text.strip() for text in ODD]
    for question in ("", " \n", "is there <image> a red circle? "):
        found = shown.js(f"encode({json.dumps(question)}, data.runs[0].tokenizer, 16)")
        message = data.IMAGE_TOKEN + question.replace(data.IMAGE_TOKEN, " ")
        row = data.encode(data.Example([0], [(message, "")]), tokenizer, 16, upto=0)
        assert [found[name] for name in ("ids", "role", "turn")] == [row.ids, row.role, row.turn]


def test_pictures_are_what_training_draws(shown):
    """Each pixel of the page's picture lies within what render draws at that place for some draw;
    and where nothing varies but noise, it is the shape that render draws."""
    layout = torch.tensor(Shapes().layouts("test")[:6])
    found = shown.js(f"{layout.tolist()}.map(cells => [...render(cells, world)])")
    found = torch.tensor(found).view(6, 3, 64, 64)
    for cells, picture in zip(layout.tolist(), found):
        assert torch.equal(playground.picture_of(cells).long(), picture)
    g = torch.Generator().manual_seed(0)
    drawn = torch.stack([shapes_scenes.render(layout, g).long() for _ in range(400)])
    assert (found >= drawn.amin(0) - 2).all() and (found <= drawn.amax(0) + 2).all()
    ink = (found != playground.BACKGROUND).any(1)  # [6, 64, 64]
    cells = ink.view(6, 4, 16, 4, 16).transpose(2, 3).reshape(6, 16, 16, 16)
    kinds, there = layout.clamp(min=0) % len(shapes_scenes.SHAPE), layout >= 0
    expected = shapes_scenes.SPRITES[kinds, playground.SIZE] & there[..., None, None]
    assert torch.equal(cells, expected)


def test_right_answers_are_the_worlds(shown):
    """Of 600 questions; none where a question is about what is not there, or is no question of
    training."""
    layouts, n = Shapes().layouts("val"), shapes.QUESTIONS
    asked = [
        [question_of(e), layouts[k // n], e.turns[0][1]]
        for k, e in enumerate(Shapes().heldout("val")[:600])
    ]
    found = shown.js(f"{json.dumps(asked)}.map(([q, cells]) => right_answer(q, cells, world))")
    assert found == [answer for *_, answer in asked]
    none = [q for q, *_ in asked if not re.match("is there|how many|are there", q)]
    none += ["how many circles are there?", "is there a red circle", "constructor?"]
    nothing = [-1] * shapes.CELLS
    found = shown.js(f"{json.dumps(none)}.map(q => right_answer(q, {nothing}, world))")
    assert set(found) == {None}
