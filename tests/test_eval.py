"""Evaluation: tables and JSON of runs, one question about one picture, scores by hand."""

import json
import wave

import pytest
import torch
from helpers import TINY, enlarge
from PIL import Image

import data
import eval as evaluation
from engine.batches import examples_of
from engine.checkpoint import save_model
from engine.options import arguments
from engine.tables import markdown, parts_of, pool, spread, table
from eval import normalise, score, summarise
from model import MLLM, Config


def make_run(out, tokenizer, mask="mma", seed=0, data="shapes"):
    """A finished run's folder, of random weights."""
    torch.manual_seed(seed)
    model = enlarge(MLLM(Config(vocab_size=len(tokenizer), mask=mask, n_layer=1)))
    options = ["--data", data, "--mask", mask, "--seed", str(seed), "--out", str(out)]
    args = arguments([*TINY, *options])
    out.mkdir(parents=True)
    with open(out / "model.pt", "wb") as file:
        save_model(file, model.float())
    (out / "tokenizer.model").write_bytes(tokenizer.model)
    params = sum(p.numel() for p in model.parameters())
    record = {"run": str(out), "params": params, "mask": mask, "seed": seed}
    record["args"] = {k: v if isinstance(v, (int, float, list)) else v and str(v)
                      for k, v in vars(args).items()}  # fmt: skip
    (out / "run.json").write_text(json.dumps(record))
    return out


@pytest.fixture(scope="module")
def runs(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluated")
    for mask, seed in (("mma", 0), ("mma", 1), ("causal", 0)):
        make_run(folder / f"{mask}-{seed}", tokenizer, mask, seed)
    return folder


def test_table_and_json(runs, tmp_path, capsys):
    names = [str(runs / name) for name in ("mma-0", "mma-1", "causal-0")]
    files = ["--json", str(tmp_path / "r.json"), "--md", str(tmp_path / "r.md")]
    evaluation.main([*names, "--device", "cpu", "--limit", "60", *files])
    printed = capsys.readouterr().out
    assert (tmp_path / "r.md").read_text(encoding="utf-8").strip() in printed
    assert "mma (2 seeds)" in printed and "±" in printed and " causal |" in printed
    assert "**overall**" in printed
    result = json.loads((tmp_path / "r.json").read_text())["runs"]
    promised = {"run", "accuracy", "families", "n", "unparsed", "params", "mask", "seed", "args"}
    for r, name in zip(result, names, strict=True):
        assert promised <= set(r)
        assert r["run"] == name and r["n"] == 60 == sum(f["n"] for f in r["families"].values())
    assert [r["mask"] for r in result] == ["mma", "mma", "causal"]


def test_another_split_another_mask_and_one_picture(runs, tmp_path, capsys):
    run, file = str(runs / "mma-0"), tmp_path / "r.json"
    options = ["--split", "val", "--mask", "v2v", "--limit", "50", "--json", str(file)]
    evaluation.main([run, "--device", "cpu", *options])
    record = json.loads(file.read_text())["runs"][0]
    asked = {"data": "shapes", "source": None, "split": "val", "limit": 50}
    assert (record["mask"], record["evaluated"]) == ("v2v", asked)
    capsys.readouterr()
    Image.new("RGB", (100, 50), "red").save(tmp_path / "x.jpg")
    picture = ["--image", str(tmp_path / "x.jpg")]
    evaluation.main([run, "--device", "cpu", *picture, "--question", "is there a red circle?"])
    *_, answer = capsys.readouterr().out.splitlines()
    again = ["--question", "<image>is there a red circle?"]  # the picture is there already
    evaluation.main([run, "--device", "cpu", *picture, *again])
    assert capsys.readouterr().out.splitlines()[-1] == answer
    with pytest.raises(SystemExit, match="--image and --question belong together"):
        evaluation.main([run, "--device", "cpu", *picture])
    for option in ("--json", "--md", "--split", "--source"):
        with pytest.raises(SystemExit, match=f"{option} belongs to a data set"):
            evaluation.main([run, "--device", "cpu", *picture, *again, option, str(tmp_path / "x")])


def test_the_scenes_that_a_run_was_trained_on_are_asked_about():
    """Not new ones of the training split: else what it learned by heart could not be measured."""
    trained = vars(arguments(["--preset", "tiny", "--scenes", "16", "--seed", "3"]))
    asked = evaluation.arguments(["run", "--split", "train"])

    def pictures(examples) -> set:
        return {e.images[0].numpy().tobytes() for e in examples}

    drawn = pictures(data.load("shapes", scenes=16).draw("sft", 0, 16, 1, 3))
    assert pictures(examples_of(trained, asked, 64)[1]) == drawn
    del trained["scenes"]  # a run that is older than the option
    assert not pictures(examples_of(trained, asked, 64)[1]) & drawn


def test_a_sound_is_asked_about_and_what_was_done_to_it_is_said_once(tokenizer, tmp_path, capsys):
    names = [str(make_run(tmp_path / n, tokenizer, data="sounds")) for n in ("a", "b")]
    with wave.open(str(tmp_path / "x.wav"), "wb") as file:
        file.setparams((2, 3, 11025, 0, "NONE", ""))
        file.writeframes(bytes(range(6)) * 11025)
    asked = ["--audio", str(tmp_path / "x.wav"), "--question", "is there a low drum?"]
    evaluation.main([*names, "--device", "cpu", *asked])
    printed = capsys.readouterr()
    assert [printed.out.count(f"{name}: ") for name in names] == [1, 1]
    done = "11025 samples a second are made 8000; its 1.0 s are followed by silence, up to 2 s"
    assert printed.err == f"{tmp_path / 'x.wav'}: {done}\n"


def test_pictures_are_not_asked_of_a_run_on_sounds_nor_the_other_way_round(
    runs, tokenizer, tmp_path
):
    heard, seen = make_run(tmp_path / "heard", tokenizer, data="sounds"), runs / "mma-0"
    picture, sound = ["--image", str(tmp_path / "x.png")], ["--audio", str(tmp_path / "x.wav")]
    Image.new("RGB", (64, 64)).save(tmp_path / "x.png")
    question = ["--question", "is there a low drum?", "--device", "cpu"]

    def error(*options) -> str:
        with pytest.raises(SystemExit) as stopped:
            evaluation.main(list(map(str, options)))
        return str(stopped.value)

    known = f"error: {seen} was trained on pictures: ask it with --image FILE"
    assert error(seen, *sound, *question) == known
    known = f"error: {heard} was trained on sounds: ask it with --audio FILE.wav"
    assert error(heard, *picture, *question) == known
    assert error(heard, *sound, *question) == f"error: {tmp_path / 'x.wav'}: no such file"
    (tmp_path / "x.wav").write_text("no sound")
    assert "x.wav: not a readable WAV file" in error(heard, *sound, *question)
    assert error(heard, *sound) == "error: --audio and --question belong together"
    both = error(heard, *sound, *picture, *question)
    assert both == "error: --image and --audio: a question is about one of them"


@pytest.mark.parametrize("trained,asked,says", [
    ("sounds", "shapes", "was trained on sounds: it knows no pictures"),
    ("shapes-text", "shapes", "was trained on text alone and never saw a picture"),
    ("shapes", "sounds", "was trained on pictures: it knows no sounds"),
])  # fmt: skip
def test_a_run_is_not_scored_on_what_it_never_saw(tokenizer, tmp_path, trained, asked, says):
    run, file = make_run(tmp_path / "run", tokenizer, data=trained), tmp_path / "r.json"
    with pytest.raises(SystemExit, match=f"run {says}"):
        evaluation.main([str(run), "--data", asked, "--device", "cpu", "--json", str(file)])
    assert not file.exists()


def test_a_folder_of_pictures_that_is_not_there_is_an_error(runs, tmp_path):
    entry = {"image": "a.png", "conversations": [{"from": "human", "value": "<image>\nq"},
                                                 {"from": "gpt", "value": "a"}]}  # fmt: skip
    (tmp_path / "x.json").write_text(json.dumps([entry]))
    data = ["--data", "llava", "--source", str(tmp_path / "x.json"), "--images", "none"]
    with pytest.raises(SystemExit, match="none: no such folder of pictures .check --images"):
        evaluation.main([str(runs / "mma-0"), *data, "--device", "cpu"])


def test_what_is_not_a_run_is_named(runs, tmp_path):
    for path in (tmp_path, runs / "mma-0" / "model.pt"):
        with pytest.raises(SystemExit, match="not a finished run, run.json is missing"):
            evaluation.main([str(path)])


@pytest.mark.parametrize("name", ["model.pt", "tokenizer.model", "tokenizer.json"])
def test_an_empty_file_of_a_run_is_named(name, tokenizer, tmp_path):
    (make_run(tmp_path / "run", tokenizer) / name).write_bytes(b"")
    with pytest.raises(SystemExit, match=f"error: .*{name} cannot be read: .+"):
        evaluation.main([str(tmp_path / "run"), "--device", "cpu"])


def test_a_tokenizer_of_another_model_is_named(tokenizer, tmp_path):
    run, texts = make_run(tmp_path / "run", tokenizer), [chr(n) for n in range(0x4E00, 0x5200)]
    larger = data.Tokenizer.train([" ".join(texts)], 2048)
    (run / "tokenizer.model").write_bytes(larger.model)
    with pytest.raises(SystemExit, match=f"{len(larger)} pieces belongs to another model"):
        evaluation.main([str(run), "--device", "cpu"])


def test_normalise():
    same = [(" The  red, circle. ", "red circle"), ("Yes!", "yes"), ("An apple", "apple")]
    for one, other in (*same, ("A.", "a"), ("It is 3.5.", "it is 3.5")):
        assert normalise(one) == normalise(other)
    different = [("A", ""), ("-1", "1"), ("+", "-"), ("C++", "C"), ("<", ">"), ("3.5", "35")]
    different += [
        ("?", ""),
        ("m²", "m2"),
        ("2*3", "23"),
        ("C*", "C"),
        ("Answer:", ""),
        ("a_b", "ab"),
    ]
    for one, other in different:
        assert normalise(one) != normalise(other)


@pytest.mark.parametrize("one, other", [
    ("“Yes”", "yes"), ("‘yes.’", "yes"), ("„ja“", "ja"), ("« oui »", "oui"), ("‹oui›", "oui"),
    ("Don’t", "Don't"), ("Donʼt", "Don't"), ("是的。", "是的"), ("yes？", "yes"),
    ("（红，蓝）！", "红 蓝"),
    ("red；blue：", "red blue"), ("well…", "well"), ("？", "?"), ("“3”", "3"), ("'3'", "3"),
    ('"3"', "3"), ("‘1,000’", "1,000"), ("5′10″", "5'10\""), ("1，000", "1,000"),
    ("3．5", "3.5"), ("３．５", "3.5"), ("Ｙｅｓ", "yes"),
    ("**Yes**", "yes"), ("_yes_, *it* is", "yes it is"), ("`5`", "5"), ("**Answer:** 5", "5"),
    ("**\"Yes\"**.", "yes"), ("The answer is 5.", "5"), ("**Yes, it is", "yes it is"),
    ("caf\u00e9", "cafe\u0301"), ("J\u030c", "\u01f0"), ("\u212b", "\u00e5"),
    ("가", "\u1100\u1161"), ("−5", "-5"), ("2010–2015", "2010-2015"), ("Coca‑Cola", "coca-cola"),
    ("\ufeffyes\u200b", "yes"), ("co\u00adla", "cola"), ("「はい」", "はい"),
])  # fmt: skip
def test_what_unicode_writes_in_several_ways_is_one_answer(one, other):
    assert normalise(one) == normalise(other) and normalise(one)


def test_numbers_stay_as_they_are_written():
    for number in "3.5 1,000 -2 .5 12:30 5'10 +1 1/2 50% m² ½".split():
        for said in (number, f"{number}.", f"“{number}”", f"({number})", f"the {number}…"):
            assert normalise(said) == number


def test_a_question_that_is_not_utf8_is_named(model, tokenizer, pictures):
    with pytest.raises(data.DataError, match=r"^'caf\\udce9\?' is not UTF-8 text$"):
        evaluation.ask(model, tokenizer, pictures[0], ["caf\udce9?"])


def test_an_answer_is_scored_by_hand(tokenizer, dialogues):
    eos = tokenizer.eos

    def judged(said, known=None, end=(eos,)):
        ids = [*tokenizer.encode(said), *end]
        result = score(dialogues[0], 0, ids, tokenizer, known)
        return result["correct"], result["unparsed"]

    assert judged("Yes.") == (True, False) and judged("no") == (False, False)
    assert judged("") == (False, True) and judged("no", end=()) == (False, True)
    closed = {"yes", "no"}
    assert judged("no", closed, ()) == (False, False) and judged("red", closed) == (False, True)


def test_a_summary_by_hand():
    def r(family, correct, unparsed=False):
        return dict(family=family, correct=correct, unparsed=unparsed, group="")

    s = summarise([r("a", True), r("a", False), r("a", True), r("b", False, True)])
    families = {"a": {"accuracy": 2 / 3, "n": 3}, "b": {"accuracy": 0.0, "n": 1}}
    assert s == {"accuracy": 0.5, "n": 4, "unparsed": 1, "families": families}


def summary(name, mask, seed, accuracy):
    return {
        "run": name, "accuracy": accuracy, "families": {"a": {"accuracy": accuracy, "n": 10}},
        "n": 10, "unparsed": 0, "params": 1234, "mask": mask, "seed": seed,
        "args": {"mask": mask, "seed": seed, "out": name, "lr": 0.1},
    }  # fmt: skip


def test_families_of_two_words_are_told_by_each_word_too():
    numbers = {"towers count": (0.5, 10), "towers place": (0.25, 30), "scattered count": (1.0, 30)}
    families = {name: {"accuracy": a, "n": n} for name, (a, n) in numbers.items()}
    parts = parts_of(families)
    assert list(parts) == ["scattered", "towers", "count", "place"]
    assert parts["towers"] == {"accuracy": (5 + 7.5) / 40, "n": 40}
    assert parts["count"] == {"accuracy": (5 + 30) / 40, "n": 40}
    other = {**families, "all": {"accuracy": 1, "n": 1}}
    assert parts_of(other) == other
    run = {"run": "x", "accuracy": 0.6, "families": families, "n": 70, "unparsed": 0, "params": 1,
           "mask": "mma", "seed": 0, "args": {}}  # fmt: skip
    lines = [line.split("|")[1:3] for line in table(pool([run])).splitlines()]
    cells = {name.strip(): value.strip() for name, value in lines}
    assert (cells["towers place"], cells["towers"], cells["count"]) == ("25.0", "31.2", "87.5")


def test_pooled_seeds_by_hand():
    a, b = summary("x", "mma", 0, 0.8), summary("y", "mma", 1, 0.9)
    text = table(pool([a, b, summary("z", "causal", 0, 0.5)]))
    assert "85.0 ± 7.1" in text and "50.0" in text and "1,234" in text
    assert "seeds" not in table(pool([a, dict(a)]))  # the same seed twice is one seed
    families = {"b": {"accuracy": 0.4, "n": 10}}
    other = {**summary("w", "mma", 0, 0.4), "families": families, "args": {"lr": 0.2}}
    assert "| -" in " ".join(table(pool([a, other])).split())


def test_a_runs_name_that_is_not_utf8_can_be_written():
    a, b = summary("caf\udce9", "mma", 0, 0.8), summary("b", "causal", 0, 0.8)
    b["mask"] = "mma"
    assert list(pool([a, b])) == ["caf\\udce9", "b"]


def test_spread_and_markdown():
    assert spread([]) == "-" and spread([1.0]) == "1.0" and spread([1.0, 3.0]) == "2.0 ± 1.4"
    lines = markdown([["a", "bb"], ["ccc", "1"]]).splitlines()
    assert lines == ["| a   | bb |", "|-----|---:|", "| ccc |  1 |"]
