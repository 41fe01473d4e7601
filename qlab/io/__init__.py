"""Files: GGUF (`io.gguf`) and our own folder of safetensors (`io.safetensors`)."""

from qlab.io import gguf, safetensors
from qlab.io.safetensors import save, spec_from_json, spec_to_json

__all__ = ["gguf", "safetensors", "save", "spec_from_json", "spec_to_json"]
