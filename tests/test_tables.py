"""CSV files that people write: quotes and columns that mean something else than they seem to."""

from pathlib import Path

import pytest

from cyclediff.data.tables import read_table
from cyclediff.errors import UserError

COLUMNS = ("image", "source", "target")


def read(text):
    return read_table(text, Path("mine.csv"), COLUMNS, ("category",))


@pytest.mark.parametrize(
    "row",
    [
        "a.png,'a dog','a cat',",
        "a.png,“a dog”,a cat,",
        "a.png,„a dog“,a cat,",
        "a.png,“a dog,left”,a cat",  # left” was the target, and a cat the category
        "a.png,'a dog,left',a cat",
    ],
)
def test_quotes_that_a_csv_does_not_know(row):
    with pytest.raises(UserError) as refusal:
        read(f"image,source,target,category\n{row}")
    assert str(refusal.value) == (
        'mine.csv, row 2: a text is in single or curly quotes, which mean nothing in a CSV; write "quotes" instead'
    )


@pytest.mark.parametrize("text", ["'90s car", "a dog's nose", "a “big” dog", "“Stop” on a sign", "the dogs'"])
def test_quotes_inside_a_text(text):
    ((_, cells),) = read(f"image,source,target\na.png,{text},a cat")
    assert cells["source"] == text


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_ends_of_lines(end):
    assert [cells["target"] for _, cells in read(f"image,source,target{end}a.png,a,b{end}c.png,d,e{end}")] == ["b", "e"]


def test_columns_that_are_not_known_are_named(recwarn):
    read("image,source,target,masks,target_img\na.png,a,b,c,d")
    assert [str(warning.message) for warning in recwarn] == ["mine.csv: columns that are not used: masks, target_img"]
