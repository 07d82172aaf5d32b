"""The published comparisons, as data: `python -m lab.compare NAME` makes one of EXPERIMENTS.

What is compared, a mask or a method, is called an arm: a name and the command line of one training
run. To add an experiment, write an entry; a mask of mma.py and a method of lab/variants.py are arms
of `shapes` by themselves.
"""

from typing import NamedTuple

import lab.variants  # noqa: F401 - registers the methods
from engine.wings import VARIANTS
from mma import EXTRA_PAIRS


class Experiment(NamedTuple):
    # name -> command line, without --seed and --out. It is one of `program`, or of what follows
    # -m; {NAME} is the folder of the run NAME of the same seed, which is then trained first.
    lines: dict[str, str]
    common: str = ""  # options that every line begins with
    program: str = "train"
    seeds: int | dict[str, int] = 1  # how many; by arm: where more than one
    first_seed: int = 0
    # name -> what is asked of every finished run: a module and its options, to which the run's
    # folder and --json FILE are added
    asks: dict[str, str] = {}
    split: str = ""  # which of `asks` says the accuracy; default: what the program reports itself
    # What is tested over seeds, in accuracy; "a - b > c - d" compares gains
    claims: tuple[str, ...] = ()
    detailed: tuple[str, ...] = ()  # "a > b", tested by family, and for who needs fewer steps
    marks: tuple[int, ...] = (80,)  # of validation accuracy, in %
    short: tuple = ()  # the arms of a short table


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
SEEDS = {"causal": 5, "mma": 5, "prefix": 5, "v2v": 3, "cca": 3, "t&i": 3, "dot": 3}
FOUR_ARMS = {name: ARMS[name] for name in ("causal", "mma", "prefix", "t&i")}
TWO_ARMS = {name: ARMS[name] for name in ("causal", "mma")}
# Not arms: where the picture comes before the question, mutual is mma pair by pair; leaky and
# leaky-captions are lessons; dialogues have a table.
DIALOGUES = ("dialogues", "dialogues-half", "dialogues-again", "dialogues-first")
NO_ARM = ("mutual", "leaky", "leaky-captions", *DIALOGUES)


def arms_of_the_table() -> dict[str, str]:
    """ARMS, and the masks and variants that a fork has added."""
    arms = dict(ARMS)
    arms |= {mask: f"--mask {mask}" for mask in EXTRA_PAIRS if mask not in (*arms, *NO_ARM)}
    named = {line.split("--variant ")[-1].split()[0] for line in arms.values()}
    new = [name for name in VARIANTS if name not in (*named, *NO_ARM)]
    return arms | {name: f"--mask causal --variant {name}" for name in new}


def both_masks(option: str, values) -> dict[str, str]:
    """mma and causal at every value of one option."""
    masks = ("mma", "causal")
    return {f"{m}@{value}": f"--mask {m} --{option} {value}" for m in masks for value in values}


def of_dialogues() -> dict[str, str]:
    """Both masks, trained on single questions and on dialogues; and mma in the first turn alone."""
    arms = {f"{m}@alone": line for m, line in TWO_ARMS.items()}
    for variant in DIALOGUES[:3]:
        arms |= {f"{m}@{variant}": f"{line} --variant {variant}" for m, line in TWO_ARMS.items()}
    return arms | {"mma@dialogues-first": "--mask mma --variant dialogues-first"}


WAYS_OUT = tuple(
    f"mma@{way} > mma@dialogues-half" for way in ("alone", "dialogues-again", "dialogues-first")
)
MMA = "mma > causal"
PAPER = dict(
    claims=(MMA, "mma > dot", "dot > causal", "mma > cca", "mma > prefix", "prefix > causal",
            "mma > v2v", "t&i > causal"),
    detailed=(MMA,),
)  # fmt: skip
BUDGETS = {"1x": 2400, "4x": 9600}
BUDGET_ARMS = {f"{m}@{x}": f"--mask {m} --steps {n}"
               for m in ("mma", "causal") for x, n in BUDGETS.items()}  # fmt: skip
AT_A_BUDGET = tuple(f"mma@{x} > causal@{x}" for x in BUDGETS)
SCENES, NLVR_RATES = (2000, 8000), (0.001, 0.002, 0.004, 0.008)
FRESH_SEED = 10  # the first that no recipe was searched for with (docs/protocol.md)
DEV = dict(asks={"dev": "eval --split dev"}, split="dev")  # read once a finished run

# --- A language model gets eyes (lab/eyes.py): its decoder learned from text alone

SIGHTED = "-m lab.eyes --encoder weights/shapes-causal --llm {text}"
EYES = {name: f"{SIGHTED} {options}" for name, options in {
    "causal": "--mask causal",
    "mma": "--mask mma",
    "prefix": "--mask prefix",
}.items()}  # fmt: skip
FRESH = {f"{name}-fresh": f"{line} --fresh" for name, line in EYES.items()}
TEXT = {"text": "--data shapes-text --mask causal"}
FRESH_MMA = "mma-fresh > causal-fresh"
EYES_CLAIMS = dict(
    claims=(
        MMA, "mma > prefix", FRESH_MMA, "mma-fresh > prefix-fresh",
        *(f"{name} > {name}-fresh" for name in EYES), "mma - causal > mma-fresh - causal-fresh",
    ),
    detailed=(MMA, FRESH_MMA),
)  # fmt: skip
# A real LLM, which python -m bridge.smollm2 smollm2 brings; -- --llm DIR names another folder.
# Stage 1 has the same rate, 0.0002, whatever that of stage 2 is.
SMOLLM2 = "--encoder weights/shapes-causal --llm smollm2 --preset smollm2 --val-limit 300"
REAL = dict(
    program="lab.eyes",
    asks={"plain text, nats a token": "lab.text_loss"},
    claims=(MMA,), detailed=(MMA,),
)  # fmt: skip
REAL_RATES = {f"{m}@{lr:g}": f"--mask {m} --lr {lr:g} --pt-lr-times {0.0002 / lr:g}"
              for m in TWO_ARMS for lr in (0.00005, 0.0002)}  # fmt: skip

EXPERIMENTS = {
    "shapes": Experiment(
        arms_of_the_table(), "--data shapes", seeds=SEEDS, first_seed=FRESH_SEED,
        short=("causal", "mma", "prefix"), marks=(80, 95), **PAPER,
    ),
    "budget": Experiment(
        BUDGET_ARMS, "--data shapes",
        seeds={name: 5 if name.endswith("1x") else 3 for name in BUDGET_ARMS},
        first_seed=FRESH_SEED, claims=(*AT_A_BUDGET, "mma@1x > causal@4x"),
        detailed=AT_A_BUDGET[-1:], marks=(80, 95),
    ),
    # Twice the steps: with few scenes validation stops rising within them
    "scenes": Experiment(
        both_masks("scenes", SCENES), "--data shapes --steps 4800 --keep-best", seeds=3,
        first_seed=FRESH_SEED, claims=tuple(f"mma@{n} > causal@{n}" for n in SCENES),
    ),
    "dialogues": Experiment(
        of_dialogues(), "--data shapes", seeds=3, first_seed=FRESH_SEED,
        asks={"by turn": "lab.dialogues"},
        claims=(*(f"mma@{v} > causal@{v}" for v in ("alone", *DIALOGUES[:3])), *WAYS_OUT),
        detailed=("mma@dialogues-half > causal@dialogues-half", *WAYS_OUT),
    ),
    # A second modality; several pictures a row
    "sounds": Experiment(FOUR_ARMS, "--data sounds", seeds=3, **PAPER),
    "shapes-pairs": Experiment(FOUR_ARMS, "--data shapes-pairs", seeds=3, **PAPER),
    # Short: with the default budget mma has 98.6 % at its first validation
    "easy_vqa": Experiment(
        arms_of_the_table(), "--data easy_vqa --n-layer 3 --pt-steps 200 --steps 400", seeds=SEEDS
    ),
    # Nine times over its own sentences alone: validation stops rising before, the best is kept
    "nlvr": Experiment(TWO_ARMS, "--data nlvr --steps 1500 --keep-best", **DEV),
    "nlvr+world": Experiment(
        TWO_ARMS, "--data nlvr+world", seeds=3, claims=(MMA,), detailed=(MMA,), **DEV
    ),
    # Chosen on val: dev is not read
    "nlvr+world-rates": Experiment(both_masks("lr", NLVR_RATES), "--data nlvr+world"),
    "eyes": Experiment(
        TEXT | EYES | FRESH, seeds=5, **EYES_CLAIMS,
        asks={"text scenes afterwards": "eval --data shapes-text"},
    ),
    "eyes_smollm2": Experiment(
        TWO_ARMS, f"{SMOLLM2} --steps 400 --eval-every 200", seeds=3, **REAL
    ),
    "eyes_smollm2_rates": Experiment(
        REAL_RATES, f"{SMOLLM2} --steps 400 --eval-every 200", program="lab.eyes"
    ),
    "eyes_smollm2-rehearsed": Experiment(
        TWO_ARMS,
        f"{SMOLLM2} --rehearse 4 --precision bfloat16 --pt-pictures 8 --pt-steps 250 --pictures 8 "
        "--questions 2 --steps 1500 --eval-every 250 --limit 1200",
        first_seed=FRESH_SEED, **REAL,
    ),
}  # fmt: skip
