#!/usr/bin/env bash
# Guess: LLMPipeline of OpenVINO GenAI with do_sample and num_return_sequences=4 gives four texts,
# each drawn from the model on its own, and with logprobs=1 the scores are the sums of the model's
# log-probabilities of their tokens. Which backend computes attention is no matter.
#
# openvino-genai 2026.4.1, a GPT-2 exported by optimum-intel 2.2.0, all in float32: true with the
# backend "PA" (paged attention), not with "SDPA", the stateful model. There, only one of the texts
# is the model's. All others are written with its memory: at each step, every row goes on with the
# keys and values of the first row, so a text is drawn from what the first text has so far and one
# token, its own last. The second token of each is right still (all have the prompt in common);
# after that they are no texts that anybody wrote. A model of that kind takes an input beam_idx,
# which says for each row whose keys and values it goes on with. For beam search the sampler fills
# it in; for sampling, by its source, it's 0 for all rows, as it is for a single text. With
# num_return_sequences=1, or beams, SDPA is right. There is no warning, and the scores, computed
# from the same logits, look all right, since they are high.
#
# Seen (a 2-layer model with random weights, 12 new tokens; by how much each score is off from the
# model's log-probability of the text, and from that of its tokens after the first text's):
#   PA, 1 sampled: off 0.00 / 0.00
#   PA, 4 beams: off 0.00 0.00 0.00 0.00 / 0.00 0.00 0.00 0.00
#   PA, 4 sampled: off 0.00 0.00 0.00 0.00 / 0.00 2.88 3.55 7.29
#   SDPA, 1 sampled: off 0.00 / 0.00
#   SDPA, 4 beams: off 0.00 0.00 0.00 0.00 / 0.00 0.00 0.00 0.00
#   SDPA, 4 sampled: off 13.55 6.17 5.84 0.00 / 0.00 0.00 0.00 0.00

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
import string

import numpy as np
import openvino as ov
import openvino_genai as genai
import torch
from optimum.exporters.openvino import main_export
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

END, NEW = "<|endoftext|>", 12
letters = [END, *string.ascii_letters, *string.digits]
tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END, eos_token=END,
                        pad_token=END).save_pretrained("gpt2")
torch.manual_seed(0)
gpt2 = GPT2LMHeadModel(GPT2Config(
    vocab_size=len(letters), n_positions=64, n_embd=64, n_layer=2, n_head=2,
    initializer_range=0.2, bos_token_id=0, eos_token_id=0, pad_token_id=0)).eval()
gpt2.save_pretrained("gpt2")
main_export("gpt2", "openvino", task="text-generation-with-past", stateful=True)
prompt = [5, 30, 11, 47, 2, 19]


def log_probability(contexts, text):
    with torch.no_grad():
        return sum(gpt2(torch.tensor([prompt + context])).logits[0, -1].log_softmax(-1)[token]
                   for context, token in zip(contexts, text)).item()


def generate(backend, count, kind, **settings):
    pipeline = genai.LLMPipeline(
        "openvino", "CPU", ATTENTION_BACKEND=backend, INFERENCE_PRECISION_HINT="f32",
        KV_CACHE_PRECISION="f32", INFERENCE_NUM_THREADS=1)
    result = pipeline.generate(ov.Tensor(np.array([prompt])), genai.GenerationConfig(
        max_new_tokens=NEW, num_return_sequences=count, ignore_eos=True, rng_seed=1, **settings))
    own = [log_probability([text[:i] for i in range(NEW)], text) for text in result.tokens]
    off = np.abs(np.array(result.scores) - own)
    first = result.tokens[off.argmin()]
    mixed = [log_probability([[]] + [first[:i - 1] + [text[i - 1]] for i in range(1, NEW)], text)
             for text in result.tokens]
    off_mixed = np.abs(np.array(result.scores) - mixed)
    print(f"{backend}, {count} {kind}: off", *(f"{x:.2f}" for x in off), "/",
          *(f"{x:.2f}" for x in off_mixed))
    return off, off_mixed


for backend in ("PA", "SDPA"):
    off, _ = generate(backend, 1, "sampled", do_sample=True, logprobs=1)
    assert off.max() < 1e-3
    off, _ = generate(backend, 4, "beams", num_beams=4, length_penalty=0.0)
    assert off.max() < 1e-3
    off, off_mixed = generate(backend, 4, "sampled", do_sample=True, logprobs=1)
    if backend == "PA":
        assert off.max() < 1e-3 and sorted(off_mixed)[1] > 0.1
    else:
        assert sorted(off)[0] < 1e-3 and sorted(off)[1] > 0.1 and off_mixed.max() < 1e-3
PYTHON
grep ': off' log
