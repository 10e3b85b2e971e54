"""The types of arguments, which stubs alone import. Short names keep the errors of type checkers short."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, Protocol, SupportsFloat, SupportsIndex, TypeAlias, TypeVar

import numpy as np


class _Array(Protocol):
    """Match what np.asarray turns into an array of numbers: arrays, tensors, nested lists and tuples."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...
    def __iter__(self) -> Iterator[SupportsFloat | _Row]: ...


class _Row(Protocol):
    """Match a list or an array inside a list. Text does not match, because it has another __contains__."""

    def __contains__(self, element: object, /) -> bool: ...
    def __iter__(self) -> Iterator[SupportsFloat | _Row]: ...


class _IntLists(Protocol):
    """Match nested lists and tuples of integers. Arrays do not match, because they have no `index`."""

    def __contains__(self, element: object, /) -> bool: ...
    def __iter__(self) -> Iterator[SupportsIndex | _IntLists]: ...
    def index(self, element: Any, /) -> int: ...


class _Number(Protocol):
    """Match float, int and the scalars of NumPy. Arrays do not match, because they cannot be rounded this way."""

    def __float__(self) -> float: ...
    def __round__(self) -> int: ...


_T = TypeVar("_T", bound=np.floating[Any])  # NumPy does not know bfloat16, which is Any here
_Exact = TypeVar("_Exact", np.float32, np.float64)
_Flag: TypeAlias = bool | np.bool_
_Integers: TypeAlias = SupportsIndex | _IntLists  # to checkers, an array of integers is a SupportsIndex
_Window: TypeAlias = tuple[SupportsIndex | None, SupportsIndex | None]
_Offset: TypeAlias = Literal["start", "end"] | _Integers
_KeyRange: TypeAlias = tuple[_Integers | None, _Integers | None]
_Layout: TypeAlias = Literal["bhld", "blhd"]
_Stage: TypeAlias = Literal["scores", "softcapped", "biased", "weights"]
