"""What is asked, and when: all drawn from seeds. Plain data, as JSON between processes."""

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass

ADAPTERS = 16


@dataclass(frozen=True, slots=True)
class Ask:
    """One streamed completion of exactly `new_tokens`."""

    model: str  # an adapter's name
    prompt: tuple[int, ...]
    new_tokens: int
    due_s: float = 0.0  # after the load's beginning
    after_events: int = 0  # sent once each of the asks before it has had so many tokens, too


@dataclass(frozen=True, slots=True)
class Load:
    """Asks in order; `at_once`: of those that are due, so many are open together (None: all)."""

    asks: tuple[Ask, ...]
    at_once: int | None = None

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Load":
        fields = json.loads(text)
        asks = (Ask(**ask | {"prompt": tuple(ask["prompt"])}) for ask in fields["asks"])
        return cls(tuple(asks), fields["at_once"])


@dataclass(frozen=True, slots=True)
class Shape:
    """What all requests of a load have in common."""

    models: tuple[str, ...]  # in turn
    vocab: int
    prompt_tokens: int
    new_tokens: int

    def asks(self, due_s: Sequence[float], seed: int) -> tuple[Ask, ...]:
        """One per time; no two prompts of one seed, or of two, begin alike."""
        draw = random.Random(seed)
        return tuple(
            Ask(
                self.models[number % len(self.models)],
                tuple(draw.randrange(self.vocab) for _ in range(self.prompt_tokens)),
                self.new_tokens,
                due,
            )
            for number, due in enumerate(due_s)
        )


def closed(shape: Shape, count: int, at_once: int, seed: int) -> Load:
    """`count` requests, each sent as soon as fewer than `at_once` are open."""
    return Load(shape.asks([0.0] * count, seed), at_once)


def poisson(shape: Shape, per_s: float, seconds: float, seed: int) -> Load:
    """Requests at random times, `per_s` on average, whether or not earlier ones have ended."""
    draw = random.Random(f"arrivals {seed}")
    due_s, now = [], draw.expovariate(per_s)
    while now < seconds or not due_s:
        due_s.append(now)
        now += draw.expovariate(per_s)
    return Load(shape.asks(due_s, seed))


def running_and_long(shape: Shape, streams: int, long_prompt: int, after: int, seed: int) -> Load:
    """`streams` requests, and one of `long_prompt` tokens once each has had `after` tokens."""
    running = shape.asks([0.0] * streams, seed)
    draw = random.Random(f"long {seed}")
    prompt = tuple(draw.randrange(shape.vocab) for _ in range(long_prompt))
    return Load((*running, Ask(shape.models[0], prompt, 1, after_events=after)))
