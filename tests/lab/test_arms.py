"""The runner of trials, on runs that were made in a moment."""

import json
import threading

import pytest
from trials import SMALL, SOME, contents, make_here, read, result_of, run_arms, run_of

import data
from engine.tables import spread
from lab import arms, bench_arms, experiments, finished, publish, tables, variants
from model import MLLM


@pytest.fixture(autouse=True)
def published(tmp_path, monkeypatch):
    """A docs/results of each test's own."""
    monkeypatch.setattr(tables, "PUBLISHED", tmp_path / "published")
    return tmp_path / "published"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two arms, made by the command."""
    folder = tmp_path_factory.mktemp("arms")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "PUBLISHED", folder / "published")
        patch.setattr(finished, "TEST_TIME", {name: finished.TEST_TIME[name] for name in SOME})
        patch.setattr(arms, "make", make_here)
        run_arms(folder, "shapes", "--only", "mma", "causal", "--seeds", "0", "--jobs", "2")
    return folder


# --- Runs


def test_one_command_trains_and_writes_tables_json_and_curves(made):
    result = read(made / "results" / "shapes.json")
    seeds = {arm: [run["seed"] for run in runs] for arm, runs in result["arms"].items()}
    assert seeds == {"causal": [0], "mma": [0]}
    assert {(r["trained"], r["test"]) for r in result["test_time"]} == {
        (arm, test) for arm in ("causal", "mma") for test in ("as trained", *SOME)
    }
    as_trained = {r["trained"]: r for r in result["test_time"] if r["test"] == "as trained"}
    record = read(made / "runs" / "shapes-mma-0" / "run.json")
    assert record["n"] == 100 and as_trained["mma"]["accuracy"] == record["accuracy"]
    text = (made / "results" / "shapes.md").read_text()
    mean = spread([100 * run["accuracy"] for run in result["arms"]["mma"]])
    assert f" {mean} " in text
    assert "mma > causal" in (made / "results" / "shapes_claims.md").read_text()
    assert (made / "results" / "shapes.png").stat().st_size > 1000
    assert not (made / "published").exists()


def test_a_finished_run_is_not_made_again_and_is_known_by_its_settings(made, monkeypatch):
    monkeypatch.setattr(finished, "TEST_TIME", {})

    def forbidden(*args, **kwargs):
        raise AssertionError("trained again")

    monkeypatch.setattr(arms.subprocess, "run", forbidden)
    (made / "runs" / "shapes-causal-0").rename(made / "runs" / "another-name")
    try:
        result = run_arms(made, "shapes", "--only", "mma", "causal", "--seeds", "0")
        names = [run["run"] for runs in result["arms"].values() for run in runs]
        assert names == ["another-name", "shapes-mma-0"]
        depth = run_arms(made, "depth", "--tables")  # four layers are the default
        assert set(depth["arms"]) == {"mma@4", "causal@4"}
    finally:
        (made / "runs" / "another-name").rename(made / "runs" / "shapes-causal-0")


def test_a_run_with_an_option_that_train_does_not_know_is_another_run(made, tmp_path):
    record = read(made / "runs" / "shapes-causal-0" / "run.json")
    _, args = arms.command_line(["--data", "shapes"], "--mask causal", 0, SMALL[1:])
    (tmp_path / "a").mkdir()
    for more, found in (({}, tmp_path / "a"), ({"order": "text-first"}, None)):
        text = json.dumps({**record, "args": {**record["args"], **more}})
        (tmp_path / "a" / "run.json").write_text(text)
        assert arms.find(tmp_path, vars(args)) == found


def test_a_run_that_was_tested_on_fewer_questions_is_not_taken(made):
    at_limit = SMALL.index("--limit") + 1
    others = [*SMALL[:at_limit], "7", *SMALL[at_limit + 1 :]]
    with pytest.raises(SystemExit, match=f"with --limit {SMALL[at_limit]}, not 7; move it"):
        arms.main(["shapes", "--only", "mma", "--runs", str(made / "runs"), *others])


def test_what_is_missing_is_said(made, capsys, tmp_path):
    run_arms(made, "shapes", "--tables", "--seeds", "0", "1")
    out = capsys.readouterr().out
    assert "Not yet run: " in out and "prefix-0" in out
    assert "mma-0" not in out.split("Not yet run")[1].replace("mma+", "")
    with pytest.raises(SystemExit, match="no finished run of budget"):
        run_arms(tmp_path, "budget", "--tables")


def test_a_run_that_fails_is_reported(tmp_path):
    """The runs of all other tests here are made in this process; this one is train.py's."""
    folders = ["--runs", str(tmp_path), "--results", str(tmp_path)]
    why = "the first: error: --device nonsense"
    with pytest.raises(SystemExit, match=f"1 runs failed; see log.txt in .*shapes-mma-0; {why}"):
        one = ["shapes", "--only", "mma", "--seeds", "0"]
        arms.main([*one, *folders, "--", "--preset", "tiny", "--device", "nonsense"])


def test_runs_are_made_side_by_side_with_a_share_of_the_cores(tmp_path, monkeypatch):
    seen, both = [], threading.Barrier(2, timeout=60)  # each waits for the other

    def run(command, env, **options):
        both.wait()
        seen.append((command[command.index("--out") + 1], env["OMP_NUM_THREADS"]))
        return arms.subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(arms.os, "sched_getaffinity", lambda pid: range(4), raising=False)
    monkeypatch.setattr(arms.subprocess, "run", run)
    arms.make([("mma-0", []), ("causal-0", [])], tmp_path, 2)
    assert sorted(seen) == [(str(tmp_path / name), "2") for name in ("causal-0", "mma-0")]


def test_files_that_are_not_there_are_said_before_the_first_run(tmp_path, monkeypatch):
    monkeypatch.setattr(arms, "make", None)
    with pytest.raises(SystemExit, match="nowhere/train/questions.json: no such file"):
        run_arms(tmp_path, "easy_vqa", "--only", "mma", "--source", str(tmp_path / "nowhere"))
    with pytest.raises(SystemExit, match="--data nlvr needs --source"):
        run_arms(tmp_path, "nlvr", "--only", "mma")


def test_pictures_that_do_not_go_with_scenes_are_said_before_the_first_run(tmp_path, monkeypatch):
    monkeypatch.setattr(arms, "make", None)
    advice = "a step has 4 pictures; set --pictures and --pt-pictures to multiples of 16"
    with pytest.raises(SystemExit, match=advice):
        run_arms(tmp_path, "scenes")


@pytest.mark.parametrize("package, what", [("scipy", "claims"), ("matplotlib", "curves")])
def test_a_missing_package_is_named_before_anything_is_trained(
    package, what, tmp_path, monkeypatch
):
    installed = tables.importlib.util.find_spec
    missing = lambda name: None if name == package else installed(name)
    monkeypatch.setattr(tables.importlib.util, "find_spec", missing)
    monkeypatch.setattr(arms, "make", None)
    with pytest.raises(SystemExit, match=f"{what} need {package}: pip install {package}"):
        run_arms(tmp_path, "shapes")


# --- Seeds and splits


def test_each_arm_has_its_number_of_seeds_and_first_seeds_come_first():
    def planned(experiment: str, *options: str) -> list[tuple[str, int]]:
        args = arms.arguments([experiment, *options, "--", "--preset", "tiny"])
        return [
            (trial.arm, trial.seed)
            for trial in arms.plan(args, experiments.arms_of(experiment), ["--data", "shapes"])
            if trial.asked
        ]

    shapes = planned("shapes")
    assert [seed for _, seed in shapes] == sorted(seed for _, seed in shapes)
    seeds = {arm: [seed for name, seed in shapes if name == arm] for arm in experiments.ARMS}
    assert seeds["mma"] == seeds["causal"] == [0, 1, 2, 3, 4] and seeds["cca"] == [0, 1, 2]
    assert seeds["lora"] == [0]
    assert planned("depth")[-1] == ("causal@6", 0)
    assert {seed for _, seed in planned("depth", "--seeds", "3", "5")} == {3, 5}


def test_nlvr_compares_the_masks_on_dev_which_is_read_once(tmp_path, monkeypatch):
    args = arms.arguments(["nlvr+world", "--source", "x", "--", "--preset", "tiny"])
    table = experiments.arms_of("nlvr+world")
    trials = arms.plan(args, table, ["--data", "nlvr+world", "--source", "x"])
    seeds = {arm: [t.seed for t in trials if t.arm == arm and t.asked] for arm in table}
    assert seeds == {"causal": [0, 1], "mma": [0, 1]}
    assert experiments.arms_of("nlvr").keys() == {"causal", "mma"}
    assert experiments.arms_of("nlvr+world-high-rate").keys() == {*seeds, "prefix", "cca"}
    val = {"run": "x", "accuracy": 0.5, "consistency": 0.2, "families": {}, "n": 6}
    val |= {"args": {"data": "nlvr+world"}, "seed": 0, "params": 1, "unparsed": 0, "seconds": 1}
    dev = {**val, "accuracy": 0.75, "consistency": 0.25, "n": 12}
    dev["families"] = {
        f"{kind} {asks}": {"accuracy": 0.7 if kind == "towers" else 0.8, "n": 3}
        for kind in ("towers", "scattered") for asks in ("count", "place")
    }  # fmt: skip
    run, asked = tmp_path / "mma-0", []
    run.mkdir()
    (run / "run.json").write_text(json.dumps(val))
    (run / "metrics.jsonl").write_text(json.dumps({"step": 5, "val": {"accuracy": 0.9}}) + "\n")
    monkeypatch.setattr(arms, "find", lambda runs, s: run if s == trials[1].settings else None)

    def answer(line):
        asked.append(line)
        (run / "dev.json").write_text(json.dumps({"runs": [dev]}))

    monkeypatch.setattr(finished, "answer", answer)
    args.tables = True
    assert arms.collect(args, trials, table)["arms"] == {} and not asked
    args.tables = False
    for _ in range(2):
        result = arms.collect(args, trials, table)
    assert asked == [[str(run), "--split", "dev", "--json", str(run / "dev.json")]]
    (record,) = result["arms"]["mma"]
    assert record["accuracy"] == 0.75 and record["curve"] == {"5": 0.9}
    header, _, row = tables.arms_table(result["arms"]).splitlines()
    cells = dict(zip(*([c.strip() for c in line.split("|")] for line in (header, row))))
    assert [cells[c] for c in ("overall", "consistency", "towers", "scattered")] == [
        "75.0", "25.0", "70.0", "80.0"
    ]  # fmt: skip


# --- What is published: see also test_publish.py


def test_a_part_never_replaces_what_is_published(made, published, capsys):
    """`arms shapes --tables` with one finished run, and --only, rewrote the published table."""
    names = read(made / "runs" / "shapes-mma-0" / "run.json")["families"]
    runs = [run_of(80 + s, s, dict.fromkeys(names, 80 + s)) for s in range(3)]
    many = {arm: runs for arm in ("causal", "mma", "cca", "gone")}
    settings = arms.common_settings(["--data", "shapes"], SMALL[1:])
    options = {**experiments.ARMS, "gone": "--mask gone"}
    options = {arm: options[arm] for arm in many}
    old = {**result_of(options, settings, **many), "missing": ["cca-7", "mma-0"]}
    old["test_time"] = [{"trained": "mma", "test": "f", "accuracy": 0.5, "families": {}}]
    publish.write(published, "shapes", old)
    before = contents(published)

    new = run_arms(made, "shapes", "--tables", "--only", "mma", "--seeds", "0")
    assert contents(published) == before
    assert list(read(made / "results" / "shapes.json")["arms"]) == ["mma"]

    run_arms(made, "shapes", "--tables", "--only", "mma", "--seeds", "0", "--publish")
    after, printed = read(published / "shapes.json"), capsys.readouterr().out
    assert list(after["arms"]) == ["causal", "mma", "cca", "gone"]
    for arm in ("causal", "cca", "gone"):
        assert after["arms"][arm] == old["arms"][arm]
    assert after["arms"]["mma"] == [*new["arms"]["mma"], *old["arms"]["mma"][1:]]
    assert after["missing"] == ["cca-7"]
    tests = [(r["trained"], r["test"]) for r in after["test_time"]]
    assert tests[0] == ("mma", "f") and ("mma", "as trained") in tests
    for name, text in publish.report("shapes", after).items():
        assert (published / name).read_text(encoding="utf-8") == text + "\n"
        assert text in printed
    assert (published / "shapes_finding.md").read_text().splitlines()[-1].startswith("| gone ")


def test_runs_of_other_settings_are_not_mixed_into_the_published_table(made, published):
    publish.write(
        published, "shapes", result_of({"f": "--mask f"}, {"preset": "tiny"}, f=[run_of(8)])
    )
    before = contents(published)
    only = ["--tables", "--only", "mma", "--seeds", "0", "--publish"]
    with pytest.raises(SystemExit, match="do not belong into one table"):
        run_arms(made, "shapes", *only)
    assert contents(published) == before
    publish.write_json(published / "nlvr.json", {"runs": []})
    with pytest.raises(data.DataError, match="written by another command"):
        publish.publish("nlvr", result_of({}, {}, mma=[run_of(8)]), ["mma"])


# --- Step times


def test_step_times_are_those_of_a_step_of_train(monkeypatch):
    """Forward and backward pass under the arm's mask, then the update."""
    done, forward_backward = [], bench_arms.forward_backward
    clip_and_step = bench_arms.clip_and_step

    def forward(loss_of, batches, mask, *rest):
        done.append(mask)
        return forward_backward(loss_of, batches, mask, *rest)

    def update(model, *rest):
        done.append(type(model))
        return clip_and_step(model, *rest)

    monkeypatch.setattr(bench_arms, "forward_backward", forward)
    monkeypatch.setattr(bench_arms, "clip_and_step", update)
    small = "--preset tiny --pictures 2 --questions 2"
    lines = {"mma": f"--mask mma {small}", "rave": f"--mask causal --variant rave {small}"}
    times = bench_arms.step_times(lines, repeats=1)
    assert set(times) == {"mma", "rave"} and all(ms > 0 for ms in times.values())
    mma, rave = ["mma", MLLM], ["causal", variants.PairGateMLLM]
    assert done == [*mma, *rave, *rave, *mma, *mma, *rave]  # every other round backwards
