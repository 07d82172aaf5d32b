"""The command line: what fills it up, and where each setting comes from."""

import json

import pytest
from helpers import TINY

import train
from engine.options import PRESETS, RECIPES, arguments


def test_what_is_left_open_comes_from_the_preset_and_the_recipe_of_the_data():
    args = arguments(["--preset", "tiny", "--steps", "7"])
    assert args.steps == 7 and args.pt_steps == RECIPES["shapes"]["pt_steps"]
    assert args.n_layer == PRESETS["tiny"]["model"]["n_layer"] and args.freeze == ["encoder"]
    assert args.lr == PRESETS["tiny"]["lr"] and args.pt_adam_lr == args.adam_lr
    assert args.vocab_size == 4096 and arguments(["--vocab-size", "300"]).vocab_size == 300
    assert args.out.as_posix() == "runs/shapes-mma-0"
    nlvr = arguments(["--data", "nlvr+world", "--source", "x", "--variant", "cca", "--seed", "2"])
    assert nlvr.freeze == [] and (nlvr.image_size, nlvr.patch_size) == (100, 20)
    assert nlvr.out.name == "nlvr+world-mma-cca-2" and nlvr.source.is_absolute()
    adamw = arguments(["--optimizer", "adamw"])  # its rate is not Muon's
    assert adamw.lr == arguments([]).adam_lr != arguments([]).lr
    assert arguments(["--optimizer", "adamw", "--lr", "0.5"]).lr == 0.5


@pytest.mark.usefixtures("no_drawing")
def test_each_setting_of_a_run_says_where_it_comes_from(tmp_path, capsys):
    """Also one that is given with the value that it has by default."""
    same = ["--vocab-size", "1024", "--max-tokens", "512", "--mask", "mma", "--questions", "6"]
    few = ["--pt-steps", "1", "--steps", "0", "--limit", "2", "--variant", "leaky-captions"]
    train.main([*TINY, *few, *same, "--out", str(tmp_path / "run")])
    said = " ".join(capsys.readouterr().out.split())
    origin = json.loads((tmp_path / "run" / "run.json").read_text())["origin"]
    end = len(said)
    for group, settings in {  # in the order that they are printed, from the last
        "default": ("seed 0", "freeze encoder", "accumulate 1", "pt_freeze nothing", "strict no"),
        "variant": ("pt_mask leaky", "allow_leaks yes"),
        "preset": ("n_layer 4", "lr 0.004"),
        "recipe": ("image_size 64", "pt_lr_times 2"),
        "you": ("max_tokens 512", "mask mma", "questions 6", "steps 0", "variant leaky-captions"),
    }.items():
        begin = said.rindex(f" {group} ", 0, end)
        shown = [setting.strip() for setting in said[begin + len(group) + 2 : end].split(",")]
        end = begin
        for setting in settings:
            assert any(x.startswith(setting) for x in shown), setting
            assert origin[setting.split()[0]] == group


def test_a_recipe_is_before_the_preset_and_you_are_before_both():
    options = ["--data", "nlvr+world", "--source", "x", "--preset", "tiny", "--pictures", "24"]
    for more, expected in (
        ([], {"lr": ("recipe", 0.002), "adam_lr": ("preset", 0.002), "pictures": ("you", 24),
              "questions": ("recipe", 4), "freeze": ("recipe", [])}),
        (["--freeze", "embed", "norm"], {"freeze": ("you", ["embed", "norm"])}),
    ):  # fmt: skip
        args = arguments([*options, *more])
        assert {n: (args.origin[n], getattr(args, n)) for n in expected} == expected
