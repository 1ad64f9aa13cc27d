#!/usr/bin/env bash
# Guess: llama-cpp-python's prompt cache (Llama.set_cache) only saves time: a prompt whose state is
# in it isn't computed again. What is drawn is as random as without it, so that asking the same
# question several times gives several answers, and model.set_seed() decides which.
#
# llama-cpp-python 0.3.36 (pip compiles it if it has no wheel of it, which takes some minutes): a
# state in the cache has the seed with which its text was drawn, and when the cache is hit, the
# model's seed is set back to that. A call without a seed of its own draws the next seed from the
# model's, so it takes the same seed as at the last hit, and soon the same text comes again and
# again: from the second text on if another prompt comes in between, which is when the cache is of
# use. (Right after a call with the same prompt it isn't looked at.) What set_seed() has set is lost
# too. So it is in the server with --cache true, for requests without "seed". Nothing is said. (A
# LlamaDiskCache forgets a state that was used, so there the texts go on changing, but set_seed()
# is lost as well.) A seed given in each call is kept, as it's set after the state is loaded.
#
# Seen (a GPT-2 of bytes with a layer that adds nothing; two prompts by turns, 8 texts of each):
#   no cache: 8 different texts of the first prompt, 8 of the second, 16 seeds
#   cache: 2 different texts of the first prompt, 2 of the second, 3 seeds
#   no cache, set_seed() before each text: 8 different texts of the first prompt, 8 of the second,
#     16 seeds
#   cache, set_seed() before each text: 2 different texts of the first prompt, 2 of the second, 4
#     seeds
#   cache, seed in each call: 8 different texts of the first prompt, 8 of the second, 16 seeds

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile \
    'numpy==2.4.6' 'gguf==0.19.0' 'llama-cpp-python==0.3.36' 2>"$folder/log" ||
    { cat "$folder/log"; exit 1; }

cd "$folder"
export OMP_NUM_THREADS=1
"$folder/venv/bin/python" - 2>"$folder/log" <<'END' || { cat "$folder/log"; exit 1; }
import random

import gguf
import numpy as np
from llama_cpp import Llama, LlamaRAMCache

width, length = 32, 256
rng = np.random.default_rng(0)
weights = {"token_embd.weight": rng.standard_normal((257, width)),
           "position_embd.weight": rng.standard_normal((length, width)),
           "output.weight": 0.3 * rng.standard_normal((257, width))}
weights["output.weight"][:32] = weights["output.weight"][127:] = 0  # whole characters are likelier
for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
    weights[f"{name}.weight"], weights[f"{name}.bias"] = np.ones(width), np.zeros(width)
for name, rows, columns in (("attn_qkv", 3, 1), ("attn_output", 1, 1), ("ffn_up", 4, 1),
                            ("ffn_down", 1, 4)):
    weights[f"blk.0.{name}.weight"] = np.zeros((rows * width, columns * width))
    weights[f"blk.0.{name}.bias"] = np.zeros(rows * width)

writer = gguf.GGUFWriter("gpt2.gguf", "gpt2")
writer.add_context_length(length)
writer.add_embedding_length(width)
writer.add_block_count(1)
writer.add_feed_forward_length(4 * width)
writer.add_head_count(2)
writer.add_layer_norm_eps(1e-5)
visible = [*range(33, 127), *range(161, 173), *range(174, 256)]  # GPT-2's names of bytes
others = [byte for byte in range(256) if byte not in visible]
writer.add_tokenizer_model("gpt2")
writer.add_tokenizer_pre("gpt-2")
writer.add_token_list([chr(byte if byte in visible else 256 + others.index(byte))
                       for byte in range(256)] + ["<|endoftext|>"])
writer.add_token_types([gguf.TokenType.NORMAL] * 256 + [gguf.TokenType.CONTROL])
writer.add_token_merges(["\u0100 \u0100"])
writer.add_eos_token_id(256)
writer.add_add_bos_token(False)
for name, weight in weights.items():
    writer.add_tensor(name, weight.astype(np.float32))
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()


def draw(name, cache, own_seed=False, set_seed=False):
    """Draw 8 texts of each prompt; return how many are different, and the seeds by turns."""
    model = Llama("gpt2.gguf", n_ctx=length, seed=7, verbose=False)
    if cache:
        model.set_cache(LlamaRAMCache())
    texts, seeds = {"A question": [], "Something else": []}, []
    for i in range(8):
        for prompt in texts:
            if set_seed:
                model.set_seed(1000 + len(seeds))
            options = {"seed": 2000 + len(seeds)} if own_seed else {}
            answer = model(prompt, max_tokens=16, temperature=1, top_k=20, **options)
            texts[prompt].append(answer["choices"][0]["text"])
            seeds.append(model._seed)
    first, second = (len(set(drawn)) for drawn in texts.values())
    print(f"{name}: {first} different texts of the first prompt, {second} of the second,",
          f"{len(set(seeds))} seeds")
    return first, second, seeds


def following(seed):
    return random.Random(seed).randint(0, 2 ** 32)


by_hand = [following(7)]
while len(by_hand) < 16:
    by_hand.append(following(by_hand[-1]))
assert draw("no cache", False) == (8, 8, by_hand)
first, second, seeds = draw("cache", True)
assert first == second == 2 and seeds == by_hand[:2] + by_hand[1:3] * 7
by_hand = [following(1000 + i) for i in range(16)]
assert draw("no cache, set_seed() before each text", False, set_seed=True) == (8, 8, by_hand)
first, second, seeds = draw("cache, set_seed() before each text", True, set_seed=True)
assert first == second == 2
assert seeds == by_hand[:2] + [following(seed) for seed in by_hand[:2]] * 7
assert draw("cache, seed in each call", True, own_seed=True) == (8, 8, list(range(2000, 2016)))
END
