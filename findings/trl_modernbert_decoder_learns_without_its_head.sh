#!/usr/bin/env bash
# Guess: TRL's SFTTrainer trains what the model computes: the loss that it reports is that of
# model(input_ids, labels=labels), for any causal language model of transformers. It doesn't build
# all logits at once, which saves memory, but that is only another order of the same sums.
#
# trl 1.16.0, transformers 5.24.0, torch 2.13.0: not for a model that computes anything between its
# last hidden states and its output matrix. The trainer takes the hidden states of base_model and
# multiplies them by the weight of get_output_embeddings(). It knows the scales and the caps of some
# configurations, and nothing else. ModernBertDecoderForCausalLM (the Ettin decoders) has a dense
# layer, GELU and a norm there. They are left out: their weights never get a gradient, and the
# output matrix learns to do without them. The loss falls and evaluate() agrees with it, but
# generate(), which has the layers, talks nonsense. It's the same for BERT and its relatives with
# is_decoder=True, and for the cap of RecurrentGemma, as its name is logits_soft_cap. DPO, KTO, GRPO
# and RLOO call the same function (by the source). Nothing is said about it. With a
# compute_loss_func of one's own, which gets the model's true outputs, the training is right, though
# the entropy and accuracy logged beside it are those without the layers.
#
# Seen (small models that learn to count; loss by evaluate() and by the model; numbers that the
# model predicts right; largest change of a weight in the dense layer and the norm):
#   Llama, SFTTrainer: evaluate() 0.013, model 0.013, right 100%
#   ModernBertDecoder, SFTTrainer: evaluate() 0.005, model 4.746, right 5%, change 0.0000
#   ModernBertDecoder, its own loss: evaluate() 0.006, model 0.006, right 100%, change 0.3756
#   without training, by TRL and by the model (RecurrentGemma with a cap of 0.1):
#     LlamaForCausalLM 3.907 3.907
#     ModernBertDecoderForCausalLM 3.903 3.907
#     BertLMHeadModel 3.928 3.929
#     RecurrentGemmaForCausalLM 3.991 3.919

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0'
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'transformers==5.24.0' 'tokenizers==0.23.3' 'accelerate==1.15.0' 'datasets==5.2.0' \
    'trl==1.16.0'
cd "$folder"

export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
"$folder/venv/bin/python" - >"$folder/out" 2>&1 <<'END' || { cat "$folder/out"; exit 1; }
import copy

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForCausalLM, BertConfig, LlamaConfig, ModernBertDecoderConfig,
    PreTrainedTokenizerFast, RecurrentGemmaConfig)
from trl import SFTConfig, SFTTrainer
from trl.trainer.utils import add_fused_lm_head

torch.manual_seed(0)
text = (torch.arange(12) + torch.randint(50, (256, 1))) % 50
data = Dataset.from_dict({"input_ids": text.tolist()})
words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(50)}, unk_token="w1"))
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", eos_token="w0")


def build(config, **settings):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config(
        vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=3,
        num_attention_heads=2, pad_token_id=0, bos_token_id=0, eos_token_id=0, **settings))


def decoder():
    return build(ModernBertDecoderConfig, cls_token_id=0, sep_token_id=0)


def own_loss(outputs, labels, num_items_in_batch=None):
    return cross_entropy(outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


def train(name, model, **settings):
    """Train with SFTTrainer; compare its loss with the model's own."""
    before = copy.deepcopy(model)
    trainer = SFTTrainer(model, SFTConfig(
        "result", max_steps=200, per_device_train_batch_size=32, learning_rate=5e-3, bf16=False,
        lr_scheduler_type="constant", report_to="none", save_strategy="no", use_cpu=True,
        gradient_checkpointing=False, disable_tqdm=True, logging_steps=200), train_dataset=data,
        eval_dataset=data, processing_class=tokenizer, **settings)
    trainer.train()
    reported = trainer.evaluate()["eval_loss"]
    with torch.no_grad():
        outputs = model.eval()(input_ids=text, labels=text)
    right = (outputs.logits[:, :-1].argmax(-1) == text[:, 1:]).float().mean().item()
    change = [(new - old).abs().max().item() for (key, new), old in zip(
        model.named_parameters(), before.parameters()) if key.startswith("lm_head.")]
    print(f"= {name}: evaluate() {reported:.3f}, model {outputs.loss.item():.3f}, right {right:.0%}"
          + (f", change {max(change):.4f}" if name[0] == "M" else ""))
    assert reported < 0.05
    return outputs.loss.item(), right, max(change)


loss, right, _ = train("Llama, SFTTrainer", build(LlamaConfig))
assert loss < 0.05 and right > 0.99
loss, right, change = train("ModernBertDecoder, SFTTrainer", decoder())
assert loss > 3 and right < 0.1 and change == 0
loss, right, change = train(
    "ModernBertDecoder, its own loss", decoder(), compute_loss_func=own_loss)
assert loss < 0.05 and right > 0.99 and change > 0.1

print("= without training, by TRL and by the model (RecurrentGemma with a cap of 0.1):")
for model in (build(LlamaConfig), decoder(), build(BertConfig, is_decoder=True),
              build(RecurrentGemmaConfig, num_key_value_heads=1, logits_soft_cap=0.1)):
    with torch.no_grad():
        loss = model.eval()(input_ids=text, labels=text, use_cache=False).loss.item()
        add_fused_lm_head(model)
        fused = model(input_ids=text, labels=text, fused_lm_head=True).loss.item()
    name = type(model).__name__
    print(f"=   {name} {fused:.3f} {loss:.3f}")
    assert (abs(fused - loss) < 1e-4) == name.startswith("Llama")
END
sed -n 's/^= //p' "$folder/out"
