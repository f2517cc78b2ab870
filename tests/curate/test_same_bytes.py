"""Error images and copies among records, against a plain count."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from curate.config import DedupConfig
from curate.dedup.records import came_dtype
from curate.dedup.same_bytes import sift

CONFIG = DedupConfig(error_image_captions=3, error_image_urls=4)
AHEAD = 1 << 63
RECORD = st.tuples(
    st.integers(0, 5), st.integers(0, 3), st.integers(0, 4), st.integers(0, 4), st.sampled_from([0, 0, 0, 1])
)


def records(told: list[tuple[int, int, int, int, int]]) -> np.ndarray:
    """Return a record for each (bytes, key, caption, URL, is ahead); uids are unique, and in no order."""
    made = np.zeros(len(told), came_dtype(CONFIG))
    for at, (content, key, caption, url, ahead) in enumerate(told):
        made[at]["sha"], made[at]["caption"], made[at]["url"] = content, caption, url
        made[at]["key"] = key if ahead else AHEAD | key
        made[at]["uid"] = (at * 37 % 101, at)
    return made


def by_hand(came: np.ndarray) -> tuple[dict[int, int], dict[int, int], dict[int, int]]:
    """Return error images, copies, and what equals one ahead, each with what names or stands for it."""
    groups: dict[int, list[int]] = defaultdict(list)
    for at, one in enumerate(came):
        groups[int(one["sha"][0])].append(at)
    errors, copies, lost = {}, {}, {}
    for members in groups.values():
        members.sort(key=lambda at: (int(came[at]["key"]), *came[at]["uid"].tolist()))
        own = [at for at in members if came[at]["key"] >= AHEAD]
        captions, urls = ({int(came[at][name]) for at in own} for name in ("caption", "url"))
        if len(captions) >= CONFIG.error_image_captions or len(urls) >= CONFIG.error_image_urls:
            errors |= dict.fromkeys(own, own[0])
        elif own:
            copies |= dict.fromkeys(own[1:], own[0])
            lost |= {own[0]: members[0]} if own[0] != members[0] else {}
    return errors, copies, lost


@given(st.lists(RECORD, max_size=40))
def test_error_images_and_copies_are_those_of_a_plain_count(told):
    came = records(told)
    found = sift(came, CONFIG)
    errors, copies, lost = by_hand(came)
    assert dict(zip(found.error.tolist(), found.error_of.tolist(), strict=True)) == errors
    assert dict(zip(found.copy.tolist(), found.copy_of.tolist(), strict=True)) == copies
    assert dict(zip(found.lost.tolist(), found.lost_to.tolist(), strict=True)) == lost


def test_what_is_ahead_is_neither():
    came = records([(1, 0, caption, 0, 1) for caption in range(9)])
    found = sift(came, CONFIG)
    assert len(found.error) == len(found.copy) == len(found.lost) == 0
