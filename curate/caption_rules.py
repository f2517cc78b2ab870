"""Captions: repair, then rules. A rule is a pure function: a reason, or None to keep."""

from __future__ import annotations

import hashlib
import html
import re
import string
import unicodedata
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import ftfy

from curate.config import CaptionsConfig
from curate.personal_data import mask
from curate.profanity import Profanity, fold, words_of

MISSING = "caption_missing"
FILE_NAME = "caption_file_name"
TOO_SHORT = "caption_too_short"
TOO_LONG = "caption_too_long"
TOO_MANY_TOKENS = "caption_too_many_tokens"
FEW_LETTERS = "caption_few_letters"
UPPER_CASE = "caption_upper_case"
REPETITIVE = "caption_repetitive"
PLACEHOLDER = "caption_placeholder"
PERSONAL_DATA = "caption_personal_data"
PROFANITY = "caption_profanity"
LANGUAGE = "caption_language"
BOILERPLATE = "caption_boilerplate"
NEAR_BOILERPLATE = "caption_near_boilerplate"

REPAIR_VERSION = 1
"""Raised where `repair` gives another text than before, so that texts that are there already are repaired anew."""
_REPAIRED = ftfy.TextFixerConfig(explain=False)  # the same text, without a list of what was done
_CODE = re.compile(r"<(script|style)\b.*?</\1\s*>", re.IGNORECASE | re.DOTALL)
_TAG = re.compile(r"<[a-zA-Z/!][^<>]{0,500}>|<(?:a|img|br|p|span|div|b|i|strong|em|font|h\d)\b[^<>]*$", re.IGNORECASE)
_URL = re.compile(
    r"(?:https?://|www\.)\S+|(?<![\w@.])(?:[\w-]+\.)+(?:com|net|org|info|co\.uk|de|fr|ru)/\S+", re.IGNORECASE
)
_ENDING = r"\.(?:jpe?g|png|gif|webp|bmp|tiff?|avif|heic|svg)"
_FILE = re.compile(rf"[\w\-. ()%]+{_ENDING}", re.IGNORECASE)
_AT_THE_END = re.compile(rf" ?{_ENDING}$", re.IGNORECASE)
_NAMING_WORDS = 3
"""Words of letters with which a file's name says what the picture shows."""
_CAMERA = re.compile(
    r"(?:IMG|DSC[NF]?|PXL|P|MVI|SAM|WP|image|photo|picture|screenshot|screen shot|untitled)[ _-]?\d+[\d_ -]*",
    re.IGNORECASE,
)
_IDENTIFIER = re.compile(r"\S*[^\W_][_-]\S*[^\W_][_-]\S*|(?=\S*\d)[\w-]{16,}")
_NO_SPACES = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")
_NO_LETTERS = str.maketrans("", "", string.ascii_letters)
_DIGITS = re.compile(r"\d+")


class Caption(NamedTuple):
    """A repaired caption with what the rules look at; `describe` makes one."""

    text: str
    folded: str
    """The text without differences of case."""
    words: list[str]
    """The words of the folded text."""
    distinct: frozenset[str]
    """The different words."""
    language: str | None
    language_prob: float
    clip_tokens: int
    equal_count: int
    """Samples of the corpus with the same caption."""
    near_count: int
    """Samples of the corpus with nearly the same caption."""
    had_personal_data: bool


Rule = Callable[[Caption, CaptionsConfig, Profanity], str | None]


def describe(
    text: str,
    language: str | None = None,
    language_prob: float = 0.0,
    clip_tokens: int = 0,
    equal_count: int = 1,
    near_count: int = 1,
    had_personal_data: bool = False,
) -> Caption:
    """Return a repaired text as the rules see it."""
    folded = fold(text)
    words = words_of(folded)
    return Caption(
        text,
        folded,
        words,
        frozenset(words),
        language,
        language_prob,
        clip_tokens,
        equal_count,
        near_count,
        had_personal_data,
    )


def clean(caption: str | None, config: CaptionsConfig) -> str | None:
    """Return the caption repaired (Unicode, entities, tags, URLs, spaces), or None where nothing is left."""
    text = repair(caption)
    if text is not None and config.personal_data == "mask":
        text = mask(text)
    return text


def repair(caption: str | None) -> str | None:
    """Return the caption with everything repaired but personal data."""
    if caption is None:
        return None
    text = caption
    if not (text.isascii() and text.isprintable()) or "&" in text:  # of other text, ftfy changes nothing
        text = ftfy.fix_text(html.unescape(html.unescape(text)), _REPAIRED)
    if "<" in text:
        text = _TAG.sub(" ", _CODE.sub(" ", text))
    if "/" in text or "www." in text or "WWW." in text:
        text = _URL.sub(" ", text)
    text = " ".join(text.split())
    return (_without_ending(text) if "." in text[-5:-3] else text) or None


def _without_ending(text: str) -> str:
    """Return the text, where it is a file's name that says what the picture shows, without the ending."""
    stem = _AT_THE_END.sub("", text)
    words = sum(word.isalpha() and len(word) > 1 for word in stem.split())
    return stem if words >= _NAMING_WORDS else text


def missing(caption: Caption, config: CaptionsConfig, profanity: Profanity) -> str | None:
    """No caption, or nothing left of it after repair."""
    return MISSING if not caption.text else None


def file_name(caption: Caption, config: CaptionsConfig, profanity: Profanity) -> str | None:
    """A file's or camera's name, or an identifier, in place of a caption."""
    text = caption.text
    identifies = " " not in text and _IDENTIFIER.fullmatch(text)
    named = identifies or ("." in text and _FILE.fullmatch(text)) or _CAMERA.fullmatch(text)
    return FILE_NAME if named else None


def too_short(caption: Caption, config: CaptionsConfig, profanity: Profanity) -> str | None:
    """Fewer words or characters than the configuration wants; a character is a word where there are no spaces."""
    text = caption.text
    words = len(text.split())
    if words < config.min_words:
        words += len(_NO_SPACES.findall(text))
    least = config.min_chars if text.isascii() or not _NO_SPACES.search(text) else config.min_words
    return TOO_SHORT if words < config.min_words or len(text) < least else None


def too_long(caption: Caption, config: CaptionsConfig, profanity: Profanity) -> str | None:
    """More characters than a caption has."""
    return TOO_LONG if len(caption.text) > config.max_chars else None


def too_many_tokens(caption: Caption, config: CaptionsConfig, profanity: Profanity) -> str | None:
    """More CLIP tokens than the configuration allows."""
    limit = config.max_clip_tokens
    return TOO_MANY_TOKENS if limit is not None and caption.clip_tokens > limit else None


def few_letters(caption: Caption, config: CaptionsConfig, profanity: Profanity) -> str | None:
    """Mostly digits, punctuation and symbols."""
    text = caption.text.replace(" ", "")
    if text.isalpha():
        return None
    letters = (
        len(text) - len(text.translate(_NO_LETTERS))
        if text.isascii()
        else sum(unicodedata.category(c)[0] in "LM" for c in text)
    )
    return FEW_LETTERS if letters < config.min_letter_share * len(text) else None


def upper_case(caption: Caption, config: CaptionsConfig, profanity: Profanity) -> str | None:
    """A shouted caption."""
    if config.max_upper_share >= 1 or not caption.text.upper().isupper():
        return None
    capitals, small = sum(map(str.isupper, caption.text)), sum(map(str.islower, caption.text))
    return UPPER_CASE if capitals + small >= 20 and capitals > config.max_upper_share * (capitals + small) else None


def repetitive(caption: Caption, config: CaptionsConfig, profanity: Profanity) -> str | None:
    """The same words again and again."""
    words = caption.words
    return REPETITIVE if len(words) >= 6 and len(caption.distinct) < config.min_distinct_share * len(words) else None


def placeholder(caption: Caption, config: CaptionsConfig, profanity: Profanity) -> str | None:
    """Too few words beside phrases that say nothing of a picture."""
    if caption.distinct.isdisjoint(_first_words(config.placeholders)):
        return None
    text = left = " ".join(caption.words)
    for phrase in config.placeholders:
        left = f" {left} ".replace(f" {phrase} ", " ").strip()
    return PLACEHOLDER if left != text and len(left.split()) < config.min_words else None


@lru_cache(maxsize=4)
def _first_words(phrases: tuple[str, ...]) -> frozenset[str]:
    return frozenset(phrase.split()[0] for phrase in phrases)


def personal_data(caption: Caption, config: CaptionsConfig, profanity: Profanity) -> str | None:
    """An e-mail address, a phone, card or identity number, where the configuration drops rather than masks."""
    return PERSONAL_DATA if config.personal_data == "drop" and caption.had_personal_data else None


def profane(caption: Caption, config: CaptionsConfig, profanity: Profanity) -> str | None:
    """A term of the lists for its language."""
    return PROFANITY if profanity.found(caption.folded, caption.words, caption.distinct, caption.language) else None


def language(caption: Caption, config: CaptionsConfig, profanity: Profanity) -> str | None:
    """Another language than the wanted ones, with enough certainty."""
    wanted = not config.languages or caption.language in config.languages
    return LANGUAGE if not wanted and caption.language_prob >= config.min_language_prob else None


def boilerplate(caption: Caption, config: CaptionsConfig, profanity: Profanity) -> str | None:
    """The same caption on too many samples of the corpus."""
    return BOILERPLATE if caption.equal_count > config.max_caption_count else None


def near_boilerplate(caption: Caption, config: CaptionsConfig, profanity: Profanity) -> str | None:
    """Nearly the same caption on too many samples of the corpus."""
    limit = config.max_near_caption_count
    return NEAR_BOILERPLATE if limit is not None and caption.near_count > limit else None


RULES: tuple[Rule, ...] = (
    missing,
    file_name,
    too_short,
    too_long,
    too_many_tokens,
    few_letters,
    upper_case,
    repetitive,
    placeholder,
    personal_data,
    profane,
    language,
    boilerplate,
    near_boilerplate,
)
"""In this order; the first reason counts."""


def first_reason(caption: Caption, config: CaptionsConfig, profanity: Profanity) -> str | None:
    """Return the first rule's reason against a repaired caption, or None."""
    for rule in RULES:
        reason = rule(caption, config, profanity)
        if reason is not None:
            return reason
    return None


def equal_key(text: str) -> int:
    """Return what equal captions share, 64 bits; case and spaces apart."""
    return _key(" ".join(text.casefold().split()))


def near_key(text: str) -> int:
    """Return what nearly equal captions share, 64 bits: the set of their words, each number being the same."""
    return _key(" ".join(sorted(set(words_of(_DIGITS.sub("0", fold(text)))))))


def _key(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
