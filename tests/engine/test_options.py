"""The command line: what fills it up, and where each setting comes from."""

import re
from pathlib import Path

import pytest
from helpers import record_of, train_tiny

from engine.options import arguments


@pytest.mark.parametrize("line, expected", [
    ("--preset tiny --steps 7", dict(
        steps=7, pt_steps=500, n_layer=4, lr=0.004, adam_lr=0.002, pt_adam_lr=0.002,
        freeze=["encoder"], vocab_size=4096, out=Path("runs/shapes-mma-0"),
    )),
    ("--vocab-size 300 --adam-lr 0.5", dict(vocab_size=300, pt_adam_lr=0.5)),
    ("--data nlvr+world --source /x --variant cca --seed 2", dict(
        freeze=[], image_size=100, patch_size=20, source=Path("/x"),
        out=Path("runs/nlvr+world-mma-cca-2"),
    )),
    ("--data nlvr+world --source /x --pictures 32 --freeze embed norm", dict(
        lr=0.002, adam_lr=0.002, pictures=32, questions=4, freeze=["embed", "norm"],
    )),  # a recipe is before the preset, you are before both
    ("--optimizer adamw", dict(lr=0.002)),  # not Muon's
    ("--optimizer adamw --lr 0.5", dict(lr=0.5)),
])  # fmt: skip
def test_what_is_left_open_comes_from_the_preset_and_the_recipe_of_the_data(line, expected):
    args = vars(arguments(["--device", "cpu", *line.split()]))
    assert {name: args[name] for name in expected} == expected


@pytest.mark.usefixtures("no_drawing")
def test_each_setting_of_a_run_says_where_it_comes_from(tmp_path, capsys):
    """Also one that is given with the value that it has by default."""
    same = "--vocab-size 1024 --max-tokens 512 --mask mma --questions 6"
    few = "--pt-steps 1 --steps 0 --limit 2 --variant leaky-captions"
    train_tiny(tmp_path / "run", *f"{few} {same}".split())
    said = capsys.readouterr().out.partition("optimizer: ")[2]
    groups = re.split(r"\n(\w+) +", " ".join(re.split(r"\n +", said)))
    shown, origin = dict(zip(groups[1::2], groups[2::2])), record_of(tmp_path / "run")["origin"]
    for group, settings in {
        "you": ("max_tokens 512", "mask mma", "questions 6", "steps 0", "variant leaky-captions"),
        "recipe": ("image_size 64", "pt_lr_times 2"), "preset": ("n_layer 4", "lr 0.004"),
        "variant": ("pt_mask leaky", "allow_leaks yes"),
        "default": ("seed 0", "freeze encoder", "accumulate 1", "pt_freeze nothing", "strict no"),
    }.items():  # fmt: skip
        for setting in settings:
            assert setting in shown[group].split(", ") and origin[setting.split()[0]] == group
