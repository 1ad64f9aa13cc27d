#!/usr/bin/env bash
# Guess: the penalties of node-llama-cpp do what its documentation says. The repeat penalty is 1.1
# unless told otherwise and off with repeatPenalty=false. dryRepeatPenalty={strength} looks at all
# of the generated tokens, since lastTokens is null by default, and LlamaCompletion, which lists it
# among its options, uses it.
#
# node-llama-cpp 3.21.1 (npm; llama.cpp inside): none of this. (1) Nothing fills in the 1.1: the C++
# part takes 1, which is no penalty, so that {}, and settings like {lastTokens: 32}, do the same as
# false. (2) lastTokens=null becomes -1, which meant "all" in llama.cpp; since August 2026 it means
# none there. The DRY penalty does nothing, whatever its strength, unless lastTokens is a number.
# (3) LlamaCompletion doesn't pass dryRepeatPenalty on, so that there it does nothing in any case;
# LlamaContextSequence.evaluate() does. So who relies on them against loops has no protection, and
# who compares settings compares nothing. Given in numbers, and to evaluate(), both are right.
# (3.22.1, the newest, has the same lines in all three places.)
#
# Seen (a GPT-2 whose letters like to be repeated; 8 prompts, 24 new letters, greedy; how many texts
# are those computed by hand with the penalty and without one; the text after "aaaaaaaa"):
#   LlamaCompletion, repeatPenalty: {penalty: 1.1}: 8, 0; acdfegbhhhhhhhhhhhhhhhhh
#   LlamaCompletion, repeatPenalty: {}: 0, 8; aaaaaaaaaaaaaaaaaaaaaaaa
#   LlamaCompletion, nothing given: 0, 8; aaaaaaaaaaaaaaaaaaaaaaaa
#   LlamaCompletion, repeatPenalty: {lastTokens: 32}: 0, 8; aaaaaaaaaaaaaaaaaaaaaaaa
#   evaluate(), dryRepeatPenalty: {strength: 0.8, lastTokens: 200}: 8, 0; aaacddddcddfffaadddegegb
#   evaluate(), dryRepeatPenalty: {strength: 0.8}: 0, 8; aaaaaaaaaaaaaaaaaaaaaaaa
#   LlamaCompletion, dryRepeatPenalty: {strength: 0.8, lastTokens: 200}: 0, 8;
#     aaaaaaaaaaaaaaaaaaaaaaaa

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'gguf==0.19.0' 'numpy==2.4.6'
cd "$folder"
npm install --silent --ignore-scripts --omit=optional --no-audit --no-fund \
    'node-llama-cpp@3.21.1' '@node-llama-cpp/linux-x64@3.21.1' \
    >"$folder/npm" 2>&1 || { cat "$folder/npm"; exit 1; }

"$folder/venv/bin/python" - 2>"$folder/log" <<'END' || { cat "$folder/log"; exit 1; }
import json

import gguf
import numpy as np

VOCABULARY, WIDTH, LETTERS, NEW = 257, 64, 8, 24  # of the tokens, a to h are used
A = ord("a")
rng = np.random.default_rng(0)


def zeros(*shape):
    return np.zeros(shape, np.float32)


# With blocks of zeros the logits depend on the last token only; each letter likes to repeat itself.
embedding, output = zeros(VOCABULARY, WIDTH), np.full((VOCABULARY, WIDTH), -1.25, np.float32)
embedding[A:A + LETTERS, :LETTERS] = np.eye(LETTERS)
output[A:A + LETTERS, :LETTERS] = (
    rng.uniform(5, 6, (LETTERS, LETTERS)) + 0.3 * np.eye(LETTERS)) / 8
ones = np.ones(WIDTH, np.float32)
weights = {"token_embd.weight": embedding, "position_embd.weight": zeros(256, WIDTH),
           "output.weight": output, "output_norm.weight": ones, "output_norm.bias": zeros(WIDTH)}
for name, n_out, n_in in (("attn_qkv", 3 * WIDTH, WIDTH), ("attn_output", WIDTH, WIDTH),
                          ("ffn_up", 4 * WIDTH, WIDTH), ("ffn_down", WIDTH, 4 * WIDTH)):
    weights[f"blk.0.{name}.weight"] = zeros(n_out, n_in)
    weights[f"blk.0.{name}.bias"] = zeros(n_out)
for name in ("attn_norm", "ffn_norm"):
    weights[f"blk.0.{name}.weight"] = ones
    weights[f"blk.0.{name}.bias"] = zeros(WIDTH)

writer = gguf.GGUFWriter("model.gguf", "gpt2")
writer.add_context_length(256)
writer.add_embedding_length(WIDTH)
writer.add_block_count(1)
writer.add_feed_forward_length(4 * WIDTH)
writer.add_head_count(2)
writer.add_layer_norm_eps(1e-5)
writer.add_file_type(gguf.LlamaFileType.ALL_F32)
hidden = [i for i in range(256) if i == 32 or not chr(i).isprintable()]
names = [chr(256 + hidden.index(i)) if i in hidden else chr(i) for i in range(256)]
writer.add_tokenizer_model("gpt2")
writer.add_tokenizer_pre("gpt-2")
writer.add_token_list([*names, "<|endoftext|>"])
writer.add_token_types([gguf.TokenType.NORMAL] * 256 + [gguf.TokenType.CONTROL])
writer.add_token_merges(["X Y"])
writer.add_bos_token_id(256)
writer.add_eos_token_id(256)
writer.add_add_bos_token(False)
for name, tensor in weights.items():
    writer.add_tensor(name, tensor)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()

normed = embedding - embedding.mean(axis=1, keepdims=True)
logits = normed / np.sqrt((normed**2).mean(axis=1, keepdims=True) + 1e-5) @ output.T


def by_hand(prompt, penalty):
    """Return the greedy text with a penalty on the tokens generated before."""
    last, new = ord(prompt[-1]), []
    for _ in range(NEW):
        row = logits[last].copy()
        for token in set(new):
            row[token] = row[token] / penalty if row[token] > 0 else row[token] * penalty
        last = int(row.argmax())
        new.append(last)
    return bytes(new).decode()


def dry_by_hand(prompt, strength, base, allowed):
    """Return the greedy text with the DRY penalty over all generated tokens."""
    last, new = ord(prompt[-1]), []
    for _ in range(NEW):
        row = logits[last].copy()
        for token in set(new):
            lengths = [0]
            for i in (i for i, other in enumerate(new) if other == token):
                n = 0
                while n < i and new[i - 1 - n] == new[-1 - n]:
                    n += 1
                lengths.append(n)
            if max(lengths) >= allowed:
                row[token] -= strength * base ** (max(lengths) - allowed)
        last = int(row.argmax())
        new.append(last)
    return bytes(new).decode()


prompts = [chr(A + i) * 8 for i in range(LETTERS)]
with open("by_hand.json", "w") as file:
    json.dump([{"prompt": text, "none": by_hand(text, 1.0), "repeat": by_hand(text, 1.1),
                "dry": dry_by_hand(text, 0.8, 1.75, 2)} for text in prompts], file)
END

cat >run.mjs <<'END'
import assert from "node:assert";
import fs from "node:fs";
import {getLlama, LlamaCompletion} from "node-llama-cpp";

const llama = await getLlama({gpu: false, build: "never", maxThreads: 1, logLevel: "error"});
const model = await llama.loadModel({modelPath: "model.gguf"});
const prompts = JSON.parse(fs.readFileSync("by_hand.json"));

async function generate(prompt, evaluate, options) {
    const context = await model.createContext({contextSize: 256});
    const contextSequence = context.getSequence();
    let text;
    if (evaluate) {
        const tokens = [];
        for await (const token of contextSequence.evaluate(
            model.tokenize(prompt), {temperature: 0, ...options})) {
            tokens.push(token);
            if (tokens.length === 24)
                break;
        }
        text = model.detokenize(tokens);
    } else {
        const completion = new LlamaCompletion({contextSequence});
        text = await completion.generateCompletion(
            prompt, {maxTokens: 24, temperature: 0, ...options});
        completion.dispose();
    }
    await context.dispose();
    return text;
}

const all = {strength: 0.8, lastTokens: 200};
for (const [kind, name, works, evaluate, options] of [
    ["repeat", "LlamaCompletion, repeatPenalty: {penalty: 1.1}", true, false,
     {repeatPenalty: {penalty: 1.1}}],
    ["repeat", "LlamaCompletion, repeatPenalty: {}", false, false, {repeatPenalty: {}}],
    ["repeat", "LlamaCompletion, nothing given", false, false, {}],
    ["repeat", "LlamaCompletion, repeatPenalty: {lastTokens: 32}", false, false,
     {repeatPenalty: {lastTokens: 32}}],
    ["dry", "evaluate(), dryRepeatPenalty: {strength: 0.8, lastTokens: 200}", true, true,
     {dryRepeatPenalty: all}],
    ["dry", "evaluate(), dryRepeatPenalty: {strength: 0.8}", false, true,
     {dryRepeatPenalty: {strength: 0.8}}],
    ["dry", "LlamaCompletion, dryRepeatPenalty: {strength: 0.8, lastTokens: 200}", false, false,
     {dryRepeatPenalty: all, repeatPenalty: false}]]) {
    const texts = [];
    for (const {prompt} of prompts)
        texts.push(await generate(prompt, evaluate, options));
    const right = texts.filter((text, i) => text === prompts[i][kind]).length;
    const none = texts.filter((text, i) => text === prompts[i].none).length;
    console.log(`${name}: ${right}, ${none}; ${texts[0]}`);
    assert.deepEqual([right, none], works ? [8, 0] : [0, 8]);
}
process.exit(0);
END
node run.mjs 2>"$folder/log" || { cat "$folder/log"; exit 1; }
