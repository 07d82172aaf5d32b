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
    overall, _, by_category = benchmarks.tables("f", got).partition("\n\n")
    assert re.search(rf"\| {key} +\| +11.1 % \|", overall)
    lines = [re.sub(" +", " ", line) for line in by_category.splitlines()]
    assert lines[0].endswith(f"| {rule}accuracy |")
    for name in ODD[1:]:
        shown = {"": "(none)", "a|b": r"a\|b"}.get(name, name)
        assert sum(line.startswith(f"| {shown} | 1 |") for line in lines) == 1
        assert any(line.startswith(f"| {shown} |") and line.endswith(" 0.0 % |") for line in lines)


def test_a_row_without_options_is_an_open_question(choice, tmp_path):
    """As some of MMMU's."""
    rows = choice.read_text().splitlines()
    blank = "5\tHow many?\t\t\t\t{}\tanimal\t1\t"
    rows += [blank.format(answer) for answer in ("3", "['3.5', '7/2']", "3")]
    choice.write_text("\n".join(rows) + "\n")
    questions = read(choice)
    assert [q.kind for q in questions] == ["choice"] * 4 + ["short"] * 3
    prompt = questions[4].example.turns[0][0]
    assert prompt.endswith("How many?\nAnswer the question using a single word or phrase.")
    got = score(questions, ["B", "B", "A", "A", "three", "7/2", "4"])
    assert got["strict: accuracy"] == got["lenient: accuracy"] == 5 / 7
    told = benchmarks.how(questions, 16)
    assert "(4 questions); right if equal to any" in told["parse rule"]
    assert told["prompt (short)"] == prompt and told["prompt"] != prompt


def test_mme_by_hand(tmp_path):
    rows, pictures = [], (("color", "red"), ("color", "blue"), ("code_reasoning", "green"))
    for k, (category, colour) in enumerate(pictures):
        ask = {"category": category, "question": "Is it so? Please answer yes or no."}
        rows += [
            {"index": 2 * k, **ask, "answer": "Yes", "image": picture(colour)},
            {"index": 2 * k + 1, **ask, "answer": "No", "image": 2 * k},
        ]
    questions = read(tsv(tmp_path / "MME.tsv", rows))
    assert questions[0].example.turns[0][0] == "<image>Is it so? Please answer yes or no."
    got = score(questions, ["Yes", "No", "Yes", "Yes", "no", "No"])
    # color: 3 of 4 right, 1 of 2 pictures; code_reasoning: 1 of 2, 0 of 1 pictures
    assert got["strict: categories"]["color"]["MME score"] == 125
    assert got["strict: accuracy"] == pytest.approx(4 / 6)
    assert got["strict: acc+"] == pytest.approx(1 / 3)
    assert got["strict: MME perception"] == pytest.approx(75 + 50)
    assert got["strict: MME cognition"] == pytest.approx(50 + 0)


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


def test_pope_by_hand(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg")
    lines = [
        {"question_id": i, "image": "a.jpg", "text": f"Is there thing {i}?", "label": label}
        for i, label in enumerate(["yes", "yes", "no", "no", "no"])
    ]
    (tmp_path / "pope.json").write_text("\n".join(map(json.dumps, lines)))
    questions = read(tmp_path / "pope.json")
    assert questions[0].example.images == [tmp_path / "a.jpg"]
    turn = "<image>Is there thing 0?\nPlease answer yes or no.", "yes"
    assert questions[0].example.turns[0] == turn
    got = score(questions, ["Yes", "no", "yes", "No, there is not", "hm"])
    # lenient: one hit, one missed, one false alarm
    assert got["lenient: precision"] == 0.5 and got["lenient: recall"] == 0.5
    assert got["lenient: F1"] == pytest.approx(0.5) and got["lenient: yes share"] == 0.4
    assert got["lenient: accuracy"] == 0.4 and got["lenient: unparsed"] == 1
    assert got["strict: accuracy"] == 0.2 and got["strict: unparsed"] == 2


def test_short_answers(tmp_path):
    people = "['red', 'red', 'pink', 'pink', 'pink', 'pink', 'pink', 'pink', 'pink', 'pink']"
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg")
    questions = read(tsv(tmp_path / "vqa.tsv", [
        {"index": 1, "question": "Which colour?", "answer": people, "image": picture("red")},
        {"index": 2, "question": "How many?", "answer": "2", "image_path": "a.jpg"},
    ]))  # fmt: skip
    assert [q.answers for q in questions] == [["red"] * 2 + ["pink"] * 8, ["2"]]
    assert questions[1].example.images == [tmp_path / "a.jpg"]
    # one of the red ones left out: 1 of 3; a pink one: 2 of 3
    got = score(questions, ["red", "3"])
    assert got["soft accuracy"] == pytest.approx((2 / 3 + 8 * 2 / 3) / 10 / 2)
    told = benchmarks.how(questions, 16)["parse rule"]
    assert "people, each left out" in told and "any of the accepted answers" in told


def test_a_run_is_scored_and_says_how(choice, tmp_path, capsys):
    benchmarks.main([RUN, str(choice), "--json", str(tmp_path / "out.json"), "--device", "cpu"])
    out, record = capsys.readouterr().out, json.loads((tmp_path / "out.json").read_text())
    shown = (
        "strict: accuracy",
        "greedy, at most 16 tokens",
        "<image>Look well.",
        "parse rule: strict",
    )
    assert all(text in out for text in shown)
    assert record["scores"] == score(read(choice), [a["given"] for a in record["answers"]])
    assert len(record["answers"]) == 4
    with pytest.raises(SystemExit, match="No such file"):
        benchmarks.main([RUN, str(tmp_path / "none.tsv"), "--device", "cpu"])


@pytest.mark.parametrize("world", ["sounds", "shapes-text"])
def test_a_run_that_saw_no_picture_is_refused(choice, tokenizer, tmp_path, world):
    run = make_run(tmp_path / "run", tokenizer, data=world)
    with pytest.raises(SystemExit, match=f"run was trained on {world[:4].replace('shap', 'text')}"):
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
