"""A conversation over the cache is what the whole dialogue, read anew, would have given."""

import functools
import io

import pytest
import torch
from PIL import Image as Picture

import data
import train
from bridge import benchmarks
from data import IMAGE_TOKEN, Row, audio
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
@pytest.mark.parametrize("rings", [False, True])
@pytest.mark.parametrize("text_first", [False, True])
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
        skip = 1 if turn > 1 else 0
        whole.ids, whole.role = whole.ids + row.ids[skip:], whole.role + row.role[skip:]
        whole.turn += [turn] * len(row.ids[skip:])
        whole.images = whole.images + row.images
        batch = data.collate([whole], tokenizer.pad, 16)
        answer = model.generate(**batch, eos=tokenizer.eos, max_new_tokens=5)[0]
        assert said == tokenizer.decode(answer), turn
        ended = answer[-1] == tokenizer.eos
        whole.add(answer + ([] if ended else [tokenizer.eos]), Role.ANSWER, turn)
    with pytest.raises(data.DataError, match="no room for more"):
        Conversation(model, tokenizer, room=12).ask(asked[0][0], asked[0][1])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("talk")
    for name in ("a.png", "b.png"):
        Picture.new("RGB", (64, 64), "red").save(folder / name)
    train.main([*QUICK, "--out", str(folder / "run")])
    return folder


HELP = "Ask about it. /image FILE gives another one; an empty line or Ctrl-D ends."


def test_the_help_says_what_fits_the_run_and_what_was_shown(run):
    sees = talk.Look({"data": "shapes"}, run, 64)
    assert sees.help().startswith("/image FILE gives something to ask about; ")
    sees(image=run / "a.png")
    assert sees.help() == HELP
    for name, says in (("sounds", "/audio FILE gives something"), ("shapes-text", "Ask in words;")):
        assert talk.Look({"data": name}, run, 64).help().startswith(says)


def test_the_help_of_the_command_names_the_devices(capsys):
    for module in (talk, benchmarks):
        with pytest.raises(SystemExit):
            module.arguments(["--help"])
        assert "--device NAME" in (out := capsys.readouterr().out) and "cuda, mps or cpu" in out


def printed(monkeypatch) -> io.StringIO:
    """What lab/talk.py prints from now on: a model may print lines of its own."""
    out = io.StringIO()
    monkeypatch.setattr(talk, "print", functools.partial(print, file=out), raising=False)
    return out


def say(run, monkeypatch, *lines):
    """What a conversation prints, line by line, after its help."""
    left = iter(lines)

    def read(prompt):
        line = next(left)
        if isinstance(line, BaseException):
            raise line
        return line

    out = printed(monkeypatch)
    monkeypatch.setattr("builtins.input", read)
    talk.main([str(run / "run"), "--device", "cpu", "--image", str(run / "a.png")])
    said = out.getvalue().splitlines()
    assert said[0] == HELP
    return said[1:]


def test_a_conversation_at_the_keyboard(run, monkeypatch):
    show = f"/image {run / 'b.png'}"
    lines = ("is there a red circle?", "/image none.png", show, "and here?", "")
    said = say(run, monkeypatch, *lines)
    assert len(said) == 3 and "none.png: no such picture" in said[1]


def test_a_line_that_is_not_utf8_is_said_and_the_next_one_is_answered(run, monkeypatch):
    first, second = say(run, monkeypatch, "caf\udce9?", "is there a circle?", "")
    assert "is not UTF-8 text" in first and "UTF-8" not in second


@pytest.mark.parametrize("line", ["/help", "/image", "quit"])
def test_commands_are_not_asked_of_the_model(run, monkeypatch, line):
    assert say(run, monkeypatch, line, "") == [HELP]


def test_a_run_that_was_trained_on_sounds_is_asked_about_sounds(tmp_path, monkeypatch, run):
    file, hears = tmp_path / "a.wav", tmp_path / "run"
    audio.write(file, torch.randn(1, audio.SAMPLES)[0])
    train.main([*QUICK, "--data", "sounds", "--out", str(hears)])
    lines = iter(["is there a low drum?", f"/audio {file}", f"/image {run / 'a.png'}", "and?", ""])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    out = printed(monkeypatch)
    talk.main([str(hears), "--device", "cpu", "--audio", str(file)])
    said = out.getvalue().splitlines()
    assert (
        said[0] == HELP.replace("image", "audio")
        and len(said) == 4
        and "ask it with --audio" in said[2]
    )
    with pytest.raises(SystemExit, match="was trained on sounds"):
        talk.main([str(hears), "--device", "cpu", "--image", str(run / "a.png")])
    with pytest.raises(SystemExit, match="begins with one of them"):
        talk.main([str(hears), "--device", "cpu", "--audio", str(file), "--image", "a.png"])


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


@pytest.mark.parametrize("end", [KeyboardInterrupt(), EOFError()])
def test_ctrl_c_and_ctrl_d_end_it(run, monkeypatch, end):
    assert say(run, monkeypatch, end) == [""]


@pytest.mark.parametrize("file", ["~nosuchuser/a.png", "no room.png"])
def test_a_path_that_leads_nowhere_does_not_end_the_conversation(run, monkeypatch, file):
    error, _ = say(run, monkeypatch, f"/image {file}", "is there a circle?", "")
    assert error.startswith(f"error: {file}: no such")


def test_a_message_that_is_too_long_does_not_end_the_conversation(run, monkeypatch):
    """Nor does one picture too many; what was shown before is still asked about."""
    asked, ask = [], Conversation.ask

    def counting(self, message, images):
        asked.append(len(images))
        return ask(self, message, images)

    monkeypatch.setattr(Conversation, "ask", counting)
    show = [f"/image {run / 'b.png'}"] * 200
    lines = ["is there a circle? " * 600, *show, "and here?", ""]
    said = say(run, monkeypatch, *lines)
    assert said[0].startswith("error: the message is too long: ") and "\n" not in said[0]
    assert said[1].startswith("error: ") and "cannot hold one more" in said[1]
    left_out = sum("cannot hold one more" in line for line in said)
    assert asked == [1, 201 - left_out] and len(said) == 1 + left_out + 1


@pytest.mark.parametrize("piece, error, said", [
    ("ye", KeyboardInterrupt, "ye"),
    ("", data.DataError("no room for more: 9 of 9"), "error: no room for more: 9 of 9"),
])  # fmt: skip
def test_ctrl_c_and_a_full_conversation_end_it_in_an_answer(run, monkeypatch, piece, error, said):
    def ask(*args):
        yield piece
        raise error

    monkeypatch.setattr(Conversation, "ask", ask)
    assert say(run, monkeypatch, "why?", "never asked") == [said]
