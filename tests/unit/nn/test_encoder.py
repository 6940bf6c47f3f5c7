"""Encoders of Hugging Face Transformers as trunks: exact Jacobian of low-rank updates, folders, resume."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchjd.aggregation import UPGrad

from multitask.nn.encoder import Encoder
from multitask.run.export import Exported, _write_torch
from tests.conftest import Arrays, fit
from tests.unit.in_process import made, trained

pytest.importorskip("transformers")

SMALL = ["experiment=text", "data.examples=[48,16,16]", "data.batch_size=16", "trunk.config.hidden_size=16"]
KEYS = {"model_type": "bert", "vocab_size": 9, "hidden_size": 8, "num_attention_heads": 2}
KEYS |= {"num_hidden_layers": 1, "intermediate_size": 8}
LORA = {"r": 2, "target_modules": ["query", "value"]}


def lora(*overrides: str) -> tuple[Any, dict[str, Any]]:
    """Return a float64 module with low-rank updates that are not zero, and a batch."""
    pytest.importorskip("peft")
    _, data, module = made(*SMALL, "trunk=lora", "optimizer=sgd", "optimizer.lr=1", *overrides)
    torch.manual_seed(1)
    for name, parameter in module.double().named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    batch = next(iter(data.loader("val")))
    return module, batch | {"score": batch["score"].double()}


@pytest.mark.parametrize("engine", ["auto", "rows", "layerwise"])
def test_low_rank_updates_have_the_exact_jacobian_and_other_weights_are_frozen(engine: str) -> None:
    module, batch = lora("weighting=upgrad", f"weighting.engine={engine}")
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    shared = {
        name: p for name, p in module.named_parameters() if name.startswith("trunk.") and p.requires_grad
    }
    assert shared
    assert all("lora_" in name for name in shared)
    losses: list[Tensor] = [
        loss[0] if isinstance(loss, tuple) else loss for loss in module.losses(batch).values()
    ]
    rows = [torch.autograd.grad(loss, list(shared.values()), retain_graph=True) for loss in losses]
    jacobian = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])
    expected = UPGrad()(jacobian).split([p.numel() for p in shared.values()])
    fit(module, Arrays(batch))
    for (name, parameter), gradient in zip(shared.items(), expected, strict=True):
        torch.testing.assert_close(
            (before[name] - parameter).flatten(), gradient, rtol=1e-7, atol=1e-10, msg=name
        )
    for name, parameter in module.named_parameters():
        if name.startswith("trunk.") and name not in shared:
            assert torch.equal(parameter, before[name]), name


@pytest.mark.slow
@pytest.mark.parametrize("method", ["weighted_sum", "upgrad", "imtl_l", "modo"])
def test_a_run_resumes_bit_for_bit(tmp_path: Path, method: str) -> None:
    keys = [*SMALL, f"weighting={method}", "trainer.max_epochs=2", "trunk.config.hidden_dropout_prob=0.1"]
    whole, _ = trained(tmp_path / "whole", *keys)
    trained(tmp_path / "first", *keys, "trainer.max_steps=4")
    rest, trainer = trained(tmp_path / "rest", *keys, resume=tmp_path / "first" / "checkpoints" / "last.ckpt")
    assert trainer.global_step == 6
    for (name, expected), found in zip(whole.named_parameters(), rest.parameters(), strict=True):
        assert torch.equal(expected, found), name


def test_a_folder_contains_the_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    drawn = Encoder(config=KEYS).eval()
    drawn.model.save_pretrained(tmp_path)
    given = {"input_ids": torch.tensor([[1, 2, 3]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}
    read = Encoder(folder=str(tmp_path)).eval()
    assert torch.equal(read(**given), drawn(**given))
    assert not [name for name, _ in read.named_parameters() if "pooler" in name]


def test_low_rank_updates_start_at_the_weights_of_the_folder(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    Encoder(config=KEYS).model.save_pretrained(tmp_path)
    given = {"input_ids": torch.tensor([[1, 2, 3]])}
    whole, updated = Encoder(str(tmp_path)), Encoder(str(tmp_path), lora=LORA)
    # In training mode: an encoder in eval mode would be trained without dropout.
    assert all(part.training for encoder in (whole, updated) for part in encoder.modules())
    whole, updated = whole.eval(), updated.eval()
    assert torch.equal(whole(**given), updated(**given))
    trained = {name for name, p in updated.named_parameters() if p.requires_grad}
    assert len(trained) == 4
    assert all("lora_" in name for name in trained)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, r"^trunk needs either the folder of a model or the config"),
        ({"folder": "x", "config": KEYS}, r"^trunk needs either"),
        ({"folder": "/nowhere"}, r"^trunk\.folder=/nowhere has no model"),
        ({"config": {"model_type": "nothing"}}, r"nothing"),
        ({"config": {"hidden_size": 3}}, r"^trunk\.config\.model_type"),
    ],
)
def test_invalid_encoders_are_rejected(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Encoder(**keys)


@pytest.mark.parametrize(("package", "keys"), [("transformers", {}), ("peft", {"lora": LORA})])
def test_a_missing_package_is_named(package: str, keys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(ValueError, match=rf'needs the package {package}, .*"\.\[huggingface\]"'):
        Encoder(config=KEYS, **keys)


@pytest.mark.slow
def test_an_exported_encoder_accepts_texts_of_any_length(tmp_path: Path) -> None:
    _, data, module = made(*SMALL)
    exported = Exported(module.eval(), ["input_ids", "attention_mask"]).eval()
    inputs = next(iter(data.loader("val")))["inputs"]
    tensors = [inputs[key] for key in exported.keys]
    with torch.no_grad():
        exported(*tensors)
        run = _write_torch(
            exported, [tensor[:, :8].clone() for tensor in tensors], tmp_path / "model.pt2", dynamic=True
        )
    for given in (tensors, [tensor[1:, :5] for tensor in tensors]):
        for name, found in run(*given).items():
            torch.testing.assert_close(found, exported(*given)[name], rtol=1e-5, atol=1e-6)
