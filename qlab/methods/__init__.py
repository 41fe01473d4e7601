"""METHODS: name -> (w, stats, spec, *, hyper…) -> QTensor. Adding a method is one file and one line
here.
"""

from qlab.methods.awq import awq
from qlab.methods.four_over_six import four_over_six
from qlab.methods.gptq import gptq
from qlab.methods.hqq import hqq
from qlab.methods.kquants import kquants
from qlab.methods.method import Method
from qlab.methods.rtn import rtn
from qlab.methods.smoothquant import smoothquant

METHODS: dict[str, Method] = {
    "rtn": rtn,
    "gptq": gptq,
    "awq": awq,
    "smoothquant": smoothquant,
    "hqq": hqq,
    "kquants": kquants,
    "four_over_six": four_over_six,
}
