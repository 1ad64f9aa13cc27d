#!/usr/bin/env bash
# Guess: lm-polygraph: RAUQ's score of a text doesn't depend on what else is in the batch
# (attention_all of a text is that text's own).
#
# lm-polygraph 0.7.0, transformers 5.24.0: it does, for all texts but the first of each batch. The
# statistic "attention_all", from which RAUQ and Focus are computed, is built in a loop over the
# texts, but the loop takes the attention of batch element 0 every time, so that each text has the
# first text's attention with its own probabilities. All other things in the batch are right: the
# tokens and their log-probabilities are those that each text has alone. The scores are of the usual
# size; which of two texts counts as the more uncertain one changes with batch_size and with the
# order of the dataset, and a comparison of methods with it. With batch_size=1, which
# estimate_uncertainty() uses, all is right. Nothing is said.
#
# Seen (a 3-layer GPT-2 with random weights, 10 new tokens, RAUQ through UEManager):
#   batch_size=1: [5.479 5.456 5.324 5.356]
#   batch_size=4: [5.479 5.381 5.386 5.328]
#   batch_size=4, with each text's own attention: [5.479 5.456 5.324 5.356]

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'transformers==5.24.0' 'tokenizers==0.23.3' 'datasets==5.2.0' 'scikit-learn==1.9.1' \
    'accelerate==1.15.0' 'nltk==3.10.4' 'pandas==3.1.1' 'matplotlib==3.11.2' 'dill==0.4.1' \
    'sentence-transformers==6.2.0' 'rouge-score==0.1.2' 'openai==3.57.0' 'sacrebleu==2.6.0' \
    'diskcache==5.6.3' 'spacy==3.8.18' 'boostedprob==0.1.3' 'bert-score==0.3.13' \
    'omegaconf==2.4.0' 'absl-py==2.5.1' 'scipy==1.17.1' 'requests==2.34.2'
# Its other dependencies are for things that aren't used here.
"$folder/venv/bin/pip" install --quiet --no-compile --no-deps 'lm-polygraph==0.7.0'

cd "$folder"
export HF_HUB_OFFLINE=1
"$folder/venv/bin/python" - 2>"$folder/log" <<'END' || { cat "$folder/log"; exit 1; }
import numpy as np
import torch
from lm_polygraph import UEManager, WhiteboxModel
from lm_polygraph.defaults.register_default_stat_calculators import (
    register_default_stat_calculators)
from lm_polygraph.estimators import RAUQ
from lm_polygraph.stat_calculators.greedy_probs import GreedyProbsCalculator
from lm_polygraph.utils.builder_enviroment_stat_calculator import BuilderEnvironmentStatCalculator
from lm_polygraph.utils.dataset import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

letters = sorted(pre_tokenizers.ByteLevel.alphabet())
bytelevel = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
bytelevel.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
bytelevel.decoder = decoders.ByteLevel()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytelevel, eos_token="<|endoftext|>",
                                    pad_token="<|endoftext|>", padding_side="left")
torch.manual_seed(0)
gpt2 = GPT2LMHeadModel(GPT2Config(
    vocab_size=257, n_positions=64, n_embd=32, n_layer=3, n_head=4, initializer_range=0.2,
    bos_token_id=256, eos_token_id=256, attn_implementation="eager")).eval()
model = WhiteboxModel(gpt2, tokenizer, "gpt2", "CausalLM")
texts = ["The cat sat on the mat", "Hello there, my good friend", "Where did it go", "Numbers are"]


def run(texts, batch_size):
    """Return RAUQ's scores."""
    manager = UEManager(
        Dataset(texts, [""] * len(texts), batch_size), model, [RAUQ()],
        BuilderEnvironmentStatCalculator(model), register_default_stat_calculators("Whitebox"),
        [], [], [], ignore_exceptions=False, verbose=False, max_new_tokens=10)
    manager()
    return np.array(manager.estimations["sequence", "RAUQ"])


def own_attention(text, new):
    """Return what each new token sees of the new ones before it, by one pass of transformers."""
    ids = tokenizer(text).input_ids
    with torch.no_grad():
        layers = gpt2(torch.tensor([ids + new]), output_attentions=True).attentions
    heads = torch.cat([layer[0] for layer in layers]).numpy()
    own = np.zeros((len(heads), len(new), len(new)))
    for i in range(1, len(new)):
        own[:, i, :i] = heads[:, len(ids) + i - 1, len(ids):len(ids) + i]
    return own


np.set_printoptions(precision=3)
alone = run(texts, 1)
batch = run(texts, 4)
print("batch_size=1:", alone)
print("batch_size=4:", batch)

# In the batch, every text has the attention of the first one.
stats = GreedyProbsCalculator()({}, texts, model, max_new_tokens=10)
own = [own_attention(text, new) for text, new in zip(texts, stats["greedy_tokens"])]
for i, seen in enumerate(stats["attention_all"]):
    n = min(own[0].shape[1], seen.shape[1])
    assert abs(seen[:, :n, :n] - own[0][:, :n, :n]).max() < 1e-5
    assert i == 0 or abs(seen - own[i]).max() > 0.2
assert abs(batch - alone)[0] < 1e-5 and abs(batch - alone)[1:].min() > 1e-3
assert list(np.argsort(batch)) != list(np.argsort(alone))

assert len(stats["attention_all"]) == 4

# With its own attention, each text's score is the one it has alone.
stats["attention_all"] = own
by_hand = RAUQ(n_layers=3, n_heads=4)(stats)
print("batch_size=4, with each text's own attention:", by_hand)
assert abs(by_hand - alone).max() < 1e-5
END
