"""The world's grammar beside the sentences of NLVR's people."""

import json

import pytest

import data
from lab import nlvr as comparison

COLOURS, BLOCK = ("Black", "Yellow", "#0099ff"), {"type": "square", "size": 20, "x_loc": 40}


def tower_of(*colours):
    return [{**BLOCK, "color": c, "y_loc": 80 - 21 * k} for k, c in enumerate(colours)]


def test_a_template_has_no_numbers_colours_and_nouns():
    text = "there is exactly one box with two blue circles and a black block"
    assert comparison.template(text) == "there is exactly N box with N C Ss and a C S"


def test_scenes_are_read_from_the_file_towers_from_the_base_up():
    boxes = [tower_of("Black", "Yellow")[::-1], tower_of("Blue"), tower_of("#0099ff")]
    below, above = comparison.boxes_of({"structured_rep": boxes})[0]
    assert below == (0, 1, 1, 40, 80) and above == (1, 1, 1, 40, 59)
    assert comparison.boxes_of({"structured_rep": boxes})[1][0][0] == 2


def write(nlvr, sentence):
    """Train's entries: a sentence, its pictures and labels; every second one has a black top."""
    file, lines = nlvr / "train" / "train.json", []
    for k, line in enumerate(file.read_text().strip().splitlines()):
        top = COLOURS[k % 2]
        boxes = [tower_of("Yellow", top), tower_of("Yellow"), tower_of("Yellow")]
        if k % 4 > 1:
            boxes = [[{**BLOCK, "type": "circle", "color": top, "y_loc": 3}]] * 3
        label = "true" if top == "Black" else "false"
        entry = {**json.loads(line), "sentence": sentence, "label": label}
        lines.append(json.dumps({**entry, "structured_rep": boxes}))
    file.write_text("\n".join(lines))


def test_coverage_and_agreement(nlvr, capsys):
    write(nlvr, "There is a tower with a black block at the top.")
    source = ["--source", str(nlvr), "--draws", "1500", "--missing", "3"]
    comparison.main(source)
    lines = capsys.readouterr().out.splitlines()
    towers, scattered = ([c.strip() for c in line.split("|")][1:-1] for line in lines[2:4])
    assert towers == ["towers", "100.0", "100.0", "100.0", "100.0", "72"]
    assert scattered[0] == "scattered" and scattered[1:5] == ["0.0"] * 4
    assert lines[4].split(maxsplit=1) == ["72", "there is a tower with a C S at the top"]


def test_what_is_missing_is_one_line(nlvr):
    with pytest.raises(SystemExit, match=r"error: .*train.json: line 1: no structured_rep"):
        comparison.main(["--source", str(nlvr)])
    assert data.load("nlvr", nlvr).splits["train"]
