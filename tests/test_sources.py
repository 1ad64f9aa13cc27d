"""prepare.py's sources: files of every kind, folders, globs, URLs, standard input; the documents in
them, the lock of the folder they are written to, and one line for each source that is broken."""

import bz2
import collections
import errno
import gzip
import hashlib
import http.server
import io
import itertools
import json
import lzma
import os
import random
import re
import signal
import subprocess
import sys
import tarfile
import threading
import time
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import regex
from conftest import ROOT, call, succeed

import prepare
import train

DOCUMENTS = [f"Document {i}: " + "the quick brown fox, naïve\n" * (i % 7 + 1) for i in range(60)]
ALL_TRAIN = ("--val_fraction=0", "--test_fraction=0")


def lines(documents, key="text"):
    return "".join(json.dumps({key: text, "n": 1}) + "\n" for text in documents).encode()


def tar(files, mode="w"):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def zipped(files):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return file.getvalue()


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(prepare, "RETRY_DELAYS", (0.01,) * 4)
    monkeypatch.setattr(prepare, "TIMEOUT", 5)


def prepared(source, *arguments):
    """Return {split: [documents]}, and meta.json, of what prepare.py makes of a source."""
    succeed("prepare", f"--input={source}", "--vocab_size=300", "--out_dir=out", *arguments)
    meta = json.loads(Path("out/meta.json").read_text())
    encoding = prepare.load_tokenizer(meta["tokenizer"])
    found = {}
    for split in prepare.SPLITS:
        ids = np.fromfile(f"out/{split}.bin", meta["dtype"])
        assert len(ids) == meta["splits"][split]["tokens"]
        ends = np.flatnonzero(ids == encoding.end_id)
        found[split] = [encoding.decode_bytes(part.tolist()).decode()
                        for part in np.split(ids, ends)]
        found[split] = [text.removeprefix(prepare.END_OF_TEXT) for text in found[split]]
        if len(ends):  # every document ends with <|endoftext|>
            assert found[split].pop() == ""
    return found, meta


def fails(source, *words, arguments=()):
    """Prepare a source that is refused: one line with these words, and no data."""
    code, out, err = call("prepare", f"--input={source}", "--out_dir=none", *arguments)
    assert code == 1 and out == "", (code, out, err)
    last = err.splitlines()[-1]
    assert last.startswith("error: ") and err.count("error: ") == 1
    for word in words:
        assert str(word) in last, last
    assert {path.name for path in Path("none").glob("*")} <= {".lock"}
    return last


# ---- 1. files, folders, archives ----------------------------------------------------------------

PLAIN = {"a.txt": b"first text", "sub/b.md": b"second text", "sub/deep/c.txt": b"third text"}
PACKINGS = {
    "x.jsonl": lines(["first text", "second text", "third text"]),
    "x.jsonl.gz": gzip.compress(lines(["first text", "second text", "third text"])),
    "x.jsonl.bz2": bz2.compress(lines(["first text", "second text", "third text"])),
    "x.jsonl.xz": lzma.compress(lines(["first text", "second text", "third text"])),
    "x.zip": zipped(PLAIN | {"__MACOSX/._a.txt": b"\xff\xfe", ".DS_Store": b"\xff"}),
    "x.tar": tar(PLAIN), "x.tar.gz": tar(PLAIN, "w:gz"), "x.tgz": tar(PLAIN, "w:gz"),
    "x.tar.bz2": tar(PLAIN, "w:bz2"), "x.tar.xz": tar(PLAIN, "w:xz"),
    "packed.tar": tar({"a.txt.gz": gzip.compress(b"first text"),
                       "b.jsonl.xz": lzma.compress(lines(["second text", "third text"]))}),
    "packed.zip": zipped({"a.jsonl": lines(["first text", "second text"]),
                          "b.txt.bz2": bz2.compress(b"third text")}),
    # a tar without its ending, inside another: so openwebtext-10k is published
    "openwebtext.tar.xz": tar({"openwebtext/10k.xz": tar(PLAIN, "w:xz")}, "w:xz"),
}


@pytest.mark.parametrize("name", PACKINGS)
def test_an_archive_gives_the_documents_in_it(name):
    Path(name).write_bytes(PACKINGS[name])
    found, _ = prepared(name, *ALL_TRAIN)
    assert found["train"] == ["first text", "second text", "third text"]


@pytest.mark.parametrize("ending", [".gz", ".bz2", ".xz"])
def test_a_compressed_text_gives_the_same_files_as_the_text(ending):
    text = (ROOT / "input.txt").read_bytes()[:50_000]
    Path("a.txt").write_bytes(text)
    pack = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}[ending]
    Path(f"b.txt{ending}").write_bytes(pack(text))
    found, meta = prepared("a.txt")
    packed, packed_meta = prepared(f"b.txt{ending}")
    assert packed == found and packed_meta["splits"] == meta["splits"]
    assert meta["source"]["sha256"] == hashlib.sha256(text).hexdigest()
    assert packed_meta["source"]["sha256"] == meta["source"]["sha256"]
    assert packed_meta["source"]["bytes"] == len(text)


def test_a_folder_a_glob_and_a_list_are_read_in_sorted_order():
    for name, content in (PLAIN | {".hidden.txt": b"\xff", "[1].txt": b"in brackets"}).items():
        Path("in", name).parent.mkdir(parents=True, exist_ok=True)
        Path("in", name).write_bytes(content)
    texts = ["first text", "second text", "third text"]
    assert prepared("in", *ALL_TRAIN)[0]["train"] == ["in brackets", *texts]
    assert prepared("in/sub/", *ALL_TRAIN)[0]["train"] == texts[1:]
    assert prepared("in/**/[ac].txt", *ALL_TRAIN)[0]["train"] == [texts[0], texts[2]]
    assert prepared("in/[1].txt,in/a.txt", *ALL_TRAIN)[0]["train"] == ["in brackets", texts[0]]
    assert prepared("in/sub,in/a.txt", *ALL_TRAIN)[0]["train"] == [*texts[1:], texts[0]]


def test_standard_input_is_read_once_and_kept_beside_what_is_made_of_it():
    text = (ROOT / "input.txt").read_bytes()[:50_000]
    Path("a.txt").write_bytes(text)
    found, meta = prepared("a.txt")
    command = [sys.executable, ROOT / "prepare.py", "--vocab_size=300", "--out_dir=piped"]
    subprocess.run([*command, "--input=-"], input=text, check=True, capture_output=True)
    assert json.loads(Path("piped/meta.json").read_text())["splits"] == meta["splits"]
    files = set(os.listdir("piped")) - {".lock"}
    assert files == {"meta.json", "stdin", "test.bin", "train.bin", "val.bin"}
    assert Path("piped/stdin").read_bytes() == text


def test_standard_input_can_be_jsonl():
    command = [sys.executable, ROOT / "prepare.py", "--vocab_size=257", "--out_dir=piped"]
    done = subprocess.run([*command, "--input=-.jsonl", *ALL_TRAIN], capture_output=True,
                          input=lines(["first text", "second text"]))
    assert done.returncode == 0, done.stderr
    ids = np.fromfile("piped/train.bin", "uint16").tolist()
    assert ids == [*b"first text", 256, *b"second text", 256]


def test_zst_is_read_where_python_has_a_module_for_it():
    """Python 3.14 has compression.zstd; before that, one that reads gzip stands in for it."""
    compress = {".gz": gzip.compress, ".zst": gzip.compress}
    if ".zst" in prepare.COMPRESSED:
        from compression import zstd
        compress[".zst"] = zstd.compress
    else:
        Path("modules/compression").mkdir(parents=True)
        Path("modules/compression/__init__.py").touch()
        Path("modules/compression/zstd.py").write_text("from gzip import open\n")
    documents = [f"document {i} of a few words" for i in range(40)]
    for name in ("x.jsonl.zst", "y.jsonl.gz"):
        Path(name).write_bytes(compress[Path(name).suffix](lines(documents)))
        done = subprocess.run([sys.executable, ROOT / "prepare.py", f"--input={name}",
                               f"--out_dir={name[0]}", "--vocab_size=257"], text=True,
                              capture_output=True, env=os.environ | {"PYTHONPATH": "modules"})
        assert done.returncode == 0, done.stderr
    assert Path("x/train.bin").read_bytes() == Path("y/train.bin").read_bytes()


@pytest.mark.parametrize("name", ["x.jsonl.zst", "x.txt.zst", "x.parquet"])
def test_a_format_that_is_not_read_is_refused_with_what_to_do(name):
    if Path(name).suffix in prepare.COMPRESSED:
        pytest.skip("this Python reads it")
    Path(name).write_bytes(b"(\xb5/\xfd")
    last = fails(name, name, Path(name).suffix, "--input=-", ".jsonl")
    assert "convert" in last


def test_the_command_that_converts_a_parquet_file_writes_a_line_for_each_row():
    """A stand-in for pandas, whose to_json writes lines only if it is told to."""
    Path("pandas.py").write_text(
        "import json\nclass Table:\n    def to_json(self, orient='columns', lines=False):\n"
        "        rows = [json.dumps({'text': text}) for text in ('one', 'two')]\n"
        "        assert orient == 'records' or not lines\n"
        "        return '\\n'.join(rows) + '\\n' if lines else '[' + ','.join(rows) + ']'\n"
        "def read_parquet(path):\n    assert path == 'x.parquet'\n    return Table()\n")
    Path("x.parquet").write_bytes(b"PAR1")
    command = re.search(r"python (-c .*) \| python prepare", fails("x.parquet"))[1]
    Path("x.jsonl").write_bytes(subprocess.run(f'"{sys.executable}" {command}', shell=True,
                                               stdout=subprocess.PIPE, check=True).stdout)
    assert prepared("x.jsonl", *ALL_TRAIN)[0]["train"] == ["one", "two"]


def test_hidden_files_and_links_in_circles_are_left_out():
    for name in ("in/a.txt", "in/.hidden.txt", "in/.git/config", "in/v1.2/b.txt"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(name)
    Path("in/loop").symlink_to(".")
    Path("in/again").symlink_to("..")
    for source in ("in", "in/", "./in", f"{os.getcwd()}/in"):
        assert prepared(source, *ALL_TRAIN)[0]["train"] == ["in/a.txt", "in/v1.2/b.txt"]
    assert prepared("in/.hidden.txt", *ALL_TRAIN)[0]["train"] == ["in/.hidden.txt"]
    packed = {".travis.yml": b"no", ".git/HEAD": b"no", "__MACOSX/._a.txt": b"no",
              "./a.txt": b"first", "b/b.md": b"second"}
    Path("x.tar").write_bytes(tar(packed))
    Path("x.zip").write_bytes(zipped({"b/": b"", **packed}))
    for name in ("x.tar", "x.zip"):
        assert prepared(name, *ALL_TRAIN)[0]["train"] == ["first", "second"]


def test_members_of_an_archive_that_have_the_same_name_are_all_read():
    with pytest.warns(UserWarning), zipfile.ZipFile("x.zip", "w") as archive:
        for text in ("first", "second"):
            archive.writestr("a.txt", text)
    assert prepared("x.zip", *ALL_TRAIN)[0]["train"] == ["first", "second"]


def test_existing_files_come_before_patterns_and_names():
    Path("a1.txt").write_text("another")
    Path("a[1].txt").write_text("in brackets")
    Path("shakespeare").mkdir()
    Path("shakespeare", "mine.txt").write_text("mine")
    odd = os.fsdecode(b"odd\xff.txt")
    Path(odd).write_text("odd")
    for source, text in (("a[1].txt", "in brackets"), ("shakespeare", "mine"), (odd, "odd")):
        assert prepared(source, *ALL_TRAIN)[0]["train"] == [text]


def test_a_folder_that_cannot_be_read_is_named(monkeypatch):
    Path("in/locked").mkdir(parents=True)
    Path("in/a.txt").write_text("a")
    listdir = os.listdir

    def locked(path="."):  # a test that runs as root may read everything
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return listdir(path)

    monkeypatch.setattr(os, "listdir", locked)
    fails("in", "in/locked", "Permission denied")


@pytest.mark.parametrize("passes", [1, 2, 3])  # it is read three times
def test_a_text_on_a_failing_disk_is_named(passes, monkeypatch):
    Path("mine.txt").write_text("To be, or not to be. " * 50)
    left = [passes]

    def failing(stream, original=prepare.text_pieces):
        left[0] -= 1
        if left[0] == 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))  # reading names no file
        return original(stream)

    monkeypatch.setattr(prepare, "text_pieces", failing)
    code, _, err = call("prepare", "--input=mine.txt", "--vocab_size=257")
    assert (code, err) == (1, "error: mine.txt: Input/output error\n")


def test_a_name_with_commas_and_an_ending_in_capitals_can_be_given():
    Path("a,b.TXT").write_text("first text")
    assert prepared("a,b.TXT", *ALL_TRAIN)[0]["train"] == ["first text"]
    Path("B.JSONL").write_bytes(b"\xef\xbb\xbf" + lines(["one", "two"]).replace(b"\n", b"\r\n"))
    Path("C.JSONL.GZ").write_bytes(gzip.compress(Path("B.JSONL").read_bytes()))
    for name in ("B.JSONL", "C.JSONL.GZ"):  # with a byte order mark
        assert prepared(name, *ALL_TRAIN)[0]["train"] == ["one", "two"]


def test_a_byte_order_mark_is_no_part_of_a_text():
    Path("mark.txt").write_bytes("\ufeffO gentle \ufeffnight".encode())
    assert prepared("mark.txt", *ALL_TRAIN)[0]["train"] == ["O gentle \ufeffnight"]
    Path("invalid.txt").write_bytes(b"\xef\xbb\xbfO gentle \xff night")
    fails("invalid.txt", "invalid.txt: byte 12 is not UTF-8")


def test_empty_texts_are_no_documents(text):
    os.mkdir("in")
    Path("in/a.txt").write_text(text)
    Path("in/b.txt").write_text("")
    alone, _ = prepared("in/a.txt")
    assert prepared("in")[0] == alone
    Path("x.jsonl").write_bytes(lines(["one", "", "two"]))
    assert prepared("x.jsonl", *ALL_TRAIN)[0]["train"] == ["one", "two"]


def test_documents_of_which_none_is_for_training_are_refused():
    Path("x.jsonl").write_bytes(lines(["one " * 100, "two " * 100]))
    fails("x.jsonl", "x.jsonl", "training", arguments=["--val_fraction=0.99", "--test_fraction=0"])


def test_a_text_without_white_space_takes_time_in_proportion():
    Path("x.txt").write_text("x" * 6_000_000)
    start = time.process_time()
    pieces = list(prepare.document_pieces(["x.txt"]))
    assert len(pieces) == 1 and time.process_time() - start < 5  # 10 s if it were quadratic


LONG_LINES = {"json": '{"id":%d,"tags":["a","b2"],"it\'s":"don\'t!"},',
              "csv": "%d,word,-1.5;", "chinese": "第%d章漢字,仮名。",
              "marks": "%d,ab<|endoftext|>!"}


@pytest.mark.parametrize("name", LONG_LINES)
def test_a_line_of_3_mb_without_blanks_is_cut_where_no_token_crosses(name):
    text = "".join(LONG_LINES[name] % i for i in range(60_000))
    text = (text * (3_000_000 // len(text) + 1))[:3_000_000]
    Path("x.txt").write_text(text)
    pieces = [piece for piece, _ in prepare.document_pieces(["x.txt"])]
    assert "".join(pieces) == text and max(map(len, pieces)) < 300_000
    words = regex.findall(prepare.PATTERN, text)
    assert [word for piece in pieces for word in regex.findall(prepare.PATTERN, piece)] == words


def test_a_long_line_without_blanks_takes_time_and_memory_in_proportion():
    measured = []
    for copies in (20_000, 80_000):
        Path("x.txt").write_text("".join(LONG_LINES["json"] % i for i in range(copies)))
        tracemalloc.start()
        start = time.process_time()
        collections.deque(prepare.document_pieces(["x.txt"]), maxlen=0)
        measured.append((time.process_time() - start, tracemalloc.get_traced_memory()[1]))
        tracemalloc.stop()
    (time_small, memory_small), (time_large, memory_large) = measured
    assert memory_large < 1.5 * memory_small and time_large < 8 * time_small


def test_a_word_of_50_000_letters_does_not_slow_down_the_bpe(monkeypatch):
    Path("x.txt").write_text("".join(random.Random(1).choices("ACGT", k=50_000)) + " end")
    train_bpe, longest = prepare.train_bpe, []
    monkeypatch.setattr(prepare, "train_bpe", lambda words, size: longest.append(
        max(map(len, words))) or train_bpe(words, size))
    found, _ = prepared("x.txt", *ALL_TRAIN)
    assert found["train"] == [Path("x.txt").read_text()] and longest[0] <= 100


def test_the_member_that_is_broken_is_named():
    Path("x.tar").write_bytes(tar({"a.txt": b"good", "b.txt": b"bad \xff"}))
    fails("x.tar", "x.tar/b.txt: byte 4 is not UTF-8")
    Path("y.tar").write_bytes(tar({"a.txt": b"good", "b.txt.gz": b"not packed"}))
    assert "a.txt" not in fails("y.tar", "y.tar")


def test_another_key_and_characters_that_utf8_does_not_have():
    Path("x.jsonl").write_bytes(b'{"body": "one"}\n\n{"body": "two"}')
    assert prepared("x.jsonl", "--text_key=body", *ALL_TRAIN)[0]["train"] == ["one", "two"]
    Path("y.jsonl").write_bytes(b'{"text": "a \\ud800 b"}\n{"text": "c"}\n')
    assert "encoding_errors" in fails("y.jsonl", "y.jsonl: line 1", arguments=ALL_TRAIN)
    assert prepared("y.jsonl", "--encoding_errors=replace", *ALL_TRAIN)[0]["train"] == [
        "a \ufffd b", "c"]


def test_too_little_memory_for_a_line_is_not_taken_for_invalid_json(monkeypatch):
    def loads(line):
        raise MemoryError

    Path("x.jsonl").write_text('{"text": "one"}\n')
    monkeypatch.setattr(json, "loads", loads)
    assert "out of memory" in fails("x.jsonl")


def test_a_byte_order_mark_before_the_first_line_is_no_part_of_it():
    Path("x.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "one"}\r\n{"text": "two"}\r\n')
    assert prepared("x.jsonl", *ALL_TRAIN)[0]["train"] == ["one", "two"]


@pytest.mark.parametrize("ending", ["", *".txt .md .rst .tex .html .csv .log .py .c .h .js .raw "
                                    ".tokens .TXT".split()])
def test_each_ending_of_a_text_is_read_as_plain_text(ending):
    Path(f"x{ending}").write_text("a, <b> {c}\n")
    assert prepared(f"x{ending}", *ALL_TRAIN)[0]["train"] == ["a, <b> {c}\n"]


def test_bytes_that_are_not_utf8_can_be_replaced():
    Path("x.txt").write_bytes(b"good \xff bad \xc3")
    Path("y.txt.gz").write_bytes(gzip.compress(b"x" * 70_000 + b"\xff" + b"x" * 70_000))
    fails("x.txt", "x.txt: byte 5 is not UTF-8", "--encoding_errors")
    fails("y.txt.gz", "y.txt.gz: byte 70000 is not UTF-8")
    found, _ = prepared("x.txt", "--encoding_errors=replace", *ALL_TRAIN)
    assert found["train"] == ["good \ufffd bad \ufffd"]


# ---- 2. documents -------------------------------------------------------------------------------

def test_a_split_without_documents_is_announced_with_what_to_do():
    Path("x.jsonl").write_bytes(lines([f"Document {i} " * 50 for i in range(3)]))
    arguments = "--input=x.jsonl", "--vocab_size=257", "--out_dir=out"
    code, out, err = call("prepare", *arguments, "--val_fraction=0.01", "--test_fraction=0")
    splits = json.loads(Path("out/meta.json").read_text())["splits"]
    assert code == 0 and splits["val"]["tokens"] == 0 < splits["train"]["tokens"]
    note, = err.splitlines()
    assert "val" in note and "val_fraction" in note and "one file" in note
    code, out, err = call("prepare", *arguments, *ALL_TRAIN)  # empty, since it is meant to be
    assert code == 0 and err == ""


MARKED = "<|endoftext|>one story\n<|endoftext|><|endoftext|>\nanother\n<|endoftext|>the last"


@pytest.mark.parametrize("name, content", [
    ("x.txt", MARKED.encode()), ("x.jsonl", lines([MARKED])),
    ("y.jsonl", lines(["one story\n", "\nanother\n<|endoftext|>the last<|endoftext|>"]))])
def test_marks_in_a_text_can_end_documents(name, content):
    Path(name).write_bytes(content)
    found, meta = prepared(name, "--split_on_eot", *ALL_TRAIN)
    assert found["train"] == ["one story\n", "\nanother\n", "the last"]
    assert meta["source"]["bytes"] == sum(len(text) for text in found["train"])


def test_marks_are_found_wherever_a_text_is_cut_into_pieces():
    documents = [f"{i} " + "ab," * (i * 7 % 60_000) for i in range(0, 30_000, 1000)]
    Path("x.txt").write_text("<|endoftext|>".join(documents))
    found, _ = prepared("x.txt", "--split_on_eot", *ALL_TRAIN)
    assert found["train"] == documents


def test_a_note_says_that_marks_are_taken_as_text_and_how_to_split_on_them():
    Path("x.txt").write_text(MARKED)
    arguments = "--input=x.txt", "--vocab_size=257", "--out_dir=out", *ALL_TRAIN
    code, _, err = call("prepare", *arguments)
    note, = err.splitlines()
    assert code == 0 and "<|endoftext|> occurs 4 times" in note and "--split_on_eot" in note
    assert np.fromfile("out/train.bin", "uint16").tolist() == [*MARKED.encode()]
    code, _, err = call("prepare", *arguments, "--split_on_eot")
    assert code == 0 and err == ""

def test_documents_end_with_endoftext_and_adding_some_moves_none():
    Path("few.jsonl").write_bytes(lines(DOCUMENTS[:40]))
    Path("more.jsonl").write_bytes(lines(DOCUMENTS[::-1]))
    few, meta = prepared("few.jsonl", "--val_fraction=0.25", "--test_fraction=0.25")
    more, _ = prepared("more.jsonl", "--val_fraction=0.25", "--test_fraction=0.25")
    assert sorted(sum(few.values(), [])) == sorted(DOCUMENTS[:40])
    assert sorted(sum(more.values(), [])) == sorted(DOCUMENTS)
    for split in prepare.SPLITS:
        assert few[split] and set(few[split]) <= set(more[split])
        assert meta["splits"][split]["bytes"] == sum(len(text.encode()) for text in few[split])
    assert 8 < len(more["val"]) < 22 and 8 < len(more["test"]) < 22


def test_a_document_has_the_split_that_its_hash_had_in_every_version():
    """Else test documents would become training documents once the data is prepared again."""
    documents = [f"{i} {'x y ' * 20_000}" if i % 4 == 0 else f"{i} text" for i in range(40)]
    documents[5] += "\u00e9"
    Path("x.jsonl").write_bytes(lines(documents))
    expected = {split: [] for split in prepare.SPLITS}
    for document in documents:
        u = int(hashlib.sha256(document[:65536].encode()).hexdigest()[:12], 16) / 16**12
        expected["test" if u < 0.3 else "val" if u < 0.5 else "train"].append(document)
    assert all(map(len, expected.values()))
    found, _ = prepared("x.jsonl", "--val_fraction=0.2", "--test_fraction=0.3")
    assert found == expected


def test_a_document_that_a_mark_ends_has_the_same_split_wherever_it_stands():
    text = (ROOT / "input.txt").read_text()
    documents = [f"{i} {text[i * 3000:][:2500]}" for i in range(150)]
    found = []
    for begin in range(3):
        Path("x.txt").write_text("<|endoftext|>".join(documents[begin:]))
        found.append(prepared("x.txt", "--split_on_eot", "--val_fraction=0.3")[0])
        for split in prepare.SPLITS:
            assert found[-1][split] == [d for d in found[0][split] if d in documents[begin:]]


def test_a_document_has_the_same_split_in_whatever_file_it_comes():
    text = (ROOT / "input.txt").read_text()
    documents = sorted([f"{i} invoice number {i}" for i in range(60)]
                       + [f"{i} {text[i:i + 200_000]}" for i in range(20)])
    Path("x.jsonl").write_bytes(lines(documents))
    for i, document in enumerate(documents):
        Path(f"{i:02}.txt").write_text(document)
    half = ("--val_fraction=0.5", "--test_fraction=0")
    assert prepared("*.txt", *half)[0] == prepared("x.jsonl", *half)[0]
    assert len(prepared("*.txt", *half)[0]["val"]) in range(20, 60)


def test_the_special_token_in_a_text_is_ordinary_text():
    Path("x.jsonl").write_bytes(lines(["a <|endoftext|> b", "c"]))
    succeed("prepare", "--input=x.jsonl", "--vocab_size=257", "--out_dir=out", *ALL_TRAIN)
    ids = np.fromfile("out/train.bin", "uint16").tolist()
    assert ids == [*b"a <|endoftext|> b", 256, *b"c", 256]


def test_long_documents_are_kept_whole_in_one_split():
    long = [f"{i} {(ROOT / 'input.txt').read_text()[i * 1000:i * 1000 + 200_000]}"
            for i in range(8)]
    for i, text in enumerate(long):
        Path(f"{i}.txt").write_text(text)
    found, _ = prepared("*.txt", "--val_fraction=0.4", "--test_fraction=0")
    assert sorted(found["train"] + found["val"]) == long and found["train"] and found["val"]


def test_the_files_are_the_same_for_any_number_of_workers():
    Path("x.jsonl").write_bytes(lines(DOCUMENTS * 20))
    Path("y.txt").write_bytes((ROOT / "input.txt").read_bytes() * 4)
    seen = set()
    for workers in (1, 2, 5):
        prepared("x.jsonl,y.txt", f"--workers={workers}")
        seen.add(tuple(Path(f"out/{split}.bin").read_bytes() for split in prepare.SPLITS))
    assert len(seen) == 1


def test_the_bpe_can_be_trained_on_a_sample_from_all_over_the_text(monkeypatch):
    Path("x.jsonl").write_bytes(lines([f"word{i} " * 100 for i in range(1000)]))
    learned = []
    monkeypatch.setattr(prepare, "train_bpe", lambda words, size: learned.append(words) or [
        chr(i) for i in range(256)])
    for megabytes in (20, 0.1):
        prepared("x.jsonl", f"--bpe_sample_mb={megabytes}", *ALL_TRAIN)
    sizes = [sum(len(word) * count for word, count in words.items()) for words in learned]
    numbers = sorted(int(word) for word in learned[1] if word.isdigit())
    assert sizes[0] > 700_000 and 0.09e6 < sizes[1] < 0.12e6
    assert numbers[0] < 20 and numbers[-1] > 980
    prepared("x.jsonl", "--bpe_sample_mb=0.1", "--val_fraction=0.4", "--test_fraction=0.4")
    assert 0.07e6 < sum(len(word) * count for word, count in learned[2].items()) < 0.13e6


def test_gpt2s_bytes_per_token_are_printed_where_its_vocabulary_is_cached(text):
    try:
        prepare.find_tokenizer("gpt2")
    except OSError as error:
        pytest.skip(f"GPT-2's vocabulary is not available here: {error}")
    Path("x.txt").write_text(text)
    out = succeed("prepare", "--input=x.txt", "--vocab_size=300", "--out_dir=out")
    val = prepare.load_tokenizer(prepare.find_tokenizer("gpt2")).encode_ordinary(
        text[int(0.8 * len(text)):int(0.9 * len(text))])
    size = json.loads(Path("out/meta.json").read_text())["splits"]["val"]["bytes"]
    line, = [line for line in out.splitlines() if "GPT-2's" in line]
    assert f" {size / len(val):.2f} bytes/token" in line


# ---- the lock -----------------------------------------------------------------------------------

@pytest.mark.skipif(os.name == "nt", reason="there is no flock")
@pytest.mark.parametrize("source", ["x.txt", "-"])
def test_a_second_prepare_in_the_same_folder_is_refused_and_the_first_succeeds(source, text):
    Path("x.txt").write_bytes((ROOT / "input.txt").read_bytes())
    Path("y.txt").write_text(text)
    command = [sys.executable, ROOT / "prepare.py", "--out_dir=out"]
    with open("x.txt") as stdin, subprocess.Popen([*command, f"--input={source}"], stdin=stdin,
                                                  stdout=subprocess.DEVNULL) as first:
        lock = Path("out/.lock")
        while first.poll() is None and not (lock.exists() and lock.read_text()):
            time.sleep(0.01)
        first.send_signal(signal.SIGSTOP)  # it learns its BPE, which takes a while
        before = sorted(os.listdir("out"))
        code, out, err = call("prepare", "--input=y.txt", "--vocab_size=300", "--out_dir=out")
        piped = subprocess.run([*command, "--input=y.txt,-"], input=b"other", capture_output=True)
        after = sorted(os.listdir("out"))
        first.send_signal(signal.SIGCONT)
    assert code == 1 and out == "" and err.count("\n") == 1
    assert f"out is in use by process {first.pid}" in err and "another folder" in err
    assert piped.returncode == 1 and b"out is in use by process" in piped.stderr
    assert after == before
    assert first.returncode == 0
    about = json.loads(Path("out/meta.json").read_text())["source"]
    digest = hashlib.sha256(Path("x.txt").read_bytes()).hexdigest()
    assert about["name"] == source and about["sha256"] == digest
    prepared("y.txt")  # the lock ends with the process


# ---- 3. errors ----------------------------------------------------------------------------------

@pytest.mark.parametrize("name, content, words", [
    ("x.txt", None, ["no such file"]), ("*.txt", None, ["pattern"]),
    ("x.pdf", b"text", ["x.pdf", ".pdf", ".jsonl"]),
    ("x.zip", zipped({"a.exe": b"text"}), ["x.zip", ".exe"]),
    ("x.zip", b"no archive", ["x.zip", "zip"]), ("x.zip", zipped(PLAIN)[:-30], ["x.zip"]),
    ("x.gz", b"no archive", ["x.gz"]), ("x.bz2", b"no archive", ["x.bz2"]),
    ("x.xz", b"no archive", ["x.xz"]), ("x.tar", b"no archive", ["x.tar"]),
    ("x.tar", tar(PLAIN)[:700], ["x.tar"]), ("x.tar", tar(PLAIN)[:1024], ["x.tar"]),
    ("x.tar", tar(PLAIN)[:1030], ["x.tar"]), ("x.tar.gz", tar(PLAIN, "w:gz")[:-9], ["x.tar"]),
    ("x.jsonl", b'{"text": "a"}\n{"text": \n', ["x.jsonl", "line 2", "JSON"]),
    ("x.jsonl", b'{"text": "a"}\n\n{"body": "b"}\n', ["line 3", "text"]),
    ("x.jsonl", b'["a"]\n', ["line 1"]), ("x.jsonl", b'{"text": 7}', ["line 1"]),
    ("x.jsonl", b'{"text": "\xff"}', ["byte 10 is not UTF-8"]),
    ("x.jsonl", b"[" * 100_000, ["line 1"]), ("x.jsonl", b"\n\n", ["x.jsonl", "0 characters"]),
], ids=itertools.count())
def test_a_source_that_is_broken_is_named_in_one_line(name, content, words):
    if content is not None:
        Path(name).write_bytes(content)
    fails(name, *words)


@pytest.mark.parametrize("name", ["x.txt.gz", "x.txt.bz2", "x.txt.xz", "x.tar.gz", "x.tar.bz2",
                                  "x.tar.xz", "x.zip", "x.tar"])
def test_archives_with_random_damage_end_in_success_or_one_line(name):
    text = (ROOT / "input.txt").read_bytes()[:20_000]
    files = {f"{i}.txt": text[i * 5000:][:5000] for i in range(4)}
    whole = {"x.txt.gz": gzip.compress(text), "x.txt.bz2": bz2.compress(text),
             "x.txt.xz": lzma.compress(text), "x.zip": zipped(files), "x.tar": tar(files),
             "x.tar.gz": tar(files, "w:gz"), "x.tar.bz2": tar(files, "w:bz2"),
             "x.tar.xz": tar(files, "w:xz")}[name]
    dice = random.Random(name)
    Path(name).write_bytes(whole)
    right = list(prepare.document_pieces([name]))
    for case in range(60):
        damaged = bytearray(whole)
        if case % 3 == 0:
            del damaged[dice.randrange(len(damaged)):]
        else:
            for _ in range(1 if case % 3 == 1 else 20):
                damaged[dice.randrange(min(len(damaged), dice.choice([600, len(damaged)])))] ^= (
                    1 << dice.randrange(8))
        Path(name).write_bytes(damaged)
        try:
            found = list(prepare.document_pieces([name]))
        except ValueError as error:
            assert str(error).startswith("x.") and len(str(error).splitlines()) == 1
        else:  # only a plain tar has no checksum of its contents
            assert found == right or name == "x.tar" and case % 3, case


def test_a_full_disk_is_one_line_and_leaves_nothing(monkeypatch):
    Path("x.txt").write_bytes((ROOT / "input.txt").read_bytes()[:20_000])

    class Full(io.FileIO):
        def write(self, data):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(prepare, "open", lambda path, mode="r", **options: (
        Full(path, mode) if mode == "wb" else open(path, mode, **options)), raising=False)
    fails("x.txt", "none/", "No space left on device", arguments=["--vocab_size=300"])


# ---- 4. URLs ------------------------------------------------------------------------------------

TEXT = (ROOT / "input.txt").read_bytes()[:200_000]


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers as the first part of the path says."""
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        mode = self.path.split("/")[1]
        seen = self.server.seen
        seen.append(int(self.headers["Range"].removeprefix("bytes=").removesuffix("-")))
        start = 0 if mode == "ignores" else seen[-1]
        status = 503 if mode == "twice" and len(seen) <= 2 else 200 if mode == "ignores" else 206
        status = int(mode) if mode.isdigit() else status
        body = TEXT[start:] if status in (200, 206) else b""
        if mode == "restarts" and start > len(TEXT):
            self.send_error(416)
            return
        self.send_response(status)
        if mode == "capped":  # never more than 90,000 bytes of it in one answer
            body = body[:90_000]
            whole = f"bytes {start}-{start + len(body) - 1}/{len(TEXT)}"
            self.send_header("Content-Range", whole)
        if mode == "restarts" and len(seen) == 2:  # it was asked for the rest, and gives all
            body = TEXT
            self.send_header("Content-Range", f"bytes 0-{len(TEXT) - 1}/{len(TEXT)}")
        length = f"{len(body)}, {len(body)}" if mode == "two-lengths" else str(len(body))
        self.send_header("Content-Length", length)
        self.close_connection = mode == "two-lengths"
        self.end_headers()
        if mode in ("breaks", "ignores", "restarts") and len(seen) == 1:
            self.wfile.write(body[:len(TEXT) // 2])
            self.close_connection = True
        else:
            self.wfile.write(body)


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.seen = []
        server.at = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield server
        server.shutdown()


def downloads():
    return sorted(path.name for path in Path("data/downloads").glob("*"))


@pytest.mark.parametrize("mode, requests", [("whole", 1), ("breaks", 2), ("ignores", 2),
                                            ("twice", 3), ("capped", 3), ("two-lengths", 1),
                                            ("restarts", 4)])
def test_a_url_is_downloaded_completely_whatever_the_server_does(server, mode, requests):
    Path("x.txt").write_bytes(TEXT)
    expected, _ = prepared("x.txt")
    address = f"{server.at}/{mode}/text.txt?download=true"
    assert prepared(address)[0] == expected and len(server.seen) == requests
    if mode in ("breaks", "ignores"):  # what came before the break is not asked for again
        assert 0 < server.seen[1] <= len(TEXT) // 2
    assert len(downloads()) == 1 and downloads()[0].endswith("-text.txt")
    assert prepared(address)[0] == expected and len(server.seen) == requests  # kept


def test_urls_that_end_alike_are_kept_apart(server):
    prepared(f"{server.at}/whole/text.txt?1,{server.at}/whole/text.txt?2", *ALL_TRAIN)
    assert len(downloads()) == 2


@pytest.mark.parametrize("mode, requests", [("404", 1), ("403", 1), ("503", 5)])
def test_a_url_that_is_refused_is_one_line_and_leaves_no_file(server, mode, requests):
    address = f"{server.at}/{mode}/text.txt"
    fails(address, address, mode)
    assert len(server.seen) == requests and not downloads()


def test_no_server_is_one_line(server):
    server.shutdown()
    server.server_close()
    fails(f"{server.at}/x.txt", server.at, "network")
    assert not downloads()


@pytest.mark.parametrize("address", ["s3://bucket/x.txt", "http://"])
def test_an_invalid_url_is_not_retried(monkeypatch, address):
    waits = []
    monkeypatch.setattr(prepare.time, "sleep", waits.append)
    fails(address, address)
    assert waits == []


def test_a_name_in_sources_py_stands_for_its_url(monkeypatch):
    asked = []

    def download(url, path):
        asked.append(url)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(
            tar({"openwebtext/10k.xz": tar(PLAIN, "w:xz")}, "w:xz") if "tar" in path else TEXT)

    monkeypatch.setattr(prepare, "download", download)
    for name, address in prepare.SOURCES.items():
        prepared(name, *ALL_TRAIN)
        assert asked[-1] == address and address.startswith("https://")
    assert set(prepare.SOURCES) == {"shakespeare", "the-verdict", "wikitext-103",
                                    "openwebtext-10k"}


# ---- 5. any size --------------------------------------------------------------------------------

MEASURE = """
import sys
from pathlib import Path
import config, prepare

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024

name, *arguments = sys.argv[1:]
before = peak()
assert config.run(prepare.main, [f"--input={name}", "--out_dir=out", *arguments]) == 0
print(before, peak())
"""


def peak(name, *arguments):
    """Return the peak memory of preparing a text (MB), and how much of it the text is to blame for.
    """
    done = subprocess.run([sys.executable, "-c", MEASURE, name, *arguments], capture_output=True,
                          text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    before, after = map(float, done.stdout.splitlines()[-1].split())
    return after, after - before


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="measured as Linux does it")
@pytest.mark.parametrize("name", ["x.txt", "x.jsonl.gz"])
def test_the_memory_needed_does_not_grow_with_the_text(name):
    text = (ROOT / "input.txt").read_bytes()
    megabytes = int(os.environ.get("CORPUS_MB", 60))  # 2000 is the real trial
    copies = megabytes * 1_000_000 // len(text)
    parts = [text.decode()[i:i + 3000] for i in range(0, len(text), 3000)]
    with (gzip.open(name, "wb", 1) if name.endswith("gz") else open(name, "wb")) as file:
        for _ in range(copies):
            file.write(lines(parts) if "json" in name else text)
    total, own = peak(name, "--bpe_sample_mb=1", "--workers=2")
    print(f"{megabytes} MB of text: {own:.0f} MB, {total:.0f} MB in all")
    assert total < 600 and own < 80  # the text would be too much for that


def test_a_corpus_of_20_gb_is_opened_at_once_and_costs_the_pages_it_touches():
    os.makedirs("data")
    with open("data/train.bin", "wb") as file:
        file.truncate(20_000_000_000)
    with open("data/val.bin", "wb") as file:
        file.truncate(2_000_000)
    about = {split: {"fingerprint": prepare.fingerprint(f"data/{split}.bin")}
             for split in ("train", "val")}
    Path("data/meta.json").write_text(json.dumps(prepare.sealed(
        {"vocab_size": 257, "dtype": "uint16", "splits": about,
         "tokenizer": {"name": "bpe", "tokens": [chr(i) for i in range(256)]}})))
    memory = lambda: 4096 * int(Path("/proc/self/statm").read_text().split()[1])  # bytes
    before, start = memory(), time.perf_counter()
    meta, data = train.load_data("data")
    batch = train.get_batch(data["train"], 10**6)
    seconds, opened = time.perf_counter() - start, memory()
    for first in range(0, 20 * train.batch_size, train.batch_size):
        train.get_batch(data["train"], first)
    print(f"{seconds:.3f} s, {opened - before:,} bytes, then {memory() - opened:,}")
    assert len(data["train"]) == 10**10 and len(batch) == train.batch_size and seconds < 2
    assert memory() - before < 30e6


@pytest.mark.skipif(sys.platform != "linux", reason="Linux says how a map is read")
def test_token_files_are_mapped_without_read_ahead(tmp_path):
    np.zeros(5000, np.uint16).tofile("train.bin")
    tokens = train.Tokens([tmp_path / "train.bin"], "uint16")
    maps = Path("/proc/self/smaps").read_text()
    flags = re.findall(r"/train\.bin\n(?:\w+: .*\n)*?VmFlags: (.*)", maps)
    assert len(tokens) == 5000 and flags and all(" rr " in f" {each} " for each in flags)


def test_the_order_of_ten_billion_tokens_has_no_block_twice():
    n = 10**10 // 1024
    dice = random.Random(1)
    places = dice.sample(range(n), 20_000)
    found = {train.shuffled(k, n, 1337, 0) for k in places}
    assert len(found) == len(places) and all(0 <= k < n for k in found)


def test_a_folder_on_a_file_system_without_locks_can_be_used(tmp_path, monkeypatch):
    def flock(file, operation):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", flock)
    assert prepare.lock_folder(tmp_path / "new") is None


@pytest.mark.parametrize("k", range(14))
def test_a_mark_that_the_end_of_a_block_cuts_ends_its_document_all_the_same(k, monkeypatch):
    first = "x" * (2**17 - k)  # prepare.py reads 2**17 characters at a time
    Path("x.txt").write_text(f"{first}<|endoftext|>second")
    monkeypatch.setattr(prepare, "split_on_eot", True)
    documents, rest = [], ""
    for text, is_last in prepare.document_pieces(["x.txt"]):
        rest += text
        if is_last:
            documents.append(rest)
            rest = ""
    assert documents == [first, "second"] and rest == ""


def test_a_file_of_8_mb_changed_at_any_of_64_places_has_another_fingerprint():
    content = np.random.default_rng(0).bytes(8 << 20)
    Path("x").write_bytes(content)
    before = prepare.fingerprint("x")
    for place in (0, 5 << 20, (63 * 8 << 20) // 64):
        changed = bytearray(content)
        changed[place] ^= 1
        Path("x").write_bytes(changed)
        assert prepare.fingerprint("x") != before, place
    Path("x").write_bytes(content + b"\0")
    assert prepare.fingerprint("x") != before


def test_memory_does_not_grow_with_the_members_of_an_archive():
    peaks = []
    for n in (500, 5000):
        with tarfile.open("x.tar", "w") as archive:
            for i in range(n):
                info = tarfile.TarInfo(f"{i}.txt")
                info.size = 1
                archive.addfile(info, io.BytesIO(b"x"))
        tracemalloc.start()
        assert sum(is_last for _, is_last in prepare.document_pieces(["x.tar"])) == n
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]


def test_the_lock_of_a_folder_that_was_used_before_names_the_process_that_has_it_now():
    Path("out").mkdir()
    Path("out/.lock").write_text("123456")
    lock = prepare.lock_folder("out")
    with pytest.raises(ValueError, match=f"out is in use by process {os.getpid()}: "):
        prepare.lock_folder("out")
    lock.close()


@pytest.mark.parametrize("arguments, n_threads", [(["--workers=3"], 3), ([], os.cpu_count())])
def test_as_many_threads_encode_as_workers_says_or_as_there_are_cores(arguments, n_threads,
                                                                      monkeypatch):
    asked, threads = [], prepare.ThreadPoolExecutor
    monkeypatch.setattr(prepare, "ThreadPoolExecutor", lambda n: asked.append(n) or threads(n))
    Path("x.txt").write_text("some words " * 100)
    succeed("prepare", "--input=x.txt", "--vocab_size=257", "--out_dir=out", *arguments)
    assert asked == [n_threads]


def test_a_document_of_one_long_word_has_the_same_split_in_whatever_file_it_comes():
    import random
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "val_fraction", 0.5)
        for i in range(12):
            text = f">chr{i}\n" + "".join(random.Random(i).choices("ACGT", k=200_000))
            Path("x.txt").write_text(text)
            Path("x.jsonl").write_text(json.dumps({"text": text}))
            as_text, as_json = ([split for split, *_ in prepare.split_by_hash(
                prepare.document_pieces([name]))] for name in ("x.txt", "x.jsonl"))
            assert {*as_text} == {*as_json}, i


def test_a_document_after_a_mark_across_two_blocks_begins_with_a_piece_long_enough_to_hash(
        monkeypatch):
    monkeypatch.setattr(prepare, "split_on_eot", True)
    for n_before in range(1, 13):  # characters of the mark at the end of the first block
        document = "\n>chr1\n" + "ACGT" * 40_000
        Path("x.txt").write_text("x" * (2**17 - n_before) + prepare.END_OF_TEXT + document)
        pieces = [text for text, _ in prepare.document_pieces(["x.txt"])]
        assert len(pieces[0]) == 2**17 - n_before and len(pieces[1]) >= 65536, n_before
        assert "".join(pieces[1:]) == document
