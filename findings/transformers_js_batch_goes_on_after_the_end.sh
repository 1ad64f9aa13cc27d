#!/usr/bin/env bash
# Guess: generate() of transformers.js gives greedily the text that transformers in Python gives for
# the same GPT-2, exported to ONNX, and a batch with padding on the left gives for each prompt what
# the prompt gives alone.
#
# @huggingface/transformers 4.3.2 (npm; the newest), the model exported by optimum-onnx 0.1.0: alone
# it does. In a batch no text ends. A row that has generated the end token isn't marked as done, but
# gets further tokens like all others, in place of padding. And since it's the last token alone that
# is looked at, generation stops early only if all rows happen to generate the end token in one
# and the same step; otherwise it goes on to max_new_tokens, 256 by default in the pipeline. The
# pipeline for text generation decodes with skip_special_tokens, which takes out the end token that
# would show where the text was over: what comes back is the answer, and glued to it some other text
# that the model made up after the end, longer the larger max_new_tokens is. (By the source, the
# same loop serves encoder-decoder models.) Nothing is said. One prompt at a time is right.
#
# Seen (a 2-layer GPT-2 with random weights, 27 letters and an end token, greedy, 24 new tokens at
# most; "." is the end token, "_" a space; the prompts are "one", "two words", "the third"):
#   alone:    irdbkfgihpdndnm.
#   in batch: irdbkfgihpdndnm.hhbhhhh.
#   alone:    pfdijid_gm.
#   in batch: pfdijid_gm.dddddiimnipfm
#   alone:    mbdmr.
#   in batch: mbdmr.iimkhhciiipagipmch
#   pipeline, alone:    "irdbkfgihpdndnm"
#   pipeline, in batch: "irdbkfgihpdndnmhhbhhhh"

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0'
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'transformers==4.57.6' 'tokenizers==0.22.2' 'optimum==2.1.0' 'optimum-onnx==0.1.0' \
    'onnx==1.23.2' 'onnxruntime==1.32.0'
cd "$folder"
npm install --silent --ignore-scripts --no-audit --no-fund '@huggingface/transformers@4.3.2' \
    >"$folder/npm" 2>&1 || { cat "$folder/npm"; exit 1; }

export HF_HUB_OFFLINE=1
"$folder/venv/bin/python" - 2>"$folder/log" <<'END' || { cat "$folder/log"; exit 1; }
import json
import string

import torch
from optimum.exporters.onnx import main_export
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

END = "<|endoftext|>"
PROMPTS = ["one", "two words", "the third"]
NEW = 24

# GPT-2's kind of tokenizer, with single letters only; \u0120 stands for a space, as there.
vocabulary = {token: i for i, token in enumerate([END, "\u0120", *string.ascii_lowercase])}
tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
tokenizer.add_special_tokens([END])
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=tokenizer, bos_token=END, eos_token=END, pad_token=END, padding_side="left",
    model_input_names=["input_ids", "attention_mask"])


def generate(model, prompts):
    """Return the ids of the new tokens of each prompt, by transformers in Python."""
    batch = tokenizer(prompts, return_tensors="pt", padding=True)
    ids = model.generate(**batch, max_new_tokens=NEW, do_sample=False)
    return ids[:, batch.input_ids.shape[1]:].tolist()


for seed in range(1000):  # until there is one where the texts end after different numbers of tokens
    torch.manual_seed(seed)
    model = GPT2LMHeadModel(GPT2Config(
        vocab_size=len(vocabulary), n_positions=64, n_embd=64, n_layer=2, n_head=4,
        initializer_range=0.3, bos_token_id=0, eos_token_id=0, pad_token_id=0)).eval()
    together = generate(model, PROMPTS)
    ends = [row.index(0) if 0 in row else NEW for row in together]
    if len(set(ends)) == 3 and 2 < min(ends) and max(ends) < 16:
        break
alone = [generate(model, [prompt])[0] for prompt in PROMPTS]
assert max(ends) < 16 and max(map(len, together)) == max(ends) + 1
for one, row, end in zip(alone, together, ends):
    assert one == row[:end + 1] and not any(row[end:])  # Python: the batch ends, and is padded

model.save_pretrained("gpt2")
tokenizer.save_pretrained("gpt2")
main_export("gpt2", "gpt2/onnx", task="text-generation-with-past", do_validation=False)
with open("expected.json", "w") as file:
    json.dump({"prompts": PROMPTS, "new": NEW, "alone": alone}, file)
END

cat >"$folder/run.mjs" <<'END'
import assert from "node:assert";
import fs from "node:fs";
import { AutoModelForCausalLM, AutoTokenizer, env, pipeline } from "@huggingface/transformers";

env.allowRemoteModels = false;
env.localModelPath = "./";
const { prompts, new: most, alone } = JSON.parse(fs.readFileSync("expected.json"));
const tokenizer = await AutoTokenizer.from_pretrained("gpt2");
const model = await AutoModelForCausalLM.from_pretrained("gpt2", { dtype: "fp32" });
const settings = { max_new_tokens: most, do_sample: false };
const show = (ids) => ids.map((id) => "._abcdefghijklmnopqrstuvwxyz"[id]).join("");

async function generate(texts) {
    const batch = tokenizer(texts, { padding: true });
    const ids = (await model.generate({ ...batch, ...settings })).tolist();
    return ids.map((row) => row.slice(batch.input_ids.dims[1]).map(Number));
}

const together = await generate(prompts);
for (let i = 0; i < prompts.length; i++) {
    const one = (await generate([prompts[i]]))[0];
    console.log(`alone:    ${show(one)}\nin batch: ${show(together[i])}`);
    assert.deepStrictEqual(one, alone[i]); // as in Python
    assert.deepStrictEqual(together[i].slice(0, one.length), one);
    assert.equal(one.at(-1), 0);
    assert.equal(together[i].length, most); // goes on to the last step, and not with padding
    assert(together[i].slice(one.length).some((id) => id !== 0));
}

const generator = await pipeline("text-generation", "gpt2", { dtype: "fp32" });
const options = { ...settings, return_full_text: false };
const single = (await generator(prompts[0], options))[0].generated_text;
const batched = (await generator(prompts, options))[0][0].generated_text;
console.log(`pipeline, alone:    "${single}"\npipeline, in batch: "${batched}"`);
assert(batched.startsWith(single) && batched.length > single.length);
END
node "$folder/run.mjs" 2>"$folder/log" || { cat "$folder/log"; exit 1; }
