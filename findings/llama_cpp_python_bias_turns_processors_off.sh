#!/usr/bin/env bash
# Guess: llama-cpp-python: logit_bias and logits_processor can be given together, and both act; the
# list of processors that the caller made stays as it was.
#
# llama-cpp-python 0.3.36 (pip compiles it if it has no wheel of it, which takes some minutes):
# together, neither acts. The bias is made a processor too and put at the end of the caller's list
# with list.extend(), whose value, None, is then taken for the list. What was banned comes, nothing
# is said. And the bias stays in the caller's list: in the next call, which gives no logit_bias, it
# acts. (The server's "min_tokens" is such a processor, too.)
#
# Seen (a GPT-2 of bytes whose layer adds nothing; the likeliest tokens are 1, 2 and 3; the first
# new token, greedily, by hand and with llama-cpp-python):
#   nothing given: 1 1
#   processor bans 1: 2 2
#   logit_bias bans 1: 2 2
#   processor bans 1, logit_bias bans 2: 3 1
#   then the same list, no logit_bias: 2 3

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile \
    'numpy==2.4.6' 'gguf==0.19.0' 'llama-cpp-python==0.3.36' 2>"$folder/log" ||
    { cat "$folder/log"; exit 1; }

cd "$folder"
"$folder/venv/bin/python" - 2>"$folder/log" <<'END' || { cat "$folder/log"; exit 1; }
import gguf
import numpy as np
from llama_cpp import Llama, LogitsProcessorList

WIDTH, BLOCK = 32, 64
rng = np.random.default_rng(0)
wte = rng.standard_normal((257, WIDTH)).astype(np.float32)
wpe = rng.standard_normal((BLOCK, WIDTH)).astype(np.float32)


def write(path, bos):
    """Write a GPT-2 of bytes with a layer that adds nothing, with or without BOS before a text."""
    writer = gguf.GGUFWriter(path, "gpt2")
    writer.add_context_length(BLOCK)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(4 * WIDTH)
    writer.add_head_count(2)
    writer.add_layer_norm_eps(1e-5)
    hidden = [i for i in range(256) if i == 32 or not chr(i).isprintable()]
    names = [chr(256 + hidden.index(i)) if i in hidden else chr(i) for i in range(256)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([*names, "<|endoftext|>"])
    writer.add_token_types([gguf.TokenType.NORMAL] * 256 + [gguf.TokenType.CONTROL])
    writer.add_token_merges(["\u0100 \u0100"])
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(256)
    writer.add_add_bos_token(bos)
    tensors = {"token_embd": wte, "position_embd": wpe}
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        tensors[name] = np.ones(WIDTH, np.float32)
    for name, n_out, n_in in (("attn_qkv", 3, 1), ("attn_output", 1, 1), ("ffn_up", 4, 1),
                              ("ffn_down", 1, 4)):
        tensors[f"blk.0.{name}"] = np.zeros((n_out * WIDTH, n_in * WIDTH), np.float32)
    for name, tensor in tensors.items():
        writer.add_tensor(f"{name}.weight", tensor)
        if not name.endswith("_embd"):
            writer.add_tensor(f"{name}.bias", np.zeros(len(tensor), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def by_hand(ids):
    """Return the last hidden states and the log-probabilities of what follows each token."""
    x = (wte[ids] + wpe[:len(ids)]).astype(np.float64)
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    logits = x @ wte.T
    return x, logits - np.log(np.exp(logits).sum(-1, keepdims=True))


write("gpt2.gguf", False)
model = Llama("gpt2.gguf", n_ctx=64, verbose=False)
for prompt in (f"Hello you {i}" for i in range(1000)):
    logits = by_hand(list(prompt.encode()))[1][-1]
    order = (-logits).argsort().tolist()
    if all(33 <= token < 127 for token in order[:3]):  # three whole characters
        break


def ban_first(ids, scores):
    scores = scores.copy()
    scores[order[0]] = -np.inf
    return scores


def rank(label, banned, **options):
    kept = [token for token in order if token not in banned]
    text = model(prompt, max_tokens=1, temperature=0, **options)["choices"][0]["text"]
    ranks = order.index(kept[0]) + 1, order.index(ord(text)) + 1
    print(f"{label}:", *ranks)
    return ranks


first, second = order[:2]
processors = LogitsProcessorList([ban_first])
assert rank("nothing given", []) == (1, 1)
assert rank("processor bans 1", [first], logits_processor=processors) == (2, 2)
assert rank("logit_bias bans 1", [first], logit_bias={str(first): -100}) == (2, 2)
assert rank("processor bans 1, logit_bias bans 2", [first, second], logits_processor=processors,
            logit_bias={str(second): -100}) == (3, 1)
assert rank("then the same list, no logit_bias", [first], logits_processor=processors) == (2, 3)
assert len(processors) == 2
END
