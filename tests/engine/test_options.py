"""The command line: what it refuses, and what fills it up."""

import pytest

from engine.options import PRESETS, RECIPES, arguments


@pytest.mark.parametrize("args", [
    ["--questions", "0"], ["--eval-every", "0"], ["--limit", "-1"], ["--patch-size", "0"],
    ["--steps", "x"], ["--resume", "--overwrite"],
])  # fmt: skip
def test_flags_out_of_range_are_usage_errors(args, capsys):
    with pytest.raises(SystemExit):
        arguments(args)
    assert args[0] in capsys.readouterr().err


def test_the_help_says_what_an_option_wants_and_what_it_is_otherwise(capsys):
    with pytest.raises(SystemExit):
        arguments(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "training has N scenes, a multiple of 16" in said
    assert "the same of stage 2 (default: by preset and data)" in said  # nlvr+world: nothing


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
