"""Personal data in captions: e-mail addresses, phone, card and identity numbers, checked as they are made."""

from __future__ import annotations

import re
from collections.abc import Callable

_EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[\w-]{1,63}\.){1,4}[^\W\d_]{2,24}(?!\w)")
_PHONE = re.compile(
    r"(?<![\w.])(?:\+\d{1,3}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{1,4}(?:[ .-]?\d{2,4}){2,4}"  # +44 20 7946 0958
    r"|\(\d{3}\)[ .-]?\d{3}[ .-]\d{4}|\d{3}[.-]\d{3}[.-]\d{4})(?!\w)"  # (555) 123-4567, 555-123-4567
)
_CARD = re.compile(r"(?<![\w.-])(?:[3-6]\d{3}([ -]?)\d{4}\1\d{4}\1\d{4}|3[47]\d{2}([ -]?)\d{6}\2\d{5})(?![\w-])")
_ISSUER = re.compile(r"4|5[1-5]|2[2-7]|3[47]|35|6011|65")
_IBAN = re.compile(r"(?<!\w)[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?!\w)")
_SSN = re.compile(r"(?<![\w-])(?!000|666|9)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\w-])")  # United States
_CPF = re.compile(r"(?<![\w.])\d{3}\.\d{3}\.\d{3}-\d{2}(?![\w-])")  # Brazil
_DNI = re.compile(r"(?<!\w)[XYZ]?\d{7,8}-?[A-HJ-NP-TV-Z](?!\w)")  # Spain
_NINO = re.compile(r"(?<!\w)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z](?: ?\d{2}){3} ?[A-D](?!\w)")  # United Kingdom
_FIVE_DIGITS = re.compile(r"\d(?:\D?\d){4}")
"""What every number here has."""


def mask(text: str) -> str:
    """Return the text with each piece of personal data replaced by its kind: <email>, <phone>, <card>, <id>."""
    if "@" in text:
        text = _EMAIL.sub("<email>", text)
    if _FIVE_DIGITS.search(text):
        for kind, pattern, holds in _NUMBERS:
            text = pattern.sub(lambda found, k=kind, h=holds: f"<{k}>" if h(found[0]) else found[0], text)  # type: ignore[misc]
    return text


def _luhn(number: str) -> bool:
    """Return whether the last digit is the others' check digit (ISO/IEC 7812-1), of a known issuer."""
    digits = [int(c) for c in reversed(number) if c.isdigit()]
    total = sum(digits[::2]) + sum(sum(divmod(2 * d, 10)) for d in digits[1::2])
    return total % 10 == 0 and _ISSUER.match(number) is not None


def _iban(text: str) -> bool:
    """ISO 13616: the country and check digits at the end, letters as 10..35, give 1 modulo 97."""
    packed = text.replace(" ", "")
    return 15 <= len(packed) <= 34 and int("".join(str(int(c, 36)) for c in packed[4:] + packed[:4])) % 97 == 1


def _cpf(text: str) -> bool:
    digits = [int(c) for c in text if c.isdigit()]

    def check(count: int) -> int:
        return sum(d * weight for d, weight in zip(digits, range(count + 1, 1, -1), strict=False)) * 10 % 11 % 10

    return len(set(digits)) > 1 and check(9) == digits[9] and check(10) == digits[10]


def _dni(text: str) -> bool:
    digits = re.sub("[XYZ]", lambda letter: str("XYZ".index(letter[0])), text[:1]) + text[1:-1].replace("-", "")
    return len(digits) == 8 and "TRWAGMYFPDXBNJZSQVHLCKE"[int(digits) % 23] == text[-1]


def _always(text: str) -> bool:
    return True


_NUMBERS: tuple[tuple[str, re.Pattern[str], Callable[[str], bool]], ...] = (
    ("card", _CARD, _luhn),
    ("id", _IBAN, _iban),
    ("id", _SSN, _always),
    ("id", _CPF, _cpf),
    ("id", _DNI, _dni),
    ("id", _NINO, _always),
    ("phone", _PHONE, _always),
)
