"""Benchmark files in the formats people have, read; and what is said of damaged ones."""

import base64
import json

import pytest
from benchmark_tables import picture, tsv
from PIL import Image

from bridge.benchmark_files import read
from data import DataError


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
    """Also one whose picture is very small, and as pandas writes a number beside gaps. Base64 may
    stand in several lines, or be a data URI."""
    text, ask = picture("red"), {"question": "q", "answer": "x"}
    lines = '"' + "\n".join(text[k : k + 20] for k in range(0, len(text), 20)) + '"'
    fields = {"0": SMALL, "1": "0", "2": "0.0", "3.0": text, "4": "['3', '0']", "5": "4",
              "6": lines, "7": f"data:image/png;base64,{text}"}  # fmt: skip
    rows = [{"index": index, **ask, "image": field} for index, field in fields.items()]
    shown = [q.example.images for q in read(tsv(tmp_path / "x.tsv", rows))]
    (small,), (red,) = shown[0], shown[3]
    assert len(SMALL) <= 64 and small != red
    assert shown == [[small]] * 3 + [[red]] + [[red, small]] * 2 + [[red]] * 2


def test_what_pandas_writes_for_a_gap_is_none(tmp_path):
    """But None, or NA, is an option's text."""
    row = {"index": 1, "question": "q", "answer": "A", "image": "nan", "image_path": "a.png",
           "hint": "NaN", "category": "nan", "A": "None", "B": "NA", "C": "nan"}  # fmt: skip
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (one,) = read(tsv(tmp_path / "x.tsv", [row]))
    assert one.options == {"A": "None", "B": "NA"} and one.example.family == ""
    assert one.example.turns[0][0].startswith("<image>q\n")


@pytest.mark.parametrize("field", [
    "['red', 'dark red', \"it's\"]", "['red' 'dark red'\n \"it's\"]",
    "[{'answer': 'red', 'answer_id': 1}, {'answer': 'dark red'}\n {'answer': \"it's\"}]",
])  # fmt: skip
def test_accepted_answers_are_a_list_as_python_numpy_or_vqa_write_it(tmp_path, field):
    field = '"' + field.replace('"', '""') + '"'
    row = {"index": 1, "question": "q", "answer": field, "image": picture("red")}
    assert [q.answers for q in read(tsv(tmp_path / "x.tsv", [row]))] == [
        ["red", "dark red", "it's"]
    ]


ROW = {"index": 7, "question": "q", "answer": "x"}


@pytest.mark.parametrize("row,says", [
    (ROW | {"image": "8", "more": [(8, SMALL), (8, SMALL)]}, "row 8, which .*more than once"),
    (ROW | {"A": "x", "B": "y", "answer": "C", "image": SMALL}, "answer 'C' is none of .* A, B"),
    (ROW, "row 7: no picture"), ({"question": "q", "answer": "x"}, "no column index"),
    *[(ROW | {"answer": said}, "row 7: its answer is empty") for said in ("", "['', ' ']", "nan")],
    *[(ROW | {"image": x * 40}, "row 7: its image is not base64") for x in ("!!", "图片")],
    (ROW | {"image": "1241"}, "row 7: its image names row 1241, which is not there"),
    (ROW | {"image": "0.0"}, "row 7: its image names row 0.0, which is not there"),
    (ROW | {"image": "7"}, "by way of row 7: its image names row 7, which has no picture of its"),
])  # fmt: skip
def test_damaged_files_are_named(tmp_path, row, says):
    """Of rows with the same index only what names them is damaged."""
    more = [{**ROW, "index": index, "image": text} for index, text in row.pop("more", ())]
    assert not more or len(read(tsv(tmp_path / "x.tsv", more))) == 2
    with pytest.raises(DataError, match=says):
        read(tsv(tmp_path / "x.tsv", [row, *more]))


def test_a_picture_is_not_looked_for_behind_any_number_of_rows(tmp_path):
    rows = [{**ROW, "index": k, "image": str(k + 1)} for k in range(2000)]
    with pytest.raises(DataError, match="row 0, by way .*row 11, which .* behind 10 others"):
        read(tsv(tmp_path / "x.tsv", [*rows, {**ROW, "index": 2000, "image": SMALL}]))


@pytest.mark.parametrize("change,says", [
    ({"label": True}, "line 2: expected an object .* all of them texts, got .*True"),
    ({"image": ["a.jpg"]}, "line 2: expected an object"),
    ({"label": " "}, "line 2: its answer is empty"),
])  # fmt: skip
def test_damaged_lines_of_pope_are_named(tmp_path, change, says):
    """A line with an empty answer too, which would make all others short answers."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg")
    good, file = {"image": "a.jpg", "text": "Is it\u2028red?", "label": "yes"}, tmp_path / "p.json"
    file.write_text(json.dumps(good, ensure_ascii=False) + "\r\n", "utf-8")
    assert read(file)[0].example.turns[0][0].startswith("<image>Is it\u2028red?")
    file.write_text("\n".join(map(json.dumps, (good, good | change))))
    with pytest.raises(DataError, match=says):
        read(file)


@pytest.mark.parametrize("name", ["d.tsv", "d.json"])
def test_a_folder_is_no_benchmark_file(tmp_path, name):
    with pytest.raises(DataError, match=f"{name}: .*[Nn]o such file"):
        read(tmp_path / name)
    (tmp_path / name).mkdir()
    with pytest.raises(DataError, match=f"{name}: not readable.*Is a directory"):
        read(tmp_path / name)


def test_a_folder_without_the_pictures_is_an_error(tmp_path):
    """That some are missing is no error: their questions are counted."""
    lines = [{"image": f"{name}.png", "text": "Is it?", "label": "yes"} for name in "ab"]
    file = tmp_path / "pope.json"
    file.write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(DataError, match="can be opened, such as .*a.png .check --images"):
        read(file)
    Image.new("RGB", (8, 8)).save(tmp_path / "b.png")
    assert len(read(file)) == 2
