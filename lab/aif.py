"""AIF, Adaptive Information Flow (arXiv 2604.15809), as summarised: we have notes on it, no code.

    python -m lab.aif RUN [RUN ...] --share 0.5

At inference only, text rows are kept from a share of the image tokens: from those whose largest
attention from any text row (mean over heads) is spread most evenly over the layers; entropy marks
what no layer looks for. The share is fixed, not searched for. Generated tokens are text too. The
answer is computed anew for every token, without a KV cache: slow, and plain.

Shapes:  L layers   B rows   T tokens of a row   H query heads
"""

import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

import data
from engine.batches import examples_of
from engine.options import Parser, add_run_options, positive
from engine.precision import check_device
from engine.run import check_writable, one_line_errors, read_record
from engine.tables import pool, table
from eval import normalise, open_run, score, summarise
from lab.recording import recorded
from mma import ANSWER, IMAGE, PAD, QUESTION, TEXT


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


@torch.no_grad()
def generate(model, batch: dict, blocked: Tensor, eos: int, limit: int) -> list[list[int]]:
    """Greedy answers in which no text row reads the blocked image tokens."""
    ids, role, turn = (batch[name] for name in ("ids", "role", "turn"))
    images, image_index = batch.get("images"), batch.get("image_index")
    answers, going = [[] for _ in range(len(ids))], list(range(len(ids)))
    for _ in range(limit):
        length = (role != PAD).sum(1, keepdim=True)
        context = model.context_of(model.config.mask, role, turn)
        closed = F.pad(blocked, (0, ids.shape[1] - blocked.shape[1]))[:, None, None, :]
        context.attention_mask &= ~(closed & (role != IMAGE)[:, None, :, None])
        hidden = model(ids, role, images, image_index, context=context, read_at=length - 1)
        token = model.head(hidden[:, 0]).argmax(-1)
        for row in going:
            answers[row].append(int(token[row]))
        going = [row for row in going if answers[row][-1] != eos]
        if not going:
            break
        # Each answer grows by a column: over the first pad of its row, or over a new one
        ids, role, turn = (F.pad(x, (0, 1)) for x in (ids, role, turn))
        ids, role = ids.scatter(1, length, token[:, None]), role.scatter(1, length, ANSWER)
        turn = turn.scatter(1, length, turn.gather(1, length - 1))
    return answers


def answer_all(model, tokenizer, examples, known, share: float, batch_size: int = 256):
    """As eval.answer_all, with a share of the image tokens blocked."""
    known = known and {normalise(answer) for answer in known}
    prompts = [(e, turn) for e in examples for turn in range(len(e.turns))]
    limit = 2 * max(len(tokenizer.encode(e.turns[turn][1])) for e, turn in prompts) + 4
    config, device, results = model.config, model.embed.weight.device, []
    for start in tqdm(range(0, len(prompts), batch_size), desc="answering"):
        some = prompts[start : start + batch_size]
        rows = [data.encode(e, tokenizer, config.n_image_tokens, upto=turn) for e, turn in some]
        batch = data.collate(rows, tokenizer.pad, config.image_size)
        batch = {name: x.to(device) for name, x in batch.items()}
        blocked = blocked_tokens(model, batch, share)
        answers = generate(model, batch, blocked, tokenizer.eos, limit)
        results += [score(*prompt, ids, tokenizer, known) for prompt, ids in zip(some, answers)]
    return results


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
            answers = answer_all(model, tokenizer, examples, source.answers, args.share)
            now = {"run": str(run), "aif": args.share, "evaluated": asked}
            results.append({**record, **summarise(answers), **now})
        groups = pool(results)  # headed by what was done to the runs: eval.py has them as they are
        print(table({f"{label}, aif {args.share:g}": runs for label, runs in groups.items()}))
        if args.json:
            args.json.write_text(json.dumps({"runs": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
