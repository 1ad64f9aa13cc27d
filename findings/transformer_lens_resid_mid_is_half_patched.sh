#!/usr/bin/env bash
# Guess: hook_resid_mid of a block is the residual stream between attention and MLP. All that comes
# after reads it, and nothing but it: when a run on one text gets the other text's hook_resid_mid at
# all positions, the logits are the other text's, as for hook_resid_pre and hook_resid_post.
#
# transformer-lens 4.3.0 (3.9.0 too), torch 2.13.0: they aren't. In a TransformerBridge (in 4.0 the
# only kind of model left) hook_resid_mid of a GPT-2 or Llama is another name for the input of the
# second norm, ln2.hook_in. What is read there is the stream; what a hook writes there reaches the
# MLP only, and the block then adds the old stream to the MLP's output. So patching, ablation and
# steering at that place do a part of what they say, with enable_compatibility_mode() too, and
# get_act_patch_resid_mid() finds that the last layer's stream at the last position decides only
# some of the prediction. A gradient taken there misses the way past the MLP. In HookedTransformer
# the hook changed both ways; for the MLP's alone, hook_mlp_in was added. Around it: a hook on
# hook_attn_out that returns the wanted stream less hook_resid_pre.
#
# Seen (two small random models and two texts; the share of the way from the one text's prediction
# to the other's that is gone when the activation is taken over, in each layer):
#   GPT-2, resid_pre: 1.00 1.00
#   GPT-2, resid_mid: 0.66 0.44
#   GPT-2, resid_post: 1.00 1.00
#   GPT-2, resid_mid by way of attn_out: 1.00 1.00
#   GPT-2, get_act_patch_resid_mid(), last position: 0.77 0.44
#   Llama, resid_pre: 1.00 1.00
#   Llama, resid_mid: 0.76 0.70
#   Llama, resid_post: 1.00 1.00
#   Llama, resid_mid by way of attn_out: 1.00 1.00
#   Llama, get_act_patch_resid_mid(), last position: 0.95 0.70

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6'
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'transformers==5.24.0' \
    'tokenizers==0.23.3' 'transformer-lens==4.3.0'

cd "$folder"
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
cat >check.py <<'END'
import torch
from tokenizers import Tokenizer, models
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.patching import get_act_patch_resid_mid
from transformers import (GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM,
                          PreTrainedTokenizerFast)

words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(60)}, unk_token="w0"))
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w0", bos_token="w0")
sizes = {"vocab_size": 60, "initializer_range": 0.2, "bos_token_id": 0, "eos_token_id": 0}
made = {
    "GPT-2": lambda: GPT2LMHeadModel(GPT2Config(
        n_positions=32, n_embd=32, n_layer=2, n_head=2, **sizes)),
    "Llama": lambda: LlamaForCausalLM(LlamaConfig(
        hidden_size=32, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=32, **sizes)),
}
one, other = torch.tensor([[7, 31, 4, 18, 52, 9]]), torch.tensor([[7, 40, 4, 33, 26, 11]])

for name, make in made.items():
    torch.manual_seed(0)
    model = make().eval()
    model.save_pretrained(name)
    tokenizer.save_pretrained(name)
    bridge = TransformerBridge.boot_transformers(name).eval()
    bridge.enable_compatibility_mode()
    with torch.no_grad():
        (start, mine), (goal, theirs) = bridge.run_with_cache(one), bridge.run_with_cache(other)
    token = (goal - start)[0, -1].argmax()
    start, goal = start[0, -1, token].item(), goal[0, -1, token].item()

    def share(logits):
        return ((logits[0, -1, token] - start) / (goal - start)).item()

    def patched(place, value):
        """Both layers' shares when their hook of that place gives value(layer)."""
        with torch.no_grad():
            return [share(bridge.run_with_hooks(one, fwd_hooks=[(
                f"blocks.{layer}.hook_{place}", lambda old, hook, layer=layer: value(layer))]))
                for layer in range(2)]

    shares = {place: patched(place, lambda layer, place=place: theirs[place, layer])
              for place in ("resid_pre", "resid_mid", "resid_post")}
    shares["resid_mid by way of attn_out"] = patched(
        "attn_out", lambda layer: theirs["resid_mid", layer] - mine["resid_pre", layer])
    tool = get_act_patch_resid_mid(bridge, one, theirs, share)
    shares["get_act_patch_resid_mid(), last position"] = tool[:, -1].tolist()

    # By hand: what the stream is, and what the last layer makes of a patch that misses it.
    stream = mine["resid_pre", 1] + mine["attn_out", 1]
    torch.testing.assert_close(stream, mine["resid_mid", 1])
    with torch.no_grad():
        block = bridge.blocks[1]
        half = bridge.ln_final(stream + block.mlp(block.ln2(theirs["resid_mid", 1])))
        half = share(bridge.unembed(half))
    for place, seen in shares.items():
        print(f"{name}, {place}:", *(f"{value:.2f}" for value in seen))
    assert all(abs(value - 1) < 1e-3 for place in shares if not place.endswith("mid")
               and "last" not in place for value in shares[place])
    assert abs(shares["resid_mid"][1] - half) < 1e-3 and abs(half - 1) > 0.2
    assert abs(tool[1, -1] - half) < 1e-3 and abs(shares["resid_mid"][0] - 1) > 0.2
END
venv/bin/python check.py 2>log || { cat log; exit 1; }
