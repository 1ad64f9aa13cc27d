#!/usr/bin/env bash
# Guess: presence_penalty and frequency_penalty of OpenVINO GenAI are OpenAI's, as in vLLM and
# llama.cpp: a token that was generated loses the penalty (times its count) from its logit and so
# gets less likely. Only differences of logits matter: a model whose logits are all lower by the
# same number gives the same text.
#
# openvino-genai 2026.4.1, GPT-2s exported by optimum-intel 2.2.0, float32: only where the logit is
# positive. From a negative one the penalty isn't subtracted, but added: the token gets more likely,
# the more so the more often it has come, and the text turns into a repetition of its first tokens.
# Where 0 lies between the logits of a model is chance, softmax doesn't see it. GPT-2's logits are
# nearly all far below 0. So what works for one model makes another one loop, and the usual reaction
# to that, a larger penalty, makes it worse. It's a rule of signs as in repetition_penalty, which
# multiplies and therefore needs one; here it turns the penalty round. The help text has it
# "reduces absolute log prob", which is the same mistake in words, or a hint; it's called a penalty.
# repetition_penalty is as elsewhere (and depends on where 0 lies, as it does everywhere).
#
# Seen (a 2-layer GPT-2 with random weights, its output untied, and the same with 40 added to all
# logits or taken from them; 24 new tokens after 8 prompts, greedy; different tokens in a text on
# average, and how many texts are those by hand):
#   logits +40, presence 0.0, frequency 0.0: 11.1 different (by hand 11.1), 8 of 8 texts right
#   logits +40, presence 1.5, frequency 0.0: 22.5 different (by hand 22.5), 8 of 8 texts right
#   logits +40, presence 0.0, frequency 1.0: 20.8 different (by hand 20.8), 8 of 8 texts right
#   logits -40, presence 0.0, frequency 0.0: 11.1 different (by hand 11.1), 8 of 8 texts right
#   logits -40, presence 1.5, frequency 0.0: 3.1 different (by hand 22.5), 0 of 8 texts right
#   logits -40, presence 0.0, frequency 1.0: 1.5 different (by hand 20.8), 0 of 8 texts right

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
import collections
import string

import numpy as np
import openvino as ov
import openvino_genai as genai
import torch
from optimum.exporters.openvino import main_export
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

END, NEW = "<|endoftext|>", 24
letters = [END, *string.ascii_letters, *string.digits]
tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END, eos_token=END,
                                    pad_token=END)
prompts = np.random.default_rng(0).integers(1, len(letters), (8, 6)).tolist()


def by_hand(model, prompt, presence, frequency):
    text, counts = [], collections.Counter()
    for _ in range(NEW):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + text])).logits[0, -1]
        for token, count in counts.items():
            logits[token] -= presence + frequency * count
        text.append(logits.argmax().item())
        counts[text[-1]] += 1
    return text


texts = {}
for shift in (40, -40):
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(
        vocab_size=len(letters), n_positions=64, n_embd=64, n_layer=2, n_head=2,
        tie_word_embeddings=False, initializer_range=0.15, bos_token_id=0, eos_token_id=0,
        pad_token_id=0)).eval()
    with torch.no_grad():  # the last layer's input 0 is always 1, and its weight is the shift
        model.transformer.ln_f.weight[0], model.transformer.ln_f.bias[0] = 0, 1
        model.lm_head.weight[:, 0] = shift
    model.save_pretrained("gpt2")
    tokenizer.save_pretrained("gpt2")
    main_export("gpt2", "openvino", task="text-generation-with-past", stateful=True)
    pipeline = genai.LLMPipeline("openvino", "CPU", INFERENCE_PRECISION_HINT="f32",
                                 KV_CACHE_PRECISION="f32", INFERENCE_NUM_THREADS=1)
    for presence, frequency in ((0.0, 0.0), (1.5, 0.0), (0.0, 1.0)):
        drawn = [pipeline.generate(ov.Tensor(np.array([prompt])), genai.GenerationConfig(
            max_new_tokens=NEW, ignore_eos=True, presence_penalty=presence,
            frequency_penalty=frequency)).tokens[0] for prompt in prompts]
        own = [by_hand(model, prompt, presence, frequency) for prompt in prompts]
        right = sum(a == b for a, b in zip(drawn, own))
        number, expected = (np.mean([len(set(text)) for text in some]) for some in (drawn, own))
        print(f"logits {shift:+}, presence {presence}, frequency {frequency}: {number:.1f} "
              f"different (by hand {expected:.1f}), {right} of {len(prompts)} texts right")
        texts[shift, presence, frequency] = own
        assert own == texts[40, presence, frequency]
        if shift > 0 or presence == frequency == 0:
            assert right == len(prompts)
        else:
            assert right == 0 and number < expected / 2
PYTHON
grep '^logits ' log
