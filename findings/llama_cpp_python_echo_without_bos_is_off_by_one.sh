#!/usr/bin/env bash
# Guess: llama-cpp-python: with echo=True and logprobs, each token of the prompt but the first comes
# with the log-probability that the model gives it after the tokens before it, and all tokens of the
# returned text are listed, whether or not the model's file asks for a BOS token before a text.
#
# llama-cpp-python 0.3.36 (pip compiles it if it has no wheel of it, which takes some minutes):
# with BOS it is so. Without, as for GPT-2, all are off by one place: a token comes with the
# log-probability of being said AGAIN, after itself, and top_logprobs are those of the next place.
# BOS is cut off the list of tokens, but not off the rows of logits, which makes the shift by one
# that is needed; where there is no BOS to cut off, nothing shifts, and the last new token, for
# which no row is left, is missing from the lists. The numbers look like log-probabilities, and are
# what a perplexity or an evaluation of answers by likelihood (lm-evaluation-harness's "gguf" asks
# for them) is made of. Without echo the new tokens' are right.
#
# Seen (a GPT-2 of bytes whose layer adds nothing; the prompt's tokens from the second on; the
# text's length and how many tokens are listed; means of the log-probabilities):
#   with BOS: text 10, tokens 10; mean -21.10, by hand -21.10, one place on -1.23
#   without BOS: text 10, tokens 9; mean -1.53, by hand -19.88, one place on -1.53

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
from llama_cpp import Llama

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


prompt = "Hello you"
for bos in (True, False):
    write("gpt2.gguf", bos)
    model = Llama("gpt2.gguf", n_ctx=64, logits_all=True, verbose=False)
    ids = [256] * bos + list(prompt.encode())
    table = by_hand(ids)[1]
    right = [table[i - 1, ids[i]] for i in range(1, len(ids))]
    following = [table[i, ids[i]] for i in range(1, len(ids))]
    found = model(prompt, max_tokens=1, temperature=0, echo=True, logprobs=1)["choices"][0]
    entries = found["logprobs"]
    values = entries["token_logprobs"][:len(prompt)]
    first = values.pop(0)
    print(f"{'with' if bos else 'without'} BOS: text {len(found['text'])}, "
          f"tokens {len(entries['tokens'])}; mean {np.mean(values):.2f}, "
          f"by hand {np.mean(right[bos:]):.2f}, one place on {np.mean(following[bos:]):.2f}")
    assert first is None and len(found["text"]) == len(prompt) + 1
    assert np.allclose(values, right[bos:], atol=1e-4) == bos
    assert np.allclose(values, following[bos:], atol=1e-4) != bos
    assert len(entries["tokens"]) == len(prompt) + bos
    new = model(prompt, max_tokens=1, temperature=0, logprobs=1)["choices"][0]["logprobs"]
    assert np.isclose(new["token_logprobs"][0], table[-1].max(), atol=1e-4)
END
