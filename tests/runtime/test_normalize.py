import pytest

from onebest.normalize import normalize_text


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("Hello,  World!", "hello world"),
        ("Don’t — it‘s JOHN`S", "don't it's john's"),
        ("'quoted' and ''twice''", "quoted and twice"),
        ("well-known café naïve", "well known cafe naive"),
        ("rock 'n' roll", "rock n roll"),
        ("route 66\n", "route"),
        ("", ""),
        ("'", ""),
    ],
)
def test_normal_form(text, normal):
    assert normalize_text(text) == normal
    assert normalize_text(normal) == normal
