#!/usr/bin/env bash
# Guess: genlm-backend's log-probabilities of the next token are transformers', whether prompts are
# asked for alone or together, and whether or not their beginning was put into its cache before.
#
# genlm-backend 0.3.1 with transformers 5.24.0: only without cache_kv, which is there to
# compute a prefix of many prompts once. (1) Prompts asked for together are treated as one if
# the tokens after their cached prefixes are the same: "B + end" gets the numbers of "A + end", and
# keeps them, since results are cached as well. The comment XXX in its code suspects as much.
# (2) next_token_logprobs_sync hands the prefix's keys and values to the model, which appends to
# them. From the second prompt on, the prefix is followed by the end of the prompts before. And
# where a prompt agrees with an earlier one beyond the cached prefix, it is evaluated without any
# prefix. Nothing is said; all of these are distributions. One prompt at a time by
# next_token_logprobs is right, and so is next_token_logprobs_uncached.
#
# Seen (a 2-layer GPT-2 with random weights; largest difference from transformers in nats):
#   without cache_kv, together: A + end 0.000, B + end 0.000
#   cache_kv(A), cache_kv(B), one by one: A + end 0.000, B + end 0.000
#   cache_kv(A), cache_kv(B), together: A + end 0.000, B + end 8.899
#   B + end once more: 8.899
#   cache_kv(A), sync: A + end 0.000, A + other 7.098, A + half of end + other 6.876

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'transformers==5.24.0' 'tokenizers==0.23.3' 'genlm-backend==0.3.1'

cd "$folder"
export HF_HUB_OFFLINE=1
"$folder/venv/bin/python" - 2>"$folder/log" <<'END' || { cat "$folder/log"; exit 1; }
import asyncio

import torch
from genlm.backend.llm.hf import AsyncTransformer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
names = [END_OF_TEXT, *sorted(pre_tokenizers.ByteLevel.alphabet())]
bytes_only = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[]))
bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
bytes_only.decoder = decoders.ByteLevel()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytes_only, bos_token=END_OF_TEXT,
                                    eos_token=END_OF_TEXT, pad_token=END_OF_TEXT)
torch.manual_seed(0)
model = GPT2LMHeadModel(GPT2Config(vocab_size=len(names), n_positions=64, n_embd=64, n_layer=2,
                                   n_head=4, bos_token_id=0, eos_token_id=0)).eval()
for parameter in model.parameters():
    if parameter.dim() == 2:
        torch.nn.init.normal_(parameter, std=0.3)

a, b, end, other = [tokenizer(text).input_ids for text in ("The cat", "A fish", " swims", " eats")]
language_model = AsyncTransformer(model, tokenizer)


def difference(prompt, log_probs):
    expected = model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
    assert abs(log_probs.exp().sum() - 1) < 1e-4
    return (log_probs - expected).abs().max().item()


async def together(*prompts):
    found = await language_model.batch_next_token_logprobs(prompts)
    return [difference(prompt, log_probs) for prompt, log_probs in zip(prompts, found)]


async def one_by_one(*prompts):
    return [difference(p, await language_model.next_token_logprobs(p)) for p in prompts]


def cached(*prefixes):
    language_model.clear_cache()
    for prefix in prefixes:
        language_model.cache_kv(prefix)


async def main():
    seen = await together(a + end, b + end)
    print("without cache_kv, together: A + end {:.3f}, B + end {:.3f}".format(*seen))
    assert max(seen) < 1e-3
    cached(a, b)
    seen = await one_by_one(a + end, b + end)
    print("cache_kv(A), cache_kv(B), one by one: A + end {:.3f}, B + end {:.3f}".format(*seen))
    assert max(seen) < 1e-3
    cached(a, b)
    seen = await together(a + end, b + end)
    print("cache_kv(A), cache_kv(B), together: A + end {:.3f}, B + end {:.3f}".format(*seen))
    assert seen[0] < 1e-3 and seen[1] > 0.5
    again = await one_by_one(b + end)
    print("B + end once more: {:.3f}".format(*again))
    assert again[0] == seen[1]

    prompts = a + end, a + other, a + end[:3] + other
    cached(a)
    seen = [difference(p, language_model.next_token_logprobs_sync(p)) for p in prompts]
    print("cache_kv(A), sync: A + end {:.3f}, A + other {:.3f}, A + half of end + other {:.3f}"
          .format(*seen))
    assert seen[0] < 1e-3 and min(seen[1:]) > 0.5
    assert max(await one_by_one(*prompts[:1])) < 1e-3
    cached(a)
    assert max(await one_by_one(*prompts)) < 1e-3
    uncached = language_model.next_token_logprobs_uncached
    assert max(difference(p, uncached(p)) for p in prompts) < 1e-3


with torch.no_grad():
    asyncio.run(main())
END
