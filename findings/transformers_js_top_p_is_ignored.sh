#!/usr/bin/env bash
# Guess: generate() of transformers.js with do_sample and top_p=0.5 draws from the smallest set of
# tokens that have half of the probability together, as its documentation of top_p says and as
# transformers in Python does for the same GPT-2, exported to ONNX.
#
# @huggingface/transformers 4.3.2 (npm; the newest), the model exported by optimum-onnx 0.1.0: top_p
# does nothing. It is a documented setting, it's read from generation_config.json, where most models
# that are made for sampling have one, and there is a class for it, but that one only checks its
# value, and the line that would add it to the processors is a comment. (typical_p, epsilon_cutoff
# and eta_cutoff are documented, too, and by the source they aren't read.) temperature and top_k
# work, and top_k is 50 unless set. So text is drawn from the tail that the model's makers had cut
# off, at every step, without a word; a setting found in Python is another one in the browser.
#
# Seen (a 2-layer GPT-2 with random weights; draws of one token after a prompt; how many of them are
# outside of the nucleus differs a little from run to run):
#   tokens in the nucleus of top_p=0.5: 5 of 28
#   Python, top_p=0.5 in generation_config.json: 5 tokens drawn
#   JavaScript, top_p=0.5 in generation_config.json: 27 tokens drawn, outside 197 of 400
#   JavaScript, top_p=0.5: 26 tokens drawn, outside 181 of 400
#   JavaScript, top_p=1: 28 tokens drawn, outside 225 of 400
#   JavaScript, top_k=5: 5 tokens drawn, outside 0 of 400
#   JavaScript, temperature=0.01: 1 tokens drawn, outside 0 of 400

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
PROMPT, DRAWS, TOP_P = "this is", 400, 0.5

# GPT-2's kind of tokenizer, with single letters only; \u0120 stands for a space, as there.
vocabulary = {token: i for i, token in enumerate([END, "\u0120", *string.ascii_lowercase])}
tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
tokenizer.add_special_tokens([END])
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=tokenizer, bos_token=END, eos_token=END, pad_token=END,
    model_input_names=["input_ids", "attention_mask"])

torch.manual_seed(0)
model = GPT2LMHeadModel(GPT2Config(
    vocab_size=len(vocabulary), n_positions=64, n_embd=64, n_layer=2, n_head=4,
    initializer_range=0.15, bos_token_id=0, eos_token_id=0, pad_token_id=0)).eval()
batch = tokenizer([PROMPT] * DRAWS, return_tensors="pt")
with torch.no_grad():
    likely = model(**batch).logits[0, -1].softmax(dim=-1).sort(descending=True)
count = int((likely.values.cumsum(dim=0) < TOP_P).sum()) + 1
nucleus = likely.indices[:count].tolist()

model.generation_config.do_sample = True
model.generation_config.top_p = TOP_P
drawn = model.generate(**batch, max_new_tokens=1)[:, -1]
assert set(drawn.tolist()) <= set(nucleus)
print(f"tokens in the nucleus of top_p={TOP_P}: {count} of {len(vocabulary)}")
print(f"Python, top_p={TOP_P} in generation_config.json: {len(set(drawn.tolist()))} tokens drawn")

model.save_pretrained("gpt2")
tokenizer.save_pretrained("gpt2")
main_export("gpt2", "gpt2/onnx", task="text-generation-with-past", do_validation=False)
with open("gpt2/generation_config.json") as file:
    assert json.load(file)["top_p"] == TOP_P
with open("expected.json", "w") as file:
    json.dump({"prompt": PROMPT, "draws": DRAWS, "nucleus": nucleus, "top": TOP_P,
               "likeliest": likely.indices.tolist()}, file)
END

cat >"$folder/run.mjs" <<'END'
import assert from "node:assert";
import fs from "node:fs";
import { AutoModelForCausalLM, AutoTokenizer, env } from "@huggingface/transformers";

env.allowRemoteModels = false;
env.localModelPath = "./";
const { prompt, draws, nucleus, top, likeliest } = JSON.parse(fs.readFileSync("expected.json"));
const tokenizer = await AutoTokenizer.from_pretrained("gpt2");
const model = await AutoModelForCausalLM.from_pretrained("gpt2", { dtype: "fp32" });

async function draw(name, settings) {
    const batch = tokenizer(Array(draws).fill(prompt));
    const ids = (await model.generate({ ...batch, max_new_tokens: 1, ...settings })).tolist();
    const drawn = ids.map((row) => Number(row.at(-1)));
    const outside = drawn.filter((id) => !nucleus.includes(id)).length;
    const tokens = new Set(drawn);
    console.log(`JavaScript, ${name}: ${tokens.size} tokens drawn, outside ${outside} of ${draws}`);
    return { tokens, outside };
}

const config = JSON.parse(fs.readFileSync("gpt2/generation_config.json"));
assert(config.do_sample && config.top_p === top);
const file = await draw(`top_p=${top} in generation_config.json`, {});
const given = await draw(`top_p=${top}`, { do_sample: true, top_p: top });
const none = await draw("top_p=1", { do_sample: true, top_p: 1 });
for (const { tokens, outside } of [file, given, none]) {
    assert(tokens.size > nucleus.length + 5);
    assert(outside > draws / 4 && outside < draws * 3 / 4);
}

// top_k and temperature do what they say.
const k = await draw(`top_k=${nucleus.length}`, { do_sample: true, top_k: nucleus.length });
assert(k.outside === 0 && k.tokens.size === nucleus.length);
const cold = await draw("temperature=0.01", { do_sample: true, temperature: 0.01 });
assert(cold.tokens.size <= 2 && cold.tokens.has(likeliest[0]));
END
node "$folder/run.mjs" 2>"$folder/log" || { cat "$folder/log"; exit 1; }
