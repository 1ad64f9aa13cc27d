#!/usr/bin/env bash
# Guess: mergekit-extract-lora with a rank that is large enough gives an adapter which, on the base
# model with PEFT, is the fine-tuned model but for rounding, biases and norms included: it writes
# them all into the adapter's file, and says of none that it's left out.
#
# mergekit 0.1.5, peft 0.21.2, transformers 5.24.0, torch 2.13.0: the biases of linear layers stay
# those of the base. Their difference is in the file, as lora_B.bias, which is PEFT's name for it
# (its setting lora_bias was made for extracted adapters). But the adapter_config.json that mergekit
# writes doesn't have "lora_bias": true, so PEFT makes no such parameters, and drops what is in the
# file: it warns of keys that a file lacks, not of those left over. mergekit's own base+adapter
# loads the adapter with PEFT and loses them in the same way. Qwen2 and Qwen2.5 have such biases in
# q_proj, k_proj and v_proj; a model without any (Llama) is right. With that line added by hand the
# logits are the fine-tuned model's, though PEFT can't merge it then, as Qwen2's other layers have
# no bias. (GPT-2 ends in an error: mergekit-extract-lora doesn't know its Conv1D.)
#
# Seen (a small Qwen2 and one that differs from it in all weights; largest difference of a logit
# from the second's):
#   base: 0.7740
#   base with the adapter: 0.0957
#   merge of base+adapter by mergekit: 0.0957
#   base with the adapter, lora_bias added: 0.0000
#   tensors lora_B.bias in the file: 6; wrong with the adapter: self_attn.k_proj.bias
#     self_attn.q_proj.bias self_attn.v_proj.bias

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'transformers==5.24.0' 'tokenizers==0.23.3' 'accelerate==1.15.0' 'safetensors==0.8.0' \
    'peft==0.21.2' 'mergekit==0.1.5'

cd "$folder"
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
cat >make.py <<'END'
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

torch.manual_seed(0)
model = Qwen2ForCausalLM(Qwen2Config(
    num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, hidden_size=32,
    intermediate_size=64, vocab_size=64, max_position_embeddings=32, tie_word_embeddings=False,
    bos_token_id=0, eos_token_id=0))
model.save_pretrained("base")
torch.manual_seed(1)
with torch.no_grad():
    for parameter in model.parameters():
        parameter.add_(0.02 * torch.randn_like(parameter))
model.save_pretrained("tuned")
END
cat >merge.yaml <<END
merge_method: passthrough
dtype: float32
models: [{model: $folder/base+$folder/adapter}]
END
{
    venv/bin/python make.py
    venv/bin/mergekit-extract-lora --model "$folder/tuned" --base-model "$folder/base" \
        --out-path "$folder/adapter" --max-rank 64
    venv/bin/mergekit-yaml merge.yaml merged --lora-merge-cache cache
} >log 2>&1 || { cat log; exit 1; }
if grep -i bias log; then exit 1; fi

venv/bin/python - 2>log <<'END' || { cat log; exit 1; }
import json
import shutil

import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

tuned = AutoModelForCausalLM.from_pretrained("tuned").eval()
text = torch.arange(1, 31).view(1, -1)


def compare(name, model):
    with torch.no_grad():
        logits = (model.eval()(text).logits - tuned(text).logits).abs().max().item()
    print(f"{name}: {logits:.4f}")
    return logits


def with_adapter(folder):
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("base"), folder)


def biases(names):
    return sorted(name for name in names if "lora_B" in name and name.endswith("bias"))


before = compare("base", AutoModelForCausalLM.from_pretrained("base"))
model = with_adapter("adapter")
after = compare("base with the adapter", model)
assert biases(model.state_dict()) == []
model = model.merge_and_unload().state_dict()
wrong = [key for key, value in tuned.state_dict().items()
         if not torch.allclose(model[key], value, atol=1e-5)]
merged = compare("merge of base+adapter by mergekit",
                 AutoModelForCausalLM.from_pretrained("merged"))

shutil.copytree("adapter", "corrected")
with open("corrected/adapter_config.json") as file:
    config = json.load(file)
assert "lora_bias" not in config
with open("corrected/adapter_config.json", "w") as file:
    json.dump({**config, "lora_bias": True}, file)
corrected = compare("base with the adapter, lora_bias added", with_adapter("corrected"))

saved = biases(load_file("adapter/adapter_model.safetensors"))
print(f"tensors lora_B.bias in the file: {len(saved)}; wrong with the adapter:", *sorted(
    {key.split(".", 3)[-1] for key in wrong}))
assert len(saved) == len(wrong) == 6 and all(key.endswith("_proj.bias") for key in wrong)
assert after > 0.05 and abs(merged - after) < 1e-4 and before > 0.3 and corrected < 1e-4
END
