"""Evaluate runs of train.py: answers are generated, then compared after normalisation (data.normalise), never guessed from a list.

    python eval.py RUN [RUN ...]                           accuracy by family; runs that differ by seed alone are pooled
    python eval.py RUN --json FILE --md FILE --curves PNG  the same as files; validation accuracy over the steps as a picture
    python eval.py RUN --data llava --source FILE.json     other data than the run was trained on; --split train|val|test|all
    python eval.py RUN --mask v2v                          another mask at test time than in training; or --aif 0.5
    python eval.py RUN --split dev                         an official split of NLVR
    python eval.py RUN --image FILE --question "..."       one answer; without --question a conversation (talk.py)
    python eval.py RUN [RUN ...] --explore page.html       what each token looks at, as a page for a browser; see explore.py

Decoding is greedy. "unparsed" counts answers that cannot be right whatever the question: outside the data set's closed list of
answers, or, where it has none, empty or without an end.
"""

import argparse
import json
import statistics
from pathlib import Path

import torch
from tqdm import tqdm

import checkpoint
import data
import draw
import explore
import talk
from data.chat import ChatTokenizer
from mma import OPENS, Role
from model import MLLM, load


@torch.no_grad()
def answer_all(model: MLLM, tokenizer: data.Tokenizer, examples: list[data.Example], known: set[str] | None = None,
               batch_size: int = 256, progress: bool = False, aif: float = 0.0, max_new_tokens: int | None = None) -> list[dict]:
    """The model's answer to every turn of every example, earlier turns given with their true answers.

    Returns a dict for each: id, group, family, question, answer (the true one), given, correct, unparsed, prompt (example, turn).
    `known`: the closed set of answers, if there is one. aif: the share of image tokens that text may not read (aif_blocked).
    """
    known = known and {data.normalise(answer) for answer in known}
    prompts = [(e, t) for e in examples for t in range(len(e.turns))]
    # Twice the longest true answer and some: what is longer still is wrong
    limit = max_new_tokens or 2 * max((len(tokenizer.encode(e.turns[t][1])) for e, t in prompts), default=0) + 4
    was_training, device, results = model.training, model.embed.weight.device, []
    model.eval()
    for start in tqdm(range(0, len(prompts), batch_size), desc="answering", disable=not progress):
        some = prompts[start:start + batch_size]
        rows = [data.encode(e, tokenizer, model.config.n_image_tokens, upto=t, text_first=model.config.text_first) for e, t in some]
        batch = {name: x.to(device) for name, x in data.collate(rows, tokenizer.pad, model.config.image_size).items()}
        blocked = aif_blocked(model, batch, aif) if aif else None
        for (e, t), ids in zip(some, model.generate(**batch, blocked=blocked, eos=tokenizer.eos, max_new_tokens=limit)):
            (question, answer), given = e.turns[t], tokenizer.decode(ids)
            said = data.normalise(given)
            correct = said == data.normalise(answer)
            lost = said not in known if known else not said or ids[-1] != tokenizer.eos
            results.append(dict(id=e.id, group=e.group, family=e.family, question=question.replace(data.IMAGE, " ").strip(), answer=answer,
                                given=given, correct=correct, unparsed=lost and not correct, prompt=(e, t)))
    model.train(was_training)
    return results


@torch.no_grad()
def aif_blocked(model: MLLM, batch: dict, share: float) -> torch.Tensor:
    """AIF, as summarised (we have the notes, not the code, of arXiv 2604.15809): bool [B, T], the image tokens that text rows may
    not read. Of each row's image tokens it is the given share whose largest attention from any text row (mean over heads) is
    spread most evenly over the layers: entropy marks what no layer looks for. The share is fixed, not searched for."""
    weights, role = [], batch["role"]
    model(**batch, weights=weights)
    image, text = role == Role.IMAGE, (role == Role.QUESTION) | (role == Role.TEXT)
    heads = torch.stack([w.mean(1) for w in weights])                     # [layers, B, T, T]
    d = heads.masked_fill(~text[:, :, None], 0).amax(2)                   # [layers, B, T]
    p = d / d.sum(0).clamp(min=1e-12)
    entropy = (-p * p.clamp(min=1e-12).log()).sum(0).masked_fill(~image, -torch.inf)
    rank = entropy.argsort(dim=1, descending=True).argsort(dim=1)
    return image & (rank < (share * image.sum(1, keepdim=True)).round())


def summarise(results: list[dict]) -> dict:
    """{"accuracy", "families": {name: {"accuracy", "n"}}, "n", "unparsed"}; accuracy 0 to 1 over all questions. Where examples have
    groups, also "consistency", the share of groups whose answers are all correct."""
    def score(some):
        return {"accuracy": sum(r["correct"] for r in some) / max(1, len(some)), "n": len(some)}
    families = sorted({r["family"] for r in results})
    whole = {}
    for r in results:
        group = r.get("group", "")
        whole[group] = whole.get(group, True) and r["correct"]
    return {**score(results), "families": {f: score([r for r in results if r["family"] == f]) for f in families},
            "unparsed": sum(r["unparsed"] for r in results),
            **({"consistency": sum(whole.values()) / len(whole)} if any(whole) else {})}


# --------------------------------------------------------------------------------------------------------------------
# What is printed and drawn

def pool(runs: list[dict]) -> dict[str, list[dict]]:
    """Runs that differ by seed alone stand together: label -> runs. How and where a run was made does not matter."""
    groups = {}
    for run in runs:
        apart = ("seed", "val_limit", "eval_every", *checkpoint.WHERE)
        same = {k: v for k, v in run["args"].items() if k not in apart or k in ("source", "images")}
        key = json.dumps([same, run["mask"]], sort_keys=True)
        while run["seed"] in [other["seed"] for other in groups.get(key, [])]:  # the same seed again is not another seed
            key += "'"
        groups.setdefault(key, []).append(run)
    out = {}
    for group in groups.values():
        label = group[0]["mask"] if len(groups) == len({g[0]["mask"] for g in groups.values()}) else Path(group[0]["run"]).name
        label += f" ({len(group)} seeds)" if len(group) > 1 else ""
        while label in out:
            label += "'"
        out[label] = group
    return out


def spread(values: list[float], form: str = "{:.1f}") -> str:
    """mean ± standard deviation over seeds; one seed has no spread."""
    if not values:
        return "-"
    return form.format(statistics.mean(values)) + (" ± " + form.format(statistics.stdev(values)) if len(values) > 1 else "")


def markdown(rows: list[list[str]]) -> str:
    """Rows of cells, the first one the header, as a Markdown table with its columns aligned."""
    width = [max(len(row[c]) for row in rows) for c in range(len(rows[0]))]
    lines = ["| " + " | ".join(text.rjust(w) if c else text.ljust(w) for c, (text, w) in enumerate(zip(row, width))) + " |"
             for row in rows]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 1) + (":" if c else "-") for c, w in enumerate(width)) + "|", *lines[1:]])


def table(groups: dict[str, list[dict]]) -> str:
    """Markdown: a row for each family, a column for each group of runs (see pool)."""
    families = sorted({f for runs in groups.values() for run in runs for f in run["families"]})
    rows = [["accuracy, %", *groups]]
    for family in families:
        rows.append([family, *(spread([100 * run["families"][family]["accuracy"] for run in runs if family in run["families"]])
                               for runs in groups.values())])
    rows.append(["**overall**", *(spread([100 * run["accuracy"] for run in runs]) for runs in groups.values())])
    if any("consistency" in run for runs in groups.values() for run in runs):
        rows.append(["consistency", *(spread([100 * run["consistency"] for run in runs if "consistency" in run])
                                      for runs in groups.values())])
    rows.append(["questions", *(f"{runs[0]['n']:,}" for runs in groups.values())])
    rows.append(["unparsed", *(spread([run["unparsed"] for run in runs], "{:,.0f}") for runs in groups.values())])
    rows.append(["parameters", *(f"{runs[0]['params']:,}" for runs in groups.values())])
    return markdown(rows)


def curve(run: Path) -> dict[int, float]:
    """Validation accuracy (0 to 1) at each step of stage 2 that was looked at, from the run's metrics.jsonl."""
    log = map(json.loads, (Path(run) / "metrics.jsonl").read_text().splitlines())
    return {r["step"]: r["val"]["accuracy"] for r in log if "val" in r}


# --------------------------------------------------------------------------------------------------------------------

def open_run(run: Path, device: str, mask: str | None = None) -> tuple[MLLM, data.Tokenizer, dict]:
    """The model, tokenizer and record (run.json) of a finished run. mask: another one than it was trained with."""
    missing = [name for name in ("model.pt", "tokenizer.model", "run.json") if not (run / name).is_file()]
    if missing:
        raise data.DataError(f"{run}: not a finished run, {missing[0]} is missing; RUN is what --out of train.py named")
    try:
        record, name = json.loads((run / "run.json").read_text(encoding="utf-8")), "tokenizer.model"
        extras = run / "tokenizer.json"  # of a tokenizer that came with pretrained weights
        more = json.loads(extras.read_text(encoding="utf-8")) if extras.exists() else None
        tokenizer, name = (ChatTokenizer if more else data.Tokenizer)((run / name).read_bytes(), **(more or {})), "model.pt"
        model = load(run / name, device)
        model.config.mask = mask or model.config.mask
        return model, tokenizer, record
    except ValueError as error:
        raise data.DataError(f"{run / 'run.json'} cannot be read: {error}") from None
    except Exception as error:  # sentencepiece and torch raise many kinds; a pickle that holds code is among them
        raise data.DataError(f"{run / name} cannot be read: {str(error).splitlines()[0]}") from None


def check_device(name: str) -> None:
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise data.DataError(f"--device {name} cannot be used here: {str(error).splitlines()[0]}") from None


def evaluate(run: Path, args) -> dict:
    """The record of one run, for table() and the JSON."""
    model, tokenizer, record = open_run(run, args.device, args.mask)
    trained = record["args"]
    source, examples = asked_of(trained, model.config.image_size, args, args.limit)
    result = summarise(answer_all(model, tokenizer, examples, source.answers, args.batch_size, progress=True, aif=args.aif))
    return {"run": str(run), **result, "params": record["params"], "mask": model.config.mask, "aif": args.aif, "seed": trained["seed"],
            "args": trained}


def asked_of(trained: dict, image_size: int, args, limit: int | None) -> tuple:
    """The data set and the examples, `limit` at most, that the options name: by default the run's own, of its final split. trained:
    the run's options."""
    name = args.data or trained["data"]
    if name == trained["data"] and args.source is None:
        source, images = trained["source"], args.images or trained["images"]
    else:
        source, images = args.source, args.images
    source = data.load(name, source and Path(source), images and Path(images))
    if isinstance(source, data.Folder) and not source.damaged.strict and (left_out := source.read_pictures(image_size)):
        print(left_out)
    names, wanted = source.split_names(), args.split or source.final_split
    if wanted not in (*names, "all"):
        raise data.DataError(f"{name} has no split {wanted!r}; there are {', '.join(names)}, all")
    splits = names if wanted == "all" else [wanted]
    examples = [e for split in splits for e in source.heldout(split, limit)]
    if not examples:
        raise data.DataError(f"the split {wanted!r} of {name} is empty; try --split all")
    return source, examples


def arguments(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder that train.py's --out named")
    parser.add_argument("--data", choices=data.NAMES, help="default: what the run was trained on")
    parser.add_argument("--source", type=Path, help="default: the run's")
    parser.add_argument("--images", type=Path, help="default: the run's")
    parser.add_argument("--split", metavar="NAME", help="train, val, test, all, ... (default: test; nlvr val)")
    parser.add_argument("--limit", type=int, metavar="N", help="the first N examples of the split (default: all)")
    parser.add_argument("--mask", choices=list(OPENS), help="another mask than the run was trained with, at test time only")
    parser.add_argument("--aif", type=float, default=0.0, metavar="SHARE", help="block this share of image tokens for text (aif_blocked)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results here")
    parser.add_argument("--md", type=Path, metavar="FILE", help="write the table here")
    parser.add_argument("--curves", type=Path, metavar="FILE", help="write a PNG of validation accuracy over the steps here")
    parser.add_argument("--image", type=Path, metavar="FILE", help="a picture to ask --question about, or to talk about")
    parser.add_argument("--question", action="append", help="what to ask about --image; may be given again")
    parser.add_argument("--explore", type=Path, metavar="FILE", help="write an HTML page that shows the attention (--limit pictures, "
                        "default: 10)")
    parser.add_argument("--batch-size", type=int, default=256, help="default: 256")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu")
    return parser.parse_args(argv)


def main(argv=None):
    args = arguments(argv)
    try:
        check_device(args.device)
        if not 0 <= args.aif <= 1:
            raise data.DataError(f"--aif {args.aif} is not a share of the image tokens, 0 to 1")
        if args.question and not args.image or args.explore and args.image and not args.question:
            raise data.DataError("--question needs an --image" if args.question else "--explore of an --image needs a --question")
        asked = [data.Example([args.image], [(data.IMAGE + question, "")]) for question in args.question or ()]
        if args.explore:
            if args.aif:
                raise data.DataError("--explore shows the attention without --aif")
            if args.limit is not None and args.limit < 1:
                raise data.DataError(f"--limit {args.limit} leaves no picture to show")
            runs = [open_run(run, args.device, args.mask) for run in args.runs]
            if not asked:
                _, examples = asked_of(runs[0][2]["args"], runs[0][0].config.image_size, args, None)
            groups = [asked] if asked else explore.pairs(examples, args.limit or explore.PICTURES)
            print(explore.write(args.explore, [(run.resolve().name, *opened[:2]) for run, opened in zip(args.runs, runs)], groups))
            return
        if args.image:
            for run in args.runs:
                model, tokenizer, _ = open_run(run, args.device, args.mask)
                for question in args.question or ():
                    for piece in talk.Conversation(model, tokenizer).ask(data.IMAGE + question, [args.image]):
                        print(piece, end="", flush=True)
                    print()
                if not args.question:
                    talk.converse(model, tokenizer, args.image)
            return
        for file in filter(None, (args.json, args.md, args.curves)):
            file.parent.mkdir(parents=True, exist_ok=True)
        results = [evaluate(run, args) for run in args.runs]
        groups = pool(results)
        print(table(groups))
        if args.curves:
            draw.write_curves(args.curves, {label: [curve(run["run"]) for run in runs] for label, runs in groups.items()})
    except data.DataError as error:
        raise SystemExit(f"error: {error}") from None
    if args.md:
        args.md.write_text(table(groups) + "\n", encoding="utf-8")
    if args.json:
        runs = [{"label": label, **{k: v for k, v in run.items() if k != "args"}} for label, some in groups.items() for run in some]
        args.json.write_text(json.dumps({"runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
