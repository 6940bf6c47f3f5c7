"""Train a transformer on two losses in Hugging Face's Trainer: ``python examples/huggingface_trainer.py``."""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import BertConfig, BertModel, Trainer, TrainingArguments

import multitask


class TwoHeads(nn.Module):
    """A small, randomly initialized transformer that classifies each token and the whole sequence."""

    def __init__(self) -> None:
        super().__init__()
        sizes = {"vocab_size": 30, "hidden_size": 32, "intermediate_size": 64}
        config = BertConfig(num_hidden_layers=2, num_attention_heads=2, **sizes)
        self.bert = BertModel(config, add_pooling_layer=False)
        self.tagger, self.classifier = nn.Linear(32, 3), nn.Linear(32, 2)

    def forward(self, input_ids: Tensor, tags: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return the mean loss of each task."""
        hidden = self.bert(input_ids).last_hidden_state
        tagging = cross_entropy(self.tagger(hidden).transpose(1, 2), tags)
        return {"tags": tagging, "labels": cross_entropy(self.classifier(hidden[:, 0]), labels)}


class MultiLossTrainer(Trainer):
    """A Trainer for a model with several losses; clipping, schedules and accumulation work as before."""

    def __init__(self, weighting: object, **options: object) -> None:
        super().__init__(**options)
        self.multi = multitask.Step(weighting, self.model, scaler=self.accelerator.scaler)

    def training_step(self, model: nn.Module, inputs: dict[str, Tensor], num_items_in_batch=None) -> Tensor:
        """Accumulate the gradients of a micro-batch, and return the sum of its losses for logging."""
        model.train()
        inputs = self._prepare_inputs(inputs)
        with self.compute_loss_context_manager():
            losses = self.accelerator.unwrap_model(model)(**inputs)
        take = self.multi.backward if self.accelerator.sync_gradients else self.multi.add
        take(losses, counts=len(inputs["input_ids"]))
        return torch.stack(list(losses.values())).sum().detach() / self.current_gradient_accumulation_steps


def main(out: str = "logs/huggingface", **options: object) -> float:
    """Train on random tokens, and return the mean training loss."""
    torch.manual_seed(0)
    tokens = torch.randint(30, (64, 12))
    data = [{"input_ids": ids, "tags": ids % 3, "labels": ids[0] % 2} for ids in tokens]
    options = {"gradient_accumulation_steps": 2, "report_to": "none", "save_strategy": "no"} | options
    args = TrainingArguments(out, per_device_train_batch_size=8, use_cpu=True, **options)
    trainer = MultiLossTrainer(multitask.UPGrad(), model=TwoHeads(), args=args, train_dataset=data)
    return trainer.train().training_loss


if __name__ == "__main__":
    print(main())
