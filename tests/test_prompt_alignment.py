"""Prompt-to-Prompt's tables against the official code's (tests/golden/p2p_alignment.json)."""

import pytest
import torch

from cyclediff.prompt_alignment import (
    Prompt,
    equalizer,
    refinement_mapper,
    replacement_mapper,
    window_alphas,
    word_positions,
)

from .nets import golden_json, golden_prompt

LENGTH = 77


def stored(kind: str, *keys: str):
    records = golden_json("p2p_alignment")[kind]
    return [pytest.param(r, id=" / ".join(str(prompt_of(r, key).text) for key in keys)) for r in records]


def prompt_of(record, key="tokens") -> Prompt:
    return Prompt(record[key]["text"], tuple(record[key]["ids"]), tuple(p.strip() for p in record[key]["decoded"]))


@pytest.mark.parametrize("record", stored("replacement", "source", "target"))
def test_replacement(record):
    source, target = prompt_of(record, "source"), prompt_of(record, "target")
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
    mapper, alphas = refinement_mapper(prompt_of(record, "source"), prompt_of(record, "target"), LENGTH)
    assert mapper.dtype == torch.int64
    assert mapper.tolist() == record["mapper"]
    assert alphas.tolist() == record["alphas"]


@pytest.mark.parametrize("record", stored("word_inds", "tokens"))
def test_word_positions(record):
    assert word_positions(prompt_of(record), record["word"]) == record["inds"]


WITH_ONE_VALUE = [p for p in stored("equalizer_stable", "tokens") if len(p.values[0]["values"]) == 1]


@pytest.mark.parametrize("record", stored("equalizer_null_text", "tokens") + WITH_ONE_VALUE)
def test_equalizer(record):
    weights = dict(zip(record["word_select"], record["values"], strict=False))
    expected = torch.ones(LENGTH)
    for _, column, value in record["not_one"]:
        expected[column] = value
    assert equalizer(prompt_of(record), weights, LENGTH).equal(expected)


@pytest.mark.parametrize("record", golden_json("p2p_alignment")["cross_replace_alpha"])
def test_window_alphas(record):
    bounds, num_steps = record["cross_replace_steps"], record["num_steps"]
    for text, ranges in zip(record["prompts"][1:], record["ranges"], strict=True):
        expected = torch.zeros(num_steps + 1, LENGTH)
        expected[ranges["steps_on_default"]] = 1
        for token, steps in ranges["exceptions_by_token"].items():
            expected[:, int(token)] = 0
            expected[steps, int(token)] = 1
        assert window_alphas(golden_prompt(text), bounds, num_steps, LENGTH).equal(expected)


def test_an_int_is_a_float():
    """Where the official code raises TypeError."""
    assert golden_json("p2p_alignment")["int_cross_replace_steps"] == "TypeError"
    prompt = golden_prompt("a cat")
    assert window_alphas(prompt, 1, 10, LENGTH).equal(window_alphas(prompt, 1.0, 10, LENGTH))
    assert window_alphas(prompt, 1, 10, LENGTH).all()
    assert not window_alphas(prompt, 0, 10, LENGTH).any()


def test_the_callers_windows_stay_as_they_are():
    """Where the official code inserts its default."""
    bounds = {"cat": [0.2, 0.5], "zebra": 0.1}
    window_alphas(golden_prompt("a cat"), bounds, 10, LENGTH)
    assert bounds == {"cat": [0.2, 0.5], "zebra": 0.1}


@pytest.mark.parametrize("bounds", [-0.1, 1.1, [0.5, 0.4], [0.1], [0.0, float("nan")], {"cat": [0.2, 1.5]}])
def test_bounds_out_of_range(bounds):
    with pytest.raises(ValueError, match="0 ≤ a ≤ b ≤ 1; got"):
        window_alphas(golden_prompt("a cat"), bounds, 10, LENGTH)


@pytest.mark.parametrize("record", stored("replacement", "source", "target")[:10])
def test_a_shorter_table_has_the_same_beginning(record):
    source, target = prompt_of(record, "source"), prompt_of(record, "target")
    n = min(len(source.ids), len(target.ids))
    long, short = replacement_mapper(source, target, LENGTH), replacement_mapper(source, target, 24)
    assert short.shape == (24, 24)
    assert short[:n, :n].equal(long[:n, :n])
    for a, b in zip(refinement_mapper(source, target, 24), refinement_mapper(source, target, LENGTH), strict=True):
        assert a.equal(b[:24])


def test_too_long():
    prompt = golden_prompt("a smiling bunny doll at night")
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
    whole = golden_prompt("a big squirrel")
    cut = [Prompt(text, whole.ids[:3], whole.pieces[:3]) for text in ("a big squirrel", "a big orangutan")]
    assert replacement_mapper(cut[0], cut[1], 24).equal(torch.eye(24))


def test_departures_from_the_official_code():
    """See the module's docstring."""
    blanks = golden_prompt("a big squirrel")
    doubled = Prompt("a  big squirrel ", blanks.ids, blanks.pieces)
    assert [word_positions(doubled, i) for i in range(3)] == [[1], [2], [3]]
    sharp = Prompt("a #1 dog", (0, 1, 2, 3, 4, 5), ("<s>", "a", "#", "1", "dog", "</s>"))
    assert [word_positions(sharp, i) for i in range(3)] == [[1], [2, 3], [4]]
    spelled = Prompt("é cat 🐶", (0, 1, 2, 3, 4, 5, 6), ("<s>", "é", "cat", "�", "�", "�", "</s>"))
    assert [word_positions(spelled, i) for i in range(3)] == [[1], [2], [3, 4, 5]]
