"""Your own pictures and dialogues: the reader of LLaVA's layout, its splits and its errors."""

import copy
import json
import random
from pathlib import Path

import pytest
from PIL import Image

import data
from data import DataError
from data import llava as llava_files
from data.families import SPLITS


def entry(image, message, answer):
    talk = [{"from": "human", "value": message}, {"from": "gpt", "value": answer}]
    return {"image": image, "conversations": talk}


def load(file, entries, **options):
    """The data set of entries that are written to the file."""
    file.write_text(json.dumps(entries))
    return data.load("llava", file, **options)


def shown(folder, splits=SPLITS) -> dict:
    """split -> its pictures."""
    return {s: {path for e in folder.heldout(s) for path in e.images} for s in splits}


def in_one_split(pictures: dict) -> int:
    """How many pictures there are: none stands in two splits, and no split is empty."""
    assert all(pictures.values())
    n = len(set().union(*pictures.values()))
    assert sum(map(len, pictures.values())) == n
    return n


def test_entries_are_dialogues_split_by_picture(llava):
    folder = data.load("llava", llava)
    examples = [e for split in SPLITS for e in folder.heldout(split)]
    assert len(examples) == 32 and in_one_split(shown(folder)) == 30
    two = next(e for e in examples if len(e.images) == 2)
    assert two.turns == [("<image>\n<image>\nAre these the same?", "No.")]
    lines = [json.dumps(e, ensure_ascii=False) for e in json.loads(llava.read_text())]
    llava.write_text("\r\n".join([*lines[:5], "", *lines[5:]]) + "\n", encoding="utf-8-sig")
    assert data.load("llava", llava).splits == folder.splits  # JSON Lines
    llava.write_text(lines[0] + "\n")
    (group,) = data.load("llava", llava).splits["train"]
    assert [len(example.turns) for example in group] == [2]


@pytest.mark.parametrize("content,message", [
    (b"{", "not readable as JSON"), (b"[]", "expected a list .*conversations.*, found none"),
    (b'{"data": [\n{"id": 1},\n{"id": 2}\n]}', "expected a list .*, found something else"),
    (b'{"id": 1, "image":\n["a.jpg"', "not readable as JSON .*line 2"),
    (b"\xff\xfe\x00", "not readable as JSON"),
    (b"[" + 5000 * b"9" + b"]", "not readable as JSON"), (None, "no such file .check --source"),
    (b"[1, 2]", "entry 1: expected an object"),  # not one is good
])  # fmt: skip
def test_a_damaged_file_is_named(tmp_path, content, message):
    file = tmp_path / "data.json"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DataError, match=f"data.json: {message}"):
        data.load("llava", file)


def left_out(file, message: str) -> None:
    """Of 32 entries one is an error that says so, or, if not strict, left out in the same words."""
    with pytest.raises(DataError, match=f"data.json: {message}") as strict:
        data.load("llava", file, strict=True)
    folder = data.load("llava", file)
    report = folder.read_pictures(32)
    assert report.startswith("1 of 32 entries are damaged") and str(strict.value) in report
    assert sum(len(folder.heldout(split)) for split in SPLITS) == 31


@pytest.mark.parametrize("change,message", [
    (lambda e, talk: 3, "expected an object"),
    (lambda e, talk: e.pop("conversations") and None, r"\(id '4'\): conversations must be a list"),
    (lambda e, talk: talk.pop() and None, "conversations must be"),
    (lambda e, talk: talk.reverse(), "message 0 should be from 'human'"),
    (lambda e, talk: talk[1].pop("value") and None, "message 1 must be"),
    (lambda e, talk: talk[0].update({"from": ["human"]}), "message 0 should be from"),
    (lambda e, talk: talk[0].update(value="<image>\ud83d"), "surrogate"),
    (lambda e, talk: talk[3].update(value=" \n"), r"message 3: the answer is empty"),
    (lambda e, talk: talk.insert(0, {"from": "system", "value": "You are a cat."}),
     "message 0 is from 'system': take it out, it is not used"),
    (lambda e, talk: talk[1].update(value="<image>"), "an answer cannot hold"),
    (lambda e, talk: e.pop("image") and None, "1 <image> in the messages, but 0 pictures"),
    (lambda e, talk: e.update(image="missing.png"), "no such picture .*missing.png .set --images"),
    (lambda e, talk: e.update(image="../../etc/passwd"), "outside .*set --images"),
    (lambda e, talk: e.update(image=[3]), "image must be a file name"),
    (lambda e, talk: e.update(image="a\0.png"), "cannot be a file's name"),
    (lambda e, talk: e.update(image="loop.png"), "loop.png"),
])  # fmt: skip
def test_a_damaged_entry_is_an_error_or_left_out(llava, change, message):
    (llava.parent / "loop.png").symlink_to("loop.png")
    entries = json.loads(llava.read_text())
    entries[4] = change(entries[4], entries[4]["conversations"]) or entries[4]
    llava.write_text(json.dumps(entries))
    left_out(llava, f"entry 4.*{message}")


def test_a_damaged_line_is_a_damaged_entry_and_blank_ones_count(llava):
    lines = [json.dumps(e) for e in json.loads(llava.read_text())]
    lines[4] = '\n\n{"id": 1} {"id": 2}'
    llava.write_text("\n".join(lines))
    left_out(llava, "line 7: not readable as JSON")


def test_captions_of_their_own_for_stage_1(llava, tokenizer):
    """Those of held-out pictures are not used and counted apart, which is no damage; nor are linked
    ones, of which one is held out."""
    folder = data.load("llava", llava)
    held, *_ = (e.images[0].name for e in folder.heldout("test") if e.images)
    a, b, *_ = (e.images[0].name for e in folder.heldout("train") if len(e.images) == 1)
    names = [[f"{i}.{'jpg' if i % 2 else 'png'}"] for i in range(30)] + [[held, a], [a, b]]
    entries = [entry(some, "<image>" * len(some), f"a caption {some}") for some in names]
    entries[-1]["conversations"][0]["value"] += " word" * 200
    captions = llava.parent / "captions.json"
    captions.write_text(json.dumps(entries))
    folder = data.load("llava", llava, strict=True, pt_source=captions)
    for stage in ("pt", "sft"):
        drawn = [e.turns[0][1].startswith("a caption") for e in folder.draw(stage, 7, 30, 2, 0)]
        assert drawn and {*drawn} == {stage == "pt"}
    pictures = shown(folder, (*SPLITS, "pt"))
    assert pictures["pt"] == pictures["train"]
    assert [len(e.images) for e in folder.heldout("pt")].count(2) == 1
    n = len(pictures["val"] | pictures["test"]) + 1
    assert folder.read_pictures(32) == f"{n} captions of held-out pictures are not used"
    assert "a caption" in " ".join(folder.texts())
    assert folder.drop_unusable(tokenizer, 4, 128) == (1, 1)  # the caption behind many words


def test_errors_of_captions_name_the_options_that_were_given(llava, tmp_path):
    for paths, message in (
        ({"pt_source": tmp_path / "nope.json"}, "nope.json: no such file .check --pt-source"),
        ({"pt_images": tmp_path / "nope"}, "nope: no such folder of pictures .check --pt-images"),
        ({"pt_images": tmp_path}, "no such picture .*set --pt-images to the folder"),
    ):
        with pytest.raises(DataError, match=message):
            data.load("llava", llava, **{"pt_source": llava, **paths}, strict=True)
    with pytest.raises(DataError, match="--pt-images belongs to --pt-source FILE"):
        data.load("llava", llava, pt_images=tmp_path)
    with pytest.raises(DataError, match="nope: no such folder of pictures .check --images"):
        data.load("llava", llava, images=tmp_path / "nope")


def test_the_split_follows_the_names_alone(llava, tmp_path, monkeypatch):
    def names(source, images=None) -> dict:
        pictures = shown(data.load("llava", source, images=images))
        return {split: {path.name for path in paths} for split, paths in pictures.items()}

    base = names(llava)
    # By a hash of them; it is not to change, for runs are compared on what it holds out
    assert base["test"] == {"11.jpg", "14.png", "27.jpg"}
    (other := tmp_path / "other.json").write_text(json.dumps(json.loads(llava.read_text())[::-1]))
    assert names(other, llava.parent) == base
    monkeypatch.chdir(llava.parent)
    assert names(Path(llava.name)) == base


@pytest.mark.parametrize("n_linked, n_single, least", [
    (1, 2, (1, 1, 1)), (59, 2, (1, 1, 1)), (59, 5, (1, 1, 4)), (14, 15, (10, 1, 1)),
])  # fmt: skip
def test_pictures_that_hang_together_stay_together(tmp_path, n_linked, n_single, least):
    """A chain of entries of two pictures, and pictures alone: no split is empty, be the chain more
    than a tenth of them or nearly all."""
    linked = [[f"a_{i}.png", f"a_{i + 1}.png"] for i in range(n_linked)]
    names = linked + [[f"{i}.png"] for i in range(n_single)]
    for name in {name for some in names for name in some}:
        (tmp_path / name).touch()
    entries = [entry(some, "<image>" * len(some), "yes") for some in names]
    folder = load(tmp_path / "data.json", entries)
    assert in_one_split(shown(folder)) == n_linked + 1 + n_single
    groups = [len(folder.splits[s]) for s in ("train", "val", "test")]
    assert all(n >= few for n, few in zip(groups, least)) and sum(groups) == 1 + n_single


@pytest.mark.parametrize("links", [False, True])
def test_a_picture_of_several_names_is_in_one_split(llava, links):
    """Copies of it, which are counted, or links, as a hub's cache has them; of captions too. A file
    as long as another is no copy."""
    (names := llava.parent / "names").mkdir()
    (names / "all").symlink_to(names)
    entries = json.loads(llava.read_text())[:30]
    again = [{**e, "image": f"again{i}.png"} for i, e in enumerate(entries)]
    inside = [{**e, "image": f"all/{e['image']}"} for e in entries]
    for e, original in zip(entries + again, entries + entries):
        file, name = llava.parent / original["image"], names / e["image"]
        name.symlink_to(file) if links else name.write_bytes(file.read_bytes())
    content = file.read_bytes()
    (names / "other.png").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    other = entry("../names/other.png", "<image>", "of the same size")
    (captions := llava.parent / "captions.json").write_text(json.dumps(entries))
    folder = load(names / "data.json", [*entries, *again, *inside, other], pt_source=captions)
    pictures = shown(folder, (*SPLITS, "pt"))
    content = {split: {path.read_bytes() for path in pictures[split]} for split in pictures}
    captioned = content.pop("pt")
    assert in_one_split(content) == 31 and captioned <= content["train"]
    assert len(captioned) >= len(content["train"]) - 1  # the other one has no caption
    said = "60 pictures are copies of others under other names: they are in one split"
    report = folder.read_pictures(32)
    assert (said in report) == ("copies" in report) == (not links)


def test_no_name_leads_out_of_the_folder_of_pictures(llava, tmp_path):
    (elsewhere := tmp_path / "elsewhere").mkdir()
    (elsewhere / "all").symlink_to(llava.parent)
    for name in ("../llava/0.png", str(llava.parent / "0.png"), "all/../../llava/0.png"):
        with pytest.raises(DataError, match="entry 0: the picture .* is outside"):
            load(elsewhere / "data.json", [entry(name, "<image>", "out")])
    assert load(elsewhere / "data.json", [entry("all/0.png", "<image>", "in")])


def places(value) -> list:
    """Every place in a JSON value, as (container, key)."""
    keys = range(len(value)) if isinstance(value, list) else ()
    keys = value if isinstance(value, dict) else keys
    return [place for key in keys for place in ((value, key), *places(value[key]))]


STRANGE = [
    None, True, 0, -1, 1e308, "", "x", "<image>", "<image><image>", "../../etc/passwd",
    "/etc/passwd", "a\x00b", "\ud800", "a" * 5000, [], {}, [[]], {"from": "human"},
    ["a.png", "a.png"], "human",
]  # fmt: skip


def test_of_damaged_entries_every_one_is_read_or_an_error(tmp_path):
    """By the thousand; never another exception, or a picture out of the folder."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    whole = {"id": "1", "category": "c", **entry("a.png", "<image>\nwhat?", "red")}
    whole["conversations"] += entry("", "sure?", "yes")["conversations"]
    r, good, bad = random.Random(0), 0, 0
    for _ in range(3000):
        changed = copy.deepcopy(whole)
        for _ in range(r.choice((1, 1, 2))):
            container, key = r.choice(places(changed))
            if r.random() < 0.3:
                del container[key]
            else:
                container[key] = copy.deepcopy(r.choice(STRANGE))
        try:
            example = llava_files.read_entry(changed, "file: entry 0", tmp_path)
            assert all(path.is_relative_to(tmp_path) for path in example.images)
            assert all(isinstance(text, str) for turn in example.turns for text in turn)
            good += 1
        except DataError as error:
            assert str(error).startswith("file: entry 0") and "\n" not in str(error)
            bad += 1
    assert good > 100 and bad > 1000
