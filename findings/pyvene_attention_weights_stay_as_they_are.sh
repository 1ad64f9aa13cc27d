#!/usr/bin/env bash
# Guess: an intervention of pyvene on a component that it lists for GPT-2 is carried out:
# "attention_weight" (setting the weights of a head to 0, taking them from another text, or passing
# them to a function) changes the logits as the same change by hand does.
#
# pyvene 0.1.8, transformers 5.24.0 (it asks for 4.45.1 or later), torch 2.13.0: nothing happens.
# The component stands for the input of the dropout after the softmax, h[i].attn.attn_dropout. GPT-2
# still has that module, but attention of the default kind (sdpa), and "eager", too, use F.dropout
# and never call it, so the hook on it doesn't run. pyvene doesn't notice that a hook
# hasn't run: the outputs are those of the model as it was, for ZeroIntervention,
# VanillaIntervention and functions alike. "This head's attention pattern has no influence", for
# all heads of all layers, is what one reads from it. (CollectIntervention does fail, with a
# KeyError.) It works where GPT-2 calls the module: "eager" with reorder_and_upcast_attn=True. The
# other components of GPT-2 are right.
#
# Seen (a 3-layer GPT-2 with random weights; largest change of a logit by a function that sets the
# weights of one head of layer 1 to 0, and by ZeroIntervention for all heads):
#   default: function 0.000 in 0 calls (by hand 1.256), ZeroIntervention 0.000 (by hand 3.143)
#   eager: function 0.000 in 0 calls (by hand 1.256), ZeroIntervention 0.000 (by hand 3.143)
#   eager, upcast: function 1.256 in 1 calls (by hand 1.256), ZeroIntervention 3.143 (by hand 3.143)

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0'
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'transformers==5.24.0' 'tokenizers==0.23.3' 'accelerate==1.15.0' 'datasets==5.2.0' \
    'pyvene==0.1.8'
cd "$folder"

export HF_HUB_OFFLINE=1
"$folder/venv/bin/python" - >"$folder/out" 2>&1 <<'END' || { cat "$folder/out"; exit 1; }
import pyvene
import torch
from transformers import GPT2Config, GPT2LMHeadModel

LAYER, HEAD, WIDTH, HEADS = 1, 1, 64, 4


def largest(model, text, component, intervention):
    """Return the largest change of a logit by an intervention on a component."""
    with torch.no_grad():
        before = model(text).logits
    intervenable = pyvene.IntervenableModel({
        "layer": LAYER, "component": component, **intervention}, model=model)
    _, after = intervenable({"input_ids": text})
    return (after.logits - before).abs().max().item()


def by_hand(model, text, heads):
    """Return the largest change of a logit if some heads read nothing."""
    def clear(module, inputs):
        hidden = inputs[0].clone()
        hidden.unflatten(-1, (HEADS, -1))[:, :, heads] = 0
        return (hidden,)

    with torch.no_grad():
        before = model(text).logits
        handle = model.transformer.h[LAYER].attn.c_proj.register_forward_pre_hook(clear)
        after = model(text).logits
        handle.remove()
    return (after - before).abs().max().item()


for name, attention, upcast in (("default", None, False), ("eager", "eager", False),
                                ("eager, upcast", "eager", True)):
    torch.manual_seed(0)
    settings = {} if attention is None else {"attn_implementation": attention}
    model = GPT2LMHeadModel(GPT2Config(
        vocab_size=50, n_positions=32, n_embd=WIDTH, n_layer=3, n_head=HEADS,
        initializer_range=0.2, bos_token_id=0, eos_token_id=0,
        reorder_and_upcast_attn=upcast, **settings)).eval()
    text = torch.randint(1, 50, (2, 7))
    seen = []

    def clear_head(base, source):
        """Set the attention weights of one head to 0."""
        seen.append(tuple(base.shape))
        weights = base.clone()
        weights[:, HEAD] = 0
        return weights

    one = largest(model, text, "attention_weight", {"intervention": clear_head})
    every = largest(model, text, "attention_weight", {
        "intervention_type": pyvene.ZeroIntervention})
    output = largest(model, text, "attention_output", {
        "intervention_type": pyvene.ZeroIntervention})
    one_by_hand = by_hand(model, text, [HEAD])
    every_by_hand = by_hand(model, text, list(range(HEADS)))
    print(f"{name}: function {one:.3f} in {len(seen)} calls (by hand {one_by_hand:.3f}), "
          f"ZeroIntervention {every:.3f} (by hand {every_by_hand:.3f})")
    assert one_by_hand > 0.1 and every_by_hand > 0.1 and output > 0.1
    if upcast:
        assert seen == [(2, HEADS, 7, 7)]
        assert abs(one - one_by_hand) < 1e-4 and abs(every - every_by_hand) < 1e-4
    else:
        assert one == every == 0 and not seen
END
grep -E '^(default|eager)' "$folder/out"
