"""Benchmark files in the formats people have, scored by hand."""

import base64
import io
import json
import re
from pathlib import Path

import pytest
from helpers import ROOT
from PIL import Image
from test_eval import make_run

from bridge import benchmarks
from bridge.benchmark_files import Question
from bridge.benchmarks import letter_of, read, score, soft, yes_or_no
from data import DataError, Example

# Predictions of ours, and what VLMEvalKit's own matching and scoring (e8e78f05) make of them:
# of a choice a letter for each way of saying it, "-" for none
REFERENCE = json.loads((Path(__file__).parent / "reference_scores.json").read_text("utf-8"))

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
    ("The answer is B.", None, "B"), ("b", None, "B"), ("two dogs", None, "B"),
    ("A cat", None, "A"), ("A or B", None, None), ("E", None, None), ("", None, None),
    ("I think B", None, "B"), ("A dog runs", None, None), ("Answer: D. blue", None, "D"),
    ("Blue.", None, "D"), ("**B**", "B", "B"), ("Ｂ。", "B", "B"), ("B. A cat", None, "B"),
    ("The answer is B. Note that A is wrong.", None, "B"), ("option d", None, "D"),
    ("The answer is A or B.", None, None), ("B, C", None, None), ("Not A, but B.", None, "B"),
    ("B because A is too small", None, "B"), ("A dog, so D", None, "D"), ("B12", None, None),
    ("I see two dogs and a cat", None, None), ("I see two dogs, not one.", None, "B"),
    ("There are cats", None, "A"), ("concatenated", None, None), ("A cat, that is B", None, "B"),
    ("The answer is A cat.", None, "A"), ("A is wrong; the rest is unclear.", None, None),
    ("So the answer is $\\boxed{B}$, for A and C are not.", None, "B"),
])  # fmt: skip
def test_letters(given, strict, lenient):
    assert letter_of(given, OPTIONS, False) == strict
    assert letter_of(given, OPTIONS, True) == lenient


def test_every_way_of_saying_a_letter_is_read_as_the_reference_does_or_better():
    """528 predictions: the reference finds 376 of them."""
    ways, right = REFERENCE["choice"]["ways"], []
    for name, options in REFERENCE["choice"]["options"].items():
        for letter, option in options.items():
            other = "BCDA"["ABCD".index(letter)]
            low = option[0].lower() + option[1:].rstrip(".")
            forms = {"L": letter, "l": letter.lower(), "M": other, "T": option, "t": low}
            for way, theirs in zip(ways, REFERENCE["choice"]["reference"][name][letter]):
                said = way.format(**forms, U=option.upper())
                assert letter_of(said, options, True) == letter, (options, said)
                right.append(theirs == letter)
    assert (len(right), sum(right)) == (528, 376)


@pytest.mark.parametrize("given,theirs,ours", REFERENCE["yes/no"])
def test_yes_or_no_is_read_as_the_reference_does_or_better(given, theirs, ours):
    assert yes_or_no(given, True) == (None if ours == "-" else ours)
    assert theirs in (ours, "-")


def test_votes_are_counted_as_the_reference_does():
    for people, given, theirs in REFERENCE["votes"]:
        assert soft(given, people) == pytest.approx(theirs, abs=1e-12), (people, given)


@pytest.mark.parametrize("name", ["POPE", "MME"])
def test_measures_of_yes_and_no_are_the_reference_s(name):
    """A question in several of POPE's sets counts in each of them."""
    rows, theirs = REFERENCE[name]["rows"], REFERENCE[name]["reference"]
    questions = [
        Question(Example([], [("?", true)], category), "yes/no", [true], {}, path)
        for category, true, _, path in rows
    ]
    got = score(questions, [given for *_, given, _ in rows])
    of = {**got["lenient: categories"], "Overall": {k[9:]: x for k, x in got.items()}}
    assert got["questions"] == len(rows)
    if name == "MME":
        scores = {category: numbers.get("MME score") for category, numbers in of.items()}
        scores |= {"perception": of["Overall"]["MME perception"]}
        theirs = {("Overall" if k == "reasoning" else k): x for k, x in theirs.items()}
        assert {**scores, "Overall": of["Overall"]["MME cognition"]} == theirs
    else:
        ours = {
            split: {measure: 100 * of[split][measure] for measure in measures}
            for split, measures in theirs.items()
        }
        assert ours == theirs


def test_soft_accuracy_by_hand():
    people = ["red"] * 2 + ["a blue"] * 8
    assert soft("Blue.", people) == 1 and soft("green", people) == 0
    # one of the two left out: 1 of 3; another: 2 of 3
    assert soft("red", people) == pytest.approx((2 * 1 / 3 + 8 * 2 / 3) / 10)
    assert soft("the red", ["red"]) == 1 and soft("redder", ["red"]) == 0


@pytest.mark.parametrize("n,worth", [
    (1, 1), (2, 1), (3, 1), (5, 1), (9, 8 / 27), (10, 0.3), (11, 10 / 33), (20, 1),
])  # fmt: skip
def test_only_about_ten_answers_are_votes(n, worth):
    """A right answer that one of n gave: fewer are spellings of it, more are synonyms."""
    others = [f"other {k}" for k in range(1, n)]
    assert soft("Red", ["red", *others]) == pytest.approx(worth) and soft("blue", others) == 0


@pytest.mark.parametrize("one,other", [
    ('"5"', "5"), ("Answer: 5", "5"), ("**5**", "5"), ("The answer is 5.", "5"), ("５", "5"),
    ("`5`", "5"), ("**Answer:** five", "5"), ("caf\u00e9", "cafe\u0301"), ("U.S.", "us"),
    ("don't", "dont"), ("1,000", "1000"), ("T-shirt", "t shirt"),
])  # fmt: skip
def test_one_short_answer_written_in_two_ways(one, other):
    assert soft(one, [other]) == soft(other, [one]) == 1


@pytest.mark.parametrize("one,other", [
    ("-5", "5"), ("3.5", "35"), ("1,2", "12"), ("+", "-"), ("", "+"), ("C*", "C"), ("a", "the"),
])  # fmt: skip
def test_short_answers_that_differ(one, other):
    assert soft(one, [other]) == soft(other, [one]) == 0


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


@pytest.mark.parametrize("name", ["x.TSV", "x.csv"])
def test_a_table_is_known_by_its_name(tmp_path, name):
    row = {"index": "1", "question": "q", "answer": "x", "image": picture("red")}
    file = tsv(tmp_path / name, [row])
    if name == "x.csv":
        file.write_text(file.read_text().replace("\t", ","))
    assert [q.answers for q in read(file)] == [["x"]]


SMALL = base64.b64encode(
    b"GIF89a\1\0\1\0\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\1\0\1\0\0\2\2D\1\0;"
).decode()


def test_a_picture_field_may_name_a_row(tmp_path):
    """Also one whose picture is very small, and as pandas writes a number beside gaps."""
    ask = {"question": "q", "answer": "x"}
    fields = {"0": SMALL, "1": "0", "2": "0.0", "3.0": picture("red"), "4": "['3', '0']", "5": "4"}
    rows = [{"index": index, **ask, "image": field} for index, field in fields.items()]
    shown = [q.example.images for q in read(tsv(tmp_path / "x.tsv", rows))]
    (small,), (red,) = shown[0], shown[3]
    assert len(SMALL) <= 64
    assert shown == [[small], [small], [small], [red], [red, small], [red, small]]


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
    *[
        ({"index": 7, "question": "q", "answer": "x", "image": text}, f"row 7.* ?{says}")
        for text, says in (
            ("1241", "its image names row 1241, which is not there"),
            ("0.0", "its image names row 0.0, which is not there"),
            ("7", "by way of row 7: its image names row 7, which has no picture of its own"),
        )
    ],
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


@pytest.mark.parametrize("world", ["sounds", "shapes-text"])
def test_a_run_that_saw_no_picture_is_refused(choice, tokenizer, tmp_path, world):
    run = make_run(tmp_path / "run", tokenizer, data=world)
    with pytest.raises(SystemExit, match=f"run was trained on {world[:4].replace('shap', 'text')}"):
        benchmarks.main([str(run), str(choice), "--device", "cpu"])


def test_a_folder_of_pictures_that_is_not_there_is_an_error(choice, tmp_path):
    run, file = str(ROOT / "weights" / "shapes-mma"), tmp_path / "out.json"
    options = ["--images", str(tmp_path / "none"), "--json", str(file), "--device", "cpu"]
    with pytest.raises(SystemExit, match="none: no such folder of pictures .check --images"):
        benchmarks.main([run, str(choice), *options])
    assert not file.exists()


def test_no_error_shows_an_object_s_address(choice, capsys):
    text = choice.read_text()
    choice.write_text(text.replace(picture("blue"), base64.b64encode(b"no picture" * 9).decode()))
    run = str(ROOT / "weights" / "shapes-mma")
    benchmarks.main([run, str(choice), "--device", "cpu"])
    printed = capsys.readouterr().out
    assert "not a readable picture (cannot identify image file" in printed and "0x" not in printed
