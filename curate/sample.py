"""The identity of a sample and the classes of what can go wrong on its way in."""

from __future__ import annotations

import hashlib

OK = "ok"
MISSING_URL = "missing_url"
MISSING_FILE = "missing_file"
EMPTY = "empty"
NOT_AN_IMAGE = "not_an_image"
TOO_LARGE = "too_large"
TRUNCATED = "truncated"
DECODE_ERROR = "decode_error"
DECODER_CRASHED = "decoder_crashed"
UNSAFE_PATH = "unsafe_path"
ENCRYPTED = "encrypted"
DAMAGED = "damaged"
BAD_CAPTION = "bad_caption"
REPEATED = "repeated"
TAKEN_DOWN = "taken_down"

# A crawl's requests: what was not asked for
LICENSE_REFUSED = "license_not_allowed"
NOT_REQUESTED = "not_requested"
HOST_PAUSED = "host_paused"
ADDRESS_REFUSED = "address_refused"

# What failed on the way
DNS = "dns"
TIMEOUT = "timeout"
DEADLINE = "deadline"
CONNECTION = "connection"
TLS = "tls"
REDIRECTS = "redirects"
HTTP_GONE = "http_gone"
HTTP_REFUSED = "http_refused"
HTTP_BUSY = "http_busy"
HTTP_SERVER_ERROR = "http_server_error"
HTTP_OTHER = "http_other"
TOO_MANY_BYTES = "too_many_bytes"
CONTENT_ENCODING = "content_encoding"
HASH_MISMATCH = "hash_mismatch"
DOWNLOAD_ERROR = "download_error"

# What the owner does not want
OPT_OUT_UNKNOWN = "opt_out_unknown"
OPT_OUT_ROBOTS_TXT = "opt_out_robots_txt"
OPT_OUT_ROBOTS_USAGE = "opt_out_robots_usage"
OPT_OUT_TDMREP = "opt_out_tdmrep"
OPT_OUT_X_ROBOTS_TAG = "opt_out_x_robots_tag"
OPT_OUT_TDM_HEADER = "opt_out_tdm_header"
OPT_OUT_CONTENT_USAGE = "opt_out_content_usage"
OPT_OUT_C2PA = "opt_out_c2pa"


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


def http_class(status: int) -> str:
    """Return the class of an HTTP status that is no success and no redirect."""
    if status in (404, 410):
        return HTTP_GONE
    if status in (429, 503):
        return HTTP_BUSY
    if 400 <= status < 500:
        return HTTP_REFUSED
    return HTTP_SERVER_ERROR if 500 <= status < 600 else HTTP_OTHER
