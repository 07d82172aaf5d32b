"""NLVR's reader, its orders and its splits; the world in NLVR's manner against a slow reading of its scenes."""

import json
import os
import random
from itertools import permutations
from pathlib import Path

import pytest
import torch
from PIL import Image

import data
import eval as evaluation
import train
from data import IMAGE, Crop, DataError, Example
from data.nlvr import BOXES, ORDERS, plain
from data.nlvr_world import (COLOUR, FAMILIES, NUMBER, SHAPE, SIZE, TOWER_X, TOWER_Y, WHY, Scenes, Speaker, World, caption, scatter,
                             tower)

COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
TINY = ("--preset tiny --device cpu --workers 0 --pt-pictures 4 --pictures 4 --questions 4 --pt-steps 2 --steps 2 --eval-every 2 "
        "--limit 24").split()


def write_split(root, split, identifiers, flat=False, directory=lambda n: n % 20, orders=(0,)):
    """A split in NLVR's layout: box k is red, green, blue in the order K of `orders`; the label is true for even m."""
    lines = []
    for n, m in identifiers:
        folder = root / split / "images" / ("" if flat else str(directory(n)))
        folder.mkdir(parents=True, exist_ok=True)
        for k in orders:
            picture = Image.new("RGB", (400, 100), (128, 128, 128))
            for box, c in zip(BOXES, list(permutations(COLOURS))[k]):
                picture.paste(c, box)
            picture.convert("P").save(folder / f"{split}-{n}-{m}-{k}.png")
        lines.append({"sentence": f"There are {n} Black squares.", "label": ("true", "false")[m % 2], "identifier": f"{n}-{m}"}
                     | ({} if flat else {"directory": str(directory(n))}))
    (root / split / f"{split}.json").write_text("\n".join(map(json.dumps, lines)) + "\n\n")


@pytest.fixture
def nlvr(tmp_path):
    root = tmp_path / "clone" / "nlvr"
    write_split(root, "train", [(n, m) for n in range(40) for m in range(4)])
    write_split(root, "dev", [(n, m) for n in range(5) for m in range(2)], orders=range(6))
    write_split(root, "test", [(n, m) for n in range(3) for m in range(2)], flat=True, orders=(4, 2))
    write_split(root, "hidden", [(7, 0)])
    (root / "hidden" / "hidden.json").rename(root / "hidden" / "hidden_final.json")
    return root


# --------------------------------------------------------------------------------------------------------------- reader

def colours_of(example):
    """The boxes as 'r', 'g', 'b'."""
    return "".join("rgb"[int(data.pixels_of(image, 20, "")[:, 10, 10].argmax())] for image in example.images)


@pytest.mark.parametrize("part,first", [("", "rgb"), ("nlvr", "rgb")])
def test_every_split_is_read_from_the_clone_or_its_inner_folder(nlvr, part, first):
    source = data.load("nlvr", nlvr.parent / part)
    assert source.split_names() == ["train", "val", "dev", "hidden", "test"]
    dev = source.heldout("dev")
    assert len(dev) == 10 * 6 and dev[0].turns == [(IMAGE * 3 + "there are zero black squares", "true")]
    assert len(source.heldout("test")) == 6 * 6 and len(source.heldout("hidden")) == 6


def test_all_six_orders_of_every_example_whatever_files_there_are(nlvr):
    source = data.load("nlvr", nlvr)
    everything = {"".join(p) for p in permutations("rgb")}
    for split in ("val", "dev", "test", "hidden"):
        orders = {}
        for example in source.heldout(split):
            orders.setdefault(example.id, []).append(colours_of(example))
        assert orders and all(len(some) == 6 and set(some) == everything for some in orders.values()), split
    assert colours_of(source.heldout("test")[0]) == "gr" + "b"  # the lowest K there is, 2, comes first
    assert len({e.id for e in source.heldout("dev", 10)}) == 10  # a limit takes each example once before any twice


def test_training_takes_every_order_and_follows_stage_step_and_seed_alone(nlvr):
    source, again = data.load("nlvr", nlvr), data.load("nlvr", nlvr)
    drawn = [e for step in range(60) for e in source.draw("sft", step, 4, 4, 0)]
    assert {colours_of(e) for e in drawn} == {"".join(p) for p in permutations("rgb")}

    def key(source, *args):
        return [(e.id, tuple(e.images)) for e in source.draw(*args)]
    assert key(source, "sft", 3, 4, 4, 0) == key(again, "sft", 3, 4, 4, 0)
    assert key(source, "sft", 3, 4, 4, 0) != key(source, "sft", 3, 4, 4, 1)


def test_val_is_a_tenth_of_the_directories_of_train(nlvr):
    source = data.load("nlvr", nlvr)

    def directories(split):
        return {e.images[0].path.parent.name for e in source.heldout(split)}
    assert len(directories("val")) == 2 and len(directories("train")) == 18 and not directories("val") & directories("train")
    lines = (nlvr / "train" / "train.json").read_text().splitlines()
    (nlvr / "train" / "train.json").write_text("\n".join(lines[::-1]))
    assert {e.images[0].path for e in data.load("nlvr", nlvr).heldout("val")} == {e.images[0].path for e in source.heldout("val")}
    assert {e.group for e in source.heldout("val")} and all(len(g) == 4 for g in source.splits["train"])


def test_sentences_are_brought_to_one_spelling():
    assert plain("There are 2 Yellow items.") == "there are two yellow items"
    assert plain("ll the towers has a black block/") == "all the towers has a black block"
    assert plain("t least 1 box has a  circle ,a square") == "at least one box has a circle, a square"


@pytest.mark.parametrize("damage,message", [
    (lambda lines: lines[:2] + ["{oops"], r"train.json: line 3: not readable as JSON"),
    (lambda lines: [lines[0], "[1]"], r"line 2: expected an object with the texts sentence, label, identifier, got \[1\]"),
    (lambda lines: [lines[0].replace('"true"', '"maybe"')], r"line 1: the label must be true or false, not 'maybe'"),
    (lambda lines: [lines[0].replace('"0-0"', '"0"')], r"line 1: the identifier must be like 72-0, not '0'"),
    (lambda lines: [lines[0].replace('"0-0"', '"999-0"')], r"line 1: no picture train-999-0-K.png below .*images"),
    (lambda lines: [lines[0].replace("There are 0 Black squares", " ")], r"line 1: the sentence is empty"),
    (lambda lines: [], r"train.json: holds no example"),
])
def test_what_is_wrong_in_a_file_is_named(nlvr, damage, message):
    file = nlvr / "train" / "train.json"
    file.write_text("\n".join(damage(file.read_text().splitlines())))
    with pytest.raises(DataError, match=message):
        data.load("nlvr", nlvr).heldout("val")


def test_other_trouble_is_named_too(nlvr, tmp_path):
    with pytest.raises(DataError, match=r"nowhere: no such folder \(check --source\)"):
        data.load("nlvr", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: expected folders such as train"):
        data.load("nlvr", tmp_path / "empty")
    with pytest.raises(DataError, match="--data nlvr needs --source"):
        data.load("nlvr")
    Image.new("RGB", (100, 400)).save(tmp_path / "x.png")
    with pytest.raises(DataError, match="x.png: expected a picture of 400 x 100 pixels, got 100 x 400"):
        data.read_picture(Crop(tmp_path / "x.png", BOXES[0], (400, 100)), 100)
    with pytest.raises(DataError, match="y.png: no such picture"):
        data.read_picture(Crop(tmp_path / "y.png", BOXES[0], (400, 100)), 100)


def test_a_part_of_a_picture_is_that_part_and_is_read_once_for_a_batch(tmp_path, tokenizer):
    picture = Image.new("RGB", (400, 100), "white")
    picture.paste((255, 0, 0), (150, 0, 170, 20))
    picture.save(tmp_path / "x.png")
    boxes = [Crop(tmp_path / "x.png", box, (400, 100)) for box in BOXES]
    assert (data.read_picture(boxes[1], 100)[1] == 0).nonzero().tolist() == [[y, x] for y in range(20) for x in range(20)]
    rows = [data.encode(Example([boxes[k] for k in order], [(IMAGE * 3 + "red?", "yes")]), tokenizer, 4) for order in ORDERS]
    batch = data.collate(rows, tokenizer.pad, 100)
    assert batch["images"].shape == (3, 3, 100, 100)
    assert batch["picture"].tolist() == [k for order in ORDERS for k in order]


def test_consistency_is_the_share_of_sentences_with_every_answer_right():
    results = [dict(group=g, family="all", correct=c, unparsed=False) for g, c in
               [("1", True), ("1", True), ("2", True), ("2", False), ("3", True), ("4", False)]]
    result = evaluation.summarise(results)
    assert result["consistency"] == 2 / 4 and result["accuracy"] == 4 / 6
    assert "consistency" not in evaluation.summarise([{**r, "group": ""} for r in results])


@pytest.mark.parametrize("name", ["nlvr", "nlvr+world"])
def test_it_trains_and_evaluates(nlvr, tmp_path, capsys, name):
    out = tmp_path / "run"
    train.main([*TINY, "--data", name, "--source", str(nlvr.parent), "--out", str(out)])
    record = json.loads((out / "run.json").read_text())
    assert record["n"] == 24 and record["args"]["image_size"] == 100 and record["args"]["patch_size"] == 20
    evaluation.main([str(out), "--device", "cpu", "--split", "dev", "--json", str(tmp_path / "r.json")])
    result = json.loads((tmp_path / "r.json").read_text())["runs"][0]
    assert result["n"] == 60 and 0 <= result["consistency"] <= 1
    assert "| consistency |" in capsys.readouterr().out
    evaluation.main([str(out), "--device", "cpu", "--limit", "3"])
    with pytest.raises(SystemExit, match="error: .*no split 'hiden'; there are train, val, dev, hidden, test"):
        evaluation.main([str(out), "--device", "cpu", "--split", "hiden"])


SHARED = Path(os.environ.get("MMA_NLVR", Path(__file__).parent.parent.parent / "shared" / "data" / "nlvr"))


@pytest.mark.skipif(not (SHARED / "dev").is_dir(), reason="NLVR is not here; set MMA_NLVR to its folder")
def test_nlvrs_own_six_pictures_are_the_six_orders():
    for first in sorted((SHARED / "dev" / "images").glob("*/*-0.png"))[::50]:
        boxes = [data.read_picture(Crop(first, box, (400, 100)), 100) for box in BOXES]
        for k, order in enumerate(ORDERS):
            other = first.with_name(first.name[:-5] + f"{k}.png")
            theirs = [data.read_picture(Crop(other, box, (400, 100)), 100) for box in BOXES]
            assert all(int((boxes[i] != picture).any(0).sum()) <= 4 for i, picture in zip(order, theirs)), other


# ---------------------------------------------------------------------------------------------------------------- world

def blocks(*colours):
    return [(COLOUR.index(c), 1, 1, TOWER_X, y) for c, y in zip(colours, TOWER_Y)]


def test_towers_and_scattered_items_are_as_nlvrs():
    r = random.Random(0)
    for _ in range(200):
        blocks, items = tower(r), scatter(r)
        assert 1 <= len(blocks) <= 4 and [block[1:] for block in blocks] == [(1, 1, 40, y) for y in (80, 59, 38, 17)[:len(blocks)]]
        assert 1 <= len(items) <= 7
        for i, (_, _, k, x, y) in enumerate(items):
            assert 0 <= x <= 100 - SIZE[k] and 0 <= y <= 100 - SIZE[k]
            for _, _, j, u, v in items[:i]:  # a pixel apart at least
                assert max(x - u - SIZE[j], u - x - SIZE[k], y - v - SIZE[j], v - y - SIZE[k]) >= 1


def test_pictures_show_their_scene():
    scene = [blocks("black", "blue"), [(1, 0, 2, 70, 0)], [(2, 2, 0, 0, 90)]]
    pictures = Scenes([scene]).render()[0]
    assert pictures.shape == (3, 3, 100, 100)
    assert pictures[0, :, 85, 50].tolist() == [0, 0, 0] and pictures[0, :, 65, 50].tolist() == [0, 153, 255]
    assert pictures[0, :, 79, 50].tolist() == [211] * 3 and pictures[0, :, 58, 50].tolist() == [211] * 3
    assert pictures[1, :, 15, 85].tolist() == [255, 255, 0] and pictures[1, :, 0, 70].tolist() == [211] * 3  # round
    assert pictures[2, :, 98, 5].tolist() == [0, 153, 255] and pictures[2, :, 91, 1].tolist() == [211] * 3   # a triangle, its point up
    assert caption(scene[:1], True) == "black, blue"
    assert caption(scene[1:], False) == "big yellow circle right top / small blue triangle left bottom"


SCATTER = [[[(0, 1, 2, 70, 70), (1, 0, 0, 5, 5)], [(1, 0, 1, 80, 30)], [(2, 2, 2, 10, 20), (2, 0, 0, 60, 50), (2, 2, 0, 80, 90)]]]
TOWERS = [[blocks("black", "yellow", "yellow"), blocks("blue"), blocks("black", "blue", "black", "yellow")]]


@pytest.mark.parametrize("boxes,families,true,false", [
    (SCATTER, ["item_count", "item_box", "item_place"],
     ["there are two yellow circles", "there is no black circle", "there is a box with only blue items", "each box has at least one circle",
      "there is one box with three items", "there is exactly one yellow circle touching the edge", "there is at most one black item",
      "none of the yellow items are touching the base", "there is a big black square touching the corner"],
     ["there are three yellow circles", "there is a box with only black items", "there is a yellow item touching the base",
      "there is a black item in each box", "there is a small black square", "each box has at least one square",
      "there is exactly one item closely touching right wall of a box", "there are two black items"]),
    (TOWERS, ["tower_count", "tower_box", "tower_order"],
     ["there is a blue tower", "there is a tower with two yellow blocks stacked together", "there is a blue block as the base of a tower",
      "there are two towers with a yellow block at the top", "there is a yellow block on a black block", "there are three yellow blocks",
      "the tower with four blocks has a yellow block at the top"],
     ["there is a black tower", "there is a black block on a yellow block", "there are exactly two yellow blocks",
      "there is exactly one tower with a yellow block at the top", "there is a blue block as the top of a tower with three blocks"]),
])
def test_what_the_world_says_of_a_scene_is_so(boxes, families, true, false):
    """Sentences judged by hand; the grammar says most of them within some thousand draws."""
    heard, why, scenes = {}, {}, Scenes(boxes)
    for seed in range(4_500):
        words, holds, worth = getattr(Speaker(scenes, random.Random(seed), boxes is TOWERS), families[seed % 3])()
        assert holds.shape == (1,) and holds.dtype == torch.bool and worth.shape == (1, 3)
        why[words] = worth[0].tolist()
        assert heard.setdefault(words, bool(holds)) == bool(holds), words
    by_hand = {**dict.fromkeys(true, True), **dict.fromkeys(false, False)}
    met = {words: heard[words] for words in by_hand if words in heard}
    assert len(met) >= 6 and met == {words: by_hand[words] for words in met}
    rests = {"there are two yellow circles": [1, 1, 0], "there is a box with only blue items": [False, False, True],
             "there are three items": [2, 1, 3], "there is a black item": [1, 0, 0]}
    if boxes is TOWERS:
        rests = {"there is a blue tower": [False, True, False], "there are three yellow blocks": [2, 0, 1],
                 "there are two black blocks": [1, 0, 2], "there is a tower with four blocks": [False, False, True]}
    met = {words: why[words] for words in rests if words in why}
    assert len(met) >= 2 and met == {words: rests[words] for words in met}


def things(scene, colour=None, shape=None, size=None):
    return [item for box in scene for item in box if (colour is None or COLOUR[item[0]] == colour)
            and (shape is None or SHAPE[item[1]] == shape) and (size is None or item[2] == size)]


def test_counts_against_a_slow_reading():
    r = random.Random(3)
    scenes = [[box(r) for _ in range(3)] for box in (tower, scatter) for _ in range(30)]
    seen, number = 0, {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7}
    for seed in range(400):
        some = Scenes(scenes[30:])
        words, holds, _ = Speaker(some, random.Random(seed), False).item_count()
        parts = words.replace("there are ", "").replace("there is ", "").split()
        if "and" in parts or "each" in parts or "every" in parts:
            continue
        how = "exactly" if parts[0] in number else parts.pop(0)
        how = f"{how} {parts.pop(0)}" if how in ("at", "more", "less") else how
        n = number[parts.pop(0)] if parts[0] in number else 1
        size = {"small": 0, "big": 2}.get(parts[0])
        parts = parts[1:] if size is not None else parts
        colour = parts.pop(0) if parts[0] in COLOUR else None
        noun = parts[0].rstrip("s")
        for scene, held in zip(some.boxes, holds.tolist()):
            count = len(things(scene, colour, noun if noun in SHAPE else None, size))
            assert held == {"exactly": count == n, "only": count == n, "at least": count >= n, "at most": count <= n, "a": count >= 1,
                            "more than": count > n, "less than": count < n, "no": count == 0}[how], (words, scene)
        seen += 1
    assert seen > 150


def test_a_sentence_is_true_as_often_as_false():
    by_words = {}
    for step in range(6):
        examples = World().draw("sft", step, 16, 4, 0)
        assert len(examples) == 64 and sum(e.turns[0][1] == "true" for e in examples) == 32
        for e in examples:
            by_words.setdefault(e.turns[0][0], []).append(e.turns[0][1])
    assert all(answers.count("true") == answers.count("false") for answers in by_words.values())
    heldout = World().heldout("val", 240)
    for family in FAMILIES:
        some = [e.turns[0][1] for e in heldout if e.family == family]
        assert some.count("true") == some.count("false") == 20


def test_the_world_follows_stage_step_and_seed_alone():
    def key(*args):
        return [(e.turns, sum(int(image.sum()) for image in e.images)) for e in World().draw(*args)]
    for stage in ("pt", "sft"):
        base = key(stage, 7, 12, 4, 0)
        assert base == key(stage, 7, 12, 4, 0) and base != key(stage, 8, 12, 4, 0) and base != key(stage, 7, 12, 4, 1)
    assert [e.turns for e in World().heldout("val", 20)] == [e.turns for e in World().heldout("val", 20)]


def test_stage_1_has_captions_and_stage_2_sentences_with_what_they_rest_on():
    captions, asked = World().draw("pt", 0, 16, 4, 0), World().draw("sft", 0, 16, 4, 0)
    assert len(captions) == 16 and all(e.turns[0][0] == IMAGE * 3 and len(e.images) == 3 for e in captions)
    for e in asked:
        (sentence, answer), (why, because) = e.turns
        assert sentence.startswith(IMAGE * 3) and answer in World.answers and why == WHY
        assert len(because.split()) == 3 and set(because.split()) <= {*NUMBER, "yes", "no"}
    assert all(len(e.turns) == 1 for e in World().heldout("val", 12))


def test_plain_and_mixed_batches(nlvr):
    assert {e.family for e in data.load("nlvr", nlvr).draw("sft", 0, 8, 4, 0)} == {"all"}
    mixed = data.load("nlvr+world", nlvr)
    assert {e.family for e in mixed.draw("sft", 0, 8, 4, 0)} == set(FAMILIES)
    families = [e.family for e in mixed.draw("sft", mixed.AFTER, 8, 4, 0)]
    assert families.count("all") == 4 * 4 and len(families) == 8 * 4
    assert {e.family for e in mixed.heldout("world", 12)} == set(FAMILIES)
    assert {e.family for e in mixed.heldout("val")} == {"all"}
