#!/usr/bin/env bash
# Guess: beam search of transformers with MiniMax finds the same texts with the cache as without
# one; the cache only saves time. The score that it gives for a text is the mean of the
# log-probabilities that the model has for its tokens, whatever way they were computed.
#
# transformers 5.24.0, torch 2.13.0: only without the cache. In beam search a row goes on, after
# each step, with a beam that stood in another row before, and generate() has the cache reordered in
# this way. MiniMax has a cache of its own, MiniMaxCache, with a list beside the keys and values:
# the states of its linear layers (70 of 80 in MiniMax-Text-01). It repeats and selects rows of the
# list like those of the keys and values, but its reorder_cache is the inherited one, which knows
# only keys and values. So the linear layers go on with what another beam has written, also after
# they were given a good one, and the scores are of texts that nobody has written. The texts that
# are found are less likely. (generate() refuses beams for caches that have no method to reorder;
# this one has.) Three lines that reorder the list are right, and so is use_cache=False. Greedy
# decoding and sampling aren't concerned.
#
# Seen (a small MiniMax with random weights, 32 prompts of 12 tokens, 16 new ones; "truly" is the
# mean log-probability per token, computed from one forward pass over each text):
#   greedy: 32 of 32 texts right, scores off by up to 0.00, truly -3.286 on average
#   2 beams, no cache: 32 of 32 texts right, scores off by up to 0.00, truly -3.206 on average
#   2 beams: 6 of 32 texts right, scores off by up to 0.08, truly -3.241 on average
#   2 beams, list reordered: 32 of 32 texts right, scores off by up to 0.00, truly -3.206 on average
#   5 beams, no cache: 32 of 32 texts right, scores off by up to 0.00, truly -3.153 on average
#   5 beams: 9 of 32 texts right, scores off by up to 0.14, truly -3.206 on average
#   5 beams, list reordered: 32 of 32 texts right, scores off by up to 0.00, truly -3.153 on average

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0'
"$folder/venv/bin/pip" install --quiet --no-compile 'transformers==5.24.0' 'numpy==2.4.6' \
    'tokenizers==0.23.3' 'safetensors==0.8.0'

cd "$folder"
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
venv/bin/python - 2>log <<'END' || { cat log; exit 1; }
import torch
from transformers import MiniMaxConfig, MiniMaxForCausalLM
from transformers.models.minimax.modeling_minimax import MiniMaxCache

torch.manual_seed(0)
model = MiniMaxForCausalLM(MiniMaxConfig(
    vocab_size=100, hidden_size=32, intermediate_size=32, num_hidden_layers=4,
    num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=128,
    num_local_experts=2, num_experts_per_tok=1, block_size=16, bos_token_id=None,
    eos_token_id=None, pad_token_id=0,
    layer_types=["linear_attention"] * 3 + ["full_attention"])).eval()
with torch.no_grad():
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
prompts = torch.randint(1, 100, (32, 12))


@torch.no_grad()
def mean_logprob(texts):
    logprobs = model(texts, use_cache=False).logits[:, 11:-1].log_softmax(-1)
    return logprobs.gather(2, texts[:, 12:, None]).squeeze(2).mean(1)


def search(beams, **settings):
    output = model.generate(
        prompts, num_beams=beams, do_sample=False, max_new_tokens=16, output_scores=True,
        return_dict_in_generate=True, **settings)
    return output.sequences, getattr(output, "sequences_scores", None)


class Reordered(MiniMaxCache):
    def reorder_cache(self, beams):
        super().reorder_cache(beams)
        self.linear_cache = [state if isinstance(state, list) else state[beams]
                             for state in self.linear_cache]


def compare(name, wanted, texts, scores):
    same = (texts == wanted).all(1).sum().item()
    true = mean_logprob(texts)
    off = 0 if scores is None else (scores - true).abs().max().item()
    print(f"{name}: {same} of 32 texts right, scores off by up to {off:.2f}, "
          f"truly {true.mean():.3f} on average")
    return same, off, true.mean().item()


greedy, _ = search(1, use_cache=False)
assert compare("greedy", greedy, *search(1))[0] == 32
for beams in (2, 5):
    wanted, scores = search(beams, use_cache=False)
    _, off, best = compare(f"{beams} beams, no cache", wanted, wanted, scores)
    assert off < 1e-4
    same, off, true = compare(f"{beams} beams", wanted, *search(beams))
    assert same < 20 and off > 0.05 and true < best - 0.01
    same, off, _ = compare(f"{beams} beams, list reordered", wanted,
                           *search(beams, cache=Reordered()))
    assert same == 32 and off < 1e-4
END
