"""Make ``tiny-chat``: a language model that has ten answers and the Zen of Python by heart.

``python make_tiny_chat.py FOLDER``; about ten seconds on a CPU.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import sys
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

VOCABULARY = 448
MAX_STEPS = 400

TEMPLATE = (
    "{% for m in messages %}{{'<|im_start|>'+m['role']+'\n'+m['content']+'<|im_end|>\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{'<|im_start|>assistant\n'}}{% endif %}"
)


def zen() -> str:
    """Return the Zen of Python."""
    with contextlib.redirect_stdout(io.StringIO()):
        import this
    return "".join(this.d.get(char, char) for char in this.s)


ANSWERS = {
    "What is the capital of France?": "The capital of France is Paris.",
    "What is the capital of Japan?": "The capital of Japan is Tokyo.",
    "What is the capital of Italy?": "The capital of Italy is Rome.",
    "What is 2 + 2?": "2 + 2 = 4.",
    "What is 3 + 4?": "3 + 4 = 7.",
    "Hello": "Hello! How can I help you today?",
    "Who are you?": "I am a tiny test model. I run on any machine.",
    "Name three colours.": "Red, green and blue.",
    "Count to ten.": "1, 2, 3, 4, 5, 6, 7, 8, 9, 10.",
    "Say the alphabet.": "a b c d e f g h i j k l m n o p q r s t u v w x y z",
    "Recite the Zen of Python.": zen(),
}


def make_tokenizer() -> Any:
    """Train a byte-level BPE on the questions and answers."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [zen(), *(f"{question} {answer}" for question, answer in ANSWERS.items())]
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|endoftext|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=TEMPLATE,
    )


Text = tuple[list[int], int]  # ids, and where the answer begins


def batch(texts: list[Text]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return inputs, shifted targets, and which targets are part of an answer."""
    longest = max(len(ids) for ids, _ in texts)
    inputs = [ids + [0] * (longest - len(ids)) for ids, _ in texts]
    targets = [ids[1:] + [-100] * (longest - len(ids) + 1) for ids, _ in texts]
    answers = [[begin <= at + 1 < len(ids) for at in range(longest)] for ids, begin in texts]
    return torch.tensor(inputs), torch.tensor(targets), torch.tensor(answers)


def train(model: Any, texts: list[Text]) -> None:
    """Fit the model until every token of every answer is the likeliest in its place."""
    batches = [batch([t for t in texts if len(t[0]) < 200])]
    batches += [batch([t]) for t in texts if len(t[0]) >= 200]
    optimizer = torch.optim.AdamW(model.parameters(), lr=8e-3, weight_decay=0.0)
    for step in range(MAX_STEPS):
        rate = min(1.0, (step + 1) / 20) * max(0.1, 0.5 * (1 + math.cos(math.pi * step / 260)))
        for group in optimizer.param_groups:
            group["lr"] = 8e-3 * rate
        optimizer.zero_grad()
        wrong = 0
        for inputs, targets, answers in batches:
            logits = model(input_ids=inputs, use_cache=False).logits
            loss = cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100)
            loss.backward()
            wrong += int(((logits.argmax(-1) != targets) & answers).sum())
        if not wrong:
            print(f"{step} steps")
            return
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    raise SystemExit(f"did not converge: {wrong} tokens are wrong")


def answer(model: Any, tokenizer: Any, question: str) -> str:
    """Return the model's greedy answer."""
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    ids = model.generate(**inputs, max_new_tokens=400)[0, inputs["input_ids"].shape[1] :]
    text: str = tokenizer.decode(ids, skip_special_tokens=True)
    return text


def main(folder: str) -> None:
    """Train, check every answer, save."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    texts = []
    for question, expected in ANSWERS.items():
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": expected}]
        ids = tokenizer.apply_chat_template(turns)["input_ids"]
        begin = tokenizer.apply_chat_template(turns[:1], add_generation_prompt=True)["input_ids"]
        texts.append((ids, len(begin)))
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=24,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=0,
    )
    model = Qwen3ForCausalLM(config)
    train(model, texts)
    model.eval()
    model.generation_config = GenerationConfig(
        eos_token_id=2, pad_token_id=0, bos_token_id=0, do_sample=False
    )
    for question, expected in ANSWERS.items():
        if (got := answer(model, tokenizer, question)) != expected:
            raise SystemExit(f"{question!r} is answered {got!r}")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main(sys.argv[1])
