"""The captions step on small tables: repaired once, counted over the corpus, judged again when a cut-off changes."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from curate import caption_rules as rules
from curate.bad_input import BadInput
from curate.config import CaptionsConfig, CurationConfig, RecaptionConfig
from curate.profanity import lists_of
from curate.recaption import TransformersCaptioner, check_model, fingerprint, is_chosen
from pipelines import caption_counts
from pipelines.captions import _build, _build_texts, _of_texts
from pipelines.preflight import check_lists
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


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "<image>", "USER:", "ASSISTANT:", "what", "is"]
WORDS += [f"word{n}" for n in range(53)]
CHAT = (
    "{% for m in messages %}USER: {% for c in m['content'] %}{% if c['type'] == 'image' %}<image> {% else %}"
    "{{ c['text'] }} {% endif %}{% endfor %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def word_tokenizer() -> object:
    """Return a tokenizer that knows WORDS, with marks before and behind as BERT's has."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({word: at for at, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return BertTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


SMALL = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory) -> Path:
    """A random BLIP, saved in transformers' own format."""
    import torch
    from transformers import BlipConfig, BlipForConditionalGeneration, BlipImageProcessor, BlipProcessor

    folder = tmp_path_factory.mktemp("vlm") / "model"
    text = SMALL | {"vocab_size": len(WORDS), "encoder_hidden_size": 32, "max_position_embeddings": 40}
    text |= {"bos_token_id": 5, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0, "initializer_range": 1.0}
    torch.manual_seed(0)
    model = BlipForConditionalGeneration(
        BlipConfig(text_config=text, vision_config=SMALL | {"image_size": 32, "patch_size": 16})
    )
    model.save_pretrained(folder, safe_serialization=True)
    BlipProcessor(BlipImageProcessor(size={"height": 32, "width": 32}), word_tokenizer()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tiny_chat_model(tmp_path_factory) -> Path:
    """A random LLaVA with a chat template, saved in transformers' own format."""
    import torch
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    folder = tmp_path_factory.mktemp("chat") / "model"
    torch.manual_seed(1)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**SMALL, image_size=32, patch_size=16, projection_dim=32),
        text_config=LlamaConfig(**SMALL, vocab_size=len(WORDS), bos_token_id=2, eos_token_id=3, pad_token_id=0),
        image_token_index=WORDS.index("<image>"),
        vision_feature_layer=-1,
    )
    LlavaForConditionalGeneration(config).save_pretrained(folder, safe_serialization=True)
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    tokenizer = word_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    LlavaProcessor(
        images,
        tokenizer,
        patch_size=16,
        vision_feature_select_strategy="default",
        chat_template=CHAT,
        image_token="<image>",
        num_additional_image_tokens=1,
    ).save_pretrained(folder)
    return folder


PICTURES = [picture(n, 60 + 20 * n, 80) for n in range(3)]


def captioner(model: Path, prompt: str | None) -> TransformersCaptioner:
    return TransformersCaptioner(RecaptionConfig(model=str(model), prompt=prompt, max_new_tokens=6, device="cpu"))


def test_a_prompt_begins_the_caption_and_is_no_part_of_it(tiny_model):
    """Oracle: the most likely next token, one forward pass after the other."""
    import torch
    from transformers import BlipForConditionalGeneration, BlipProcessor

    model = BlipForConditionalGeneration.from_pretrained(tiny_model).eval()
    processor = BlipProcessor.from_pretrained(tiny_model)
    found = captioner(tiny_model, "what is word3").captions(PICTURES)
    for image, caption in zip(PICTURES, found, strict=True):
        seen = model.vision_model(processor(images=image, return_tensors="pt")["pixel_values"])[0]
        tokens = [5, WORDS.index("what"), WORDS.index("is"), WORDS.index("word3")]
        for _ in range(6):
            logits = model.text_decoder(torch.tensor([tokens]), encoder_hidden_states=seen).logits
            tokens.append(int(logits[0, -1].argmax()))
            if tokens[-1] == 3:
                break
        assert tokens[4] > 4  # a word, so that a prompt cut off too late is seen
        assert caption.split() == [WORDS[token] for token in tokens[4:] if token > 4]


def test_an_instruction_is_put_into_the_chat_template_and_the_answer_alone_is_kept(tiny_chat_model):
    """Oracle: the same model asked about each picture alone, in words that are written out."""
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

    model = LlavaForConditionalGeneration.from_pretrained(tiny_chat_model).eval()
    processor = LlavaProcessor.from_pretrained(tiny_chat_model)
    found = captioner(tiny_chat_model, "what is word3").captions(PICTURES)
    for image, caption in zip(PICTURES, found, strict=True):
        asked = processor(images=image, text="USER: <image> what is word3 ASSISTANT:", return_tensors="pt")
        tokens_1L = model.generate(**asked, max_new_tokens=6, do_sample=False)
        answer = tokens_1L[0, asked["input_ids"].shape[1] :]
        assert caption == processor.decode(answer, skip_special_tokens=True) != ""
    assert len(set(found)) > 1


def test_other_weights_are_another_model(tmp_path, tiny_model):
    import shutil

    copy = RecaptionConfig(model=str(shutil.copytree(tiny_model, tmp_path / "model")))
    before = fingerprint(copy)
    assert before == fingerprint(RecaptionConfig(model=str(tiny_model)))
    data = bytearray((tmp_path / "model/model.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "model/model.safetensors").write_bytes(data)
    assert fingerprint(copy) != before


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
    made = build_recaptions(config)("a", "digest")
    chosen = [is_chosen(uid, 0.5) for uid in samples["uid"]]
    assert 0 < sum(chosen[:11]) < 11
    new = made.rows["caption_generated"].to_pylist()
    assert [text is not None for text in new] == [*chosen[:11], False]
    assert all("word" in text for text in new if text)
    assert build_recaptions(config)("a", "digest").rows.equals(made.rows)
    assert build_recaptions(config)("a", "digest", careful=True).rows.equals(made.rows)
    said = made.rows.schema.field("caption_generated").metadata
    assert (said[b"model"], said[b"revision"]) == (str(tiny_model).encode(), b"digest")
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
    with pytest.raises(ValueError, match="captions.recaption.model = .*needs a local folder"):
        check_model(RecaptionConfig(model=str(tmp_path)))


def test_a_model_that_takes_instructions_is_refused_without_a_prompt_before_any_work(tmp_path, tiny_chat_model):
    def settings(prompt: str | None) -> CurationConfig:
        recaption = RecaptionConfig(model=str(tiny_chat_model), prompt=prompt)
        return CurationConfig(root=str(tmp_path), captions=CaptionsConfig(recaption=recaption))

    check_lists(settings("what is word3"))
    with pytest.raises(BadInput, match="captions.recaption.prompt = null: the model takes instructions"):
        check_lists(settings(None))


@pytest.mark.parametrize(
    ("name", "text", "is_refused"),
    [
        ("chat_template.jinja", CHAT, True),
        ("additional_chat_templates/other.jinja", CHAT, True),
        ("chat_template.json", json.dumps({"chat_template": CHAT}), True),
        ("processor_config.json", json.dumps({"chat_template": CHAT}), True),
        ("processor_config.json", json.dumps({"chat_template": None}), False),
        ("processor_config.json", "{", True),
        ("README.md", CHAT, False),
    ],
)
def test_a_chat_template_is_found_where_transformers_keeps_it(tmp_path, name, text, is_refused):
    for file in ("config.json", "model.safetensors"):
        (tmp_path / file).write_text("{}")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(text)
    config = RecaptionConfig(model=str(tmp_path))
    if not is_refused:
        assert tmp_path / "config.json" in check_model(config)
        return
    with pytest.raises(BadInput, match="captions.recaption.(prompt|model) = "):
        check_model(config)


def test_another_way_to_repair_is_another_text(monkeypatch):
    before = _of_texts(CaptionsConfig())
    monkeypatch.setattr(rules, "REPAIR_VERSION", rules.REPAIR_VERSION + 1)
    assert _of_texts(CaptionsConfig()) != before
