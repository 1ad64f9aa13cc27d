#!/usr/bin/env bash
# Guess: datasketch's MinHashLSHBloom(fp=1e-5) calls those documents duplicates that MinHashLSH
# with the same bands calls so, and by chance a few more: 1 - (1 - fp)^b of them, as it says in its
# documentation, 1 in 4,000 with 25 bands.
#
# datasketch 2.0.0, pybloomfilter3 0.7.3: the longer the documents and the more of them, the more
# of those that share nothing with any other are "duplicates", whatever fp is, and are thrown away
# by whoever cleans a training set so. MinHashLSH has none of them. A band goes into its Bloom
# filter as the SUM of its r values. Each value is the smallest of as many 32-bit numbers as the
# document has shingles: near 2^32 / shingles. The sums of r such are near each other, so that two
# documents get the same one with a probability of about shingles / (3.5 * 2^32 * sqrt(r)) in each
# band, and a new document with b * (documents so far) times that. That's 7 % for the 100,000th
# document of 1,000 shingles with 25 bands of 5, and nearly every one after a few million.
# MinHash(scheme="affine64"), whose values have 64 bits, is right; the default, "affine32", isn't,
# nor is "legacy" (also 32 bits), the only one before version 2.
#
# Seen (documents that have no shingle in common; "drawn": their MinHash values aren't computed from
# shingles but drawn as the smallest of so many random numbers):
#   affine32, 4000 of 1000 shingles: MinHashLSHBloom 8 duplicates, equal bands in 0 (sums in 8)
#   affine32, 4000 of 1000 shingles, drawn: MinHashLSHBloom 7 duplicates, equal bands in 0
#     (sums in 7)
#   affine32, 10000 of 10000 shingles, drawn: MinHashLSHBloom 351 duplicates, equal bands in 0
#     (sums in 351)
#   affine64, 10000 of 10000 shingles, drawn: MinHashLSHBloom 0 duplicates, equal bands in 0
#     (sums in 0)

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'numpy==2.4.6' 'scipy==1.17.1' \
    'datasketch==2.0.0' 'pybloomfilter3==0.7.3'

"$folder/venv/bin/python" - 2>"$folder/log" <<'END' || { cat "$folder/log"; exit 1; }
import numpy as np
from datasketch import MinHash, MinHashLSH, MinHashLSHBloom


def computed(bits, documents, shingles):
    """Return the MinHashes of documents of distinct shingles, given by their hash values."""
    rng = np.random.default_rng(0)
    for _ in range(documents):
        minhash = MinHash(128, hashfunc=int, scheme=f"affine{bits}")
        minhash.update_batch(rng.integers(0, 2 ** bits, shingles, dtype=np.uint64).tolist())
        yield minhash


def drawn(bits, documents, shingles):
    """Return MinHashes with the values that such documents have."""
    rng = np.random.default_rng(0)
    for _ in range(documents):
        smallest = -np.expm1(np.log(rng.random(128)) / shingles)  # of so many from 0 to 1
        yield MinHash(hashvalues=(smallest * 2.0 ** bits).astype(f"uint{bits}"),
                      scheme=f"affine{bits}")


def duplicates(bits, documents, shingles, source):
    """Count duplicates of earlier documents: of the index, by equal bands, by equal sums."""
    index = MinHashLSHBloom(threshold=0.5, num_perm=128, n=documents, fp=1e-5)
    other = MinHashLSH(threshold=0.5, num_perm=128)
    b, r = index.b, index.r
    assert (b, r) == (other.b, other.r) == (25, 5)
    bands, sums, found, equal, equal_sum = set(), set(), 0, 0, 0
    for minhash in source(bits, documents, shingles):
        found += index.query(minhash)
        index.insert(minhash)
        parts = minhash.hashvalues[:b * r].reshape(b, r)
        band = {(i, part.tobytes()) for i, part in enumerate(parts)}
        total = {(i, sum(part)) for i, part in enumerate(parts.tolist())}
        equal, equal_sum = equal + bool(band & bands), equal_sum + bool(total & sums)
        bands |= band
        sums |= total
    print(f"affine{bits}, {documents} of {shingles} shingles{', drawn' * (source is drawn)}: "
          f"MinHashLSHBloom {found} duplicates, equal bands in {equal} (sums in {equal_sum})")
    return found, equal, equal_sum


for bits, documents, shingles, source in (
        (32, 4000, 1000, computed), (32, 4000, 1000, drawn),
        (32, 10000, 10000, drawn), (64, 10000, 10000, drawn)):
    found, equal, equal_sum = duplicates(bits, documents, shingles, source)
    documented = documents * (1 - (1 - 1e-5) ** 25)
    expected = 25 * documents ** 2 / 2 * shingles / (3.545 * 2 ** bits * 5 ** 0.5)
    assert equal == 0 and equal_sum <= found <= equal_sum + 3 + 2 * documented
    assert abs(equal_sum - expected) <= 5 * expected ** 0.5
    assert bits == 64 or found > 4 * documented
END
