"""Tokenizers of other tools: a few dozen tokenizer.json of the `tokenizers` library give either the
library's own ids here, or an error with the reason. None is silently different."""

import json
import random
from pathlib import Path

import pytest
from conftest import ROOT, call, succeed
from test_prepare import EVERY_KIND
from test_weight_files import CONFIG, gpt2_tensors, make_model, write_safetensors

from model import GPT
from prepare import END_OF_TEXT, load_tokenizer

tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")

VOCAB_SIZE = 600  # of the model: rows of wte
CORPUS = (ROOT / "input.txt").read_text(encoding="utf-8")[:20_000]
TEXT = EVERY_KIND.replace(END_OF_TEXT, "<| endoftext |>") + (
    CORPUS[5000:9000] + "don't DON'T 'twas we'll\u2019s  \n\n  \n x²  fin\r\n\r\n\t\tif (a == b):\n"
    + "\ufb01ne \uff21 e\u0301 \u0130 ß " + "".join(map(chr, range(1, 0x3000, 7)))
    + "a" * 50 + "ab" * 20 + " " * 9)


def train(special=(END_OF_TEXT,), vocab_size=400, **options):
    """Return a tokenizer.json, parsed, of a byte-level BPE with the special tokens first."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.train_from_iterator([CORPUS], tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=list(special), show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(), **options))
    return json.loads(tokenizer.to_str())


def add(found, *names, **options):
    """Add special tokens after training: behind all others."""
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(found))
    tokenizer.add_tokens([tokenizers.AddedToken(name, **{"special": True, **options})
                          for name in names])
    found.clear()
    found.update(json.loads(tokenizer.to_str()))
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model without a tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    write_safetensors(folder, gpt2_tensors(make_model(vocab_size=VOCAB_SIZE)))
    return folder


def opened(folder, found, **config):
    """Return the description of the tokenizer that a model with this tokenizer.json has here."""
    for path in folder.glob("*.json"):
        path.unlink()
    about = CONFIG | dict(vocab_size=VOCAB_SIZE) | config
    (folder / "config.json").write_text(json.dumps(about))
    (folder / "tokenizer.json").write_text(json.dumps(found), encoding="utf-8")
    return GPT.from_pretrained(folder).tokenizer


def assert_equal_ids(description, theirs, text=TEXT):
    """Compare with the library: ordinary text, and text with each special token in it."""
    encoding = load_tokenizer(description)
    assert encoding.encode_ordinary(text) == theirs.encode(text).ids
    special = {token.content: i for i, token in theirs.get_added_tokens_decoder().items()}
    marked = "".join(f"Who's {name}{name} there?\n" for name in special) + "fin"
    assert encoding.encode(marked, allowed_special="all") == theirs.encode(marked).ids
    for name, i in special.items():
        assert i in encoding.encode(name, allowed_special="all")
    ids = theirs.encode(text).ids
    assert encoding.decode(ids) == text


# ---- what opens ---------------------------------------------------------------------------------

def strings(found):
    """Merges as one string each, as they were until tokenizers 0.20."""
    found["model"]["merges"] = [" ".join(pair) for pair in found["model"]["merges"]]
    return found


def changed(found, **options):
    found["model"].update(options)
    return found


def byte_level(found, **options):
    found["pre_tokenizer"].update(options)
    return found


def with_post_processor(found):
    found["post_processor"] = {"type": "ByteLevel", "add_prefix_space": True,
                               "trim_offsets": False, "use_regex": True}
    return found


ROBERTA = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
OPEN = {
    "first": lambda: train(),
    "five first": lambda: train(ROBERTA),
    "last": lambda: add(train(()), END_OF_TEXT),
    "first and last": lambda: add(train(), "<pad>"),
    "two last": lambda: add(train(()), END_OF_TEXT, "[PAD]"),
    "another name first": lambda: train(("<s>",)),
    "another name last": lambda: add(train(()), "</s>"),
    "chat": lambda: add(train(), "<|im_start|>", "<|im_end|>", "<|user|>"),
    "only bytes": lambda: train(vocab_size=257),
    "few merges": lambda: train(vocab_size=270),
    "as many as wte has": lambda: train(vocab_size=VOCAB_SIZE),
    "short tokens": lambda: train(max_token_length=3),
    "frequent pairs": lambda: train(min_frequency=20),
    "strings": lambda: strings(train()),
    "strings, last": lambda: strings(add(train(()), END_OF_TEXT)),
    "ignore_merges": lambda: changed(train(), ignore_merges=True),
    "post-processor": lambda: with_post_processor(train(ROBERTA)),
    "a template": lambda: train() | {"post_processor": made_by(processors.TemplateProcessing(
        single="$A:0", pair="$A:0 $B:1"))},  # as transformers 5 saves GPT-2's
    "trim_offsets": lambda: byte_level(train(), trim_offsets=False),
    "no prefixes": lambda: changed(train(), continuing_subword_prefix="", end_of_word_suffix=""),
}


@pytest.mark.parametrize("name", OPEN)
def test_a_byte_level_bpe_gives_the_librarys_ids(name, folder):
    found = OPEN[name]()
    theirs = tokenizers.Tokenizer.from_str(json.dumps(found))
    assert_equal_ids(opened(folder, found), theirs)


def test_bytelevelbpetokenizer_opens(folder):
    theirs = tokenizers.ByteLevelBPETokenizer()
    theirs.train_from_iterator([CORPUS], vocab_size=400, special_tokens=list(ROBERTA),
                               show_progress=False)
    found = json.loads(theirs.to_str())
    assert_equal_ids(opened(folder, found), tokenizers.Tokenizer.from_str(theirs.to_str()))


@pytest.mark.parametrize("special, eos, expected", [
    ((END_OF_TEXT,), 0, 0), ((END_OF_TEXT, "<pad>"), 0, 0), (ROBERTA, 2, 2), (ROBERTA, 0, 0),
    ((END_OF_TEXT, "<|im_end|>"), 1, 1), (("<pad>", END_OF_TEXT), None, 1),
    (("<pad>", END_OF_TEXT), 599, 1), (("<pad>", "<s>"), None, 0)])
def test_the_config_says_which_token_ends_a_text(special, eos, expected, folder):
    about = {} if eos is None else dict(eos_token_id=eos)
    assert load_tokenizer(opened(folder, train(special), **about)).end_id == expected


def test_an_id_between_the_tokens_that_none_has_can_be_decoded(folder):
    found = train(())
    vocab = found["model"]["vocab"]
    vocab[max(vocab, key=vocab.get)] = 400  # 399 is free
    found["added_tokens"] = [dict(id=401, content=END_OF_TEXT, special=True, normalized=False,
                                  lstrip=False, rstrip=False, single_word=False)]
    encoding = load_tokenizer(opened(folder, found))
    assert (encoding.n_vocab, encoding.end_id) == (402, 401)
    assert encoding.decode([399]) == "<|unused 399|>"


def test_an_id_that_no_token_has_can_be_decoded(folder, tmp_path):
    found = train()
    vocab = found["model"]["vocab"]
    vocab[max(vocab, key=vocab.get)] = 450  # the last token: no merge needs it
    description = opened(folder, found)
    assert_equal_ids(description, tokenizers.Tokenizer.from_str(json.dumps(found)))
    encoding = load_tokenizer(description)
    assert encoding.n_vocab == 451
    assert "<|unused 420|>" in encoding.decode(range(451))  # an untrained model draws any of them
    GPT.from_pretrained(folder).save_pretrained(tmp_path / "exported")
    exported = tokenizers.Tokenizer.from_file(str(tmp_path / "exported" / "tokenizer.json"))
    assert_equal_ids(description, exported)


def write_two_files(folder, found, names=("vocab.json", "merges.txt")):
    """Write these files in place of tokenizer.json; return the library's tokenizer."""
    opened(folder, found)
    (folder / "tokenizer.json").unlink()
    vocabulary, merges = (folder / name for name in names)
    vocabulary.write_text(json.dumps(found["model"]["vocab"]), encoding="utf-8")
    merges.write_text("\n".join(["#version: 0.2", *strings(found)["model"]["merges"], ""]),
                      encoding="utf-8")
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE.from_file(str(vocabulary), str(merges)))
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    return theirs


@pytest.mark.parametrize("names", [("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")])
@pytest.mark.parametrize("special", [(END_OF_TEXT,), ROBERTA, ()], ids=["first", "five", "last"])
def test_two_files_of_vocabulary_and_merges_open(names, special, folder):
    found = train(special) if special else train(())
    if not special:  # OpenAI's order
        found["model"]["vocab"][END_OF_TEXT] = len(found["model"]["vocab"])
    theirs = write_two_files(folder, found, names)
    description = GPT.from_pretrained(folder).tokenizer
    for name in names:
        (folder / name).unlink()
    encoding = load_tokenizer(description)
    assert encoding.encode_ordinary(TEXT) == theirs.encode(TEXT).ids
    last = found["model"]["vocab"][special[0] if special else END_OF_TEXT]
    assert last in encoding.encode(special[0] if special else END_OF_TEXT, allowed_special="all")


@pytest.fixture
def two_files(folder):
    theirs = write_two_files(folder, train())
    theirs.add_special_tokens([END_OF_TEXT])
    yield theirs
    for name in ("merges.txt", "vocab.json", "added_tokens.json", "tokenizer_config.json"):
        (folder / name).unlink(missing_ok=True)


def test_tokens_added_to_two_files_have_their_ids(two_files, folder):
    names = ["<|user|>", "[PAD]", "foobar"]
    first = two_files.get_vocab_size()
    (folder / "added_tokens.json").write_text(json.dumps(
        {name: first + i for i, name in enumerate(names)}), encoding="utf-8")
    two_files.add_special_tokens(names)
    assert_equal_ids(GPT.from_pretrained(folder).tokenizer, two_files)


@pytest.mark.parametrize("key", ["add_prefix_space", "add_bos_token"])
def test_a_tokenizer_config_that_adds_to_each_text_is_refused(key, two_files, folder):
    options = folder / "tokenizer_config.json"
    options.write_text(json.dumps({key: True}))
    with pytest.raises(ValueError, match=key):
        GPT.from_pretrained(folder)
    options.write_text(json.dumps({key: False}))
    assert_equal_ids(GPT.from_pretrained(folder).tokenizer, two_files)


def test_a_tokenizer_config_can_add_a_space_to_tokenizer_json_but_no_token(folder):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    opened(folder, train())
    text = "O gentle night"
    for key, is_refused in (("add_bos_token", False), ("add_prefix_space", True)):
        (folder / "tokenizer_config.json").write_text(json.dumps(
            {"tokenizer_class": "GPT2Tokenizer", key: True, "bos_token": END_OF_TEXT}))
        theirs = transformers.AutoTokenizer.from_pretrained(folder)(text)["input_ids"]
        if is_refused:
            with pytest.raises(ValueError, match=key):
                GPT.from_pretrained(folder)
        else:
            ours = load_tokenizer(GPT.from_pretrained(folder).tokenizer).encode(text)
        assert (theirs != ours) == is_refused
    (folder / "tokenizer_config.json").unlink()


@pytest.mark.parametrize("special, eos", [((END_OF_TEXT,), 0), (ROBERTA, 2), (("<s>",), 0),
                                          ((END_OF_TEXT, "<|im_end|>"), 1)])
def test_what_has_been_opened_is_exported_with_the_same_ids(special, eos, folder, tmp_path):
    found = train(special)
    opened(folder, found, eos_token_id=eos)
    model = GPT.from_pretrained(folder)
    model.save_pretrained(tmp_path / "export")
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "export" / "tokenizer.json"))
    assert theirs.encode(TEXT).ids == tokenizers.Tokenizer.from_str(json.dumps(found)).encode(
        TEXT).ids
    assert GPT.from_pretrained(tmp_path / "export").tokenizer == model.tokenizer
    about = json.loads((tmp_path / "export" / "tokenizer_config.json").read_text())
    assert about["eos_token"] == special[eos] and theirs.token_to_id(special[eos]) == eos


# ---- what is refused ----------------------------------------------------------------------------

def part(key, value):
    return lambda: train() | {key: value}


def made_by(part):
    return json.loads(part.__getstate__())


def shuffled(seed):
    found = train()
    vocab = found["model"]["vocab"]
    ids = list(vocab.values())
    random.Random(seed).shuffle(ids)
    found["model"]["vocab"] = dict(zip(vocab, ids))
    found["added_tokens"][0]["id"] = found["model"]["vocab"][END_OF_TEXT]
    return found


def other_order(found):
    merges = found["model"]["merges"]
    merges[3], merges[40] = merges[40], merges[3]
    return found


def without(found, token):
    del found["model"]["vocab"][token]
    return found


def same_id(found):
    found["added_tokens"][0]["id"] = found["model"]["vocab"][END_OF_TEXT] = 300
    return found


def with_merge(found, *tokens):
    """Append merges of these pairs, as if they had been learned last."""
    for left, right in tokens:
        found["model"]["merges"].append([left, right])
        found["model"]["vocab"][left + right] = 1 + max(found["model"]["vocab"].values())
    return found


def with_word(found, word):
    found["model"]["vocab"][word] = 1 + max(found["model"]["vocab"].values())
    return found


normalizers, pre_tokenizers = tokenizers.normalizers, tokenizers.pre_tokenizers
processors, Regex = tokenizers.processors, tokenizers.Regex
REFUSED = {
    "NFC": (part("normalizer", made_by(normalizers.NFC())), "normalizer"),
    "NFKC": (part("normalizer", made_by(normalizers.NFKC())), "normalizer"),
    "lowercase": (part("normalizer", made_by(normalizers.Lowercase())), "normalizer"),
    "strip": (part("normalizer", made_by(normalizers.Strip())), "normalizer"),
    "no normalizers": (part("normalizer", made_by(normalizers.Sequence([]))), "normalizer"),
    "no regex": (lambda: byte_level(train(), use_regex=False), "use_regex"),
    "prefix": (lambda: byte_level(train(), add_prefix_space=True), "add_prefix_space"),
    "split": (part("pre_tokenizer", made_by(pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(r"\d{1,3}|\D+"), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]))), "Sequence"),
    "metaspace": (part("pre_tokenizer", made_by(pre_tokenizers.Metaspace())), "Metaspace"),
    "no pre-tokenizer": (part("pre_tokenizer", None), "pre_tokenizer"),
    "template": (part("post_processor", made_by(processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]))), "post_processor"),
    "roberta": (part("post_processor", made_by(processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0)))), "post_processor"),
    "shuffled": (lambda: shuffled(1), "order"),
    "shuffled again": (lambda: shuffled(2), "order"),
    "another order of merges": (lambda: other_order(train()), "order"),
    "a byte less": (lambda: without(train(), "Ā"), "256 bytes"),
    "no special token": (lambda: train(()), "ends a text"),
    "beyond wte": (lambda: add(train(vocab_size=VOCAB_SIZE), "<pad>"), f"vocab_size={VOCAB_SIZE}"),
    "two tokens of one id": (lambda: same_id(train()), "same id"),
    "an added word": (lambda: add(train(), "King", special=False), "'King'"),
    "a token that strips": (lambda: add(train(), "<mask>", lstrip=True), "'<mask>'"),
    "a token that strips behind": (lambda: add(train(), "<mask>", rstrip=True), "'<mask>'"),
    "a token that is a word": (lambda: add(train(), "<mask>", single_word=True), "'<mask>'"),
    "a word as a special token": (lambda: add(train(), "er"), "'er'"),
    "dropout": (lambda: changed(train(), dropout=0.5), "dropout"),
    "a prefix inside of words": (lambda: changed(train(vocab_size=257),
                                                 continuing_subword_prefix="##"), "prefix"),
    "a suffix of words": (lambda: changed(train(vocab_size=257), end_of_word_suffix="</w>"),
                          "suffix"),
    "a merge that is never reached": (lambda: with_merge(train(vocab_size=257), ("b", "c"),
                                                         ("a", "b"), ("ab", "c")), "'abc'"),
    "a word of the vocabulary without a merge": (
        lambda: changed(with_word(train(), "Ġyonder"), ignore_merges=True), "'Ġyonder'"),
    "Unigram": (lambda: changed(train(), type="Unigram"), "Unigram"),
    "WordPiece": (lambda: changed(train(), type="WordPiece"), "WordPiece"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_tokenizer_with_other_ids_is_refused_with_the_reason(name, folder):
    make, word = REFUSED[name]
    with pytest.raises(ValueError) as error:
        opened(folder, make())
    message = str(error.value)
    assert message.startswith(f"{folder}: ") and word in message and "\n" not in message


def test_random_merges_give_the_librarys_ids_or_are_refused(folder):
    """Merges that no training would give: some of them are never applied."""
    dice = random.Random(5)
    n_opened = 0
    for _ in range(40):
        found = train((END_OF_TEXT,), 257)
        tokens = list("abc")
        while len(tokens) < dice.choice([5, 8, 12]):
            left, right = dice.choices(tokens, k=2)
            token = left + right
            if token in tokens:
                continue
            with_merge(found, (left, right))
            for i in range(1, len(token)):  # the same token from two other ones
                pair = [token[:i], token[i:]]
                if pair[0] in tokens and pair[1] in tokens and pair != [left, right]:
                    found["model"]["merges"].append(pair)
            tokens.append(token)
        theirs = tokenizers.Tokenizer.from_str(json.dumps(found))
        try:
            description = opened(folder, found)
        except ValueError:
            continue
        n_opened += 1
        text = " ".join("".join(dice.choices("abc", k=dice.randrange(1, 30))) for _ in range(200))
        assert_equal_ids(description, theirs, text)
    assert 5 < n_opened < 40


# ---- prepare.py uses them -----------------------------------------------------------------------

@pytest.mark.parametrize("kind", ["model", "data", "run", "snapshot"])
def test_another_text_is_prepared_with_the_tokenizer_of_a_folder(kind, data_dir, finished_run,
                                                                 folder, tmp_path):
    folders = {"data": data_dir, "run": finished_run, "snapshot": finished_run / "final_model.pt",
               "model": folder}
    expected = json.loads((data_dir / "meta.json").read_text())["tokenizer"]
    if kind == "model":
        expected = opened(folder, train(ROBERTA), eos_token_id=2)
    (tmp_path / "x.txt").write_text(TEXT, encoding="utf-8")
    succeed("prepare", f"--input={tmp_path / 'x.txt'}", f"--tokenizer={folders[kind]}",
            f"--out_dir={tmp_path}", "--val_fraction=0", "--test_fraction=0")
    meta = json.loads((tmp_path / "meta.json").read_text())
    assert meta["tokenizer"] == expected
    encoding = load_tokenizer(expected)
    assert meta["vocab_size"] == encoding.n_vocab
    ids = [int.from_bytes(pair, "little") for pair in zip(*[iter(Path(
        tmp_path, "train.bin").read_bytes())] * 2)]
    assert ids == encoding.encode_ordinary(TEXT)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    (tmp_path / "x.txt").write_text(TEXT, encoding="utf-8")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    write_safetensors(tmp_path, gpt2_tensors(make_model()))
    code, out, err = call("prepare", f"--input={tmp_path / 'x.txt'}", f"--tokenizer={tmp_path}",
                          f"--out_dir={tmp_path / 'out'}")
    assert (code, out) == (2, "") and err == f"error: {tmp_path} has no tokenizer.json\n"


def test_a_merge_that_begins_with_a_number_sign_is_no_comment(tmp_path):
    found = with_merge(train((), vocab_size=300), ("#", "#"), ("##", "#"))
    found["model"]["vocab"][END_OF_TEXT] = len(found["model"]["vocab"])
    write_safetensors(tmp_path, gpt2_tensors(make_model(vocab_size=VOCAB_SIZE)))
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | dict(vocab_size=VOCAB_SIZE)))
    vocab, merges = tmp_path / "vocab.json", tmp_path / "merges.txt"
    vocab.write_text(json.dumps(found["model"]["vocab"]), encoding="utf-8")
    lines = ["#version: 0.2", *map(" ".join, found["model"]["merges"]), ""]
    merges.write_text("\n".join(lines), encoding="utf-8")
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE.from_file(str(vocab), str(merges)))
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    encoding = load_tokenizer(GPT.from_pretrained(tmp_path).tokenizer)
    text = "## A title\n### Another #### one"
    assert len(theirs.encode("###").ids) == 1
    assert encoding.encode_ordinary(text) == theirs.encode(text).ids
