import pytest

from curate.personal_data import mask


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("write to jane.doe+art@mail.example.co.uk today", "write to <email> today"),
        ("call +1 (555) 123-4567 now", "call <phone> now"),
        ("call 555-123-4567 or +44 20 7946 0958", "call <phone> or <phone>"),
        ("rufen Sie +33 1 23 45 67 89 an", "rufen Sie <phone> an"),
        ("paid with 4111 1111 1111 1111 yesterday", "paid with <card> yesterday"),
        ("card 5500-0000-0000-0004, amex 378282246310005", "card <card>, amex <card>"),
        ("IBAN GB82 WEST 1234 5698 7654 32 here", "IBAN <id> here"),
        ("IBAN DE89370400440532013000.", "IBAN <id>."),
        ("SSN 123-45-6789 on a form", "SSN <id> on a form"),
        ("CPF 529.982.247-25 na foto", "CPF <id> na foto"),
        ("DNI 12345678Z and NIE X1234567L", "DNI <id> and NIE <id>"),
        ("NI number AB 12 34 56 C shown", "NI number <id> shown"),
    ],
)
def test_personal_data_is_masked(text, masked):
    assert mask(text) == masked


@pytest.mark.parametrize(
    "text",
    [
        "Paris on 2019-05-12 and 12.05.2019",
        "years 1998 2004 2010 and 1920 1080 720",
        "taken in 1914-1918 in France",
        "4111 1111 1111 1112 is no card",
        "9111 1111 1111 1111 has no issuer",
        "ISBN 9788475567624 (2 ed.)",
        "lego set 4111-1111 and 10214",
        "GB82 WEST 1234 5698 7654 33 fails its check",
        "666-12-3456 and 123-00-4567 are no numbers",
        "529.982.247-26 fails its check",
        "12345678A fails its check",
        "@handle and name@ and a@b",
        "10,000,000 people at 3.14159265",
    ],
)
def test_other_numbers_stay(text):
    assert mask(text) == text
