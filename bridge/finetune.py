"""Train from pretrained weights, a SigLIP and a decoder from local folders, in the paper's stages.

    python -m bridge.finetune --llm DIR --vision DIR --data llava --source FILE.json

Stage 1 trains the projector alone, stage 2 all but the vision encoder; --pt-freeze and --freeze say
otherwise. All other options are those of train.py, except that the model's sizes are those of the
folders. The default preset, aki, has the settings of stage 2 in the paper (arXiv 2503.02597) and
its code. Their projector is a resampler, ours an MLP over pooled tokens; the length of stage 1 is
our guess, and the projector's rate there is LLaVA's (2310.03744).

eval.py, lab/ and bridge/benchmarks.py take the run like any other.
"""

import math
from pathlib import Path

import data
import train
from bridge.chat import OWN, read_tokenizer
from bridge.pretrained import PretrainedConfig, config_of, load
from engine import wings
from engine.options import arguments, positive, rate
from engine.precision import check_device
from engine.run import check_out, one_line_errors

# As in engine.options; "own": what holds whatever the data. The sizes are those of the folders; in
# the paper SigLIP-so400m-384, whose 27 x 27 patches are here pooled to 9 x 9, and Phi-3.5-mini
PRESETS = {
    "aki": dict(
        model=dict(n_layer=32), pictures=32, questions=1, checkpointing=True, pool=3,
        optimizer="adamw", schedule="cosine", lr=0.00002, adam_lr=0.00002, pt_adam_lr=0.001,
        own=dict(
            image_size=384, patch_size=14, steps=50_000, pt_steps=20_000, pt_pictures=32
        ),
    ),
}  # fmt: skip
OF_THE_FOLDERS = ("n_layer", "image_size", "patch_size", "vocab_size")
PT_FREEZE = ["encoder", "embed", "blocks", "norm", "unembed"]  # all but the projector


def cosine(step: int, steps: int, warmup: int = 150) -> float:
    """The paper's share of the learning rate at a step, counted from 0: linear warm-up, and a
    cosine down to a twentieth."""
    return min(1.0, (step + 1) / warmup) * (0.525 + 0.475 * math.cos(math.pi * step / steps))


SCHEDULES = {"linear": train.schedule, "cosine": cosine}


def extend(parser) -> dict:
    """Adds the options that train.py does not have; returns the presets, the default one first."""
    g = parser.add_argument_group("pretrained weights")
    add = g.add_argument
    add("--llm", type=Path, required=True, metavar="DIR", help="the decoder, with its tokenizer")
    add("--vision", type=Path, required=True, metavar="DIR", help="the SigLIP")
    add("--template", default=OWN, metavar="FILE", help="a chat template, in place of --llm's")
    add("--system", default="", metavar="TEXT", help="a system prompt (default: the template's)")
    add("--pool", type=positive, metavar="N",
        help="N x N patches become one image token (default 3; presets tiny, small 1)")  # fmt: skip
    add("--schedule", choices=list(SCHEDULES), metavar="NAME",
        help=f"of the learning rates: {', '.join(SCHEDULES)}")  # fmt: skip
    add("--pt-adam-lr", type=rate, metavar="LR", help="--adam-lr of stage 1")
    parser.set_defaults(pt_freeze=PT_FREEZE)
    parser.refused = dict.fromkeys(OF_THE_FOLDERS, "it is that of the folders --llm and --vision")
    parser.refused["variant"] = "it belongs to train.py, not to pretrained weights"
    return PRESETS


def options(argv=None):
    """The command line, filled up: engine.options.arguments with `extend`."""
    args = arguments(argv, __doc__, extend)
    args.llm, args.vision = args.llm.resolve(), args.vision.resolve()  # as PATHS of the options
    args.pool = args.pool or 1
    return args


def model_config(args, tokenizer) -> PretrainedConfig:
    """The model's sizes, from the folders; args, which the run records, are set to them."""
    try:
        config = config_of(
            args.vision, args.llm, vocab_size=len(tokenizer), mask=args.mask, pool=args.pool
        )
    except ValueError as error:
        raise data.DataError(str(error)) from None
    for name in OF_THE_FOLDERS:
        setattr(args, name, getattr(config, name))
    if config.tied and args.pt_freeze == PT_FREEZE:  # the head is the embedding
        args.pt_freeze = [part for part in PT_FREEZE if part != "unembed"]
    return config


def main(argv=None) -> None:
    args = options(argv)
    with one_line_errors(args.out):
        check_out(args)
        check_device(args.device)
        tokenizer = read_tokenizer(args.llm, args.template, args.system)
        config = model_config(args, tokenizer)
        source = data.load(args.data, **data.options_of(args))
        model = load(args.vision, args.llm, config, seed=args.seed)
        train.fit(model, tokenizer, source, args, wings.watch(), SCHEDULES[args.schedule])


if __name__ == "__main__":
    main()
