"""The captions step on small tables: repaired once, counted over the corpus, judged again when a cut-off changes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from curate import caption_rules as rules
from curate.config import CaptionsConfig, CurationConfig, RecaptionConfig
from curate.profanity import lists_of
from curate.recaption import is_chosen
from pipelines import caption_counts
from pipelines.captions import _build, _build_texts, _of_texts
from pipelines.recaption import _build as build_recaptions
from pipelines.runner import Made
from pipelines.store import Root, parquet_bytes, table_file
from schemas.captions import SCHEMA
from tests.conftest import encoded, picture


class OneByOne:
    """Stands for the Pool: the same calls in this process."""

    def share(self, value: object) -> object:
        return value

    def map(self, function, calls, threads=1, gpu=False):  # noqa: ANN001, ANN201
        return (function(*call) for call in calls)


def write(root: Root, table: str, name: str, rows: pa.Table) -> None:
    root.write(table_file(table, name), parquet_bytes(rows))


def write_samples(root: Root, captions: dict[str, list[str | None]]) -> None:
    for at, (name, texts) in enumerate(captions.items()):
        uid = [f"{1000 * at + number:032x}" for number in range(len(texts))]
        write(
            root,
            "samples",
            name,
            pa.table({"uid": pa.array(uid, pa.string()), "caption": pa.array(texts, pa.string())}),
        )


def judged(config: CurationConfig, names: list[str]) -> dict[str, Made]:
    root, texts = Root(config.root), _build_texts(config)
    rows = 0
    for name in names:
        made = texts(name).rows
        write(root, "texts", name, made)
        rows += len(made)
    caption_counts.count(config, OneByOne(), names, rows)
    judge = _build(config)
    return {name: judge(name) for name in names}


CORPUS = {
    "a": [
        "A quiet lake at dawn",
        "a  QUIET lake at dawn",
        None,
        "32 red shoes, size 9",
        "Mail jane@example.com a photo",
    ],
    "b": ["a quiet lake at dawn", "5 red shoes (size 10)", "", "Ein stiller See am frühen Morgen im Nebel"],
    "c": [],
}


def test_rows_say_what_the_rules_saw(tmp_path):
    config = CurationConfig(root=str(tmp_path), captions=CaptionsConfig(max_caption_count=2, max_near_caption_count=3))
    write_samples(Root(config.root), CORPUS)
    made = judged(config, list(CORPUS))
    rows = {name: made[name].rows.to_pylist() for name in CORPUS}
    assert made["a"].rows.schema.metadata == SCHEMA.metadata and made["a"].rows.schema.names == SCHEMA.names
    assert [row["caption_count"] for row in rows["a"]] == [3, 3, 1, 1, 1]
    assert [row["near_caption_count"] for row in rows["a"]] == [3, 3, 1, 2, 1]
    assert [row["caption_count"] for row in rows["b"]] == [3, 1, 1, 1]
    reasons = [rules.BOILERPLATE, rules.BOILERPLATE, rules.MISSING, None, None]
    assert [row["caption_reason"] for row in rows["a"]] == reasons
    assert [row["caption_reason"] for row in rows["b"]] == [rules.BOILERPLATE, None, rules.MISSING, rules.LANGUAGE]
    assert rows["a"][4]["caption_clean"] == "Mail <email> a photo" and rows["a"][4]["personal_data"]
    assert not rows["a"][3]["personal_data"] and rows["a"][3]["caption_source"] == "original"
    assert made["a"].counts == {"fine": 2, rules.BOILERPLATE: 2, rules.MISSING: 1}
    assert rows["c"] == []


@pytest.mark.parametrize("action", ["drop", "keep"])
def test_personal_data_may_be_dropped_or_kept(tmp_path, action):
    config = CurationConfig(root=str(tmp_path), captions=CaptionsConfig(personal_data=action))
    write_samples(Root(config.root), CORPUS)
    row = judged(config, list(CORPUS))["a"].rows.to_pylist()[4]
    assert row["caption_clean"] == "Mail jane@example.com a photo"
    assert row["caption_reason"] == (rules.PERSONAL_DATA if action == "drop" else None)


def test_counts_over_many_parts_and_fragments_are_plain_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(caption_counts, "ROWS_A_PART", 50)
    rng = np.random.default_rng(0)
    names = [f"{at:03d}" for at in range(7)]
    texts = {n: [f"word {k} and {k % 7}" for k in rng.integers(0, 60, rng.integers(0, 60))] for n in names}
    config = CurationConfig(root=str(tmp_path), captions=CaptionsConfig())
    write_samples(Root(config.root), texts)
    made = judged(config, names)
    expected = Counter(text for of_one in texts.values() for text in of_one)
    for name in names:
        found = made[name].rows["caption_count"].to_pylist()
        assert found == [expected[text] for text in texts[name]]
        total = sum(map(len, texts.values()))
        assert set(made[name].rows["near_caption_count"].to_pylist()) <= {total}
    assert not list((tmp_path / "scratch").rglob("*")) or not (tmp_path / "scratch/captions").exists()


def test_a_cut_off_is_no_setting_of_the_texts():
    one = _of_texts(CaptionsConfig())
    assert one == _of_texts(CaptionsConfig(max_caption_count=3, min_words=1, languages=()))
    assert one != _of_texts(CaptionsConfig(personal_data="keep"))
    assert one != _of_texts(CaptionsConfig(recaption=RecaptionConfig(model="somewhere")))


def test_lists_are_read_by_language(tmp_path):
    (tmp_path / "lists").mkdir()
    for name, text in {"en": "smut\n", "de": "schund\n", "README.md": "smut", "LICENSE": "lake"}.items():
        (tmp_path / "lists" / name).write_text(text)
    captions = CaptionsConfig(profanity_lists=str(tmp_path / "lists"), languages=())
    assert set(lists_of(captions)) == {"en", "de"}
    config = CurationConfig(root=str(tmp_path), captions=captions)
    write_samples(
        Root(config.root), {"a": ["a shelf of smut here", "a quiet lake at dawn", "ein Regal voller Schund hier"]}
    )
    found = judged(config, ["a"])["a"].rows["caption_reason"].to_pylist()
    assert found == [rules.PROFANITY, None, rules.PROFANITY]
    with pytest.raises(ValueError, match="has no list named en"):
        lists_of(CaptionsConfig(profanity_lists=str(tmp_path)))


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory) -> Path:
    """A random BLIP, saved in transformers' own format."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        BertTokenizerFast,
        BlipConfig,
        BlipForConditionalGeneration,
        BlipImageProcessor,
        BlipProcessor,
    )

    folder = tmp_path_factory.mktemp("vlm") / "model"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", *(f"word{n}" for n in range(58))]
    tokenizer = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = small | {"vocab_size": len(words), "encoder_hidden_size": 32, "max_position_embeddings": 40}
    text |= {"bos_token_id": 5, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0}
    import torch

    torch.manual_seed(0)
    model = BlipForConditionalGeneration(
        BlipConfig(text_config=text, vision_config=small | {"image_size": 32, "patch_size": 16})
    )
    model.save_pretrained(folder, safe_serialization=True)
    images = BlipImageProcessor(size={"height": 32, "width": 32})
    fast = BertTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    BlipProcessor(images, fast).save_pretrained(folder)
    return folder


def test_a_model_in_transformers_format_gives_its_share_new_captions(tmp_path, tiny_model):
    images = [encoded(picture(n)) for n in range(12)]
    ends = np.cumsum([len(image) for image in images])
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "a.tar").write_bytes(b"".join([*images[:-1], b"x" * len(images[-1])]))
    samples = {
        "uid": [f"{n:032x}" for n in range(12)],
        "caption": [f"An old caption of picture {n}" for n in range(12)],
        "shard": ["raw/a.tar"] * 11 + [None],
        "offset": [int(end) - len(image) for end, image in zip(ends, images, strict=True)],
        "num_bytes": [len(image) for image in images],
    }
    settings = RecaptionConfig(model=str(tiny_model), share=0.5, max_new_tokens=8, batch_size=4, device="cpu")
    config = CurationConfig(root=str(tmp_path), captions=CaptionsConfig(recaption=settings, languages=()))
    root = Root(config.root)
    write(root, "samples", "a", pa.table(samples))
    made = build_recaptions(config)("a")
    chosen = [is_chosen(uid, 0.5) for uid in samples["uid"]]
    assert 0 < sum(chosen[:11]) < 11
    new = made.rows["caption_generated"].to_pylist()
    assert [text is not None for text in new] == [*chosen[:11], False]
    assert all("word" in text for text in new if text)
    assert build_recaptions(config)("a").rows.equals(made.rows)
    assert made.rows.schema.field("caption_generated").metadata[b"model"] == str(tiny_model).encode()
    write(root, "recaptions", "a", made.rows)
    rows = judged(config, ["a"])["a"].rows.to_pylist()
    assert [row["caption_source"] for row in rows] == ["generated" if text else "original" for text in new]
    for row, text, old in zip(rows, new, samples["caption"], strict=True):
        assert row["caption_clean"] == (text or old)


def test_the_mix_depends_on_the_uid_alone():
    uids = [f"{n:032x}" for n in range(20_000)]
    some = {uid for uid in uids if is_chosen(uid, 0.3)}
    assert abs(len(some) / len(uids) - 0.3) < 0.01
    assert some < {uid for uid in uids if is_chosen(uid, 0.6)}
    assert not any(is_chosen(uid, 0) for uid in uids[:100]) and all(is_chosen(uid, 1) for uid in uids[:100])


def test_a_folder_without_a_model_is_refused(tmp_path):
    from curate.recaption import check_model

    with pytest.raises(ValueError, match="captions.recaption.model = .*needs a local folder"):
        check_model(RecaptionConfig(model=str(tmp_path)))
