#!/usr/bin/env bash
# Guess: CTranslate2's Generator gives greedily for a prompt the same new tokens alone and in a
# batch, also with repetition_penalty, no_repeat_ngram_size or suppress_sequences, and
# include_prompt_in_result says only what is returned.
#
# ctranslate2 4.8.5, transformers 5.24.0, torch 2.13.0: not with these three options. What counts as
# "previously generated tokens" are those that have been through the decoding loop. Alone and with
# include_prompt_in_result=False, a prompt is forwarded at once, and none of it counts. In a batch,
# only as much as the shortest prompt has is forwarded at once (the documentation says so, as a
# matter of speed); the rest of the longer ones goes through the loop and is penalised like
# generated tokens. With include_prompt_in_result=True, the default, all goes through the loop, and
# all but the prompt's first token counts. So one prompt's text depends on how long its neighbours
# are, and an option on what is returned decides what is generated. Without the three options all
# agree; with max_batch_size=1, so that each prompt is a batch of its own, the list is like alone.
#
# Seen (a prompt of 9 tokens, alone, beside a prompt of 6, 4 or 2, and alone, but returned with the
# prompt; how many of its last tokens count, by comparison with a greedy search in PyTorch; and
# whether a pair of tokens that suppress_sequences forbids appears across the end of the prompt):
#   repetition_penalty; alone: 0 or 1 or 2; beside 6: 3; beside 4: 4 or 5; beside 2: 6 or 7; with
#     the prompt: 8
#   no_repeat_ngram_size; alone: 0 or 1 or 2; beside 6: 3; beside 4: 4 or 5; beside 2: 6 or 7; with
#     the prompt: 8
#   first new token is the forbidden one: alone, beside 6, 4, 2: True False False False

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'transformers==5.24.0' 'tokenizers==0.23.3' 'ctranslate2==4.8.5'

cd "$folder"
export HF_HUB_OFFLINE=1
"$folder/venv/bin/python" - 2>"$folder/log" <<'END' || { cat "$folder/log"; exit 1; }
import ctranslate2
import torch
from ctranslate2.converters import TransformersConverter
from tokenizers import Tokenizer, models
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

VOCAB, NEW = 20, 12
names = ["<|endoftext|>", *(f"t{i}" for i in range(1, VOCAB))]
torch.manual_seed(2)
model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, n_positions=64, n_embd=32, n_layer=2, n_head=2,
                                   initializer_range=0.3, bos_token_id=0, eos_token_id=0)).eval()
model.save_pretrained("gpt2")
tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, names[0]))
PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=names[0], eos_token=names[0],
                        unk_token=names[0]).save_pretrained("gpt2")
TransformersConverter("gpt2").convert("ct2")
generator = ctranslate2.Generator("ct2", intra_threads=1)
prompt, other = torch.randint(1, VOCAB, (2, 9)).tolist()


@torch.no_grad()
def greedy(counted, repetition_penalty=1, no_repeat_ngram_size=0):
    """Return the new tokens if the prompt's last ones, as many as counted, count."""
    tokens = list(prompt)
    start = len(prompt) - counted
    for _ in range(NEW):
        logits = model(torch.tensor([tokens])).logits[0, -1]
        seen = list(set(tokens[start:]))
        if no_repeat_ngram_size == 1:
            logits[seen] = -torch.inf
        chosen = logits[seen]
        logits[seen] = torch.where(chosen < 0, chosen * repetition_penalty,
                                   chosen / repetition_penalty)
        tokens.append(logits.argmax().item())
        if tokens[-1] == 0:
            return tokens[len(prompt):-1]
    return tokens[len(prompt):]


def with_ctranslate2(neighbour, with_prompt=False, **options):
    """Return the new tokens of the prompt beside another one (or none) of a length."""
    batch = [[names[token] for token in text] for text in (prompt, other[:neighbour]) if text]
    result = generator.generate_batch(
        batch, max_length=NEW + with_prompt * (len(prompt) - 1),
        include_prompt_in_result=with_prompt, **options)[0].sequences_ids[0]
    return result[with_prompt * len(prompt):]


def counts(options, *args, **more):
    """Return the numbers of the prompt's tokens that give the text that CTranslate2 gives."""
    tokens = with_ctranslate2(*args, **options, **more)
    return [n for n in range(len(prompt) + 1) if greedy(n, **options) == tokens]


for options in ({}, {"repetition_penalty": 1.5}, {"no_repeat_ngram_size": 1}):
    found = {"alone": counts(options, 0)}
    for neighbour in (6, 4, 2):
        found[f"beside {neighbour}"] = counts(options, neighbour)
    found["with the prompt"] = counts(options, 0, True)
    assert all(n in numbers for n, numbers in zip((0, 3, 5, 7, 8), found.values()))
    assert counts(options, 2, max_batch_size=1) == found["alone"]
    if options:
        assert len(set(sum(found.values(), []))) == len(sum(found.values(), []))
        print(*options, *(f"{name}: {' or '.join(map(str, numbers))}"
                          for name, numbers in found.items()), sep="; ")
    else:
        assert all(len(numbers) == len(prompt) + 1 for numbers in found.values())

plain = with_ctranslate2(0)
pair = [[names[prompt[-1]], names[plain[0]]]]
kept = [with_ctranslate2(neighbour, suppress_sequences=pair)[:1] == plain[:1]
        for neighbour in (0, 6, 4, 2)]
print("first new token is the forbidden one: alone, beside 6, 4, 2:", *kept)
assert kept == [True, False, False, False]
END
