"""The arms of the eyes experiment, on runs that were made in a moment."""

import json

import pytest
from helpers import ROOT
from trials import make_here, read, run_of

from data import DataError
from engine.run import read_record
from lab import arms, eyes, eyes_arms, tables

FEW = (
    "--device cpu --workers 0 --pt-pictures 2 --pictures 2 --questions 2 --pt-steps 1 --steps 2 "
    "--eval-every 1 --limit 6 --val-limit 6"
).split()
TEXT = " ".join([*FEW, "--preset", "tiny"])


@pytest.fixture(autouse=True)
def published(tmp_path, monkeypatch):
    """A docs/results of each test's own."""
    monkeypatch.setattr(tables, "PUBLISHED", tmp_path / "published")
    return tmp_path / "published"


def call(folder, *more, extra=()):
    line = ["--runs", str(folder / "runs"), "--results", str(folder / "results"), *more]
    eyes_arms.main([*line, "--text-options", TEXT, "--", *FEW, *extra])


SOME = ["--only", "causal", "mma", "causal-fresh", "--seeds", "0"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("eyes_arms")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(eyes_arms, "make", make_here)
        call(folder, *SOME)
    return folder


def test_one_command_trains_the_decoder_once_and_every_arm_from_it(made):
    result = read(made / "results" / "eyes.json")
    assert list(result["arms"]) == ["text", "causal", "mma", "causal-fresh"]
    records = {arm: read(made / "runs" / f"{arm}-0" / "run.json") for arm in result["arms"]}
    for arm, (mask, fresh) in {
        "causal": ("causal", False), "mma": ("mma", False), "causal-fresh": ("causal", True),
    }.items():  # fmt: skip
        args = records[arm]["args"]
        assert (args["mask"], args["fresh"], args["mask_from"]) == (mask, fresh, 0.0)
        assert args["llm"] == str((made / "runs" / "text-0").resolve())
        assert args["encoder"] == str(ROOT / "weights" / "shapes-causal")
    assert records["text"]["args"]["data"] == "shapes-text"
    text = (made / "results" / "eyes.md").read_text()
    assert "mma > causal | one seed" in " ".join(text.split())
    assert result["arms"]["mma"][0]["curve"].keys() == {"1", "2"}
    after = read(made / "runs" / "mma-0" / "test-text.json")["runs"][0]["accuracy"]
    assert result["arms"]["mma"][0]["text"] == after and "text" not in result["arms"]["text"][0]
    assert (made / "results" / "eyes.png").stat().st_size > 1000


def test_what_is_there_is_not_made_again_and_published_when_asked(made, published, monkeypatch):
    monkeypatch.setattr(eyes_arms, "make", lambda todo, *rest: todo and pytest.fail("made again"))
    call(made, *SOME)
    assert not published.exists()
    call(made, *SOME, "--publish")
    first = read(published / "eyes.json")
    assert first["arms"].keys() == {"text", "causal", "mma", "causal-fresh"}
    call(made, "--only", "mma", "--seeds", "0", "--publish", "--tables")
    assert read(published / "eyes.json") == first  # nothing that was published is lost


def test_a_run_of_other_settings_is_not_taken_for_this_one(made):
    with pytest.raises(SystemExit, match="was made with --lr 0.004, not 0.001; move it"):
        call(made, *SOME, "--tables", extra=["--lr", "0.001"])


def test_a_fresh_decoder_is_the_same_whosever_sizes_it_has(made):
    def finished(name):
        settings = read_record(made / "runs" / name)["args"]
        return eyes_arms.finished(made / "runs" / name, {**settings, "llm": "elsewhere"})

    assert finished("causal-fresh-0")
    with pytest.raises(DataError, match="was made with --llm"):
        finished("causal-0")


def test_what_is_missing_is_said(made, capsys):
    call(made, "--tables", "--only", "mma", "prefix", "--seeds", "0", "1")
    assert "Not yet run: text-1, mma-1, prefix-0, prefix-1." in capsys.readouterr().out
    with pytest.raises(SystemExit, match="no such arm; there are causal, mma"):
        call(made, "--only", "cca")


def test_what_all_runs_need_is_looked_for_before_the_first(tmp_path, monkeypatch):
    monkeypatch.setattr(eyes_arms, "make", None)
    folders = ["--runs", str(tmp_path), "--results", str(tmp_path)]
    with pytest.raises(SystemExit, match="typo: not a finished run"):
        eyes_arms.main([*folders, "--encoder", str(tmp_path / "typo")])
    with pytest.raises(SystemExit, match="config.json: no such file"):
        eyes_arms.main([*folders, "--llm", str(tmp_path / "nowhere")])


def test_the_plan(tmp_path):
    """Four masks with text and without, a rate for both masks alike."""
    args = eyes_arms.arguments(["--runs", str(tmp_path)])
    plan = eyes_arms.arms_of(args)
    assert len(plan) == 8 and args.seeds == [0, 1, 2, 3, 4]
    for arm, options in plan.items():
        got = eyes.options(eyes_arms.eyes_line(args, options, 0))
        assert got.fresh == arm.endswith("-fresh")
        assert got.mask_from == (0.5 if arm.startswith("late") else 0)
    args = eyes_arms.arguments(["--rates", "0.001", "0.002"])
    plan = eyes_arms.arms_of(args)
    assert set(plan) == {
        f"{mask}{start}@{lr}"
        for mask in ("causal", "mma") for start in ("", "-fresh") for lr in (0.001, 0.002)
    }  # fmt: skip
    assert args.seeds == [0, 1]
    assert eyes.options(eyes_arms.eyes_line(args, plan["mma@0.002"], 0)).lr == 0.002


def test_the_plan_for_a_real_llm(tmp_path):
    folder = tmp_path / "smol"
    args = eyes_arms.arguments(["--llm", str(folder), "--rates", "0.00005", "0.0002"])
    assert args.runs.name == "eyes-smol"
    plan = eyes_arms.arms_of(args)
    assert list(plan) == ["causal@5e-05", "causal@0.0002", "mma@5e-05", "mma@0.0002"]
    for arm, options in plan.items():
        got = eyes.options(eyes_arms.eyes_line(args, options, 1))
        assert (got.llm, got.preset, got.template) == (folder, "smollm2", "chatml")
        assert (got.mask, got.seed, got.lr) == (arm.split("@")[0], 1, float(arm.split("@")[1]))
        assert got.lr * got.pt_lr_times == pytest.approx(eyes_arms.REAL_PT_RATE)
    wrong = eyes_arms.arguments(["--llm", str(folder), "--only", "prefix"])
    with pytest.raises(DataError, match="there are causal, mma$"):
        eyes_arms.arms_of(wrong)
    plain = eyes_arms.arguments(["--llm", str(folder)])
    assert list(eyes_arms.arms_of(plain)) == ["causal", "mma"]
    usual = eyes.options(eyes_arms.eyes_line(plain, "", 0))
    assert usual.lr * usual.pt_lr_times == pytest.approx(eyes_arms.REAL_PT_RATE)


def test_what_sight_costs_a_real_llm_stands_in_its_table(tmp_path, monkeypatch):
    asked = []

    def measure(argv):
        asked.append(argv[0])
        records = [{"loss": 3.5}, {"loss": 9.25}]
        (tmp_path / "text-loss.json").write_text(json.dumps(records))

    monkeypatch.setattr(eyes_arms.text_loss, "main", measure)
    assert eyes_arms.plain_text(tmp_path, measure=False) is None
    for _ in range(2):  # measured once
        assert eyes_arms.plain_text(tmp_path, measure=True) == {"before": 3.5, "after": 9.25}
    assert asked == [str(tmp_path)]
    record = run_of(80, 0) | {"plain": {"before": 3.5, "after": 9.25}}
    table = eyes_arms.summary({"mma": [record]})
    assert "plain text, nats a token" in table and "9.2" in table and "before: 3.5 nats" in table


def test_comparisons_over_seeds():
    def runs(*accuracies):
        curve = lambda a: {"1": a / 200, "2": a / 100}
        return [
            run_of(a, seed, families={"place": a, "spatial": 50}, curve=curve(a))
            for seed, a in enumerate(accuracies)
        ]

    table = eyes_arms.comparisons({
        "mma": runs(90, 91, 92), "causal": runs(80, 81, 82.5),
        "mma-fresh": runs(70, 72, 71), "causal-fresh": runs(69, 72, 70),
    })  # fmt: skip
    lines = {
        line.split("|")[1].strip(): line.split("|")[2].strip() for line in table.splitlines()[:-2]
    }
    assert lines["mma > causal"].startswith("yes (+9.8 points")
    assert lines["mma > causal, place"].startswith("yes (+9.8 points")
    assert lines["mma > causal, spatial"] == "the same on every seed"
    assert lines["mma-fresh > causal-fresh"].startswith("not clear")
    assert lines["mma gains more over causal after text than without"].startswith("yes (+9.2")
    assert eyes_arms.with_error([1.0, 2.0, 3.0]) == "2.0 ± 0.6"


def test_runs_are_made_by_the_command_of_this_experiment(tmp_path, monkeypatch):
    seen = []

    def run(command, **options):
        seen.append(command)
        return arms.subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(arms.subprocess, "run", run)
    arms.make([("mma-0", ["--seed", "0"])], tmp_path, 1, ["-m", "lab.eyes"])
    out = str(tmp_path / "mma-0")
    assert seen[0][1:-3] == ["-m", "lab.eyes", "--seed", "0", "--out", out]
    assert seen[0][-1] == "--resume" and json.dumps(seen)
