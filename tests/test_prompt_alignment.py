"""Prompt-to-Prompt's tables against the official code's (tests/golden/p2p_alignment.json)."""

import pytest
import torch
from transformers import BertTokenizerFast

from cyclediff.attention_control import AttentionControl
from cyclediff.diffusion.prompt import Prompt
from cyclediff.models.text_to_image import read_prompt
from cyclediff.prompt_alignment import (
    equalizer,
    positions_of,
    refinement_mapper,
    replacement_mapper,
    window_alphas,
    word_positions,
)

from .nets import golden_json
from .prompts import LENGTH, clip_tokenizer, prompt_of


def stored(kind: str, *keys: str):
    records = golden_json("p2p_alignment")[kind]
    return [pytest.param(r, id=" / ".join(r[key]["text"] for key in keys)) for r in records]


def read(record, key="tokens") -> Prompt:
    prompt = prompt_of(record[key]["text"])
    assert list(prompt.ids) == record[key]["ids"]
    return prompt


@pytest.mark.parametrize("record", stored("replacement", "source", "target"))
def test_replacement(record):
    source, target = read(record, "source"), read(record, "target")
    if "error" in record:
        with pytest.raises(ValueError, match="equal numbers of words; got 5 in 'a cat on a mat' and 4"):
            replacement_mapper(source, target, LENGTH)
        return
    expected = torch.zeros(LENGTH, LENGTH)
    diagonal = record["identity_diagonal_ones"]
    expected[diagonal, diagonal] = 1
    for row, column, value in record["nonzero"]:
        expected[row, column] = value
    mapper = replacement_mapper(source, target, LENGTH)
    assert mapper.equal(expected)
    assert (mapper.sum(1) == 0).nonzero()[:, 0].tolist() == record["zero_rows"]
    assert (mapper.sum(0) == 0).nonzero()[:, 0].tolist() == record["zero_columns"]


@pytest.mark.parametrize("record", stored("refinement", "source", "target"))
def test_refinement(record):
    mapper, alphas = refinement_mapper(read(record, "source"), read(record, "target"), LENGTH)
    assert mapper.dtype == torch.int64
    assert mapper.tolist() == record["mapper"]
    assert alphas.tolist() == record["alphas"]


@pytest.mark.parametrize("record", stored("word_inds", "tokens"))
def test_word_positions(record):
    """The official code also takes a word: then of all words exactly equal, case and punctuation included."""
    prompt, word = read(record), record["word"]
    indices = [word] if isinstance(word, int) else [i for i, other in enumerate(prompt.words) if other == word]
    assert [position for index in indices for position in word_positions(prompt, index)] == record["inds"]


WITH_ONE_VALUE = [p for p in stored("equalizer_stable", "tokens") if len(p.values[0]["values"]) == 1]


@pytest.mark.parametrize("record", stored("equalizer_null_text", "tokens") + WITH_ONE_VALUE)
def test_equalizer(record):
    weights = dict(zip(record["word_select"], record["values"], strict=False))
    expected = torch.ones(LENGTH)
    for _, column, value in record["not_one"]:
        expected[column] = value
    assert equalizer(read(record), weights, LENGTH).equal(expected)


@pytest.mark.parametrize("record", golden_json("p2p_alignment")["cross_replace_alpha"])
def test_window_alphas(record):
    bounds, num_steps = record["cross_replace_steps"], record["num_steps"]
    for text, ranges in zip(record["prompts"][1:], record["ranges"], strict=True):
        expected = torch.zeros(num_steps + 1, LENGTH)
        expected[ranges["steps_on_default"]] = 1
        for token, steps in ranges["exceptions_by_token"].items():
            expected[:, int(token)] = 0
            expected[steps, int(token)] = 1
        assert window_alphas(prompt_of(text), bounds, num_steps, LENGTH).equal(expected)


def test_an_int_is_a_float():
    """Where the official code raises TypeError."""
    assert golden_json("p2p_alignment")["int_cross_replace_steps"] == "TypeError"
    prompt = prompt_of("a cat")
    assert window_alphas(prompt, 1, 10, LENGTH).equal(window_alphas(prompt, 1.0, 10, LENGTH))
    assert window_alphas(prompt, 1, 10, LENGTH).all()
    assert not window_alphas(prompt, 0, 10, LENGTH).any()


def test_the_callers_windows_stay_as_they_are():
    """Where the official code inserts its default."""
    bounds = {"cat": [0.2, 0.5], "zebra": 0.1}
    window_alphas(prompt_of("a cat"), bounds, 10, LENGTH)
    assert bounds == {"cat": [0.2, 0.5], "zebra": 0.1}


@pytest.mark.parametrize("bounds", [-0.1, 1.1, [0.5, 0.4], [0.1], [0.0, float("nan")], {"cat": [0.2, 1.5]}])
def test_bounds_out_of_range(bounds):
    with pytest.raises(ValueError, match="0 ≤ a ≤ b ≤ 1; got"):
        window_alphas(prompt_of("a cat"), bounds, 10, LENGTH)


@pytest.mark.parametrize("record", stored("replacement", "source", "target")[:10])
def test_a_shorter_table_has_the_same_beginning(record):
    source, target = read(record, "source"), read(record, "target")
    n = min(len(source.ids), len(target.ids))
    long, short = replacement_mapper(source, target, LENGTH), replacement_mapper(source, target, 24)
    assert short.shape == (24, 24)
    assert short[:n, :n].equal(long[:n, :n])
    for a, b in zip(refinement_mapper(source, target, 24), refinement_mapper(source, target, LENGTH), strict=True):
        assert a.equal(b[:24])


def test_too_long():
    prompt = prompt_of("a smiling bunny doll at night")
    for table in (
        lambda: replacement_mapper(prompt, prompt, 7),
        lambda: refinement_mapper(prompt, prompt, 7),
        lambda: equalizer(prompt, {}, 7),
        lambda: window_alphas(prompt, 1.0, 10, 7),
    ):
        with pytest.raises(ValueError, match="at most 7 tokens, start and end included; got 8 in 'a smiling bunny"):
            table()


def test_cut_off_by_the_tokenizer():
    """A swapped word without tokens swaps nothing."""
    cut = [read_prompt(clip_tokenizer(), text, 4) for text in ("a big squirrel", "a big orangutan")]
    assert [len(prompt.ids) for prompt in cut] == [4, 4]
    assert replacement_mapper(cut[0], cut[1], 24).equal(torch.eye(24))
    assert positions_of(cut[0], "squirrel") == []


# words, as CLIP's own tokenizer reads them


def owners(text: str) -> list[list[int]]:
    prompt = prompt_of(text)
    return [word_positions(prompt, index) for index in range(len(prompt.words))]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a #1 dog on a hill", [[1], [2, 3], [4], [5], [6], [7]]),
        ("a  big squirrel ", [[1], [2], [3]]),
        ("a\u00a0big\tsquirrel", [[1], [2], [3]]),
        ("a café dog", [[1], [2], [3]]),
        ("a cafe\u0301 dog", [[1], [2], [3]]),  # the same in decomposed form
        ("a dog 2\u20e3 cat", [[1], [2], [3, 4], [5]]),  # a mark that is a token of its own
    ],
)
def test_tokens_belong_to_the_word_they_are_of(text, expected):
    assert owners(text) == expected


@pytest.mark.parametrize(
    "word", ["犬が", "ἄλφα", "“cat”", "Straße", "brûlée", "🐶", "#1", "e\u0301e\u0301e\u0301", "ﬁsh", "…"]
)
def test_a_word_of_any_script_keeps_its_neighbours_in_place(word):
    """Whatever the tokens of a word, the words beside it have theirs: one each."""
    tokens = len(clip_tokenizer()(word).input_ids) - 2
    last = 2 + tokens
    assert owners(f"a {word} dog on a hill") == [[1], [*range(2, last)], *([last + i] for i in range(4))]
    assert positions_of(prompt_of(f"a {word} dog on a hill"), "dog") == [last]
    assert equalizer(prompt_of(f"a {word} dog"), {"dog": 5.0}, LENGTH).eq(5).nonzero().flatten().tolist() == [last]


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        ("a ginger dog, looking left", "dog", [3]),  # the comma is 4
        ("a ginger dog, looking left", "dog,", [3, 4]),
        ("a ginger Dog looking left", "dog", [3]),
        ("a ginger dog", "DOG", [3]),
        ("a (dog). A “dog”!", "dog", [3, 8]),
        ("a cat and a cat, with a cat", "cat", [2, 5, 9]),  # the official code: 2 and 9
        ("an axolotl in a Pond", "pond", [8]),  # the official code: none
        ("a snow-covered hill", "snow-covered", [2, 3, 4]),
        ("a snow-covered hill", "snow", []),
        ("a dog & a cat", "&", [3]),
        ("2 dogs", "2", [1]),
        ("a cafe\u0301", "café", [2]),
        ("the Straße", "STRASSE", [2, 3, 4, 5]),
        ("a dog", "dgo", []),
    ],
)
def test_words_are_found_without_punctuation_and_case(text, name, expected):
    prompt = prompt_of(text)
    found = positions_of(prompt, name)
    assert found == expected
    marked = equalizer(prompt, {name: 5.0}, LENGTH).eq(5).nonzero().flatten().tolist()
    assert marked == expected
    alphas = window_alphas(prompt, {"default_": 0.0, name: 1.0}, 10, LENGTH)
    assert alphas.all(0).nonzero().flatten().tolist() == expected


def test_a_number_names_a_word_and_not_its_place():
    assert equalizer(prompt_of("dogs 2"), {2: 5.0}, LENGTH).eq(5).nonzero().flatten().tolist() == [2]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"dog": float("nan")}, "weights['dog'] must be a finite number; got nan"),
        (["dog"], "weights must give words and numbers, such as {dog: 2}; got ['dog']"),
        ("dog", "weights must give words and numbers, such as {dog: 2}; got 'dog'"),
        ({2: "5"}, "weights['2'] must be a finite number; got '5'"),
        ({"dog": 5, "Dog": 3}, "weights must name a word once; got 'dog' and 'Dog', which mean the same word"),
        ({"dog,": 5, "dog": 3}, "weights must name a word once; got 'dog,' and 'dog', which mean the same word"),
    ],
)
def test_wrong_weights(weights, message):
    with pytest.raises(ValueError, match="weights") as caught:
        AttentionControl(weights=weights)
    assert str(caught.value) == message


def test_a_name_that_no_text_has():
    control = AttentionControl(weights={"dgo": 5.0})
    with pytest.raises(ValueError, match="weights names") as caught:
        control.require_words(["a ginger dog, looking left"])
    assert str(caught.value) == (
        "weights names 'dgo', which is no word of the target text; choose one of a, ginger, dog, looking, left"
    )
    with pytest.raises(ValueError, match="weights names") as caught:
        control.require_words(["a dog.", "A cat"])
    assert str(caught.value) == (
        "weights names 'dgo', which is no word of any of the 2 target texts; choose one of a, dog, A, cat"
    )
    with pytest.raises(ValueError, match=r"^cross names 'zebra', .* choose one of a, dog$"):
        AttentionControl(cross={"default_": 0.5, "zebra": 0.1}).require_words(["a dog"])
    many = [f"word{i}" for i in range(500)]
    with pytest.raises(ValueError, match=r"of any of the 501 target texts; choose one of dog, .*, …$") as caught:
        control.require_words([*many, "dog"])
    assert str(caught.value).count(",") == 41


def test_a_name_that_one_text_of_a_run_has_is_enough():
    """Weights are of a whole run, and a list has many texts."""
    control = AttentionControl(weights={"dog": 5.0, "2": 3.0}, cross={"default_": 0.5, "cat,": 0.1})
    control.require_words(["a (Dog)", "2 horses", "a cat, a hill"])
    with pytest.raises(ValueError, match="cross names 'cat,'"):
        control.require_words(["a (Dog)", "2 horses", "a cat and a hill"])


def test_the_words_of_berts_tokenizer(tmp_path):
    """Latent diffusion's: it drops accents and invisible characters, and keeps unknown words whole."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "dog", "##s", "cafe", ",", "#", "1"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    tokenizer = BertTokenizerFast.from_pretrained(tmp_path)
    for text, expected in {
        "a #1 dogs": [[1], [2, 3], [4, 5]],
        "a CAFE\u0301 dog": [[1], [2], [3]],
        "\u200b dog\u200b cat": [[], [1], [2]],
        "a 🐶🐶 dog": [[1], [2], [3]],
    }.items():
        prompt = read_prompt(tokenizer, text, LENGTH)
        assert [word_positions(prompt, i) for i in range(len(prompt.words))] == expected
    assert positions_of(read_prompt(tokenizer, "a dogs, a cat", LENGTH), "dogs") == [2, 3]
