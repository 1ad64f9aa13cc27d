#!/usr/bin/env bash
# Guess: flair's TransformerWordEmbeddings with GPT-2, of a text that is longer than the model's
# positions: the text is read in windows that overlap (allow_long_sentences, the default), and every
# word gets the hidden state of its token in one of the windows, as it is with BERT.
#
# flair 0.15.1 with transformers 4.57.6 (the version it asks for), torch 2.13.0: with GPT-2, two
# tokens are lost wherever one window ends and the next begins. flair takes the windows apart as if
# each had a [CLS] and a [SEP], two special tokens less of text than its length. GPT-2 has none, so
# its windows advance by two tokens more than flair keeps of them: the first two that ought to come
# from the next window are in neither part. A word that is only one of these has a vector of
# zeros as its embedding, whatever the word is; one of several tokens is made of those that are left
# (the last instead of the first, or a mean without them). They are also missing in the mean, of
# TransformerDocumentEmbeddings. GPT-2's 1,024 positions lose 2 of each 512 tokens. A tagger learns
# and predicts from zeros there. Nothing is said. (flair asks for a padding token, which GPT-2's
# tokenizer hasn't got; here it's the end of text.)
#
# Seen (small random models with 64 positions, text of 120 words with one token each, the words with
# an embedding of zeros, and the largest error of all others against the hidden states of windows of
# 64 tokens that begin every 32, taken by hand):
#   BERT: 0 words without embedding
#   GPT-2, 60 words: 0 words without embedding, error of the others 0.00
#   GPT-2, 120 words: 4 words without embedding (47 48 79 80), error of the others 0.00
#   GPT-2, mean of the document: 0.00 from that of the 116 others, 0.04 from that of all 120

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6'
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'flair==0.15.1' \
    'transformers==4.57.6' 'tokenizers==0.22.2'

cd "$folder"
export HF_HUB_OFFLINE=1 FLAIR_CACHE_ROOT="$folder/flair"
"$folder/venv/bin/python" - 2>"$folder/log" <<'END' || { cat "$folder/log"; exit 1; }
import random

import torch
from flair.data import Sentence
from flair.embeddings import TransformerDocumentEmbeddings, TransformerWordEmbeddings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (BertConfig, BertModel, GPT2Config, GPT2Model, PreTrainedTokenizerFast)

words = [a + b + c for a in "bdfgklmnprstvz" for b in "aeiou" for c in "lmnrst"]
special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]

# a word is one token in both: of a byte-level BPE, as GPT-2's is, or of a list of words
merges, vocab = [], {"<|endoftext|>": 0}
for letter in sorted(pre_tokenizers.ByteLevel.alphabet()):
    vocab[letter] = len(vocab)
for word in words:
    for a, b in (("\u0120", word[0]), ("\u0120" + word[0], word[1]),
                 ("\u0120" + word[:2], word[2])):
        if a + b not in vocab:
            vocab[a + b] = len(vocab)
            merges.append((a, b))
bpe = Tokenizer(models.BPE(vocab, merges))
bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
bpe.decoder = decoders.ByteLevel()
PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|endoftext|>",
                        pad_token="<|endoftext|>", model_max_length=64).save_pretrained("gpt2")
known = {word: i for i, word in enumerate(special + words)}
level = Tokenizer(models.WordLevel(known, "[UNK]"))
level.pre_tokenizer = pre_tokenizers.Whitespace()
level.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
PreTrainedTokenizerFast(tokenizer_object=level, pad_token="[PAD]", cls_token="[CLS]",
                        sep_token="[SEP]", unk_token="[UNK]",
                        model_max_length=64).save_pretrained("bert")
torch.manual_seed(0)
gpt2 = GPT2Model(GPT2Config(vocab_size=len(vocab), n_positions=64, n_embd=32, n_layer=2, n_head=2,
                            initializer_range=0.2)).eval()
gpt2.save_pretrained("gpt2")
BertModel(BertConfig(vocab_size=len(known), hidden_size=32, num_hidden_layers=2,
                     num_attention_heads=2, intermediate_size=64, max_position_embeddings=64,
                     initializer_range=0.2)).save_pretrained("bert")

random.seed(0)
text = random.choices(words, k=120)


def embed(name, text):
    embeddings = TransformerWordEmbeddings(name, layers="-1", subtoken_pooling="first")
    embeddings.eval()
    assert embeddings.allow_long_sentences
    sentence = Sentence(text)
    embeddings.embed(sentence)
    assert len(sentence) == len(text)
    vectors = torch.stack([token.embedding for token in sentence]).cpu()
    return vectors, [i for i, vector in enumerate(vectors) if not vector.any()]


def by_hand(text):
    ids = [vocab["\u0120" + word] for word in text]
    seen = [[] for _ in ids]
    with torch.no_grad():
        for start in range(0, max(len(ids) - 32, 1), 32):
            window = torch.tensor([ids[start:start + 64]])
            for i, vector in enumerate(gpt2(window).last_hidden_state[0]):
                seen[start + i].append(vector)
    return seen


_, lost = embed("bert", text)
print(f"BERT: {len(lost)} words without embedding")
assert lost == []
for length in (60, 120):
    vectors, lost = embed("gpt2", text[:length])
    truth = by_hand(text[:length])
    error = max(min((vector - x).abs().max().item() for x in truth[i])
                for i, vector in enumerate(vectors) if i not in lost)
    which = f" ({' '.join(map(str, lost))})" if lost else ""
    print(f"GPT-2, {length} words: {len(lost)} words without embedding{which}, "
          f"error of the others {error:.2f}")
    assert error < 1e-4
    assert lost == ([] if length == 60 else [47, 48, 79, 80])
    assert all(x.any() for row in truth for x in row)

documents = TransformerDocumentEmbeddings("gpt2", layers="-1", cls_pooling="mean",
                                           allow_long_sentences=True)
documents.eval()
sentence = Sentence(text)
documents.embed(sentence)
mean = sentence.embedding.cpu()
others = torch.stack([x for i, x in enumerate(vectors) if i not in lost])
full = torch.stack([truth[i][-1] if i in lost else x for i, x in enumerate(vectors)])
a, b = ((mean - x.mean(0)).abs().max().item() for x in (others, full))
print(f"GPT-2, mean of the document: {a:.2f} from that of the 116 others, "
      f"{b:.2f} from that of all 120")
assert a < 1e-4 and b > 1e-3
END
