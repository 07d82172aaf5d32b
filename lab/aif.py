"""AIF, Adaptive Information Flow (arXiv 2604.15809), as summarised: we have notes on it, no code.

    python -m lab.aif RUN [RUN ...] --share 0.5

At inference only, text rows are kept from a share of the image tokens: from those whose largest
attention from any text row (mean over heads) is spread most evenly over the layers; entropy marks
what no layer looks for. The share is fixed, not searched for. Generated tokens are text too.

Shapes:  L layers   B rows   T tokens of a row   H query heads
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor

from engine.asking import examples_of
from engine.options import Parser, add_run_options, positive
from engine.precision import check_device
from engine.run import check_writable, one_line_errors, read_record
from engine.tables import pool, table
from eval import answer_all, open_run, summarise
from lab.publish import write_json
from lab.recording import recorded
from mma import IMAGE, QUESTION, TEXT
from model import MLLM


@torch.no_grad()
def blocked_tokens(model, batch: dict, share: float) -> Tensor:
    """bool [B, T]: the image tokens that text rows may not read."""
    role = batch["role"]
    with recorded(model) as weights:
        model(**batch)
    is_image, is_text = role == IMAGE, (role == QUESTION) | (role == TEXT)
    heads = torch.stack([w.mean(1) for w in weights])  # [L, B, T, T]
    most = heads.masked_fill(~is_text[:, :, None], 0).amax(2)  # [L, B, T]
    p = most / most.sum(0).clamp(min=1e-12)
    entropy = (-p * p.clamp(min=1e-12).log()).sum(0).masked_fill(~is_image, -torch.inf)
    rank = entropy.argsort(dim=1, descending=True).argsort(dim=1)
    return is_image & (rank < (share * is_image.sum(1, keepdim=True)).round())


class Adaptive:
    """A model whose text rows read no more than a share of the image tokens, as eval.answer_all
    takes one. The prompt is computed twice: once to find what to block."""

    def __init__(self, model: MLLM, share: float):
        self.model, self.share = model, share

    def __getattr__(self, name: str):  # config, training, eval, ...
        return getattr(self.model, name)

    def generate(self, ids, role, images=None, image_index=None, turn=None, **options):
        batch = dict(ids=ids, role=role, images=images, image_index=image_index, turn=turn)
        blocked = blocked_tokens(self.model, batch, self.share)
        context = self.model.context_of(self.model.config.mask, role, turn)
        closed = blocked[:, None, None, :] & (role != IMAGE)[:, None, :, None]
        context.attention_mask &= ~closed
        return self.model.generate(**batch, context=context, **options)


def share_of(text: str) -> float:
    if not 0 <= float(text) <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a share of the image tokens, 0 to 1")
    return float(text)


def arguments(argv=None) -> argparse.Namespace:
    parser = Parser(__doc__)
    add_run_options(parser)
    add = parser.add_argument
    add("--share", type=share_of, default=0.5, help="of the image tokens (default: 0.5)")
    add("--limit", type=positive, metavar="N", help="the first N examples (default: all)")
    add("--json", type=Path, metavar="FILE", help="write the results here")
    return parser.parse_args(argv)


def main(argv=None) -> None:
    args = arguments(argv)
    with one_line_errors():
        check_device(args.device)
        check_writable(args.json)
        results = []
        for run in args.runs:
            record = read_record(run)
            model, tokenizer = open_run(run, args.device)
            source, examples, asked = examples_of(record["args"], args, model.config.image_size)
            model = Adaptive(model, args.share)
            answers = answer_all(model, tokenizer, examples, source.answers, progress=True)
            now = {"run": str(run), "aif": args.share, "evaluated": asked}
            results.append({**record, **summarise(answers), **now})
        groups = pool(results)  # headed by what was done to the runs: eval.py has them as they are
        print(table({f"{label}, aif {args.share:g}": runs for label, runs in groups.items()}))
        if args.json:
            write_json(args.json, {"runs": results})


if __name__ == "__main__":
    main()
