"""The runner of comparisons: on a program whose runs take no time, and on train.py."""

import contextlib
import os
import signal
import sys
import threading
import time
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from compared import FAKE, contents, read, result_of, run_of
from helpers import ROOT, without_drawing

import train
from engine import code
from lab import compare, experiments, publish, trials
from lab.experiments import Experiment

LINES = ["-m fake --mask causal", "-m fake --mask mma"]
CAUSAL, MMA = "causal", "mma"  # their names, without what they begin with


@pytest.fixture(autouse=True)
def published(tmp_path, monkeypatch):
    """A docs/results of each test's own, and the program."""
    monkeypatch.setattr(publish, "PUBLISHED", tmp_path / "published")
    (tmp_path / "fake.py").write_text(FAKE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return tmp_path / "published"


@pytest.fixture
def call(tmp_path, monkeypatch):
    """call(words...) -> the JSON that it wrote."""

    def call(*words):
        monkeypatch.setenv("CODE", code.fingerprint(SimpleNamespace(variant=None), "train"))
        compare.main(["--name", "it", "--runs", str(tmp_path / "runs"), *words])
        return read(tmp_path / "runs" / "results" / "it.json")

    return call


def folders(tmp_path, program="fake"):
    """What was begun, and how often."""
    files = sorted((tmp_path / "runs" / program).glob("*/begun"))
    return {file.parent.name: len(file.read_text().split()) for file in files}


# --- Lines over seeds


def test_lines_are_compared_over_seeds(call, tmp_path, capsys):
    result = call(*LINES, "--seeds", "0", "1", "2", "--jobs", "2", "--mark", "30")
    seeds = {arm: [run["seed"] for run in runs] for arm, runs in result["arms"].items()}
    assert seeds == {CAUSAL: [0, 1, 2], MMA: [0, 1, 2]}
    assert result["options"] == {CAUSAL: LINES[0], MMA: LINES[1]}
    rows = {row["claim"]: row for row in result["differences"]}
    overall = rows[f"{MMA} > {CAUSAL}"]
    assert overall["difference"] == pytest.approx(25) and overall["test"] == "paired"
    assert {f"{MMA} > {CAUSAL}, place", f"{MMA} > {CAUSAL}, count"} < set(rows)
    steps = rows[f"{MMA} is at 30 % on validation after fewer steps than {CAUSAL}"]
    assert steps["difference"] == pytest.approx(10)  # 20 steps of each seed, against 30
    loss = rows[f"{MMA} has a lower validation loss than {CAUSAL}"]
    assert loss["difference"] == pytest.approx(0.0625) and loss["here"] == "yes"
    out = capsys.readouterr().out
    assert "| validation loss |" in out and " +0.062 nats " in out
    assert " 51.7 ± 2.1 " in out and "30 % at step" in out and "+25.0 points" in out
    names = ("it.json", "it.md", "it_claims.md", "it.png")
    assert set(contents(tmp_path / "runs" / "results")) == set(names)
    assert not publish.PUBLISHED.exists()
    assert any(name.startswith("shapes-mma-2-") for name in folders(tmp_path))


def test_a_run_is_made_once_and_known_by_its_settings(call, tmp_path):
    call(LINES[1], "--seeds", "0")
    (name,) = folders(tmp_path)
    (tmp_path / "runs" / "fake" / name).rename(tmp_path / "runs" / "fake" / "another-name")
    line = "-m fake --mask mma --lr 0.004"  # the default
    assert call(line, "--seeds", "0")["arms"]["mma --lr 0.004"][0]["run"] == "another-name"
    assert folders(tmp_path) == {"another-name": 1}
    arms = call(LINES[1], line, "--seeds", "7", "--jobs", "2")["arms"]  # two lines, one run
    assert arms["mma"] == arms["mma --lr 0.004"]
    for other in ("--lr 0.002", "--source x.json", "--limit 7"):
        call(f"{LINES[1]} {other}", "--seeds", "0")
    call(LINES[1], "--seeds", "1")
    assert len(folders(tmp_path)) == 6 and set(folders(tmp_path).values()) == {1}


def test_a_run_of_other_code_is_not_taken_for_done(call, tmp_path, monkeypatch, capsys):
    call(LINES[1], "--seeds", "0")
    monkeypatch.setattr(code, "DECIDE", (*code.DECIDE, "LICENSE"))  # as if a file had changed
    call(LINES[1], "--seeds", "0", "--any-code")
    assert len(folders(tmp_path)) == 1
    call(LINES[1], "--seeds", "0")
    assert len(folders(tmp_path)) == 2
    versions = [run_of(80, seed, code=f"version {seed}") for seed in (0, 1)]
    for n, told in ((2, True), (1, False)):
        text = publish.report("it", result_of({"mma": versions[:n]}))["it.md"]
        assert ("2 versions of the code" in text) == told


def test_an_option_that_is_younger_than_the_run_has_its_default(tmp_path):
    """And a run with an option that the program does not know is another run."""
    args = SimpleNamespace(mask="mma", lr=0.004, origin={"mask": "you", "lr": "preset"})
    folder = tmp_path / "a"
    for made, found in (
        ({"mask": "mma", "lr": 0.004}, folder), ({"mask": "mma"}, folder),
        ({"lr": 0.004}, None), ({"mask": "mma", "order": "first"}, None),
    ):  # fmt: skip
        publish.write_json(folder / "run.json", {"args": {"data": "shapes"}})
        publish.write_json(folder / trials.SETTINGS, {"data": "shapes", **made})
        wanted = SimpleNamespace(data="shapes", **vars(args))
        assert trials.find(tmp_path, wanted) == found, made


def test_a_run_that_fails_is_said_and_loses_nothing(call, tmp_path, capsys):
    with pytest.raises(
        SystemExit, match=r"(?s)1 failed .*fail-1-\w+: error: it was to fail"
    ) as end:
        call(*LINES, "-m fake --fail", "--seeds", "0", "1")
    assert end.value.code not in (0, None)
    result = read(tmp_path / "runs" / "results" / "it.json")
    assert [len(runs) for runs in result["arms"].values()] == [2, 2, 1]
    assert result["missing"] == ["--fail-1"] and "Not yet run" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="1 failed"):  # the same command tries it again, alone
        call(*LINES, "-m fake --fail", "--seeds", "0", "1")
    assert sorted(folders(tmp_path).values()) == [1, 1, 1, 1, 1, 2]


def test_runs_go_side_by_side_on_one_thread_each(call, tmp_path):
    """Each of these waits for the other."""
    waits = "-m fake --wait *causal*", "-m fake --mask causal --wait *shapes-wait*"
    call(*waits, "--seeds", "0", "--jobs", "2")
    threads = [file.read_text() for file in (tmp_path / "runs" / "fake").glob("*/begun")]
    assert threads == ["1\n", "1\n"]


def test_ctrl_c_lets_the_runs_save_and_the_same_command_goes_on(call, tmp_path, capsys):
    line = ["-m fake --wait never", LINES[0], "--seeds", "0", "1", "--jobs", "2"]
    waiting = lambda: [name for name in folders(tmp_path) if "wait" in name]

    def interrupt():
        while len(waiting()) < 2:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(SystemExit) as end:
        call(*line)
    assert end.value.code == 130 and "the same command goes on" in capsys.readouterr().err
    assert all((tmp_path / "runs" / "fake" / name / "saved").exists() for name in waiting())
    assert [len(runs) for runs in call(*line)["arms"].values()] == [2, 2]
    assert all(folders(tmp_path)[name] == 2 for name in waiting())


def test_what_cannot_be_compared_is_said_before_anything_is_trained(call, monkeypatch, capsys):
    monkeypatch.setattr(compare, "train_all", None)
    for line, why in (("-m nowhere --x 1", "nowhere"), ("-m json --x 1", "cannot be compared"),
                      ("-m fake --llm {text}", "no line before it is named text")):  # fmt: skip
        with pytest.raises(SystemExit, match=why):
            call(line)
    with pytest.raises(SystemExit, match="no such arm; there are causal, mma"):
        call("nlvr", "--only", "cca")
    for words in ([], ["shapes", LINES[0]]):
        with pytest.raises(SystemExit):
            call(*words)
        assert "or give command lines, quoted" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(SystemExit, match="the tests need scipy: pip install scipy"):
        call(*LINES)


# --- Named comparisons


def named(monkeypatch, **fields):
    fields = {"program": "fake", "lines": {"causal": "--mask causal", "mma": "--mask mma"}} | fields
    monkeypatch.setitem(experiments.EXPERIMENTS, "depth", Experiment(**fields))


def test_a_first_seed_of_everything_comes_first(monkeypatch):
    named(monkeypatch, seeds={"mma": 3})

    def plan(*words):
        args = compare.arguments(["depth", *words])
        planned = trials.plan(compare.comparison(args)[1], args.seeds, args.extra, args.runs)
        return [(trial.arm, trial.seed) for trial in planned]

    assert plan() == [("causal", 0), ("mma", 0), ("mma", 1), ("mma", 2)]
    assert plan("--seeds", "3", "5", "--only", "mma") == [("mma", 3), ("mma", 5)]


def test_a_line_may_begin_with_the_run_of_another(call, tmp_path, monkeypatch):
    """Which is trained first, and without what follows --."""
    named(monkeypatch, lines={"text": "--mask causal", "mma": "--llm {text}"}, seeds=2)
    result = call("depth", "--only", "mma", "--jobs", "4", "--", "--lr", "0.5")
    assert list(result["arms"]) == ["text", "mma"] and result["settings"]["lr"] == 0.5
    for seed in (0, 1):
        text, mma = (result["arms"][arm][seed]["run"] for arm in ("text", "mma"))
        args = read(tmp_path / "runs" / "fake" / mma / "run.json")["args"]
        assert args["llm"] == str(tmp_path / "runs" / "fake" / text) and args["lr"] == 0.5
        assert read(tmp_path / "runs" / "fake" / text / "run.json")["args"]["lr"] == 0.004
    named(monkeypatch, lines={"text": "--fail", "mma": "--llm {text}"})
    with pytest.raises(SystemExit, match="2 failed|begins with .*, which failed"):
        call("depth", "--seeds", "7")


ASKED = """
import json, sys
from pathlib import Path
def main(argv):
    run, *words, flag, file = argv
    with open(Path(run) / "asked", "a") as asked:
        asked.write(" ".join(words) + ";")
    if "--fail" in words:
        raise SystemExit("error: no such split")
    of_eval = {"runs": [{"accuracy": 0.25, "n": 8, "families": {}}]}
    losses = [{"loss": 3.5}, {"loss": 9.25}]
    Path(file).write_text(json.dumps(losses if "loss" in words else of_eval))
"""


def test_finished_runs_are_asked_once(call, tmp_path, monkeypatch):
    """An official split, whose accuracy then is the run's; other masks; what is lost of a text."""
    (tmp_path / "asked_of_runs.py").write_text(ASKED)
    commands = {"dev": "--split dev", "v2v": "--mask v2v", "text, nats": "loss"}
    asks = {name: f"asked_of_runs {words}" for name, words in commands.items()}
    named(monkeypatch, asks=asks, split="dev", claims=("mma > causal",), seeds=2)
    for _ in range(2):
        result = call("depth")
    run, _ = result["arms"]["mma"]
    assert run["accuracy"] == 0.25 and run["n"] == 8
    asked = {"v2v": 25, "text, nats, before": 3.5, "text, nats, after": 9.25}
    assert run["asked"] == asked
    asked = (tmp_path / "runs" / "fake" / run["run"] / "asked").read_text()
    assert asked == "--split dev;--mask v2v;loss;"
    table = (tmp_path / "runs" / "results" / "it_claims.md").read_text()
    assert "| arm    | seeds | as trained |        v2v | text, nats, before |" in table
    named(monkeypatch, asks={"dev": "asked_of_runs --fail"}, split="dev", seeds=2)
    with pytest.raises(SystemExit, match="dev.json: error: no such split"):
        call("depth", "--seeds", "5", "6")
    with pytest.raises(SystemExit, match="no finished run of it .*leave --tables out"):
        call("depth", "--seeds", "5", "--tables")  # asks nothing either


# --- What is published


def test_a_part_never_replaces_what_is_published(call, published, monkeypatch):
    named(monkeypatch, claims=("mma > causal",), seeds=2)
    settings = {"data": "shapes", "lr": 0.004}
    runs = [run_of(80 + s, s, {"place": 80, "count": 80}) for s in range(3)]
    options = {"gone": "--mask gone", "causal": "--mask causal", "mma": "--mask mma"}
    old = result_of({arm: runs for arm in options}, options, settings, claims=("mma > causal",))
    publish.write(published, "it", old | {"missing": ["gone-7", "mma-1"]})
    before = contents(published)
    new = call("depth", "--only", "mma")
    assert contents(published) == before
    call("depth", "--only", "mma", "--publish")
    after = read(published / "it.json")
    assert list(after["arms"]) == ["gone", "causal", "mma"] and after["missing"] == ["gone-7"]
    assert after["arms"]["causal"] == runs and after["arms"]["gone"] == runs
    assert after["arms"]["mma"] == [*new["arms"]["mma"], runs[2]]
    for name, text in publish.report("it", after).items():
        assert (published / name).read_text(encoding="utf-8") == text + "\n"
    other = result_of({"mma": runs[:1]}, {"mma": "--order both"})  # of which no run is kept
    merged = publish.merge(after, other)
    assert merged["arms"] == {**after["arms"], "mma": runs[:1]}
    assert merged["options"] == {**after["options"], **other["options"]}
    monkeypatch.setattr(compare, "train_all", None)  # what follows is said before the first run
    with pytest.raises(SystemExit, match="do not belong .*: --lr is 0.5 and was 0.004"):
        call("depth", "--publish", "--", "--lr", "0.5")
    publish.write_json(published / "it.json", {"runs": []})
    with pytest.raises(SystemExit, match="written by another command"):
        call("depth", "--publish")


def test_tables_are_put_into_readme_and_docs_from_the_json(tmp_path, monkeypatch):
    published = tmp_path / "docs" / "results"
    publish.write(published, "a+b", result_of({"mma": [run_of(80)]}))
    publish.write(published, "speed", {"table": [["a", "b"], ["1", "2"]], "note": "here."})
    table, speed = ((published / name).read_text() for name in ("a+b.md", "speed.md"))
    assert speed == "| a | b |\n|---|--:|\n| 1 | 2 |\n\nhere.\n"
    for name in ("a+b.md", "speed.md"):
        (published / name).write_text("| old |")
    text = "before\n<!-- a+b.md -->\n{}<!-- end -->\nafter\n"
    pages = [tmp_path / "README.md", tmp_path / "docs" / "results.md"]
    for page in pages:
        page.write_text(text.format("| old |\n"))
    renew = publish.renew
    monkeypatch.setattr(publish, "renew", lambda: renew(tmp_path))
    compare.main(["--tables"])
    assert [page.read_text() for page in pages] == [text.format(table)] * 2
    assert (published / "speed.md").read_text() == speed
    (tmp_path / "docs" / "more.md").write_text("<!-- none.md -->\n<!-- end -->")
    pages[0].write_text(text.format(""))
    with pytest.raises(SystemExit, match="none.md is missing"):
        compare.main(["--tables"])
    assert pages[0].read_text() == text.format("")


# --- With train.py


FEW = ("--preset tiny --device cpu --pt-pictures 2 --pictures 2 --questions 2 --pt-steps 1 "
       "--steps 2 --eval-every 1 --save-every 1 --limit 6 --val-limit 6").split()  # fmt: skip


def here(trial):
    """As compare.launch, in this process, and without pictures."""
    publish.write_json(trial.folder / trials.SETTINGS, trial.settings)
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(None):
        without_drawing(patch)
        train.main([*trial.words, "--out", str(trial.folder), "--resume"])
    return Mock(poll=lambda: 0, returncode=0)


def test_train_py_end_to_end(call, monkeypatch):
    monkeypatch.setattr(compare, "launch", here)
    lines = ["--mask causal", "--mask mma --lr 0.002", "--seeds", "3"]
    result = call(*lines, "--", *FEW)
    assert list(result["arms"]) == ["causal", "mma --lr 0.002"]
    assert result["settings"]["steps"] == 2 and "lr" not in result["settings"]
    for (run,) in result["arms"].values():
        assert run["seed"] == 3 and list(run["curve"]) == ["1", "2"] and run["loss"] > 0
    assert call(*lines, "--tables", "--", *FEW) == result
