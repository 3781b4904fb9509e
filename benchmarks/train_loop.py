"""Our training and evaluation loop beside `transformers.Trainer`, on the tasks of hard8.

    SKILLSTACK_DATA=... .venv/bin/python benchmarks/train_loop.py --out benchmarks/train_loop.csv

Ours is `SkillStack.grow` on a fresh stack: texts tokenized once, batches of similar length, padded
to the longest of the batch. The peer is what one would otherwise write: `Trainer` over a PEFT
model, every text padded to `max_length`. Both get the same rows, minilm, LoRA shape and targets,
mean pooling, kind of head, epochs, batch sizes (training and evaluation), peak learning rate,
warm-up, AdamW without weight decay and gradient clipping at 1. So accuracies should agree within
noise; only the time should differ. `Trainer` trains with the model's own dropout (0.1), as it does
unless told otherwise; ours trains without. `--no-dropout` takes it from the peer too: what is left
is padding alone.

Measured per task, the two sides in turn, in one process: from raw texts to a trained model
(train_seconds), and from raw texts to predictions on the evaluation rows (eval_seconds; on our side
this includes freezing the frame). Loading the model and putting the LoRA on it is left out on both
sides, and a few steps of each run unmeasured first. CSV: one row per task and side, seconds,
accuracy as a fraction, n_train and n_eval as rows in all.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import (
    AutoModel,
    AutoTokenizer,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    default_data_collator,
)

from skillstack_helpers import SkillStackError
from skillstack_helpers.backbones import Backbone
from skillstack_helpers.files import versions
from skillstack_helpers.lab.parameters import RunConfig
from skillstack_helpers.lab.runs import describe_device
from skillstack_helpers.loading import load_backbone
from skillstack_helpers.progress import silent
from skillstack_helpers.stack import SkillStack
from skillstack_helpers.tasks import PRESETS, TaskData, get_task, load_task
from skillstack_helpers.training import EVAL_BATCH, WARMUP, default_lr

PRESET, MODEL = "hard8", "minilm"
OURS, PEER = "skillstack", "trainer"
WARM_ROWS = 16  # rows of the unmeasured first run, so that neither side pays for lazy set-up


class Timing(NamedTuple):
    """One side on one task."""

    train_seconds: float
    eval_seconds: float
    accuracy: float  # fraction in [0, 1]


# ------------------------------------------------------------------ ours


def time_ours(backbone: Backbone, data: TaskData, config: RunConfig) -> Timing:
    """`SkillStack.grow` on a fresh stack, which resets the LoRA."""
    backbone.attach(config.lora_r, config.lora_alpha)
    backbone._tokens.clear()  # private on purpose: every measurement must tokenize its texts itself
    start = time.perf_counter()
    with silent():
        frame = SkillStack(backbone).grow(data, config)
    seconds = time.perf_counter() - start
    return Timing(frame.seconds, seconds - frame.seconds, frame.metrics["accuracy"])


# ------------------------------------------------------------------ the peer


class MeanPooledClassifier(torch.nn.Module):
    """An encoder with LoRA under the head that `SkillStack` gives encoders."""

    def __init__(self, encoder: torch.nn.Module, classes: int):
        super().__init__()
        self.encoder = encoder
        self.head = torch.nn.Linear(encoder.config.hidden_size, classes)
        torch.nn.init.normal_(self.head.weight, std=0.02)
        torch.nn.init.zeros_(self.head.bias)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> dict:
        """ids and mask (batch, length), labels (batch,); logits are (batch, classes)."""
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)  # (batch, length, 1)
        mean = (hidden * mask).sum(1) / mask.sum(1)
        logits = self.head(16 * torch.nn.functional.normalize(mean.float(), dim=-1))
        return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}


def peer_model(
    backbone: Backbone, classes: int, config: RunConfig, dropout: bool
) -> MeanPooledClassifier:
    """A new copy of the backbone's weights with a new LoRA and head."""
    torch.manual_seed(config.seed)
    off = {} if dropout else {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    encoder = AutoModel.from_pretrained(
        backbone.model.config.name_or_path, dtype=getattr(torch, backbone.dtype), **off
    )
    lora = LoraConfig(
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=0.0,
        target_modules="all-linear",
        exclude_modules=["pooler.dense"],
        task_type="FEATURE_EXTRACTION",
    )
    with warnings.catch_warnings():  # peft asks transformers 5 by a deprecated name
        warnings.simplefilter("ignore", FutureWarning)
        return MeanPooledClassifier(get_peft_model(encoder, lora), classes)


def peer_rows(tokenizer, data: TaskData, split: str, max_length: int) -> list[dict]:
    """A split as the rows `Trainer` takes, all texts padded to `max_length`."""
    tokens = tokenizer(
        data.texts(split),
        padding="max_length",
        truncation=True,
        max_length=max_length,
        return_tensors="pt",
    )
    columns = (tokens["input_ids"], tokens["attention_mask"], torch.tensor(data.labels(split)))
    names = ("input_ids", "attention_mask", "labels")
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def peer_arguments(rows: int, lr: float, device: str, config: RunConfig, folder: str):
    steps = config.epochs * -(-rows // config.batch_size)
    return TrainingArguments(
        output_dir=folder,
        num_train_epochs=config.epochs,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=EVAL_BATCH,
        learning_rate=lr,
        weight_decay=0.0,
        max_grad_norm=1.0,
        lr_scheduler_type="linear",
        # Steps, not a ratio: the ratio's name is not the same in transformers 4 and 5.
        warmup_steps=max(1, round(WARMUP * steps)),
        seed=config.seed,
        use_cpu=device == "cpu",
        remove_unused_columns=False,  # the rows hold what forward takes and nothing else
        report_to="none",
        logging_strategy="no",
        save_strategy="no",
        disable_tqdm=True,
    )


def train_peer(model, tokenizer, lr: float, data: TaskData, config: RunConfig, device: str):
    """The `Trainer` after `Trainer.train`, from raw texts."""
    with tempfile.TemporaryDirectory() as folder:
        rows = peer_rows(tokenizer, data, "train", config.max_length)
        trainer = Trainer(
            model=model,
            args=peer_arguments(len(rows), lr, device, config, folder),
            train_dataset=rows,
            data_collator=default_data_collator,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return trainer


def peer_accuracy(trainer: Trainer, tokenizer, data: TaskData, config: RunConfig) -> float:
    """`Trainer.predict`, from raw texts."""
    answers = trainer.predict(peer_rows(tokenizer, data, "eval", config.max_length))
    return float((answers.predictions.argmax(1) == answers.label_ids).mean())


def time_peer(
    backbone: Backbone, data: TaskData, config: RunConfig, dropout: bool = True
) -> Timing:
    """`Trainer.train`, then `Trainer.predict`, on a model built anew."""
    model = peer_model(backbone, len(data.task.label_names), config, dropout)
    tokenizer = AutoTokenizer.from_pretrained(backbone.model.config.name_or_path)
    lr = config.lr or default_lr(backbone.hidden_size)
    start = time.perf_counter()
    trainer = train_peer(model, tokenizer, lr, data, config, backbone.device)
    trained = time.perf_counter()
    accuracy = peer_accuracy(trainer, tokenizer, data, config)
    return Timing(trained - start, time.perf_counter() - trained, accuracy)


# ------------------------------------------------------------------ both


SIDES = {OURS: time_ours, PEER: time_peer}


def warm_up(backbone: Backbone, data: TaskData, config: RunConfig) -> None:
    few = replace(data, train=data.train.head(WARM_ROWS), eval=data.eval.head(WARM_ROWS))
    for measure in SIDES.values():
        measure(backbone, few, config)


def measure_task(backbone: Backbone, data: TaskData, config: RunConfig, first: str) -> list[dict]:
    """Both sides on one task, `first` first; rows of the CSV, ours above the peer's."""
    order = sorted(SIDES, key=lambda side: side != first)
    timings = {side: SIDES[side](backbone, data, config) for side in order}
    sizes = {"n_train": len(data.train), "n_eval": len(data.eval)}
    return [{"task": data.name, "side": s, **timings[s]._asdict(), **sizes} for s in SIDES]


def mean_tokens(backbone: Backbone, data: TaskData, config: RunConfig) -> float:
    """Tokens per training or evaluation text, after the cut at `max_length`."""
    ids = backbone.encode(data.texts("train") + data.texts("eval"), config.max_length)
    return sum(map(len, ids)) / len(ids)


def side_by_side(rows: list[dict]) -> pd.DataFrame:
    """One line per task: seconds and accuracy of either side, and seconds of the peer by ours."""
    wide = pd.DataFrame(rows).pivot(index="task", columns="side")
    table = pd.DataFrame(index=list(dict.fromkeys(row["task"] for row in rows)))
    for side in SIDES:
        train, evaluation = wide["train_seconds"][side], wide["eval_seconds"][side]
        table[f"{side} s"] = train + evaluation
        table[f"{side} train s"] = train
        table[f"{side} eval s"] = evaluation
        table[f"{side} acc"] = wide["accuracy"][side]
    for part in ("", " train", " eval"):
        table[f"ratio{part}"] = table[f"{PEER}{part} s"] / table[f"{OURS}{part} s"]
    return table


def print_line(line: pd.Series) -> None:
    for side in SIDES:
        print(
            f"{line.name:16}{side:12}{line[f'{side} s']:8.2f} s"
            f"  (train {line[f'{side} train s']:.2f}, eval {line[f'{side} eval s']:.2f})"
            f"  accuracy {line[f'{side} acc']:.3f}"
        )
    print(
        f"{'':16}{'ratio':12}{line['ratio']:8.2f}    "
        f"(train {line['ratio train']:.2f}, eval {line['ratio eval']:.2f})"
        f"  {line['tokens']:.0f} tokens per text",
        flush=True,
    )


def print_totals(table: pd.DataFrame, max_length: int) -> None:
    sums = table.sum()
    print("\nratio = seconds of Trainer / seconds of ours")
    for part in ("", " train", " eval"):
        ours, peer = sums[f"{OURS}{part} s"], sums[f"{PEER}{part} s"]
        median = table[f"ratio{part}"].median()
        print(
            f"{'total' + part:12} {OURS} {ours:.2f} s, {PEER} {peer:.2f} s; "
            f"ratio of sums {peer / ours:.2f}, median of ratios {median:.2f}"
        )
    accuracies = (f"{side} {table[f'{side} acc'].mean():.3f}" for side in SIDES)
    print(f"accuracy     mean over tasks: {', '.join(accuracies)}")
    tokens = table["tokens"].mean()
    print(
        f"padding      mean over tasks {tokens:.0f} tokens per text, padded to {max_length} "
        f"by {PEER}: {max_length / tokens:.2f} times as many"
    )


def print_machine(device: str) -> None:
    facts = (f"{name} {version}" for name, version in versions().items())
    print(f"device    {describe_device(device)}\nversions  {', '.join(facts)}\n")


def run(tasks: list[str], config: RunConfig, out: Path | None) -> None:
    """Measure the tasks in order and print; the CSV is written anew after each task."""
    stream = [
        load_task(name, config.n_train, config.n_router, config.n_eval, config.seed)
        for name in tasks
    ]
    backbone = load_backbone(config.model)
    print_machine(backbone.device)
    warm_up(backbone, stream[0], config)
    rows, tokens = [], []
    for i, data in enumerate(stream):
        rows += measure_task(backbone, data, config, first=(OURS, PEER)[i % 2])
        tokens.append(mean_tokens(backbone, data, config))
        table = side_by_side(rows).assign(tokens=tokens)
        print_line(table.iloc[-1])
        if out:
            pd.DataFrame(rows).round(4).to_csv(out, index=False, lineterminator="\n")
    print_totals(table, config.max_length)


def main(argv: list[str] | None = None) -> None:
    default = RunConfig()
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n", 1)[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--tasks", nargs="+", default=list(PRESETS[PRESET]), metavar="TASK")
    parser.add_argument("--n-train", type=int, default=default.n_train, help="rows per class")
    parser.add_argument("--n-eval", type=int, default=default.n_eval, help="rows per class")
    parser.add_argument("--epochs", type=int, default=default.epochs, help="passes over the rows")
    parser.add_argument("--seed", type=int, default=default.seed, help="rows, weights and batches")
    parser.add_argument("--out", type=Path, help="write the measurements to this CSV")
    parser.add_argument("--no-dropout", action="store_true", help="none in the peer either")
    given = vars(parser.parse_args(argv))
    tasks, out = list(dict.fromkeys(given.pop("tasks"))), given.pop("out")
    if given.pop("no_dropout"):
        SIDES[PEER] = partial(time_peer, dropout=False)
    if out and not out.parent.is_dir():
        parser.error(f"--out: the folder {out.parent} does not exist")
    try:
        for name in tasks:
            get_task(name)
        run(tasks, RunConfig(preset=PRESET, model=MODEL, **given), out)
    except SkillStackError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
