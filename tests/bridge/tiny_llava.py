"""A folder as LLaVA's repositories have it, with random weights: config.json, model.safetensors,
and a processor with tokenizer, chat template and pictures of 64 x 64.

    python tests/bridge/tiny_llava.py DIR     of the words of the built-in world
"""

import sys

import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.trainers import BpeTrainer

SPECIAL = ["<pad>", "<|im_start|>", "<|im_end|>", "<image>"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for part in m.content %}"
    "{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer_of(texts):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(
        vocab_size=600, initial_alphabet=alphabet, special_tokens=SPECIAL, show_progress=False
    )
    tokenizer.train_from_iterator([*texts, "user assistant"], trainer)
    names = dict(pad_token="<pad>", eos_token="<|im_end|>", extra_special_tokens={})
    return hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def write_llava(folder, texts, width: int = 64, layers: int = 2, template: str = TEMPLATE) -> None:
    """texts: what the tokenizer is trained on."""
    torch.manual_seed(0)
    tokenizer = tokenizer_of(texts)
    image = tokenizer.convert_tokens_to_ids("<image>")
    # Weights and positions as large as model.py's: see docs/log.md
    initial = dict(initializer_range=width**-0.5)
    sizes = dict(hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers,
                 num_attention_heads=4, **initial)  # fmt: skip
    eyes = dict(model_type="siglip_vision_model", image_size=64, patch_size=16, **sizes)
    ends = dict(pad_token_id=0, eos_token_id=tokenizer.eos_token_id, bos_token_id=None)
    text = dict(model_type="llama", vocab_size=len(tokenizer), max_position_embeddings=2048, **ends)
    config = hf.LlavaConfig(
        vision_config={**eyes, "vision_use_head": False}, text_config={**text, **sizes},
        image_token_index=image, vision_feature_layer=-1, vision_feature_select_strategy="full",
        image_seq_length=16, **ends, **initial,
    )  # fmt: skip
    model = hf.LlavaForConditionalGeneration(config)
    torch.nn.init.normal_(model.model.vision_tower.embeddings.position_embedding.weight)
    model.save_pretrained(folder)
    pictures = hf.SiglipImageProcessor(size={"height": 64, "width": 64})
    hf.LlavaProcessor(
        pictures, tokenizer, patch_size=16, vision_feature_select_strategy="full",
        chat_template=template,
    ).save_pretrained(folder)  # fmt: skip


if __name__ == "__main__":
    sys.path.insert(0, ".")  # the repository: run from there
    from data.shapes import Shapes

    write_llava(sys.argv[1], Shapes().texts(), width=128, layers=3)
