"""Files: GGUF (`io.gguf`), importance matrices (`io.imatrix`), and our own folder of safetensors
(`io.safetensors`).
"""

from qlab.io import gguf, imatrix, safetensors
from qlab.io.safetensors import save, spec_from_json, spec_to_json

__all__ = ["gguf", "imatrix", "safetensors", "save", "spec_from_json", "spec_to_json"]
