#!/usr/bin/env bash
# Guess: SampleGeneratorConfig(top_p=0.5) of curated-transformers lets its generators sample from
# the smallest set of most probable tokens that have at least half of the probability together.
#
# curated-transformers 2.0.1, torch 2.13.0: top_p does nothing; every token of the vocabulary can
# still be drawn, and as often as without it. The generator gives the transforms the logits of
# the last position with the dimension of positions left in: batch x 1 x vocabulary. To keep the
# most probable token in any case, TopPTransform marks [:, 0] of the sorted logits as kept. For
# batch x vocabulary that is the first column; here it's the whole vocabulary. top_k and
# temperature count from the last dimension and work. The generator for Dolly v2 has top_p=0.92
# as its default, and so samples without it. Called by oneself with batch x vocabulary, the
# transform does what it says; its documentation has any number of dimensions before the last.
#
# Seen (a small Llama, 4000 tokens for the same prompt; by hand the set has 5 tokens; how many of
# the 40 are drawn at least once, and the share of draws that are none of those 5):
#   no setting: 40 kinds, 0.4888
#   top_p=0.5: 40 kinds, 0.4888
#   top_p=0.1: 40 kinds, 0.4888
#   top_k=5: 5 kinds, 0.0000
#   top_p=0.5 by hand: 5 kinds, 0.0000
#   tokens that TopPTransform(0.5) keeps of 1 x 40 logits: 5, of 1 x 1 x 40: 40

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0'
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'tokenizers==0.23.3' 'huggingface-hub==0.36.2' 'curated-tokenizers==2.0.1' \
    'curated-transformers==2.0.1'
cd "$folder"

HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 venv/bin/python - 2>log <<'END' || { cat log; exit 1; }
import torch
from curated_transformers.generation import Generator, SampleGeneratorConfig, TopPTransform
from curated_transformers.layers import AttentionMask
from curated_transformers.models import LlamaCausalLM, LlamaConfig

WORDS, COUNT = 40, 4000
torch.manual_seed(0)
model = LlamaCausalLM(LlamaConfig(
    hidden_width=32, intermediate_width=64, n_query_heads=4, n_key_value_heads=4,
    n_hidden_layers=2, n_pieces=WORDS, dtype=torch.float32, rotary_embedding_fraction=1.0)).eval()
with torch.no_grad():
    for parameter in model.parameters():
        parameter.copy_(1 if parameter.ndim == 1 else 0.2 * torch.randn_like(parameter))
prompt = torch.arange(1, 6).repeat(COUNT, 1)
mask = AttentionMask(torch.ones_like(prompt, dtype=torch.bool))
with torch.no_grad():
    logits = model(prompt[:1], AttentionMask(torch.ones(1, 5, dtype=torch.bool))).logits[:, -1]
values, order = logits[0].softmax(-1).sort(descending=True)
size = int((values.cumsum(-1) < 0.5).sum()) + 1
kept = set(order[:size].tolist())
assert 1 < size < 10


def show(name, drawn):
    outside = sum(token not in kept for token in drawn) / COUNT
    print(f"{name}: {len(set(drawn))} kinds, {outside:.4f}")
    return len(set(drawn)), outside


def sample(name, **settings):
    torch.manual_seed(1)
    config = SampleGeneratorConfig(eos_id=WORDS, max_generated_pieces=1, **settings)
    drawn = [tokens for _, tokens in Generator(model)(
        ids=prompt, attention_mask=mask, config=config)]
    drawn = torch.cat(drawn).flatten().tolist()
    assert len(drawn) == COUNT
    return show(name, drawn)


kinds, outside = sample("no setting")
assert kinds > 20 and abs(outside - values[size:].sum()) < 0.03
assert sample("top_p=0.5", top_p=0.5) == sample("top_p=0.1", top_p=0.1) == (kinds, outside)
assert sample(f"top_k={size}", top_k=size) == (size, 0)
by_hand = torch.zeros(WORDS)
by_hand[order[:size]] = values[:size]
drawn = torch.multinomial(by_hand, COUNT, replacement=True).tolist()
assert show("top_p=0.5 by hand", drawn) == (size, 0)

flat, deep = ((TopPTransform(0.5)(x.clone()) > -1e30).sum().item()
              for x in (logits, logits[:, None]))
print(f"tokens that TopPTransform(0.5) keeps of 1 x 40 logits: {flat}, of 1 x 1 x 40: {deep}")
assert flat == size and deep == WORDS
END
