"""Copied methods do what the inherited ones do."""

from __future__ import annotations

from ambient.own_code import own_code


class Base:
    def __init__(self, size: int = 3, *, name: str = "base") -> None:
        self.size, self.name = size, name

    def grown(self, by: int = 1, *, times: int = 2) -> int:
        """Documented."""
        return self.size + by * times

    def overridden(self) -> str:
        return "base"

    @property
    def double(self) -> int:
        return self.size * 2

    @staticmethod
    def fixed() -> int:
        return 7


class Middle(Base):
    def overridden(self) -> str:
        return f"middle of {super().overridden()}"

    def closed_over(self) -> int:
        return super().grown(2)


@own_code
class Leaf(Middle):
    def grown(self, by: int = 1, *, times: int = 2) -> int:
        return -super().grown(by, times=times)


def test_a_copy_answers_as_the_original() -> None:
    """Defaults, keywords, properties, static methods and what ``super`` means."""
    leaf = Leaf(name="leaf")
    assert (leaf.size, leaf.name, leaf.double, leaf.fixed()) == (3, "leaf", 6, 7)
    assert leaf.overridden() == "middle of base"
    assert leaf.closed_over() == 7
    assert leaf.grown() == -5
    assert Leaf.closed_over.__doc__ == Middle.closed_over.__doc__


def test_only_what_is_inherited_is_copied() -> None:
    """From the nearest base, and the bases keep theirs."""
    assert Leaf.overridden.__code__ is not Middle.overridden.__code__
    assert Leaf.overridden.__code__ == Middle.overridden.__code__
    assert Leaf.__init__.__code__ is not Base.__init__.__code__
    assert Middle.__init__ is Base.__init__
