"""The options of train.py: presets of the model, recipes of the data sets, and the command line, filled up from the two.

python train.py --help
"""

import argparse
from pathlib import Path

import torch

import data
from attention import GATES
from data.chat import TEMPLATES
from mma import CONCENTRIC, OPENS

PRESETS = {  # the model, what of the data a step of stage 2 takes, and peak learning rates
    "tiny": dict(
        model=dict(
            encoder_width=128,
            encoder_layers=2,
            encoder_heads=4,
            d_model=128,
            n_layer=3,
            n_head=4,
            n_kv_head=2,
            d_ff=256,
        ),
        pictures=32,
        questions=4,
        lr=0.004,
        adam_lr=0.002,
    ),
    "small": dict(
        model=dict(
            encoder_width=256,
            encoder_layers=4,
            encoder_heads=8,
            d_model=256,
            n_layer=6,
            n_head=8,
            n_kv_head=4,
            d_ff=704,
        ),
        pictures=64,
        questions=4,
        lr=0.003,
        adam_lr=0.001,
    ),
}
PAPER = dict(  # its shapes: SigLIP-so400m-384, 27 x 27 patches pooled to 9 x 9, Phi-3.5-mini. "own": what holds whatever the data
    model=dict(
        siglip=True,
        encoder_width=1152,
        encoder_layers=27,
        encoder_heads=16,
        encoder_d_ff=4304,
        pool=3,
        d_model=3072,
        n_layer=32,
        n_head=32,
        n_kv_head=32,
        d_ff=8192,
        tied=False,
    ),
    pictures=32,
    questions=1,
    checkpointing=True,
)
PRESETS["paper"] = dict(
    **PAPER, lr=0.0005, adam_lr=0.00002, own=dict(image_size=384, patch_size=14)
)  # from nothing, for timing: untried
# The paper's settings of stage 2 (arXiv 2503.02597 and its code), for pretrained weights. Its connector is a resampler, ours an MLP over
# pooled tokens; the length of stage 1 is our guess, and the projector's rate there is LLaVA's.
PRESETS["aki"] = dict(
    **PAPER,
    optimizer="adamw",
    schedule="cosine",
    lr=0.00002,
    adam_lr=0.00002,
    pt_adam_lr=0.001,
    own=dict(image_size=384, patch_size=14, steps=50_000, pt_steps=20_000, pt_pictures=32),
)
SMALL = dict(image_size=64, patch_size=16)
CAPTIONS = dict(pt_steps=100, pt_pictures=64, steps=1600, **SMALL)
NO_CAPTIONS = dict(
    pt_steps=1200, pt_pictures=32, steps=800, **SMALL
)  # questions teach the encoder more slowly
BOXES = dict(image_size=100, patch_size=20)  # a patch is a block of a tower
STEPS = {
    "shapes": CAPTIONS,
    "easy_vqa": NO_CAPTIONS,
    "llava": NO_CAPTIONS,
    "nlvr": dict(pt_steps=60, pt_pictures=16, pictures=16, steps=300, **BOXES),
    "nlvr+world": dict(pt_steps=220, pt_pictures=32, pictures=24, steps=3000, freeze=[], **BOXES),
}


def positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, not {text}")
    return int(text)


def arguments(argv=None, about: str | None = None) -> argparse.Namespace:
    """The command line (default: this process's), filled up. about: what --help says first."""
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    g = parser.add_argument_group("data")
    g.add_argument("--data", default="shapes", choices=data.NAMES)
    g.add_argument("--source", type=Path, help="easy_vqa, nlvr: its folder; llava: the JSON file")
    g.add_argument(
        "--images", type=Path, help="llava: the folder of the pictures (default: the JSON file's)"
    )
    g.add_argument(
        "--pt-source",
        type=Path,
        metavar="FILE",
        help="llava: captions for stage 1, same format (default: the questions)",
    )
    g.add_argument(
        "--pt-images",
        type=Path,
        metavar="DIR",
        help="the folder of their pictures (default: that file's)",
    )
    g.add_argument(
        "--strict",
        action="store_true",
        help="llava: damaged entries are an error (default: they are left out and reported)",
    )
    g = parser.add_argument_group("model and method")
    g.add_argument(
        "--mask",
        default="mma",
        choices=list(OPENS),
        help="attention mask of stage 2 and of generation (default: mma)",
    )
    g.add_argument(
        "--pt-mask",
        choices=list(OPENS),
        help="attention mask of stage 1 (default: causal; cca, if --mask has it)",
    )
    g.add_argument(
        "--allow-leaks",
        action="store_true",
        help="train although the mask gives the labels away: a lesson, not a method",
    )
    g.add_argument(
        "--order",
        default="image-first",
        choices=("image-first", "text-first", "both"),
        help="picture, question (default); question, picture; or the one after the other within each stage (DOT)",
    )
    g.add_argument(
        "--gate",
        default="none",
        choices=GATES,
        help="addition to attention: attention.Gate (default: none)",
    )
    g.add_argument("--n-layer", type=positive, help="decoder layers (default: the preset's)")
    g.add_argument(
        "--preset",
        choices=list(PRESETS),
        help="default: small on a GPU, tiny elsewhere; aki with --llm",
    )
    g.add_argument(
        "--pool",
        type=positive,
        help="pool x pool patches become one image token (default: 1; preset paper 3)",
    )
    g.add_argument(
        "--train-encoder",
        action="store_true",
        help="train the vision encoder in stage 2 as well (--freeze with nothing)",
    )
    g.add_argument(
        "--pt-freeze",
        nargs="*",
        metavar="NAME",
        help="parts that stage 1 leaves as they are, by the beginning of their names "
        "(default: none; with --llm all but the projector)",
    )
    g.add_argument(
        "--freeze",
        nargs="*",
        metavar="NAME",
        help="the same of stage 2 (default: encoder; nlvr+world none)",
    )
    g = parser.add_argument_group("start from pretrained weights (pretrained.py)")
    g.add_argument(
        "--llm",
        type=Path,
        metavar="DIR",
        help="a decoder's Hugging Face folder, with tokenizer.model",
    )
    g.add_argument("--vision", type=Path, metavar="DIR", help="a SigLIP's Hugging Face folder")
    g.add_argument("--template", choices=list(TEMPLATES), help="the decoder's chat template")
    g = parser.add_argument_group("training; what is not given comes from the preset and the data")
    g.add_argument("--pt-steps", type=int, help="steps of stage 1 (captions)")
    g.add_argument("--steps", type=int, help="steps of stage 2 (questions)")
    g.add_argument("--pt-pictures", type=positive, help="pictures of a step of stage 1")
    g.add_argument("--pictures", type=positive, help="pictures of a step of stage 2")
    g.add_argument(
        "--questions", type=positive, help="questions about each picture in a step of stage 2"
    )
    g.add_argument("--optimizer", choices=("muon", "adamw"), help="default: muon; preset aki adamw")
    g.add_argument(
        "--schedule",
        choices=("linear", "cosine"),
        help="of the learning rates (default: linear; preset aki cosine)",
    )
    g.add_argument(
        "--lr",
        type=float,
        help="peak learning rate of Muon, for the weight matrices; of adamw, for all but the projector",
    )
    g.add_argument(
        "--adam-lr",
        type=float,
        help="peak learning rate of AdamW beside Muon, for the rest; of adamw, for the projector",
    )
    g.add_argument(
        "--pt-adam-lr",
        type=float,
        help="the same in stage 1 (default: --adam-lr; preset aki 0.001)",
    )
    g.add_argument("--image-size", type=positive, help="pixels (default: 64; nlvr 100)")
    g.add_argument("--patch-size", type=positive, help="pixels (default: 16; nlvr 20)")
    g.add_argument("--vocab-size", type=positive, default=4096, help="upper bound (default: 4096)")
    g.add_argument(
        "--max-tokens",
        type=positive,
        default=512,
        help="longer rows are cut, and counted (default: 512)",
    )
    g.add_argument("--seed", type=int, default=0, help="of initialisation, sampling and data order")
    g = parser.add_argument_group("run")
    g.add_argument(
        "--limit", type=positive, help="test examples answered at the end (default: all)"
    )
    g.add_argument(
        "--val-limit",
        type=positive,
        default=500,
        help="validation examples answered at a look (default: 500)",
    )
    g.add_argument("--out", type=Path, help="folder of the run (default: runs/DATA-MASK-SEED)")
    g.add_argument("--overwrite", action="store_true", help="replace the run that --out holds")
    g.add_argument(
        "--resume",
        action="store_true",
        help="go on with the run in --out, begun with the same options and stopped",
    )
    g.add_argument(
        "--save-every", type=positive, default=100, help="steps between checkpoints (default: 100)"
    )
    g.add_argument(
        "--checkpointing",
        action="store_true",
        default=None,
        help="keep less for backward and compute it again (large models)",
    )
    g.add_argument(
        "--fsdp",
        action="store_true",
        help="with torchrun: a part of the model for each process, if it does not fit one GPU",
    )
    g.add_argument(
        "--compile",
        action="store_true",
        help="compile the layers: needs a C++ compiler, on GPUs Triton; a minute",
    )
    g.add_argument(
        "--device",
        default="cuda"
        if torch.cuda.is_available()
        else "mps"
        if torch.backends.mps.is_available()
        else "cpu",
    )
    g.add_argument(
        "--workers",
        type=int,
        default=1,
        help="processes that make batches ahead of time (default: 1)",
    )
    g.add_argument(
        "--eval-every",
        type=positive,
        default=100,
        help="steps of stage 2 between looks at the validation split (default: 100)",
    )
    args = parser.parse_args(argv)
    args.preset = args.preset or (
        "aki" if args.llm else "small" if args.device.startswith("cuda") else "tiny"
    )
    preset = PRESETS[args.preset]
    default = dict(checkpointing=False, optimizer="muon", schedule="linear")
    for name, value in {**default, **preset, **STEPS[args.data], **preset.get("own", {})}.items():
        if name not in ("model", "own") and getattr(args, name) is None:
            setattr(args, name, value)
    args.pt_mask = args.pt_mask or ("cca" if args.mask in CONCENTRIC else "causal")
    args.n_layer = args.n_layer or PRESETS[args.preset]["model"]["n_layer"]
    args.pt_adam_lr = args.pt_adam_lr or args.adam_lr
    args.pool = args.pool or preset["model"].get("pool", 1)
    if args.resume and args.overwrite:
        parser.error("--resume goes on with a run, --overwrite replaces it: choose one")
    if args.llm and not (args.vision and args.template):
        parser.error("--llm needs --vision and --template")
    if args.pt_freeze is None:
        args.pt_freeze = ["encoder", "embed", "blocks", "norm", "unembed"] if args.llm else []
    if args.freeze is None or args.train_encoder:
        args.freeze = [] if args.train_encoder else ["encoder"]
    del args.train_encoder  # another way to say --freeze
    for name in (
        "source",
        "images",
        "pt_source",
        "pt_images",
        "llm",
        "vision",
    ):  # eval.py may be run from another folder
        setattr(args, name, getattr(args, name) and getattr(args, name).resolve())
    args.out = args.out or Path("runs") / f"{args.data}-{args.mask}-{args.seed}"
    return args
