"""Rows, labels, batches; the built-in world against a slow reading of its pictures; the readers and their errors."""

import json
import pickle
import re
import shutil
import time

import pytest
import torch
from PIL import Image

import data
from data import DataError, Example, collate, encode
from data.shapes import (CELLS, COLOUR, EMPTY, FAMILIES, GRID, PALETTE, SHAPE, SPLITS, Shapes, question_only, questions, render,
                         scenes, split_of)
from mma import Role

LETTERS = "-tVQA"


def letters(row):
    return "".join(LETTERS[r] for r in row.role)


# ---------------------------------------------------------------------------------------------------------------- rows

def test_roles_and_turns_of_a_dialogue(tokenizer):
    example = Example(["p"], [("<image>\nis there a red circle?", "yes"), ("blue?", "no")])
    row = encode(example, tokenizer, 4)
    assert letters(row) == "tVVVVQQQQQQQAAtttAA"
    assert "".join(map(str, row.turn)) == "0" + "1" * 13 + "2" * 5
    assert row.ids[0] == tokenizer.bos and row.ids[1:5] == [tokenizer.image] * 4
    assert row.ids[11] == row.ids[16] == tokenizer.answer and row.ids[13] == row.ids[18] == tokenizer.eos
    assert tokenizer.decode(row.ids[5:11]) == "is there a red circle?" and tokenizer.decode(row.ids[12:13]) == "yes"
    assert len(row.ids) == len(row.role) == len(row.turn)


def test_a_caption_asks_nothing(tokenizer):
    assert letters(encode(Example(["p"], [("<image>", "red circle")]), tokenizer, 4)) == "tVVVVtAAA"
    assert letters(encode(Example(["p"], [("<image>\n", "red circle")]), tokenizer, 4)) == "tVVVVtAAA"


def test_a_turn_without_a_picture_opens_nothing_and_a_later_picture_does(tokenizer):
    row = encode(Example(["p"], [("is nothing?", "no"), ("<image>red?", "yes")]), tokenizer, 2)
    assert letters(row) == "ttttt" + "AA" + "VVQQQ" + "AA"


def test_several_pictures_stand_where_their_placeholders_do(tokenizer):
    row = encode(Example(["a", "b"], [("is <image> the <image> red?", "no")]), tokenizer, 2)
    assert letters(row) == "tQVVQVVQQQAA" and row.images == ["a", "b"]


def test_text_first(tokenizer):
    row = encode(Example(["a", "b"], [("is <image> the <image> red?", "no")]), tokenizer, 2, text_first=True)
    same = encode(Example(["a", "b"], [("is <image> the <image> red?", "no")]), tokenizer, 2)
    assert letters(row) == "tQQQQVVVVQAA" and row.images == ["a", "b"] and sorted(row.ids) == sorted(same.ids)
    assert encode(Example(["a"], [("<image>", "red")]), tokenizer, 2, text_first=True).ids == [
        tokenizer.bos, tokenizer.image, tokenizer.image, tokenizer.answer, *tokenizer.encode("red"), tokenizer.eos]


@pytest.mark.parametrize("text_first", [False, True])
def test_a_prompt_is_the_row_up_to_the_answer(tokenizer, text_first):
    example = Example(["a", "b"], [("<image>red?", "yes"), ("<image>blue?", "no"), ("is?", "yes")])
    full = encode(example, tokenizer, 3, text_first=text_first)
    for turn, n_images in ((0, 1), (1, 2), (2, 2)):
        prompt = encode(example, tokenizer, 3, upto=turn, text_first=text_first)
        assert prompt.ids == full.ids[:len(prompt.ids)] and prompt.role == full.role[:len(prompt.ids)]
        assert full.role[len(prompt.ids)] == Role.ANSWER and prompt.ids[-1] == tokenizer.answer
        assert len(prompt.images) == n_images


def test_pictures_and_placeholders_must_agree(tokenizer):
    for example in (Example([], [("<image>red?", "yes")], id="x"), Example(["a"], [("red?", "yes")], id="x")):
        with pytest.raises(DataError, match="x: . <image> in the messages, but . pictures"):
            encode(example, tokenizer, 4)


def test_text_cannot_pose_as_a_special_token(tokenizer):
    row = encode(Example([], [("say <answer> yes <eos> now", "</s> <bos>")]), tokenizer, 2)
    special = {tokenizer.bos, tokenizer.eos, tokenizer.answer, tokenizer.image, tokenizer.pad}
    assert [i for i in row.ids if i in special] == [tokenizer.bos, tokenizer.answer, tokenizer.eos]


def test_tokenizer_loses_no_text_and_travels(tokenizer):
    for text in ("is there a red circle?", "Ünïcode ☂ and Zeichen 42", "two\nlines", "¿dónde  está?", "5 m², ½ ① ﬁ", "色は？"):
        assert tokenizer.decode(list(tokenizer.encode(text))) == text
    again = pickle.loads(pickle.dumps(tokenizer))
    assert again.encode("a red diamond") == tokenizer.encode("a red diamond")
    assert len(tokenizer.encode("how many purple triangles are there?")) == 7  # a word of the data is one token


def test_labels_survive_truncation(tokenizer):
    example = Example(["a", "b"], [("<image>is there a red circle?", "yes"), ("blue?", "no"), ("<image>how many?", "2")])
    full = encode(example, tokenizer, 4)
    for limit in range(6, len(full.ids) + 2):
        row = encode(example, tokenizer, 4, max_tokens=limit)
        n = len(row.ids)
        assert n <= limit and len(row.role) == len(row.turn) == n
        assert (row.ids, row.role, row.turn) == (full.ids[:n], full.role[:n], full.turn[:n])  # a prefix: labels stay with their tokens
        assert row.role.count(Role.IMAGE) == 4 * len(row.images)                             # no picture is cut
        if limit >= 4 + 9 + 1:
            assert Role.ANSWER in row.role
    assert encode(example, tokenizer, 4, max_tokens=4).ids == [tokenizer.bos]  # not even the picture fits: its turn is gone


def test_collate_pads_on_the_right_and_reads_each_picture_once(tokenizer, tmp_path):
    Image.new("RGB", (16, 16), "red").save(tmp_path / "a.png")
    tensor = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    rows = [encode(Example([images], [("<image>" + q, "yes")]), tokenizer, 2)
            for images, q in ((tmp_path / "a.png", "red?"), (tensor[1], "blue circle?"), (tmp_path / "a.png", "is?"), (tensor[1], "?"))]
    batch = collate(rows, tokenizer.pad, 16)
    assert batch["picture"].tolist() == [0, 1, 0, 1] and batch["images"].shape == (2, 3, 16, 16)
    assert batch["images"][0, 0].min() == 255 and batch["images"].dtype == torch.uint8
    for b, row in enumerate(rows):
        n = len(row.ids)
        assert batch["ids"][b, :n].tolist() == row.ids and (batch["ids"][b, n:] == tokenizer.pad).all()
        assert (batch["role"][b, n:] == Role.PAD).all()


def test_the_whole_picture_is_kept(tmp_path):
    picture = Image.new("RGB", (80, 20), "red")
    picture.paste((0, 0, 255), (0, 0, 20, 20))
    picture.paste((0, 255, 0), (60, 0, 80, 20))
    picture.save(tmp_path / "wide.png")
    read = data.read_picture(tmp_path / "wide.png", 64)
    assert read.shape == (3, 64, 64) and (read[:, :20] == 128).all() and (read[:, -20:] == 128).all()
    assert read[2, 32, 2] > 200 and read[1, 32, 61] > 200 and read[0, 32, 32] > 200  # blue left, green right: not flipped, not cropped


@pytest.mark.parametrize("mode", ["P", "L", "RGBA", "1", "CMYK", "I;16"])
def test_pictures_of_any_mode(tmp_path, mode):
    name = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    Image.new(mode, (10, 30)).save(name)
    assert data.read_picture(name, 32).shape == (3, 32, 32)


# --------------------------------------------------------------------------------------------------------------- shapes

def oracle(cells, question):
    """The answer, by reading the scene cell by cell."""
    things = [(COLOUR[k // 4], SHAPE[k % 4], i // GRID, i % GRID) for i, k in enumerate(cells) if k != EMPTY]
    words = question.rstrip("?").split()

    def of(colour=None, shape=None):
        return [t for t in things if colour in (None, t[0]) and shape in (None, t[1])]

    def only(found):
        assert len(found) == 1, (question, found)
        return found[0]

    if m := re.fullmatch(r"is there a (\w+) (\w+)\?", question):
        return "yes" if of(*m.groups()) else "no"
    if m := re.fullmatch(r"how many (\w+) (\w+)s are there\?", question):
        return str(len(of(*m.groups())))
    if m := re.fullmatch(r"what shape is the (\w+) object\?", question):
        return only(of(colour=m[1]))[1]
    if m := re.fullmatch(r"what color is the (\w+)\?", question):
        return only(of(shape=m[1]))[0]
    if m := re.fullmatch(r"are there more (\w+) objects than (\w+) objects\?", question):
        return "yes" if len(of(colour=m[1])) > len(of(colour=m[2])) else "no"
    if m := re.fullmatch(r"are there more (\w+)s than (\w+)s\?", question):
        return "yes" if len(of(shape=m[1])) > len(of(shape=m[2])) else "no"
    if m := re.fullmatch(r"is the (\w+) (\w+) (left of|right of|above|below) the (\w+) (\w+)\?", question):
        a, b = only(of(m[1], m[2])), only(of(m[4], m[5]))
        return "yes" if {"left of": a[3] < b[3], "right of": a[3] > b[3], "above": a[2] < b[2], "below": a[2] > b[2]}[m[3]] else "no"
    raise AssertionError(words)


def test_every_answer_of_the_world_is_exact():
    g = torch.Generator().manual_seed(5)
    layout = scenes(400, "train", g)
    seen = set()
    for cells, asked in zip(layout.tolist(), questions(layout, 10, g)):
        assert len(asked) == 10
        for family, question, answer in asked:
            assert oracle(cells, question) == answer, question
            seen.add((family, answer))
    assert {f for f, _ in seen} == set(FAMILIES)
    assert {a for f, a in seen if f == "counting"} == set("0123")
    assert {a for f, a in seen if f == "attribute"} == set(COLOUR + SHAPE)
    assert {a for _, a in seen} == Shapes.answers


def test_pictures_show_their_layout_and_captions_say_it():
    world = Shapes()
    for example in world.draw("pt", 3, 50, 1, 0):
        message, caption = example.turns[0]
        words, cells = caption.split(), []
        while words:
            cells.append(EMPTY if words[0] == "nothing" else COLOUR.index(words[0]) * 4 + SHAPE.index(words[1]))
            words = words[1 if words[0] == "nothing" else 2:]
        assert message == "<image>" and len(cells) == CELLS
        for i, kind in enumerate(cells):
            y, x = i // GRID * 16, i % GRID * 16
            cell = example.images[0][:, y:y + 16, x:x + 16].flatten(1).float()
            bright = cell[:, cell.max(0).values > 100]
            if kind == EMPTY:
                assert bright.shape[1] == 0
            else:
                nearest = (PALETTE.float() / PALETTE.float().norm(dim=1, keepdim=True)) @ bright.mean(1)
                assert nearest.argmax() == kind // 4


def test_the_shapes_look_different():
    layout = torch.full((4, CELLS), EMPTY)
    layout[:, 5] = torch.arange(4)
    pictures = render(layout, torch.Generator().manual_seed(0))
    assert len({int((p[0] > 120).sum()) for p in pictures}) == 4


def test_splits_are_disjoint_by_construction():
    g = torch.Generator().manual_seed(0)
    layouts = {}
    for split, residues in SPLITS.items():
        some = scenes(2000, split, g)
        assert len(some) == 2000 and set(split_of(some).tolist()) == set(residues)
        layouts[split] = {tuple(row) for row in some.tolist()}
    assert not (layouts["train"] & layouts["test"] or layouts["train"] & layouts["val"] or layouts["val"] & layouts["test"])


def test_a_picture_of_another_size_is_scaled(tmp_path):
    example = Shapes().heldout("test", 1)[0]
    assert data.pixels_of(example.images[0], 32, "").shape == (3, 32, 32)
    assert data.pixels_of(example.images[0], 64, "") is example.images[0]


def test_draws_follow_stage_step_and_seed_alone():
    world = Shapes()

    def key(*args):
        return [(e.turns, e.images[0].sum().item()) for e in world.draw(*args)]
    base = key("sft", 7, 5, 4, 0)
    assert base == key("sft", 7, 5, 4, 0) and len(base) == 20
    assert base != key("sft", 8, 5, 4, 0) and base != key("sft", 7, 5, 4, 1)
    once, again = (Shapes.heldout.__wrapped__(Shapes(), "test", 100) for _ in range(2))  # around the cache of conftest.py
    assert [(e.id, e.turns, e.images[0].sum()) for e in once] == [(e.id, e.turns, e.images[0].sum()) for e in again]


def test_the_question_alone_tells_little():
    for family, (ceiling, chance) in question_only(8000).items():
        assert ceiling < chance + 0.03, family


def test_generating_is_much_faster_than_training():
    world = Shapes()
    world.draw("sft", 0, 32, 4, 0)
    start = time.perf_counter()
    for step in range(10):
        world.draw("sft", step, 32, 4, 0)
    assert (time.perf_counter() - start) / 10 < 0.1  # a training step of these 128 questions takes about 0.2 s on 2 cores


# -------------------------------------------------------------------------------------------------------------- readers

def test_easy_vqa(easy_vqa):
    folder = data.load("easy_vqa", easy_vqa)
    pictures = {split: {e.images[0] for e in folder.heldout(split)} for split in SPLITS}
    assert len(folder.heldout("test")) == 10 and len(pictures["train"] | pictures["val"]) == 40
    assert pictures["train"] and pictures["val"] and not pictures["train"] & pictures["val"]
    assert folder.answers == {"red", "blue", "yes", "no"}
    assert {e.family for e in folder.heldout("test")} == {"color", "yes/no"}


@pytest.mark.parametrize("damage,message", [
    (lambda d: (d / "train" / "questions.json").write_text("[[1, 2"), r"train.questions.json: not readable as JSON"),
    (lambda d: (d / "train" / "questions.json").write_text('[["a", "b", 0], ["a", 3, 0]]'), r"entry 1: expected \[question"),
    (lambda d: (d / "train" / "images" / "3.png").unlink(), r"questions.json: entry 6: no such picture .*3.png"),
    (lambda d: shutil.rmtree(d / "test"), r"test.questions.json: no such file"),
])
def test_easy_vqa_damaged(easy_vqa, damage, message):
    damage(easy_vqa)
    with pytest.raises(DataError, match=message):
        data.load("easy_vqa", easy_vqa)


def test_llava(llava):
    folder = data.load("llava", llava)
    groups = [g for split in ("train", "val", "test") for g in folder.splits[split]]
    assert sum(len(g) for g in groups) == 32
    where = {}
    for split in ("train", "val", "test"):
        assert folder.splits[split]
        for e in folder.heldout(split):
            for path in e.images:
                assert where.setdefault(path, split) == split  # no picture stands in two splits
    two = next(e for g in groups for e in g if len(e.images) == 2)
    assert two.turns == [("<image>\n<image>\nAre these the same?", "No.")]
    again = data.load("llava", llava)
    assert [e.id for e in again.heldout("test")] == [e.id for e in folder.heldout("test")]


def edit(change):
    def damage(file):
        entries = json.loads(file.read_text())
        change(entries)
        file.write_text(json.dumps(entries))
    return damage


@pytest.mark.parametrize("damage,message", [
    (lambda f: f.write_text("{"), "data.json: not readable as JSON"),
    (lambda f: f.write_text("{}"), "data.json: expected a list"),
    (lambda f: f.write_bytes(b"\xff\xfe\x00"), "data.json: not readable as JSON"),
    (lambda f: f.unlink(), "data.json: no such file"),
    (edit(lambda e: e.__setitem__(4, 3)), "entry 4: expected an object"),
    (edit(lambda e: e[4].pop("conversations")), r"entry 4 \(id '4'\): conversations must be a list"),
    (edit(lambda e: e[4]["conversations"].pop()), "entry 4 .*conversations must be"),
    (edit(lambda e: e[4]["conversations"].reverse()), "entry 4 .*message 0 should be from 'human'"),
    (edit(lambda e: e[4]["conversations"][1].pop("value")), "entry 4 .*message 1 must be"),
    (edit(lambda e: e[4].pop("image")), "entry 4 .*1 <image> in the messages, but 0 pictures"),
    (edit(lambda e: e[4].update(image="missing.png")), "entry 4 .*no such picture .*missing.png"),
    (edit(lambda e: e[4].update(image="../../etc/passwd")), "entry 4 .*outside"),
    (edit(lambda e: e[4].update(image=[3])), "entry 4 .*image must be a file name"),
    (edit(lambda e: e[4].update(image=0)), "entry 4 .*image must be a file name"),
    (edit(lambda e: e[4].update(image="a\0.png")), "entry 4 .*cannot be a file's name"),
    (edit(lambda e: e[4].update(image="x" * 300)), "entry 4 .*(cannot be a file's name|no such picture)"),
    (edit(lambda e: e[4]["conversations"][0].update({"from": ["human"]})), "entry 4 .*message 0 should be from"),
    (edit(lambda e: e[4]["conversations"][0].update(value="<image>\ud83d")), "entry 4 .*surrogate"),
    (lambda f: f.write_text("[" + "9" * 5000 + "]"), "data.json: not readable as JSON"),
    (edit(lambda e: e[4]["conversations"][1].update(value="<image>")), "entry 4 .*an answer cannot hold"),
])
def test_llava_damaged(llava, damage, message):
    damage(llava)
    with pytest.raises(DataError, match=message) as strict:
        data.load("llava", llava, strict=True)
    if "entry 4" in message:  # without --strict it is left out, and reported in the same words
        folder = data.load("llava", llava)
        report = folder.read_pictures(32)
        assert report.startswith("1 of 32 entries are damaged and left out (--strict makes them an error):") and str(strict.value) in report
        assert sum(len(folder.heldout(split)) for split in SPLITS) == 31


def test_captions_of_their_own_for_stage_1(llava, tokenizer):
    entries = [{"image": f"{i}.{'jpg' if i % 2 else 'png'}", "conversations": [
        {"from": "human", "value": "<image>"}, {"from": "gpt", "value": f"a caption of {i}"}]} for i in range(30)]
    captions = llava.parent / "captions.json"
    captions.write_text(json.dumps(entries))
    folder = data.load("llava", llava, pt_source=captions)
    drawn = {stage: [e for step in range(20) for e in folder.draw(stage, step, 4, 2, 0)] for stage in ("pt", "sft")}
    assert all(e.turns[0][1].startswith("a caption") for e in drawn["pt"])
    assert not any(e.turns[0][1].startswith("a caption") for e in drawn["sft"] + folder.heldout("val") + folder.heldout("test"))
    held = {image for split in ("val", "test") for e in folder.heldout(split) for image in e.images}
    seen = {image for e in drawn["pt"] for image in e.images}
    assert held and seen and not held & seen and len(held) + len(seen) == 30
    assert f"{len(held)} captions of pictures that are held out" in folder.read_pictures(32)
    assert "a caption of" in " ".join(folder.texts())
    with pytest.raises(DataError, match="no training row keeps an answer"):
        folder.drop_unusable(tokenizer, 16, 18)
    with pytest.raises(DataError, match="--pt-source belongs to --data llava"):
        data.load("shapes", pt_source=captions)


def test_damaged_entries_are_reported_by_number_kind_and_first_examples(llava):
    entries = json.loads(llava.read_text())
    for i in (3, 5, 7, 9):
        entries[i]["image"] = f"missing{i}.png"
    entries[11]["conversations"].pop()
    (llava.parent / "2.png").write_bytes(b"broken")  # shown by two entries
    llava.write_text(json.dumps(entries))
    folder = data.load("llava", llava)
    report = folder.read_pictures(32).splitlines()
    assert report[0].startswith("7 of 32 entries") and report[1] == "  4 missing picture, such as" and len(report) == 1 + 4 + 3 + 2
    assert "entry 3 (id '3'): no such picture" in report[2] and "entry 7" in report[4]
    assert any(line == "  2 unreadable picture, such as" for line in report) and report[-2] == "  1 malformed, such as"
    left = [e for split in SPLITS for e in folder.heldout(split)]
    assert len(left) == 25 and not any(path.name == "2.png" for e in left for path in e.images)
    with pytest.raises(DataError, match="entry 3 "):
        data.load("llava", llava, strict=True)


def test_only_the_heads_of_very_many_pictures_are_read(llava, monkeypatch):
    monkeypatch.setattr(data, "CACHED_PICTURES", 5)
    good = (llava.parent / "4.png").read_bytes()
    (llava.parent / "4.png").write_bytes(good[:len(good) - 20])  # its head is whole
    (llava.parent / "6.png").write_bytes(b"broken")
    assert data.load("llava", llava).read_pictures(32).startswith("1 of 32 entries")


def test_all_damaged_is_an_error(llava):
    llava.write_text(json.dumps([1, 2]))
    with pytest.raises(DataError, match="entry 1: expected an object"):
        data.load("llava", llava)


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n" + b"\x00" * 40])
def test_a_broken_picture_is_named(tmp_path, content):
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(DataError, match=r"x.png: not a readable picture"):
        data.read_picture(tmp_path / "x.png", 32)


def test_a_truncated_picture_is_named(tmp_path):
    Image.effect_noise((64, 64), 50).save(tmp_path / "x.png")
    (tmp_path / "x.png").write_bytes((tmp_path / "x.png").read_bytes()[:1500])
    with pytest.raises(DataError, match=r"x.png: not a readable picture"):
        data.read_picture(tmp_path / "x.png", 32)
    with pytest.raises(DataError, match=r"y.png: no such picture"):
        data.read_picture(tmp_path / "y.png", 32)


def test_a_finite_set_is_seen_whole_in_each_epoch_in_another_order(easy_vqa):
    folder = data.load("easy_vqa", easy_vqa)
    n = len(folder.splits["train"])
    epochs = [[e.images[0] for step in range(n * epoch, n * (epoch + 1)) for e in folder.draw("sft", step, 1, 1, 0)] for epoch in (0, 1)]
    assert len(set(epochs[0])) == len(set(epochs[1])) == n and epochs[0] != epochs[1]
    one = folder.draw("sft", 5, 7, 2, 0)  # straddles two epochs
    assert [e.id for e in one] == [e.id for e in folder.draw("sft", 5, 7, 2, 0)] and len(one) == 14


def test_every_question_of_a_picture_gets_its_turn(easy_vqa):
    folder = data.load("easy_vqa", easy_vqa)
    n = len(folder.splits["train"])
    asked = [e.turns[0][0] for step in range(n) for e in folder.draw("sft", step, 1, 1, 0)]  # two questions each
    assert 0.25 < sum("color" in q for q in asked) / n < 0.75


def test_the_llava_split_follows_the_names_alone(llava, tmp_path, monkeypatch):
    def split(source, images=None):
        folder = data.load("llava", source, images)
        return {s: {tuple(p.name for p in e.images) + e.turns[0] for e in folder.heldout(s)} for s in SPLITS}
    base = split(llava)
    entries = json.loads(llava.read_text())
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "other.json").write_text(json.dumps(entries[::-1]), encoding="utf-8-sig")
    assert split(tmp_path / "elsewhere" / "other.json", llava.parent) == base
    monkeypatch.chdir(llava.parent)
    assert split(llava.relative_to(llava.parent)) == base
    for i in range(15):  # the same picture by another name
        entries.append({**entries[i], "image": f"../{llava.parent.name}/{entries[i]['image']}"})
    llava.write_text(json.dumps(entries))
    pictures = {s: {p for e in data.load("llava", llava).heldout(s) for p in e.images} for s in SPLITS}
    assert not pictures["train"] & pictures["test"] and not pictures["train"] & pictures["val"] and not pictures["val"] & pictures["test"]


def test_a_large_group_of_pictures_is_trained_on(llava):
    entries = json.loads(llava.read_text())
    for i in range(14):  # 0.png - 1.jpg - ... - 14.png hang together
        entries.append({"image": [entries[i]["image"], entries[i + 1]["image"]], "conversations": [
            {"from": "human", "value": "<image><image>"}, {"from": "gpt", "value": "two"}]})
    llava.write_text(json.dumps(entries))
    folder = data.load("llava", llava)
    n = {s: len({p for e in folder.heldout(s) for p in e.images}) for s in SPLITS}
    assert n["train"] > 20 and 1 <= n["val"] <= 3 and 1 <= n["test"] <= 3


def test_pictures_are_read_as_a_viewer_shows_them(tmp_path):
    picture = Image.new("RGB", (32, 32), "red")
    picture.paste((0, 0, 255), (0, 16, 32, 32))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    picture.save(tmp_path / "phone.png", exif=exif)
    assert data.read_picture(tmp_path / "phone.png", 32)[2, 4, 16] > 200
    deep = Image.frombytes("I;16", (32, 32), b"".join((x * 2048).to_bytes(2, "little") for x in range(32)) * 32)
    deep.save(tmp_path / "deep.png")
    row = data.read_picture(tmp_path / "deep.png", 32)[0, 5].tolist()
    assert row == sorted(row) and len(set(row)) > 25 and row[16] in range(120, 136)


def test_text_that_no_tokenizer_fits_is_one_clear_error():
    with pytest.raises(DataError, match="raise --vocab-size"):
        data.Tokenizer.train(["".join(chr(0x4E00 + i) for i in range(1500))], 1000)
    with pytest.raises(DataError, match="no tokenizer"):
        data.Tokenizer.train([""], 1000)


def test_unusable_rows_are_counted_and_left_out(llava, tokenizer):
    entries = json.loads(llava.read_text())
    for i in (0, 1, 2, 3, 4):  # a long answer is cut; a long question leaves no answer
        entries[10 + i]["conversations"][0]["value"] += " word" * 200
        entries[20 + i]["conversations"][1]["value"] += " word" * 200
    llava.write_text(json.dumps(entries))
    folder = data.load("llava", llava)
    ids = {int(m[1]) for e in folder.heldout("train") if (m := re.search(r"id '(\d+)'", e.id))}
    long_questions, long_answers = len(ids & set(range(10, 15))), len(ids & set(range(20, 25)))
    before = len(folder.heldout("train"))
    assert folder.drop_unusable(tokenizer, 4, 128) == (long_questions + long_answers, long_questions)
    assert long_questions and long_answers and len(folder.heldout("train")) == before - long_questions
    with pytest.raises(DataError, match="raise --max-tokens"):
        folder.drop_unusable(tokenizer, 4, 3)


def test_normalise():
    for same in ((" The  red, circle. ", "red circle"), ("Yes!", "yes"), ("An apple", "apple"), ("A.", "a"), ("It is 3.5.", "it is 3.5")):
        assert data.normalise(same[0]) == data.normalise(same[1])
    for other in (("A", ""), ("-1", "1"), ("+", "-"), ("C++", "C"), ("<", ">"), ("3.5", "35"), ("?", ""), ("m²", "m2")):
        assert data.normalise(other[0]) != data.normalise(other[1])
