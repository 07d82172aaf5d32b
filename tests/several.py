"""torchrun ... tests/several.py RUNS.json: train.main with each of the lists of arguments, one
after the other; starting Python once. Of their pictures only the heads are read at the start. In
the last one the loss raises an error."""

import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
import data.folder  # noqa: E402
import train  # noqa: E402

data.folder.READ_FIRST = 0

# One group for all runs: a second one may meet what the first left behind
train.Distributed.end = lambda self: None
*runs, last = json.loads(Path(sys.argv[1]).read_text())
for arguments in runs:
    train.main(arguments)
train.MLLM.loss = lambda *args, **batch: 1 / 0
try:
    train.main(last)
except ZeroDivisionError:
    print("a loss was raised\n", end="", flush=True)
torch.distributed.destroy_process_group()
