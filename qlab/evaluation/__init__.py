"""What was lost: perplexity, divergence, error bars, tables that refuse unlike rows; and what was
won: memory and speed.
"""

from qlab.evaluation.advice import Advice
from qlab.evaluation.advise import advise
from qlab.evaluation.bars import Estimate
from qlab.evaluation.bench import bench
from qlab.evaluation.latency import Bench
from qlab.evaluation.result import Evaluation, TextScore
from qlab.evaluation.scoring import evaluate
from qlab.evaluation.tables import Comparison, compare, paired_difference, unpaired_difference

__all__ = [
    "Advice",
    "Bench",
    "Comparison",
    "Estimate",
    "Evaluation",
    "TextScore",
    "advise",
    "bench",
    "compare",
    "evaluate",
    "paired_difference",
    "unpaired_difference",
]
