import pytest

from curate import sample


def test_uid_is_32_hex_characters_and_depends_on_each_part():
    uid = sample.sample_uid("a", "http://x/1.jpg", "a cat")
    assert len(uid) == 32
    assert int(uid, 16) >= 0
    others = {
        sample.sample_uid("b", "http://x/1.jpg", "a cat"),
        sample.sample_uid("a", "http://x/2.jpg", "a cat"),
        sample.sample_uid("a", "http://x/1.jpg", "a dog"),
        sample.sample_uid("a", "http://x/1.jpga", " cat"),
    }
    assert uid not in others
    assert len(others) == 4


def test_uid_is_pinned():
    assert sample.sample_uid("crawl", "http://x/1.jpg", "a cat") == "5cf9f3c2546bbd16ad9f74409bf66f70"
    assert sample.sample_uid("crawl", "http://x/1.jpg", None) == "f9174482dd19182dcb9a82f2b48149fc"


@pytest.mark.parametrize(
    ("http_status", "status"),
    [
        (404, sample.HTTP_GONE),
        (410, sample.HTTP_GONE),
        (401, sample.HTTP_REFUSED),
        (403, sample.HTTP_REFUSED),
        (451, sample.HTTP_REFUSED),
        (429, sample.HTTP_BUSY),
        (503, sample.HTTP_BUSY),
        (500, sample.HTTP_SERVER_ERROR),
        (599, sample.HTTP_SERVER_ERROR),
        (304, sample.HTTP_OTHER),
        (999, sample.HTTP_OTHER),
    ],
)
def test_each_http_status_has_its_class(http_status, status):
    assert sample.http_class(http_status) == status
