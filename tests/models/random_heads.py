"""Random models that answer with one pass, or write a text of a text, made in milliseconds.

They read with ``tiny-embed``'s tokenizer, or letter by letter. What they say is noise, but the same
noise for whoever computes it correctly.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

HERE = Path(__file__).parent
TINY_EMBED, TINY_RERANK = HERE / "tiny-embed", HERE / "tiny-rerank"


_BERT: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}

SENTIMENT = {0: "NEGATIVE", 1: "POSITIVE"}
NLI = {0: "contradiction", 1: "neutral", 2: "entailment"}
NER = {0: "O", 1: "B-PER", 2: "I-PER", 3: "B-LOC", 4: "I-LOC"}


def _named(labels: dict[int, str]) -> dict[str, Any]:
    return {"id2label": labels, "label2id": {name: at for at, name in labels.items()}}


def make_bert(
    folder: Path, head: str, labels: dict[int, str] | None = None, **changes: Any
) -> Path:
    """Save a random BERT with a head: ``ForMaskedLM``, ``ForTokenClassification``, ..."""
    torch.manual_seed(0)
    vocabulary = 1 + max(transformers.AutoTokenizer.from_pretrained(TINY_EMBED).vocab.values())
    named = _named(labels) if labels else {}
    config = transformers.BertConfig(vocab_size=vocabulary, **(_BERT | named | changes))
    model = getattr(transformers, f"Bert{head}")(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:  # far enough apart that rounding does not change who is first
            torch.nn.init.normal_(parameter, std=0.3)
    model.tie_weights()
    model.save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY_EMBED / file, folder)
    return folder


#: Other families of classifiers, by the names of their classes, with what their sizes are called.
FAMILIES: dict[str, dict[str, Any]] = {
    "Roberta": {"max_position_embeddings": 66, "type_vocab_size": 1},
    "DistilBert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64},
    "Electra": {"embedding_size": 32},
    "DebertaV2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "ModernBert": {"cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3},
    "Qwen3": {"num_key_value_heads": 2, "head_dim": 16},
}


def make_family(folder: Path, family: str) -> Path:
    """Save a random classifier with one label of another family than BERT."""
    torch.manual_seed(0)
    vocabulary = 1 + max(transformers.AutoTokenizer.from_pretrained(TINY_EMBED).vocab.values())
    fields = {**_BERT, **FAMILIES[family], "vocab_size": vocabulary, "num_labels": 1}
    config = getattr(transformers, f"{family}Config")(**fields)
    model = getattr(transformers, f"{family}ForSequenceClassification")(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY_EMBED / file, folder)
    return folder


def make_t5(folder: Path, **changes: Any) -> Path:
    """Save a random T5 that reads and writes letters."""
    torch.manual_seed(0)
    letters = [(each, -5.0) for each in "▁abcdefghijklmnopqrstuvwxyz.,:"]
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -10.0)]
    backend = Tokenizer(models.Unigram([*special, *letters], unk_id=2))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    backend.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    fields: dict[str, Any] = {
        "vocab_size": 34,
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 64,
        "num_layers": 2,
        "num_heads": 4,
        "n_positions": 128,
        "decoder_start_token_id": 0,
    }
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(**fields | changes))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.5)
    model.tie_weights()
    model.save_pretrained(folder)
    transformers.T5TokenizerFast(tokenizer_object=backend, extra_ids=0).save_pretrained(folder)
    return folder


def make_nllb(folder: Path) -> Path:
    """Save a random M2M100 with the languages of NLLB."""
    torch.manual_seed(0)
    vocabulary = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "▁": 4}
    vocabulary |= {letter: 5 + at for at, letter in enumerate("abcdefghijklmnopqrstuvwxyz")}
    tokenizer = transformers.NllbTokenizer(vocab=vocabulary, merges=[])
    config = transformers.M2M100Config(
        vocab_size=len(tokenizer),
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_position_embeddings=64,
        decoder_start_token_id=2,
    )
    transformers.M2M100ForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
