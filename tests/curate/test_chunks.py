import pytest

from curate.chunks import chunk_end


@pytest.mark.parametrize(
    ("pictures", "most", "end"),
    [
        ("", 2, 0),
        ("ab", 2, 2),
        ("abc", 2, 2),
        ("abb", 2, 1),
        ("abbb", 3, 1),
        ("aabb", 3, 2),
        ("bbb", 2, 2),
        ("abbbb", 2, 1),
        ("a..", 2, 2),
        ("...", 2, 2),
    ],
)
def test_a_chunk_ends_between_pictures(pictures, most, end):
    assert chunk_end([None if one == "." else one for one in pictures], most) == end
