"""Captions: repair, then rules. A rule is a pure function: a reason, or None to keep."""

from __future__ import annotations

import html
import re
from collections.abc import Callable

import ftfy

from curate.config import CaptionsConfig

MISSING = "caption_missing"
FILE_NAME = "caption_file_name"
TOO_SHORT = "caption_too_short"
TOO_LONG = "caption_too_long"
REPETITIVE = "caption_repetitive"
PERSONAL_DATA = "caption_personal_data"
LANGUAGE = "caption_language"
BOILERPLATE = "caption_boilerplate"

_TAG = re.compile(r"<[a-zA-Z/!][^<>]{0,500}>")
_URL = re.compile(r"(?:https?://|www\.)\S+", re.IGNORECASE)
_SPACE = re.compile(r"\s+")
_FILE = re.compile(r"[\w\-. ()%]+\.(?:jpe?g|png|gif|webp|bmp|tiff?|avif|heic|svg)", re.IGNORECASE)
_CAMERA = re.compile(r"(?:IMG|DSC[NF]?|PXL|P|MVI|SAM|image|photo|picture)[ _-]?\d+[\d_ -]*", re.IGNORECASE)
_EMAIL = re.compile(r"[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,4}")
_PHONE = re.compile(
    r"(?<![\w.])(?:\+\d{1,3}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{1,4}(?:[ .-]?\d{2,4}){2,4}"  # +44 20 7946 0958
    r"|\(\d{3}\)[ .-]?\d{3}[ .-]\d{4}|\d{3}[.-]\d{3}[.-]\d{4})(?!\w)"  # (555) 123-4567, 555-123-4567
)


def clean(caption: str | None, config: CaptionsConfig) -> str | None:
    """Return the caption repaired (Unicode, entities, tags, URLs, spaces), or None where nothing is left."""
    if caption is None:
        return None
    text = ftfy.fix_text(html.unescape(caption))
    text = _URL.sub(" ", _TAG.sub(" ", text))
    if config.personal_data == "mask":
        text = _PHONE.sub("<phone>", _EMAIL.sub("<email>", text))
    return _SPACE.sub(" ", text).strip() or None


def missing(text: str | None, config: CaptionsConfig) -> str | None:
    """No caption, or nothing left of it after repair."""
    return MISSING if not text else None


def file_name(text: str, config: CaptionsConfig) -> str | None:
    """A file or camera name in place of a caption."""
    return FILE_NAME if _FILE.fullmatch(text) or _CAMERA.fullmatch(text) else None


def too_short(text: str, config: CaptionsConfig) -> str | None:
    """Fewer words or characters than the configuration wants."""
    short = len(text.split()) < config.min_words or len(text) < config.min_chars
    return TOO_SHORT if short else None


def too_long(text: str, config: CaptionsConfig) -> str | None:
    """More characters than a caption has."""
    return TOO_LONG if len(text) > config.max_chars else None


def repetitive(text: str, config: CaptionsConfig) -> str | None:
    """Less than a third of at least six words are different."""
    words = text.lower().split()
    return REPETITIVE if len(words) >= 6 and len(set(words)) * 3 < len(words) else None


def personal_data(text: str, config: CaptionsConfig) -> str | None:
    """An e-mail address or phone number, where the configuration drops rather than masks."""
    if config.personal_data == "drop" and (_EMAIL.search(text) or _PHONE.search(text)):
        return PERSONAL_DATA
    return None


RULES: tuple[Callable[[str, CaptionsConfig], str | None], ...] = (
    missing,
    file_name,
    too_short,
    too_long,
    repetitive,
    personal_data,
)
"""In this order; the first reason counts."""


def first_reason(text: str | None, config: CaptionsConfig) -> str | None:
    """Return the first rule's reason against a cleaned caption, or None."""
    return next((reason for rule in RULES if (reason := rule(text or "", config))), None)


def language_reason(language: str | None, probability: float, config: CaptionsConfig) -> str | None:
    """Another language than the wanted ones, with enough certainty."""
    wanted = not config.languages or language in config.languages
    return LANGUAGE if not wanted and probability >= config.min_language_prob else None


def count_reason(count: int, config: CaptionsConfig) -> str | None:
    """The same caption on too many samples of the corpus."""
    return BOILERPLATE if count > config.max_caption_count else None
