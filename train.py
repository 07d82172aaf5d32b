"""Train a small multimodal LLM from nothing, in the paper's two stages, and see how well it answers.

    python train.py                                                  the built-in world of shapes
    python train.py --mask causal                                    the same without MMA
    python train.py --data easy_vqa --source PATH                    easy-VQA, in its own layout
    python train.py --data nlvr --source PATH                        NLVR, in its own layout; nlvr+world: with a world in its manner
    python train.py --data llava --source FILE.json --images DIR     your own pictures and dialogues

Stage 1 (PT): captions under the causal mask, everything trainable. (The paper starts from a pretrained vision encoder and LLM
and trains the connector and the LLM; ours start from nothing.) Stage 2 (SFT): questions and answers under --mask; the vision
encoder is frozen, as in the paper, unless --train-encoder. Data without captions use questions and answers in stage 1 too.

Written to --out: model.pt, tokenizer.model, run.json (arguments, sizes, results), metrics.jsonl, sheet.png.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

import data
import eval as evaluation
from mma import OPENS, attention_mask, leaks, supervised
from model import MLLM, Config, save

PRESETS = {  # the model, what of the data a step of stage 2 takes, and peak learning rates
    "tiny": dict(model=dict(encoder_width=128, encoder_layers=2, encoder_heads=4, d_model=128, n_layer=3, n_head=4, n_kv_head=2, d_ff=256),
                 pictures=32, questions=4, lr=0.004, adam_lr=0.002),
    "small": dict(model=dict(encoder_width=256, encoder_layers=4, encoder_heads=8, d_model=256, n_layer=6, n_head=8, n_kv_head=4, d_ff=704),
                  pictures=64, questions=4, lr=0.003, adam_lr=0.001),
}
SMALL = dict(image_size=64, patch_size=16)
CAPTIONS = dict(pt_steps=100, pt_pictures=64, steps=1600, **SMALL)
NO_CAPTIONS = dict(pt_steps=1200, pt_pictures=32, steps=800, **SMALL)  # questions teach the encoder more slowly
BOXES = dict(image_size=100, patch_size=20)  # a patch is a block of a tower
STEPS = {"shapes": CAPTIONS, "easy_vqa": NO_CAPTIONS, "llava": NO_CAPTIONS,
         "nlvr": dict(pt_steps=60, pt_pictures=16, pictures=16, steps=300, **BOXES),
         "nlvr+world": dict(pt_steps=220, pt_pictures=32, pictures=24, steps=1000, **BOXES)}


class Muon(torch.optim.Optimizer):
    """Muon (Keller Jordan, 2024): momentum, orthogonalised by Newton-Schulz, for weight matrices. Equal to torch.optim.Muon up
    to rounding, but in float32 and in one batch for all matrices of a shape: torch's runs matrix by matrix in bfloat16, which on a
    CPU without bfloat16 units takes longer than the rest of the step (LOG.md)."""

    def __init__(self, params, lr: float, momentum: float = 0.95, weight_decay: float = 0.0):
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            shapes = {}
            for p in group["params"]:
                if p.grad is not None:
                    shapes.setdefault(p.shape, []).append(p)
            for shape, params in shapes.items():
                updates = []
                for p in params:
                    m = self.state[p].setdefault("momentum", torch.zeros_like(p))
                    m.lerp_(p.grad, 1 - group["momentum"])
                    updates.append(p.grad.lerp(m, group["momentum"]))  # Nesterov
                update = orthogonalise(torch.stack(updates))
                for p, u in zip(params, update):
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(u, alpha=-group["lr"] * max(1, shape[0] / shape[1]) ** 0.5)


def orthogonalise(m: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """The nearest semi-orthogonal matrix, roughly, of each matrix of m [k, rows, columns]: quintic Newton-Schulz."""
    tall = m.shape[1] > m.shape[2]
    x = m.mT if tall else m
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        a = x @ x.mT
        x = 3.4445 * x + (-4.775 * a + 2.0315 * a @ a) @ x
    return x.mT if tall else x


class Steps(Dataset):
    """Item s is the batch of step s, made ahead of time by the loader's worker: a function of (stage, s, seed) alone. Trouble
    with the data is returned, not raised, so that it leaves a worker as one line."""

    def __init__(self, source, tokenizer: data.Tokenizer, config: Config, stage: str, args):
        self.source, self.tokenizer, self.config, self.stage, self.args = source, tokenizer, config, stage, args

    def __len__(self):
        return self.args.steps if self.stage == "sft" else self.args.pt_steps

    def __getitem__(self, step: int):
        try:
            rows = [data.encode(e, self.tokenizer, self.config.n_image_tokens, self.args.max_tokens) for e in self.examples(step)]
            return data.collate(rows, self.tokenizer.pad, self.config.image_size)
        except data.DataError as error:
            return error

    def examples(self, step: int) -> list[data.Example]:
        pictures = self.args.pictures if self.stage == "sft" else self.args.pt_pictures
        return self.source.draw(self.stage, step, pictures, self.args.questions, self.args.seed)


def schedule(step: int, steps: int, warmup: int = 30, decay: float = 0.4) -> float:
    """Share of the learning rate at a step: linear warm-up, constant, linear decay to zero over the last part."""
    return min(1.0, (step + 1) / warmup, (steps - step) / max(1.0, decay * steps))


def positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, not {text}")
    return int(text)


def arguments(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    g = parser.add_argument_group("data")
    g.add_argument("--data", default="shapes", choices=data.NAMES)
    g.add_argument("--source", type=Path, help="easy_vqa, nlvr: its folder; llava: the JSON file")
    g.add_argument("--images", type=Path, help="llava: the folder of the pictures (default: the JSON file's)")
    g = parser.add_argument_group("model and method")
    g.add_argument("--mask", default="mma", choices=list(OPENS), help="attention mask of stage 2 and of generation (default: mma)")
    g.add_argument("--preset", choices=list(PRESETS), help="default: small on a GPU, tiny elsewhere")
    g.add_argument("--train-encoder", action="store_true", help="train the vision encoder in stage 2 as well")
    g = parser.add_argument_group("training; what is not given comes from the preset and the data")
    g.add_argument("--pt-steps", type=int, help="steps of stage 1 (captions)")
    g.add_argument("--steps", type=int, help="steps of stage 2 (questions)")
    g.add_argument("--pt-pictures", type=positive, help="pictures of a step of stage 1")
    g.add_argument("--pictures", type=positive, help="pictures of a step of stage 2")
    g.add_argument("--questions", type=positive, help="questions about each picture in a step of stage 2")
    g.add_argument("--lr", type=float, help="peak learning rate of Muon, for the weight matrices")
    g.add_argument("--adam-lr", type=float, help="peak learning rate of AdamW, for the rest")
    g.add_argument("--image-size", type=positive, help="pixels (default: 64; nlvr 100)")
    g.add_argument("--patch-size", type=positive, help="pixels (default: 16; nlvr 20)")
    g.add_argument("--vocab-size", type=positive, default=4096, help="upper bound (default: 4096)")
    g.add_argument("--max-tokens", type=positive, default=512, help="longer rows are cut, and counted (default: 512)")
    g.add_argument("--seed", type=int, default=0, help="of initialisation, sampling and data order")
    g = parser.add_argument_group("run")
    g.add_argument("--limit", type=positive, help="test examples answered at the end (default: all)")
    g.add_argument("--out", type=Path, help="folder of the run (default: runs/DATA-MASK-SEED)")
    g.add_argument("--overwrite", action="store_true", help="replace the run that --out holds")
    g.add_argument("--device", default="cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu")
    g.add_argument("--workers", type=int, default=1, help="processes that make batches ahead of time (default: 1)")
    g.add_argument("--eval-every", type=positive, default=100, help="steps of stage 2 between looks at the validation split (default: 100)")
    args = parser.parse_args(argv)
    args.preset = args.preset or ("small" if args.device.startswith("cuda") else "tiny")
    for name, value in {**PRESETS[args.preset], **STEPS[args.data]}.items():
        if name != "model" and getattr(args, name) is None:
            setattr(args, name, value)
    for name in ("source", "images"):  # eval.py may be run from another folder
        setattr(args, name, getattr(args, name) and getattr(args, name).resolve())
    args.out = args.out or Path("runs") / f"{args.data}-{args.mask}-{args.seed}"
    return args


def optimizers_of(model: MLLM, args) -> list[torch.optim.Optimizer]:
    """Muon for the weight matrices that are trained, AdamW for embeddings, norms, biases and positions."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    matrices = [p for name, p in trained if p.dim() == 2 and name.endswith(".weight") and name != "embed.weight"]
    others = [p for name, p in trained if not any(p is m for m in matrices)]
    return [Muon(matrices, args.lr), torch.optim.AdamW(others, args.adam_lr, betas=(0.9, 0.95), weight_decay=0.0)]


def check_labels(kind: str, batch: dict) -> None:
    """Refuse rows that teach nothing: without a supervised token, or with labels that the mask gives away."""
    if isinstance(batch, data.DataError):
        raise batch
    if not supervised(batch["role"]).any():
        raise data.DataError("no row of the first batch keeps an answer token; raise --max-tokens")
    leaking = leaks(attention_mask(kind, batch["role"], batch["turn"]), batch["role"])
    if leaking.any():
        raise data.DataError(f"under the mask {kind!r} {int(leaking.sum())} answer tokens of the first batch can be read instead of "
                             "predicted (mma.leaks); training on them would teach nothing. Choose another --mask or mend roles and turns")


def run(args) -> None:
    began, cuda = time.perf_counter(), args.device.startswith("cuda")
    evaluation.check_device(args.device)
    torch.manual_seed(args.seed)

    # Data and tokenizer
    source = data.load(args.data, args.source, args.images)
    tokenizer = data.Tokenizer.train(source.texts(), args.vocab_size)
    try:
        config = Config(vocab_size=len(tokenizer), image_size=args.image_size, patch_size=args.patch_size, mask=args.mask,
                        **PRESETS[args.preset]["model"])
    except ValueError as error:
        raise data.DataError(str(error)) from None
    stages = [(stage, kind, Steps(source, tokenizer, config, stage, args)) for stage, kind in (("pt", "causal"), ("sft", args.mask))]
    if isinstance(source, data.Folder):
        if not all(source.splits.values()):
            raise data.DataError(f"{args.source}: too few pictures; training, validation and test need one each")
        source.read_pictures(args.image_size)
        cut, dropped = source.drop_unusable(tokenizer, config.n_image_tokens, args.max_tokens)
        print(f"{cut} training rows are longer than {args.max_tokens} tokens and are cut; "
              f"{dropped} of them keep no answer and are left out")
    for stage, kind, batches in stages:
        check_labels(kind, batches[0])
        if not isinstance(source, data.Folder):
            cut, without = map(len, data.unusable(batches.examples(0), tokenizer, config.n_image_tokens, args.max_tokens))
            if cut:
                print(f"stage {stage}: {cut} rows of the first batch are longer than {args.max_tokens} tokens and are cut; "
                      f"{without} of them keep no answer")
    validation = source.heldout("val", 500)

    # Model
    model = MLLM(config).to(args.device)
    params = sum(p.numel() for p in model.parameters())
    print(f"{args.data}, mask {args.mask}, seed {args.seed}, preset {args.preset}: {params:,} parameters, {len(tokenizer)} tokens in the "
          f"vocabulary, {config.n_image_tokens} a picture; on {args.device}, into {args.out}")
    args.out.mkdir(parents=True, exist_ok=True)
    for name in ("run.json", "model.pt"):  # --overwrite: until this run has finished, the folder holds none
        (args.out / name).unlink(missing_ok=True)
    (args.out / "tokenizer.model").write_bytes(tokenizer.model)
    metrics = open(args.out / "metrics.jsonl", "w", buffering=1)

    some = (stages[0][2][step] for step in range(20))
    first = next((batch["images"] for batch in some if isinstance(batch, dict) and "images" in batch), None)
    if first is not None:  # the first pictures stand for all
        pixels = first.float()
        model.encoder.pixel_mean.copy_(pixels.mean((0, 2, 3)))
        model.encoder.pixel_std.copy_(pixels.std((0, 2, 3)).clamp(min=1))

    for stage, kind, batches in stages:
        steps = len(batches)
        model.encoder.requires_grad_(stage == "pt" or args.train_encoder)
        optimizers = optimizers_of(model, args)
        loader = DataLoader(batches, batch_size=None, num_workers=args.workers, pin_memory=cuda)
        bar, shown = tqdm(loader, desc={"pt": "stage 1 (captions)", "sft": "stage 2 (questions)"}[stage], mininterval=1), {}
        for step, batch in enumerate(bar, 1):
            if isinstance(batch, data.DataError):
                raise batch
            batch = {name: x.to(args.device, non_blocking=True) for name, x in batch.items()}
            with torch.autocast("cuda", torch.bfloat16, enabled=cuda):
                loss = model.loss(**batch, kind=kind)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer, peak in zip(optimizers, (args.lr, args.adam_lr)):
                optimizer.param_groups[0]["lr"] = peak * schedule(step - 1, steps)
                optimizer.step()
            model.zero_grad()
            look = step == steps or stage == "sft" and step % args.eval_every == 0
            if step % 10 == 0 or look:
                record = {"stage": stage, "step": step, "loss": loss.item(), "seconds": round(time.perf_counter() - began, 2)}
                if look and stage == "sft" and validation:
                    record["val"] = evaluation.summarise(evaluation.answer_all(model, tokenizer, validation, source.answers))
                    shown["val"] = f"{record['val']['accuracy']:.1%}"
                metrics.write(json.dumps(record) + "\n")
                bar.set_postfix({"loss": f"{record['loss']:.3f}", **shown})
    metrics.close()

    # Results
    save(args.out / "model.pt", model)
    results = evaluation.answer_all(model, tokenizer, source.heldout(source.final_split, args.limit), source.answers, progress=True)
    record = {"run": str(args.out), **evaluation.summarise(results), "params": params, "mask": args.mask, "seed": args.seed,
              "args": {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()},
              "seconds": round(time.perf_counter() - began, 1), "torch": torch.__version__}
    (args.out / "run.json").write_text(json.dumps(record, indent=1) + "\n")
    evaluation.write_sheet(args.out / "sheet.png", results, config.image_size)
    print(f"\nHeld-out answers, after {record['seconds']:.0f} seconds:\n{evaluation.table([record])}\n"
          f"Look at {args.out / 'sheet.png'}; ask: python eval.py {args.out} --image FILE --question \"...\"")


def main(argv=None):
    args = arguments(argv)
    try:
        if (args.out / "run.json").exists() and not args.overwrite:
            raise data.DataError(f"{args.out} holds a finished run; choose another --out or say --overwrite")
        run(args)
    except data.DataError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
