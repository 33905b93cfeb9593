"""Guesses from a sequence's own text, beside a search that is plain to see; and how often."""

from hypothesis import given
from hypothesis import strategies as st

from server.engine.prompt_lookup import LONGEST_MATCH, MAX_REST, SHORTEST_MATCH, PromptLookup

# Few ids, so that text recurs; some whose bytes look like others' if read from the wrong place.
ids = st.sampled_from([0, 1, 2, 256, 257, 65536, 1 << 24])


def latest_match(tokens: list[int]) -> int | None:
    for size in range(LONGEST_MATCH, SHORTEST_MATCH - 1, -1):
        for end in range(len(tokens) - 1, size - 1, -1):
            if tokens[end - size : end] == tokens[len(tokens) - size :]:
                return end
    return None


def fresh(length: int) -> PromptLookup:
    """One that guesses `length` tokens at once."""
    lookup = PromptLookup(length)
    lookup.learn(length, length)
    return lookup


@given(st.lists(ids, min_size=1, max_size=40), st.integers(1, 8))
def test_what_followed_the_latest_match_is_guessed(tokens: list[int], most: int) -> None:
    end = latest_match(tokens)
    guess = fresh(most).propose(tokens, most)
    if end is None:
        assert guess == ()
    else:
        whole = list(tokens)
        for at in range(most):  # copied one by one, so that a loop goes on
            whole.append(whole[end + at])
        assert guess == tuple(whole[len(tokens) :])


@given(st.lists(ids, min_size=2, max_size=40), st.integers(1, 39))
def test_text_that_grows_is_read_on(tokens: list[int], first: int) -> None:
    lookup = fresh(4)
    lookup.propose(tokens[:first], 4)
    lookup.learn(4, 4)  # whatever it was
    while lookup._rest:
        lookup.propose(tokens[:first], 4)
    assert lookup.propose(tokens, 4) == fresh(4).propose(tokens, 4)


def test_it_doubles_while_all_come_true_and_shrinks_to_what_did() -> None:
    lookup, loop = PromptLookup(6), [5, 6] * 4
    lengths = []
    for accepted in (1, 2, 4, 3, 3, 0):
        drafted = len(lookup.propose(loop, 100))
        lengths.append(drafted)
        lookup.learn(drafted, accepted)
    assert lengths == [1, 2, 4, 6, 3, 6]
    assert lookup.propose(loop, 100) == ()
    assert len(lookup.propose(loop, 100)) == 1


def test_no_more_than_there_is_room_for_and_none_the_shorter_afterwards() -> None:
    lookup = fresh(8)
    assert lookup.propose([5, 6] * 4, 3) == (5, 6, 5)
    lookup.learn(3, 3)
    assert lookup.propose([5, 6] * 4, 0) == ()
    assert len(lookup.propose([5, 6] * 4, 9)) == 8


def test_text_without_repeats_is_looked_at_less_and_less() -> None:
    lookup, looks = PromptLookup(4), []
    for step in range(100):
        rested = lookup._rest
        assert lookup.propose(list(range(step + 3)), 4) == ()
        if not rested:
            looks.append(step)
    assert looks[:5] == [0, 2, 6, 14, 30]
    assert looks[5] - looks[4] == MAX_REST + 1
