#!/usr/bin/env bash
# Guess: LlamaCompletion of node-llama-cpp gives greedily, with a repeat penalty, the same text with
# and without a token predictor (speculative decoding). Its guide says that predictors don't affect
# the quality of the output: what they propose is checked, and only what is right is used.
#
# node-llama-cpp 3.21.1 (npm; llama.cpp inside): not with a repeat penalty. The proposed tokens are
# computed in one batch, and a token is sampled at each place before anything is returned. The list
# of tokens to be penalised is asked for at each of these places, but the completion adds to it only
# what it has received, so that all places of a batch get the list of the first. A token isn't
# penalised for those before it in the batch, up to 3 with InputLookupTokenPredictor and 16 with
# DraftSequenceTokenPredictor, as they come. So the penalty fails where it is wanted: at
# repetitions, which are the easiest to propose. The text depends on the predictor, and with a draft
# model on its settings and speed. LlamaChat, by its source, makes its list in the same way. Without
# a penalty both predictors are right; nothing is said.
#
# Seen (a GPT-2 whose letters like to be repeated; 8 prompts, 24 new letters, greedy; how many texts
# are those computed by hand; proposals that were accepted; the text after "aaaaaaaa"):
#   no predictor, penalty 1: 8 of 8 right, 0 accepted, aaaaaaaaaaaaaaaaaaaaaaaa
#   no predictor, penalty 1.1: 8 of 8 right, 0 accepted, acdfegbhhhhhhhhhhhhhhhhh
#   input lookup, penalty 1: 8 of 8 right, 60 accepted, aaaaaaaaaaaaaaaaaaaaaaaa
#   input lookup, penalty 1.1: 3 of 8 right, 5 accepted, aacdfegbhhhhhhhhhhhhhhhh
#   draft model, penalty 1: 8 of 8 right, 80 accepted, aaaaaaaaaaaaaaaaaaaaaaaa
#   draft model, penalty 1.1: 0 of 8 right, 69 accepted, aacdffegbbhhhhhhhhhhhhhh

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


prompts = [chr(A + i) * 8 for i in range(LETTERS)]
with open("by_hand.json", "w") as file:
    json.dump([[text, by_hand(text, 1.1), by_hand(text, 1.0)] for text in prompts], file)
END

cat >run.mjs <<'END'
import assert from "node:assert";
import fs from "node:fs";
import {getLlama, DraftSequenceTokenPredictor, InputLookupTokenPredictor,
        LlamaCompletion} from "node-llama-cpp";

const llama = await getLlama({gpu: false, build: "never", maxThreads: 1, logLevel: "error"});
const model = await llama.loadModel({modelPath: "model.gguf"});
const prompts = JSON.parse(fs.readFileSync("by_hand.json"));

async function complete(prompt, name, repeatPenalty) {
    const context = await model.createContext({contextSize: 256});
    const draft = await model.createContext({contextSize: 256});
    let tokenPredictor;
    if (name === "input lookup")
        tokenPredictor = new InputLookupTokenPredictor();
    if (name === "draft model")  // the same model: it proposes what would come without a penalty
        tokenPredictor = new DraftSequenceTokenPredictor(
            draft.getSequence(), {minTokens: 4, maxTokens: 4, minConfidence: 0});
    const contextSequence = context.getSequence(tokenPredictor ? {tokenPredictor} : {});
    const completion = new LlamaCompletion({contextSequence});
    const text = await completion.generateCompletion(
        prompt, {maxTokens: 24, temperature: 0, repeatPenalty});
    const accepted = contextSequence.tokenPredictions.validated;
    completion.dispose();
    await context.dispose();
    await draft.dispose();
    return [text, accepted];
}

for (const name of ["no predictor", "input lookup", "draft model"])
    for (const penalty of [1, 1.1]) {
        let right = 0, accepted = 0, first;
        for (const [prompt, penalised, plain] of prompts) {
            const [text, count] = await complete(
                prompt, name, penalty === 1 ? false : {penalty});
            right += text === (penalty === 1 ? plain : penalised);
            accepted += count;
            first ??= text;
        }
        console.log(
            `${name}, penalty ${penalty}: ${right} of 8 right, ${accepted} accepted, ${first}`);
        if (penalty === 1 || name === "no predictor")
            assert.equal(right, 8);
        else
            assert(right < 5 && accepted > 0);
    }
process.exit(0);
END
node run.mjs 2>"$folder/log" || { cat "$folder/log"; exit 1; }
