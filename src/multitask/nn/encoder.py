"""An encoder of Hugging Face's transformers as a trunk, whole or by low-rank updates."""

from collections.abc import Mapping
from inspect import signature
from typing import Any

from torch import Tensor, nn

from multitask.extras import imported


class Encoder(nn.Module):
    """Token ids and what goes with them → the last hidden state of each token, ``[batch, tokens, width]``.

    Nothing is downloaded.

    Args:
        folder: A local folder with a model as ``save_pretrained`` writes it.
        config: In its place the keys of a transformers config, ``model_type`` among them: the weights are drawn.
        lora: Keys of ``peft.LoraConfig``: the encoder is frozen, and the low-rank updates alone are trained and shared
            by the tasks (LoRA: Low-Rank Adaptation of Large Language Models, 2021). ``None`` trains all of it.

    Raises:
        ValueError: If a package is not installed; if there are both folder and config, or neither, or no such folder.
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
                "trunk has either a folder with a model or the config of a new one; set one to null."
            )
        transformers = imported("transformers", "huggingface", "trunk")
        if folder is not None:
            try:
                settings = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
            except OSError as error:
                raise ValueError(
                    f"trunk.folder={folder} has no model as save_pretrained writes it."
                ) from error
        else:
            kind = (config or {}).get("model_type")
            if kind not in transformers.CONFIG_MAPPING:
                raise ValueError(
                    f"trunk.config.model_type={kind} is no encoder of transformers; set one, such as bert."
                )
            settings = transformers.AutoConfig.for_model(**dict(config or {}))
        made = transformers.MODEL_MAPPING[type(settings)]
        # What pools tokens into one vector would be parameters that nothing reaches.
        options = {"add_pooling_layer": False} if "add_pooling_layer" in signature(made).parameters else {}
        if folder is not None:
            self.model: nn.Module = made.from_pretrained(folder, local_files_only=True, **options)
        else:
            self.model = made(settings, **options)
        if lora is not None:
            peft = imported("peft", "huggingface", "trunk.lora")
            peft.inject_adapter_in_model(peft.LoraConfig(**lora), self.model)

    def forward(self, **inputs: Tensor) -> Tensor:
        """Return the last hidden states of inputs ``[batch, tokens]`` by name."""
        states: Tensor = self.model(**inputs).last_hidden_state
        return states
