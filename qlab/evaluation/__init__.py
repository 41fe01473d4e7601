"""What was lost: perplexity, divergence, error bars, sizes, and tables that refuse unlike rows."""

from qlab.evaluation.advice import Advice
from qlab.evaluation.advise import advise
from qlab.evaluation.bars import Estimate
from qlab.evaluation.result import Evaluation, TextScore
from qlab.evaluation.scoring import evaluate
from qlab.evaluation.tables import Comparison, compare, paired_difference, unpaired_difference

__all__ = [
    "Advice",
    "Comparison",
    "Estimate",
    "Evaluation",
    "TextScore",
    "advise",
    "compare",
    "evaluate",
    "paired_difference",
    "unpaired_difference",
]
