#!/usr/bin/env bash
# Guess: llama-cpp-python: Llama.embed() and create_embedding() give for a text in a list the
# vectors that they give for it alone, also for a GPT-2, whose file names no pooling, so that each
# token has a vector.
#
# llama-cpp-python 0.3.36 (pip compiles it if it has no wheel of it, which takes some minutes): only
# for the first text of what is decoded at once. llama.cpp returns the vectors of all tokens in one
# row of numbers. After a text of n tokens embed() goes on n numbers further, not n vectors. So the
# second text's vectors begin inside the first text's first vector: each is the end of one and the
# beginning of the next vector of the text before. The shapes are right, nothing is said, and two
# texts of a list look alike to whoever compares them. With pooling_type=1, 2 or 3 it is another
# branch; one call for each text helps.
#
# Seen (a GPT-2 of bytes whose layer adds nothing, so that a vector is the normalised sum of two
# embeddings; largest difference from the vectors by hand):
#   'Hello', 5 vectors: error alone 2.4e-07, in the list 2.4e-07
#   'What else?', 10 vectors: error alone 2.8e-07, in the list 4.6e+00
#   'Well', 4 vectors: error alone 1.8e-07, in the list 3.8e+00
#   the second text's against all numbers from the 6th on: 2.8e-07

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


write("gpt2.gguf", False)
model = Llama("gpt2.gguf", n_ctx=64, embedding=True, verbose=False)


def error(text, vectors):
    assert len(vectors) == len(text)
    return np.abs(np.array(vectors) - by_hand(list(text.encode()))[0]).max()


texts = ["Hello", "What else?", "Well"]
together = model.embed(texts)
answer = [entry["embedding"] for entry in model.create_embedding(texts)["data"]]
assert answer == together
for text, vectors in zip(texts, together):
    alone, listed = error(text, model.embed(text)), error(text, vectors)
    print(f"{text!r}, {len(text)} vectors: error alone {alone:.1e}, in the list {listed:.1e}")
    assert alone < 1e-5 and (listed < 1e-5) == (text == texts[0])

flat = np.concatenate([by_hand(list(text.encode()))[0] for text in texts]).ravel()
shifted = flat[5:5 + 10 * WIDTH].reshape(10, WIDTH)
difference = np.abs(np.array(together[1]) - shifted).max()
print(f"the second text's against all numbers from the 6th on: {difference:.1e}")
assert difference < 1e-5
END
