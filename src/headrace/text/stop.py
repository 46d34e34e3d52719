"""Stop strings, found in text that arrives in pieces of any size.

The automaton is Aho and Corasick's ("Efficient string matching", CACM 1975): after each character its state is the
longest end of the text that begins a stop string. That is both how a match is found wherever the pieces were cut, and
how much text must be held back because it may turn out to belong to one. Each character costs a constant number of
steps on average, however many stop strings there are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from msgspec import Struct, field


class _Node(Struct, eq=False):
    """A prefix of some stop strings. ``match`` is the longest stop string that ends where this prefix ends."""

    depth: int = 0
    next: dict[str, _Node] = field(default_factory=dict)
    fail: _Node | None = None
    match: str = ""


class Stops(Struct, frozen=True):
    """A set of stop strings, prepared once and shared by all the sequences of a request."""

    root: _Node
    include: bool
    """Whether the stop string stays in the text."""

    @classmethod
    def of(cls, stops: Sequence[str], *, include: bool = False) -> Stops:
        """Build the automaton. Empty strings match nothing. Time and memory are linear in the strings' length."""
        root = _Node()
        for stop in stops:
            node = root
            for char in stop:
                node = node.next.setdefault(char, _Node(node.depth + 1))
            node.match = stop
        queue = deque(root.next.values())
        while queue:  # Breadth first: a node's fail link is shorter, so it is complete before the node.
            node = queue.popleft()
            fail = node.fail = node.fail or root
            node.match = node.match or fail.match
            for char, child in node.next.items():
                child.fail = _follow(fail, char, root)
                queue.append(child)
        return cls(root, include)


def _follow(node: _Node, char: str, root: _Node) -> _Node:
    """The longest end of (node's prefix + char) that begins a stop string."""
    while char not in node.next:
        if node.fail is None:
            return root
        node = node.fail
    return node.next[char]


class StopMatcher:
    """Looks for stop strings in one sequence's text.

    The match is the one that is complete first; of those complete at the same character, the longest. So it does not
    depend on how the text was cut into pieces.
    """

    __slots__ = ("_held", "_node", "_stops")

    def __init__(self, stops: Stops) -> None:
        self._stops = stops
        self._node = stops.root
        self._held = ""

    def push(self, delta: str, *, armed: bool = True) -> tuple[str, str | None]:
        """Take the next piece; return what can be given out, and the stop string that was found, if any.

        After a match nothing more may be pushed. Unless ``armed``, a stop string that is complete within this piece
        is ordinary text.
        """
        root, node = self._stops.root, self._node
        if node is root and root.next.keys().isdisjoint(delta):
            return delta, None
        text = self._held + delta
        for end, char in enumerate(delta, len(self._held) + 1):
            node = _follow(node, char, root)
            if node.match and armed:
                return text[: end if self._stops.include else end - len(node.match)], node.match
        self._node = node
        keep = len(text) - node.depth
        self._held = text[keep:]
        return text[:keep], None

    def finish(self) -> str:
        """What was held back, when no more text comes."""
        held, self._held, self._node = self._held, "", self._stops.root
        return held
