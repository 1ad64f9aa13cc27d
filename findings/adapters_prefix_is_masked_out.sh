#!/usr/bin/env bash
# Guess: prefix tuning of the adapters package puts keys and values of its own before those of the
# text, for GPT-2 as for others: all tokens see the prefix and, as ever, all up to themselves. If
# a batch is padded, and which of the implementations of attention computes it, is no matter.
#
# adapters 1.3.0, transformers 4.57.6 (the version it asks for), torch 2.13.0: that is true with
# attn_implementation="eager" only. With "sdpa", which is the default, a batch with padding is
# computed as if there were no prefix: it is put into the mask as "not masked", 0, as in a mask of
# numbers that are added, but the mask is boolean there and False means masked. The prefix has no
# gradient, either, so that training on padded batches leaves it as it was drawn. Without padding
# there is no mask, and is_causal=True is used with more keys than queries: then the first query
# sees the first key alone, the second two, and so on. With a prefix of n keys, each token sees the
# prefix and only those text tokens that are at least n positions back, not even itself. In
# generate() the steps of one token, which need no mask, see everything again, so they compute
# something different from what training did. Nothing fails, nothing warns.
#
# Seen (a 2-layer GPT-2 with random weights, 12 tokens, a prefix of 4; largest error of the logits
# against GPT-2 with the prefix as its key/value cache, and against GPT-2 without prefix; size of
# the prefix's gradient; then which tokens' logits change when token 5 does):
#   eager, no padding: 0.00, 8.52, gradient 0.144
#   eager, padding: 0.00, 8.52, gradient 0.144
#     token 5 changes the logits of 5 6 7 8 9 10 11
#   default, no padding: 7.09, 6.84, gradient 0.211
#   default, padding: 8.52, 0.00, gradient 0.000
#     token 5 changes the logits of 5 9 10 11

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'transformers==4.57.6' 'tokenizers==0.22.2' 'adapters==1.3.0'

cd "$folder"
export HF_HUB_OFFLINE=1
"$folder/venv/bin/python" - 2>"$folder/log" <<'END' || { cat "$folder/log"; exit 1; }
import adapters
import torch
from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel

LENGTH, PREFIX, PADDING = 12, 4, 2


def make(attention):
    """Return a GPT-2 with a prefix; only the kind of attention differs from call to call."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(
        vocab_size=100, n_positions=64, n_embd=32, n_layer=2, n_head=4, initializer_range=0.3,
        bos_token_id=0, eos_token_id=None, pad_token_id=0, **attention))
    adapters.init(model)
    model.add_adapter("p", config=adapters.PrefixTuningConfig(prefix_length=PREFIX, flat=True))
    model.train_adapter("p")
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert "prefix_tunings" in name
            torch.nn.init.normal_(parameter)
    return model.eval()


torch.manual_seed(1)
ids = torch.randint(1, 100, (8, LENGTH))
changed = ids.clone()
changed[:, 5] = ids[:, 5] % 99 + 1
padding = torch.zeros(8, PADDING, dtype=torch.long)
padded = torch.cat([padding, ids], 1)
mask = torch.cat([padding, torch.ones_like(ids)], 1)
positions = (mask.cumsum(1) - 1).clamp(min=0)


@torch.no_grad()
def by_hand(model):
    """Return the logits of a plain GPT-2 that has the prefix in its cache, and without prefix."""
    cache = DynamicCache()
    for layer, states in enumerate(model.transformer.prefix_tuning(ids)["p"]["self_prefix"]):
        cache.update(*states, layer)
    plain = GPT2LMHeadModel(model.config).eval()
    weights = model.state_dict()
    plain.load_state_dict({name: weights[name] for name in plain.state_dict()})
    with_prefix = plain(ids, past_key_values=cache, position_ids=torch.arange(LENGTH)[None],
                        attention_mask=torch.ones(8, PREFIX + LENGTH)).logits
    return with_prefix, plain(ids).logits


for attention in ({"attn_implementation": "eager"}, {}):
    model = make(attention)
    right, without = by_hand(model)
    seen = {"no padding": model(ids).logits,
            "padding": model(padded, attention_mask=mask,
                             position_ids=positions).logits[:, PADDING:]}
    for batch, logits in seen.items():
        model.zero_grad()
        logits.log_softmax(-1).gather(-1, ids[..., None]).mean().backward()
        size = sum(p.grad.norm().item() for p in model.parameters() if p.grad is not None)
        errors = [(logits - other).abs().max().item() for other in (right, without)]
        print(f"{attention.get('attn_implementation', 'default')}, {batch}: {errors[0]:.2f}, "
              f"{errors[1]:.2f}, gradient {size:.3f}")
        if attention:
            assert errors[0] < 1e-3 < 1 < errors[1] and size > 0.01
        elif batch == "padding":
            assert errors[1] < 1e-3 < 1 < errors[0] and size == 0
        else:
            assert min(errors) > 1 and size > 0.01
    with torch.no_grad():
        moved = (model(changed).logits - model(ids).logits).abs().amax((0, 2)) > 1e-3
    moved = moved.nonzero().flatten().tolist()
    print("  token 5 changes the logits of", *moved)
    assert moved == [i for i in range(5, LENGTH) if attention or i == 5 or i >= 5 + PREFIX]
END
