"""Published comparisons: each line is one of its program; what a fork adds is among them."""

import pytest

from engine.wings import VARIANTS, Variant
from lab import compare, experiments, trials
from mma import EXTRA_PAIRS

SOURCE = ["--", "--preset", "tiny", "--device", "cpu", "--source", "x"]


def settings_of(name, *words):
    """arm -> what makes its run the run it is, seed 0."""
    args = compare.arguments([name, "--runs", "none", *words])
    planned = trials.plan(compare.comparison(args)[1], [0], args.extra, args.runs)
    return {trial.arm: trial.settings for trial in planned}


@pytest.mark.parametrize("name", experiments.EXPERIMENTS)
def test_every_line_is_one_of_its_program(name):
    experiment, lines = experiments.EXPERIMENTS[name], experiments.EXPERIMENTS[name].lines
    settings = settings_of(name, *(SOURCE if "eyes" not in name else []))
    assert list(settings) == list(lines)
    assert len({str(s) for s in settings.values()}) == len(lines)
    assert {*experiment.detailed} <= {*experiment.claims}
    counts = experiment.seeds if isinstance(experiment.seeds, dict) else {}
    assert set(counts) <= set(lines) | set(experiments.ARMS)
    assert experiment.split in ("", *experiment.asks)


def test_what_the_experiments_vary():
    shapes, budget, scenes = (settings_of(name, *SOURCE) for name in ("shapes", "budget", "scenes"))
    assert budget["mma@1x"] == shapes["mma"]
    assert budget["causal@4x"]["steps"] == 4 * shapes["mma"]["steps"]
    assert (scenes["causal@8000"]["scenes"], scenes["causal@8000"]["keep_best"]) == (8000, True)
    equal = ("data", "steps", "pt_steps", "pictures", "questions", "lr", "adam_lr", "preset",
             "n_layer", "freeze", "pt_freeze")  # fmt: skip
    assert len({str([s[name] for name in equal]) for s in shapes.values()}) == 1
    for name in ("eyes_smollm2", "eyes_smollm2_rates"):
        for real in settings_of(name).values():
            assert real["lr"] * real["pt_lr_times"] == pytest.approx(0.0002)


def test_a_mask_and_a_method_that_a_fork_adds_are_arms(monkeypatch):
    before = experiments.arms_of_the_table()  # a fork's own copy may have some already
    for mask in EXTRA_PAIRS:
        assert mask in before or mask in experiments.NO_ARM
    monkeypatch.setitem(EXTRA_PAIRS, "mine", EXTRA_PAIRS["mma"])
    monkeypatch.setitem(VARIANTS, "method", Variant("a method"))
    added = {"mine": "--mask mine", "method": "--mask causal --variant method"}
    assert experiments.arms_of_the_table() == {**before, **added}
