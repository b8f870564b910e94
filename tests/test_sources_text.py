from __future__ import annotations

import json

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from modelpack.errors import StageError, UsageError
from modelpack.sources.text import text
from sources import bound, opened, problems, read, spec

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "film", "very"]
IDS = {"input_ids": spec("n", "s", dtype="int64")}
ALL = {name: spec("n", "s", dtype="int64") for name in ("input_ids", "attention_mask", "token_type_ids")}


def tokenizer(*, pad=True):
    words = {word: index for index, word in enumerate(WORDS if pad else ["padding", *WORDS[1:]])}
    made = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = Whitespace()
    made.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return made


@pytest.fixture
def base(tmp_path):
    tokenizer().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "t.txt").write_text("good film\n\nvery very bad film\nodd\n")
    (tmp_path / "t.csv").write_text('say,other,mark\n"good, film",film,1.5\nbad,very bad,2\n')
    (tmp_path / "t.jsonl").write_text('{"say": "good film", "mark": "up"}\n\n{"say": "bad", "mark": "down"}\n')
    return tmp_path


def settings(path, **more):
    return {"path": path, "tokenizer": "tokenizer.json", **({} if path == "t.txt" else {"column": "say"}), **more}


def test_lines_become_padded_tokens(base):
    got = read(text, base, settings("t.txt"), ALL)
    assert {array.dtype.name for array in got.values()} == {"int64"}
    assert got["input_ids"].tolist() == [[2, 4, 6, 3, 0, 0], [2, 7, 7, 5, 6, 3], [2, 1, 3, 0, 0, 0]]
    np.testing.assert_array_equal(got["attention_mask"], got["input_ids"] != 0)
    assert not got["token_type_ids"].any()


def test_only_arrays_that_the_model_takes_under_its_own_names(base):
    assert set(read(text, base, settings("t.txt"), IDS)) == {"input_ids"}
    inputs = {"tokens": spec("n", "s", dtype="int32"), "attention_mask": spec("n", "s", dtype="int64")}
    got = read(text, base, settings("t.txt", rename={"input_ids": "tokens"}), inputs)
    assert set(got) == {"tokens", "attention_mask"}
    assert got["tokens"].dtype == np.int32


def test_longest_pads_each_batch_and_max_pads_all(base):
    source = opened(text, base, settings("t.txt", batch=2), IDS)
    assert [batch["input_ids"].shape for batch in source.batches()] == [(2, 6), (1, 3)]
    source = opened(text, base, settings("t.txt", batch=2, padding="max", length=8), IDS)
    assert [batch["input_ids"].shape for batch in source.batches()] == [(2, 8), (1, 8)]


def test_long_texts_are_cut_or_named(base):
    got = read(text, base, settings("t.txt", length=4), ALL)
    assert got["input_ids"].tolist()[1] == [2, 7, 7, 3]
    for order in ({}, {"seed": 1}, {"seed": 2}):
        with pytest.raises(StageError, match=r"t\.txt, row 2: the text has 6 tokens, more than `length: 4`"):
            read(text, base, settings("t.txt", length=4, truncation=False, **order), IDS)
    assert read(text, base, settings("t.txt", length=6, truncation=False), IDS)["input_ids"].shape == (3, 6)


def test_settings_win_over_those_kept_in_the_tokenizer_file(base):
    made = tokenizer()
    made.enable_truncation(3)
    made.enable_padding(length=50, pad_id=1, pad_token="[UNK]", direction="left")
    made.save(str(base / "tokenizer.json"))
    got = read(text, base, settings("t.txt"), IDS)["input_ids"]
    assert got.tolist()[0] == [1, 1, 2, 4, 6, 3]  # how to fill is the tokenizer's own; how far is not


def test_whole_documents_may_stand_in_a_cell(base):
    (base / "t.csv").write_text(f"say\n{'good ' * 50_000}\n")
    assert read(text, base, settings("t.csv", length=9), IDS)["input_ids"].tolist() == [[2, *[4] * 7, 3]]


@pytest.mark.parametrize(
    "more", [{"length": 2}, {"length": 1}, {"length": 3, "path": "t.csv", "column": "say", "pair": "other"}]
)
def test_a_length_without_room_for_text_is_refused(base, more):
    with pytest.raises(StageError, match=r"`length: \d` leaves no room"):
        read(text, base, {**settings("t.txt"), **more}, IDS)


def test_pairs_and_number_labels_from_csv(base):
    got = read(text, base, settings("t.csv", pair="other", label="mark"), ALL)
    assert got["input_ids"].tolist() == [[2, 4, 1, 6, 3, 6, 3], [2, 5, 3, 7, 5, 3, 0]]
    assert got["token_type_ids"].tolist() == [[0, 0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 1, 0]]
    assert got["label"].tolist() == [1.5, 2]
    assert got["label"].dtype == np.float32


def test_pairs_apart_are_two_rows_of_one_number(base):
    got = read(text, base, settings("t.csv", pair="other", label="mark", pairing="apart"), ALL)
    assert got["input_ids"].tolist() == [[2, 4, 1, 6, 3], [2, 6, 3, 0, 0], [2, 5, 3, 0, 0], [2, 7, 5, 3, 0]]
    assert got["pair"].tolist() == [0, 0, 1, 1]
    assert got["label"].tolist() == [1.5, 1.5, 2, 2]


def test_class_labels_from_json_lines(base):
    got = read(text, base, settings("t.jsonl", label="mark"), IDS)
    assert got["label"].tolist() == [1, 0]
    assert read(text, base, settings("t.jsonl", label="mark", classes=["up", "down"]), IDS)["label"].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("path", "content", "message"),
    [
        ("t.jsonl", b'{"say": "a"}\n{"say": \n', r"t\.jsonl, row 2: it is not JSON"),
        ("t.jsonl", b'{"say": "a"}\n[1]\n', r"row 2: a JSON object is expected"),
        ("t.jsonl", b'{"say": "a"}\n{"sai": "b"}\n', r"row 2, column 'say': the text is missing"),
        ("t.jsonl", b'{"say": 3}\n', r"row 1, column 'say': the text is 3"),
        ("t.csv", b"say,b\na,1\nb\n", r"t\.csv, row 2: it has 1 values for 2 columns"),
        ("t.csv", b"say,b\na,1\n,1\n", r"row 2, column 'say': the text is missing"),
        ("t.csv", b'say,b\n"a,1\n', r"row 1: it cannot be read"),
        ("t.txt", b"good\n\xff\xfe\n", r"t\.txt, row \d: it cannot be read: .*utf-8"),
        ("t.txt", b"\n\n", "no rows"),
    ],
)
def test_a_bad_row_is_named(base, path, content, message):
    (base / path).write_bytes(content)
    with pytest.raises(StageError, match=message):
        read(text, base, settings(path), IDS)


def test_a_bad_tokenizer_is_named(base):
    tokenizer(pad=False).save(str(base / "tokenizer.json"))
    with pytest.raises(StageError, match=r"tokenizer\.json: the tokenizer has no token to fill"):
        read(text, base, settings("t.txt"), IDS)
    (base / "tokenizer.json").write_text(json.dumps({"model": 3}))
    with pytest.raises(StageError, match=r"tokenizer\.json: it is not a tokenizer file"):
        read(text, base, settings("t.txt"), IDS)


@pytest.mark.parametrize(
    ("inputs", "more", "message"),
    [
        ({"ids": spec("n", "s", dtype="int64")}, {}, r"no input 'input_ids' .*it has ids\n.*rename: \{input_ids"),
        ({"input_ids": spec("n", "s")}, {}, "takes float32"),
        ({"input_ids": spec("n", dtype="int64")}, {}, "not rows of token numbers"),
        ({"input_ids": spec("n", 16, dtype="int64")}, {"length": 16}, "set `length: 16` and `padding: max`"),
        ({"input_ids": spec("n", 16, dtype="int64")}, {"padding": "max"}, "set `length: 16` and `padding: max`"),
    ],
)
def test_what_does_not_fit_the_model_is_said_before_anything_runs(base, inputs, more, message):
    with pytest.raises(UsageError, match=message):
        opened(text, base, settings("t.txt", **more), inputs)


def test_a_fixed_length_model_is_filled(base):
    config = bound(text, base, "{path: t.txt, tokenizer: tokenizer.json, length: 16, padding: max, truncation: no}")
    batch = next(iter(text.open(config, {"input_ids": spec("n", 16, dtype="int64")}).batches()))
    assert batch["input_ids"].shape == (3, 16)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("path: t.csv", "`column` must say where in t.csv"),
        ("path: t.txt, column: say", "a .txt file has only lines"),
        ("path: t.csv, column: sai", "no column 'sai': did you mean 'say'?"),
        ("path: t.pdf", "1:8 t.pdf is none of"),
        ("path: t.txt, rename: {ids: tokens}", "there is no array 'ids' to rename"),
        ("path: t.txt, padding: all", "'padding' cannot be 'all'"),
        ("path: t.txt, length: 0", "1:"),
    ],
)
def test_bad_settings_have_a_place(base, monkeypatch, line, expected):
    monkeypatch.chdir(base)
    (base / "t.pdf").write_text("")
    found = problems(text, base.relative_to(base), f"{{{line}, tokenizer: tokenizer.json}}")
    assert len(found) == 1
    assert expected in found[0]
