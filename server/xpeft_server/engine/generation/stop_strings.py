"""Stop strings: texts that end an answer."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence


class StopStrings:
    """Passes on a streamed text up to the first complete stop string.

    If two are complete at the same character, the longer one counts. Text that may begin a stop string is held back
    until that is decided. The outcome does not depend on how the text is cut into pieces. One automaton looks for all
    stop strings, a step for each character (Aho and Corasick, Efficient string matching, 1975).

    Attributes:
        stopped: whether a stop string has come; nothing is passed on after that.
    Raises: ValueError if a stop string is empty.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        if "" in stop:
            raise ValueError(f"stop: {list(stop)} has an empty text, which would end every answer before it begins")
        self.stopped = False
        self._next: list[dict[str, int]] = [{}]
        self._fallback = [0]
        self._depth = [0]
        self._length = [0]
        for text in stop:
            self._add(text)
        self._link()
        self._starts = frozenset(self._next[0])
        self._state = 0
        self._held = ""

    def push(self, text: str) -> str:
        """The text that can be passed on now."""
        if self.stopped:
            return ""
        if not self._state and self._starts.isdisjoint(text):
            return text
        seen = self._held + text
        for place, character in enumerate(text, len(self._held) + 1):
            self._state = self._step(self._state, character)
            if self._length[self._state]:
                self.stopped = True
                self._held = ""
                return seen[: place - self._length[self._state]]
        clear = len(seen) - self._depth[self._state]
        self._held = seen[clear:]
        return seen[:clear]

    def end(self) -> str:
        """The text that was held back: no more comes."""
        held, self._held, self._state = self._held, "", 0
        return held

    def _add(self, text: str) -> None:
        state = 0
        for depth, character in enumerate(text, 1):
            if character not in self._next[state]:
                self._next[state][character] = len(self._next)
                self._next.append({})
                self._fallback.append(0)
                self._depth.append(depth)
                self._length.append(0)
            state = self._next[state][character]
        self._length[state] = len(text)

    def _link(self) -> None:
        """Link each state to the longest other one that is a suffix of it; it is an end if that one is."""
        waiting = deque(self._next[0].values())
        while waiting:
            state = waiting.popleft()
            for character, follower in self._next[state].items():
                self._fallback[follower] = self._step(self._fallback[state], character)
                self._length[follower] = self._length[follower] or self._length[self._fallback[follower]]
                waiting.append(follower)

    def _step(self, state: int, character: str) -> int:
        while state and character not in self._next[state]:
            state = self._fallback[state]
        return self._next[state].get(character, 0)
