"""Coverage of modules already imported: an editable install's loader is one that atheris cannot wrap."""

from __future__ import annotations

import inspect
from types import FunctionType, ModuleType

import atheris


def instrument(*modules: ModuleType) -> None:
    """Every function and method that is written in these modules, in place."""
    for module in modules:
        for value in list(vars(module).values()):
            if getattr(value, "__module__", None) != module.__name__:
                continue
            if isinstance(value, FunctionType):
                atheris.instrument_func(value)
            elif inspect.isclass(value):
                for member in vars(value).values():
                    if isinstance(member, FunctionType) and member.__code__.co_filename == module.__file__:
                        atheris.instrument_func(member)
