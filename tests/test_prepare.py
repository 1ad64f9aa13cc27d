"""prepare.py: the tokenizer, the splits, and the errors for text that is refused."""

import collections
import itertools
import json
import os

import numpy as np
import pytest
import regex
from conftest import ROOT, call, succeed

import prepare
import train

GPT2_PATTERN = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
EVERY_KIND = ("Plain text, it's 1984!\n\n\n  indented\ttabs \r\n windows\u00a0nbsp\u2003em "
              "naïve Ελληνικά кириллица 漢字かな 한글 עברית 🙂👩‍👩‍👧 e\u0301 \u200b\x00\x1c "
              "<|endoftext|> ''' 12345678901234567890 \ud7ff\ue000\U0010ffff   ")


def brute_force_bpe(text, vocab_size):
    """Recount all pairs before every merge."""
    words = [list(word.encode()) for word in regex.findall(GPT2_PATTERN, text)]
    tokens = [bytes([i]) for i in range(256)]
    while len(tokens) < vocab_size - 1:
        counts = collections.Counter(pair for word in words for pair in zip(word, word[1:]))
        if not counts or max(counts.values()) < 2:
            break
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        token = tokens[best[0]] + tokens[best[1]]
        if token not in tokens:
            tokens.append(token)
        new = tokens.index(token)
        for word in words:
            i = 0
            while i < len(word) - 1:
                if (word[i], word[i + 1]) == best:
                    word[i:i + 2] = [new]
                i += 1
    return tokens


def prepared(folder, text, *arguments):
    path = folder / "text.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    out = succeed("prepare", f"--input={path}", f"--out_dir={folder / 'data'}", *arguments)
    meta = json.loads((folder / "data" / "meta.json").read_text())
    ids = {split: np.fromfile(folder / "data" / f"{split}.bin", meta["dtype"]).tolist()
           for split in ("train", "val", "test")}
    return out, meta, ids, prepare.load_tokenizer(meta["tokenizer"])


@pytest.mark.parametrize("text", [
    (ROOT / "input.txt").read_text()[:4000],
    "aaaaaaaa aaaa aaa aa a " * 3 + "abababab baba",
    "ab abc abcd bcd cd bc " * 5 + "xabc yabc xbc",
    EVERY_KIND * 3,
], ids=["verse", "runs", "overlaps", "unicode"])
def test_merges_equal_those_of_a_brute_force_bpe(text):
    counts = collections.Counter(regex.findall(GPT2_PATTERN, text))
    learned = [token.encode("latin-1") for token in prepare.train_bpe(counts, 350)]
    assert learned == brute_force_bpe(text, 350)


@pytest.mark.parametrize("vocab_size", [257, 300, 1000])
def test_any_text_round_trips_through_the_trained_tokenizer(vocab_size):
    counts = collections.Counter(regex.findall(GPT2_PATTERN, EVERY_KIND * 2))
    tokens = prepare.train_bpe(counts, vocab_size)
    encoding = prepare.load_tokenizer({"name": "bpe", "tokens": tokens})
    for text in (EVERY_KIND, "", " ", "\n", *EVERY_KIND):
        ids = encoding.encode_ordinary(text)
        assert encoding.decode_bytes(ids) == text.encode()
        assert all(i < len(tokens) for i in ids)


@pytest.mark.parametrize("blank", ["\t", "\n"])
def test_a_run_of_more_than_a_million_blanks_round_trips(blank):  # which is too long for tiktoken
    encoding = prepare.load_tokenizer(
        {"name": "bpe", "tokens": [*map(chr, range(256)), "\n\n", " x"]})
    text = "a" + blank * 1_200_000 + " x\n\n"
    ids = encoding.encode_ordinary(text)
    assert encoding.decode_bytes(ids) == text.encode() and ids[-2:] == [257, 256]


def test_a_vocabulary_of_257_is_plain_bytes(tmp_path):
    _, meta, ids, _ = prepared(tmp_path, EVERY_KIND, "--vocab_size=257", "--val_fraction=0",
                               "--test_fraction=0")
    assert bytes(ids["train"]) == EVERY_KIND.encode() and meta["vocab_size"] == 257


def test_without_a_validation_text_there_is_no_comparison_with_gpt2s_tokenizer(tmp_path):
    try:
        prepare.find_tokenizer("gpt2")  # now it is cached
    except OSError as error:
        pytest.skip(f"GPT-2's vocabulary is not available here: {error}")
    (tmp_path / "x.txt").write_text(EVERY_KIND * 50, encoding="utf-8")
    arguments = f"--input={tmp_path}/x.txt", "--vocab_size=257", f"--out_dir={tmp_path}/data"
    assert "for comparison" in succeed("prepare", *arguments)
    assert "for comparison" not in succeed("prepare", *arguments, "--val_fraction=0")


def test_the_comparison_with_gpt2s_tokenizer_counts_bytes_and_tokens_as_the_table_does(tmp_path):
    try:
        prepare.find_tokenizer("gpt2")  # now it is cached
    except OSError as error:
        pytest.skip(f"GPT-2's vocabulary is not available here: {error}")
    with open(tmp_path / "x.jsonl", "w", encoding="utf-8") as file:
        for i in range(300):
            print(json.dumps({"text": f"This is the document with number {i}."}), file=file)
    out = succeed("prepare", f"--input={tmp_path / 'x.jsonl'}", "--tokenizer=gpt2",
                  f"--out_dir={tmp_path}")
    in_table = regex.search(r"(?m)^val .* ([\d.]+)$", out)[1]
    assert f"GPT-2's tokenizer, for comparison: {in_table} bytes/token" in out


def test_gpt2_tokens_are_openais():
    try:
        description = prepare.find_tokenizer("gpt2")
    except OSError as error:
        pytest.skip(f"GPT-2's vocabulary is not available here: {error}")
    encoding = prepare.load_tokenizer(description)
    assert encoding.n_vocab == 50257 and encoding.end_id == 50256
    # ids known from OpenAI's own encoder
    assert encoding.encode_ordinary("Hello world") == [15496, 995]
    assert encoding.encode_ordinary("Hello, I'm a language model,") == [
        15496, 11, 314, 1101, 257, 3303, 2746, 11]
    assert encoding.decode_bytes(encoding.encode_ordinary(EVERY_KIND)) == EVERY_KIND.encode()


def test_the_splits_are_contiguous_and_together_are_the_text(tmp_path, text):
    _, meta, ids, encoding = prepared(tmp_path, text, "--val_fraction=0.2", "--vocab_size=300")
    parts = [encoding.decode_bytes(ids[split]) for split in ("train", "val", "test")]
    assert b"".join(parts) == text.encode()
    characters = len(text)
    assert parts[0].decode() == text[:int(characters * 0.7)]
    assert parts[0].decode() + parts[1].decode() == text[:int(characters * 0.9)]
    for split, part in zip(("train", "val", "test"), parts):
        assert meta["splits"][split]["bytes"] == len(part)
        assert meta["splits"][split]["tokens"] == len(ids[split])


@pytest.mark.parametrize("character", ["a", "7", " ", "\n", "-"])
def test_a_run_of_one_character_becomes_tokens_of_at_most_99(tmp_path, character):
    text = ("x" + character * 20_000) * 3 + "y"
    _, meta, _, _ = prepared(tmp_path, text, "--vocab_size=300")
    assert 8 <= max(map(len, meta["tokenizer"]["tokens"])) <= 99


def test_the_tokenizer_is_trained_on_the_training_split_only(tmp_path):
    text = "the cat sat on the mat. " * 200 + "zyzzyva zyzzyva zyzzyva " * 100
    _, meta, _, _ = prepared(tmp_path, text, "--val_fraction=0.2", "--test_fraction=0.2",
                             "--vocab_size=400")
    assert not any("zy" in token for token in meta["tokenizer"]["tokens"])


def test_a_file_read_in_pieces_gives_the_tokens_of_the_whole(tmp_path):
    text = (ROOT / "input.txt").read_text() * 8 + EVERY_KIND + "x" * 1_200_000 + "\n \n" * 1000
    _, _, ids, encoding = prepared(tmp_path, text, "--val_fraction=0", "--test_fraction=0",
                                   "--vocab_size=300")
    assert len(text) > 3 << 20 and ids["train"] == encoding.encode_ordinary(text)


def test_a_large_vocabulary_is_written_and_read_in_32_bits(tmp_path, monkeypatch):
    words = map("".join, itertools.product("abcdefghijklmnopq", repeat=4))
    many = [*map(chr, range(256)), *itertools.islice(words, 70_000)]
    monkeypatch.setattr(prepare, "train_bpe", lambda counts, vocab_size: many)
    text = "\n".join(many[65_000:66_500])
    _, meta, _, encoding = prepared(tmp_path, text, "--vocab_size=70257")
    data = train.load_data(tmp_path / "data")[1]
    ids = np.concatenate([data[split][np.arange(len(data[split]))] for split in prepare.SPLITS])
    assert meta["dtype"] == "uint32" and ids.max() > 65_536
    assert encoding.decode(ids.tolist()) == text


def test_it_prints_tokens_bytes_and_bytes_per_token_of_each_split(tmp_path, text):
    out, meta, ids, encoding = prepared(tmp_path, text, "--vocab_size=300")
    for split in ("train", "val", "test"):
        tokens, size = len(ids[split]), meta["splits"][split]["bytes"]
        assert [split, f"{tokens:,}", f"{size:,}", f"{size / tokens:.2f}"] in [
            line.split() for line in out.splitlines()]
    learned = [repr(encoding.decode([i])) for i in range(256, 299)]
    assert f"tokens learned: {' '.join(learned[:8])} ... {' '.join(learned[-8:])}\n" in out


def test_the_bin_files_are_raw_little_endian_ids_like_nanogpts(tmp_path, text):
    _, _, ids, encoding = prepared(tmp_path, text, "--vocab_size=300")
    raw = (tmp_path / "data" / "train.bin").read_bytes()
    assert raw == b"".join(i.to_bytes(2, "little") for i in ids["train"])


@pytest.mark.parametrize("content, word", [
    (None, "no such file"), (b"", "characters"), (b"ab", "characters"),
    (b"good " * 1000 + b"\xff bad", "byte 5000 is not UTF-8"),
    (b"x" * (1 << 20) + "é".encode()[:1], "byte 1048576 is not UTF-8"),
], ids=["missing", "empty", "short", "not utf-8", "cut off"])
def test_an_unusable_text_is_named_and_nothing_is_written(tmp_path, content, word):
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    code, out, err = call("prepare", f"--input={path}", f"--out_dir={tmp_path / 'data'}")
    assert code == 1 and out == "" and err.count("\n") == 1
    assert str(path) in err and word in err
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("argument", ["--vocab_size=256", "--tokenizer=words", "--val_fraction=1.5",
                                      "--val_fraction=-0.1", "--test_fraction=0.95",
                                      "--test_fraction=0.9"])  # with the default 0.1: all
def test_an_invalid_setting_is_wrong_usage(argument):
    code, out, err = call("prepare", argument)
    assert code == 2 and out == "" and err.count("\n") == 1
    assert argument[2:].split("=")[0] in err


def test_a_named_pipe_is_refused_since_the_text_is_read_three_times(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    code, out, err = call("prepare", f"--input={tmp_path / 'pipe'}", f"--out_dir={tmp_path}/data")
    assert code == 1 and f"{tmp_path}/pipe" in err and not (tmp_path / "data").exists()


@pytest.mark.parametrize("n_tokens, dtype", [(65_536, "uint16"), (65_537, "uint32")])
def test_ids_take_16_bits_as_long_as_all_of_them_fit(n_tokens, dtype):
    words = map("".join, itertools.product("abcdefghijklmnopq", repeat=4))
    tokens = [*map(chr, range(256)), *itertools.islice(words, n_tokens - 257)]
    encoding = prepare.load_tokenizer({"name": "bpe", "tokens": tokens})
    assert encoding.end_id == n_tokens - 1 and encoding.dtype.name == dtype


def test_ten_characters_are_the_shortest_text_of_which_a_tenth_can_be_held_out(tmp_path):
    _, meta, _, _ = prepared(tmp_path, "abcdefghij")
    assert [meta["splits"][split]["bytes"] for split in prepare.SPLITS] == [8, 1, 1]
    (tmp_path / "nine.txt").write_text("abcdefghi")
    code, _, err = call("prepare", f"--input={tmp_path / 'nine.txt'}", f"--out_dir={tmp_path}")
    assert code == 1 and "9 characters: too few" in err
