"""Evaluate runs of train.py: answers are generated, then compared after normalisation (data.normalise), never guessed from a list.

    python eval.py RUN [RUN ...]                           accuracy by family; runs that differ by seed alone are pooled
    python eval.py RUN --json FILE --curves FILE.png       the same as JSON; validation accuracy over the steps as a picture
    python eval.py RUN --data llava --source FILE.json     other data than the run was trained on; --split train|val|test|all
    python eval.py RUN --split dev                         an official split of NLVR
    python eval.py RUN --image FILE --question "..."       one answer

Decoding is greedy. "unparsed" counts answers that cannot be right whatever the question: outside the data set's closed list of
answers, or, where it has none, empty or without an end.
"""

import argparse
import json
import statistics
import textwrap
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from tqdm import tqdm

import data
from mma import OPENS
from model import MLLM, load


@torch.no_grad()
def answer_all(model: MLLM, tokenizer: data.Tokenizer, examples: list[data.Example], known: set[str] | None = None,
               batch_size: int = 256, progress: bool = False) -> list[dict]:
    """The model's answer to every turn of every example, earlier turns given with their true answers.

    Returns a dict for each: id, group, family, question, answer (the true one), given, correct, unparsed, images. `known`: the closed
    set of answers, if there is one.
    """
    known = known and {data.normalise(answer) for answer in known}
    prompts = [(e, t) for e in examples for t in range(len(e.turns))]
    # Twice the longest true answer and some: what is longer still is wrong
    limit = 2 * max((len(tokenizer.encode(e.turns[t][1])) for e, t in prompts), default=0) + 4
    was_training, device, results = model.training, model.embed.weight.device, []
    model.eval()
    for start in tqdm(range(0, len(prompts), batch_size), desc="answering", disable=not progress):
        some = prompts[start:start + batch_size]
        rows = [data.encode(e, tokenizer, model.config.n_image_tokens, upto=t) for e, t in some]
        batch = {name: x.to(device) for name, x in data.collate(rows, tokenizer.pad, model.config.image_size).items()}
        for (e, t), ids in zip(some, model.generate(**batch, eos=tokenizer.eos, max_new_tokens=limit)):
            (question, answer), given = e.turns[t], tokenizer.decode(ids)
            said = data.normalise(given)
            correct = said == data.normalise(answer)
            lost = said not in known if known else not said or ids[-1] != tokenizer.eos
            results.append(dict(id=e.id, group=e.group, family=e.family, question=question.replace(data.IMAGE, " ").strip(), answer=answer,
                                given=given, correct=correct, unparsed=lost and not correct, images=e.images))
    model.train(was_training)
    return results


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
        same = {k: v for k, v in run["args"].items() if k not in ("seed", "out", "overwrite", "workers", "device", "limit", "eval_every")}
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


def table(runs: list[dict]) -> str:
    """Markdown: a row for each family, a column for each run or pool of seeds (mean ± standard deviation)."""
    groups = pool(runs)  # label -> runs

    def cell(values, form="{:.1f}"):
        if not values:
            return "-"
        text = form.format(statistics.mean(values))
        return text + (" ± " + form.format(statistics.stdev(values)) if len(values) > 1 else "")

    rows = [["accuracy, %", *groups]]
    for family in sorted({f for run in runs for f in run["families"]}):
        rows.append([family, *(cell([100 * run["families"][family]["accuracy"] for run in group if family in run["families"]])
                               for group in groups.values())])
    rows.append(["**overall**", *(cell([100 * run["accuracy"] for run in group]) for group in groups.values())])
    if any("consistency" in run for run in runs):
        rows.append(["consistency", *(cell([100 * run["consistency"] for run in group if "consistency" in run])
                                      for group in groups.values())])
    rows.append(["questions", *(cell([group[0]["n"]], "{:,}") for group in groups.values())])
    rows.append(["unparsed", *(cell([run["unparsed"] for run in group], "{:,.0f}") for group in groups.values())])
    rows.append(["parameters", *(cell([group[0]["params"]], "{:,}") for group in groups.values())])
    width = [max(len(row[c]) for row in rows) for c in range(len(rows[0]))]
    lines = ["| " + " | ".join(text.rjust(w) if c else text.ljust(w) for c, (text, w) in enumerate(zip(row, width))) + " |"
             for row in rows]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 1) + (":" if c else "-") for c, w in enumerate(width)) + "|", *lines[1:]])


def write_sheet(path, results: list[dict], image_size: int, n: int = 24, side: int = 160) -> None:
    """A PNG of n answers spread over the results: picture, question, answer given, true answer; green right, red wrong."""
    some = [results[i * len(results) // n] for i in range(n)] if len(results) > n else results
    columns, height = 6, side + 62
    sheet = Image.new("RGB", (columns * (side + 12), -(-len(some) // columns) * height), "white")
    draw = ImageDraw.Draw(sheet)
    for k, r in enumerate(some):
        x, y = k % columns * (side + 12) + 6, k // columns * height + 4
        if r["images"]:
            picture = data.pixels_of(r["images"][0], image_size, r["id"])
            sheet.paste(Image.fromarray(picture.permute(1, 2, 0).numpy()).resize((side, side), Image.Resampling.NEAREST), (x, y))
        question = textwrap.wrap(r["question"], 27) or [""]
        text = "\n".join(question[:2]) + f"\n{r['given'][:24] or '(nothing)'}" + ("" if r["correct"] else f"   [{r['answer'][:24]}]")
        draw.text((x, y + side + 2), text, fill=(0, 120, 40) if r["correct"] else (190, 20, 20))
    sheet.save(path)


def write_curves(path, runs: list[dict]) -> None:
    """A PNG of validation accuracy over the steps of stage 2: the mean of each pool of seeds, from lowest to highest seed shaded."""
    colours = [(240, 130, 30), (60, 100, 180), (60, 150, 80), (170, 60, 150), (120, 120, 120)]
    W, H, left, top = 720, 400, 46, 14
    sheet = Image.new("RGB", (W + left + 20, H + top + 40), "white")
    pen = ImageDraw.Draw(sheet, "RGBA")
    curves = {}
    for label, group in pool(runs).items():
        logs = [[json.loads(line) for line in (Path(run["run"]) / "metrics.jsonl").read_text().splitlines()] for run in group]
        by_run = [{r["step"]: 100 * r["val"]["accuracy"] for r in log if "val" in r} for log in logs]
        curves[label] = [(step, [c[step] for c in by_run]) for step in sorted(set.intersection(*(set(c) for c in by_run)))]
    curves = {label: curve for label, curve in curves.items() if curve}
    if not curves:
        raise data.DataError("no run looked at its validation split (--eval-every), so there are no curves to draw")
    last = max(curve[-1][0] for curve in curves.values())

    def at(step, value):
        return left + W * step / last, top + H * (100 - value) / 100

    for value in range(0, 101, 20):
        pen.line([at(0, value), at(last, value)], fill=(215, 215, 215))
        pen.text((8, at(0, value)[1] - 6), f"{value} %", fill="black")
    for k in range(5):
        pen.text((at(last * k / 4, 0)[0] - 10, top + H + 6), f"{last * k // 4:,}", fill="black")
    pen.text((left + W // 2 - 90, top + H + 22), "step of stage 2 (validation accuracy)", fill="black")
    for k, (label, curve) in enumerate(curves.items()):
        colour = colours[k % len(colours)]
        band = [at(step, max(values)) for step, values in curve] + [at(step, min(values)) for step, values in reversed(curve)]
        if len(curve) > 1:
            pen.polygon(band, fill=(*colour, 50))
        pen.line([at(step, statistics.mean(values)) for step, values in curve], fill=colour, width=3)
        pen.text((left + 12, top + 8 + 16 * k), label, fill=colour)
    sheet.save(path)


# --------------------------------------------------------------------------------------------------------------------

def open_run(run: Path, device: str) -> tuple[MLLM, data.Tokenizer, dict]:
    """The model, tokenizer and record (run.json) of a finished run."""
    missing = [name for name in ("model.pt", "tokenizer.model", "run.json") if not (run / name).is_file()]
    if missing:
        raise data.DataError(f"{run}: not a finished run, {missing[0]} is missing; RUN is what --out of train.py named")
    record = json.loads((run / "run.json").read_text())
    return load(run / "model.pt", device), data.Tokenizer((run / "tokenizer.model").read_bytes()), record


def check_device(name: str) -> None:
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise data.DataError(f"--device {name} cannot be used here: {str(error).splitlines()[0]}") from None


def evaluate(run: Path, args) -> dict:
    """The record of one run, for table() and the JSON."""
    model, tokenizer, record = open_run(run, args.device)
    if args.mask:
        model.config.mask = args.mask
    trained = record["args"]
    name = args.data or trained["data"]
    if name == trained["data"] and args.source is None:
        source, images = trained["source"], args.images or trained["images"]
    else:
        source, images = args.source, args.images
    source = data.load(name, source and Path(source), images and Path(images))
    names, wanted = source.split_names(), args.split or source.final_split
    if wanted not in (*names, "all"):
        raise data.DataError(f"{name} has no split {wanted!r}; there are {', '.join(names)}, all")
    splits = names if wanted == "all" else [wanted]
    examples = [e for split in splits for e in source.heldout(split, args.limit)]
    if not examples:
        raise data.DataError(f"the split {wanted!r} of {name} is empty; try --split all")
    result = summarise(answer_all(model, tokenizer, examples, source.answers, args.batch_size, progress=True))
    return {"run": str(run), **result, "params": record["params"], "mask": model.config.mask, "seed": trained["seed"], "args": trained}


def arguments(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder that train.py's --out named")
    parser.add_argument("--data", choices=data.NAMES, help="default: what the run was trained on")
    parser.add_argument("--source", type=Path, help="default: the run's")
    parser.add_argument("--images", type=Path, help="default: the run's")
    parser.add_argument("--split", metavar="NAME", help="train, val, test, all, ... (default: test; nlvr val)")
    parser.add_argument("--limit", type=int, metavar="N", help="the first N examples of the split (default: all)")
    parser.add_argument("--mask", choices=list(OPENS), help="another mask than the run was trained with, at test time only")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results here")
    parser.add_argument("--curves", type=Path, metavar="FILE", help="write a PNG of validation accuracy over the steps here")
    parser.add_argument("--image", type=Path, metavar="FILE", help="answer one --question about this picture")
    parser.add_argument("--question", help="what to ask about --image")
    parser.add_argument("--batch-size", type=int, default=256, help="default: 256")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu")
    return parser.parse_args(argv)


def main(argv=None):
    args = arguments(argv)
    try:
        check_device(args.device)
        if args.image:
            if not args.question:
                raise data.DataError("--image needs a --question")
            for run in args.runs:
                model, tokenizer, _ = open_run(run, args.device)
                asked = data.Example([args.image], [(data.IMAGE + args.question, "")])
                row = data.encode(asked, tokenizer, model.config.n_image_tokens, upto=0)
                batch = {name: x.to(args.device) for name, x in data.collate([row], tokenizer.pad, model.config.image_size).items()}
                print(tokenizer.decode(model.generate(**batch, eos=tokenizer.eos, max_new_tokens=64)[0]))
            return
        for file in filter(None, (args.json, args.curves)):
            file.parent.mkdir(parents=True, exist_ok=True)
        results = [evaluate(run, args) for run in args.runs]
        print(table(results))
        if args.curves:
            write_curves(args.curves, results)
    except data.DataError as error:
        raise SystemExit(f"error: {error}") from None
    if args.json:
        runs = [{k: v for k, v in r.items() if k != "args"} for r in results]
        args.json.write_text(json.dumps({"runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
