#!/usr/bin/env bash
# Guess: TRL's GRPOTrainer, and its RLOOTrainer, train a GPT-2 on the log-probabilities that it
# drew the completions with (before the first update they are the same numbers), whatever other
# prompts are in the batch. Prompts are padded on the left, and the attention mask says where.
#
# trl 1.16.0, transformers 5.24.0: only for the longest prompt of each batch. generate() makes
# position_ids from the mask, so that the first token of every prompt is at position 0. The forward
# pass for training gets the mask but no position_ids, and GPT-2 then counts the padding, too:
# after 34 tokens of padding a prompt begins at position 34. Rotary positions, where only distances
# count, don't notice. With GPT-2's learned ones the completion is drawn by one function and the
# gradient is that of another. The ratio of new to old probabilities doesn't show it, since both
# are computed in that way, nor does the KL divergence from the reference model. (An issue of TRL's
# reports the same of Online DPO.) Prompts of one length, or a single one in each batch, are
# trained right.
#
# Seen (a 2-layer GPT-2 with random weights, prompts of 39 and 5 tokens; the largest difference of
# a completion token's log-probability from that without the other prompt, and how far the gradient
# of the completion's log-probability is off, relative to its norm):
#   generate(), no padding: 0.0000
#   generate(), padding 34: 0.0000
#   GRPOTrainer, padding 34: 0.3774, gradient off by 26 %
#   GRPOTrainer, no padding: 0.0000
#   RLOOTrainer, padding 34: 0.3774, gradient off by 26 %
#   by hand with position_ids, padding 34: 0.0000, gradient off by 0 %
#   RLOOTrainer, no padding: 0.0000

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'transformers==5.24.0' 'tokenizers==0.23.3' 'accelerate==1.15.0' 'datasets==5.2.0' \
    'trl==1.16.0'

cd "$folder"
"$folder/venv/bin/python" - 2>"$folder/log" <<'END' || { cat "$folder/log"; exit 1; }
import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, ProgressCallback
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

END_OF_TEXT = "<|endoftext|>"
names = [END_OF_TEXT, *sorted(pre_tokenizers.ByteLevel.alphabet())]
bytes_only = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[]))
bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
bytes_only.decoder = decoders.ByteLevel()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytes_only, bos_token=END_OF_TEXT,
                                    eos_token=END_OF_TEXT, pad_token=END_OF_TEXT,
                                    unk_token=END_OF_TEXT, padding_side="left")
prompts = ["Shall I compare thee to a summer's day?", "To be"]


def make_model():
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(
        vocab_size=len(names), n_positions=64, n_embd=64, n_layer=2, n_head=4, bos_token_id=0,
        eos_token_id=0, pad_token_id=0, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def log_probs(model, ids, new, **arguments):
    """Return the log-probabilities of the last new tokens of one row of ids."""
    logits = model(ids[None], **arguments).logits[0, -new - 1:-1]
    return logits.log_softmax(-1).gather(-1, ids[-new:, None])[:, 0]


def gradient(model, values):
    found = torch.autograd.grad(values.sum(), list(model.parameters()), allow_unused=True,
                                retain_graph=True)
    return torch.cat([g.flatten() for g in found if g is not None])


def compare(name, model, padding, values, alone, wrong):
    text = f"{name}, " + (f"padding {padding}" if padding else "no padding")
    difference = (values - alone).abs().max().item()
    text += f": {difference:.4f}"
    if values.requires_grad and padding:
        own = gradient(model, alone)
        error = ((gradient(model, values) - own).norm() / own.norm()).item()
        text += f", gradient off by {100 * error:.0f} %"
        assert error > 0.1 if wrong else error < 1e-3
    print(text)
    assert difference > 0.1 if wrong else difference < 1e-4


model = make_model().eval()
batch = tokenizer(prompts, padding=True, return_tensors="pt")
result = model.generate(**batch, max_new_tokens=8, min_new_tokens=8, do_sample=True, top_k=0,
                        output_logits=True, return_dict_in_generate=True)
drawn = torch.stack(result.logits, dim=1).log_softmax(-1)
for row, (ids, mask) in enumerate(zip(result.sequences, batch["attention_mask"])):
    padding = (mask == 0).sum().item()
    values = drawn[row].gather(-1, ids[-8:, None])[:, 0]
    # min_new_tokens rules out the end of the text while it draws; output_logits are before that.
    compare("generate()", model, padding, values, log_probs(model, ids[padding:], 8), wrong=False)


def observed(trainer_class):
    class Observed(trainer_class):
        def _get_per_token_logps_and_entropies(self, model, input_ids, attention_mask,
                                               logits_to_keep, *rest, **named):
            result = super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, *rest, **named)
            if torch.is_grad_enabled() and not checked:
                check(model, input_ids, attention_mask, logits_to_keep, result[0])
            return result
    return Observed


def check(model, input_ids, attention_mask, new, values):
    for ids, mask, row in zip(input_ids, attention_mask, values):
        padding = (mask == 0).nonzero().numel() - (mask[-new:] == 0).sum().item()
        if padding in checked:
            continue
        checked.add(padding)
        count = mask[-new:].sum().item()
        ids = ids[:len(ids) - new + count]
        mask = mask[:len(ids)]
        alone = log_probs(model, ids[padding:], count)
        compare(name, model, padding, row[:count], alone, wrong=padding > 0)
        if padding and trainer_class is RLOOTrainer:
            positions = (mask.cumsum(0) - 1).clamp(min=0)
            values = log_probs(model, ids, count, attention_mask=mask[None],
                               position_ids=positions[None])
            compare("by hand with position_ids", model, padding, values, alone, wrong=False)


for config_class, trainer_class in ((GRPOConfig, GRPOTrainer), (RLOOConfig, RLOOTrainer)):
    name = trainer_class.__name__
    checked = set()
    config = config_class(output_dir="out", beta=0.0, use_cpu=True, bf16=False, report_to=[],
                          max_steps=1, save_strategy="no", num_generations=2,
                          max_completion_length=8, per_device_train_batch_size=4,
                          activation_checkpointing=False)
    trainer = observed(trainer_class)(
        model=make_model(), args=config, processing_class=tokenizer,
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        reward_funcs=lambda completions, **_: [float(len(set(text))) for text in completions])
    trainer.remove_callback(ProgressCallback)
    trainer.train()
    assert checked == {0, 34}
END
