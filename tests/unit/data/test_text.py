"""Text data: generated sentences, padding, and data sets on disk."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from multitask.data.per_task import PerTask, _Part, join
from multitask.data.sentences import ADJECTIVES, ADVERBS, NOUNS, TAGS, VOCABULARY, Sentences
from multitask.data.text import Text
from multitask.data.text_folder import TextFolder

WORDS = list(VOCABULARY)


def sentences(**options: Any) -> Sentences:
    data = Sentences((40, 10, 10), **options)
    data.setup()
    return data


def read(example: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Return the words of an example and their parts of speech."""
    words = [WORDS[i] for i in example["inputs"]["input_ids"].tolist()]
    assert words[0] == "[CLS]"
    assert example["tags"][0] == -100
    return words[1:], [TAGS[i] for i in example["tags"][1:].tolist()]


def test_labels_are_functions_of_the_words():
    data, seen = sentences(), set()
    for split in ("train", "val", "test"):
        for i in range(len(data.splits[split])):
            example = data.splits[split][i]
            words, tags = read(example)
            nouns = [word for word, tag in zip(words, tags, strict=True) if tag == "noun"]
            acting = nouns[1] if "by" in words else nouns[0]
            (topic,) = (number for number, own in enumerate(NOUNS.values()) if acting in own)
            assert example["topic"] == topic
            factors = [ADVERBS.get(before, 1) for before in ["", *words]]
            score = sum(
                factor * ADJECTIVES.get(word, 0) for factor, word in zip(factors, words, strict=False)
            )
            assert example["score"] == score
            assert tags[0] == "determiner"
            assert tags.count("verb") == 1
            seen |= set(zip(words, tags, strict=True))
    # The part of speech depends on the position.
    assert {("fish", "noun"), ("fish", "verb")} <= seen


def test_sentences_depend_on_their_seed_alone():
    def ids(**options: Any) -> list[list[int]]:
        split = sentences(**options).splits["train"]
        return [split[i]["inputs"]["input_ids"].tolist() for i in range(len(split))]

    assert ids() == ids(seed=3) == ids(batch_size=7)
    assert ids() != ids(sentences_seed=1)
    more = Sentences((60, 10, 10))
    more.setup()
    assert [more.splits["train"][i]["inputs"]["input_ids"].tolist() for i in range(40)] == ids()
    with pytest.raises(ValueError, match=r"^data\.examples=\[1, 2\] must be three counts of at least 1"):
        Sentences((1, 2))


def test_padding_is_marked_as_missing():
    class Two(Text):
        def load(self) -> Any:
            raise NotImplementedError

    def example(length: int) -> dict[str, Any]:
        ones = torch.ones(length, dtype=torch.long)
        inputs = {"input_ids": ones, "attention_mask": ones, "token_type_ids": ones}
        return {"inputs": inputs, "tags": ones, "values": ones.float(), "topic": torch.tensor(2)}

    batch = Two(pad=9).collate([example(2), example(3)])
    assert batch["inputs"]["input_ids"].tolist() == [[1, 1, 9], [1, 1, 1]]
    assert batch["inputs"]["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert batch["inputs"]["token_type_ids"].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert batch["tags"].tolist() == [[1, 1, -100], [1, 1, 1]]
    assert batch["values"].isnan().tolist() == [[False, False, True], [False] * 3]
    assert batch["topic"].tolist() == [2, 2]


def rows_of(split: Any) -> list[dict[str, Any]]:
    """Return examples as the columns of a data set on disk."""
    found = []
    for i in range(len(split)):
        example = dict(split[i])
        inputs = example.pop("inputs")
        words, _ = read(split[i])
        columns = {name: values.tolist() for name, values in (inputs | example).items()}
        found.append({**columns, "words": words, "word_tags": example["tags"][1:].tolist(), "note": "x"})
    return found


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders with the sentences in splits, with one split, and with a tokenizer of letters."""
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    folder, data = tmp_path_factory.mktemp("corpus"), sentences()
    splits = {name: datasets.Dataset.from_list(rows_of(split)) for name, split in data.splits.items()}
    splits["validation"] = splits.pop("val")
    datasets.DatasetDict(splits).save_to_disk(folder / "splits")
    splits["train"].save_to_disk(folder / "one")
    tokenizers, transformers = pytest.importorskip("tokenizers"), pytest.importorskip("transformers")
    letters = {letter: i for i, letter in enumerate(["<s>", "<pad>", *"abcdefghijklmnopqrstuvwxyz"])}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(letters, []))
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    transformers.PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>").save_pretrained(
        folder / "letters"
    )
    return folder


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)


def test_batches_from_disk_and_memory_are_the_same(corpus: Path):
    data = TextFolder(str(corpus / "splits"), targets=["topic", "tags", "score"], batch_size=16)
    data.setup()
    memory = sentences(batch_size=16)
    for split in ("train", "val", "test"):
        training = split == "train"
        pairs = zip(
            data.loader(split, training=training), memory.loader(split, training=training), strict=True
        )
        assert all(same(one, other) for one, other in pairs)


def test_folder_without_splits_is_split_by_fractions(corpus: Path):
    data = TextFolder(str(corpus / "one"), split=(0.5, 0.25, 0.25))
    data.setup()
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 20, "val": 10, "test": 10}
    # The default targets are all numeric columns.
    assert set(data.splits["train"][0]) == {"inputs", "topic", "tags", "score", "word_tags"}


def test_first_token_of_each_word_is_labelled(corpus: Path):
    data = TextFolder(
        str(corpus / "splits"),
        text="words",
        tokenizer=str(corpus / "letters"),
        targets=["word_tags", "topic"],
    )
    data.setup()
    assert data.pad == 1
    memory = sentences().splits["val"]
    for i in range(len(memory)):
        words, tags = read(memory[i])
        example = data.splits["val"][i]
        assert len(example["inputs"]["input_ids"]) == 1 + sum(map(len, words))
        labelled = example["word_tags"][1:].split([len(word) for word in words])
        assert [part.tolist() for part in labelled] == [
            [TAGS.index(tag)] + [-100] * (len(word) - 1) for word, tag in zip(words, tags, strict=True)
        ]
    cut = TextFolder(
        str(corpus / "splits"),
        text="words",
        tokenizer=str(corpus / "letters"),
        max_length=5,
        targets=["word_tags"],
    )
    cut.setup()
    assert cut.splits["train"][0]["word_tags"].shape == (5,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": ["nothing"]}, r"has no column 'nothing'; it has input_ids, .*"),
        ({"text": "words"}, r"^data\.text=words and data\.tokenizer=None"),
        ({"text": "words", "tokenizer": "/nowhere"}, r"^data\.tokenizer=/nowhere has no tokenizer"),
        ({"path": None}, r"^data\.path is null; give a folder"),
        ({"path": "/nowhere"}, r"^data\.path=/nowhere does not exist"),
    ],
)
def test_invalid_options_are_rejected(corpus: Path, options: dict[str, Any], message: str):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        TextFolder(**({"path": str(corpus / "splits")} | options)).setup()


def test_missing_package_is_reported(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(
        ValueError, match=r'^data=text_folder needs the package datasets, .*"\.\[huggingface\]"'
    ):
        TextFolder("/nowhere").setup()


def test_padding_does_not_count():
    from multitask.run.build import build_module
    from tests.unit.in_process import composed

    pytest.importorskip("transformers")
    config = composed(
        "run_folder=x", "experiment=text", "data.examples=[40,10,10]", "trunk.config.hidden_size=16"
    )
    data = sentences(batch_size=16)
    module = build_module(config, data)
    batch = next(iter(data.loader("train", training=True)))
    loss, count = module.losses(batch)["tags"]
    words = batch["inputs"]["attention_mask"].sum() - len(batch["topic"])
    assert count == words
    # Each sentence alone, without padding.
    module.eval()
    total = torch.zeros(())
    for ids, mask, tags in zip(
        batch["inputs"]["input_ids"], batch["inputs"]["attention_mask"].bool(), batch["tags"], strict=True
    ):
        states = module.trunk(input_ids=ids[mask][None], attention_mask=torch.ones(1, int(mask.sum())).long())
        total += cross_entropy(module.tasks["tags"].head(states)[0, :, 1:].T, tags[mask][1:], reduction="sum")
    torch.testing.assert_close(loss, total / words, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rule", ["turns", "sampled", "cycle"])
def test_batches_mix_corpora_with_different_labels(rule: Any):
    class Subset(Text):
        """Sentences with some of their labels."""

        def __init__(self, count: int, keep: list[str]) -> None:
            super().__init__()
            self.count, self.keep = count, ["inputs", *keep]

        def load(self) -> Any:
            data = Sentences((self.count, 9, 9))
            data.setup()
            return {
                name: [{key: split[i][key] for key in self.keep} for i in range(len(split))]
                for name, split in data.splits.items()
            }

    data = PerTask({"a": Subset(40, ["tags", "topic"]), "b": Subset(12, ["score"])}, rule, batch_size=4)
    data.setup()
    seen = set()
    for split in ("train", "val"):
        for batch in data.loader(split, training=split == "train"):
            ids = batch["inputs"]["input_ids"]
            assert batch["a/tags"].shape == ids.shape
            of_a = batch["a/topic"] != -100
            assert torch.equal(of_a, batch["b"].isnan())
            # Every word of `a` is labelled, but no word of `b` and no padding.
            assert torch.equal(batch["a/tags"] != -100, (ids > 1) & of_a[:, None])
            seen |= set(of_a.tolist())
    assert seen == {True, False}
    parts = [
        _Part("a", data.sources["a"].splits["val"]),
        _Part("b", {"inputs": torch.ones(4, 2), "y": torch.ones(4)}),
    ]
    with pytest.raises(
        ValueError, match=r"data\.sources\.b has inputs \[2\] of .* and data\.sources\.a attention"
    ):
        join(parts)
