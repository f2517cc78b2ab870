"""The identity of a sample and the classes of what can go wrong on its way in."""

from __future__ import annotations

import hashlib

OK = "ok"
MISSING_URL = "missing_url"
MISSING_FILE = "missing_file"
DNS = "dns"
TIMEOUT = "timeout"
CONNECTION = "connection"
HTTP_STATUS = "http_status"
OPTED_OUT = "opted_out"
EMPTY = "empty"
DOWNLOAD_ERROR = "download_error"
NOT_AN_IMAGE = "not_an_image"
TOO_LARGE = "too_large"
TRUNCATED = "truncated"
DECODE_ERROR = "decode_error"
UNSAFE_PATH = "unsafe_path"
ENCRYPTED = "encrypted"
DAMAGED = "damaged"
BAD_CAPTION = "bad_caption"
REPEATED = "repeated"


def sample_uid(source: str, key: str, caption: str | None) -> str:
    """Return 32 hex characters that depend on nothing but source, key or URL, and caption."""
    parts = (source, key, "" if caption is None else caption)
    framed = b"".join(
        len(part.encode("utf-8", "surrogatepass")).to_bytes(8, "big") + part.encode("utf-8", "surrogatepass")
        for part in parts
    )
    return hashlib.sha256(framed).hexdigest()[:32]


def storable(text: str) -> str:
    """Return the text as valid Unicode: a lone surrogate, as in broken JSON or file names, becomes a question mark."""
    return text.encode("utf-8", "replace").decode()


def download_status(message: str | None) -> str:
    """Return the class of a downloader's error message.

    The downloader reports only the text of Python's exception; the words below are those of
    urllib, socket and http.client.
    """
    if message is None:
        return OK
    text = message.lower()
    for words, status in _CLASSES:
        if any(word in text for word in words):
            return status
    return DOWNLOAD_ERROR


_CLASSES = (
    (("x-robots-tag", "disallowed"), OPTED_OUT),
    (("http error",), HTTP_STATUS),
    (("name or service not known", "name resolution", "nodename nor servname", "no address associated"), DNS),
    (("timed out", "timeout"), TIMEOUT),
    (("refused", "reset", "unreachable", "remote end closed", "incompleteread", "broken pipe"), CONNECTION),
    (("unknown url type", "no host given", "unsupported protocol"), MISSING_URL),
)
