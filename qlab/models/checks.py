"""What every call that takes a model asks of it at the door."""

from __future__ import annotations

import os
from typing import Any


def check_model(model: Any, argument: str = "model") -> None:
    """Raises unless a model was given, and not its name or file.

    Args:
        model: what was given.
        argument: what it is called there.

    Raises:
        ValueError: for anything but a model, with the call that makes one of a name.

    Example:
        >>> check_model("tiny", "teacher")
        Traceback (most recent call last):
        ValueError: teacher='tiny' is a name: qlab.load('tiny') gives the model
    """
    if isinstance(model, str | os.PathLike):
        name = os.fspath(model)
        raise ValueError(f"{argument}={name!r} is a name: qlab.load({name!r}) gives the model")
    if not callable(model) or isinstance(model, type):
        raise ValueError(f"{argument}= takes a model, as qlab.load gives it, not {model!r}")
