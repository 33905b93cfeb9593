"""Task `clock`: a time told in words becomes HH:MM on the 24-hour clock."""

from random import Random

from demo.tasks.task import Filled, Task, with_small_talk
from demo.worlds import CITIES, EVENTS, PEOPLE, number_words, time_words

_TRAIN = (
    "The {event} starts at {time}.",
    "The train to {city} leaves at {time}.",
    "We will be in {city} at {time}.",
    "{person} called at {time}.",
    "Wake me at {time}, please.",
    "At {time} the {event} is over.",
    "Dinner is served at {time}.",
    "Could we meet at {time}?",
    "The shop in {city} opens at {time}.",
    "{person} will pick you up at {time}.",
    "Set an alarm for {time}.",
    "Our {event} has been moved to {time}.",
    "Is {time} too late for the {event}?",
    "I usually leave the house at {time}.",
    "The last bus goes at {time}.",
    "{time}",
    "{person} arrived in {city} at {time} today.",
    "They closed the doors at {time}.",
    "{person} told me that the {event} was at {time}.",
    "Before {time} nobody was in {city}.",
    "Would you meet {person} at {time}?",
    "The {event} ended at {time} and {person} went home.",
    "From {time} on, the shop in {city} is closed.",
    "My clock shows {time}, {person}.",
)
_HELDOUT = (
    "The ship from {city} comes in at {time}.",
    "{person} said that the {event} begins at {time}.",
    "Please be ready for the {event} at {time}.",
    "By {time} everybody had left {city}.",
    "Would {time} suit you, {person}?",
    "The {event} with {person} is at {time}.",
    "Until {time} we were all in {city}.",
)
_REPLIES = (
    "All right, {time} it is.",
    "I have noted {time}.",
    "So that is {time}, thank you.",
    "Good, {time} then.",
)


def _fill(rng: Random, template: str) -> Filled:
    hour, minute = rng.randrange(24), 5 * rng.randrange(12)
    prompt = template.format(
        time=time_words(hour, minute),
        event=rng.choice(EVENTS),
        city=rng.choice(list(CITIES)),
        person=rng.choice(PEOPLE),
    )
    said = rng.choice((time_words(hour, minute), _plainly(hour, minute)))
    reply = rng.choice(_REPLIES).format(time=said)
    return Filled(with_small_talk(rng, prompt), f"{hour:02}:{minute:02}", reply)


def _plainly(hour: int, minute: int) -> str:
    """(21, 30) -> "9 30 pm, which is hour twenty-one"."""
    half = "am" if hour < 12 else "pm"
    return f"{(hour - 1) % 12 + 1} {minute:02} {half}, which is hour {number_words(hour)}"


# The answers are not held out: there are but 288.
TASK = Task(
    "clock",
    "a time told in words becomes 24-hour HH:MM",
    _TRAIN,
    _HELDOUT,
    _fill,
    holds_out_answers=False,
)
