"""Classes made at run time of one of ours and the class of a source's module, and their pickling.

A pickled object names its class by where it can be imported from, and these can be imported from
nowhere: their instances are pickled by what the class was made of.
"""

from __future__ import annotations

from functools import cache
from typing import Any


class Derived:
    """Base of our half of a derived class.

    Attributes:
        made_of: our class and the source's, of a derived class; unset on ours alone.
    """

    made_of: tuple[type, type]

    def __reduce__(self) -> tuple:
        return empty_instance, type(self).made_of, self.__getstate__()


@cache
def derived_class(ours: Any, source: Any) -> Any:
    """A class that behaves as `ours` first and as `source` otherwise.

    Its name is `source`'s after `ours.name_prefix`. Its module is `source`'s, where transformers
    looks up what a model's code can do.
    """
    namespace = {
        "__module__": source.__module__,
        "__doc__": ours.__doc__,
        "made_of": (ours, source),
    }
    return type(f"{ours.name_prefix}{source.__name__}", (ours, source), namespace)


def empty_instance(ours: type, source: type) -> Any:
    """An instance of the derived class without attributes, which unpickling then sets."""
    cls = derived_class(ours, source)
    return cls.__new__(cls)
