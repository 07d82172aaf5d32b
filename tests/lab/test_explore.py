"""The attention explorer: what is in its page."""

import base64
import io
import json
import re

import pytest
import torch
from pages import H, L, contents, make_run, opened, rows_of, stands_alone, unpack, write
from PIL import Image

import data
import eval as evaluation
from data.shapes import QUESTIONS, Shapes
from lab import explore
from lab.recording import recorded
from lab.variants import ring_positions
from mma import Role, attention_mask

pytestmark = pytest.mark.usefixtures("short_answers")


def test_the_page_needs_nothing_else(page):
    stands_alone(page, explore.TEMPLATE, 2_000_000)
    content = contents(page)
    assert [run["mask"] for run in content["runs"]] == ["causal", "mma"]
    shown = [(len(e["pictures"]), len(e["questions"])) for e in content["examples"]]
    assert shown == [(1, 2)] * 10


def test_its_attention_masks_and_answers_are_the_models(runs, page):
    heldout = {(e.turns[0], k // QUESTIONS): e for k, e in enumerate(Shapes().heldout("test"))}
    models = [opened(run) for run in runs]
    for k, (example, question, r, row) in enumerate(rows_of(contents(page))):
        e = heldout[(data.IMAGE_TOKEN + question["text"], question["answer"]), k // 4]
        model, tokenizer = models[r]
        picture = Image.open(io.BytesIO(base64.b64decode(example["pictures"][0].split(",")[1])))
        pixels = torch.tensor(list(picture.tobytes())).view(64, 64, 3).permute(2, 0, 1)
        assert torch.equal(pixels, e.images[0])
        prompt = data.encode(e, tokenizer, model.config.n_image_tokens, upto=0)
        options = dict(eos=tokenizer.eos, max_new_tokens=explore.LONGEST)
        answer = model.generate(**data.collate([prompt], tokenizer.pad, 64), **options)[0]
        prompt.add(answer, Role.ANSWER, 1)
        assert (row["role"], row["turn"]) == (prompt.role, prompt.turn)
        assert row["given"] == tokenizer.decode(answer)
        assert row["correct"] == (row["given"] == question["answer"])
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
    assert not model.blocks[0]._forward_hooks
    # A layer's state is what is returned where no layer follows
    model.blocks, model.norm = model.blocks[:1], torch.nn.Identity()
    picture = dict(images=asked[0].images[0][None], image_index=torch.tensor([0]))
    rows = [{name: seen[name][q][None] for name in ("ids", "role", "turn")} for q in range(2)]
    with torch.no_grad():
        a, b = (model(**row, **picture)[0, 1:17] for row in rows)
    expected = (a - b).norm(dim=1) / ((a.norm(dim=1) + b.norm(dim=1)) / 2)
    assert torch.allclose(seen["change"][1][0], expected, atol=1e-5)


def test_pictures_of_ones_own_and_text_that_looks_like_a_tag(runs, tmp_path, capsys):
    Image.new("RGB", (100, 50), "red").save(tmp_path / "x.png")
    page, own = tmp_path / "page.html", ("--image", tmp_path / "x.png")
    ask = "--question", "</script><!--<script>?", "--question", "is there a red circle?"
    write(*runs, "--out", page, *own, *ask)
    rows, text = rows_of(contents(page)), page.read_text(encoding="utf-8")
    assert [turn["text"] for _, turn, r, _ in rows if r == 0] == list(ask[1::2])
    assert {row["correct"] for *_, row in rows} == {None}
    template = explore.TEMPLATE.read_text(encoding="utf-8")
    assert all(text.count(tag) == template.count(tag) for tag in ("<script", "</script", "<!--"))
    capsys.readouterr()
    evaluation.main([*map(str, (runs[0], *own, *ask)), "--device", "cpu"])  # the same answers
    given = [row["given"] for *_, r, row in rows if r == 0]
    lines = capsys.readouterr().out.split("\n")[-1 - len(given) :]
    assert all(line.startswith(said) for line, said in zip(lines, given))


def test_any_data_set_any_prompt(llava, tokenizer, tmp_path):
    """Rows of several turns, two pictures and none; rings; text first; another mask for the
    test."""
    entries = [e for e in json.loads(llava.read_text()) if e["id"] in ("0", "two", "none")]
    llava.write_text(json.dumps(entries))
    rings = make_run(tmp_path / "a", tokenizer, "llava", llava, variant="cca", mask="causal")
    sizes = dict(image_size=32, patch_size=8, n_layer=2, n_head=2)
    other = make_run(tmp_path / "b", tokenizer, "llava", llava, variant="text-first", **sizes)
    write(rings, other, "--out", tmp_path / "page.html", "--split", "all", "--mask", "mma")
    content, pictures = contents(tmp_path / "page.html"), set()
    about = [(run["mask"], run["layers"], run["grid"]) for run in content["runs"]]
    assert about == [("mma", 3, 4), ("mma", 2, 4)]
    assert [run["text_first"] for run in content["runs"]] == [False, True]
    for example, question, r, row in rows_of(content):
        n = len(example["pictures"])
        pictures.add(n)
        assert row["role"].count(Role.IMAGE) == 16 * n and (row["change"] is None) == (n == 0)
        role, turn = torch.tensor([row["role"]]), torch.tensor([row["turn"]])
        mask, weights = unpack(row, *((L, H), (2, 2))[r])
        order = None if r else ring_positions(role, None, 4)
        assert torch.equal(mask, attention_mask("mma", role, turn, order=order)[0, 0])
        assert (weights.sum(-1) - 1).abs().max() < 0.51 / 255 * len(mask)
        assert max(row["turn"]) == (2 if question["text"] == "Really?" else 1)
    assert pictures == {0, 1, 2}


def test_every_turn_of_a_dialogue(talk, tokenizer, tmp_path, capsys):
    """As eval.py asks it, earlier turns with true answers, with the pictures that were shown."""
    run = make_run(tmp_path / "run", tokenizer, "llava", talk)
    write(run, "--out", tmp_path / "page.html", "--split", "all")
    assert "page.html: 1 question, " in capsys.readouterr().out
    rows = rows_of(contents(tmp_path / "page.html"))
    examples, (model, tokenizer) = data.load("llava", talk, images=talk.parent), opened(run)
    asked = dict(examples=examples.heldout("train"), max_new_tokens=explore.LONGEST)
    results = evaluation.answer_all(model, tokenizer, **asked)
    assert len(rows) == 3 and len(rows[0][0]["pictures"]) == 2
    for t, ((_, turn, _, row), result) in enumerate(zip(rows, results, strict=True)):
        assert (turn["text"], turn["answer"]) == (result["question"], result["answer"])
        assert row["given"] == result["given"] and max(row["turn"]) == t + 1
        assert row["role"].count(Role.IMAGE) == 16 * (2 if t == 2 else 1)


def test_dialogues_of_different_lengths_about_the_same_pictures(runs):
    """The first shows both at once; the second shows the other one in its third turn, and is
    compared where it has shown as many."""
    pictures = [Shapes().heldout("test")[k].images[0] for k in (0, 5)]
    ask = "is there a red circle?", "yes"
    turns = [(data.IMAGE_TOKEN + ask[0], "yes"), ask, (data.IMAGE_TOKEN + "and here?", "no")]
    asked = [data.Example(pictures, [(data.IMAGE_TOKEN * 2 + ask[0], "yes")])]
    asked.append(data.Example(pictures, turns))
    example = explore.record([("a", *opened(runs[1]))], asked)
    turns_of = [q["turns"] for q in example["questions"]]
    first, second = ([turn["rows"][0]["change"] for turn in turns] for turns in turns_of)
    assert first == [[[0.0] * 32] * L] and len(example["pictures"]) == 2
    assert second[:2] == [None, None] and [len(layer) for layer in second[2]] == [32] * L


def test_pairs_by_hand():
    a, b = [torch.zeros(3, 4, 4)], [torch.zeros(3, 4, 4)]
    shown = zip((a, b, b, [], b, [], b), "1223456")
    examples = [data.Example(images, [(words, "")]) for images, words in shown]
    for n, expected in ((10, [["4", "6"], ["1"], ["3"], ["5"]]), (2, [["4", "6"], ["1"]])):
        asked = [[e.turns[0][0] for e in some] for some in explore.pairs(examples, n)]
        assert asked == expected


def test_pictures_that_would_make_it_too_large_are_left_out(runs, tmp_path, capsys, monkeypatch):
    page = tmp_path / "page.html"
    monkeypatch.setattr(explore, "LIMIT", 200_000)
    write(*runs, "--out", page)
    n = len(contents(page)["examples"])
    assert 1 <= n < 10 and f"{10 - n} of 10 examples left out" in capsys.readouterr().out
    assert page.stat().st_size < 200_000


@pytest.mark.parametrize("args, message", [
    (["--image", "x.png"], "belong together"),
    (["--image", "x.png", "--question", "why?"], "x.png: no such picture"),
    (["--split", "dev"], "no split 'dev'"),
    (["--out", "."], "cannot be written"),
])  # fmt: skip
def test_bad_input_is_one_clear_error(runs, tmp_path, monkeypatch, args, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=f"^error: .*{re.escape(message)}"):
        write(runs[0], "--out", "page.html", "--limit", "1", *args)
    assert not (tmp_path / "page.html").exists()
