"""A language model gets eyes: the encoder of one run, the decoder of another, a new projector.

    python -m lab.eyes --encoder RUN --llm RUN --out DIR --mask mma
    python -m lab.eyes --encoder RUN --llm FOLDER --out DIR --mask mma --preset smollm2

The paper's regime in miniature: a decoder that learned from text alone, causally (train.py --data
shapes-text, or real weights in a Hugging Face folder), and an encoder that was trained before and
stays as it is. Stage 1, captions, trains projector and decoder under the causal mask; stage 2,
questions, trains them under --mask. --fresh starts with a decoder that has learned nothing, of the
same sizes and with the same tokenizer; --rehearse 4 adds to each step rows of what the LLM itself
said to plain prompts (rehearsal.py). All other options are those of train.py, less the sizes.
"""

import argparse
from dataclasses import asdict
from pathlib import Path

import torch

import data
import train
from bridge.chat import OWN, read_tokenizer
from bridge.decoders import decoder_sizes
from bridge.pretrained import PretrainedConfig, load_decoder
from engine import options as engine_options
from engine import wings
from engine.options import arguments, positive, rate
from engine.precision import check_device
from engine.run import check_out, one_line_errors, read_record
from eval import open_run
from lab.publish import write_json
from lab.rehearsal import Rehearsal, own_answers
from model import MLLM, Config, VisionEncoder

SIGHT = ("image_size", "patch_size", "encoder_width", "encoder_layers", "encoder_heads")
OF_THE_RUNS = ("n_layer", "image_size", "patch_size", "vocab_size")
PROJECTOR_AND_LLM = dict(pt_freeze=["encoder"], freeze=["encoder"])
# As engine.options.PRESETS. smollm2: for a real LLM of that size; its embedding, a fifth of its
# parameters, stays as it is
PRESETS = {
    "eyes": {**engine_options.PRESETS["tiny"], "own": PROJECTOR_AND_LLM},
    "smollm2": dict(
        model=dict(n_layer=30), template=OWN, pictures=16, questions=6,
        optimizer="adamw", lr=0.0002, adam_lr=0.0002, pt_adam_lr=0.001,
        own=dict(
            pt_lr_times=1, pt_pictures=32, pt_steps=400, steps=1500,
            pt_freeze=["encoder", "embed"], freeze=["encoder", "embed"],
        ),
    ),
}  # fmt: skip


def extend(parser) -> dict:
    """Adds the options that train.py does not have; returns the presets, the default one first."""
    add = parser.add_argument_group("eyes").add_argument
    add("--encoder", type=Path, required=True, metavar="RUN", help="whose encoder is taken")
    add("--llm", type=Path, required=True, metavar="RUN",
        help="whose decoder and tokenizer are taken; or a Hugging Face folder")  # fmt: skip
    add("--template", metavar="FILE",
        help=f"chat template of such a folder; {OWN}: its own (preset smollm2: {OWN})")  # fmt: skip
    add("--fresh", action="store_true", help="the decoder of --llm, but with new weights")
    add("--rehearse", type=positive, metavar="N",
        help="rows a step of plain dialogues: what the LLM, a folder's, said before")  # fmt: skip
    add("--pt-adam-lr", type=rate, metavar="LR", help="--adam-lr of stage 1")
    add("--pt-lr-times", type=rate, metavar="X", help="stage 1 has X times the rate --lr")
    parser.refused = dict.fromkeys(OF_THE_RUNS, "it is that of --encoder and --llm")
    return PRESETS


def options(argv=None) -> argparse.Namespace:
    """The command line, filled up: engine.options.arguments with `extend`."""
    args = arguments(argv, __doc__, extend)
    args.encoder, args.llm = args.encoder.resolve(), args.llm.resolve()
    return args


# --- The model


def open_encoder(run: Path) -> MLLM:
    """The model of a finished run whose encoder is that of model.py."""
    model, _ = open_run(run)
    if type(model.encoder) is not VisionEncoder:
        raise data.DataError(f"--encoder {run}: its encoder is not one that train.py trained")
    return model


def open_llm(run: Path) -> tuple[MLLM, data.Tokenizer]:
    """Model and tokenizer of a finished run of train.py, without a variant."""
    if (run / "config.json").exists() and not (run / "run.json").exists():
        raise data.DataError(
            f"--llm {run}: a Hugging Face folder needs --template; --preset smollm2 has one"
        )
    if wings.variant_of(read_record(run)["args"]) is not wings.PLAIN:
        raise data.DataError(
            f"--llm {run}: only the decoder of a plain run of train.py can be taken"
        )
    model, tokenizer = open_run(run)
    if len(tokenizer) != model.config.vocab_size:
        raise data.DataError(
            f"--llm {run}: tokenizer.model has {len(tokenizer)} tokens, the model "
            f"{model.config.vocab_size}: they are not of one run"
        )
    return model, tokenizer


def put_together(args) -> tuple[MLLM, data.Tokenizer]:
    """The model and its tokenizer; args, which the run records, get its sizes."""
    seeing = open_encoder(args.encoder)
    sight = {name: getattr(seeing.config, name) for name in SIGHT} | {"mask": args.mask}
    model, tokenizer = real(args, sight) if args.template else own(args, sight)
    model.encoder.load_state_dict(seeing.encoder.state_dict())
    model.encoder.pretrained = True  # it has the mean and spread of pixels that it was trained with
    for name in OF_THE_RUNS:
        setattr(args, name, getattr(model.config, name))
    return model, tokenizer


def own(args, sight: dict) -> tuple[MLLM, data.Tokenizer]:
    """With the decoder of a run. The projector depends on the seed alone."""
    llm, tokenizer = open_llm(args.llm)
    torch.manual_seed(args.seed)
    model = MLLM(Config(**{**asdict(llm.config), **sight}))
    if not args.fresh:
        weights = llm.state_dict().items()
        decoder = {n: w for n, w in weights if not n.startswith(("encoder.", "projector."))}
        model.load_state_dict({**model.state_dict(), **decoder})
    return model, tokenizer


def real(args, sight: dict) -> tuple[MLLM, data.Tokenizer]:
    """With the decoder of a Hugging Face folder."""
    if args.fresh:
        raise data.DataError("--fresh belongs to runs of train.py, not to a Hugging Face folder")
    tokenizer = read_tokenizer(args.llm, args.template)
    sizes = {**decoder_sizes(args.llm), **sight, "vocab_size": len(tokenizer)}
    try:
        config = PretrainedConfig(**sizes)
    except ValueError as error:
        raise data.DataError(f"--llm {args.llm}: {error}") from None
    return load_decoder(args.llm, config, seed=args.seed), tokenizer


# --- Data


def check_words(source, tokenizer: data.Tokenizer, llm: Path) -> None:
    """DataError if a run's tokenizer spells the data's texts in bytes: its decoder has never seen
    these words."""
    for text in source.texts():
        ids = tokenizer.encode(text)
        if spelled := [i for i in ids if tokenizer.sp.is_byte(i)]:
            raise data.DataError(
                f"--llm {llm}: its tokenizer has no token for {tokenizer.decode(spelled)!r} in "
                f"{text[:60]!r}; it was trained on other words than these data have"
            )


def rehearse(source, model: MLLM, tokenizer: data.Tokenizer, args):
    """The data with rows of plain dialogues, which are written to rehearsal.json."""
    if not args.template:
        raise data.DataError("--rehearse belongs to a Hugging Face folder: others know no dialogue")
    dialogues = own_answers(model, tokenizer)
    if not dialogues:
        raise data.DataError(f"--rehearse: {args.llm} answers none of the prompts")
    said = dict(dialogue.turns[0] for dialogue in dialogues)
    write_json(args.out / "rehearsal.json", said)
    return Rehearsal(source, dialogues, args.rehearse)


def main(argv=None) -> None:
    args = options(argv)
    with one_line_errors(args.out):
        check_out(args)
        check_device(args.device)
        if args.variant:
            raise data.DataError("--variant belongs to train.py")
        model, tokenizer = put_together(args)
        source = data.load(args.data, **data.options_of(args))
        if not args.template:
            check_words(source, tokenizer, args.llm)
        if args.rehearse:
            source = rehearse(source, model, tokenizer, args)
        train.fit(model, tokenizer, source, args, wings.watch())


if __name__ == "__main__":
    main()
