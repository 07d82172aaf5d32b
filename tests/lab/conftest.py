"""Explorer pages of small runs, for two test files."""

import json

import pytest
from pages import make_run, write

from lab import explore


@pytest.fixture(scope="module")
def short_answers():
    """What random weights say seldom ends."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(explore, "LONGEST", 8)
        yield


@pytest.fixture
def few(llava):
    """One picture and two turns, two pictures, none."""
    entries = [e for e in json.loads(llava.read_text()) if e["id"] in ("0", "two", "none")]
    llava.write_text(json.dumps(entries))
    return llava


@pytest.fixture
def talk(llava):
    """One dialogue of three turns, with a second picture in the last."""
    said = "<image>Which colour is this?", "Red.", "And " + "this one over there " * 9 + "?", "No."
    words = [*said, "<image>And here?", "Green."]
    speakers = ("human", "gpt") * 3
    messages = [{"from": speaker, "value": value} for speaker, value in zip(speakers, words)]
    entry = {"id": "talk", "image": ["0.png", "2.png"], "conversations": messages}
    llava.write_text(json.dumps([entry]))
    return llava


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("explore")
    return [make_run(folder / mask, tokenizer, mask=mask) for mask in ("causal", "mma")]


@pytest.fixture(scope="module")
def page(runs, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "new" / "page.html"
    write(*runs, "--out", path)
    return path
