import pytest

from curate.profanity import Profanity, fold, words_of


def found(terms: dict[str, list[str]], text: str, language: str | None, allowed: tuple[str, ...] = ()) -> bool:
    folded = fold(text)
    words = words_of(folded)
    return Profanity(terms, ("en",), allowed).found(folded, words, frozenset(words), language)


LISTS = {
    "en": ["ass", "tit", "hot chick", "s&m", "g-spot", "cum", "🖕", "suck"],
    "de": ["möse", "scheiße"],
    "th": ["กู", "หี", "กระหรี่"],
    "zh": ["妈的", "奶", "乳头"],
    "ja": ["スリット", "おっぱい", "s ＆ m"],
    "ko": ["보지"],
    "ar": ["كس"],
    "hi": ["chut"],
    "fil": ["gago"],
}


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("a big ASS on screen", "en"),
        ("two hot   chick, laughing", "en"),
        ("an S&M scene", "en"),
        ("the g-spot", "fr"),
        ("so was 🖕 again", "en"),
        ("ass_tit", "en"),
        ("Die MÖSE", "de"),
        ("SCHEISSE auf der Straße", "de"),
        ("เขาเป็นกระหรี่ในเมือง", "th"),
        ("他妈的天气", "zh"),
        ("美女乳头照片", "zh"),
        ("おっぱいが大きい女の子", "ja"),
        ("보지 사진", "ko"),
        ("يا كس هنا", "ar"),
        ("ang gago mo", "tl"),
        ("ｓｕｃｋ it", "en"),
    ],
)
def test_whole_terms_are_found(text, language):
    assert found(LISTS, text, language)


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("a classic brass passage in Assisi", "en"),
        ("a title with titles, document and cumulus", "en"),
        ("women's M shirts, men's M shoes", "en"),
        ("a hot summer and a chick", "en"),
        ("big-spotted dog", "en"),
        ("Die Möse", "en"),
        ("กูเกิลประเทศไทย", "th"),
        ("หีบเพลงเก่า", "th"),
        ("一杯牛奶在桌上", "zh"),
        ("你妈妈好", "zh"),
        ("スリットランプの検査", "ja"),
        ("돌보지 않는 아이", "ko"),
        ("كسر الزجاج", "ar"),
        ("chutney on a plate", "hi"),
        ("gago", None),
    ],
)
def test_nothing_is_found_inside_words_or_in_another_language(text, language):
    assert not found(LISTS, text, language)


def test_an_allowed_term_is_no_term():
    assert not found(LISTS, "a great tit on a branch", "en", allowed=("Tit",))
    assert found(LISTS, "a great tit on a branch", "en")


def test_without_lists_nothing_is_found():
    assert not found({}, "ass", "en")


@pytest.mark.shared
def test_each_of_the_27_lists_finds_its_own_terms(shared):
    folder = shared / "profanity"
    names = [path.name for path in folder.iterdir() if path.suffix == "" and path.name.split("-")[0].islower()]
    assert len(names) == 28  # French has two
    lists = {name: (folder / name).read_text(encoding="utf-8").splitlines() for name in names}
    for name, lines in lists.items():
        code = {"fil": "tl"}.get(name, name.split("-")[0])
        one = Profanity({name: lines}, (), ())
        missed = []
        for term in filter(None, map(str.strip, lines)):
            folded = fold(f"x {term} y")
            words = words_of(folded)
            if not one.found(folded, words, frozenset(words), code):
                missed.append(term)
        assert not missed, (name, missed)
