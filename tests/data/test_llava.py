"""Your own pictures and dialogues: the reader of LLaVA's layout, its splits and its errors."""

import json

import pytest

import data
from data import DataError
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


def in_one_split(folder) -> int:
    """How many pictures there are: none stands in two splits, and no split is empty."""
    pictures = shown(folder).values()
    assert all(pictures) and sum(map(len, pictures)) == len(set().union(*pictures))
    return sum(map(len, pictures))


def test_entries_are_dialogues_split_by_picture(llava):
    folder = data.load("llava", llava)
    examples = [e for split in SPLITS for e in folder.heldout(split)]
    assert len(examples) == 32 and in_one_split(folder) == 30
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
    (b"[" + 5000 * b"9" + b"]", "not readable as JSON"), (None, "no such file"),
    (b"[1, 2]", "entry [01]: expected an object"),  # not one is good
])  # fmt: skip
@pytest.mark.parametrize("strict", [False, True])
def test_a_damaged_file_is_named(tmp_path, content, message, strict):
    file = tmp_path / "data.json"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DataError, match=f"data.json: {message}"):
        data.load("llava", file, strict=strict)


def left_out(file, message: str) -> None:
    """Of 32 entries one is an error that says so, or, if not strict, left out in the same words."""
    with pytest.raises(DataError, match=f"data.json: {message}") as strict:
        data.load("llava", file, strict=True)
    folder = data.load("llava", file)
    head = "1 of 32 entries are damaged and left out (train.py --strict makes them an error):"
    report = folder.read_pictures(32)
    assert report.startswith(head) and str(strict.value) in report
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
    (lambda e, talk: e.update(image="missing.png"), "no such picture .*missing.png"),
    (lambda e, talk: e.update(image="../../etc/passwd"), "outside .*set --images"),
    (lambda e, talk: e.update(image=[3]), "image must be a file name"),
    (lambda e, talk: e.update(image="a\0.png"), "cannot be a file's name"),
])  # fmt: skip
def test_a_damaged_entry_is_an_error_or_left_out(llava, change, message):
    entries = json.loads(llava.read_text())
    entries[4] = change(entries[4], entries[4]["conversations"]) or entries[4]
    llava.write_text(json.dumps(entries))
    left_out(llava, f"entry 4.*{message}")


@pytest.mark.parametrize("k,damaged", [(0, "oops"), (4, '{"id": 1} {"id": 2}'), (31, '{"id"')])
def test_a_damaged_line_is_a_damaged_entry_and_blank_ones_count(llava, k, damaged):
    lines = [json.dumps(e) for e in json.loads(llava.read_text())]
    lines[k] = f"\n\n{damaged}"
    llava.write_text("\n".join(lines))
    left_out(llava, f"line {k + 3}: not readable as JSON")


def test_captions_of_their_own_for_stage_1(llava, tokenizer):
    """Those of held-out pictures are not used and counted apart, which is no damage; nor are linked
    ones, of which one is held out."""
    folder = data.load("llava", llava)
    held, *_ = (e.images[0].name for e in folder.heldout("test") if e.images)
    a, b, *_ = (e.images[0].name for e in folder.heldout("train") if len(e.images) == 1)
    names = [[f"{i}.{'jpg' if i % 2 else 'png'}"] for i in range(30)] + [[held, a], [a, b]]
    captions = llava.parent / "captions.json"
    entries = [entry(some, "<image>" * len(some), f"a caption {some}") for some in names]
    entries[-1]["conversations"][0]["value"] += " word" * 200
    captions.write_text(json.dumps(entries))
    folder = data.load("llava", llava, strict=True, pt_source=captions)
    drawn = {
        stage: [e.turns[0][1].startswith("a caption") for e in folder.draw(stage, 7, 30, 2, 0)]
        for stage in ("pt", "sft")
    }
    assert all(drawn["pt"]) and not any(drawn["sft"])
    pictures = shown(folder, (*SPLITS, "pt"))
    assert pictures["pt"] == pictures["train"]
    assert [len(e.images) for e in folder.heldout("pt")].count(2) == 1
    n = len(pictures["val"] | pictures["test"]) + 1
    assert folder.read_pictures(32) == f"{n} captions of held-out pictures are not used"
    assert "a caption" in " ".join(folder.texts())
    assert folder.drop_unusable(tokenizer, 4, 128) == (1, 1)  # the caption behind many words
    with pytest.raises(DataError, match="--pt-images belongs to --pt-source FILE"):
        data.load("llava", llava, pt_images=llava.parent)


@pytest.mark.parametrize("prefix", ["", "pt_"])
def test_errors_name_the_option_that_was_given(llava, tmp_path, prefix):
    option = "--" + prefix.replace("_", "-")
    for paths, message in (
        ({"source": tmp_path / "nope.json"}, f"nope.json: no such file .check {option}source"),
        ({"images": tmp_path / "nope"}, f"nope: no such folder of pictures .check {option}images"),
        ({"images": tmp_path}, f"no such picture .*set {option}images to the folder"),
    ):
        paths = {prefix + name: path for name, path in {"source": llava, **paths}.items()}
        with pytest.raises(DataError, match=message):
            data.load("llava", **{"source": llava, **paths}, strict=True)


def test_the_split_follows_the_names_alone(llava, tmp_path, monkeypatch):
    def split(source, images=None):
        folder = data.load("llava", source, images=images)
        return {
            s: {tuple(p.name for p in e.images) + e.turns[0] for e in folder.heldout(s)}
            for s in SPLITS
        }

    base = split(llava)
    # By a hash of them; it is not to change, for runs are compared on what it holds out
    assert sorted(name for name, *_ in base["test"]) == ["11.jpg", "14.png", "27.jpg"]
    entries = json.loads(llava.read_text())
    (tmp_path / "elsewhere").mkdir()
    other = tmp_path / "elsewhere" / "other.json"
    other.write_text(json.dumps(entries[::-1]), encoding="utf-8-sig")
    assert split(other, llava.parent) == base
    monkeypatch.chdir(llava.parent)
    assert split(llava.relative_to(llava.parent)) == base


def test_copies_of_a_picture_are_in_one_split_and_counted(llava):
    """Whatever their names, those of captions too; a file as long as another is no copy."""
    entries = json.loads(llava.read_text())[:30]
    copies = [{**e, "image": f"copy{i}.png"} for i, e in enumerate(entries[:25])]
    for e, copy in zip(entries, copies):
        content = (llava.parent / e["image"]).read_bytes()
        (llava.parent / copy["image"]).write_bytes(content)
    (llava.parent / "other.png").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    captions = llava.parent / "captions.json"
    captions.write_text(json.dumps([entry(e["image"], "<image>", "a copy") for e in copies]))
    other = {**entries[0], "image": "other.png"}
    folder = load(llava, [*entries, *copies, other], pt_source=captions)
    pictures = shown(folder, (*SPLITS, "pt"))
    content = {s: {path.read_bytes() for path in paths} for s, paths in pictures.items()}
    assert all(content.values()) and sum(len(content[s]) for s in SPLITS) == 31
    assert not content["pt"] & (content["val"] | content["test"])
    report = folder.read_pictures(32)
    assert "25 pictures are copies of others under other names: they are in one split" in report
    assert "captions of held-out pictures are not used" in report


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
    assert in_one_split(folder) == n_linked + 1 + n_single
    groups = [len(folder.splits[s]) for s in ("train", "val", "test")]
    assert all(n >= few for n, few in zip(groups, least)) and sum(groups) == 1 + n_single


def test_pictures_may_be_links_but_no_name_leads_out_of_the_folder(llava, tmp_path):
    """A folder of links, as a hub's cache has them. Names of one picture stay in one split."""
    (links := tmp_path / "elsewhere" / "links").mkdir(parents=True)
    entries = json.loads(llava.read_text())
    for i, e in enumerate(entries[:30]):
        (links / e["image"]).symlink_to(llava.parent / e["image"])
        (links / f"again{i}.png").symlink_to(llava.parent / e["image"])
    (links / "all").symlink_to(llava.parent)
    entries += [{**e, "image": f"again{i}.png"} for i, e in enumerate(entries[:30])]
    entries += [{**e, "image": f"all/{e['image']}"} for e in entries[:30]]
    entries += [entry(f"../{links.name}/0.png", "<image>", "the same picture")]
    folder = load(links / "data.json", entries, strict=True, pt_source=llava)
    pictures = {s: {p.resolve() for p in paths} for s, paths in shown(folder).items()}
    assert all(pictures.values()) and sum(map(len, pictures.values())) == 30
    assert sum(len(folder.heldout(s)) for s in SPLITS) == 93
    assert "copies" not in folder.read_pictures(32)
    # The captions show the same pictures without a link
    assert shown(folder, ["pt"])["pt"] == pictures["train"]

    # Splits follow the links' names, not where they lie or lead
    names = {s: {path.name for path in paths} for s, paths in shown(folder).items()}
    links = links.rename(tmp_path / "links")
    moved = shown(data.load("llava", links / "data.json"))
    assert {s: {path.name for path in paths} for s, paths in moved.items()} == names
    (links / "loop.png").symlink_to("loop.png")
    outside = "the picture .* is outside"
    for name, message in (
        ("loop.png", ".*loop.png"), ("../llava/0.png", outside),
        (str(llava.parent / "0.png"), outside), ("all/../../llava/0.png", outside),
    ):  # fmt: skip
        with pytest.raises(DataError, match=f"entry 0: {message}"):
            load(links / "data.json", [entry(name, "<image>", "out")])
