"""Fine-tune a Hugging Face vision-language model from a local folder, under MMA.

    python -m bridge.hf_finetune MODEL --data llava --source FILE.json --images DIR --out RUN

The model answers by its own chat template, and learns from the answers alone. The data are those
of train.py, and so are the scores of eval.py that end in run.json. transformers' Trainer does the
work (pip install accelerate; for --lora peft, too).

Written to --out: the model, or with --lora its adapter, with its processor; run.json;
metrics.jsonl; checkpoint-STEP while it is not finished. Loaded again, it needs apply_mma again.
"""

import json
import shutil
import time
from functools import cached_property, partial
from pathlib import Path

import torch

import data
from bridge.folders import needed, one_line, read_config
from bridge.hf_dialogues import Dialogues, answer_all, loss_of
from data import DataError
from engine import code
from engine.answering import say_unread
from engine.checkpoint import differences, settings, write_file
from engine.folders import describe_splits
from engine.optimizers import freeze
from engine.options import OPTIONS, Parser, not_negative, options_given, positive, rate
from engine.precision import check_device, usual_format
from engine.run import check_out, hold, one_line_errors
from engine.tables import pool, table
from eval import summarise

try:
    from bridge.hf import apply_mma, check_mma
    from bridge.hf_roles import kinds
except ImportError as error:
    raise SystemExit(f"error: {error}") from None
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
from transformers.trainer_utils import get_last_checkpoint

VISION = ("model.vision_tower", "model.visual", "model.vision_model", "model.vision_encoder")
TRIES = 8  # steps whose rows are tried, where none of a step's can be used
BEGUN = "options.json"  # what a run was begun with, until it is finished
SHARED = {  # options that are those of train.py
    "source", "images", "strict", "accumulate", "eval-every", "save-every", "limit", "seed",
    "resume", "overwrite", "device", "checkpointing",
}  # fmt: skip


def load(args):
    """Model and processor of the folder, or of an adapter's. DataError, in one line, if it is no
    such folder."""
    folder, adapter = args.model, args.model / "adapter_config.json"
    if adapter.exists():
        with one_line(f"{adapter} cannot be read"):
            folder = Path(json.loads(adapter.read_text("utf-8"))["base_model_name_or_path"])
    if (kind := read_config(folder).model_type) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        raise DataError(f"{folder}: {kind} is no vision-language model of transformers")
    dtype = torch.bfloat16 if args.lora and args.precision == "bfloat16" else torch.float32
    auto = transformers.AutoModelForImageTextToText
    with one_line(folder):
        model = auto.from_pretrained(folder, dtype=dtype, use_safetensors=True)
        if adapter.exists():
            peft = needed("peft", "peft")
            model = peft.PeftModel.from_pretrained(model, args.model).merge_and_unload()
    with one_line(f"{args.model}: its processor cannot be read"):
        processor = transformers.AutoProcessor.from_pretrained(args.model)
    if not hasattr(processor, "image_processor"):
        raise DataError(f"{args.model}: no processor of pictures (preprocessor_config.json)")
    return model, processor


def with_lora(model, rank: int):
    """The model with LoRA of a rank on the linear layers of its text model."""
    from peft import LoraConfig, get_peft_model

    text = {id(m) for m in model.get_decoder().modules() if isinstance(m, torch.nn.Linear)}
    names = [name for name, module in model.named_modules() if id(module) in text]
    return get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=names))


def batch_of(items: list[int], source, dialogues: Dialogues, args) -> dict:
    """The batch of items, which number the parts of steps: a function of them and the seed alone,
    so that a run goes on without reading again what it has read."""
    for again in range(TRIES):  # rows that are left out are counted and said
        examples = []
        for item in items:
            step, part = divmod(item + again * args.steps * args.accumulate, args.accumulate)
            drawn = source.draw(args.stage, step, args.pictures, args.questions, args.seed)
            examples += drawn[part :: args.accumulate]
        if batch := dialogues.batch(examples):
            return batch
    last = next(iter(dialogues.left_out))
    raise DataError(f"no row of {TRIES} steps can be used: {last}")


class Trainer(transformers.Trainer):
    """Evaluation is `measure`. began: time.perf_counter() of the command's beginning."""

    def __init__(self, *args, measure, began: float, **options):
        super().__init__(*args, **options)
        self.measure, self.began = measure, began

    @cached_property
    def before(self) -> float:
        """The seconds of a run that goes on, up to its last validation before the stop."""
        return self.clock()[-1][1] if self.clock() else 0

    def seconds(self) -> float:
        return round(self.before + time.perf_counter() - self.began, 1)

    def clock(self) -> list:
        """[step, seconds] of each validation."""
        lines = self.state.log_history
        return [[line["step"], line["eval_seconds"]] for line in lines if "eval_seconds" in line]

    def _load_from_checkpoint(self, checkpoint, model=None):
        """transformers' own goes by the names in the model. LLaVA's files have others, and of
        weights that it does not find it only warns: seen in 5.24."""
        if not isinstance(self.model, transformers.PreTrainedModel):  # PEFT reads its own
            return super()._load_from_checkpoint(checkpoint, model)
        auto = transformers.AutoModelForImageTextToText
        saved = auto.from_pretrained(checkpoint, dtype=self.model.dtype)
        self.model.load_state_dict(saved.state_dict())

    def evaluate(self, *_, **__):
        _, summary = self.measure(self.eval_dataset)
        metrics = {f"eval_{name}": summary[name] for name in ("loss", "accuracy")}
        metrics["eval_seconds"] = self.seconds()
        self.log(metrics)
        told = self.callback_handler.on_evaluate  # else the last step is evaluated twice
        self.control = told(self.args, self.state, self.control, metrics)
        return metrics


def arguments(argv=None):
    parser = Parser(__doc__)
    add = parser.add_argument
    add("model", type=Path, metavar="MODEL", help="its folder: config.json, *.safetensors, ...")
    names = [name for name in data.NAMES if name not in data.TEXT_WORLDS]
    add("--data", default="llava", choices=names, metavar="NAME", help=", ".join(names))
    add("--mask", default="mma", choices=kinds(), metavar="KIND", help=", ".join(kinds()))
    add("--lora", type=positive, metavar="R", help="train LoRA of rank R alone")
    add("--freeze", nargs="*", metavar="NAME", help="beginnings of names of parameters that stay "
        "as they are (default: the vision tower)")  # fmt: skip
    add("--stage", default="sft", choices=("pt", "sft"), metavar="NAME", help="learn from questions"
        " (sft), or first from the captions that the data have (pt)")  # fmt: skip
    add("--steps", type=not_negative, default=1000, metavar="N", help="default: 1000")
    add("--pictures", type=positive, default=8, metavar="N", help="of a step (8)")
    add("--questions", type=positive, default=1, metavar="N", help="about each of them (1)")
    add("--lr", type=rate, metavar="LR", help="peak rate of AdamW (2e-5; with --lora 2e-4)")
    add("--max-tokens", type=positive, default=2048, metavar="N", help="longer rows are left out")
    add("--val-limit", type=positive, default=100, metavar="N", help="examples of a validation")
    add("--out", type=Path, metavar="DIR", help="default: runs/MODEL-DATA-MASK-SEED")
    add("--precision", choices=("float32", "bfloat16"), metavar="NAME", help="float32, bfloat16")
    for options in OPTIONS.values():
        for name, text, kept in options:
            if name in SHARED:
                add(f"--{name}", help=text, **kept)
    args = parser.parse_args(argv)
    given = options_given(parser, argv)
    args.origin = {name: "you" if name in given else "default" for name in vars(args)}
    for path in ("model", "source", "images"):  # it may be scored from another folder
        setattr(args, path, getattr(args, path) and getattr(args, path).resolve())
    args.lr = args.lr or (2e-4 if args.lora else 2e-5)
    args.precision = args.precision or usual_format(args.device)
    name = f"{args.model.name}-{args.data}-{args.mask}-{args.seed}"
    args.out = args.out or Path("runs") / name
    return args


def check_ready(args) -> None:
    """DataError for a package that is missing, or a folder that holds another run."""
    for package in ("accelerate", *["peft"] * bool(args.lora)):
        needed(package, package)
    check_out(args)
    check_device(args.device)
    file = args.out / BEGUN
    if file.exists() and get_last_checkpoint(args.out) and not args.overwrite:
        if not args.resume:
            raise DataError(f"{args.out} holds a run that was stopped: --resume or --overwrite")
        if differs := differences(begun_with(args), json.loads(file.read_text("utf-8"))):
            raise DataError(f"the run in {args.out} cannot go on: {differs}")
    if not args.resume:
        (args.out / "run.json").unlink(missing_ok=True)
        for folder in args.out.glob("checkpoint-*"):
            shutil.rmtree(folder)


def begun_with(args) -> dict:
    return {**settings(args), "source": str(args.source)}


def open_source(args):
    """The data set, less the pictures that cannot be read, which are counted and named."""
    source = data.load(args.data, args.source, images=args.images, strict=args.strict)
    if hasattr(source, "read_pictures"):
        if skipped := source.read_pictures(64):
            print(skipped)
        print(describe_splits(source))
        if empty := [split for split, groups in source.splits.items() if not groups]:
            raise DataError(f"{args.source}: too few pictures: none is left for {', '.join(empty)}")
    return source


def prepare(args):
    """Model, with mask and what is to be trained, and what makes its batches."""
    model, processor = load(args)
    with one_line(args.model):
        apply_mma(model, processor, kind=args.mask)
    if args.checkpointing:
        model.gradient_checkpointing_enable()
    if args.lora:
        model = with_lora(model, args.lora)
    else:
        names = [name for name, _ in model.named_parameters()]
        tower = [part for part in VISION if any(name.startswith(part) for name in names)]
        freeze(model, tower if args.freeze is None else args.freeze, steps=args.steps)
    ends = model.generation_config.eos_token_id or []
    ends = [ends] if isinstance(ends, int) else ends
    return model.to(args.device), Dialogues(processor, ends, args.max_tokens)


def trainer_of(model, dialogues: Dialogues, source, args, began: float) -> Trainer:
    size = args.pictures * args.questions

    def measure(examples: list) -> tuple[list[dict], dict]:
        results = answer_all(model, dialogues, examples, source.answers, size)
        loss = loss_of(model, dialogues, examples, size)
        return results, {**summarise(results), "loss": loss}

    collate = partial(batch_of, source=source, dialogues=dialogues, args=args)
    options = transformers.TrainingArguments(
        output_dir=args.out, max_steps=args.steps, per_device_train_batch_size=1,
        gradient_accumulation_steps=args.accumulate, learning_rate=args.lr, seed=args.seed,
        lr_scheduler_type="cosine", warmup_steps=min(150, args.steps // 10), logging_steps=10,
        eval_strategy="steps", eval_steps=args.eval_every, save_steps=args.save_every,
        save_total_limit=1, remove_unused_columns=False, report_to=[],
        bf16=args.precision == "bfloat16", use_cpu=args.device == "cpu",
        dataloader_pin_memory=False, train_sampling_strategy="sequential",
    )  # fmt: skip
    return Trainer(
        model, options, data_collator=collate, train_dataset=range(args.steps * args.accumulate),
        eval_dataset=source.heldout("val", args.val_limit), measure=measure, began=began,
    )  # fmt: skip


def write_run(trainer: Trainer, summary: dict, dialogues: Dialogues, args) -> dict:
    """The model, run.json and metrics.jsonl; checkpoints go. Returns the record of run.json."""
    trainer.model.save_pretrained(args.out)
    dialogues.processor.save_pretrained(args.out)
    lines = ""
    for line in trainer.state.log_history:
        measured = {"loss": line["loss"]} if "loss" in line else {}
        if "eval_loss" in line:
            measured["val"] = {"accuracy": line["eval_accuracy"], "loss": line["eval_loss"]}
        if measured:
            lines += json.dumps({"stage": args.stage, "step": line["step"], **measured}) + "\n"
    write_file(args.out / "metrics.jsonl", lines)
    used = dict(vars(args))
    record = {
        "run": str(args.out), **summary,
        "params": sum(p.numel() for p in trainer.model.parameters()), "mask": args.mask,
        "seed": args.seed, "origin": used.pop("origin"), "args": used,
        "seconds": trainer.seconds(), "clock": trainer.clock(), "left_out": dialogues.left_out,
        "code": code.fingerprint(args), "torch": torch.__version__,
        "transformers": transformers.__version__,
    }  # fmt: skip
    text = json.dumps(record, indent=1, default=str) + "\n"
    write_file(args.out / "run.json", text)
    (args.out / BEGUN).unlink(missing_ok=True)
    for folder in args.out.glob("checkpoint-*"):
        shutil.rmtree(folder)
    return json.loads(text)


def finetune(args) -> dict:
    """The whole run; returns the record of run.json."""
    began = time.perf_counter()
    source = open_source(args)
    model, dialogues = prepare(args)
    with hold(args.out):
        trainer = trainer_of(model, dialogues, source, args, began)
        # Captions have no question that the mask could show to a picture
        captions = args.stage == "pt"
        batch = (
            dialogues.batch(trainer.eval_dataset[:8]) if captions else trainer.data_collator([0])
        )
        batch = {k: x.to(model.device) for k, x in batch.items()}
        dialogues.left_out.clear()  # the first step is counted when it is trained on
        with one_line("the first step"):
            checked = [check_mma(model, batch)]
        if args.steps:
            train(trainer, args)
        checked.append(check_mma(model, batch))
        results, summary = trainer.measure(source.heldout(source.final_split, args.limit))
        say_unread(results, print)
        return write_run(trainer, {**summary, "check": checked}, dialogues, args)


def train(trainer: Trainer, args) -> None:
    write_file(args.out / BEGUN, json.dumps(begun_with(args)))
    last = get_last_checkpoint(args.out) if args.resume else None
    try:
        trainer.train(resume_from_checkpoint=last)
    except KeyboardInterrupt:
        print("\nwith --resume it goes on at the last checkpoint, if there is one")
        raise


def main(argv=None) -> None:
    args = arguments(argv)
    with one_line_errors():
        check_ready(args)
        record = finetune(args)
        print(f"\nHeld-out answers, after {record['seconds']:.0f} seconds:")
        print(table(pool([record])))
        print(f"held-out loss {record['loss']:.3f}; the check moved pictures by "
              f"{record['check'][0]:.2g} before and {record['check'][1]:.2g} after")  # fmt: skip


if __name__ == "__main__":
    main()
