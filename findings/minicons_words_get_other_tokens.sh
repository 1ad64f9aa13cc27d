#!/usr/bin/env bash
# Guess: minicons' word_score_tokenized gives each word the sum of its tokens' log-probabilities, so
# that the words of a sentence add up to the sentence.
#
# minicons 0.3.39, in two ways not. (1) As it is called by default, without a token before the text,
# GPT-2's first token has no score, but the words are counted off from the first score: each word
# lacks its own first token and gets the first one of the next word, the last word gets 0. The words
# still add up to the sentence. (2) With bos_token=True, as its docstring asks for with GPT-2, that
# is right for plain words. But how many tokens a word has is found out for the words joined by
# blanks, while the text is scored as it is. A word after a quotation mark, a bracket or a dash has
# no blank in front, and then GPT-2 often needs more tokens: from there on, all words of the
# sentence get tokens of the words before them, and the last tokens are left out. nltk's
# TweetTokenizer, which the docstring recommends, is what parts the mark from the word. Reading
# times are compared with such numbers. The sums of token_score over the tokens are right in all
# cases.
#
# Seen (a 2-layer GPT-2 with random weights; word: score, sum of its tokens):
#   (1) the default
#   said: -13.19, 0.00
#   the: -8.08, -13.19
#   citizens: 0.00, -8.08
#   (2) bos_token=True
#   said: -5.85, -5.85
#   the: -11.16, -11.16
#   ": -7.61, -7.61
#   citizens: -8.50, -15.30
#   ": -6.80, -9.16
#   to: -9.16, -13.94
#   the: -13.94, -9.70
#   citizens: -9.70, -4.25

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'transformers==5.24.0' 'tokenizers==0.23.3' 'minicons==0.3.39' 'nltk==3.10.4'

cd "$folder"
export HF_HUB_OFFLINE=1
"$folder/venv/bin/python" - 2>"$folder/log" <<'END' || { cat "$folder/log"; exit 1; }
import torch
from minicons.scorer import IncrementalLMScorer
from nltk.tokenize import TweetTokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
# As in GPT-2's vocabulary, " citizens" is a token and "citizens" isn't; marks are, with and without
# a blank.
bpe = Tokenizer(models.BPE())
bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
bpe.decoder = decoders.ByteLevel()
trainer = trainers.BpeTrainer(special_tokens=[END_OF_TEXT], vocab_size=400, show_progress=False,
                              initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
bpe.train_from_iterator([' the citizens said to the citizens " "'] * 9 + ["said"] * 9, trainer)
tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=END_OF_TEXT,
                                    eos_token=END_OF_TEXT, pad_token=END_OF_TEXT)
assert tokenizer.tokenize(" citizens") == ["\u0120citizens"] and len(tokenizer("citizens")[0]) > 1
torch.manual_seed(0)
model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_positions=64, n_embd=64, n_layer=2,
                                   n_head=4, bos_token_id=0, eos_token_id=0)).eval()
for parameter in model.parameters():
    if parameter.dim() == 2:
        torch.nn.init.normal_(parameter, std=0.3)
model.save_pretrained("model")
tokenizer.save_pretrained("model")
scorer = IncrementalLMScorer("model", "cpu")
words_of = TweetTokenizer().tokenize


@torch.no_grad()
def sums(text, with_bos):
    """Return [[word, sum of the log-probabilities of its tokens]], by transformers alone."""
    found = tokenizer(text, return_offsets_mapping=True)
    ids = [0] * with_bos + found["input_ids"]
    log_probs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    scores = [log_probs[i - 1, ids[i]].item() if i else 0.0 for i in range(len(ids))][with_bos:]
    result, end = [], 0
    for word in words_of(text):
        begin, end = end, text.index(word, end) + len(word)
        inside = [score for score, (_, last) in zip(scores, found["offset_mapping"])
                  if begin < last <= end]
        result.append([word, sum(inside)])
    return result


def show(text, right, **options):
    seen = scorer.word_score_tokenized([text], words_of, **options)[0]
    assert [word for word, _ in seen] == [word for word, _ in right]
    wrong = []
    for (word, score), (_, expected) in zip(seen, right):
        print(f"{word}: {score:.2f}, {expected:.2f}")
        wrong.append(abs(score - expected) > 0.1)
    tokens = scorer.token_score([text], **options)[0]
    assert abs(sum(score for _, score in tokens) - sum(total for _, total in right)) < 1e-3
    return wrong, sum(score for _, score in seen) - sum(total for _, total in right)


print("(1) the default")
wrong, difference = show("said the citizens", sums("said the citizens", False))
assert all(wrong) and abs(difference) < 1e-3
print("(2) bos_token=True")
text = 'said the "citizens" to the citizens'
wrong, difference = show(text, sums(text, True), bos_token=True)
assert wrong == [False] * 3 + [True] * 5 and difference > 1  # (the last tokens are left out)
plain = "said the citizens to the citizens"
seen = scorer.word_score_tokenized([plain], words_of, bos_token=True)[0]
assert all(abs(score - right) < 1e-3 for (_, score), (_, right) in zip(seen, sums(plain, True)))
END
