#!/usr/bin/env bash
# Guess: TransformerLens, given a list of texts and asked for the loss, returns the mean over the
# tokens of the texts. The shorter ones are padded inside, on one side or the other, so that is for
# it to leave out.
#
# transformer-lens 4.3.0: with padding on the left it does. On the right, where GPT-2's tokenizer
# and so TransformerLens pads unless asked otherwise, padding counts like text: a text of 2 letters
# beside one of 25 has 23 more "tokens", each the guess that after <|endoftext|> comes another one.
# loss_per_token shows 0 for padding on the left, large numbers on the right. The mask of a batch is
# only made where attention needs one, which it doesn't with padding on the right, and the loss goes
# by that mask. So the loss of a batch depends on how long its longest text is, and what an
# intervention does to it may be what it does to padding. Passing an attention_mask, or
# padding_side="left", gives the mean over the texts.
#
# Seen (a 2-layer GPT-2 with random weights, texts of 25 and 2 letters):
#   one text at a time, mean over tokens: 8.2427
#   both, padding_side=left: 8.2427
#   both, padding_side=right, with a mask: 8.2427
#   both, padding_side=right: 10.0999
#   both: 10.0999
#   both by hand, padding counted: 10.0999

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'transformers==5.24.0' 'tokenizers==0.23.3' 'transformer-lens==4.3.0'

cd "$folder"
export HF_HUB_OFFLINE=1
"$folder/venv/bin/python" - 2>"$folder/log" <<'END' || { cat "$folder/log"; exit 1; }
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch.nn.functional import cross_entropy
from transformer_lens.model_bridge import TransformerBridge
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
names = [END_OF_TEXT, *sorted(pre_tokenizers.ByteLevel.alphabet())]
bytes_only = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[]))
bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
bytes_only.decoder = decoders.ByteLevel()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytes_only, bos_token=END_OF_TEXT,
                                    eos_token=END_OF_TEXT, pad_token=END_OF_TEXT)
torch.manual_seed(0)
model = GPT2LMHeadModel(GPT2Config(vocab_size=len(names), n_positions=64, n_embd=64, n_layer=2,
                                   n_head=4, bos_token_id=0, eos_token_id=0)).eval()
for parameter in model.parameters():
    if parameter.dim() == 2:
        torch.nn.init.normal_(parameter, std=0.3)
model.save_pretrained("model")
tokenizer.save_pretrained("model")
lens = TransformerBridge.boot_transformers("model", device="cpu", dtype=torch.float32).eval()

texts = ["Hello world, how are you?", "Hi"]
lengths = [1 + len(text) for text in texts]  # each begins with <|endoftext|>
ids = torch.zeros(2, max(lengths), dtype=torch.long)
mask = torch.zeros_like(ids)
for i, text in enumerate(texts):
    ids[i, 1:lengths[i]] = torch.tensor(tokenizer(text).input_ids)
    mask[i, :lengths[i]] = 1
assert torch.equal(lens.to_tokens(texts), ids)


@torch.no_grad()
def main():
    losses = [cross_entropy(model(row[None, :n]).logits[0, :-1], row[1:n], reduction="sum")
              for row, n in zip(ids, lengths)]
    right = sum(losses) / sum(n - 1 for n in lengths)
    counted = cross_entropy(model(ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    one = [lens(text, return_type="loss", loss_per_token=True).flatten() for text in texts]
    seen = {"one text at a time, mean over tokens": torch.cat(one).mean(),
            "both, padding_side=left": lens(texts, return_type="loss", padding_side="left"),
            "both, padding_side=right, with a mask": lens(
                texts, return_type="loss", padding_side="right", attention_mask=mask),
            "both, padding_side=right": lens(texts, return_type="loss", padding_side="right"),
            "both": lens(texts, return_type="loss"),
            "both by hand, padding counted": counted}
    for name, loss in seen.items():
        print(f"{name}: {loss:.4f}")
        wrong = name in ("both, padding_side=right", "both", "both by hand, padding counted")
        assert abs(loss - (counted if wrong else right)) < 1e-3
    assert counted - right > 0.5
    left = lens(texts, return_type="loss", padding_side="left", loss_per_token=True)
    padded = lens(texts, return_type="loss", padding_side="right", loss_per_token=True)
    assert (left[1, :-2] == 0).all() and (padded[1, 2:] > 1).all()


main()
END
