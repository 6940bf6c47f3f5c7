"""One task's prediction drawn to another's."""

from torch import Tensor, nn

from multitask.seen import Seen


class Distillation(nn.Module):
    """T² · KL(teacher ‖ student) of the softmax of two predictions at temperature T.

    "Distilling the Knowledge in a Neural Network" (Hinton et al., 2015); with ``mutual`` the gradient reaches the
    teacher too, as in consistency between two heads.

    Args:
        student: The task that learns, with scores ``[batch, classes]``.
        teacher: The task that it learns from.
        temperature: Above 0.
        mutual: Whether the teacher learns from the student too, KL taken both ways.
    """

    def __init__(self, student: str, teacher: str, temperature: float = 1.0, mutual: bool = False) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"tasks.*.loss.temperature={temperature} must be above 0.")
        self.student = student
        self.teacher = teacher
        self.temperature = temperature
        self.mutual = mutual

    def forward(self, seen: Seen) -> Tensor:
        """Return the divergence of each example, ``[batch]``."""
        student = (seen.predictions[self.student] / self.temperature).log_softmax(1)
        teacher = (seen.predictions[self.teacher] / self.temperature).log_softmax(1)
        if not self.mutual:
            return self.temperature**2 * _divergence(teacher.detach(), student)
        return self.temperature**2 * (_divergence(teacher, student) + _divergence(student, teacher))


def _divergence(p: Tensor, q: Tensor) -> Tensor:
    """Return KL(p ‖ q) of log-probabilities ``[batch, classes]``."""
    return (p.exp() * (p - q)).sum(1)
