"""A language model gets eyes: the encoder of one run, the decoder of another, a new projector.

    python -m lab.eyes --encoder RUN --llm RUN --out DIR --mask mma
    python -m lab.eyes --encoder RUN --llm FOLDER --out DIR --mask mma --preset smollm2

The paper's regime in miniature: a decoder that learned from text alone, causally (train.py --data
shapes-text, or real weights in a Hugging Face folder), and an encoder that was trained before and
stays as it is. Stage 1, captions, trains projector and decoder under the causal mask; stage 2,
questions, trains them under --mask. --fresh starts with a decoder that has learned nothing, of the
same sizes and with the same tokenizer. All other options are those of train.py, less the sizes.

Training on short answers about pictures alone leaves nothing of a model's language. No text of
others is needed against it: with --rehearse 4 the LLM answers prompts.txt, greedily, before it is
trained, and each step has four rows more of what it said (Learning without Forgetting, arXiv
1606.09282, is the same idea with its probabilities). A row without a picture is causal under every
mask.
"""

import argparse
import re
from dataclasses import asdict
from pathlib import Path

import torch

import data
import train
from bridge.chat import OWN, read_tokenizer
from bridge.decoders import decoder_sizes
from bridge.pretrained import PretrainedConfig, load
from engine import options as engine_options
from engine import wings
from engine.options import arguments, positive, rate
from engine.precision import check_device
from engine.run import check_out, one_line_errors, read_record
from eval import answer_all, open_run
from lab.publish import write_json
from model import MLLM, Config, VisionEncoder

SIGHT = ("image_size", "patch_size", "encoder_width", "encoder_layers", "encoder_heads")
OF_THE_RUNS = ("n_layer", "image_size", "patch_size", "vocab_size")
PROMPTS = Path(__file__).with_name("prompts.txt").read_text(encoding="utf-8").splitlines()
LONGEST = 48  # tokens of an answer to them; of a longer one its whole sentences are kept
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


def put_together(args) -> tuple[MLLM, data.Tokenizer]:
    """The model and its tokenizer; args, which the run records, get its sizes."""
    seeing, _ = open_run(args.encoder)
    if type(seeing.encoder) is not VisionEncoder:
        why = "its encoder is not one that train.py trained"
        raise data.DataError(f"--encoder {args.encoder}: {why}")
    sight = {name: getattr(seeing.config, name) for name in SIGHT} | {"mask": args.mask}
    model, tokenizer = real(args, sight) if args.template else own(args, sight)
    model.encoder.load_state_dict(seeing.encoder.state_dict())
    model.encoder.pretrained = True  # it has the mean and spread of pixels that it was trained with
    for name in OF_THE_RUNS:
        setattr(args, name, getattr(model.config, name))
    return model, tokenizer


def own(args, sight: dict) -> tuple[MLLM, data.Tokenizer]:
    """With the decoder of a run of train.py. The projector depends on the seed alone."""
    run = args.llm
    if (run / "config.json").exists() and not (run / "run.json").exists():
        why = "a Hugging Face folder needs --template; --preset smollm2 has one"
        raise data.DataError(f"--llm {run}: {why}")
    if wings.variant_of(read_record(run)["args"]) is not wings.PLAIN:
        why = "only the decoder of a plain run of train.py can be taken"
        raise data.DataError(f"--llm {run}: {why}")
    llm, tokenizer = open_run(run)
    if len(tokenizer) != llm.config.vocab_size:
        raise data.DataError(
            f"--llm {run}: tokenizer.model has {len(tokenizer)} tokens, the model "
            f"{llm.config.vocab_size}: they are not of one run"
        )
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
    return load(None, args.llm, config, seed=args.seed), tokenizer


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


# --- Rehearsal


def whole_sentences(text: str) -> str:
    """The beginning of a text up to the end of its last sentence; a list's "2." ends none."""
    match = re.match(r".*[^\d\s][.!?](?=\s|$)", text, re.DOTALL)
    return match[0] if match else ""


def own_answers(model: MLLM, tokenizer: data.Tokenizer, prompts=PROMPTS) -> list[data.Example]:
    """The model's answers to prompts, as dialogues without pictures; of one that was cut without a
    whole sentence there is none."""
    asked = [data.Example([], [(prompt, "")]) for prompt in prompts]
    answers = answer_all(model, tokenizer, asked, progress=True, max_new_tokens=LONGEST)
    said = [whole_sentences(r["given"]) if r["unparsed"] else r["given"] for r in answers]
    return [
        data.Example([], [(prompt, words)], "rehearsed")
        for prompt, words in zip(prompts, map(str.strip, said))
        if words
    ]


class Rehearsal(data.Wrapped):
    """A data set whose steps have n rows more, of dialogues; which is a function of stage, step and
    seed."""

    def __init__(self, source, dialogues: list[data.Example], n: int):
        super().__init__(source)
        self.dialogues, self.n = dialogues, n

    def draw(self, stage: str, step: int, pictures: int, per_picture: int, seed: int):
        examples = self.source.draw(stage, step, pictures, per_picture, seed)
        g = torch.Generator().manual_seed(data.seed_of("rehearsal", stage, seed, step))
        some = torch.randint(len(self.dialogues), (self.n,), generator=g).tolist()
        return [*examples, *(self.dialogues[i] for i in some)]


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
