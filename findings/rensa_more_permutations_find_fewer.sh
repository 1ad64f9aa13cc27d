#!/usr/bin/env bash
# Guess: rensa's RMinHashDeduplicator with use_lsh=True chooses its bands for the threshold, as
# datasketch does: it misses few of the pairs that it finds without LSH. More permutations, which
# make the estimates better, find more duplicates rather than fewer.
#
# rensa 0.5.0: with the settings of its README (threshold=0.8, num_perm=128, use_lsh=True) most of
# the documents that have a similarity of 0.85 to an earlier one stay in the corpus, and with 256
# permutations all but a few do. From 0.5 on, the number of bands depends on the threshold alone
# (8 from 0.8 on, 4 from 0.9 on), so that each further permutation makes the bands longer, and a
# pair is only looked at if one band is the same in both, in all of its rows: of 8 bands with 32
# rows that's so for 4 % of the pairs with a similarity of 0.85. Bands must have equal lengths: if
# 8 doesn't divide the number of permutations, there are even fewer, and a prime number gives a
# single band, which finds hardly anything but equal documents. The threshold works in steps, too:
# 0.79 finds nearly all of the pairs of 0.85, 0.8 less than half. The README says that LSH is
# approximate, and nothing of how far. Given num_bands, a quarter of num_perm, it finds all that
# it finds without LSH.
#
# Seen (200 texts, then a near copy of each; threshold, permutations: how many copies are found):
#   0.8, 64 permutations: of 0.85 85% (88% without LSH) of 0.95 100% (100% without LSH)
#   0.8, 128 permutations: of 0.85 44% (98% without LSH) of 0.95 100% (100% without LSH)
#   0.8, 256 permutations: of 0.85 4% (100% without LSH) of 0.95 87% (100% without LSH)
#   0.8, 512 permutations: of 0.85 0% (100% without LSH) of 0.95 28% (100% without LSH)
#   0.8, 100 permutations: of 0.85 18% (97% without LSH) of 0.95 90% (100% without LSH)
#   0.8, 127 permutations: of 0.85 0% (98% without LSH) of 0.95 0% (100% without LSH)
#   0.79, 128 permutations: of 0.85 100% (100% without LSH) of 0.95 100% (100% without LSH)

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'rensa==0.5.0'
cd "$folder"

"$folder/venv/bin/python" - <<'END'
from rensa import RMinHashDeduplicator

TEXTS, WORDS = 200, 400


def near_copy(text, similarity, number):
    """Return a text of the same length with this Jaccard similarity to another one."""
    same = round(2 * WORDS * similarity / (1 + similarity))
    copy = text[:same] + [f"new{number}.{similarity}.{i}" for i in range(WORDS - same)]
    exact = len(set(text) & set(copy)) / len(set(text) | set(copy))
    assert abs(exact - similarity) < 0.002
    return copy


def found(similarity, threshold, permutations, **options):
    """Return the share of near copies that are taken for duplicates of earlier texts."""
    deduplicator = RMinHashDeduplicator(threshold=threshold, num_perm=permutations, seed=1,
                                        **options)
    texts = [[f"word{number}.{i}" for i in range(WORDS)] for number in range(TEXTS)]
    assert all(deduplicator.add_pairs([(f"text {n}", text) for n, text in enumerate(texts)]))
    kept = deduplicator.add_pairs([(f"copy {n}", near_copy(text, similarity, n))
                                   for n, text in enumerate(texts)])
    return 1 - sum(kept) / TEXTS


def expected(similarity, permutations, bands):
    """Return the chance that a pair shares a band."""
    return 1 - (1 - similarity ** (permutations // bands)) ** bands


for threshold, permutations, bands in ((0.8, 64, 8), (0.8, 128, 8), (0.8, 256, 8), (0.8, 512, 8),
                                       (0.8, 100, 5), (0.8, 127, 1), (0.79, 128, 16)):
    line = f"{threshold}, {permutations} permutations:"
    for similarity in (0.85, 0.95):
        without = found(similarity, threshold, permutations, use_lsh=False)
        lsh = found(similarity, threshold, permutations, use_lsh=True)
        line += f" of {similarity} {lsh:.0%} ({without:.0%} without LSH)"
        assert without > 0.85
        assert abs(lsh - expected(similarity, permutations, bands) * without) < 0.12
        if permutations % 4 == 0:
            by_hand = found(similarity, threshold, permutations, use_lsh=True,
                            num_bands=permutations // 4)
            assert by_hand == without
    print(line)
assert found(0.85, 0.8, 128, use_lsh=True) < 0.65
assert found(0.85, 0.8, 256, use_lsh=True) < 0.2 and found(0.95, 0.8, 512, use_lsh=True) < 0.5
END
