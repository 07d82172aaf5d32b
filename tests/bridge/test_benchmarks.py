"""Benchmark files in the formats people have, scored by hand."""

import base64
import io
import json

import pytest
from helpers import ROOT
from PIL import Image

from bridge import benchmarks
from bridge.benchmarks import letter_of, read, score, soft, yes_or_no
from data import DataError

OPTIONS = {"A": "a cat", "B": "two dogs", "C": "A", "D": "blue"}


def picture(colour: str) -> str:
    file = io.BytesIO()
    Image.new("RGB", (20, 12), colour).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def tsv(path, rows):
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [names, *([str(row.get(name, "")) for name in names] for row in rows)]
    path.write_text("\n".join(map("\t".join, lines)) + "\n")
    return path


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


@pytest.mark.parametrize("given,strict,lenient", [
    ("B", "B", "B"), ("(B)", "B", "B"), ("B.", "B", "B"), (" D: ", "D", "D"),
    ("The answer is B.", None, "B"), ("b", None, None), ("two dogs", None, "B"),
    ("A cat", None, "A"), ("A or B", None, None), ("E", None, None), ("", None, None),
    ("I think B", None, "B"), ("A dog runs", None, None), ("Answer: D. blue", None, "D"),
    ("Blue.", None, "D"),
])  # fmt: skip
def test_letters(given, strict, lenient):
    assert letter_of(given, OPTIONS, False) == strict
    assert letter_of(given, OPTIONS, True) == lenient


@pytest.mark.parametrize("given,strict,lenient", [
    ("Yes", "yes", "yes"), ("no.", "no", "no"), ("Yes, there is no dog", None, "yes"),
    ("There is: yes", None, "yes"), ("maybe", None, None), ("", None, None),
    ("it says yes and no", None, None),
])  # fmt: skip
def test_yes_or_no(given, strict, lenient):
    assert yes_or_no(given, False) == strict and yes_or_no(given, True) == lenient


def test_soft_accuracy_by_hand():
    people = ["red"] * 2 + ["a blue"] * 8
    assert soft("Blue.", people) == 1 and soft("green", people) == 0
    # one of the two left out: 1 of 3; another: 2 of 3
    assert soft("red", people) == pytest.approx((2 * 1 / 3 + 8 * 2 / 3) / 10)
    assert soft("the red", ["red"]) == 1 and soft("redder", ["red"]) == 0


def test_number_words_are_numbers():
    """As in VQA's own evaluation."""
    assert soft("two", ["2"] * 10) == 1 and soft("2", ["Two."] * 10) == 1
    assert soft("none", ["0"]) == 1 and soft("ten dogs", ["10 dogs"]) == 1
    assert soft("two", ["3"]) == 0 and soft("someone", ["some1"]) == 0
    mixed = ["2"] * 5 + ["two"] * 5
    assert soft("two", mixed) == soft("2", mixed) == 1


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
    strict = {"accuracy": 0.25, "unparsed": 3, "animal": 0.5, "colour": 0.0}
    lenient = {"accuracy": 0.5, "unparsed": 1, "animal": 1.0, "colour": 0.0}
    rules = {"strict": strict, "lenient": lenient}
    expected = {
        f"{rule}: {name}": x for rule, scores in rules.items() for name, x in scores.items()
    }
    assert got == {"questions": 4, **expected}


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
    assert got["strict: accuracy"] == pytest.approx(4 / 6)
    assert got["strict: acc+"] == pytest.approx(1 / 3)
    assert got["strict: MME perception"] == pytest.approx(75 + 50)
    assert got["strict: MME cognition"] == pytest.approx(50 + 0)


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
    people = "['red', 'red', 'red', 'pink']"
    questions = read(tsv(tmp_path / "vqa.tsv", [
        {"index": 1, "question": "Which colour?", "answer": people, "image": picture("red")},
        {"index": 2, "question": "How many?", "answer": "2", "image_path": "a.jpg"},
    ]))  # fmt: skip
    assert [q.answers for q in questions] == [["red", "red", "red", "pink"], ["2"]]
    assert questions[1].example.images == [tmp_path / "a.jpg"]
    # red: each of three left out: 2 of 3; pink left out: 3 of 3
    got = score(questions, ["red", "3"])
    assert got["soft accuracy"] == pytest.approx((3 * 2 / 3 + 1) / 4 / 2)


@pytest.mark.parametrize("row,says", [
    (
        {"index": 7, "question": "q", "A": "x", "B": "y", "answer": "C", "image": "i" * 80},
        "row 7: its answer 'C' is none of the options A",
    ),
    ({"index": 7, "question": "q", "answer": "x"}, "row 7: no picture"),
    ({"index": 7, "question": "q", "answer": "", "image": "i" * 80}, "row 7: its answer is empty"),
    ({"question": "q", "answer": "x"}, "no column index"),
    (
        {"index": 7, "question": "q", "answer": "x", "image": "!" * 80},
        "row 7: its image is not base64",
    ),
    (
        {"index": 7, "question": "q", "answer": "x", "image": "图片" * 40},
        "row 7: its image is not base64",
    ),
])  # fmt: skip
def test_damaged_files_are_named(tmp_path, row, says):
    with pytest.raises(DataError, match=says):
        read(tsv(tmp_path / "x.tsv", [row]))


@pytest.mark.parametrize("change,says", [
    ({"label": [[]]}, "line 2: expected an object"),
    ({"label": True}, "line 2: expected an object .* all of them texts, got .*true"),
    ({"text": 3}, "line 2: expected an object"),
    ({"image": ["a.jpg"]}, "line 2: expected an object"),
    ({"label": " "}, "line 2: its answer is empty"),
])  # fmt: skip
def test_damaged_lines_of_pope_are_named(tmp_path, change, says):
    """A line with an empty answer too, which would make all others short answers."""
    good, file = {"image": "a.jpg", "text": "Is it\u2028red?", "label": "yes"}, tmp_path / "p.json"
    file.write_text(json.dumps(good, ensure_ascii=False) + "\r\n", "utf-8")
    assert read(file)[0].example.turns[0][0].startswith("<image>Is it\u2028red?")
    file.write_text("\n".join(map(json.dumps, (good, good | change))))
    with pytest.raises(DataError, match=says):
        read(file)


@pytest.mark.parametrize("name", ["d.tsv", "d.json"])
def test_a_folder_is_no_benchmark_file(tmp_path, name):
    with pytest.raises(DataError, match=f"{name}: no such file"):
        read(tmp_path / name)
    (tmp_path / name).mkdir()
    with pytest.raises(DataError, match=f"{name}: not readable .Is a directory."):
        read(tmp_path / name)


def test_a_run_is_scored_and_says_how(choice, tmp_path, capsys):
    run = str(ROOT / "weights" / "shapes-mma")
    benchmarks.main([run, str(choice), "--json", str(tmp_path / "out.json"), "--device", "cpu"])
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
    with pytest.raises(SystemExit, match="no such file"):
        benchmarks.main([run, str(tmp_path / "none.tsv"), "--device", "cpu"])
