"""What a widget can be asked for: the keywords that it takes, the values that a control offers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

from qlab.suggest import near

FEW = 12  # numbers that an error lists


def settings_of(widget: type) -> tuple[str, ...]:
    """Keywords of a widget: its constructor's, and the fields of the state that its `draw` is
    annotated with; none where these are not known.
    """
    parameters = inspect.signature(widget.__init__).parameters.values()
    own = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD and p.name != "self"]
    if all(p.kind is not p.VAR_KEYWORD for p in parameters):
        return ()  # Python itself says what it takes
    draws = (getattr(widget, name, None) for name in ("draw", "draw_table"))
    states = [_annotated(draw) for draw in draws if draw]
    found = [f.name for state in states if is_dataclass(state) for f in fields(state)]
    return (*found, *own) if found else ()


def _annotated(draw: Callable) -> Any:
    try:
        return get_type_hints(draw).get("state")
    except NameError:  # a class made inside a function has no name to look up
        return None


def check_offered(name: str, options: Iterable | None, value: Any) -> None:
    """Raises ValueError with the nearest option where a control does not offer a value; of numbers
    the nearest number.

    Args:
        name: the control's.
        options: values, or pairs of a name and a value, as ipywidgets takes them; None: a control
            without options.
        value: what is asked for.
    """
    options = None if options is None else list(options)
    if options is None:
        return
    pairs = all(isinstance(one, tuple | list) and len(one) == 2 for one in options)
    values = [one[1] for one in options] if pairs else options
    if value not in values and _numbers([value, *values]):
        closest = min(values, key=lambda one: abs(one - value))
        known = f"known are {', '.join(map(str, values))}; " if len(values) <= FEW else ""
        raise ValueError(f"{name} has no {value!r}: {known}the nearest is {closest:g}")
    if value not in values:
        raise ValueError(f"{name} has no {value!r}: {near(value, map(str, values))}")


def _numbers(values: Iterable) -> bool:
    """Whether all of them are numbers; a switch is none."""
    return all(isinstance(one, int | float) and not isinstance(one, bool) for one in values)
