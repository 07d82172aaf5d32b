"""Arms and experiments: each is a command line of train.py; what a fork adds is among them."""

import json

import pytest
import torch

import data
from engine.batches import StepBatches
from engine.options import arguments as train_arguments
from engine.wings import VARIANTS, Variant
from lab import arms, experiments
from mma import EXTRA_PAIRS, attention_mask
from model import Config


def test_every_arm_is_a_command_line_of_train():
    settings, table = {}, experiments.ARMS
    assert list(experiments.arms_of("shapes"))[: len(table)] == list(table)
    for name, (source, _, seeds, _) in experiments.EXPERIMENTS.items():
        assert set(seeds) <= set(experiments.arms_of(name))
        assert source.split()[0] in data.NAMES
        for arm, line in experiments.arms_of(name).items():
            args = arms.command_line(["--data", *source.split()], line, 0, ["--preset", "tiny"])[1]
            settings[name, arm] = arms.Trial(arm, 0, [], vars(args), True).identity
    usual = train_arguments(["--preset", "tiny"])
    default, layers = usual.steps, usual.n_layer
    assert f'"steps": "{2 * default}"' in settings["budget", "causal@2x"]
    assert f'"steps": "{4 * default}"' in settings["budget", "mma@4x"]
    assert '"steps": "400"' in settings["easy_vqa", "mma"]
    assert '"scenes": "8000"' in settings["scenes", "causal@8000"]
    assert '"keep_best": "True"' in settings["scenes", "causal@8000"]
    same = [
        settings["depth", f"mma@{layers}"],
        settings["budget", "mma@1x"],
        settings["rates", "mma@0.004"],
    ]
    assert same == [settings["shapes", "mma"]] * 3
    assert len({settings["shapes", arm] for arm in table}) == len(table)
    equal = (
        "data", "steps", "pt_steps", "pictures", "questions", "lr", "adam_lr", "preset", "n_layer",
        "freeze", "pt_freeze",
    )  # fmt: skip
    parsed = {arm: json.loads(settings["shapes", arm]) for arm in table}
    assert len({tuple(s[k] for k in equal) for s in parsed.values()}) == 1
    line = ["--variant", "leaky-captions", "--preset", "tiny"]
    leaky = vars(arms.command_line([], " ".join(line), 0, [])[1])
    assert leaky["pt_mask"] == "leaky"  # as run.json will have it


def test_every_kind_and_every_variant_is_an_arm_by_its_name():
    table = experiments.arms_of_the_table()
    for kind in EXTRA_PAIRS:
        assert kind in table or kind in experiments.NO_ARM
    for name in VARIANTS:
        (line,) = experiments.choose(table, [name]).values()
        assert f"--variant {name}" in line
    assert experiments.choose(table, ["rave"]) == {"rave-style": table["rave-style"]}
    assert experiments.choose(table, ["mma+cca", "causal"]) == {
        "causal": "--mask causal", "mma+cca": "--mask mma --variant cca"
    }  # fmt: skip
    assert experiments.choose(table, ["prefix+lora"]) == {
        "prefix+lora": "--mask prefix --variant lora"
    }
    for wrong in ("no-such", "no-such+lora", "mma@3"):
        with pytest.raises(data.DataError, match="no such arm; there are causal, mma"):
            experiments.choose(table, [wrong])
    with pytest.raises(data.DataError, match="no such arm"):
        experiments.choose(experiments.arms_of("depth"), ["cca"])


def test_a_line_that_a_fork_adds_is_an_arm(monkeypatch):
    before = experiments.arms_of("shapes")  # a fork's own copy may have some already
    monkeypatch.setitem(EXTRA_PAIRS, "mine", EXTRA_PAIRS["mma"])
    monkeypatch.setitem(VARIANTS, "method", Variant("a method"))
    added = {"mine": "--mask mine", "method": "--mask causal --variant method"}
    table = experiments.arms_of("shapes")
    assert table == {**before, **added}
    assert experiments.choose(table, ["mine", "method"]) == added
    for line in [*added.values(), "--mask mine --variant method"]:
        args = arms.command_line(["--data", "shapes"], line, 0, ["--preset", "tiny"])[1]
        assert (args.mask == "mine") == ("mine" in line)


def test_mutual_needs_no_run_of_its_own(tokenizer):
    args = train_arguments(["--preset", "tiny"])
    source, config = data.load("shapes"), Config(vocab_size=len(tokenizer))
    batch = StepBatches(source, tokenizer, config, "sft", args)[0][0]
    kinds = (attention_mask(kind, batch["role"], batch["turn"]) for kind in ("mma", "mutual"))
    assert torch.equal(*kinds)
