#!/usr/bin/env bash
# Guess: in a mixture of OLMo-core (NumpyFSLDatasetMixture) a source that gives a part of its tokens
# gives a random selection, drawn with the mixture's seed; another seed, other instances. A source
# that gives more than it has gives each instance about as often as any other.
#
# ai2-olmo-core 3.0.0, torch 2.13.0: what a source gives is the beginning of each of its files,
# whatever the seed, which by its description is for sampling the instances to use from each source.
# prepare() does draw instances with the seed and writes their places into a file, but nothing reads
# it: the method that would is commented out, and the inherited one cuts a file into instances from
# its start. Files are often in some order, by date, site or quality, and then a tenth of a source
# is another kind of text than the source is. Where a source is to give 1.53 times what it has, the
# first 53 % of each file come twice and the rest once. (In the file with the places many are there
# more than once, since they are drawn with replacement.) The data loader shuffles afterwards, but
# only what was taken. Shuffling documents before they are written to files helps.
#
# Seen (two sources of 1000 documents each, of which the mixture takes 900 and 100; and 1530 and
# 170):
#   seed 1: documents 0 to 899 of the one, 0 to 99 of the other; drawn: 473, 511, 755 ...
#   seed 2: documents 0 to 899 of the one, 0 to 99 of the other; drawn: 837, 261, 109 ...
#   1.53 times the one: documents 0 to 529 twice, the others once

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'ai2-olmo-core==3.0.0' 'torch==2.13.0' \
    'numpy==2.4.6'

cd "$folder"
venv/bin/python - 2>log <<'END' || { cat log; exit 1; }
import multiprocessing
from collections import Counter
from pathlib import Path

import numpy as np
from olmo_core.data import NumpyFSLDatasetConfig, TokenizerConfig
from olmo_core.data.source_mixture import (SourceMixtureConfig, SourceMixtureDatasetConfig,
                                           SourceMixtureList)

LENGTH, DOCUMENTS, END_OF_TEXT = 16, 1000, 50256
multiprocessing.set_start_method("fork")
for name, first in ("web", 0), ("code", DOCUMENTS):
    # Each document fills one instance, and each of its tokens says which document it is.
    ids = np.full((DOCUMENTS, LENGTH), END_OF_TEXT, np.uint16)
    ids[:, :-1] = first + np.arange(DOCUMENTS)[:, None]
    ids.tofile(f"{name}.npy")
tokenizer = TokenizerConfig(vocab_size=50257, eos_token_id=END_OF_TEXT, pad_token_id=END_OF_TEXT)


def mixture(seed, instances, repetitions):
    """Return which documents the mixture takes from each source, and the places that it drew."""
    sources = [SourceMixtureConfig(source_name=name, target_ratio=ratio, paths=[f"{name}.npy"],
                                   max_repetition_ratio=repetitions)
               for name, ratio in (("web", 0.9), ("code", 0.1))]
    config = SourceMixtureDatasetConfig(
        source_list=SourceMixtureList(sources=sources), requested_tokens=instances * LENGTH,
        global_batch_size=10 * LENGTH, seed=seed, render_tables=False, quiet=True)
    folder = f"work-{seed}-{instances}"
    dataset = NumpyFSLDatasetConfig.from_src_mix(config, tokenizer=tokenizer, work_dir=folder,
                                                 sequence_length=LENGTH).build()
    dataset.prepare()
    taken = [int(dataset[i]["input_ids"][0]) for i in range(len(dataset))]
    drawn = [np.fromfile(path, np.uint32).reshape(-1, 2)[:, 0] // LENGTH
             for path in Path(folder).rglob("mixture-instance-indices*.npy")]
    return ([i for i in taken if i < DOCUMENTS], [i - DOCUMENTS for i in taken if i >= DOCUMENTS],
            sorted(drawn, key=len, reverse=True))


everything = []
for seed in 1, 2:
    web, code, drawn = mixture(seed, 1000, 1)
    everything.append((web, code, drawn))
    print(f"seed {seed}: documents {min(web)} to {max(web)} of the one, {min(code)} to {max(code)} "
          f"of the other; drawn: {drawn[1][0]}, {drawn[1][1]}, {drawn[1][2]} ...")
    assert sorted(web) == list(range(900)) and sorted(code) == list(range(100))
    assert [len(places) for places in drawn] == [900, 100]
    assert max(drawn[1]) > 900 and len(set(drawn[0])) < 650
assert everything[0][:2] == everything[1][:2]
assert (everything[0][2][1] != everything[1][2][1]).any()

times = Counter(mixture(3, 1700, 2)[0])
twice = [document for document, count in times.items() if count == 2]
print(f"1.53 times the one: documents {min(twice)} to {max(twice)} twice, the others once")
assert sorted(twice) == list(range(530)) and all(times[i] == 1 for i in range(530, DOCUMENTS))
END
