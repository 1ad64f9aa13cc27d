#!/usr/bin/env bash
# Guess: each of grain's shuffles is a permutation: an epoch has every document once, whether all
# are shuffled (MapDataset.shuffle) or only within windows (WindowShuffleMapDataset and
# WindowShuffleIterDataset).
#
# grain 0.2.18: not WindowShuffleMapDataset, unless the number of documents is a multiple of the
# window. The last window is shuffled as if it were a whole one, so that some of its indices are
# past the end; the dataset takes those modulo its length, which gives documents from the
# beginning for a second time, while as many of the last window's never come. len() and the number
# of documents are right. The same documents are left out in each run with the same seed, and a
# window that is larger than the whole dataset is no protection. WindowShuffleIterDataset, with
# the same window, is a permutation.
#
# Seen (documents, window: how many never come in an epoch, how many come twice; 1000 and 128 are
# the example in grain's documentation of pipe()):
#   1000, None: 0 never, 0 twice
#   1000, 100: 0 never, 0 twice
#   1000, 128: 17 never, 17 twice
#   1000, 300: 68 never, 68 twice
#   1000, 999: 1 never, 1 twice
#   1000, 1500: 228 never, 228 twice
#   1000, 300, WindowShuffleIterDataset: 0 never, 0 twice

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'grain==0.2.18' 'numpy==2.4.6'

cd "$folder"
venv/bin/python - 2>log <<'END' || { cat log; exit 1; }
from collections import Counter

from grain import MapDataset
from grain.experimental import WindowShuffleIterDataset, WindowShuffleMapDataset


def count(documents, window):
    dataset = MapDataset.range(documents)
    if window is None:
        dataset = dataset.seed(1).shuffle()
    else:
        dataset = WindowShuffleMapDataset(dataset, window_size=window, seed=1)
    epoch = list(dataset)
    assert len(dataset) == len(epoch) == documents
    times = Counter(epoch)
    return documents - len(times), sum(n == 2 for n in times.values()), times


for documents, window, wrong in [
    (1000, None, False),
    (1000, 100, False),
    (1000, 128, True),
    (1000, 300, True),
    (1000, 999, True),
    (1000, 1500, True),
]:
    missing, twice, times = count(documents, window)
    print(f"{documents}, {window}: {missing} never, {twice} twice", flush=True)
    if wrong:
        assert missing > 0 and missing == twice
    else:
        assert missing == twice == 0
    if window == 300:
        assert set(range(900)) <= set(times), "only the last window loses documents"
        assert max(document for document in times if times[document] == 2) < 200

rows = MapDataset.range(1000).to_iter_dataset()
epoch = sorted(WindowShuffleIterDataset(rows, window_size=300, seed=1))
assert epoch == list(range(1000))
print("1000, 300, WindowShuffleIterDataset: 0 never, 0 twice")
END
