import pytest

from curate import caption_rules as rules
from curate.config import CaptionsConfig

CONFIG = CaptionsConfig()


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("  a   cat\n on a mat ", "a cat on a mat"),
        ("the caf\u00c3\u00a9 on the corner", "the café on the corner"),
        ("<b>A red</b> car &amp; a dog", "A red car & a dog"),
        ("see https://example.com/x.html for more", "see for more"),
        ("5 < 6 and 7 > 2 hold here", "5 < 6 and 7 > 2 hold here"),
        ("write to jane.doe@example.com today", "write to <email> today"),
        ("call +1 (555) 123-4567 now", "call <phone> now"),
        ("call 555-123-4567 or +44 20 7946 0958", "call <phone> or <phone>"),
        ("Paris on 2019-05-12 and 12.05.2019", "Paris on 2019-05-12 and 12.05.2019"),
        ("years 1998 2004 2010 and 1920 1080 720", "years 1998 2004 2010 and 1920 1080 720"),
        ("taken in 1914-1918 in France", "taken in 1914-1918 in France"),
        ("   ", None),
        (None, None),
    ],
)
def test_clean(raw, cleaned):
    assert rules.clean(raw, CONFIG) == cleaned


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, rules.MISSING),
        ("", rules.MISSING),
        ("IMG_1234.JPG", rules.FILE_NAME),
        ("DSC 0042", rules.FILE_NAME),
        ("my-holiday photo.webp", rules.FILE_NAME),
        ("two words", rules.TOO_SHORT),
        ("a b c", rules.TOO_SHORT),
        ("word " * 300, rules.TOO_LONG),
        ("buy buy buy buy buy buy buy", rules.REPETITIVE),
        ("a quiet lake at dawn", None),
    ],
)
def test_first_reason(text, reason):
    assert rules.first_reason(text, CONFIG) == reason


def test_personal_data_is_a_reason_only_where_the_configuration_drops_it():
    text = "prints from jane.doe@example.com on request"
    assert rules.first_reason(text, CaptionsConfig(personal_data="drop")) == rules.PERSONAL_DATA
    assert rules.first_reason(text, CaptionsConfig(personal_data="mask")) is None


def test_language_needs_certainty():
    assert rules.language_reason("de", 0.9, CONFIG) == rules.LANGUAGE
    assert rules.language_reason("de", 0.4, CONFIG) is None
    assert rules.language_reason("en", 0.9, CONFIG) is None
    assert rules.language_reason("de", 0.9, CaptionsConfig(languages=())) is None


def test_boilerplate_is_above_the_limit_only():
    assert rules.count_reason(10, CONFIG) is None
    assert rules.count_reason(11, CONFIG) == rules.BOILERPLATE
