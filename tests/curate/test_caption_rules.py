import gzip
import re

import ftfy
import pyarrow.parquet as pq
import pytest

from curate import caption_rules as rules
from curate.caption_rules import describe
from curate.clip_tokens import token_counter
from curate.config import CaptionsConfig, RecaptionConfig
from curate.language import identifier
from curate.profanity import Profanity

CONFIG = CaptionsConfig()
NONE = Profanity({}, (), ())
TERMS = Profanity({"en": ["smut", "dirty words", "s&m"], "de": ["schund"], "zh": ["奶子"]}, ("en",), ())


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("  a   cat\n on a mat ", "a cat on a mat"),
        ("the caf\u00c3\u00a9 on the corner", "the café on the corner"),
        ("Mother&amp;rsquo;s Day &#8211; a card", "Mother's Day – a card"),
        ("<b>A red</b> car &amp; a dog", "A red car & a dog"),
        ("<a href='http://x.com/y'>Yale</a> Ribbon Cutting", "Yale Ribbon Cutting"),
        ("A bridge <script>alert('x')</script> at night", "A bridge at night"),
        ('A bridge at night <a href="http://exam', "A bridge at night"),
        ("see https://example.com/x.html for more", "see for more"),
        ("art from www.example.com today", "art from today"),
        ("shoes at shop.example.com/red/12 now", "shoes at now"),
        ("shoes from Example.com and/or others", "shoes from Example.com and/or others"),
        ("5 < 6 and 7 > 2 hold here", "5 < 6 and 7 > 2 hold here"),
        ("Kepler Space Telescope model 1.PNG", "Kepler Space Telescope model 1"),
        ("Old US41 Bridge Baraga MI.jpg", "Old US41 Bridge Baraga MI"),
        ("my cat sleeping .jpg", "my cat sleeping"),
        ("how it was made. webp", "how it was made. webp"),
        ("Gate of the College.jpeg", "Gate of the College"),
        ("DSC 0042 copy 2.jpg", "DSC 0042 copy 2.jpg"),
        ("my-holiday photo.webp", "my-holiday photo.webp"),
        ("write to jane.doe@example.com today", "write to <email> today"),
        ("   ", None),
        ("https://example.com/only", None),
        (None, None),
    ],
)
def test_clean(raw, cleaned):
    assert rules.clean(raw, CONFIG) == cleaned


CASES = [
    (rules.MISSING, describe(""), {}),
    (rules.FILE_NAME, describe("IMG_1234.JPG"), {}),
    (rules.FILE_NAME, describe("DSC 0042"), {}),
    (rules.FILE_NAME, describe("my-holiday photo.webp"), {}),
    (rules.FILE_NAME, describe("how-to-fix-a-server"), {}),
    (rules.FILE_NAME, describe("2017authorabcchallenge"), {}),
    (rules.TOO_SHORT, describe("two words"), {}),
    (rules.TOO_SHORT, describe("a b c"), {}),
    (rules.TOO_SHORT, describe("牛奶"), {}),
    (rules.TOO_LONG, describe("word and word " * 100), {}),
    (rules.TOO_MANY_TOKENS, describe("a quiet lake at dawn", clip_tokens=78), {"max_clip_tokens": 77}),
    (rules.FEW_LETTERS, describe("10 x 20 / 44-55 #33 a"), {}),
    (rules.UPPER_CASE, describe("PRE-OWNED PORCELAIN DECORATIVE PLATE"), {"max_upper_share": 0.9}),
    (rules.REPETITIVE, describe("buy buy buy buy buy buy buy"), {}),
    (rules.PLACEHOLDER, describe("Image not available yet"), {}),
    (rules.PLACEHOLDER, describe("Click to enlarge: product image"), {}),
    (
        rules.PERSONAL_DATA,
        describe("prints from <email> on request", had_personal_data=True),
        {"personal_data": "drop"},
    ),
    (rules.PROFANITY, describe("a wall of dirty words"), {}),
    (rules.PROFANITY, describe("nur Schund im Regal", language="de"), {"languages": ()}),
    (rules.LANGUAGE, describe("ein See am Morgen", language="de", language_prob=0.9), {}),
    (rules.BOILERPLATE, describe("a quiet lake at dawn", equal_count=11), {}),
    (rules.NEAR_BOILERPLATE, describe("a quiet lake at dawn", near_count=101), {}),
]


@pytest.mark.parametrize(("reason", "caption", "changes"), CASES)
def test_each_reason(reason, caption, changes):
    assert rules.first_reason(caption, CaptionsConfig(**changes), TERMS) == reason


def test_every_rule_has_a_case_and_one_reason():
    reasons = {value for name, value in vars(rules).items() if name.isupper() and str(value).startswith("caption_")}
    assert {reason for reason, _, _ in CASES} == reasons
    assert len(reasons) == len(rules.RULES)


@pytest.mark.parametrize(
    "caption",
    [
        describe("a quiet lake at dawn", language="en", language_prob=1.0, equal_count=10, near_count=100),
        describe("a quiet lake at dawn", language="de", language_prob=0.59, clip_tokens=500),
        describe("PRE-OWNED PORCELAIN DECORATIVE PLATE"),
        describe("Click to view larger image of three glass lanterns in a row"),
        describe("red Nike Air Max 90 in a box"),
        describe("一杯牛奶在桌上", language="en"),
        describe("prints from jane on request", had_personal_data=True),
        describe("the wall-mounted washbasin in white"),
    ],
)
def test_what_is_kept(caption):
    assert rules.first_reason(caption, CONFIG, TERMS) is None


def test_settings_move_the_limits():
    lake = describe("a quiet lake at dawn", language="de", language_prob=0.9, equal_count=50, near_count=500)
    free = CaptionsConfig(languages=(), max_caption_count=50, max_near_caption_count=None)
    assert rules.first_reason(lake, free, NONE) is None
    assert rules.first_reason(describe("a lake"), CaptionsConfig(min_words=2), NONE) is None


@pytest.mark.parametrize(
    ("one", "other", "equal", "near"),
    [
        ("A Red  car", "a red car", True, True),
        ("32 red shoes, size 9", "5 Red shoes (size 10)", False, True),
        ("a cat and a dog", "a dog and a cat!", False, True),
        ("a red car", "a red bus", False, False),
        ("Straße im Regen", "STRASSE im Regen", True, True),
    ],
)
def test_what_counts_as_the_same(one, other, equal, near):
    assert (rules.equal_key(one) == rules.equal_key(other)) is equal
    assert (rules.near_key(one) == rules.near_key(other)) is near


@pytest.fixture(scope="module")
def real(shared) -> list[str]:
    """Every fifth of 20,000 real captions."""
    folder = shared / "web_captions"
    web = pq.read_table(folder / "img2dataset_test_10000.parquet", columns=["TEXT"])["TEXT"].to_pylist()
    with gzip.open(folder / "cc3m_validation_10000.tsv.gz", "rt", encoding="utf-8", newline="") as file:
        cc3m = [line.split("\t")[0] for line in file]
    return [text for text in (web + cc3m)[::5] if text]


@pytest.mark.shared
def test_the_short_way_repairs_as_ftfy_does(real):
    plain = [text for text in real if not re.search(r"[<&/]|www|\.\w{3,4}$", text, re.IGNORECASE)]
    assert len(plain) > 3000
    assert [rules.repair(text) for text in plain] == [" ".join(ftfy.fix_text(text).split()) or None for text in plain]


@pytest.mark.shared
def test_tokens_are_open_clip_s(real):
    from open_clip.tokenizer import SimpleTokenizer

    encode, count = SimpleTokenizer().encode, token_counter()
    odd = ["a > b &amp; c", "It’s <start_of_text> here", "ﬁne  café\u00a0x", "don't 'RE 12.5", ""]
    assert [count(text) for text in [*real, *odd]] == [2 + len(encode(text)) for text in [*real, *odd]]


def test_languages_are_iso_639_1():
    identify = identifier()
    assert identify("Bald darauf kamen die Kinder aus der Schule nach Hause") == ("de", pytest.approx(1.0, abs=0.01))
    language, probability = identify("a man is riding a bicycle along the river in the evening")
    assert language == "en" and probability > 0.9
    assert identify("Meet us at Mounds Dog Fest on June 10th")[0] == "en"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"min_language_prob": 9}, "captions.min_language_prob = 9: must be in 0..1"),
        ({"min_letter_share": -0.1}, "captions.min_letter_share"),
        ({"max_upper_share": 2}, "captions.max_upper_share"),
        ({"min_distinct_share": 1.1}, "captions.min_distinct_share"),
        ({"min_words": -1}, "captions.min_words"),
        ({"min_chars": -1}, "captions.min_chars"),
        ({"max_chars": 5}, "captions.max_chars = 5: must be at least 6"),
        ({"max_clip_tokens": 2}, "captions.max_clip_tokens"),
        ({"max_caption_count": 0}, "captions.max_caption_count"),
        ({"max_near_caption_count": 0}, "captions.max_near_caption_count"),
        ({"languages": ("english",)}, "captions.languages"),
    ],
)
def test_settings_are_checked(changes, told):
    with pytest.raises(ValueError, match=re.escape(told)):
        CaptionsConfig(**changes)


@pytest.mark.parametrize("changes", [{"share": 1.5}, {"max_new_tokens": 0}, {"batch_size": 0}, {"actors": 0}])
def test_recaption_settings_are_checked(changes):
    with pytest.raises(ValueError, match=f"captions.recaption.{next(iter(changes))}"):
        RecaptionConfig(**changes)
