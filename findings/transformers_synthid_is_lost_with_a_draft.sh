#!/usr/bin/env bash
# Guess: a text that transformers' generate() samples with SynthID (watermarking_config of the class
# SynthIDTextWatermarkingConfig) bears the watermark, also if a draft model or prompt lookup makes
# it faster, which changes no probability, or if it's sampled with beams: its tokens' g-values,
# from compute_g_values(), have a mean well above 1/2, as without these. So it is with the other
# watermark of transformers (WatermarkingConfig), whose green tokens are found in all cases.
#
# transformers 5.24.0, torch 2.13.0: with a draft model nothing is left of it, and the more beams
# there are, the less. The processor doesn't look at the tokens that it's given, as others do, but
# keeps the last four itself, row by row: at each call it adds the newest token of each row. With a
# draft it's called for several places at once, and for tokens that are rejected later; they stay in
# its memory, which is never set back. With beams a row goes on from another row's text, but the
# memory's rows aren't put into the same order. So the g-values that raise or lower a token's
# probability are those of a context that isn't in the text; a detector finds other ones, as of any
# text. Nothing warns of it. The same computation with the last four tokens of each row taken from
# the text, passed as a logits_processor, is found in all cases.
#
# Seen (a small GPT-2 with random weights; mean of g-values, 0.5 without watermark: with SynthID,
# with the same computed from the text; and the green tokens' share, 0.25 without watermark):
#   plain: SynthID 0.738, from the text 0.740, green 0.89
#   prompt lookup: SynthID 0.606, from the text 0.727, green 0.88
#   draft model: SynthID 0.489, from the text 0.742, green 0.88
#   2 beams: SynthID 0.637, from the text 0.831, green 1.00
#   4 beams: SynthID 0.599, from the text 0.839, green 1.00
#   no watermark: 0.526

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6'
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'transformers==5.24.0' 'tokenizers==0.23.3'
cd "$folder"

export HF_HUB_OFFLINE=1
"$folder/venv/bin/python" - >"$folder/out" 2>&1 <<'END' || { cat "$folder/out"; exit 1; }
import torch
from transformers import (GPT2Config, GPT2LMHeadModel, LogitsProcessor,
                          SynthIDTextWatermarkingConfig, WatermarkDetector, WatermarkingConfig)

VOCAB, PROMPT, NGRAM = 200, 7, 5

torch.set_num_threads(1)
torch.manual_seed(0)
model = GPT2LMHeadModel(GPT2Config(
    vocab_size=VOCAB, n_positions=128, n_embd=32, n_layer=2, n_head=2, initializer_range=0.2,
    bos_token_id=0, eos_token_id=0, pad_token_id=0)).eval()
model.generation_config.eos_token_id = None
prompts = torch.randint(1, VOCAB, (4, PROMPT))
synthid = SynthIDTextWatermarkingConfig(keys=[654, 400, 836, 123, 340, 443], ngram_len=NGRAM)
green = WatermarkingConfig(bias=3.0)
reader = synthid.construct_processor(VOCAB, "cpu")
detector = WatermarkDetector(model.config, "cpu", green)


class FromText(LogitsProcessor):
    """SynthID with the last tokens of each row of the text as context."""

    def __call__(self, tokens, scores):
        following = torch.arange(VOCAB).expand(len(tokens), -1)
        keys, _ = reader._compute_keys(tokens[:, 1 - NGRAM:], following)
        return reader.update_scores(scores, reader.sample_g_values(keys))


def texts(**settings):
    """Sample a text for each prompt."""
    torch.manual_seed(1)
    return torch.cat([model.generate(
        prompt[None], attention_mask=torch.ones(1, PROMPT, dtype=torch.long), do_sample=True,
        top_k=0, max_new_tokens=64, **settings)[:, PROMPT:] for prompt in prompts])


def mean(tokens):
    return reader.compute_g_values(tokens).float().mean().item()


for name, settings in (("plain", {}), ("prompt lookup", {"prompt_lookup_num_tokens": 5}),
                       ("draft model", {"assistant_model": model}), ("2 beams", {"num_beams": 2}),
                       ("4 beams", {"num_beams": 4})):
    found = mean(texts(watermarking_config=synthid, **settings))
    right = mean(texts(logits_processor=[FromText()], **settings))
    share = detector(texts(watermarking_config=green, **settings), return_dict=True)
    share = share.green_fraction.mean()
    print(f"RESULT {name}: SynthID {found:.3f}, from the text {right:.3f}, green {share:.2f}",
          flush=True)
    assert right > 0.68 and share > 0.8
    assert found > 0.68 if name == "plain" else found < 0.65
    assert name != "draft model" or abs(found - 0.5) < 0.04
print(f"RESULT no watermark: {mean(texts()):.3f}")
END
sed -n 's/^RESULT //p' "$folder/out"
