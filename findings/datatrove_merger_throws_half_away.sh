#!/usr/bin/env bash
# Guess: save_final_metadata=False, of datatrove's DocumentTokenizer and of its Merger ("whether to
# save the final metadata"), leaves out the files *.metadata and nothing else. The merged file has
# the tokens of all documents, in another order.
#
# datatrove 0.10.1, tokenizers 0.23.3: that is so for a vocabulary of at most 65,536 tokens, like
# GPT-2's. With a larger one, like that of most models since, half of the tokens are thrown away.
# Ids take 4 bytes then, not 2. DocumentTokenizer knows that from the vocabulary; the Merger has
# neither tokenizer nor option for it, and takes the number from the metadata file of its first
# input. It looks only if it is to write such a file itself, and without one, or without looking, it
# assumes 2. So it reads 2 bytes for each token that the index tells: the first half of every file,
# in pieces that have nothing to do with the documents. It says nothing, since the numbers that it
# reports, tokens of 2 bytes, are those of the index: its statistics, the new index and the new
# metadata count all tokens. Only the size of the files is half of what it was, and no document is
# whole. One of the two steps with False is enough.
#
# Seen (400 documents; metadata written by the tokenizer and by the merger: ids in the merged file,
# of which the index and the statistics tell, and documents that are whole):
#   50257 tokens, yes and yes: 4604 of 4604 ids, index 4604, statistics 4604, 400 documents
#   50257 tokens, no and yes: 4604 of 4604 ids, index 4604, statistics 4604, 400 documents
#   50257 tokens, yes and no: 4604 of 4604 ids, index 4604, statistics 4604, 400 documents
#   70000 tokens, yes and yes: 4476 of 4476 ids, index 4476, statistics 4476, 400 documents
#   70000 tokens, no and yes: 2238 of 4476 ids, index 4476, statistics 4476, 0 documents
#   70000 tokens, yes and no: 2238 of 4476 ids, index 4476, statistics 4476, 0 documents

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'datatrove==0.10.1' 'tokenizers==0.23.3' \
    'numpy==2.4.6' 'humanize==4.17.0'
cd "$folder"

"$folder/venv/bin/python" - >"$folder/out" 2>&1 <<'END' || { cat "$folder/out"; exit 1; }
import random

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.tokens import DocumentTokenizer, DocumentTokenizerMerger
from tokenizers import Tokenizer, models, pre_tokenizers

END_OF_TEXT = "<|endoftext|>"
PARTS = 2


def merged(size, tokenizer_metadata, merger_metadata):
    """Tokenize documents in two parts and merge them; compare the result with the documents."""
    vocab = {END_OF_TEXT: 0} | {f"w{i}": i for i in range(1, size)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token=END_OF_TEXT))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save("tokenizer.json")
    random.seed(0)
    documents = [[random.randrange(1, size) for _ in range(random.randint(1, 20))]
                 for _ in range(400)]
    folder = f"{size}_{tokenizer_metadata}_{merger_metadata}"
    for part in range(PARTS):
        texts = [Document(" ".join(f"w{i}" for i in document), str(number))
                 for number, document in enumerate(documents) if number % PARTS == part]
        DocumentTokenizer(f"{folder}/parts", "tokenizer.json", eos_token=END_OF_TEXT, seed=part,
                          save_final_metadata=tokenizer_metadata).run(iter(texts), part, PARTS)
    merger = DocumentTokenizerMerger(f"{folder}/parts", f"{folder}/merged", "all", seed=0,
                                     save_final_metadata=merger_metadata, progress=False)
    merger.run()

    ids = np.fromfile(f"{folder}/merged/000_all.ds", np.uint32 if size > 65536 else np.uint16)
    ends = np.fromfile(f"{folder}/merged/000_all.ds.index", np.uint64).astype(int)
    found = {tuple(piece.tolist()) for piece in np.split(ids, ends)}
    whole = sum((*document, 0) in found for document in documents)
    total = sum(len(document) + 1 for document in documents)
    told = merger.stats["tokens"].total
    print(f"{size} tokens, {'yes' if tokenizer_metadata else 'no'} and "
          f"{'yes' if merger_metadata else 'no'}: {len(ids)} of {total} ids, index {ends[-1]}, "
          f"statistics {told}, {whole} documents")
    assert ends[-1] == told == total
    if size > 65536 and not (tokenizer_metadata and merger_metadata):
        assert len(ids) == total // 2 and whole == 0
    else:
        assert len(ids) == total and whole == len(documents)


for size in (50257, 70000):
    for metadata in ((True, True), (False, True), (True, False)):
        merged(size, *metadata)
END
grep -E '^[57]0' "$folder/out"
