#!/usr/bin/env bash
# Guess: inseq's step score "perplexity" of a token is 1/p (the exponential of its cross-entropy):
# for a uniform model, the size of the vocabulary.
#
# inseq 0.7.1, transformers 5.24.0: it is 2 to the power of the cross-entropy, but the cross-entropy
# is torch's, in nats: p to the power of -0.69 in place of -1. A model that knows nothing about
# GPT-2's 50,257 tokens would have a perplexity of 1,813. Every value is too small, those of bad
# tokens by far more than those of good ones, so that no factor corrects it, and it can't be
# compared with a perplexity from anywhere else. The step score "crossentropy" is right, in nats,
# and its exp() is the perplexity. (For a single text both raise an error with GPT-2; two or more
# are taken.)
#
# Seen (a 2-layer GPT-2 with 96 tokens; perplexity of 3 tokens, and 1/p by hand):
#   an output of 0: 23.7 23.7 23.7, by hand 96.0 96.0 96.0
#   random weights: 5.9 4.4 6.3, by hand 13.1 8.6 14.1

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'transformers==5.24.0' 'tokenizers==0.23.3' 'captum==0.9.0' 'inseq==0.7.1'

cd "$folder"
export HF_HUB_OFFLINE=1
"$folder/venv/bin/python" - 2>"$folder/log" <<'END' || { cat "$folder/log"; exit 1; }
import inseq
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

letters = [chr(i) for i in range(33, 127)] + ["\u0120"]  # all printable ones, and the space
bytelevel = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
bytelevel.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
bytelevel.decoder = decoders.ByteLevel()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytelevel, bos_token="<|endoftext|>",
                                    eos_token="<|endoftext|>")
prompts = ["The cat sat on ", "The dog ran to "]  # of one length: nothing is padded
for label in ("an output of 0", "random weights"):
    torch.manual_seed(0)
    gpt2 = GPT2LMHeadModel(GPT2Config(
        vocab_size=96, n_positions=64, n_embd=32, n_layer=2, n_head=2, initializer_range=0.2,
        bos_token_id=95, eos_token_id=95)).eval()
    if label == "an output of 0":
        gpt2.lm_head.weight.data.zero_()
    model = inseq.load_model(gpt2, "saliency", tokenizer=tokenizer)
    result = model.attribute(
        prompts, step_scores=["perplexity", "crossentropy"], show_progress=False,
        pretty_progress=False, generation_args={"max_new_tokens": 3, "do_sample": False})[0]
    row = torch.tensor([tokenizer(prompts[0]).input_ids + [x.id for x in result.target][-3:]])
    with torch.no_grad():
        logprobs = gpt2(row).logits[0, -4:-1].log_softmax(-1)
    true = 1 / logprobs.exp().gather(1, row[0, -3:, None])[:, 0]
    seen = result.step_scores["perplexity"]
    print(f"{label}: {' '.join(f'{x:.1f}' for x in seen)}, "
          f"by hand {' '.join(f'{x:.1f}' for x in true)}")
    assert torch.allclose(result.step_scores["crossentropy"].exp(), true, rtol=1e-3)
    assert torch.allclose(seen, true ** 0.6931472, rtol=1e-3) and (seen < true * 0.6).all()
    assert label == "random weights" or (true - 96).abs().max() < 0.01
END
