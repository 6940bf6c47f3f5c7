"""Loss terms of anything that the model computes: of several predictions, of features, of the trunk's own losses."""

from multitask.terms.auxiliary import Auxiliary
from multitask.terms.contrastive import SupervisedContrastive
from multitask.terms.distillation import Distillation
from multitask.terms.poisson import Poisson
from multitask.terms.term import Term

__all__ = ["Auxiliary", "Distillation", "Poisson", "SupervisedContrastive", "Term"]
