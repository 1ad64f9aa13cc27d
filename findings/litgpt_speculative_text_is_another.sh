#!/usr/bin/env bash
# Guess: litgpt's generate() for speculative decoding draws from the target model's distribution:
# with temperature=0 it returns the text that the target returns greedily, whatever the draft is.
#
# litgpt 0.5.13, torch 2.13.0: the first new token never is in the text. It is drawn from the
# target before the loop, the rest goes on from it, but it isn't put into the list that is returned.
# A draft that equals the target shows it, too. And temperature=0 isn't greedy. Both models propose
# their likeliest token, but whether the draft's is accepted is decided by the probabilities at
# temperature 1: it is, always, if the target gives it more than the draft does, likeliest or not.
# If it is refused, the token follows which the target prefers most beside the draft, not the
# likeliest one either. No error, no warning. top_k=1 at temperature 1 is greedy, but for the first
# token. (Stop sequences in the form that the documentation has, lists of tokens, never match; the
# command litgpt hands over plain tokens.)
#
# Seen (4 tiny models with random weights as target, 4 prompts of 8 tokens, about 20 new ones each;
# new tokens for the first prompt where the draft equals the target; then, where the draft is the
# target with noise and the missing token was put back, how many of the new tokens are the likeliest
# one by the target, given all before them):
#   target alone, greedy: 67 88 56 50 41 65 82 35
#   draft equals target, temperature=0: 88 56 50 41 65 82 35 37
#   draft equals target, top_k=1: 88 56 50 41 65 82 35 37
#   target alone, greedy: 320 of 320 are the likeliest
#   temperature=0: 222 of 327 are the likeliest
#   top_k=1: 328 of 328 are the likeliest

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'litgpt==0.5.13' 'lightning==2.6.6'

cd "$folder"
"$folder/venv/bin/python" - 2>"$folder/log" <<'END' || { cat "$folder/log"; exit 1; }
import torch
from litgpt.config import Config
from litgpt.generate.base import generate
from litgpt.generate.speculative_decoding import generate as speculate
from litgpt.model import GPT

SIZE, NEW = 8, 20
config = Config(block_size=32, n_layer=2, n_head=4, n_embd=32, vocab_size=100,
                padded_vocab_size=100, rotary_percentage=1.0)


def make(seed, noise):
    torch.manual_seed(seed)
    model = GPT(config).eval()
    for parameter in model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += noise * torch.randn_like(parameter)
    model.max_seq_length = 32
    model.set_kv_cache(batch_size=1)
    return model


@torch.no_grad()
def likeliest(seed, text):
    """Count the tokens after the prompt that are the target's likeliest, given all before them."""
    model = make(seed, 0)
    model.clear_kv_cache()
    guesses = model(text[None, :-1])[0].argmax(-1)
    return (guesses[SIZE - 1:] == text[SIZE:]).sum().item()


torch.manual_seed(0)
prompts = torch.randint(100, (4, SIZE))
own = {(seed, i): generate(make(seed, 0), prompts[i], SIZE + NEW, temperature=0.0)
       for seed in range(4) for i in range(4)}
for name, options in (("temperature=0", {"temperature": 0.0}), ("top_k=1", {"top_k": 1})):
    text, _ = speculate(make(0, 0), make(0, 0), prompts[0], SIZE + NEW, speculative_k=3, **options)
    if name == "temperature=0":
        print("target alone, greedy:", *own[0, 0][SIZE:SIZE + 8].tolist())
    print(f"draft equals target, {name}:", *text[SIZE:SIZE + 8].tolist())
    assert torch.equal(text[SIZE:-1], own[0, 0][SIZE + 1:])

for name, options in (("target alone, greedy", None), ("temperature=0", {"temperature": 0.0}),
                      ("top_k=1", {"top_k": 1})):
    hits = count = 0
    for (seed, i), text in own.items():
        if options is not None:
            rest, _ = speculate(make(seed, 0.1), make(seed, 0), prompts[i], SIZE + NEW,
                                speculative_k=3, include_prompt=False, **options)
            text = torch.cat([text[:SIZE + 1], rest])  # the missing token put back
        hits += likeliest(seed, text)
        count += len(text) - SIZE
    print(f"{name}: {hits} of {count} are the likeliest")
    assert hits < 0.8 * count if name == "temperature=0" else hits == count
END
