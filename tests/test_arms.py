"""The runner of experiments and the look at attention, on runs that were made in a moment."""

import json

import pytest
import torch

import arms
import data
import eval as evaluation
import look
import train
from data import shapes
from mma import attention_mask
from test_train_eval import TINY

SMALL = ["--", *TINY, "--steps", "2", "--eval-every", "2"]
SOME = ("v2v", "aif 0.5")  # of arms.TEST_TIME


def reproduce(folder, *args):
    arms.main([*args, "--runs", str(folder / "runs"), "--results", str(folder / "results"), *SMALL])
    return json.loads((folder / "results" / f"{args[0]}.json").read_text())


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two arms, made by the command."""
    folder = tmp_path_factory.mktemp("arms")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arms, "TEST_TIME", {name: arms.TEST_TIME[name] for name in SOME})
        reproduce(folder, "shapes", "--only", "mma", "causal", "--seeds", "0", "--jobs", "2")
    return folder


def test_one_command_trains_and_writes_tables_json_and_curves(made, capsys):
    result = json.loads((made / "results" / "shapes.json").read_text())
    assert {arm: [run["seed"] for run in runs] for arm, runs in result["arms"].items()} == {"causal": [0], "mma": [0]}
    assert {(r["trained"], r["test"]) for r in result["test_time"]} == {
        (arm, test) for arm in ("causal", "mma") for test in ("as trained", *SOME)}
    as_trained = {r["trained"]: r["accuracy"] for r in result["test_time"] if r["test"] == "as trained"}
    record = json.loads((made / "runs" / "shapes-mma-0" / "run.json").read_text())
    assert record["n"] == 100 and as_trained.keys() == {"causal", "mma"}
    text = (made / "results" / "shapes.md").read_text()
    mean = evaluation.spread([100 * run["accuracy"] for run in result["arms"]["mma"]])
    assert f" {mean} " in text and "mma > causal" in (made / "results" / "shapes_claims.md").read_text()
    assert (made / "results" / "shapes.png").stat().st_size > 1000


def test_a_finished_run_is_not_made_again_and_is_known_by_its_settings(made, monkeypatch):
    def forbidden(*args, **kwargs):
        raise AssertionError("trained again")
    monkeypatch.setattr(arms.subprocess, "run", forbidden)
    (made / "runs" / "shapes-causal-0").rename(made / "runs" / "another-name")
    result = reproduce(made, "shapes", "--only", "mma", "causal", "--seeds", "0", "--tables")
    assert [run["run"] for runs in result["arms"].values() for run in runs] == ["another-name", "shapes-mma-0"]
    depth = reproduce(made, "depth", "--tables")  # three layers are the default: these runs are there already
    assert set(depth["arms"]) == {"mma@3", "causal@3"}


def test_what_is_missing_is_said(made, capsys, tmp_path):
    reproduce(made, "shapes", "--tables", "--seeds", "0", "1")
    out = capsys.readouterr().out
    assert "Not yet run: " in out and "prefix-0" in out and "mma-0" not in out.split("Not yet run")[1].replace("mma+", "")
    with pytest.raises(SystemExit, match="no finished run of budget"):
        reproduce(tmp_path, "budget", "--tables")


def test_a_run_that_fails_is_reported(tmp_path):
    with pytest.raises(SystemExit, match="1 runs failed; see log.txt in .*easy_vqa-mma-0"):
        reproduce(tmp_path, "easy_vqa", "--only", "mma", "--seeds", "0", "--source", str(tmp_path / "nowhere"))


def test_every_arm_is_a_command_line_of_train():
    settings = {}
    for name, (source, options, _) in arms.EXPERIMENTS.items():
        assert source.split()[0] in data.NAMES
        for arm, line in options.items():
            args = arms.wanted(["--data", *source.split()], line, 0, ["--preset", "tiny"])[1]
            settings[name, arm] = json.dumps({k: v for k, v in vars(args).items() if k not in arms.WHERE}, sort_keys=True)
    default = train.arguments(["--preset", "tiny"]).steps
    assert f'"steps": {2 * default}' in settings["shapes", "dot-double"] and f'"steps": {4 * default}' in settings["budget", "mma@4x"]
    assert '"steps": 800' in settings["easy_vqa", "dot-double"] and '"steps": 400' in settings["easy_vqa", "mma"]
    assert settings["shapes", "mma"] == settings["depth", "mma@3"] == settings["budget", "mma@1x"] == settings["rates", "mma@0.004"]
    assert len({settings["shapes", arm] for arm in arms.ARMS}) == len(arms.ARMS)
    steps = {arm: json.loads(settings["shapes", arm]) for arm in arms.ARMS}
    same = ("data", "steps", "pt_steps", "pictures", "questions", "lr", "adam_lr", "preset", "n_layer", "freeze", "pt_freeze")
    assert len({tuple(str(s[k]) for k in same) for arm, s in steps.items() if arm != "dot-double"}) == 1  # equal data, steps, recipe


def test_mutual_needs_no_run_of_its_own():
    args = train.arguments(["--preset", "tiny"])
    source = data.load("shapes")
    tokenizer = data.Tokenizer.train(source.texts(), 1024)
    batch = train.Steps(source, tokenizer, train.config_of(args, tokenizer), "sft", args)[0]
    mma, mutual = (attention_mask(kind, batch["role"], batch["turn"]) for kind in ("mma", "mutual"))
    assert torch.equal(mma, mutual)


def test_verdicts_by_hand():
    assert arms.greater([90, 91, 92], [80, 81, 82]).startswith("yes (+10.0 ± 0.8")
    assert arms.greater([80, 81, 82], [90, 91, 92]).startswith("no (-10.0")
    assert arms.greater([80, 90, 100], [81, 91, 101]).startswith("not clear (-1.0")
    assert arms.greater([90], [80, 81, 82]) == "not clear (one seed)"

    def run(counting, existence, other, params=5):
        families = {"counting": counting, "existence": existence, "other": other}
        return {"accuracy": .5, "params": params, "families": {f: {"accuracy": a, "n": 1} for f, a in families.items()}}
    text = arms.claims({"mma": [run(.9, .9, .5)] * 2, "causal": [run(.5, .6, .4)] * 2})
    assert "yes (counting +40.0, existence +30.0, other +10.0)" in text
    assert "no (other +50.0" in arms.claims({"mma": [run(.9, .9, .9)] * 2, "causal": [run(.5, .6, .4)] * 2})


def test_step_times(monkeypatch):
    times = arms.step_times({"mma": "--mask mma --preset tiny", "rave": "--gate rave --preset tiny"}, repeats=1)
    assert set(times) == {"mma", "rave"} and all(ms > 0 for ms in times.values())


# --------------------------------------------------------------------------------------------------------------------

def test_the_cells_asked_about():
    red_circle, red_square, blue_circle = 0, 1, 2 * len(shapes.SHAPE)
    cells = [red_circle, -1, red_square, blue_circle] + [-1] * 12
    for question, expected in (
            ("is there a red circle?", [0]), ("how many circles are there?", [0, 3]), ("what shape is the blue object?", [3]),
            ("are there more red objects than blue objects?", [0, 2, 3]), ("are there more squares than circles?", [0, 2, 3]),
            ("is the red square left of the blue circle?", [2, 3]), ("what color is the square?", [2]),
            ("how many green diamonds are there?", [])):
        assert shapes.asked_about(question, cells) == expected, question


def test_layouts_are_those_of_the_held_out_pictures():
    world = shapes.Shapes()
    layouts = world.layouts("test")
    for i, e in enumerate(world.heldout("test", 200)):
        if e.family == "counting":
            assert str(len(shapes.asked_about(e.turns[0][0], layouts[i // 5]))) == e.turns[0][1]


def test_look_measures_and_draws(made, tmp_path, capsys):
    runs = [str(made / "runs" / name) for name in ("shapes-mma-0", "another-name")]
    look.main([*runs, "--results", str(tmp_path), "--questions", "40"])
    mma, causal = json.loads((tmp_path / "look.json").read_text())
    assert causal["image_to_question"] == [0.0] * 3 and min(mma["image_to_question"]) > 0.05
    for record in (mma, causal):
        assert record["questions"] == 40
        assert all(0 <= a <= p <= 1 for a, p in zip(record["answer_to_asked"], record["answer_to_picture"]))
    assert capsys.readouterr().out == (tmp_path / "look.md").read_text(encoding="utf-8") and (tmp_path / "look.png").stat().st_size > 5000


def test_to_picture_is_the_row_that_produces_the_answer():
    role = torch.tensor([[1, 2, 2, 3, 3, 0], [1, 2, 2, 3, 3, 3]])
    weights = torch.arange(2 * 2 * 36).view(2, 2, 6, 6).float()
    assert look.to_picture(weights, role).tolist() == [[[25, 26], [67, 68]], [[97, 98], [139, 140]]]


def test_look_wants_runs_of_the_built_in_world(easy_vqa, tmp_path):
    train.main([*TINY, "--data", "easy_vqa", "--source", str(easy_vqa), "--out", str(tmp_path / "run")])
    with pytest.raises(SystemExit, match="look.py needs runs on --data shapes"):
        look.main([str(tmp_path / "run")])
