#!/usr/bin/env bash
# Guess: OpenVINO GenAI with a draft model (speculative decoding) draws with do_sample from the main
# model's distribution, as without: that is the point of the method and of its acceptance rule.
# The documentation says that it keeps the main model's accuracy. A bad draft model costs time.
#
# openvino-genai 2026.4.1, GPT-2s exported by optimum-intel 2.2.0, float32: what comes out is near
# to the draft model, the more so the longer the text is. A drafted token x is to be accepted with
# the probability main(x) / draft(x), at most 1. In the source (validate_candidate) it's the
# inverse, draft over main, so that what the draft model overrates is accepted always; and what
# stands for main(x) is the probability of another token, one that was just drawn from the main
# model. After a rejection, moreover, the loop goes on to the next place before it draws, so that
# the logits are, by the source, those after the rejected token. Even the main model as its own
# draft changes the distribution. It was written after the paper (pull request 2331 says so, which
# made an exception for prompt lookup: that is right). Greedy decoding with a draft model is right.
#
# Seen (2-layer GPT-2s with random weights, a vocabulary of 9, 4,000 draws of three tokens after one
# prompt; how far the frequencies of the first, second and third token are from the main model's
# probabilities and from the draft model's, half the sum of the differences):
#   no draft model: from the main model 0.02 0.01 0.02 from the draft model 0.64 0.60 0.52
#   prompt lookup: from the main model 0.02 0.01 0.02 from the draft model 0.64 0.60 0.52
#   the main model as draft: from the main model 0.02 0.04 0.10 from the draft model 0.64 0.58 0.52
#   another draft model: from the main model 0.09 0.38 0.46 from the draft model 0.56 0.31 0.15

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0'
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'transformers==5.5.4' 'tokenizers==0.22.2' 'optimum==2.3.0' 'optimum-intel==2.2.0' \
    'nncf==3.4.0' 'openvino==2026.4.1' 'openvino-genai==2026.4.1.0' \
    'openvino-tokenizers==2026.4.1.0'
"$folder/venv/bin/pip" uninstall --quiet --yes torchvision  # one for another build of torch
cd "$folder"

export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
venv/bin/python - >log 2>&1 <<'PYTHON' || { cat log; exit 1; }
import itertools

import numpy as np
import openvino as ov
import openvino_genai as genai
import torch
from optimum.exporters.openvino import main_export
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

END, NEW, DRAWS = "<|endoftext|>", 3, 4000
letters = [END, *"abcdefgh"]
tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END, eos_token=END,
                                    pad_token=END)
prompt = [3, 1, 4, 1, 5]
continuations = list(itertools.product(range(len(letters)), repeat=NEW))
settings = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32",
            "INFERENCE_NUM_THREADS": 1}


def frequencies(texts, weights):
    """Return the frequencies of all tokens at each of the places."""
    return np.array([np.bincount([text[place] for text in texts], weights, len(letters))
                     for place in range(NEW)])


exact, gpt2 = {}, {}
for name, seed in (("main", 0), ("draft", 1)):
    torch.manual_seed(seed)
    model = GPT2LMHeadModel(GPT2Config(
        vocab_size=len(letters), n_positions=64, n_embd=64, n_layer=2, n_head=2,
        initializer_range=0.15, bos_token_id=0, eos_token_id=0, pad_token_id=0)).eval()
    model.save_pretrained(name)
    tokenizer.save_pretrained(name)
    main_export(name, f"{name}_ov", task="text-generation-with-past", stateful=True,
                convert_tokenizer=True)
    with torch.no_grad():
        texts = torch.tensor([prompt + list(one) for one in continuations])
        logs = model(texts).logits[:, len(prompt) - 1:-1].log_softmax(-1)
    chosen = logs.gather(-1, texts[:, len(prompt):, None]).sum((1, 2))
    exact[name], gpt2[name] = frequencies(continuations, chosen.exp().numpy()), model


def draw(draft=None, lookup=False, greedy=False):
    scheduler = genai.SchedulerConfig()
    scheduler.cache_size = 1
    extra = {"draft_model": genai.draft_model(f"{draft}_ov", "CPU", **settings)} if draft else {}
    extra.update({"prompt_lookup": True} if lookup else {})
    pipeline = genai.ContinuousBatchingPipeline("main_ov", scheduler, "CPU", settings | extra)
    count = 20 if greedy else DRAWS
    assisted = {"num_assistant_tokens": NEW} if draft or lookup else {}
    assisted.update({"max_ngram_size": 1} if lookup else {})
    results = []
    for seed in range(0, count, 200):
        seeds = range(seed, min(seed + 200, count))
        results += pipeline.generate(
            [ov.Tensor(np.array([prompt]))] * len(seeds),
            [genai.GenerationConfig(do_sample=not greedy, rng_seed=i, ignore_eos=True,
                                    max_new_tokens=8 if greedy else NEW + 1, **assisted)
             for i in seeds])
    return [result.m_generation_ids[0] for result in results]


for name, kind in (("no draft model", {}), ("prompt lookup", {"lookup": True}),
                   ("the main model as draft", {"draft": "main"}),
                   ("another draft model", {"draft": "draft"})):
    texts = draw(**kind)
    seen = frequencies(texts, np.full(len(texts), 1 / len(texts)))
    far, from_draft = (np.abs(seen - exact[key]).sum(1) / 2 for key in ("main", "draft"))
    print(f"{name}: from the main model", *(f"{x:.2f}" for x in far), "from the draft model",
          *(f"{x:.2f}" for x in from_draft))
    if "lookup" in kind or not kind:
        assert far.max() < 0.04
    elif kind["draft"] == "main":
        assert far.max() > 0.06
    else:
        assert far[2] > 0.4 and from_draft[2] < 0.2

greedy = gpt2["main"].generate(torch.tensor([prompt]), max_new_tokens=8, eos_token_id=None,
                               do_sample=False)[0, len(prompt):].tolist()
assert all(text == greedy for text in draw(draft="draft", greedy=True))
PYTHON
grep ': from ' log
