"""The options of train.py: presets of the model, recipes of the data sets, and the command line.

    python train.py --help

What the command line leaves open comes from the preset and from the recipe of the data.
"""

import argparse
from functools import partial
from pathlib import Path

import data
from engine.precision import FORMATS, default_device, usual_format
from mma import EXTRA_PAIRS

# The model, what of the data a step of stage 2 takes, and peak learning rates
PRESETS = {
    "tiny": dict(
        model=dict(
            encoder_width=128, encoder_layers=2, encoder_heads=4,
            d_model=128, n_layer=4, n_head=4, n_kv_head=2, d_ff=256,
        ),
        pictures=16, questions=6, lr=0.004, adam_lr=0.002,
    ),
    "small": dict(
        model=dict(
            encoder_width=256, encoder_layers=4, encoder_heads=8,
            d_model=256, n_layer=6, n_head=8, n_kv_head=4, d_ff=704,
        ),
        pictures=64, questions=4, lr=0.003, adam_lr=0.001,
    ),
}  # fmt: skip
SMALL = dict(image_size=64, patch_size=16)
CAPTIONS = dict(pt_steps=500, pt_pictures=32, pt_lr_times=2, steps=2400, **SMALL)
# Without captions, questions teach the encoder in stage 1, more slowly
NO_CAPTIONS = dict(pt_steps=1200, pt_pictures=32, pictures=32, questions=4, steps=800, **SMALL)
BOXES = dict(image_size=100, patch_size=20)  # a patch is a block of a tower
RECIPES = {
    "shapes": CAPTIONS,
    "shapes-pairs": CAPTIONS,
    "sounds": CAPTIONS,
    "shapes-text": dict(
        pt_steps=1200, pt_pictures=32, pt_lr_times=2, pictures=16, questions=6, steps=3600, **SMALL
    ),
    "easy_vqa": NO_CAPTIONS,
    "llava": NO_CAPTIONS,
    "nlvr": dict(pt_steps=60, pt_pictures=16, pictures=16, questions=4, steps=300, **BOXES),
    "nlvr+world": dict(
        pt_steps=220, pt_pictures=32, pt_lr_times=2, pictures=24, questions=4, steps=5000,
        lr=0.002,  # of four, the best on val under mma and under causal (docs/results.md)
        freeze=[], **BOXES,
    ),
}  # fmt: skip
# Settings that no recipe or preset names; a variant (lab/variants.py) or another command may.
DEFAULTS = dict(
    optimizer="muon", schedule="linear", pt_mask="causal", allow_leaks=False, vocab_size=4096,
    pt_freeze=[], freeze=["encoder"], checkpointing=False, pt_adam_lr=None, pt_lr_times=1,
)  # fmt: skip
PATHS = ("source", "images", "pt_source", "pt_images")


def whole(text: str, least: int | None = None) -> int:
    """The whole number that an option must be."""
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number, not {text}") from None
    if least is not None and number < least:
        raise argparse.ArgumentTypeError(f"must be {least} or more, not {text}")
    if not -(2**63) <= number < 2**63:
        raise argparse.ArgumentTypeError(f"must have 64 bits, not {text}")
    return number


positive, not_negative, seed = partial(whole, least=1), partial(whole, least=0), whole


def rate(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number above 0, not {text}")
    return number


class Parser(argparse.ArgumentParser):
    """argparse whose --help fits one screen, and whose errors are one line. refused: options that
    may not be given, and why; --help leaves them out."""

    refused: dict[str, str] = {}

    def __init__(self, about: str | None = None):
        raw = argparse.RawDescriptionHelpFormatter
        super().__init__(
            description="\n\n".join((about or "").split("\n\n")[:2]),  # what it is, how to run it
            formatter_class=partial(raw, max_help_position=24, width=100),
            usage=argparse.SUPPRESS,
            add_help=False,
        )

    def format_help(self) -> str:
        for action in self._actions:
            if action.dest in self.refused:
                action.help = argparse.SUPPRESS
        return super().format_help()

    def error(self, message: str):
        self.exit(2, f"{self.prog}: error: {message} (see --help)\n")


def add_run_options(parser: Parser) -> None:
    """What commands that read finished runs have in common: the runs, the examples that are asked
    (engine.asking.examples_of), and where."""
    add = parser.add_argument
    add("-h", "--help", action="help", help="show this and exit")
    add("runs", nargs="+", type=Path, metavar="RUN", help="folder that train.py's --out named")
    add("--data", choices=data.NAMES, metavar="NAME", help="default: what the run was trained on")
    add("--source", type=Path, metavar="PATH", help="default: the run's")
    add("--images", type=Path, metavar="DIR", help="default: the run's")
    add("--split", metavar="NAME", help="train, val, test, all, ... (default: test; nlvr val)")
    add("--device", default=default_device(), metavar="NAME", help="cuda, mps or cpu")


PATH, FILE, DIR = ({"type": Path, "metavar": name} for name in ("PATH", "FILE", "DIR"))
COUNT, STEPS = {"type": positive, "metavar": "N"}, {"type": not_negative, "metavar": "N"}
RATE, PARTS = {"type": rate, "metavar": "LR"}, {"nargs": "*", "metavar": ""}
FLAG, ONE_OF = {"action": "store_true"}, lambda names: {"choices": names, "metavar": "NAME"}

# What is not given and has no default here comes from the recipe of the data, or from the preset
OPTIONS = {
    "data": (
        ("data", ", ".join(data.NAMES), {**ONE_OF(data.NAMES), "default": "shapes"}),
        ("source", "easy_vqa, nlvr: its folder; llava: the JSON file", PATH),
        ("images", "llava: the folder of the pictures", DIR),
        ("pt-source", "llava: captions for stage 1", FILE),
        ("pt-images", "the folder of their pictures", DIR),
        ("scenes", "shapes: training has N scenes, a multiple of 16, not ever new ones", COUNT),
        ("strict", "llava: a damaged entry is an error", FLAG),
    ),
    "model and method": (
        ("mask", "of stage 2: {masks} (default: mma)", {**ONE_OF(EXTRA_PAIRS), "default": "mma"}),
        ("variant", "another method beside the mask: lab/variants.py", {"metavar": "NAME"}),
        ("preset", "{presets} (default: {preset})", {}),
        ("n-layer", "decoder layers", COUNT),
        ("image-size", "pixels (64; nlvr 100)", COUNT),
        ("patch-size", "pixels (16; nlvr 20)", COUNT),
        ("vocab-size", "at most (default: 4096)", COUNT),
    ),
    "training": (
        ("pt-steps", "steps of stage 1 (captions)", STEPS),
        ("steps", "steps of stage 2 (questions)", STEPS),
        ("pt-pictures", "pictures of a step of stage 1", COUNT),
        ("pictures", "pictures of a step of stage 2", COUNT),
        ("questions", "questions about each of them", COUNT),
        ("optimizer", "muon, adamw (default: {optimizer})", ONE_OF(("muon", "adamw"))),
        ("lr", "peak rate of weight matrices", RATE),
        ("adam-lr", "peak rate of all other parameters", RATE),
        ("pt-freeze", "parts that stage 1 leaves as they are", PARTS),
        ("freeze", "the same of stage 2 (default: by preset and data)", PARTS),
        ("max-tokens", "longer rows are cut (default: 512)", {**COUNT, "default": 512}),
        ("seed", "of parameters and data (default: 0)", {**COUNT, "type": seed, "default": 0}),
    ),
    "run": (
        ("out", "default: runs/DATA-MASK-SEED", DIR),
        ("resume", "go on with the run in --out", FLAG),
        ("overwrite", "replace the run in --out", FLAG),
        ("eval-every", "steps between validations (default: 100)", {**COUNT, "default": 100}),
        ("val-limit", "questions of a validation (default: 500)", {**COUNT, "default": 500}),
        ("limit", "test questions (default: all)", COUNT),
        ("keep-best", "end with the weights of the best accuracy or (free text) loss",
         {"choices": ("accuracy", "loss"), "metavar": "BY", "nargs": "?", "const": True,
          "default": False}),
        ("save-every", "steps between checkpoints (default: 100)", {**COUNT, "default": 100}),
        ("device", "cuda, mps or cpu", {"default": default_device(), "metavar": "NAME"}),
        ("precision", f"{', '.join(FORMATS)} (default: what suits --device)", ONE_OF(FORMATS)),
        ("workers", "that make batches ahead", {**STEPS, "default": 1}),
        ("compile", "compile the layers", FLAG),
        ("accumulate", "compute a step in N parts, to save memory; the result is the same",
         {**COUNT, "default": 1}),
        ("checkpointing", "compute again in backward what would fill the memory",
         {**FLAG, "default": None}),
        ("fsdp", "with torchrun: share the model out", FLAG),
    ),
}  # fmt: skip


def arguments(argv=None, about: str | None = None, extend=None) -> argparse.Namespace:
    """The command line of train.py (default: this process's), filled up. about: what --help says
    first. extend(parser): add options, say which are refused, and return further presets, of which
    the first is the default (bridge/finetune.py)."""
    parser = Parser(about)
    presets = {**PRESETS, **(extend(parser) if extend else {})}
    usual = list(presets)[len(PRESETS)] if extend else "small on a GPU, else tiny"
    words = {"presets": ", ".join(presets), "preset": usual, "masks": ", ".join(EXTRA_PAIRS)}
    words["optimizer"] = "by preset" if extend else DEFAULTS["optimizer"]
    for title, options in OPTIONS.items():
        group = parser.add_argument_group(title)
        for name, text, settings in options:
            settings = ONE_OF(presets) if name == "preset" else settings
            group.add_argument(f"--{name}", help=text.format(**words), **settings)
    group.add_argument("-h", "--help", action="help", help="show this and exit")
    args = parser.parse_args(argv)
    given = options_given(parser, argv)
    for name, why in parser.refused.items():
        if getattr(args, name) is not None:
            parser.error(f"--{name.replace('_', '-')} cannot be given: {why}")
    if args.resume and args.overwrite:
        parser.error("--resume goes on with a run, --overwrite replaces it: choose one")
    if args.keep_best and args.fsdp:
        parser.error("--keep-best does not go with --fsdp: the best weights are kept whole")
    if args.steps == 0 and args.pt_steps == 0:
        parser.error("--pt-steps 0 --steps 0 leaves nothing to train")
    args.precision = args.precision or usual_format(args.device)
    if args.preset is None:
        by_device = "small" if args.device.startswith("cuda") else "tiny"
        args.preset = usual if extend else by_device
    return fill_in(args, presets[args.preset], given)


def options_given(parser: argparse.ArgumentParser, argv) -> set[str]:
    """The names of the options that stand on the command line."""
    for action in parser._actions:
        action.default = argparse.SUPPRESS
    parser._defaults.clear()
    return set(vars(parser.parse_args(argv)))


def fill_in(args: argparse.Namespace, preset: dict, given: set[str]) -> argparse.Namespace:
    """The command line, filled up from the preset, the recipe of the data and the defaults.
    args.origin says of each setting which of these it is from."""
    own = preset.get("own", {})  # what holds whatever the data
    sources = {"default": DEFAULTS, "preset": {**preset, "n_layer": preset["model"]["n_layer"]},
               "recipe": RECIPES[args.data], "preset ": own}  # fmt: skip
    args.origin = dict.fromkeys(vars(args), "default")
    known = {name: (value, origin) for origin, x in sources.items() for name, value in x.items()}
    if args.optimizer == "adamw" and "optimizer" not in preset:  # its rate is not Muon's
        known["lr"] = known["adam_lr"]
    for name, (value, origin) in known.items():
        if name not in ("model", "own") and getattr(args, name, None) is None:
            setattr(args, name, value)
            args.origin[name] = origin.strip()
    args.origin |= dict.fromkeys(given, "you")
    if args.pt_adam_lr is None:
        args.pt_adam_lr, args.origin["pt_adam_lr"] = args.adam_lr, args.origin["adam_lr"]
    for name in PATHS:  # eval.py may be run from another folder
        setattr(args, name, getattr(args, name) and getattr(args, name).resolve())
    label = f"{args.data}-{args.mask}{'-' + args.variant if args.variant else ''}-{args.seed}"
    args.out = args.out or Path("runs") / label
    return args
