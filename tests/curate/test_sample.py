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
    ("message", "status"),
    [
        (None, sample.OK),
        ("HTTP Error 404: Not Found", sample.HTTP_STATUS),
        ("<urlopen error [Errno -2] Name or service not known>", sample.DNS),
        ("<urlopen error timed out>", sample.TIMEOUT),
        ("The read operation timed out", sample.TIMEOUT),
        ("<urlopen error [Errno 111] Connection refused>", sample.CONNECTION),
        ("IncompleteRead(10 bytes read, 90 more expected)", sample.CONNECTION),
        ("Use of image disallowed by X-Robots-Tag directive", sample.OPTED_OUT),
        ("unknown url type: 'ftpx'", sample.MISSING_URL),
        ("something else", sample.DOWNLOAD_ERROR),
    ],
)
def test_each_message_has_its_class(message, status):
    assert sample.download_status(message) == status
