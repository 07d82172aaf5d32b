"""Damaged files, by the thousand: a result or one readable error, never another exception, a hang
or silent garbage."""

import io
import json
import random
import warnings

import pytest
from PIL import Image

from data import DataError, llava
from data.pictures import read_picture


def mutated(original: bytes, r: random.Random) -> bytes:
    """A few pieces changed, cut out or doubled, or the end missing."""
    out = bytearray(original)
    for _ in range(r.choice((1, 1, 2, 5))):
        at, n = r.randrange(9, len(out) - 9), r.randrange(1, 9)
        strange = bytes(r.choice((0, 255, 127, 128)) for _ in range(n))
        out[at : at + n] = r.choice((strange, strange, b"", 2 * out[at : at + n]))
    return bytes(out if r.random() < 0.7 else out[: r.randrange(9, len(out))])


def picture(kind: str, mode: str) -> bytes:
    file = io.BytesIO()
    Image.effect_noise((23, 17), 90).convert(mode).save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize("kind,mode", [
    ("PNG", "RGB"), ("PNG", "P"), ("PNG", "LA"), ("JPEG", "RGB"), ("GIF", "P"), ("BMP", "RGB"),
    ("TIFF", "RGB"), ("WEBP", "RGB"),
])  # fmt: skip
def test_damaged_pictures(kind, mode, tmp_path):
    r, original, bad = random.Random(kind + mode), picture(kind, mode), 0
    for i in range(250):
        path = tmp_path / f"{i}.x"
        path.write_bytes(mutated(original, r))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                pixels = read_picture(path, 32)
            assert pixels.shape == (3, 32, 32)
        except DataError as error:
            bad += 1
            assert str(path) in str(error) and "\n" not in str(error)
    assert bad > 10


def parts(value):
    """Every place in a JSON value, as (container, key)."""
    keys = range(len(value)) if isinstance(value, list) else ()
    for key in value if isinstance(value, dict) else keys:
        yield value, key
        yield from parts(value[key])


STRANGE = [
    None, True, 0, -1, 1e308, "", "x", "<image>", "<image><image>", "../../etc/passwd",
    "/etc/passwd", "a\x00b", "\ud800", "a" * 5000, [], {}, [[]], {"from": "human"},
    ["a.png", "a.png"], "human",
]  # fmt: skip


def test_damaged_entries_of_a_llava_file(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    said = zip(("human", "gpt") * 2, ("<image>\nwhat?", "red", "sure?", "yes"))
    talk = [{"from": speaker, "value": value} for speaker, value in said]
    entry = {"id": "1", "image": "a.png", "category": "c", "conversations": talk}
    r, good, bad = random.Random(0), 0, 0
    for _ in range(3000):
        changed = json.loads(json.dumps(entry))
        for _ in range(r.choice((1, 1, 2))):
            container, key = r.choice(list(parts(changed)))
            if r.random() < 0.3:
                del container[key]
            else:
                container[key] = json.loads(json.dumps(r.choice(STRANGE)))
        try:
            example = llava.read_entry(changed, "file: entry 0", tmp_path)
            assert all(path.is_relative_to(tmp_path) for path in example.images)
            assert all(isinstance(text, str) for turn in example.turns for text in turn)
            good += 1
        except DataError as error:
            assert str(error).startswith("file: entry 0") and "\n" not in str(error)
            bad += 1
    assert good > 100 and bad > 1000
