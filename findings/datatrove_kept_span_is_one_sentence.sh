#!/usr/bin/env bash
# Guess: in datatrove's sentence deduplication with min_words_to_remove_span=n, a run of duplicate
# sentences with fewer than n words stays as it was, and one with n words or more is removed whole.
# All other text stays.
#
# datatrove 0.10.1 (with spaCy 3.8.18 for English): of every such run only the first sentence
# counts. The filter puts a removed sentence into its list of the run only if that list is empty, so
# the list never has more than one. If this sentence is shorter than n words, it stays and the rest
# of the run is removed, however short or long the run is: a notice of 30 words loses all but its
# heading with n = 10, where all of it should go, and with n = 100, where all of it should stay. So
# the option, which is there to spare short repetitions, cuts them to pieces, and leaves the
# beginning of long ones in every document. With n = 0, which is the default, runs are removed
# whole. It is the same if the text is split at line ends.
#
# Seen (the second of two documents with the same notice between other sentences):
#   min_words_to_remove_span=0: 0 of 3 sentences stay (0 should)
#   min_words_to_remove_span=10: 1 of 3 sentences stay (0 should): Legal notice.
#   min_words_to_remove_span=100: 1 of 3 sentences stay (3 should): Legal notice.

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'datatrove==0.10.1' 'xxhash==3.8.2' \
    'spacy==3.8.18' 'tokenizers==0.23.3' 'regex==2026.11.19' 'numpy==2.4.6'

cd "$folder"
venv/bin/python - 2>log <<'END' || { cat log; exit 1; }
import tempfile

from datatrove.data import Document
from datatrove.pipeline.dedup.sentence_dedup import (SentDedupConfig, SentenceDedupFilter,
                                                     SentenceDedupSignature, SentenceFindDedups)

NOTICE = ["Legal notice.",
          "All texts on this page belong to the museum and to the artists who made the works.",
          "Write to us if you would like to print one of them."]
before = [["The lamp was old.", "Nobody lit it."], ["A river runs here.", "It is cold in May."]]
after = [["We went home.", "The door was open."], ["Fish live in it.", "They are small and quick."]]


def deduplicated(words, by_line):
    """Return the two documents before and after it, as lists of sentences."""
    config = SentDedupConfig(n_sentences=3, split_sentences=not by_line, min_doc_words=0,
                             min_num_sentences=0, min_words_to_remove_span=words)
    texts = [("\n" if by_line else " ").join([*start, *NOTICE, *end])
             for start, end in zip(before, after)]
    folder = tempfile.mkdtemp(dir=".")

    def documents():
        return (Document(text=text, id=str(i)) for i, text in enumerate(texts))

    SentenceDedupSignature(f"{folder}/signatures", config=config).run(documents())
    SentenceFindDedups(f"{folder}/signatures", f"{folder}/duplicates", config=config).run()
    filtered = SentenceDedupFilter(f"{folder}/duplicates", config=config).run(documents())
    found = [document.text.replace("\n", " ").rstrip(".").split(". ") for document in filtered]
    return [[sentence + "." for sentence in sentences] for sentences in found]


for by_line in False, True:
    for words, right in (0, []), (10, []), (100, NOTICE):
        first, second = deduplicated(words, by_line)
        assert first == [*before[0], *NOTICE, *after[0]]
        assert second[:2] == before[1] and second[-2:] == after[1]
        left = second[2:-2]
        if not by_line:
            print(f"min_words_to_remove_span={words}: {len(left)} of {len(NOTICE)} sentences stay "
                  f"({len(right)} should): {' '.join(left)}".rstrip(": "))
        assert left == (right if words == 0 else NOTICE[:1])
END
