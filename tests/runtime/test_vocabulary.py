import pytest
from hypothesis import given
from hypothesis import strategies as st

from onebest.errors import ModelError
from onebest.vocabulary import parse_vocabulary

TOKENS = "<blk> 0\n<sos/eos> 1\n<unk> 2\n▁the 3\n▁ 4\ncat 5\n<0xC3> 6\n<0xA9> 7\n 8\ns\t9\n"
VOCABULARY = parse_vocabulary(TOKENS.encode(), "tokens.txt")


def test_ids_become_text():
    assert VOCABULARY.decode([3, 4, 5, 9]) == "the cats"


def test_a_line_with_an_id_alone_is_a_space():
    assert VOCABULARY.symbols[8] == " "
    assert VOCABULARY.decode([5, 8, 5]) == "cat cat"


def test_bytes_become_a_character_once_complete():
    assert VOCABULARY.decode([5, 6], final=False) == "cat"
    assert VOCABULARY.decode([5, 6, 7], final=False) == "caté"
    assert VOCABULARY.decode([5, 6]) == "cat\ufffd"


@pytest.mark.parametrize("byte", ["0A", "0d", "09", "20"])
def test_a_byte_that_ends_a_line_is_a_space(byte):
    vocabulary = parse_vocabulary(f"<blk> 0\na 1\n<0x{byte}> 2\n".encode(), "tokens.txt")
    assert vocabulary.decode([1, 2, 1]) == "a a"


def test_blank_and_unknown_do_not_speak():
    assert VOCABULARY.speaks.tolist() == [False, True, False, *[True] * 7]


BYTE_LEVEL = parse_vocabulary(
    "<blk> 0\n<unk> 1\n▁ƋţŅ 2\nƌ 3\nŋţ 4\n▁caf 5\nũŏ 6\n▁au 7\n▁ 8\n".encode(), "tokens.txt"
)


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        ([2, 8, 3, 4], "你好"),
        ([5, 6, 7], "café au"),
        ([7, 8, 7], "au au"),
        ([7, 2, 7], "au 你au"),
        ([3], "\ufffd"),
    ],
)
def test_letters_that_stand_for_bytes(tokens, text):
    assert BYTE_LEVEL.is_byte_level
    assert BYTE_LEVEL.decode(tokens) == text


@pytest.mark.parametrize("piece", ["caf", "é", "ƴ", "ũŏ", "ł", "你", "ƋţŅẫ"])
def test_letters_that_are_letters(piece):
    vocabulary = parse_vocabulary(f"<blk> 0\n▁{piece} 1\n".encode(), "tokens.txt")
    assert not vocabulary.is_byte_level
    assert vocabulary.decode([1]) == piece


@given(st.lists(st.integers(2, 8)), st.lists(st.integers(2, 8)))
def test_the_text_of_a_byte_level_prefix_is_a_prefix(first, more):
    assert BYTE_LEVEL.decode(first + more).startswith(BYTE_LEVEL.decode(first, final=False))


@given(st.lists(st.integers(3, 9)), st.lists(st.integers(3, 9)))
def test_the_text_of_a_prefix_is_a_prefix(first, more):
    assert VOCABULARY.decode(first + more).startswith(VOCABULARY.decode(first, final=False))


def test_order_and_line_ends_do_not_matter():
    assert parse_vocabulary(b"b 1\r\n\r\n<blk> 0\r\n", "tokens.txt").symbols == ("<blk>", "b")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "without a gap"),
        (b"<blk> 0\nb 2\n", "without a gap"),
        (b"<blk> 0\nb 0\n", "line 2: id 0 comes twice"),
        (b"<blk> 0\nb\n", "line 2: expected 'symbol id', found 'b'"),
        (b"<blk> 0\nb -1\n", "line 2: expected 'symbol id'"),
        (b"<blk> 0\n\xff 1\n", "not UTF-8"),
    ],
)
def test_a_wrong_file_is_refused(content, says):
    with pytest.raises(ModelError, match=says):
        parse_vocabulary(content, "tokens.txt")
