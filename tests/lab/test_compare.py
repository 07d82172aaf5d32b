"""The runner of comparisons: on a program whose runs take no time, and on train.py."""

import contextlib
import json
import os
import signal
import sys
import threading
import time
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from compared import FAKE, result_of, run_of
from helpers import ROOT, without_drawing

import train
from engine import code
from lab import compare, experiments, publish, trials
from lab.experiments import Experiment

LINES = ["-m fake --mask causal", "-m fake --mask mma"]  # called causal and mma


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
        made_by = code.fingerprint(SimpleNamespace(variant=None), "train")
        monkeypatch.setenv("CODE", json.dumps(made_by))
        compare.main(["--name", "it", "--runs", str(tmp_path / "runs"), *words])
        return read(tmp_path / "runs" / "results" / "it.json")

    return call


@pytest.fixture
def begun(tmp_path):
    """begun() -> the folders of the runs that were begun, and how often."""

    def begun():
        files = sorted((tmp_path / "runs" / "fake").glob("*/begun"))
        return {file.parent.name: len(file.read_text().split()) for file in files}

    return begun


@pytest.fixture
def named(monkeypatch):
    """named(fields of Experiment) puts one by the name of `depth`."""

    def named(**fields):
        lines = {"causal": "--mask causal", "mma": "--mask mma"}
        experiment = Experiment(**{"program": "fake", "lines": lines, **fields})
        monkeypatch.setitem(experiments.EXPERIMENTS, "depth", experiment)

    return named


def read(file):
    return json.loads(file.read_text(encoding="utf-8"))


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


# --- Lines over seeds


def test_lines_are_compared_over_seeds(call, tmp_path, capsys, begun):
    result = call(*LINES, "--seeds", "0", "1", "2", "--jobs", "2", "--mark", "30")
    seeds = {arm: [run["seed"] for run in runs] for arm, runs in result["arms"].items()}
    assert seeds == {"causal": [0, 1, 2], "mma": [0, 1, 2]}
    assert result["options"] == dict(zip(seeds, LINES)) and "mask" not in result["settings"]
    names = {"it.json", "it.md", "it_claims.md", "it.png"}
    assert set(contents(tmp_path / "runs" / "results")) == names
    out = " ".join(capsys.readouterr().out.split())
    for row in (
        "| arm | seeds | overall | place | count | validation, last look | validation loss | 30 %",
        f"| mma | 3 | {4 * '76.7 ± 2.1 | '}0.058 ± 0.005 | 20, 20, 20 | 7 |",
        "| mma > causal | yes | +25.0 points | +25.0 to +25.0 | < 0.001 | 3 | paired |",
        "| mma > causal, place | yes | +25.0 points | ",
        "| mma is at 30 % on validation after fewer steps than causal | yes | +10.0 steps | ",
        "| mma has a lower validation loss than causal | yes | +0.062 nats | +0.062 to +0.062 | ",
    ):
        assert row in out
    assert not publish.PUBLISHED.exists() and any(n.startswith("shapes-mma-2-") for n in begun())


def test_a_run_is_made_once_and_known_by_its_settings_and_its_code(
    call, tmp_path, begun, monkeypatch
):
    call(LINES[1], "--seeds", "0")
    (name,) = begun()
    (tmp_path / "runs" / "fake" / name).rename(tmp_path / "runs" / "fake" / "another-name")
    line = "-m fake --mask mma --lr 0.004"  # the default
    assert call(line, "--seeds", "0")["arms"]["mma --lr 0.004"][0]["run"] == "another-name"
    assert begun() == {"another-name": 1}
    arms = call(LINES[1], line, "--seeds", "7", "--jobs", "2")["arms"]  # two lines, one run
    assert arms["mma"] == arms["mma --lr 0.004"]
    source = tmp_path / "x.json"
    source.write_text("[]")
    for other in ("--lr 0.002", f"--source {source}", "--limit 7"):
        call(f"{LINES[1]} {other}", "--seeds", "0")
    assert len(begun()) == 5
    source.write_text("[1]")  # other data under the same name
    for _ in range(2):
        call(f"{LINES[1]} --source {source}", "--seeds", "0")
    assert len(begun()) == 6
    monkeypatch.setattr(code, "CORE", (*code.CORE, "LICENSE"))  # as if a file had changed
    call(LINES[1], "--seeds", "0", "--any-code")
    assert len(begun()) == 6
    call(LINES[1], "--seeds", "0")
    assert len(begun()) == 7 and set(begun().values()) == {1}


@pytest.mark.parametrize("made, found", [
    ({"mask": "mma", "lr": 0.004}, True), ({"mask": "mma"}, True), ({"lr": 0.004}, False),
    ({"mask": "mma", "order": "first"}, False),
])  # fmt: skip
def test_an_option_that_is_younger_than_the_run_has_its_default(tmp_path, made, found):
    """Unless it is given; and with an option that the program does not know it is another run."""
    publish.write_json(tmp_path / "a" / "run.json", {"args": {"data": "shapes"}})
    publish.write_json(tmp_path / "a" / trials.SETTINGS, {"data": "shapes", **made})
    origin = {"mask": "you", "lr": "preset"}
    wanted = SimpleNamespace(data="shapes", mask="mma", lr=0.004, origin=origin)
    assert trials.find(tmp_path, wanted) == (tmp_path / "a" if found else None)


def test_a_run_that_fails_is_said_and_loses_nothing(call, begun, tmp_path, capsys):
    for _ in range(2):  # the same command tries it again, alone
        with pytest.raises(SystemExit, match=r"(?s)1 failed .*fail-1-\w+: error: it was to fail"):
            call(*LINES, "-m fake --fail", "--seeds", "0", "1")
    result = read(tmp_path / "runs" / "results" / "it.json")
    assert [len(runs) for runs in result["arms"].values()] == [2, 2, 1]
    assert result["missing"] == ["--fail-1"] and "Not yet run" in capsys.readouterr().out
    assert sorted(begun().values()) == [1, 1, 1, 1, 1, 2]
    with pytest.raises(SystemExit, match="signal 9 ended it, as where memory runs out"):
        call(LINES[0], "-m fake --lr 0.9", "--seeds", "0")


@pytest.mark.parametrize("file, holds", [
    ("metrics.jsonl", '{"step": 10, "val"'), ("metrics.jsonl", None), ("run.json", "{"),
    ("run.json", '{"args": {"data": "shapes"}}'), ("settings.json", "{"),
])  # fmt: skip
def test_a_damaged_run_leaves_the_others(call, tmp_path, file, holds):
    made = call(*LINES, "--seeds", "0")
    damaged = tmp_path / "runs" / "fake" / made["arms"]["mma"][0]["run"] / file
    damaged.unlink() if holds is None else damaged.write_text(holds)
    with contextlib.suppress(SystemExit):  # one that cannot be known is made again
        call(*LINES, "--seeds", "0")
    result = read(tmp_path / "runs" / "results" / "it.json")
    assert result["arms"]["causal"] == made["arms"]["causal"]
    assert ("mma" in result["arms"]) == (result["missing"] == [])


def test_ctrl_c_lets_the_runs_save_and_the_same_command_goes_on(call, begun, tmp_path, capsys):
    """Two go side by side, on one thread each; the third does not begin."""
    waits = ["-m fake --wait", "-m fake --wait --lr 0.1"]
    line, folder = [*waits, LINES[0], "--seeds", "0", "--jobs", "2"], tmp_path / "runs" / "fake"

    def interrupt():
        while len(begun()) < 2:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(SystemExit) as end:
        call(*line)
    assert end.value.code == 130 and "the same command goes on" in capsys.readouterr().err
    assert all((run / "saved").exists() for run in folder.iterdir()) and len(begun()) == 2
    assert [len(runs) for runs in call(*line)["arms"].values()] == [1, 1, 1]
    assert sorted(begun().values()) == [1, 2, 2]
    assert {(run / "begun").read_text().strip()[-1] for run in folder.iterdir()} == {"1"}


@pytest.mark.parametrize("words, why", [
    (["-m nowhere --x 1"], "nowhere"),
    (["-m json --x 1"], "cannot be compared"),
    (["-m fake --llm {text}"], "no line before it is named text"),
    (["nlvr", "--only", "cca"], "no such arm; there are causal, mma"),
    ([], "2"), (["shapes", LINES[0]], "2"), ([LINES[0], "--only", "mma"], "2"),  # by argparse
    ([LINES[0], "-m fake --lr x"], "--lr x --seed 0: argument --lr: invalid float value: 'x'"),
    (["-m fake --source it's"], "it's: No closing quotation"),
    (["-m fake --seed 3"], "--seed is not a line's to say"),
    ([LINES[0], "--", "--overwrite"], "--overwrite is not a line's to say"),
    (LINES, "the tests need scipy: pip install scipy"),
])  # fmt: skip
def test_what_cannot_be_compared_is_said_before_anything_is_trained(call, monkeypatch, words, why):
    monkeypatch.setattr(compare, "train_all", None)
    if words == LINES:
        monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(SystemExit, match=why):
        call(*words)


def test_files_and_claims_of_own_lines(call, tmp_path):
    """The files are called by the lines and what follows --; no name holds a claim's > or -."""
    source = tmp_path / "my - data > x.json"
    source.write_text("[]")
    args = compare.arguments([*LINES, "--mask=causal", "--", "--source", "/a/b.json"])
    name, experiment = compare.comparison(args)
    assert (
        name == "m-fake-causal-vs-m-fake-mma-vs-mask-causal-source-b.json"
        and len(experiment.lines) == 3
    )
    result = call(LINES[0], f"-m fake --source '{source}'", "--seeds", "0", "1")
    assert len(result["differences"]) == 6 and "source holds" not in result["settings"]


# --- Named comparisons


@pytest.mark.parametrize("words, planned", [
    ([], [("causal", 0), ("mma", 0), ("mma", 1), ("mma", 2)]),
    (["--seeds", "3", "5", "--only", "mma"], [("mma", 3), ("mma", 5)]),
])  # fmt: skip
def test_a_first_seed_of_everything_comes_first(named, words, planned):
    named(seeds={"mma": 3})
    args = compare.arguments(["depth", *words])
    plan = trials.plan(compare.comparison(args)[1], args.seeds, args.extra, args.runs)
    assert [(trial.arm, trial.seed) for trial in plan] == planned


def test_a_line_may_begin_with_the_run_of_another(call, named, tmp_path):
    """Which is trained first, and without what follows --."""
    named(lines={"text": "--mask causal", "mma": "--llm {text}"}, seeds=2)
    result = call("depth", "--only", "mma", "--jobs", "4", "--", "--lr", "0.5")
    assert list(result["arms"]) == ["text", "mma"] and result["settings"]["lr"] == 0.5
    for runs in zip(*result["arms"].values()):
        text, mma = (tmp_path / "runs" / "fake" / run["run"] for run in runs)
        of_text, of_mma = (read(folder / "run.json")["args"] for folder in (text, mma))
        assert of_mma["llm"] == str(text) and (of_text["lr"], of_mma["lr"]) == (0.004, 0.5)
    named(lines={"text": "--fail", "mma": "--llm {text}"})
    with pytest.raises(SystemExit, match="2 failed|begins with .*, which failed"):
        call("depth", "--seeds", "7")


def test_finished_runs_are_asked_once(call, named, tmp_path):
    """An official split, whose accuracy then is the run's; other masks; what is lost of a text."""
    commands = {"dev": "--split dev", "v2v": "--mask v2v", "text, nats": "loss"}
    asks = {name: f"fake {words}" for name, words in commands.items()}
    named(asks=asks, split="dev", claims=("mma > causal",), seeds=2)
    for _ in range(2):
        result = call("depth")
    run, _ = result["arms"]["mma"]
    assert (run["accuracy"], run["n"]) == (0.25, 8)
    asked = (tmp_path / "runs" / "fake" / run["run"] / "asked").read_text()
    assert asked == "--split dev;--mask v2v;loss;"
    table = (tmp_path / "runs" / "results" / "it_claims.md").read_text()
    assert "| arm    | seeds | as trained |        v2v | text, nats, before |" in table
    named(asks={"dev": "fake --fail"}, split="dev", seeds=2)
    with pytest.raises(SystemExit, match="dev.json: error: no such split"):
        call("depth", "--seeds", "5", "6")
    with pytest.raises(SystemExit, match="no finished run of it .*leave --tables out"):
        call("depth", "--seeds", "5", "--tables")  # asks nothing either


# --- What is published


def test_a_part_never_replaces_what_is_published(call, named, published, monkeypatch):
    named(claims=("mma > causal",), seeds=2)
    runs = [run_of(80 + s, s, {"place": 80, "count": 80}) for s in range(3)]
    options = {"gone": "--mask gone", "causal": "--mask causal", "mma": "--mask mma"}
    settings, show = {"data": "shapes", "lr": 0.004}, {"claims": ("mma > causal",)}
    old = result_of(dict.fromkeys(options, runs), options, settings, **show)
    publish.write(published, "it", old | {"missing": ["gone-7", "mma-1"]})
    before = contents(published)
    new = call("depth", "--only", "mma")
    assert contents(published) == before
    call("depth", "--only", "mma", "--publish")
    after = read(published / "it.json")
    arms = {"gone": runs, "causal": runs, "mma": [*new["arms"]["mma"], runs[2]]}
    assert list(after["arms"].items()) == list(arms.items()) and after["missing"] == ["gone-7"]
    for name, text in publish.report("it", after).items():
        assert (published / name).read_text(encoding="utf-8") == text + "\n"
    other = result_of({"mma": runs[:1]}, {"mma": "--order both"})  # of which no run is kept
    merged = publish.merge(after, other)
    assert merged["arms"] == {**arms, "mma": runs[:1]}
    assert merged["options"] == {**after["options"], **other["options"]}
    monkeypatch.setattr(compare, "train_all", None)  # what follows is said before the first run
    with pytest.raises(SystemExit, match="do not belong .*: --lr is 0.5 and was 0.004"):
        call("depth", "--publish", "--", "--lr", "0.5")
    publish.write_json(published / "it.json", {"runs": []})
    with pytest.raises(SystemExit, match="written by another command"):
        call("depth", "--publish")


def test_tables_are_put_into_readme_and_docs_from_the_json(tmp_path, monkeypatch):
    """Into all of these, or none."""
    folder, readme = tmp_path / "docs" / "results", tmp_path / "README.md"
    pages, before = [readme, folder.with_suffix(".md")], "<!-- a+b.md -->\n| old |\n<!-- end -->\n"
    publish.write(folder, "a+b", {"table": [["a", "b"], ["1", "2"]], "note": "here."})
    for file in (folder / "a+b.md", *pages):
        file.write_text(before)
    renew = publish.renew
    monkeypatch.setattr(publish, "renew", lambda: renew(tmp_path))
    compare.main(["--tables"])
    table = "| a | b |\n|---|--:|\n| 1 | 2 |\n\nhere.\n"
    assert (folder / "a+b.md").read_text() == table
    assert [page.read_text() for page in pages] == [before.replace("| old |\n", table)] * 2
    pages[1].write_text("<!-- none.md -->\n<!-- end -->")
    readme.write_text(before)
    with pytest.raises(SystemExit, match="none.md is missing"):
        compare.main(["--tables"])
    assert readme.read_text() == before


def test_train_py_end_to_end(call, monkeypatch):
    few = ("--preset tiny --device cpu --pt-pictures 2 --pictures 2 --questions 2 --pt-steps 1 "
           "--steps 2 --eval-every 1 --save-every 1 --limit 6 --val-limit 6")  # fmt: skip

    def here(trial):
        """As compare.launch, in this process, and without pictures."""
        publish.write_json(trial.folder / trials.SETTINGS, trial.settings)
        assert trial.words[-2:] == ["--workers", "0"]  # several runs share the cores
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(None):
            without_drawing(patch)
            train.main([*trial.words, "--out", str(trial.folder), "--resume"])
        return Mock(poll=lambda: 0, returncode=0)

    monkeypatch.setattr(compare, "launch", here)
    lines = ["--mask causal", "--mask mma --lr 0.002", "--seeds", "3"]
    result = call(*lines, "--", *few.split())
    assert list(result["arms"]) == ["causal", "mma --lr 0.002"]
    assert result["settings"]["steps"] == 2 and "lr" not in result["settings"]
    for (run,) in result["arms"].values():
        assert run["seed"] == 3 and list(run["curve"]) == ["1", "2"] and run["loss"] > 0
    assert call(*lines, "--tables", "--", *few.split()) == result
