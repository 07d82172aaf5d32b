"""Benchmark files in the formats people have, read and scored by hand; and what is said of damaged
ones."""

import base64
import io
import json
import re

import pytest
from helpers import ROOT
from PIL import Image
from test_eval import make_run

from bridge import benchmarks
from bridge.benchmarks import read, score
from data import DataError

RUN = str(ROOT / "weights" / "shapes-mma")


def picture(colour: str) -> str:
    file = io.BytesIO()
    Image.new("RGB", (20, 12), colour).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


RED, BLUE = picture("red"), picture("blue")
SMALL = base64.b64encode(
    b"GIF89a\1\0\1\0\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\1\0\1\0\0\2\2D\1\0;"
).decode()
UNREADABLE = base64.b64encode(b"no picture" * 9).decode()


@pytest.fixture
def table(tmp_path):
    """table(*rows) -> the file of them. They have an index, a question, an answer and a picture
    without saying so."""

    def write(*rows, name="x.tsv"):
        usual = {"question": "q", "answer": "x", "image": RED}
        rows = [{"index": k, **usual, **row} for k, row in enumerate(rows)]
        names = list(dict.fromkeys(name for row in rows for name in row))
        lines = [names, *([str(row.get(name, "")) for name in names] for row in rows)]
        separator = "," if name.endswith("csv") else "\t"
        (tmp_path / name).write_text("\n".join(map(separator.join, lines)) + "\n")
        return tmp_path / name

    return write


@pytest.fixture
def pope(tmp_path):
    """pope(*lines) -> a file of them about a picture that is there."""

    def write(*lines):
        Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg")
        usual = {"image": "a.jpg", "text": "Is it\u2028red?", "label": "yes"}
        text = "\r\n".join(json.dumps({**usual, **line}, ensure_ascii=False) for line in lines)
        (tmp_path / "pope.json").write_text(text, "utf-8")
        return tmp_path / "pope.json"

    return write


@pytest.fixture
def choice(table):
    animal = {"category": "animal", "A": "a cat", "B": "a dog"}
    colour = {"category": "colour", "A": "red", "B": "blue", "answer": "A"}
    return table(
        {**animal, "question": "What is this?", "hint": "Look well.", "answer": "B"},
        {**animal, "C": "a cow", "answer": "C", "image": 0},
        {**colour, "image": [RED, BLUE]},
        {**colour, "image": BLUE},
    )


# --- Reading


@pytest.mark.parametrize("name", ["x.TSV", "x.csv"])
def test_a_table_is_known_by_its_name(table, name):
    assert [q.answers for q in read(table({}, name=name))] == [["x"]]


def test_a_picture_field_may_name_a_row(table):
    """Also one whose picture is very small, and as pandas writes a number beside gaps. Base64 may
    stand in several lines, or be a data URI."""
    lines = '"' + "\n".join(RED[k : k + 20] for k in range(0, len(RED), 20)) + '"'
    fields = [SMALL, "0", "0.0", RED, "['3', '0']", "4", lines, f"data:image/png;base64,{RED}"]
    rows = [{"index": "3.0" if k == 3 else k, "image": field} for k, field in enumerate(fields)]
    small, red = (base64.b64decode(text) for text in (SMALL, RED))
    assert [q.example.images for q in read(table(*rows))] == [
        [small], [small], [small], [red], [red, small], [red, small], [red], [red],
    ]  # fmt: skip


def test_what_pandas_writes_for_a_gap_is_none(table, tmp_path):
    """But None, or NA, is an option's text."""
    gaps = {"image": "nan", "hint": "NaN", "category": "nan", "C": "nan"}
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (one,) = read(table({**gaps, "answer": "A", "image_path": "a.png", "A": "None", "B": "NA"}))
    assert one.options == {"A": "None", "B": "NA"} and one.example.family == ""
    assert one.example.turns[0][0].startswith("<image>q\n")


@pytest.mark.parametrize("field", [
    "['red', 'dark red', \"it's\"]", "['red' 'dark red'\n \"it's\"]",
    "[{'answer': 'red', 'answer_id': 1}, {'answer': 'dark red'}\n {'answer': \"it's\"}]",
])  # fmt: skip
def test_accepted_answers_are_a_list_as_python_numpy_or_vqa_write_it(table, field):
    (one,) = read(table({"answer": '"' + field.replace('"', '""') + '"'}))
    assert one.answers == ["red", "dark red", "it's"]


CHAIN = [{"index": k, "image": str(k + 1)} for k in range(1, 2000)] + [{"index": 2000}]


@pytest.mark.parametrize("row,more,says", [
    ({"image": "8"}, [{"index": 8}] * 2, "row 8, which .*more than once"),
    ({"A": "x", "B": "y", "answer": "C"}, [], "answer 'C' is none of .* A, B"),
    ({"image": ""}, [], "row 0: no picture"),
    *[({"answer": said}, [], "row 0: its answer is empty") for said in ("", "['', ' ']", "nan")],
    *[({"image": x * 40}, [], "row 0: its image is not base64") for x in ("!!", "图片")],
    ({"image": "1241"}, [], "row 0: its image names row 1241, which is not there"),
    ({"image": "0"}, [], "by way of row 0: its image names row 0, which has no picture of its"),
    ({"image": "1"}, CHAIN, "row 0, by way .*row 11, which .* behind 10 others"),
])  # fmt: skip
def test_damaged_rows_are_named(table, row, more, says):
    """Of rows with the same index only what names them is damaged."""
    assert not more or more is CHAIN or len(read(table(*more))) == 2
    with pytest.raises(DataError, match=says):
        read(table(row, *more))


@pytest.mark.parametrize("change,says", [
    ({"label": True}, "line 2: expected an object .* all of them texts, got .*True"),
    ({"image": ["a.jpg"]}, "line 2: expected an object"),
    ({"label": " "}, "line 2: its answer is empty"),
    ({"label": None}, "line 2: expected an object"),
])  # fmt: skip
def test_damaged_lines_of_pope_are_named(pope, change, says):
    """A line with an empty answer too, which would make all others short answers."""
    with pytest.raises(DataError, match=says):
        read(pope({}, change))


@pytest.mark.parametrize("name", ["d.tsv", "d.json"])
def test_files_that_are_none(tmp_path, name):
    with pytest.raises(DataError, match=f"{name}: .*[Nn]o such file"):
        read(tmp_path / name)
    (tmp_path / name).mkdir()
    with pytest.raises(DataError, match=f"{name}: not readable.*Is a directory"):
        read(tmp_path / name)
    (tmp_path / "none.tsv").write_text("question\tanswer\nq\tx\n")
    with pytest.raises(DataError, match="no column index"):
        read(tmp_path / "none.tsv")


# --- Scores


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

    def part(accuracy, unparsed):
        return {"questions": 2, "accuracy": accuracy, "unparsed": unparsed}

    assert score(questions, ["B", "it is C", "blue", "who knows"]) == {
        "questions": 4, "strict: accuracy": 0.25, "strict: unparsed": 3,
        "strict: categories": {"animal": part(0.5, 1), "colour": part(0.0, 2)},
        "lenient: accuracy": 0.5, "lenient: unparsed": 1,
        "lenient: categories": {"animal": part(1.0, 0), "colour": part(0.0, 1)},
    }  # fmt: skip


ODD = ["accuracy", "easy questions", "a|b", "unparsed", "MME x", "", "category", "split", "1"]


@pytest.mark.parametrize("answer,options,rule", [
    ("A", {"A": "x", "B": "y"}, "lenient: "), ("Yes", {}, "lenient: "), ("red", {}, "soft "),
])  # fmt: skip
def test_a_category_may_have_any_name(table, answer, options, rule):
    """It is not taken for a score of ours; the answers are a choice, yes and no, or short."""
    rows = ({"answer": answer, "category": name, **options} for name in ODD)
    got = score(read(table(*rows)), [answer, *["B"] * 8])
    assert got[f"{rule}accuracy"] == pytest.approx(1 / 9)
    categories = got[f"{rule.removeprefix('soft ')}categories"]
    assert {c: x["accuracy"] for c, x in categories.items()} == {c: c == "accuracy" for c in ODD}
    shown = re.sub(" +", " ", benchmarks.tables("f", got)) + "\n"
    assert f"| {rule}accuracy | 11.1 % |" in shown
    for name in ["easy questions", r"a\|b", "unparsed", "MME x", "(none)", "category"]:
        assert len(re.findall(rf"\n\| {re.escape(name)} \| 1 \|.* 0\.0 % \|\n", shown)) == 1


def test_a_row_without_options_is_an_open_question(table):
    """As some of MMMU's."""
    options = {"A": "x", "B": "y", "answer": "B"}
    answers = "3", "['3.5', '7/2']", "3", ["4"] * 9 + ["5"]
    questions = read(table(options, *({"answer": answer} for answer in answers)))
    assert [q.kind for q in questions] == ["choice"] + ["short"] * 4
    prompt = questions[1].example.turns[0][0]
    assert prompt.endswith("q\nAnswer the question using a single word or phrase.")
    got = score(questions, ["A", "three", "7/2", "4", "5"])
    assert got["strict: accuracy"] == got["lenient: accuracy"] == pytest.approx((2 + 0.3) / 5)
    told = benchmarks.how(questions, 16)
    assert "(1 questions); right if equal to any" in told["parse rule"]
    assert "the people, each left out" in told["parse rule"]
    assert told["prompt (short)"] == prompt and told["prompt"] != prompt
    got = score(read(table(options, {"answer": "yes"})), ["A", "yes"])
    # POPE's measures are of yes and no alone
    assert got["strict: accuracy"] == 0.5 and "strict: precision" not in got


@pytest.mark.parametrize("name", ["image_path", "question_id"])
def test_questions_of_mme_are_paired_by_name(table, name):
    """Not by their picture: two pairs have equal ones here."""
    answers = {"answer": "Yes"}, {"answer": "No"}, {"answer": "Yes"}, {"answer": "No"}
    rows = ({**row, "category": "color", name: f"{k // 2}.jpg"} for k, row in enumerate(answers))
    got = score(read(table(*rows)), ["Yes", "No", "Yes", "Yes"])
    assert got["strict: acc+"] == 0.5 and got["strict: accuracy"] == 0.75


def test_yes_or_no_is_asked_for_once(table, pope, tmp_path):
    """By the question itself, as MME's, or by us; pictures of POPE lie in a folder."""
    (ours,) = read(pope({"question_id": 1}))
    assert ours.example.images == [tmp_path / "a.jpg"]
    assert ours.example.turns == [("<image>Is it\u2028red?\nPlease answer yes or no.", "yes")]
    asks = "Is it so? Please answer yes or no."
    (mme,) = read(table({"question": asks, "answer": "Yes"}))
    assert mme.example.turns == [(f"<image>{asks}", "Yes")]


# --- The command


def test_a_run_is_scored_and_says_how(choice, tmp_path, capsys):
    """A picture that cannot be read is told of, without an object's address."""
    choice.write_text(choice.read_text().replace(BLUE, UNREADABLE))
    benchmarks.main([RUN, str(choice), "--json", str(tmp_path / "out.json"), "--device", "cpu"])
    out, record = capsys.readouterr().out, json.loads((tmp_path / "out.json").read_text())
    for text in ("strict: accuracy", "at most 16 tokens", "<image>Look well.", "rule: strict"):
        assert text in out
    assert record["scores"] == score(read(choice), [a["given"] for a in record["answers"]])
    assert len(record["answers"]) == 4
    assert "not a readable picture (cannot identify image file" in out and "0x" not in out


@pytest.mark.parametrize("world,says", [("sounds", "soun"), ("shapes-text", "text")])
def test_a_run_that_saw_no_picture_is_refused(choice, tokenizer, tmp_path, world, says):
    run = make_run(tmp_path / "run", tokenizer, data=world)
    with pytest.raises(SystemExit, match=f"run was trained on {says}"):
        benchmarks.main([str(run), str(choice), "--device", "cpu"])


def test_where_no_picture_can_be_read_there_is_no_score(table, pope, tmp_path):
    """That some of those that are named are missing is no error: their questions are counted."""
    out, file = tmp_path / "out.json", table({"image": UNREADABLE}, {"image": UNREADABLE})
    for images, says in (
        (["--images", "none"], "none: no such folder of pictures .check --images"),
        ([], "row 0: .*not a readable picture"),
    ):
        with pytest.raises(SystemExit, match=says):
            command = [RUN, str(file), *images, "--device", "cpu", "--json", str(out)]
            benchmarks.main(command)
    assert not out.exists() and len(read(pope({"image": "none.png"}, {}))) == 2
    with pytest.raises(DataError, match="can be opened, such as .*none.png .check --images"):
        read(pope({"image": "none.png"}))
