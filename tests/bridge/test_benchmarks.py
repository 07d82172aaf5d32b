"""Benchmark files in the formats people have, scored by hand."""

import base64
import json
import re

import pytest
from benchmark_tables import picture, tsv
from helpers import ROOT
from PIL import Image
from test_eval import make_run

from bridge import benchmarks
from bridge.benchmarks import read, score

RUN = str(ROOT / "weights" / "shapes-mma")


@pytest.fixture
def choice(tmp_path):
    animal, colour = {"category": "animal"}, {"category": "colour", "A": "red", "B": "blue"}
    return tsv(tmp_path / "choice.tsv", [
        {"index": 1, "question": "What is this?", "hint": "Look well.", "A": "a cat", "B": "a dog",
         "answer": "B", **animal, "image": picture("red")},
        {"index": 2, "question": "And this?", "A": "a cat", "B": "a dog", "C": "a cow",
         "answer": "C", **animal, "image": 1},
        {"index": 3, "question": "Which colour?", **colour, "answer": "A",
         "image": [picture("red"), picture("blue")]},
        {"index": 4, "question": "Which?", **colour, "answer": "A", "image": picture("blue")},
    ])  # fmt: skip


def test_multiple_choice_by_hand(choice):
    questions = read(choice)
    assert [q.kind for q in questions] == ["choice"] * 4
    assert [len(q.example.images) for q in questions] == [1, 1, 2, 1]
    assert questions[0].example.turns[0][0] == (
        "<image>Look well.\nWhat is this?\nA. a cat\nB. a dog\nAnswer with the option's letter "
        "from the given choices directly."
    )
    assert questions[1].example.images == questions[0].example.images
    assert questions[2].example.turns[0][0].startswith("<image><image>")
    got = score(questions, ["B", "it is C", "blue", "who knows"])

    def part(accuracy, unparsed):
        return {"questions": 2, "accuracy": accuracy, "unparsed": unparsed}

    assert got == {
        "questions": 4, "strict: accuracy": 0.25, "strict: unparsed": 3,
        "strict: categories": {"animal": part(0.5, 1), "colour": part(0.0, 2)},
        "lenient: accuracy": 0.5, "lenient: unparsed": 1,
        "lenient: categories": {"animal": part(1.0, 0), "colour": part(0.0, 1)},
    }  # fmt: skip


ODD = ["accuracy", "easy questions", "a|b", "unparsed", "MME x", "", "category", "split", "1"]


@pytest.mark.parametrize("answer", ["A", "Yes", "red"])
def test_a_category_may_have_any_name(tmp_path, answer):
    """It is not taken for a score of ours; the answers are a choice, yes and no, or short."""
    options = {"A": "x", "B": "y"} if answer == "A" else {}
    rows = [
        {"index": k, "question": "q", "answer": answer, "image": picture("red"), "category": name,
         **options}
        for k, name in enumerate(ODD)
    ]  # fmt: skip
    questions = read(tsv(tmp_path / "x.tsv", rows))
    got = score(questions, [answer, *["B"] * 8])
    key, rule = ("soft accuracy", "") if answer == "red" else ("lenient: accuracy", "lenient: ")
    assert got[key] == pytest.approx(1 / 9)
    categories = got[f"{rule}categories"]
    assert {c: x["accuracy"] for c, x in categories.items()} == {c: c == "accuracy" for c in ODD}
    shown = re.sub(" +", " ", benchmarks.tables("f", got))
    assert f"| {key} | 11.1 % |" in shown
    for name in ODD[1:]:
        name = {"": "(none)", "a|b": r"a\|b"}.get(name, name)
        assert len(re.findall(rf"\n\| {re.escape(name)} \| 1 \|.* 0\.0 % \|\n", shown + "\n")) == 1


def test_a_row_without_options_is_an_open_question(choice, tmp_path):
    """As some of MMMU's."""
    rows = choice.read_text().splitlines()
    blank = "5\tHow many?\t\t\t\t{}\tanimal\t1\t"
    rows += [blank.format(answer) for answer in ("3", "['3.5', '7/2']", "3", ["4"] * 9 + ["5"])]
    choice.write_text("\n".join(rows) + "\n")
    questions = read(choice)
    assert [q.kind for q in questions] == ["choice"] * 4 + ["short"] * 4
    prompt = questions[4].example.turns[0][0]
    assert prompt.endswith("How many?\nAnswer the question using a single word or phrase.")
    got = score(questions, ["B", "B", "A", "A", "three", "7/2", "4", "5"])
    assert got["strict: accuracy"] == got["lenient: accuracy"] == pytest.approx((5 + 0.3) / 8)
    told = benchmarks.how(questions, 16)
    assert "(4 questions); right if equal to any" in told["parse rule"]
    assert "the people, each left out" in told["parse rule"]
    assert told["prompt (short)"] == prompt and told["prompt"] != prompt
    choice.write_text("\n".join([*rows[:5], blank.format("yes")]) + "\n")
    got = score(
        read(choice), ["B", "B", "A", "A", "yes"]
    )  # POPE's measures are of yes and no alone
    assert got["strict: accuracy"] == 0.8 and "strict: precision" not in got


@pytest.mark.parametrize("name", ["image_path", "question_id"])
def test_questions_of_mme_are_paired_by_name(tmp_path, name):
    """Not by their picture: two pairs have equal ones here."""
    rows = [
        {"index": k, "question": "Is it?", "answer": ("Yes", "No")[k % 2], "category": "color",
         "image": picture("red"), name: f"color/{k // 2}.jpg"}
        for k in range(4)
    ]  # fmt: skip
    questions = read(tsv(tmp_path / "MME.tsv", rows))
    got = score(questions, ["Yes", "No", "Yes", "Yes"])
    assert got["strict: acc+"] == 0.5 and got["strict: accuracy"] == 0.75


def test_yes_or_no_is_asked_for_once(tmp_path):
    """By the question itself, as MME's, or by us; pictures of POPE lie in a folder."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg")
    line = {"question_id": 1, "image": "a.jpg", "text": "Is there a cat?", "label": "yes"}
    (tmp_path / "pope.json").write_text(json.dumps(line))
    (pope,) = read(tmp_path / "pope.json")
    assert pope.example.images == [tmp_path / "a.jpg"]
    assert pope.example.turns == [("<image>Is there a cat?\nPlease answer yes or no.", "yes")]
    asks = "Is it so? Please answer yes or no."
    row = {"index": 0, "question": asks, "answer": "Yes", "image": picture("red")}
    (mme,) = read(tsv(tmp_path / "MME.tsv", [row]))
    assert mme.example.turns == [(f"<image>{asks}", "Yes")]


def test_a_run_is_scored_and_says_how(choice, tmp_path, capsys):
    benchmarks.main([RUN, str(choice), "--json", str(tmp_path / "out.json"), "--device", "cpu"])
    out, record = capsys.readouterr().out, json.loads((tmp_path / "out.json").read_text())
    for text in ("strict: accuracy", "at most 16 tokens", "<image>Look well.", "rule: strict"):
        assert text in out
    assert record["scores"] == score(read(choice), [a["given"] for a in record["answers"]])
    assert len(record["answers"]) == 4


@pytest.mark.parametrize("world,says", [("sounds", "soun"), ("shapes-text", "text")])
def test_a_run_that_saw_no_picture_is_refused(choice, tokenizer, tmp_path, world, says):
    run = make_run(tmp_path / "run", tokenizer, data=world)
    with pytest.raises(SystemExit, match=f"run was trained on {says}"):
        benchmarks.main([str(run), str(choice), "--device", "cpu"])


UNREADABLE = base64.b64encode(b"no picture" * 9).decode()


def test_no_error_shows_an_object_s_address(choice, capsys):
    choice.write_text(choice.read_text().replace(picture("blue"), UNREADABLE))
    benchmarks.main([RUN, str(choice), "--device", "cpu"])
    printed = capsys.readouterr().out
    assert "not a readable picture (cannot identify image file" in printed and "0x" not in printed


@pytest.mark.parametrize("images,says", [
    (["--images", "none"], "none: no such folder of pictures .check --images"),
    ([], "row 1: .*not a readable picture"),
])  # fmt: skip
def test_where_no_picture_can_be_read_there_is_no_score(tmp_path, images, says):
    row = {"index": 1, "question": "q", "answer": "x", "image": UNREADABLE}
    file, out = tsv(tmp_path / "x.tsv", [row, {**row, "index": 2}]), tmp_path / "out.json"
    with pytest.raises(SystemExit, match=says):
        benchmarks.main([RUN, str(file), *images, "--device", "cpu", "--json", str(out)])
    assert not out.exists()
