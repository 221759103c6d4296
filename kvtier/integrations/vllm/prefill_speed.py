"""How fast the engine computes prompts."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from kvtier.integrations.vllm.metrics import KvtierStats

#: Shorter steps, and those that mostly decode, say little about prompts.
_FEWEST_TOKENS = 64
#: Until a step has been measured.
_ASSUMED_TOKENS_PER_SECOND = 4000.0
#: What a new measurement counts.
_WEIGHT = 0.3


class PrefillSpeed:
    """Measures steps as the scheduler sees them: begun, then ended, in the same order.

    `tokens_per_second` is a moving average, 0 until the first step that tells something.
    """

    def __init__(self, stats: KvtierStats, clock: Callable[[], float]) -> None:
        self._stats = stats
        self._clock = clock
        self._steps: deque[tuple[int, float]] = deque(maxlen=16)
        self._last_end = 0.0
        self.tokens_per_second = 0.0

    def begin(self, prompt_tokens: int, other_tokens: int) -> None:
        """A step that computes so many tokens is handed to the workers."""
        tells = prompt_tokens >= _FEWEST_TOKENS and prompt_tokens >= 8 * other_tokens
        self._steps.append((prompt_tokens if tells else 0, self._clock()))

    def end(self) -> None:
        """The result of the oldest step has come. Steps may overlap: each counts from the last."""
        if not self._steps:
            return
        tokens, began = self._steps.popleft()
        now = self._clock()
        seconds = now - max(began, self._last_end)
        self._last_end = now
        if tokens and seconds > 0:
            speed = tokens / seconds
            old = self.tokens_per_second
            self.tokens_per_second = old + _WEIGHT * (speed - old) if old else speed
            self._stats.add("prefill_tokens", tokens)
            self._stats.add("prefill_seconds", seconds)

    def seconds(self, tokens: int) -> float:
        """What computing so many tokens of a prompt takes; 0.0 as long as that is not known."""
        return tokens / self.tokens_per_second if self.tokens_per_second else 0.0

    def likely_seconds(self, tokens: int) -> float:
        """As `seconds`, and a guess as long as it is not known."""
        return tokens / (self.tokens_per_second or _ASSUMED_TOKENS_PER_SECOND)
