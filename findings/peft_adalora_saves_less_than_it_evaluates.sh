#!/usr/bin/env bash
# Guess: an AdaLoRA adapter of PEFT's, saved in the middle of training and loaded again, is the
# model that was evaluated before saving, as with LoRA. AdaLoRA takes ranks away step by step until
# total_step - tfinal; what has been set to zero needn't be saved.
#
# peft 0.21.2, transformers 5.24.0, torch 2.13.0: not between two allocations. Each deltaT steps
# AdaLoRA zeroes the least important singular values, but leaves them trainable, so that they can
# come back, and the next step of the optimizer gives them new values, which count in training and
# in evaluation. save_pretrained() leaves out all that was zero at the last allocation, even if
# it isn't any longer, and loading makes layers of that smaller rank. So the saved model is another
# one than the one whose loss was measured: a checkpoint, best model or early stop from this
# phase, which is most of the training, is worse than it was. Nothing is said about it. If
# rank_pattern in the model's config is set to None before saving, all is saved, and the loaded
# model is the evaluated one.
#
# Seen (a small GPT-2; tinit=10, deltaT=10, tfinal=20 of 100 steps; the loss in evaluation after a
# step, of the saved adapter when loaded, when saved without rank_pattern, and of the model in which
# the singular values of the last allocation are zeroed again by hand):
#   9: 4.009, loaded 4.009, saved without rank_pattern 4.009, zeroed by hand 4.009
#   40 (just allocated): 2.825, loaded 2.825, saved without rank_pattern 2.825, zeroed by hand 2.825
#   41: 2.789, loaded 2.799, saved without rank_pattern 2.789, zeroed by hand 2.799
#   45: 2.635, loaded 2.675, saved without rank_pattern 2.635, zeroed by hand 2.675
#   49: 2.533, loaded 2.581, saved without rank_pattern 2.533, zeroed by hand 2.581
#   50 (just allocated): 2.738, loaded 2.738, saved without rank_pattern 2.738, zeroed by hand 2.738
#   70 (just allocated): 2.564, loaded 2.564, saved without rank_pattern 2.564, zeroed by hand 2.564
#   75: 2.334, loaded 2.474, saved without rank_pattern 2.334, zeroed by hand 2.474
#   79: 2.247, loaded 2.436, saved without rank_pattern 2.247, zeroed by hand 2.436
#   80 (just allocated): 2.450, loaded 2.450, saved without rank_pattern 2.450, zeroed by hand 2.450
#   99: 2.181, loaded 2.181, saved without rank_pattern 2.181, zeroed by hand 2.181

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0'
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'transformers==5.24.0' 'tokenizers==0.23.3' 'accelerate==1.15.0' 'safetensors==0.8.0' \
    'peft==0.21.2'
cd "$folder"

export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
"$folder/venv/bin/python" - >"$folder/out" 2>"$folder/log" <<'END' || { cat "$folder/log"; exit 1; }
import copy

import torch
from peft import AdaLoraConfig, PeftModel, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel

torch.manual_seed(0)
base = GPT2LMHeadModel(GPT2Config(
    vocab_size=50, n_positions=16, n_embd=32, n_layer=2, n_head=2, initializer_range=0.1,
    bos_token_id=0, eos_token_id=0))
text = (torch.arange(16) + torch.randint(50, (32, 1))) % 50
model = get_peft_model(copy.deepcopy(base), AdaLoraConfig(
    init_r=8, target_r=2, lora_alpha=32, tinit=10, tfinal=20, deltaT=10, total_step=100,
    target_modules=["c_attn", "c_proj", "c_fc"]))
config = model.peft_config["default"]


def evaluate(model):
    """Return the loss without dropout."""
    model.eval()
    with torch.no_grad():
        return model(input_ids=text, labels=text).loss.item()


def save_and_load(name):
    """Save the adapter, load it into the base model, and return the loss."""
    model.save_pretrained(name)
    return evaluate(PeftModel.from_pretrained(copy.deepcopy(base), name))


def zeroed():
    """Return the loss with the singular values zeroed that were zeroed last."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for name, value in other.base_model.model.named_parameters():
            if name in (config.rank_pattern or {}):
                value[~torch.tensor(config.rank_pattern[name])] = 0
    return evaluate(other)


optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
losses = {}
for step in range(100):
    model.train()
    model(input_ids=text, labels=text).loss.backward()
    optimizer.step()
    model.base_model.update_and_allocate(step)
    optimizer.zero_grad()
    if step in (9, 40, 41, 45, 49, 50, 70, 75, 79, 80, 99):
        pattern = config.rank_pattern
        loss, by_hand, loaded = evaluate(model), zeroed(), save_and_load(f"at{step}")
        config.rank_pattern = None
        whole = save_and_load(f"whole{step}")
        config.rank_pattern = pattern
        allocated = step < 20 or step > 79 or step % 10 == 0
        print(f"{step}{' (just allocated)' * (step % 10 == 0)}: {loss:.3f}, loaded {loaded:.3f}, "
              f"saved without rank_pattern {whole:.3f}, zeroed by hand {by_hand:.3f}")
        assert abs(whole - loss) < 1e-4 and abs(loaded - by_hand) < 1e-4
        assert abs(loaded - loss) < 1e-4 if allocated else loaded > loss + 0.003
END
cat "$folder/out"
