#!/usr/bin/env bash
# Guess: ReFT of the adapters package (LoReft and the others) changes the hidden states of the first
# three tokens of a text, as its settings say (prefix_positions=3, suffix_positions=0), in training
# and in generate() alike. The key/value cache, used unless told otherwise, only saves time.
#
# adapters 1.3.0, transformers 4.57.6 (the version it asks for), torch 2.13.0: with the cache,
# generate() has the hidden states of every new token changed, too. A layer gets the newest token
# only, and ReFT takes the first three positions of what it gets for the first three of the text; it
# doesn't look at how much is in the cache. So what was learned for the beginning of a text, and in
# training touched nothing else, is applied again at each step, to tokens that it was never trained
# on. The text is that of another model than the one whose loss was measured. Nothing is said.
# use_cache=False gives the text of the trained model.
#
# Seen (a 2-layer GPT-2 with random weights, 8 prompts of 12 tokens, 20 new ones, greedy; how many
# of the new tokens are the likeliest one by a forward pass over the whole text before them; for how
# many positions a layer's hidden states are changed in all calls for one text):
#   no adapter, with cache: 160 of 160, 0 positions changed
#   no adapter, without cache: 160 of 160, 0 positions changed
#   LoReft, with cache: 63 of 160, 22 positions changed
#   LoReft, without cache: 160 of 160, 3 positions changed
#   NoReft, with cache: 86 of 160, 22 positions changed
#   NoReft, without cache: 160 of 160, 3 positions changed
#   DiReft, with cache: 88 of 160, 22 positions changed
#   DiReft, without cache: 160 of 160, 3 positions changed

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
from transformers import GPT2Config, GPT2LMHeadModel

PROMPT, NEW = 12, 20
configs = {"LoReft": adapters.LoReftConfig(r=2), "NoReft": adapters.NoReftConfig(r=2),
           "DiReft": adapters.DiReftConfig(r=2)}
torch.manual_seed(1)
ids = torch.randint(1, 100, (8, PROMPT))
ones = torch.ones_like(ids)
for name, config in {"no adapter": None, **configs}.items():
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(
        vocab_size=100, n_positions=64, n_embd=32, n_layer=2, n_head=4, initializer_range=0.3,
        bos_token_id=0, eos_token_id=None, pad_token_id=0)).eval()
    places = []
    if config is not None:
        assert (config.prefix_positions, config.suffix_positions) == (3, 0)
        adapters.init(model)
        model.add_adapter("r", config=config)
        model.set_active_adapters("r")
        for key, parameter in model.named_parameters():
            if "learned_source" in key:
                torch.nn.init.normal_(parameter, std=0.5)
        model.eval()
        model.transformer.h[0].reft_layer.refts["r"].register_forward_hook(
            lambda _, inputs, output: places.append((output != inputs[0]).any(-1)[0].sum().item()))
    for cache in (True, False):
        places.clear()
        text = model.generate(ids, attention_mask=ones, do_sample=False, max_new_tokens=NEW,
                              use_cache=cache)
        changed = sum(places) if cache else max(places, default=0)
        places.clear()
        with torch.no_grad():
            best = model(text).logits.argmax(-1)
        assert places == ([3] if config else [])
        hits = (best[:, PROMPT - 1:-1] == text[:, PROMPT:]).sum().item()
        print(f"{name}, {'with' if cache else 'without'} cache: {hits} of {8 * NEW}, "
              f"{changed} positions changed")
        if config is None or not cache:
            assert hits == 8 * NEW and changed == (3 if config else 0)
        else:
            assert hits < 6 * NEW and changed == 3 + NEW - 1
END
