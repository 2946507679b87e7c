"""Builds the text encoder and the tokenizer of the digits model.

    python scripts/build_digits_text.py --output assets/digits

A frozen random UMT5 of two layers and a word-level tokenizer over the 23 words of the grammar, in
the folder layout of a real Wan model, so that the same loaders read both. Nothing is trained: the
diffusion model learns to read whatever the encoder says, it only has to say different things for
different prompts (asserted by tests/utils/digits/test_text.py). The weights are drawn already
rounded to bf16, so fp32 and bf16 loads hold the same numbers.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.digits.world import WORDS  # noqa: E402
from utils.door import check_folder, door  # noqa: E402

SEED = 20240
SPECIALS = ("<pad>", "</s>", "<unk>")
MAX_TOKENS = 12  # two clauses of five words, `and`, end of sequence
SHAPE = dict(vocab_size=64, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4)


@door("build_digits_text.py")
def main(argv: list[str] | None = None):
    """Writes `OUTPUT/tokenizer` and `OUTPUT/text_encoder`."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("assets/digits"))
    output = parser.parse_args(argv).output
    check_folder(output)
    save_tokenizer(build_tokenizer(), output / "tokenizer")
    build_encoder(SEED).save_pretrained(output / "text_encoder")
    print(f"wrote {output / 'tokenizer'} and {output / 'text_encoder'}")


def build_tokenizer():
    """Returns the fast tokenizer: lower case, one token a word, `</s>` appended, padded right."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = {word: i for i, word in enumerate((*SPECIALS, *WORDS))}
    core = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    # The grammar ignores commas and full stops, so must the tokens.
    core.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace(Regex("[,.]"), " ")])
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", words["</s>"])])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        padding_side="right",
        model_max_length=MAX_TOKENS,
    )


def save_tokenizer(tokenizer, folder: Path):
    """Saves under the class name that every transformers release with fast tokenizers knows."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"tokenizer_class": "PreTrainedTokenizerFast"}, indent=2) + "\n")


def build_encoder(seed: int):
    """Returns the frozen random UMT5EncoderModel in bf16."""
    import torch
    from transformers import UMT5Config, UMT5EncoderModel

    config = UMT5Config(
        **SHAPE,
        pad_token_id=SPECIALS.index("<pad>"),
        eos_token_id=SPECIALS.index("</s>"),
        decoder_start_token_id=SPECIALS.index("<pad>"),
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=True,
    )
    model = UMT5EncoderModel(config).requires_grad_(False)
    rng = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if "layer_norm" in name:
            weight.fill_(1.0)
        else:
            weight.copy_(torch.randn(weight.shape, generator=rng) * _std(name, weight))
    return model.to(torch.bfloat16).eval()


def _std(name: str, weight) -> float:
    """Returns the standard deviation that keeps each sub-layer's output near unit scale."""
    if name.startswith("shared") or "relative_attention_bias" in name:
        return 1.0
    fan_in = weight.shape[1] ** -0.5
    # T5 does not divide the scores by sqrt(d_kv), so the query weights carry it.
    return fan_in * SHAPE["d_kv"] ** -0.5 if name.endswith(".q.weight") else fan_in


if __name__ == "__main__":
    raise SystemExit(main())
