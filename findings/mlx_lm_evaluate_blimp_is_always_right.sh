#!/usr/bin/env bash
# Guess: mlx_lm.evaluate, which runs the tasks of lm-evaluation-harness with MLX, scores a sentence
# without a context, as in BLiMP, from its first token after the end-of-text token, as the
# harness's own model for transformers does. Random weights are right about half of the time.
#
# mlx-lm 0.32.2 (mlx 0.32.4, CPU), lm_eval 0.4.13, transformers 5.24.0: it's always right. With
# GPT-2's tokenizer, which adds no token of its own, an empty context has no tokens, and one
# without tokens is taken for one that was cut away since the continuation is too long: all
# sentences get minus infinity, and the model isn't even called. The harness picks the first of
# equal scores, and in BLiMP the good sentence is always the first (doc_to_target: 0). So every
# GPT-2, trained or not, has an accuracy of 100% in all of BLiMP's 67 parts, and so has one that is
# asked for the bad sentences. Before September 2026 this case ended with an error. The class's
# documentation says that a model must be able to handle an empty context. With a tokenizer that
# adds a token at the start, as Llama's does, the results are those of the harness.
#
# Seen (one GPT-2 with random weights; 40 pairs; accuracy for the pairs, and for the same pairs with
# good and bad exchanged; scores of the first pair):
#   lm_eval, GPT-2's tokenizer: 52.5%, exchanged 47.5%; scores -171.65 and -153.91
#   mlx_lm, Llama's tokenizer: 52.5%, exchanged 47.5%; scores -171.65 and -153.91
#   mlx_lm, GPT-2's tokenizer: 100.0%, exchanged 100.0%; scores -inf and -inf

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'transformers==5.24.0' 'tokenizers==0.23.3' 'accelerate==1.15.0' 'datasets==5.2.0' \
    'lm_eval==0.4.13' 'mlx==0.32.4' 'mlx-cpu==0.32.4' 'mlx-lm==0.32.2'

cd "$folder"
export HF_HUB_OFFLINE=1 HF_HOME="$folder/hf"
"$folder/venv/bin/python" - 2>"$folder/log" >"$folder/out" <<'END' || { cat "$folder/log"; exit 1; }
import json
import math
from pathlib import Path

import lm_eval
import torch
import yaml
from lm_eval.models.huggingface import HFLM
from mlx_lm.evaluate import MLXLM
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import GPT2Config, GPT2Model, PreTrainedTokenizerFast

torch.manual_seed(0)
names = ["<|endoftext|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
model = GPT2Model(GPT2Config(vocab_size=len(names), n_positions=64, n_ctx=64, n_embd=64, n_layer=2,
                             n_head=2, initializer_range=0.3, bos_token_id=0, eos_token_id=0))
tokenizer = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[]))
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
for kind in ("GPT-2's", "Llama's"):
    if kind == "Llama's":
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{names[0]} $A", special_tokens=[(names[0], 0)])
    model.save_pretrained(kind)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=names[0],
                            eos_token=names[0]).save_pretrained(kind)

pairs = [(f"{who} {what} here.", f"{what} {who} here.")
         for who in ("the cat", "a dog", "the boy", "her friend", "this man")
         for what in ("runs", "sings", "sleeps", "eats", "walks", "reads", "swims", "writes")]
for name, good, bad in (("pairs", 0, 1), ("exchanged", 1, 0)):
    Path(name).write_text("\n".join(json.dumps({
        "sentence_good": pair[good], "sentence_bad": pair[bad]}) for pair in pairs))
blimp = yaml.safe_load((Path(lm_eval.__file__).parent / "tasks/blimp/_template_yaml").read_text())


def accuracy(title, model):
    """Return the accuracy for the pairs and for the exchanged ones, and the first pair's scores."""
    found = []
    for name in ("pairs", "exchanged"):
        task = {**blimp, "task": name, "dataset_path": "json",
                "dataset_kwargs": {"data_files": {"train": name}}}
        results = lm_eval.simple_evaluate(model=model, tasks=[task])
        found.append(results["results"][name]["acc,none"])
        if name == "pairs":
            sample = next(s for s in results["samples"][name] if s["doc_id"] == 0)
            scores = [score for (score, _), in sample["resps"]]
    print(f"{title}: {found[0]:.1%}, exchanged {found[1]:.1%}; "
          f"scores {scores[0]:.2f} and {scores[1]:.2f}")
    return found, scores


harness, scores = accuracy("lm_eval, GPT-2's tokenizer", HFLM("GPT-2's", device="cpu"))
llama, llama_scores = accuracy("mlx_lm, Llama's tokenizer", MLXLM("Llama's"))
gpt2, gpt2_scores = accuracy("mlx_lm, GPT-2's tokenizer", MLXLM("GPT-2's"))
assert llama == harness and sum(harness) == 1 and 0.2 < harness[0] < 0.8
assert all(abs(a - b) < 1e-2 for a, b in zip(scores, llama_scores))
assert gpt2 == [1, 1] and gpt2_scores == [-math.inf, -math.inf]
END
grep -E '^(lm_eval|mlx_lm), ' "$folder/out"
