"""What requests may cost, in tokens and in money: nothing is sent whose cost, as far as it can be told, would go beyond it."""

import threading
from dataclasses import dataclass

from schemas.errors import InputError

_PER_PRICE = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much may be spent, and the prices by which tokens become money.

    Limits()                                                       # no limit
    Limits(tokens=10_000_000)                                      # prompts and answers together
    Limits(money=20.0, price_prompt=0.15, price_new=0.60)          # prices of a million tokens, in any one currency
    """

    tokens: int = 0  # 0: no limit
    money: float = 0.0  # 0: no limit
    price_prompt: float = 0.0
    price_new: float = 0.0

    def cost(self, num_prompt: int, num_new: int) -> float:
        """Return what so many tokens cost."""
        return (num_prompt * self.price_prompt + num_new * self.price_new) / _PER_PRICE


class Budget:
    """Counts what was spent and what requests on their way may still cost; may be used from several threads."""

    def __init__(self, limits: Limits, spent: tuple[int, int] = (0, 0)) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self._prompt, self._new = spent
        self._held_prompt = self._held_new = 0

    @property
    def spent(self) -> tuple[int, int]:
        """The tokens of prompts, and of answers, that were paid for."""
        return self._prompt, self._new

    def hold(self, num_prompt: int, num_new: int) -> bool:
        """Set aside what a request may cost at most; False where others on their way must come back first.

        Raises InputError where the request would not fit even then.
        """
        with self._lock:
            if not self._fits(self._prompt + num_prompt, self._new + num_new):
                raise InputError(self._explain())
            if not self._fits(self._prompt + self._held_prompt + num_prompt, self._new + self._held_new + num_new):
                return False
            self._held_prompt += num_prompt
            self._held_new += num_new
            return True

    def settle(self, held: tuple[int, int], paid: tuple[int, int]) -> None:
        """Give back what was set aside for a request, and count what it did cost."""
        with self._lock:
            self._held_prompt -= held[0]
            self._held_new -= held[1]
            self._prompt += paid[0]
            self._new += paid[1]

    def _fits(self, num_prompt: int, num_new: int) -> bool:
        limits = self._limits
        if limits.tokens and num_prompt + num_new > limits.tokens:
            return False
        return not limits.money or limits.cost(num_prompt, num_new) <= limits.money

    def _explain(self) -> str:
        limits, total = self._limits, self._prompt + self._new
        used, named = f"{total} tokens", f"budget_tokens={limits.tokens}"
        if limits.money and not (limits.tokens and total >= limits.tokens):
            used = f"{limits.cost(self._prompt, self._new):.4g} in money for {total} tokens"
            named = f"budget_money={limits.money:g}"
        return (
            f"{named} does not allow another request: {used} are spent, runs before this one with the same cache included. Every answer "
            f"is kept; raise the budget and give the same command again, it goes on from there"
        )
