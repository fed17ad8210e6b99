"""What a caption says: objects, their attributes, and the actions that link them. Both parsers give this."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Action:
    """A verb with the objects it links, by number; as subject, object or object of its preposition."""

    verb: str
    objects: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Parse:
    """Objects in the order of the caption, lower-case base forms; attributes belong to an object's number."""

    objects: tuple[str, ...] = ()
    attributes: tuple[tuple[int, str], ...] = ()
    actions: tuple[Action, ...] = ()

    def complexity(self) -> int:
        """Return the most relations of one object: its attributes and the actions it takes part in; 0 without any (DiHT's C)."""
        relations = Counter(number for number, _ in self.attributes)
        for action in self.actions:
            relations.update(set(action.objects))
        return max(relations.values(), default=0)

    def describe(self) -> list[str]:
        """Return the parse as short texts: `bird: small, brown` for every object, `chase(cat, bird)` for every action."""
        lines = []
        for number, name in enumerate(self.objects):
            own = [attribute for owner, attribute in self.attributes if owner == number]
            lines.append(f"{name}: {', '.join(own)}" if own else name)
        lines += [
            f"{action.verb}({', '.join(self.objects[number] for number in action.objects)})" for action in self.actions
        ]
        return lines


Parser = Callable[[str], Parse]
