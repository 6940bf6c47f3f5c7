"""Exports a checkpoint's model to one file that runs without this package, and checks its outputs."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from torch import Tensor, nn

from multitask.data.batches import mapped
from multitask.errors import ConfigError
from multitask.module import MultiTaskModule, call_with_inputs, inputs_of
from multitask.run.build import build_data
from multitask.run.data import evaluation_data, first_of
from multitask.run.weights import load_model, opened
from multitask.task.seen import Seen
from multitask.task.targets import in_units

# Relative tolerance of outputs: torch computes both, or onnxruntime one of them.
_TOLERANCE = {"torch": 1e-5, "onnx": 1e-3}
_SUFFIX = {"torch": "pt2", "onnx": "onnx"}
_EXAMPLES = 4


class Exported(nn.Module):
    """Maps inputs to the predictions of all tasks, by name and in the units of their metrics.

    Args:
        module: Trunk and heads.
        inner: The names of the inputs under one key of a batch; empty if the key holds a tensor.
    """

    def __init__(self, module: MultiTaskModule, inner: Sequence[str] = ()) -> None:
        super().__init__()
        self.inner = list(inner)
        self.trunk = module.trunk
        self.tasks = module.tasks
        self.inputs = module.inputs
        self._by_name = dict(module.by_name)
        self.names = list(self._by_name)
        """The names of the predictions."""

    @property
    def keys(self) -> list[str]:
        """The names of the inputs."""
        return self.inner or ([self.inputs] if isinstance(self.inputs, str) else list(self.inputs))

    def forward(self, *tensors: Tensor) -> dict[str, Tensor]:
        """Return the predictions of inputs in the order of ``keys``."""
        batch: dict[Any, Any] = dict(zip(self.keys, tensors, strict=True))
        batch = {self.inputs: batch} if self.inner else batch
        output = call_with_inputs(self.trunk, batch, self.inputs)
        seen = Seen(batch, inputs_of(batch, self.inputs), output, self._by_name, examples=0)
        return {
            name: in_units(task.transform, seen.predictions[name]) for name, task in self._by_name.items()
        }


def export(config: DictConfig) -> Path:
    """Write the model to a file, check its outputs against the module's, and print and return the file's path."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    output = Path(config.output or folder / f"model.{_SUFFIX[config.format]}")
    with opened(config, "cannot be exported") as content:
        data = build_data(config)
        module = load_model(config, content["state_dict"])
        if not isinstance(module, MultiTaskModule):
            raise ConfigError(
                f"model: {type(module).__name__} has no trunk and heads; call torch.export.export on it yourself."
            )
        if module.derivatives:
            raise ConfigError(
                "a task needs derivatives, which an exported graph cannot compute; train a model without it to export."
            )
        batch = first_of(evaluation_data(data, next(iter(data.splits))))
        under = batch.get(module.inputs) if isinstance(module.inputs, str) else None
        exported = Exported(module, list(under) if isinstance(under, Mapping) else ()).eval()
        tensors = _inputs(exported, under if exported.inner else batch)
        output.parent.mkdir(parents=True, exist_ok=True)
        write = _write_torch if config.format == "torch" else _write_onnx
        with torch.no_grad():
            exported(*tensors)  # heads detect whether they change their features in place
            run = write(exported, tensors, output, config.dynamic)
            # A second batch size shows that none is hard-coded in the graph.
            trials = [tensors, [tensor[1:] for tensor in tensors]] if config.dynamic else [tensors]
            distance = max(_distance(exported(*trial), run(*trial)) for trial in trials)
        if distance > _TOLERANCE[config.format]:
            output.unlink()
            raise ConfigError(
                f"format={config.format}: the file's outputs differ from the model's by {distance:.1e} of their size; "
                "use another format."
            )
    print(f"outputs differ from the model's by at most {distance:.1e} of their size")
    print(output)
    return output


def _inputs(exported: Exported, batch: Any) -> list[Tensor]:
    found = [batch[key] for key in exported.keys]
    for key, value in zip(exported.keys, found, strict=True):
        if not isinstance(value, Tensor):
            raise ConfigError(
                f"model.inputs={key} is a {type(value).__name__}; only tensors can be exported."
            )
    # Copies: for a view, the exported graph would expect its base tensor.
    return [mapped(value, lambda tensor: tensor[:_EXAMPLES].cpu().clone()) for value in found]


def _shapes(
    exported: Exported, tensors: Sequence[Tensor], dynamic: bool
) -> tuple[tuple[dict[int, Any], ...]]:
    """Return the dynamic sizes: the batch's, and of inputs by name (such as texts) all that the model allows."""
    batch, others = torch.export.Dim("batch"), torch.export.Dim.AUTO
    sizes = [range(1, tensor.ndim if exported.inner else 1) for tensor in tensors]
    return (tuple({0: batch, **dict.fromkeys(own, others)} if dynamic else {} for own in sizes),)


def _write_torch(exported: Exported, tensors: Sequence[Tensor], output: Path, dynamic: bool) -> Any:
    program = torch.export.export(
        exported, tuple(tensors), dynamic_shapes=_shapes(exported, tensors, dynamic), strict=False
    )
    torch.export.save(program, output)
    return torch.export.load(output).module()


def _write_onnx(exported: Exported, tensors: Sequence[Tensor], output: Path, dynamic: bool) -> Any:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            'format=onnx is not installed; install it with pip install -e ".[onnx]".'
        ) from error
    for name, level in (("onnxscript", "WARNING"), ("onnx_ir", "WARNING"), ("torch.onnx", "ERROR")):
        logging.getLogger(name).setLevel(
            level
        )  # they log each pass over the graph, and a missing torchvision
    names = exported.names
    torch.onnx.export(
        exported,
        tuple(tensors),
        output,
        input_names=exported.keys,
        output_names=names,
        dynamic_shapes=_shapes(exported, tensors, dynamic),
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    session = onnxruntime.InferenceSession(output, providers=["CPUExecutionProvider"])

    def run(*given: Tensor) -> dict[str, Tensor]:
        feed = {key: tensor.numpy() for key, tensor in zip(exported.keys, given, strict=True)}
        return dict(zip(names, map(torch.from_numpy, session.run(names, feed)), strict=True))

    return run


def _distance(expected: dict[str, Tensor], found: dict[str, Tensor]) -> float:
    """Return the largest difference of outputs, relative to the largest output of the task."""
    worst = 0.0
    for name, values in expected.items():
        if found[name].shape != values.shape or not found[name].isfinite().equal(values.isfinite()):
            return float("inf")
        size = values.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
        worst = max(worst, float((found[name] - values).abs().max() / size))
    return worst
