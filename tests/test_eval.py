"""Evaluation: tables and JSON of runs, one question about one picture, scores by hand."""

import json
import wave

import pytest
import torch
from helpers import enlarge, evaluated
from PIL import Image

import data
import eval as evaluation
from engine import checkpoint
from engine.asking import examples_of
from engine.options import arguments
from eval import normalise, score, summarise
from model import MLLM, Config


def make_run(out, tokenizer, mask="mma", seed=0, data="shapes"):
    """A finished run's folder, of random weights."""
    torch.manual_seed(seed)
    model = enlarge(MLLM(Config(vocab_size=len(tokenizer), mask=mask, n_layer=1))).float()
    args = vars(arguments(["--data", data, "--mask", mask, "--seed", str(seed), "--out", str(out)]))
    out.mkdir()
    checkpoint.write_file(out / "model.pt", lambda file: checkpoint.save_model(file, model))
    (out / "tokenizer.model").write_bytes(tokenizer.model)
    record = {"run": str(out), "params": 1234, "mask": mask, "seed": seed, "args": args}
    (out / "run.json").write_text(json.dumps(record, default=str))
    return out


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    """Runs, and files to ask about."""
    folder = tmp_path_factory.mktemp("evaluated")
    for mask, seed in (("mma", 0), ("mma", 1), ("causal", 0)):
        make_run(folder / f"{mask}-{seed}", tokenizer, mask, seed)
    for name, world in (("heard", "sounds"), ("heard-2", "sounds"), ("read", "shapes-text")):
        make_run(folder / name, tokenizer, data=world)
    Image.new("RGB", (100, 50), "red").save(folder / "x.png")
    with wave.open(str(folder / "x.wav"), "wb") as file:
        file.setparams((2, 3, 11025, 0, "NONE", ""))
        file.writeframes(bytes(range(6)) * 11025)
    (folder / "bad.wav").write_text("no sound")
    said = [{"from": "human", "value": "<image>q"}, {"from": "gpt", "value": "a"}]
    (folder / "x.json").write_text(json.dumps([{"image": "a.png", "conversations": said}]))
    return folder


@pytest.fixture(autouse=True)
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)


def run_eval(line: str, *options) -> None:
    evaluation.main([*line.split(), *map(str, options), "--device", "cpu"])


def test_table_and_json(tmp_path, capsys):
    results = evaluated("mma-0", "mma-1", "causal-0", "--limit", 60, "--md", tmp_path / "r.md")
    printed = capsys.readouterr().out
    assert (tmp_path / "r.md").read_text(encoding="utf-8").strip() in printed
    assert "mma (2 seeds)" in printed and "±" in printed and " causal |" in printed
    named = [("mma-0", "mma"), ("mma-1", "mma"), ("causal-0", "causal")]
    assert [(r["run"], r["mask"]) for r in results] == named
    for r in results:
        assert {"accuracy", "unparsed", "params", "seed", "args"} <= set(r)
        assert r["n"] == 60 == sum(f["n"] for f in r["families"].values())
    (record,) = evaluated("mma-0", "--split", "val", "--mask", "v2v", "--limit", 50)
    asked = {"data": "shapes", "source": None, "split": "val", "limit": 50}
    assert (record["mask"], record["evaluated"]) == ("v2v", asked)


def test_the_scenes_that_a_run_was_trained_on_are_asked_about():
    """Not new ones of the training split: else what it learned by heart could not be measured."""
    trained = vars(arguments(["--scenes", "16", "--seed", "3"]))
    asked = evaluation.arguments(["run", "--split", "train"])
    pictures = lambda examples: {e.images[0].numpy().tobytes() for e in examples}
    drawn = pictures(data.load("shapes", scenes=16).draw("sft", 0, 16, 1, 3))
    assert pictures(examples_of(trained, asked, 64)[1]) == drawn
    del trained["scenes"]  # a run that is older than the option
    assert not pictures(examples_of(trained, asked, 64)[1]) & drawn


# --- One question


def test_one_picture_is_asked_about(capsys):
    answers = []
    for question in ("is there a red circle?", "<image>is there a red circle?"):
        run_eval("mma-0 --image x.png --question", question)  # once the picture is there already
        answers.append(capsys.readouterr().out.splitlines()[-1])
    assert answers[0] == answers[1]


def test_a_sound_is_asked_about_and_what_was_done_to_it_is_said_once(capsys):
    run_eval("heard heard-2 --audio x.wav --question", "is there a low drum?")
    printed = capsys.readouterr()
    assert [printed.out.count(f"{name}: ") for name in ("heard", "heard-2")] == [1, 1]
    done = "11025 samples a second are made 8000; its 1.0 s are followed by silence, up to 2 s"
    assert printed.err == f"x.wav: {done}\n"


@pytest.mark.parametrize("line, says", [
    ("mma-0 --image x.png", "--image and --question belong together"),
    ("heard --audio x.wav", "--audio and --question belong together"),
    ("heard --audio x.wav --image x.png --question ?",
     "--image and --audio: a question is about one of them"),
    *((f"mma-0 --image x.png --question ? {option} new", f"{option} belongs to a data set")
      for option in ("--json", "--md", "--split", "--source")),
    ("mma-0 --audio x.wav --question ?", "was trained on pictures: ask it with --image FILE"),
    ("heard --image x.png --question ?", "was trained on sounds: ask it with --audio FILE.wav"),
    ("heard --audio none.wav --question ?", "none.wav: no such file"),
    ("heard --audio bad.wav --question ?", "bad.wav: not a readable WAV file"),
    ("mma-0 --image x.png --question caf\udce9?", r"'caf\udce9?' is not UTF-8 text"),
    ("heard --data shapes --json new", "was trained on sounds: it knows no pictures"),
    ("read --data shapes --json new", "was trained on text alone and never saw a picture"),
    ("mma-0 --data sounds --json new", "was trained on pictures: it knows no sounds"),
    ("mma-0 --data llava --source x.json --images none",
     "none: no such folder of pictures (check --images"),
    (".", "not a finished run, run.json is missing"),
    (". --json x.png/new", "x.png/new cannot be written"),  # said before anything is asked
    (". --md x.png/new", "x.png/new cannot be written"),
    ("mma-0/model.pt", "not a finished run, run.json is missing"),
])  # fmt: skip
def test_what_cannot_be_asked_is_one_line_and_leaves_no_file(folder, line, says):
    with pytest.raises(SystemExit) as stopped:
        run_eval(line)
    error = str(stopped.value)
    assert error.startswith("error: ") and says in error and "\n" not in error
    assert not (folder / "new").exists()


def test_what_is_of_two_runs_or_cut_short_is_named(tokenizer, tmp_path):
    larger = data.Tokenizer.train([" ".join(map(chr, range(0x4E00, 0x5200)))], 2048)
    run = make_run(tmp_path / "run", tokenizer)
    for name, content, says in (
        ("tokenizer.model", larger.model, f"{len(larger)} pieces belongs to another model"),
        ("model.pt", b"", "model.pt cannot be read: "),
        ("tokenizer.model", b"", "tokenizer.model cannot be read: "),
        ("tokenizer.json", b"", "tokenizer.json cannot be read: "),
        *(("run.json", content, "run.json cannot be read: ")
          for content in (b"{}", b"[]", b"no JSON", b'{"args": {}}', b'{"args": []}')),
    ):  # fmt: skip
        (run / name).write_bytes(content)
        with pytest.raises(SystemExit, match=says):
            run_eval(str(run))


# --- Answers


@pytest.mark.parametrize("written, form", [
    (" The  red, circle. ", "red circle"), ("Yes!", "yes"), ("An apple", "apple"), ("A.", "a"),
    ("It is 3.5.", "it is 3.5"), ("(3)", "3"), ("(a) Cat.", "cat"), ("the 50%…", "50%"),
    ("“Yes”", "yes"), ("‘yes.’", "yes"), ("„ja“", "ja"), ("« oui »", "oui"), ("‹oui›", "oui"),
    ("Don’t", "don t"), ("Don't", "don t"), ("是的。", "是的"), ("yes？", "yes"),
    ("（红，蓝）！", "红 蓝"), ("「はい」", "はい"), ("red；blue：", "red blue"), ("？", "?"),
    ("‘1,000’", "1,000"), ("1，000", "1,000"), ("５′10″", "5'10"), ("３．５", "3.5"),
    ("Ｙｅｓ", "yes"), ("−5", "-5"), ("2010–2015", "2010-2015"), ("Coca‑Cola", "coca-cola"),
    ("**Yes**", "yes"), ("_yes_, *it* is", "yes it is"), ("`5`", "5"), ("**Answer:** 5", "5"),
    ("**\"Yes\"**.", "yes"), ("The answer is 5.", "5"), ("**Yes, it is", "yes it is"),
    ("cafe\u0301", "caf\u00e9"), ("J\u030c", "\u01f0"), ("\u212b", "\u00e5"),
    ("\ufeffyes\u200b", "yes"), ("co\u00adla", "cola"), ("", ""), ("Answer:", "answer"),
    # What differs stays apart
    *((text, text) for text in "-2 +1 .5 12:30 1/2 ½ m² 2*3 a_b + < ? c++ c* answer".split()),
])  # fmt: skip
def test_what_is_written_in_several_ways_is_one_answer(written, form):
    assert normalise(written) == form


def test_an_answer_is_scored_by_hand(tokenizer, dialogues):
    """The true one is yes; what says more, or less, is wrong."""
    eos, closed = tokenizer.eos, {"yes", "no"}
    for said, known, end, correct, unparsed in (
        ("Yes.", None, (eos,), True, False), ("yes", None, (), True, False),
        ("no", None, (eos,), False, False),
        ("yes it is", None, (eos,), False, False), ("ye", None, (eos,), False, False),
        ("", None, (eos,), False, True), ("no", None, (), False, True),
        ("no", closed, (), False, False), ("red", closed, (eos,), False, True),
    ):  # fmt: skip
        result = score(dialogues[0], 0, [*tokenizer.encode(said), *end], tokenizer, known)
        assert (result["correct"], result["unparsed"]) == (correct, unparsed), said


def test_a_summary_by_hand():
    names = ("family", "correct", "unparsed", "group")
    some = ("a", True, False, "1"), ("a", False, False, "2"), ("a", True, False, "2")
    assert summarise([dict(zip(names, r)) for r in (*some, ("b", False, True, ""))]) == {
        "accuracy": 0.5, "n": 4, "unparsed": 1, "consistency": 0.5,
        "families": {"a": {"accuracy": 2 / 3, "n": 3}, "b": {"accuracy": 0.0, "n": 1}},
    }  # fmt: skip
