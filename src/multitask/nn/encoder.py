"""A Hugging Face encoder as a trunk, trained fully or with LoRA."""

from collections.abc import Mapping
from inspect import signature
from typing import Any

from torch import Tensor, nn

from multitask.extras import imported


class Encoder(nn.Module):
    """Tokenizer outputs → the last hidden state of each token, ``[batch, tokens, width]``; nothing is downloaded.

    Args:
        folder: A local folder with a model saved by ``save_pretrained``.
        config: Alternatively, a transformers config including ``model_type``, for random initial weights.
        lora: Arguments of ``peft.LoraConfig``: the encoder is frozen, and the tasks share trainable low-rank updates
            (LoRA: Low-Rank Adaptation of Large Language Models, 2021). ``None`` trains the whole encoder.

    Raises:
        ValueError: If a package or the folder is missing, or if not exactly one of folder and config is given.
    """

    def __init__(
        self,
        folder: str | None = None,
        config: Mapping[str, Any] | None = None,
        lora: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if (folder is None) == (config is None):
            raise ValueError(
                "trunk needs either the folder of a model or the config of a new one; set exactly one."
            )
        transformers = imported("transformers", "huggingface", "trunk")
        if config is None:
            try:
                settings = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
            except (
                OSError,
                ValueError,
            ) as error:  # ValueError: neither a folder nor the name of a repository
                raise ValueError(f"trunk.folder={folder} has no model saved by save_pretrained.") from error
        else:
            kind = config.get("model_type")
            if kind not in transformers.CONFIG_MAPPING:
                raise ValueError(
                    f"trunk.config.model_type={kind} is not an encoder of transformers; set one, such as bert."
                )
            settings = transformers.AutoConfig.for_model(**config)
        model = transformers.MODEL_MAPPING[type(settings)]
        # A pooling layer's parameters would get no gradient.
        options = {"add_pooling_layer": False} if "add_pooling_layer" in signature(model).parameters else {}
        self.model: nn.Module = (
            model.from_pretrained(folder, local_files_only=True, **options)
            if config is None
            else model(settings, **options)
        )
        if lora is not None:
            peft = imported("peft", "huggingface", "trunk.lora")
            peft.inject_adapter_in_model(peft.LoraConfig(**lora), self.model)
        self.model.train()  # weights from a folder come in eval mode, without dropout, and Lightning leaves them so

    def forward(self, **inputs: Tensor) -> Tensor:
        """Return the last hidden states, given the inputs ``[batch, tokens]`` by name."""
        states: Tensor = self.model(**inputs).last_hidden_state
        return states
