"""What counts as prose, on passages of both sides in the layouts that documentation comes in."""

from __future__ import annotations

import pytest

from executor.corpus.prose import as_prose, likeness_key, paragraphs

SENTENCE = "The values are copied into the new array before the old one is released."


@pytest.mark.parametrize(
    ("piece", "prose"),
    [
        (SENTENCE, SENTENCE),
        ("The ``values`` of :class:`~a.b.Array` are copied into *this* one **before** it is released.", None),
        (
            "The ``values`` of the :class:`Array` are copied into *this* one, and then the old one is released.",
            "The values of the Array are copied into this one, and then the old one is released.",
        ),
        (
            "See [the guide](docs/guide.md) for what is to be done with the rest of the values in it.",
            "See the guide for what is to be done with the rest of the values in it.",
        ),
        (SENTENCE + " For example, this is what it does:", SENTENCE),
        (SENTENCE + " It takes most types (e.g. those", SENTENCE),
    ],
)
def test_as_prose_removes_markup_and_what_follows_the_last_full_stop(piece: str, prose: str | None) -> None:
    if prose is None:  # a dotted path is a name, but one among many words is let through
        prose = "The values of a.b.Array are copied into this one before it is released."
    assert as_prose(piece) == prose


@pytest.mark.parametrize(
    "piece",
    [
        "too short to be of use.",
        "lower case at the start means that this is the rest of something and not a sentence.",
        "No full stop at the end of this line of words that is otherwise a sentence",
        "Licensed under the terms of the licence that is to be found in the file at the root of this.",
        "Copyright of the authors, and it is to be kept in all of the copies of the work that are made.",
        "See https://example.org for what is to be done with the rest of the values in it.",
        "The norm is \\frac{a}{b} of the two of them, as it is in the usual case of all of these.",
        "Add Sub Mul Div Pow Exp Log Sin Cos Tan Sqrt Abs Neg Floor Ceil Round.",
        "x = a[i] + b[j] and y = c[i] - d[j] for i in n and j in m or k if z == w.",
        "Numpy Pandas Scipy and Torch in Linux or Windows with Python by Guido of CWI.",
        "1.0 2.0 3.0 4.0 5.0 6.0 7.0 8.0 9.0 10.0 11.0 and 12.0 of the 13.0 in 14.0.",
    ],
)
def test_as_prose_refuses_what_is_not_prose(piece: str) -> None:
    assert as_prose(piece) is None


def test_paragraphs_of_numpydoc_keeps_descriptions_and_leaves_out_examples_and_references() -> None:
    text = f"""Short summary that is not long enough.

    {SENTENCE}
    Its second line belongs to the same paragraph as the first one.

    Parameters
    ----------
    values : array_like
        The numbers that are to be copied, in the order in which they are given.
    axis : int, optional
        The axis along which it is done. By default it is the last one of them.

    See Also
    --------
    other : This is the one that you should use if you have more than one of them.

    Examples
    --------
    This is an example of what can be done with it, and it is left out as well.

    >>> copy([1, 2])
    The output of this is not prose but it does read as if it were one.
    """
    assert list(paragraphs(text)) == [
        f"{SENTENCE} Its second line belongs to the same paragraph as the first one.",
        "The numbers that are to be copied, in the order in which they are given.",
        "The axis along which it is done. By default it is the last one of them.",
    ]


def test_paragraphs_of_google_style_strips_names_and_joins_hanging_lines() -> None:
    text = """Title.

    Args:
        values (`list` of `int`, *optional*): the numbers that are to be copied, in the order in which
            they are given by the one who calls.
        axis: the axis along which it is done, and this is the last one by default.

    Example:
        This is a block that has the words of prose, but it is in a section of examples.
    """
    assert list(paragraphs(text)) == [
        "The numbers that are to be copied, in the order in which they are given by the one who calls.",
        "The axis along which it is done, and this is the last one by default.",
    ]


@pytest.mark.parametrize(
    "block",
    [
        "As follows::\n\n    {0}\n\n    {0}\n",
        ".. code-block:: python\n\n    {0}\n",
        ".. math::\n    {0}\n",
        "```python\n{0}\n```\n",
        "~~~\n{0}\n~~~\n",
        ">>> call()\n{0}\n",
        "In [1]: call()\n{0}\n",
        "$ command\n{0}\n",
        "| {0} | {0} |\n",
        "+-----+\n| {0} |\n+-----+\n",
        "References\n----------\n{0}\n",
    ],
)
def test_paragraphs_leaves_out_examples_literal_blocks_and_tables(block: str) -> None:
    after = "The paragraph that comes after it is at the margin again, so that it is kept."
    inside = "This one has all of the words of prose in it, but it is in a block that is not."
    text = f"{SENTENCE}\n\n{block.format(inside)}\n"
    kept = [SENTENCE] if block.startswith("References") else [SENTENCE, after]
    assert list(paragraphs(text + "\n" + after)) == kept


def test_paragraphs_keeps_list_items_and_notes() -> None:
    text = f"""Title.

- {SENTENCE}
- The second item is of the same kind
  and goes on in the next line, which is indented.

.. note::
    This is said to all of those who are about to use it, and it is prose as well.
"""
    assert list(paragraphs(text)) == [
        SENTENCE,
        "The second item is of the same kind and goes on in the next line, which is indented.",
        "This is said to all of those who are about to use it, and it is prose as well.",
    ]


@pytest.mark.parametrize("text", ["", "\n", " ", "\n\n   \n", "```", "::", ">>>", "====", "..", ":x:", "\t\n\x0c"])
def test_paragraphs_of_scraps_is_empty(text: str) -> None:
    assert list(paragraphs(text)) == []


def test_likeness_key_ignores_names_and_numbers_and_sees_other_words() -> None:
    key = likeness_key("The BertModel has 12 layers.")
    assert key == likeness_key("The T5Model has 24 layers.")
    assert key != likeness_key("The BertModel has 12 heads.")
