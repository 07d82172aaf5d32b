"""Your own pictures and dialogues: the reader of LLaVA's layout, its splits and its errors."""

import json

import pytest

import data
from data import DataError
from data.families import SPLITS


def entry(image, message, answer):
    talk = [{"from": "human", "value": message}, {"from": "gpt", "value": answer}]
    return {"image": image, "conversations": talk}


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
    """change(entry 4, its messages), then write the file again."""

    def damage(file):
        entries = json.loads(file.read_text())
        change(entries[4], entries[4]["conversations"])
        file.write_text(json.dumps(entries))

    return damage


def replaced(file):
    entries = json.loads(file.read_text())
    entries[4] = 3
    file.write_text(json.dumps(entries))


@pytest.mark.parametrize("damage,message", [
    (lambda f: f.write_text("{"), "data.json: not readable as JSON"),
    (lambda f: f.write_text("[]"), r"data.json: expected a list .*conversations.*, found none"),
    (lambda f: f.write_text("{}"), "data.json: expected a list .*, found something else"),
    (lambda f: f.write_text('{"id": 1, "image":\n["a.jpg"'), "not readable as JSON .*line 2"),
    (lambda f: f.write_text('{"data": [\n{"id": 1},\n{"id": 2}\n]}'), "found something else"),
    (lambda f: f.write_bytes(b"\xff\xfe\x00"), "data.json: not readable as JSON"),
    (lambda f: f.write_text("[" + "9" * 5000 + "]"), "data.json: not readable as JSON"),
    (lambda f: f.unlink(), "data.json: no such file"),
    (replaced, "entry 4: expected an object"),
    (edit(lambda e, talk: e.pop("conversations")),
     r"entry 4 \(id '4'\): conversations must be a list"),
    (edit(lambda e, talk: talk.pop()), "entry 4 .*conversations must be"),
    (edit(lambda e, talk: talk.reverse()), "entry 4 .*message 0 should be from 'human'"),
    (edit(lambda e, talk: talk[1].pop("value")), "entry 4 .*message 1 must be"),
    (edit(lambda e, talk: talk[0].update({"from": ["human"]})),
     "entry 4 .*message 0 should be from"),
    (edit(lambda e, talk: talk[0].update(value="<image>\ud83d")), "entry 4 .*surrogate"),
    (edit(lambda e, talk: talk[3].update(value=" \n")),
     r"entry 4 \(id '4'\): message 3: the answer is empty"),
    (edit(lambda e, talk: talk.insert(0, {"from": "system", "value": "You are a cat."})),
     "entry 4 .*message 0 is from 'system': take it out, it is not used"),
    (edit(lambda e, talk: talk[1].update(value="<image>")), "entry 4 .*an answer cannot hold"),
    (edit(lambda e, talk: e.pop("image")), "entry 4 .*1 <image> in the messages, but 0 pictures"),
    (edit(lambda e, talk: e.update(image="missing.png")),
     "entry 4 .*no such picture .*missing.png"),
    (edit(lambda e, talk: e.update(image="../../etc/passwd")), "entry 4 .*outside .*set --images"),
    (edit(lambda e, talk: e.update(image=[3])), "entry 4 .*image must be a file name"),
    (edit(lambda e, talk: e.update(image=0)), "entry 4 .*image must be a file name"),
    (edit(lambda e, talk: e.update(image="a\0.png")), "entry 4 .*cannot be a file's name"),
    (edit(lambda e, talk: e.update(image="x" * 300)),
     "entry 4 .*(cannot be a file's name|no such picture)"),
])  # fmt: skip
def test_llava_damaged(llava, damage, message):
    damage(llava)
    with pytest.raises(DataError, match=message) as strict:
        data.load("llava", llava, strict=True)
    if "entry 4" in message:  # without --strict it is left out, and reported in the same words
        folder = data.load("llava", llava)
        report = folder.read_pictures(32)
        head = "1 of 32 entries are damaged and left out (train.py --strict makes them an error):"
        assert report.startswith(head) and str(strict.value) in report
        assert sum(len(folder.heldout(split)) for split in SPLITS) == 31


def test_json_lines_are_read_as_a_list(llava):
    entries = data.load("llava", llava)
    lines = [json.dumps(e, ensure_ascii=False) for e in json.loads(llava.read_text())]
    llava.write_text("\r\n".join([*lines[:5], "", *lines[5:]]) + "\n", encoding="utf-8-sig")
    assert data.load("llava", llava).splits == entries.splits


def test_json_lines_may_be_one_line(llava):
    first = json.loads(llava.read_text())[0]
    llava.write_text(json.dumps(first) + "\n")
    (group,) = data.load("llava", llava).splits["train"]
    assert [len(example.turns) for example in group] == [2]


@pytest.mark.parametrize("damaged", ["oops", '{"id"', "{oops}", '{"id": 1} {"id": 2}'])
@pytest.mark.parametrize("k", [0, 4, 31])
def test_a_damaged_line_is_a_damaged_entry_and_blank_ones_count(llava, k, damaged):
    lines = [json.dumps(e) for e in json.loads(llava.read_text())]
    lines[k] = f"\n\n{damaged}"
    llava.write_text("\n".join(lines))
    with pytest.raises(DataError, match=f"data.json: line {k + 3}: not readable as JSON") as strict:
        data.load("llava", llava, strict=True)
    folder = data.load("llava", llava)
    report = folder.read_pictures(32)
    assert report.startswith("1 of 32 entries are damaged") and str(strict.value) in report
    assert sum(len(folder.heldout(split)) for split in SPLITS) == 31


def test_all_damaged_is_an_error(llava):
    llava.write_text(json.dumps([1, 2]))
    with pytest.raises(DataError, match="entry 1: expected an object"):
        data.load("llava", llava)


def test_captions_of_their_own_for_stage_1(llava, tokenizer):
    names = [f"{i}.{'jpg' if i % 2 else 'png'}" for i in range(30)]
    captions = llava.parent / "captions.json"
    entries = [entry(name, "<image>", f"a caption of {i}") for i, name in enumerate(names)]
    captions.write_text(json.dumps(entries))
    folder = data.load("llava", llava, pt_source=captions)
    drawn = {
        stage: [e for step in range(20) for e in folder.draw(stage, step, 4, 2, 0)]
        for stage in ("pt", "sft")
    }
    assert all(e.turns[0][1].startswith("a caption") for e in drawn["pt"])
    others = drawn["sft"] + folder.heldout("val") + folder.heldout("test")
    assert not any(e.turns[0][1].startswith("a caption") for e in others)
    held = {image for split in ("val", "test") for e in folder.heldout(split) for image in e.images}
    seen = {image for e in drawn["pt"] for image in e.images}
    assert held and seen and not held & seen and len(held) + len(seen) == 30
    assert folder.read_pictures(32) == f"{len(held)} captions of held-out pictures are not used"
    assert "a caption of" in " ".join(folder.texts())
    with pytest.raises(DataError, match="no training row keeps an answer"):
        folder.drop_unusable(tokenizer, 16, 18)
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


def test_of_linked_captions_only_those_of_held_out_pictures_are_not_used(llava):
    """That a picture is held out is no damage: it is counted apart, also with --strict."""
    folder = data.load("llava", llava)
    held, *_ = (e.images[0].name for e in folder.heldout("test") if e.images)
    a, b, c, d, *_ = (e.images[0].name for e in folder.heldout("train") if len(e.images) == 1)
    captions = llava.parent / "captions.json"
    shown = [[held, a], [a, b], [b, c], [d]]
    entries = [entry(names, "<image>" * len(names), "a caption") for names in shown]
    captions.write_text(json.dumps(entries))
    folder = data.load("llava", llava, strict=True, pt_source=captions)
    kept = [[path.name for path in e.images] for e in folder.heldout("pt")]
    assert kept == [[a, b], [b, c], [d]]
    assert folder.read_pictures(32) == "1 captions of held-out pictures are not used"
    folder.skipped.by_kind["malformed"] = ["entry 3: is damaged"]
    for brief in (False, True):
        report = folder.read_pictures(32, brief)
        assert report.startswith("1 of 37 entries are damaged")
        assert report.endswith("1 captions of held-out pictures are not used")
        assert ("\n" in report) != brief


def test_the_llava_split_follows_the_names_alone(llava, tmp_path, monkeypatch):
    def split(source, images=None):
        folder = data.load("llava", source, images=images)
        return {
            s: {tuple(p.name for p in e.images) + e.turns[0] for e in folder.heldout(s)}
            for s in SPLITS
        }

    base = split(llava)
    entries = json.loads(llava.read_text())
    (tmp_path / "elsewhere").mkdir()
    other = tmp_path / "elsewhere" / "other.json"
    other.write_text(json.dumps(entries[::-1]), encoding="utf-8-sig")
    assert split(other, llava.parent) == base
    monkeypatch.chdir(llava.parent)
    assert split(llava.relative_to(llava.parent)) == base
    for i in range(15):  # the same picture by another name
        entries.append({**entries[i], "image": f"../{llava.parent.name}/{entries[i]['image']}"})
    llava.write_text(json.dumps(entries))
    folder = data.load("llava", llava)
    pictures = [{p for e in folder.heldout(s) for p in e.images} for s in SPLITS]
    assert sum(map(len, pictures)) == len(set().union(*pictures))


def test_copies_of_a_picture_are_in_one_split_and_counted(llava):
    """Whatever their names, those of captions too; only files of one size are compared."""
    entries = json.loads(llava.read_text())[:30]
    copies = [{**e, "image": f"copy{i}.png"} for i, e in enumerate(entries[:25])]
    for e, copy in zip(entries, copies):
        content = (llava.parent / e["image"]).read_bytes()
        (llava.parent / copy["image"]).write_bytes(content)
    other = bytearray(content)
    other[-1] ^= 1  # as long, and another file
    (llava.parent / "other.png").write_bytes(other)
    llava.write_text(json.dumps([*entries, *copies, {**entries[0], "image": "other.png"}]))
    captions = llava.parent / "captions.json"
    captions.write_text(json.dumps([entry(e["image"], "<image>", "a copy") for e in copies]))
    folder = data.load("llava", llava, pt_source=captions)
    shown = {s: {e.images[0] for e in folder.heldout(s)} for s in (*SPLITS, "pt")}
    content = {s: {path.read_bytes() for path in paths} for s, paths in shown.items()}
    assert all(content.values()) and sum(len(content[s]) for s in SPLITS) == 31
    assert not content["pt"] & (content["val"] | content["test"])
    report = folder.read_pictures(32)
    assert "25 pictures are copies of others under other names: they are in one split" in report
    assert "captions of held-out pictures are not used" in report


def test_a_large_group_of_pictures_is_trained_on(llava):
    entries = json.loads(llava.read_text())
    for i in range(14):  # 0.png - 1.jpg - ... - 14.png hang together
        pair = [entries[i]["image"], entries[i + 1]["image"]]
        entries.append(entry(pair, "<image><image>", "two"))
    llava.write_text(json.dumps(entries))
    folder = data.load("llava", llava)
    n = {s: len({p for e in folder.heldout(s) for p in e.images}) for s in SPLITS}
    assert n["train"] > 20 and 1 <= n["val"] <= 3 and 1 <= n["test"] <= 3


@pytest.mark.parametrize("n_single", [2, 5])
def test_no_split_is_empty_beside_a_very_large_group(tmp_path, n_single):
    """59 entries of two pictures hang together: a tenth of all pictures is more than the rest."""
    linked = [[f"a_{i}.png", f"a_{i + 1}.png"] for i in range(59)]
    shown = linked + [[f"{i}.png"] for i in range(n_single)]
    for name in {name for names in shown for name in names}:
        (tmp_path / name).touch()
    entries = [entry(names, "<image>" * len(names), "yes") for names in shown]
    (tmp_path / "data.json").write_text(json.dumps(entries))
    splits = data.load("llava", tmp_path / "data.json").splits
    assert [len(splits[s]) for s in ("train", "val", "test")] == [1, 1, n_single - 1]


def test_pictures_may_be_links_but_no_name_leads_out_of_the_folder(llava, tmp_path):
    """A folder of links, as a hub's cache has them. Two names of one picture stay in one split."""
    (links := tmp_path / "elsewhere" / "links").mkdir(parents=True)
    entries = json.loads(llava.read_text())
    for i, e in enumerate(entries[:30]):
        (links / e["image"]).symlink_to(llava.parent / e["image"])
        (links / f"again{i}.png").symlink_to(llava.parent / e["image"])
    (links / "all").symlink_to(llava.parent)
    entries += [{**e, "image": f"again{i}.png"} for i, e in enumerate(entries[:30])]
    entries += [{**e, "image": f"all/{e['image']}"} for e in entries[:30]]
    entries += [entry(f"../{links.name}/0.png", "<image>", "the same picture")]
    (links / "data.json").write_text(json.dumps(entries))
    folder = data.load("llava", links / "data.json", strict=True, pt_source=llava)
    splits = {s: {p.resolve() for e in folder.heldout(s) for p in e.images} for s in SPLITS}
    assert all(splits.values()) and sum(map(len, splits.values())) == 30
    assert sum(len(folder.heldout(s)) for s in SPLITS) == 93
    captioned = {path for e in folder.heldout("pt") for path in e.images}
    assert captioned == splits["train"]  # the same pictures without a link
    assert folder.read_pictures(32).endswith("captions of held-out pictures are not used")

    def names(folder):
        return {s: {p.name for e in folder.heldout(s) for p in e.images} for s in SPLITS}

    before = names(folder)  # follow the links' names, not where they lie or lead
    links = links.rename(tmp_path / "links")
    assert names(data.load("llava", links / "data.json")) == before
    (links / "loop.png").symlink_to("loop.png")
    (links / "data.json").write_text(json.dumps([entry("loop.png", "<image>", "none")]))
    with pytest.raises(DataError, match="entry 0: .*loop.png"):
        data.load("llava", links / "data.json")
    for name in ("../llava/0.png", str(llava.parent / "0.png"), "all/../../llava/0.png"):
        (links / "data.json").write_text(json.dumps([entry(name, "<image>", "out")]))
        with pytest.raises(DataError, match="entry 0: the picture .* is outside"):
            data.load("llava", links / "data.json")
