"""A conversation over the cache is what the whole dialogue, read anew, would have given."""

import functools
import io
import re
from unittest.mock import Mock

import pytest
import torch
from PIL import Image as Picture

import data
import train
from data import IMAGE_TOKEN, Row, audio
from engine.options import arguments
from lab import talk
from lab.talk import Conversation
from lab.variants import ConcentricMLLM, TextFirstTokenizer
from mma import Role

pytestmark = pytest.mark.usefixtures("nothing_drawn")

QUICK = (
    "--preset tiny --device cpu --workers 0 --pt-pictures 2 --pictures 2 --pt-steps 1 --steps 1 "
    "--limit 5 --val-limit 5"
).split()


@pytest.mark.parametrize("kind", ["mma", "causal", "prefix"])
@pytest.mark.parametrize("rings, text_first", [(False, False), (True, False), (True, True)])
def test_history_in_the_cache_is_history_read_again(
    model, tokenizer, pictures, kind, rings, text_first
):
    model.config.mask = kind
    model.__class__ = ConcentricMLLM if rings else model.__class__
    tokenizer = TextFirstTokenizer(tokenizer.model) if text_first else tokenizer
    asked = [
        (IMAGE_TOKEN + "is there a red circle?", [pictures[0]]),
        ("how many circles are there?", []),
        (f"{IMAGE_TOKEN}{IMAGE_TOKEN}what color is the square?", [pictures[1], pictures[2]]),
        ("is there a blue square?", []),
    ]
    conversation, whole = Conversation(model, tokenizer), Row()
    for turn, (message, images) in enumerate(asked, 1):
        said = "".join(conversation.ask(message, images, max_new_tokens=5))
        example = data.Example(images, [(message, "")])
        row = data.encode(example, tokenizer, model.config.n_image_tokens, upto=0)
        skip = turn > 1  # the row's first token
        whole.ids, whole.role = whole.ids + row.ids[skip:], whole.role + row.role[skip:]
        whole.turn += [turn] * len(row.ids[skip:])
        whole.images = whole.images + row.images
        batch = data.collate([whole], tokenizer.pad, 16)
        answer = model.generate(**batch, eos=tokenizer.eos, max_new_tokens=5)[0]
        assert said == tokenizer.decode(answer), turn
        ended = answer[-1] == tokenizer.eos
        whole.add(answer + ([] if ended else [tokenizer.eos]), Role.ANSWER, turn)


def test_asked_alone_a_second_question_is_a_first_one(model, tokenizer, pictures):
    first, second, shown = "is there a red circle?", "how many circles?", list(pictures[:2])

    def answers(alone, *asked):
        talk = Conversation(model, tokenizer, alone=alone)
        return ["".join(talk.ask(message, images, 6)) for message, images in asked]

    two, asked = 2 * IMAGE_TOKEN, [(2 * IMAGE_TOKEN + first, shown), (second, [])]
    anew = answers(False, asked[0]) + answers(False, (two + second, shown))
    assert answers(True, *asked) == anew != answers(False, *asked)


@pytest.mark.parametrize("line, alone", [
    ("", True), ("--data nlvr", True), ("--data llava", False), ("--data shapes-text", False),
    ("--variant dialogues-half", False), ("--variant cca", True),
])  # fmt: skip
def test_runs_that_learned_from_dialogues_go_on(line, alone):
    assert talk.learned_alone(vars(arguments(line.split()))) == alone


# --- At the keyboard

HELP = "Ask about it. /image FILE gives another one; an empty line or Ctrl-D ends."


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("talk")
    for name in ("a.png", "b.png"):
        Picture.new("RGB", (64, 64), "red").save(folder / name)
    train.main([*QUICK, "--out", str(folder / "run")])
    return folder


@pytest.fixture
def say(folder, monkeypatch):
    """say(lines...) -> what a conversation prints, line by line, after its help. A model may print
    lines of its own: they do not count."""

    def say(*lines, run="run", show=("--image", folder / "a.png")):
        out = io.StringIO()
        monkeypatch.setattr(talk, "print", functools.partial(print, file=out), raising=False)
        monkeypatch.setattr("builtins.input", Mock(side_effect=lines))
        talk.main([str(folder / run), "--device", "cpu", *map(str, show)])
        said = out.getvalue().splitlines()
        assert said[0] == HELP or "--audio" in show
        return said[1:]

    return say


def test_a_conversation_at_the_keyboard(folder, say):
    """What cannot be done is said in a line, and the conversation goes on; commands are not asked
    of the model."""
    script = {
        "is there a red circle?": "",
        "/image none.png": "error: none.png: no such picture",
        "/image ~nosuchuser/a.png": "error: ~nosuchuser/a.png: no such user",
        "/image no room.png": "error: no room.png: no such",
        "caf\udce9?": ".*is not UTF-8 text",
        "/help": HELP, "/image": HELP, "quit": HELP,
        f"/image {folder / 'b.png'}": None,
        "and here?": "(?!error)",
    }  # fmt: skip
    expected = [pattern for pattern in script.values() if pattern is not None]
    for line, pattern in zip(say(*script, ""), expected, strict=True):
        assert re.match(pattern, line), line


@pytest.mark.parametrize("name, shown, says", [
    ("shapes", True, HELP), ("shapes", False, "/image FILE gives something to ask about; "),
    ("sounds", False, "/audio FILE gives something"), ("shapes-text", False, "Ask in words;"),
])  # fmt: skip
def test_the_help_says_what_fits_the_run_and_what_was_shown(name, shown, says):
    assert talk.help_of(name, shown).startswith(says)


def test_a_run_that_was_trained_on_sounds_is_asked_about_sounds(tmp_path, folder, say):
    file, image = tmp_path / "a.wav", folder / "a.png"
    audio.write(file, torch.randn(1, audio.SAMPLES)[0])
    train.main([*QUICK, "--data", "sounds", "--out", str(folder / "sounds")])
    lines = "is there a low drum?", f"/audio {file}", f"/image {image}", "and?", ""
    _, refused, _ = say(*lines, run="sounds", show=["--audio", file])
    assert "ask it with --audio" in refused
    with pytest.raises(SystemExit, match="begins with one of them"):
        say("", run="sounds", show=["--audio", file, "--image", image])


@pytest.mark.parametrize("typed", [
    "{}/my picture.png", '"{}/my picture.png"', "'{}/my picture.png'", r"{}/my\ picture.png",
    "~/my picture.png", r"~/my\ picture.png", "{}/it's.png", "~x.png",
])  # fmt: skip
def test_paths_are_found_as_they_are_typed_or_pasted(tmp_path, monkeypatch, typed):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name in ("my picture.png", "it's.png", "~x.png"):
        (tmp_path / name).touch()
    assert talk.path_of(typed.format(tmp_path)).exists()


def test_a_message_that_is_too_long_does_not_end_the_conversation(folder, say, monkeypatch):
    """Nor does one picture too many; what was shown before is still asked about."""
    asked, ask = [], Conversation.ask

    def counting(self, message, images):
        asked.append(len(images))
        return ask(self, message, images)

    monkeypatch.setattr(Conversation, "ask", counting)
    show = [f"/image {folder / 'b.png'}"] * 200
    said = say("is there a circle? " * 600, *show, "and here?", "")
    assert said[0].startswith("error: the message is too long: ")
    *left_out, answer = said[1:]
    assert all("cannot hold one more" in line for line in left_out) and left_out
    assert asked == [1, 201 - len(left_out)] and not answer.startswith("error")


@pytest.mark.parametrize("piece, error, said", [
    ("ye", KeyboardInterrupt(), "ye"),
    ("", data.DataError("no room for more: 9 of 9"), "error: no room for more: 9 of 9"),
])  # fmt: skip
def test_ctrl_c_and_a_full_conversation_end_it(say, monkeypatch, piece, error, said):
    """In an answer; Ctrl-C and Ctrl-D before a question, too."""

    def ask(*args):
        yield piece
        raise error

    for end in (KeyboardInterrupt(), EOFError()):
        assert say(end) == [""]
    monkeypatch.setattr(Conversation, "ask", ask)
    assert say("why?", "never asked") == [said]


def test_a_full_conversation_says_so(model, tokenizer, pictures):
    with pytest.raises(data.DataError, match="no room for more"):
        Conversation(model, tokenizer, room=12).ask(IMAGE_TOKEN + "is it red?", [pictures[0]])
