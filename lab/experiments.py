"""The arms and the experiments that lab/arms.py trains: what is compared, on what, how often.

    python -m lab.arms EXPERIMENT     trains one of EXPERIMENTS; to add one, write a line there

An arm is one mask or method: a line of options for train.py. A mask of mma.py and a method of
lab/variants.py are arms by their names: a method's name alone is the method under the causal mask,
MASK+NAME is the method under that mask.
"""

from typing import Any, NamedTuple

import lab.variants  # noqa: F401 - registers the methods
from data import DataError
from engine.wings import VARIANTS
from mma import EXTRA_PAIRS

ARMS = {
    "causal": "--mask causal",
    "mma": "--mask mma",
    "prefix": "--mask prefix",
    "v2v": "--mask v2v",
    "f": "--mask f",
    "cca": "--mask causal --variant cca",
    "t&i": "--mask causal --variant text-first",
    "dot": "--mask causal --variant dot",
    "rave-style": "--mask causal --variant rave",
    "mma+rave-style": "--mask mma --variant rave",
    "lora": "--mask causal --variant lora",
    "scalar": "--mask causal --variant scalar",
}
# How many seeds an arm of the table has, where more than one
SEEDS = {"causal": 5, "mma": 5, "prefix": 5, "v2v": 3, "cca": 3, "t&i": 3, "dot": 3}
# Kinds and methods without an arm: where the picture comes before the question, mutual is mma pair
# by pair (tests/lab/test_experiments.py); leaky and leaky-captions are lessons.
NO_ARM = ("mutual", "leaky", "leaky-captions")
TIMES = ("1x", "2x", "4x")  # as many times the experiment's steps


def arms_of_the_table() -> dict[str, str]:
    """ARMS, and the masks and variants that a fork has added."""
    arms = dict(ARMS)
    arms |= {kind: f"--mask {kind}" for kind in EXTRA_PAIRS if kind not in (*arms, *NO_ARM)}
    named = {line.split("--variant ")[-1].split()[0] for line in arms.values()}
    new = [name for name in VARIANTS if name not in (*named, *NO_ARM)]
    return arms | {name: f"--mask causal --variant {name}" for name in new}


def pairs(option: str, values) -> dict[str, str]:
    """mma and causal at every value of one option."""
    masks = ("mma", "causal")
    return {f"{m}@{value}": f"--mask {m} --{option} {value}" for m in masks for value in values}


RATES = pairs("lr", (0.002, 0.004, 0.008))
BUDGETS = pairs("steps", TIMES)
SCENES = pairs("scenes", (2000, 8000, 32000))
FOUR_ARMS = "causal mma prefix t&i"


class Experiment(NamedTuple):
    options: str  # the data, and the options of train.py that all arms share
    arms: Any  # names in ARMS; or name -> line of options; or a function that returns that
    seeds: dict[str, int] = {}  # how many an arm has, where more than one
    # the official split on which runs are compared, read once a finished run; without one they are
    # compared on what train.py reports at its end
    split: str | None = None


EXPERIMENTS = {
    "shapes": Experiment("shapes", arms_of_the_table, SEEDS),
    "depth": Experiment("shapes", pairs("n-layer", (2, 3, 4, 6))),
    "budget": Experiment("shapes", BUDGETS, {a: 5 if a.endswith("1x") else 3 for a in BUDGETS}),
    # twice the steps: with few scenes validation stops rising within them
    "scenes": Experiment("shapes --steps 4800 --keep-best", SCENES, dict.fromkeys(SCENES, 2)),
    "rates": Experiment("shapes", RATES, dict.fromkeys(RATES, 2)),
    # a second modality; several pictures a row
    "sounds": Experiment("sounds", FOUR_ARMS, dict.fromkeys(FOUR_ARMS.split(), 3)),
    "shapes-pairs": Experiment("shapes-pairs", FOUR_ARMS, dict.fromkeys(FOUR_ARMS.split(), 3)),
    # short: with the default budget mma has 98.6 % at its first look
    "easy_vqa": Experiment(
        "easy_vqa --n-layer 3 --pt-steps 200 --steps 400", arms_of_the_table, SEEDS
    ),
    # nine times over its own sentences alone: validation stops rising before, the best look is kept
    "nlvr": Experiment("nlvr --steps 1500 --keep-best", "causal mma", split="dev"),
    "nlvr+world": Experiment("nlvr+world", "causal mma", {"causal": 2, "mma": 2}, split="dev"),
    # before its rate was chosen
    "nlvr+world-high-rate": Experiment(
        "nlvr+world --lr 0.004", "causal mma prefix cca", {"causal": 2, "mma": 2}, split="dev"
    ),
    "nlvr+world-rates": Experiment("nlvr+world", RATES),  # chosen on val: dev is not read
}


def arms_of(experiment: str) -> dict[str, str]:
    """name -> line of options, of every arm of an experiment."""
    arms = EXPERIMENTS[experiment].arms
    arms = {arm: ARMS[arm] for arm in arms.split()} if isinstance(arms, str) else arms
    return arms() if callable(arms) else arms


def choose(arms: dict[str, str], only: list[str] | None) -> dict[str, str]:
    """The arms that --only names (default: all): an arm, a variant, or MASK+VARIANT."""
    if only is None:
        return arms
    chosen = {}
    for name in only:
        mask, _, variant = name.rpartition("+")
        line = f"--mask {mask or 'causal'} --variant {variant}"
        known = variant in VARIANTS and (not mask or mask in EXTRA_PAIRS)
        if name in arms:
            chosen[name] = arms[name]
        elif known and not any("@" in arm for arm in arms):
            same = next((arm for arm, options in arms.items() if options == line), name)
            chosen[same] = line
        else:
            listed = ", ".join([*arms, *VARIANTS])
            raise DataError(f"--only {name}: no such arm; there are {listed}")
    return {arm: chosen[arm] for arm in [*arms, *chosen] if arm in chosen}
