"""Train a small multimodal LLM from nothing, in the paper's two stages, and see how well it answers.

    python train.py                                                  the built-in world of shapes
    python train.py --mask causal                                    the same without MMA
    python train.py --data easy_vqa --source PATH                    easy-VQA, in its own layout
    python train.py --data nlvr --source PATH                        NLVR, in its own layout; nlvr+world: with a world in its manner
    python train.py --data llava --source FILE.json --images DIR     your own pictures and dialogues

Stage 1 (PT): captions under the causal mask, everything trainable. (The paper starts from a pretrained vision encoder and LLM
and trains the connector and the LLM; ours start from nothing.) Stage 2 (SFT): questions and answers under --mask; the vision
encoder is frozen, as in the paper, unless --train-encoder. Data without captions use questions and answers in stage 1 too.

Written to --out: model.pt, tokenizer.model, run.json (arguments, sizes, results), metrics.jsonl, curves.png, sheet.png (patches with a
frame: where the row that gives the answer looks).
"""

import contextlib
import errno
import json
import math
import sys
import time
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

import checkpoint
import data
import draw
import eval as evaluation
import look
import pretrained
from data.chat import read_tokenizer
from mma import Role, attention_mask, leaks, predicting, supervised
from model import MLLM, Config
from model import save as save_model
from muon import Muon
from options import PRESETS, arguments
from processes import Processes, remove_parts, whole


class Steps(Dataset):
    """Item s is the batch of step s, made ahead of time by the loader's worker: a function of (stage, s, seed) alone. Trouble
    with the data is returned, not raised, so that it leaves a worker as one line."""

    def __init__(self, source, tokenizer: data.Tokenizer, config: Config, stage: str, args):
        self.source, self.tokenizer, self.config, self.stage, self.args = source, tokenizer, config, stage, args
        self.rank, self.world = 0, 1  # of several processes, each takes every world-th row

    def __len__(self):
        return self.args.steps if self.stage == "sft" else self.args.pt_steps

    def __getitem__(self, step: int):
        return self.batch(step, data.pack)

    def batch(self, step: int, pack=list):
        text_first = self.args.order == "text-first" or self.args.order == "both" and step < len(self) // 2
        try:
            rows = [data.encode(e, self.tokenizer, self.config.n_image_tokens, self.args.max_tokens, text_first=text_first)
                    for e in self.examples(step)]
            if len(rows) < self.world:
                raise data.DataError(f"step {step + 1} of stage {self.stage} has {len(rows)} rows for {self.world} processes")
            batch = data.collate(pack(rows[self.rank::self.world]), self.tokenizer.pad, self.config.image_size)
            if "images" not in batch:  # a picture that no row shows: of several processes, all must use all parameters
                size = self.config.image_size
                batch |= {"images": torch.zeros(1, 3, size, size, dtype=torch.uint8), "picture": torch.zeros(0, dtype=torch.int64)}
            batch["read"], batch["kept"] = predicting(batch["role"], batch.get("document"))
            if self.world > 1:  # the losses' mean over the processes is then the mean over all answer tokens
                targets = sum(role == Role.ANSWER for row in rows for role in row.role)
                batch["targets"] = torch.tensor(max(1, targets) / self.world)
            return batch
        except data.DataError as error:
            return error

    def examples(self, step: int) -> list[data.Example]:
        pictures = self.args.pictures if self.stage == "sft" else self.args.pt_pictures
        return self.source.draw(self.stage, step, pictures, self.args.questions, self.args.seed)


def schedule(step: int, steps: int, kind: str = "linear", warmup: int = 30, decay: float = 0.4) -> float:
    """Share of the learning rate at a step: linear warm-up, constant, linear decay to zero over the last part; or, cosine, the paper's:
    warm-up over 150 steps, then down to a twentieth."""
    if kind == "cosine":
        return min(1.0, (step + 1) / 150) * (0.525 + 0.475 * math.cos(math.pi * step / steps))
    return min(1.0, (step + 1) / warmup, (steps - step) / max(1.0, decay * steps))


def optimizers_of(model: MLLM, args, stage: str = "sft") -> list[torch.optim.Optimizer]:
    """Of what is trained: Muon at --lr for the weight matrices, AdamW at --adam-lr for embeddings, norms, biases and positions. With
    --optimizer adamw: AdamW at --adam-lr for the projector and at --lr for the rest."""
    adamw = args.optimizer == "adamw"
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}

    def first(name):
        if adamw:
            return not name.startswith("projector")
        return trained[name].dim() == 2 and name.endswith(".weight") and not name.endswith("embed.weight")
    a, b = ([p for name, p in trained.items() if first(name) == wanted] for wanted in (True, False))
    options = dict(betas=(0.9, 0.95), weight_decay=1e-4 if adamw else 0.0, fused=args.device.startswith("cuda"))
    out = [torch.optim.AdamW(a, args.lr, **options) if adamw else Muon(a, args.lr)] if a else []
    return out + ([torch.optim.AdamW(b, args.pt_adam_lr if stage == "pt" else args.adam_lr, **options)] if b else [])


def check_labels(kind: str, batch: dict, grid: tuple[int, int], allow_leaks: bool) -> None:
    """Refuse rows that teach nothing: without a supervised token, or with labels that the mask gives away."""
    if isinstance(batch, data.DataError):
        raise batch
    if not supervised(batch["role"]).any():
        raise data.DataError("no row of the first batch keeps an answer token; raise --max-tokens")
    leaking = int(leaks(attention_mask(kind, batch["role"], batch["turn"], grid=grid), batch["role"]).sum())
    if leaking:
        found = f"under the mask {kind!r} {leaking} answer tokens of the first batch can be read instead of predicted (mma.leaks)"
        if not allow_leaks:
            raise data.DataError(f"{found}; training on them would teach nothing. Choose another mask or mend roles and turns "
                                 "(--allow-leaks trains all the same, as a lesson)")
        print(f"{found}: watch the loss lie")


def config_of(args, tokenizer: data.Tokenizer) -> Config:
    sizes = {**PRESETS[args.preset]["model"], "n_layer": args.n_layer}
    method = dict(vocab_size=len(tokenizer), mask=args.mask, text_first=args.order == "text-first", gate=args.gate, pool=args.pool)
    try:
        if args.llm:
            return pretrained.config_of(args.vision, args.llm, args.max_tokens, **method)
        return Config(image_size=args.image_size, patch_size=args.patch_size, **{**sizes, **method})
    except ValueError as error:
        raise data.DataError(str(error)) from None


def scaler_of(device: str) -> torch.amp.GradScaler:
    """For a GPU without bfloat16: float16 gradients need their loss scaled. Does nothing elsewhere."""
    on = device.startswith("cuda") and not torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.amp.GradScaler(device.split(":")[0], enabled=on)


def update(model: MLLM, optimizers: list, batch: dict, kind: str, rates: list[float], scaler,
           loss_of=None) -> tuple[torch.Tensor, torch.Tensor]:
    """One training step on a batch that lies on the model's device; returns the loss and the gradient's norm. float32 on CPUs and
    Apple's GPUs, bfloat16 on CUDA, float16 where the scaler is on. loss_of: model.loss, as Processes.wrap gives it."""
    device = batch["ids"].device.type
    # no cache: it would keep a cast copy of every weight until the end of the forward pass, layers that are gathered or computed again too
    with torch.autocast(device, torch.float16 if scaler.is_enabled() else torch.bfloat16, enabled=device == "cuda" or scaler.is_enabled(),
                        cache_enabled=False):
        loss = (loss_of or model.loss)(**batch, kind=kind)
    scaler.scale(loss).backward()
    for optimizer in optimizers:
        scaler.unscale_(optimizer)
    norm = whole(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0))
    for optimizer, rate in zip(optimizers, rates):
        optimizer.param_groups[0]["lr"] = rate
        scaler.step(optimizer)
    scaler.update()
    model.zero_grad()
    return loss.detach(), loss.detach() if scaler.is_enabled() else norm  # the scaler itself skips a step whose gradient overflows


def check_finite(seen: list, stage: str, step: int, batches: Steps, out: Path) -> None:
    """Stop if one of the last steps had a loss or gradient that is not a number. seen: (loss, norm) of the steps up to `step`; they
    are looked at a few steps at a time, because a look makes the GPU wait, and always before a checkpoint is written."""
    bad = (~torch.isfinite(torch.stack([a + b for a, b in seen]))).nonzero().flatten().tolist() if seen else []
    if bad:
        first = step - len(seen) + bad[0]  # counted from 0, as batches are
        ids = [e.id or f"row {i}" for i, e in enumerate(batches.examples(first))]
        kept = f"{out / checkpoint.NAME} is from before and good" if (out / checkpoint.NAME).exists() else "no checkpoint was written yet"
        raise data.DataError(f"loss {float(seen[bad[0]][0])}, gradient norm {float(seen[bad[0]][1])} at step {first + 1} of stage {stage}: "
                             f"{kept}. Its rows: {', '.join(ids[:8])}{', ...' if len(ids) > 8 else ''}. A lower --lr may help")
    seen.clear()


def uncompiled(args):
    """A context in which compiled layers run as they are: an answer has as many shapes as tokens."""
    return torch.compiler.set_stance("force_eager") if args.compile else contextlib.nullcontext()  # the former's import takes seconds


def run(args, p: Processes) -> None:
    began, cuda, say = time.perf_counter(), args.device.startswith("cuda"), print if p.first else lambda *text: None
    torch.manual_seed(args.seed)

    # Data and tokenizer
    source = data.load(args.data, args.source, args.images, args.strict, args.pt_source, args.pt_images)
    tokenizer = read_tokenizer(args.llm, args.template) if args.llm else data.Tokenizer.train(source.texts(), args.vocab_size)
    config = config_of(args, tokenizer)
    stages = [(stage, kind, Steps(source, tokenizer, config, stage, args)) for stage, kind in (("pt", args.pt_mask), ("sft", args.mask))]
    if isinstance(source, data.Folder):
        damaged = source.read_pictures(config.image_size)
        if damaged:
            say(damaged)
        empty = [split for split, groups in source.splits.items() if not groups]
        if empty:
            raise data.DataError(f"{args.pt_source if empty == ['pt'] else args.source}: too few pictures; training, validation and test "
                                 f"(and pt, the captions of --pt-source) need one each; none is left for {', '.join(empty)}")
        cut, dropped = source.drop_unusable(tokenizer, config.n_image_tokens, args.max_tokens)
        say(f"{cut} training rows are longer than {args.max_tokens} tokens and are cut; "
              f"{dropped} of them keep no answer and are left out")
    for stage, kind, batches in stages:
        check_labels(kind, batches.batch(0), (config.grid, config.grid), args.allow_leaks)  # unpacked: the same, and much sooner
        if not isinstance(source, data.Folder):
            cut, without = map(len, data.unusable(batches.examples(0), tokenizer, config.n_image_tokens, args.max_tokens))
            if cut:
                say(f"stage {stage}: {cut} rows of the first batch are longer than {args.max_tokens} tokens and are cut; "
                      f"{without} of them keep no answer")
    validation = source.heldout("val", args.val_limit)

    # Model
    model = pretrained.load(args.vision, args.llm, config, seed=args.seed) if args.llm else MLLM(config)
    params = sum(p.numel() for p in model.parameters())
    for block in [*model.encoder.blocks, *model.blocks] if args.compile else ():  # many that are alike: compiled once
        block.compile(dynamic=True)
    model = p.place(model)
    model.checkpointing = args.checkpointing
    say(f"{args.data}, mask {args.mask}, seed {args.seed}, preset {args.preset}: {params:,} parameters, {len(tokenizer)} tokens in the "
          f"vocabulary, {config.n_image_tokens} a picture; on {args.device}, into {args.out}")
    args.out.mkdir(parents=True, exist_ok=True)
    data_is = checkpoint.fingerprint(source, tokenizer, [batches[0] for _, _, batches in stages])
    state = checkpoint.load(args.out, p.device, args, data_is) if args.resume else None
    if args.resume:
        say(f"going on after step {state['step']} of stage {state['stage']}" if state else f"no checkpoint in {args.out}: from the start")
    p.wait()  # all have read the folder: now the first one writes
    if p.first:
        for name in () if args.resume else ("run.json", "model.pt", checkpoint.NAME):  # --overwrite: until it has finished, there is none
            (args.out / name).unlink(missing_ok=True)
        remove_parts(args.out, state.get("parts") if state else None)
        checkpoint.write(args.out / "tokenizer.model", lambda file: file.write(tokenizer.model))
        (args.out / "tokenizer.json").unlink(missing_ok=True)
        if args.llm:
            checkpoint.write(args.out / "tokenizer.json", lambda file: file.write(json.dumps(tokenizer.extras()).encode()))
        file = args.out / "metrics.jsonl"
        metrics = checkpoint.reopen(file, state["metrics"]) if state else open(file, "wb", buffering=0)

    some = (stages[0][2][step] for step in range(20))
    first = next((batch["images"] for batch in some if isinstance(batch, dict) and len(batch["picture"])), None)
    if first is not None and not args.llm:  # the first pictures stand for all; a pretrained encoder knows its own
        pixels = first.float()
        model.encoder.pixel_mean.copy_(pixels.mean((0, 2, 3)))
        model.encoder.pixel_std.copy_(pixels.std((0, 2, 3)).clamp(min=1))

    scaler, clock = scaler_of(p.device), []
    if state:
        scaler.load_state_dict(state["scaler"])
        clock, began = state["clock"], began - state["seconds"]
        stages = stages[[stage for stage, _, _ in stages].index(state["stage"]):]
    with checkpoint.Stop(patient=p.world > 1) as stop:
        for stage, kind, batches in stages:
            steps, begin, seen = len(batches), 0, []
            frozen = tuple(args.pt_freeze if stage == "pt" else args.freeze)
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(not name.startswith(frozen))
            optimizers, loss_of = optimizers_of(model, args, stage), p.wrap(model)
            peaks = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
            batches.rank, batches.world = p.rank, p.world
            if state and state["stage"] == stage:
                begin = state["step"]
                p.restore(state, model, optimizers, args.out)
            loader = DataLoader(batches, batch_size=None, sampler=range(begin, steps), num_workers=args.workers, pin_memory=cuda,
                                generator=torch.Generator(), worker_init_fn=checkpoint.ignore_interrupt)
            bar, shown = tqdm(loader, desc={"pt": "stage 1 (captions)", "sft": "stage 2 (questions)"}[stage], initial=begin,
                              total=steps, mininterval=1, disable=not p.first), {}
            for step, batch in enumerate(bar, begin + 1):
                if isinstance(batch, data.DataError):
                    raise batch
                batch = {name: x.to(p.device, non_blocking=True) for name, x in batch.items()}
                rates = [peak * schedule(step - 1, steps, args.schedule) for peak in peaks]
                seen.append(update(model, optimizers, batch, kind, rates, scaler, loss_of))
                asked = p.any(stop.asked)
                look_now = step == steps or stage == "sft" and step % args.eval_every == 0
                save = step == steps or step % args.save_every == 0 or asked
                if step % 10 == 0 or look_now or save:
                    loss = p.mean(seen[-1][0])
                    check_finite(seen, stage, step, batches, args.out)
                if step % 10 == 0 or look_now:
                    record = {"stage": stage, "step": step, "loss": loss}
                    if look_now and stage == "sft" and validation:
                        with uncompiled(args):
                            answers = evaluation.answer_all(model, tokenizer, p.mine(validation), source.answers)
                        record["val"] = evaluation.summarise(p.joined(answers))
                        shown["val"] = f"{record['val']['accuracy']:.1%}"
                        clock.append([step, round(time.perf_counter() - began, 2)])
                    if p.first:
                        metrics.write((json.dumps(record) + "\n").encode())
                    if p.first and look_now:
                        so_far = [json.loads(line) for line in (args.out / "metrics.jsonl").read_text().splitlines()]
                        draw.write_training(args.out / "curves.png", so_far)
                    bar.set_postfix({"loss": f"{loss:.3f}", **shown})
                kept = p.save(model, optimizers, args.out / f"parts-{stage}-{step}") if save and (p.first or p.sharded) else {}
                if save and p.first:
                    checkpoint.save(args.out, metrics, settings=json.dumps(checkpoint.settings(args)), data=data_is, stage=stage, step=step,
                                    seconds=time.perf_counter() - began, clock=clock, scaler=scaler.state_dict(), **kept)
                    remove_parts(args.out, kept.get("parts"))
                if asked:
                    bar.close()
                    raise KeyboardInterrupt

    # Results
    examples = source.heldout(source.final_split, args.limit)
    with uncompiled(args):
        results = p.joined(evaluation.answer_all(model, tokenizer, p.mine(examples), source.answers, progress=p.first))
        some = [results[i * len(results) // 24] for i in range(24)] if len(results) > 24 else results
        looks = [look.attended(model, tokenizer, *r["prompt"]) for r in some] if p.first or p.sharded else []
    weights = p.weights(model)
    if not p.first:
        return
    metrics.close()
    checkpoint.write(args.out / "model.pt", lambda file: save_model(file, model, weights))
    record = {"run": str(args.out), **evaluation.summarise(results), "params": params, "mask": args.mask, "seed": args.seed,
              "args": {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()},
              "seconds": round(time.perf_counter() - began, 1), "clock": clock, "torch": torch.__version__}
    draw.write_sheet(args.out / "sheet.png", some, config.image_size, looks)
    say(f"\nHeld-out answers, after {record['seconds']:.0f} seconds:\n{evaluation.table(evaluation.pool([record]))}\n"
          f"Look at {args.out / 'sheet.png'}; ask: python eval.py {args.out} --image FILE --question \"...\"")
    checkpoint.write(args.out / "run.json", lambda file: file.write((json.dumps(record, indent=1) + "\n").encode()))
    (args.out / checkpoint.NAME).unlink()
    remove_parts(args.out)


def main(argv=None):
    args = arguments(argv, __doc__)
    began = (args.out / checkpoint.NAME).exists()
    try:
        if (args.out / "run.json").exists() and not args.overwrite:
            if args.resume:
                return print(f"{args.out} holds a finished run; there is nothing to go on with")
            raise data.DataError(f"{args.out} holds a finished run; choose another --out or say --overwrite")
        evaluation.check_device(args.device)
        if began and not args.resume and not args.overwrite:
            raise data.DataError(f"{args.out} holds a run that was stopped; go on with it by --resume, or say --overwrite")
        p = Processes(args.device, args.fsdp)
        run(args, p)
        p.end()
    except data.DataError as error:
        raise SystemExit(f"error: {error}") from None
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise SystemExit(f"error: {args.out}: no space left on the disk; free some, then go on with --resume") from None
    except KeyboardInterrupt:
        go_on = "the same command with --resume goes on" if (args.out / checkpoint.NAME).exists() else "nothing was saved yet"
        print(f"\nstopped; {go_on} ({args.out})", file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
