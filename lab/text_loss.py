"""What sight costs a language model: its loss on plain text, before it got eyes and after.

    python -m lab.text_loss RUN [RUN ...]     runs of lab.eyes; each one's --llm is measured too

Mean cross-entropy of every token but the first of each paragraph, in nats. The text
(lab/plain_text.txt) was written for this purpose, so no model has been trained on it. Where
there is no picture all masks are the same; what differs is what training under them has left.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F

import data
from engine.options import Parser
from engine.precision import check_device, default_device
from engine.run import check_writable, one_line_errors, read_record
from engine.tables import markdown
from eval import open_run
from lab import eyes
from lab.publish import write_json
from mma import Role
from model import MLLM

TEXT = Path(__file__).with_name("plain_text.txt")


@torch.no_grad()
def text_loss(model: MLLM, tokenizer: data.Tokenizer, text: str) -> tuple[float, int]:
    """Mean loss a token, in nats, and how many tokens were predicted; paragraph by paragraph."""
    total, count = 0.0, 0
    for paragraph in filter(None, map(str.strip, text.split("\n\n"))):
        ids = torch.tensor([tokenizer.encode(paragraph)], device=model.embed.weight.device)
        logits = model.head(model(ids, torch.full_like(ids, int(Role.TEXT)))[0, :-1]).float()
        total += F.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
        count += ids.shape[1] - 1
    if not count:
        raise data.DataError("no text to measure: no paragraph has two tokens")
    return total / count, count


def open_before(trained: dict, device: str) -> tuple[MLLM, data.Tokenizer]:
    """What a run of lab.eyes began with; trained: its arguments."""
    if not trained.get("template"):
        return open_run(Path(trained["llm"]), device)
    args = argparse.Namespace(**{**trained, "llm": Path(trained["llm"])})
    model, tokenizer = eyes.real(args, {})
    return model.to(device).eval(), tokenizer


def measure(runs: list[Path], text: str, device: str) -> list[dict]:
    """One record for each --llm, and then for each run."""
    made, records = {run: read_record(run) for run in runs}, []
    if others := [run for run, record in made.items() if not record["args"].get("llm")]:
        raise data.DataError(f"{others[0]}: not a run of lab.eyes, it has no --llm")

    def add(name, mask: str, model, tokenizer) -> None:
        loss, count = text_loss(model, tokenizer, text)
        records.append({"model": str(name), "mask": mask, "loss": loss, "tokens": count})

    for llm, trained in {record["args"]["llm"]: record["args"] for record in made.values()}.items():
        add(llm, "before", *open_before(trained, device))
    for run, record in made.items():
        add(run, record["mask"], *open_run(run, device))
    return records


def arguments(argv=None):
    parser = Parser(__doc__)
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN", help="folder that --out of lab.eyes named")
    add("--json", type=Path, metavar="FILE", help="write the numbers there too")
    add("--text", type=Path, default=TEXT, metavar="FILE", help="default: lab/plain_text.txt")
    add("--device", default=default_device(), metavar="NAME", help="cuda, mps or cpu")
    return parser.parse_args(argv)


def main(argv=None) -> None:
    args = arguments(argv)
    with one_line_errors():
        check_device(args.device)
        check_writable(args.json)
        try:
            text = args.text.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise data.DataError(f"--text {args.text} cannot be read: {error}") from None
        records = measure(args.runs, text, args.device)
        rows = [["model", "trained under", "nats a token", "tokens"]]
        rows += [[r["model"], r["mask"], f"{r['loss']:.3f}", f"{r['tokens']:,}"] for r in records]
        print(markdown(rows))
        if args.json:
            write_json(args.json, records)


if __name__ == "__main__":
    main()
