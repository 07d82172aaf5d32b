"""The command line: what fills it up, and where each setting comes from."""

import json
import re

import pytest
from helpers import TINY

import train
from engine.options import PRESETS, RECIPES, arguments
from engine.plan import settings_table


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


def settings_in(printed: str) -> dict:
    """Name -> (where it comes from, value), of the settings table in what was printed."""
    found, words, last = {}, {}, ""
    rows = r"^(you|recipe|preset|variant|default|) {2,}(.*)$"
    for origin, some in re.findall(rows, printed, re.MULTILINE):
        last = origin or last
        words[last] = f"{words.get(last, '')}{some} "
    for origin, some in words.items():
        for setting in some.split(", "):
            name, _, value = setting.strip().partition(" ")
            found[name] = origin, value
    return found


@pytest.mark.usefixtures("no_drawing")
def test_each_setting_of_a_run_says_where_it_comes_from(tmp_path, capsys):
    """Also one that is given with the value that it has by default."""
    same = ["--vocab-size", "1024", "--max-tokens", "512", "--mask", "mma", "--questions", "6"]
    few = ["--pt-steps", "1", "--steps", "0", "--limit", "2", "--variant", "leaky-captions"]
    train.main([*TINY, *few, *same, "--out", str(tmp_path / "run")])
    shown = settings_in(capsys.readouterr().out)
    expected = {
        "max_tokens": ("you", "512"), "mask": ("you", "mma"), "questions": ("you", "6"),
        "steps": ("you", "0"), "workers": ("you", "0"), "variant": ("you", "leaky-captions"),
        "image_size": ("recipe", "64"), "pt_lr_times": ("recipe", "2"),
        "n_layer": ("preset", "4"), "lr": ("preset", "0.004"),
        "pt_mask": ("variant", "leaky"), "allow_leaks": ("variant", "yes"),
        "seed": ("default", "0"), "freeze": ("default", "encoder"), "accumulate": ("default", "1"),
        "pt_freeze": ("default", "nothing"), "strict": ("default", "no"),
    }  # fmt: skip
    assert {name: shown[name] for name in expected} == expected
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert set(record["origin"]) == set(record["args"])
    assert {n: o for n, (o, _) in shown.items()}.items() <= record["origin"].items()


def test_a_recipe_is_before_the_preset_and_you_are_before_both():
    options = ["--data", "nlvr+world", "--source", "x", "--preset", "tiny", "--pictures", "24"]
    shown = settings_in(settings_table(arguments(options)))
    assert shown["lr"] == ("recipe", "0.002") and shown["adam_lr"] == ("preset", "0.002")
    assert shown["questions"] == ("recipe", "4") and shown["pictures"] == ("you", "24")
    assert shown["freeze"] == ("recipe", "nothing")
    shown = settings_in(settings_table(arguments([*options, "--freeze", "embed", "norm"])))
    assert shown["freeze"] == ("you", "embed norm")
