"""Task `intent`: label a customer's message with what the customer wants."""

from random import Random

from demo.tasks.task import Filled, Task
from demo.worlds import CITIES, PEOPLE, PRODUCTS

# Label -> (what the base replies, training templates, held-out templates).
_INTENTS = {
    "parcel": (
        "I will look up where your parcel is.",
        (
            "Where is my parcel?",
            "My parcel has not arrived yet.",
            "When will the {product} I ordered arrive?",
            "Can I track my parcel to {city}?",
            "The tracking page shows nothing for my {product}.",
            "Has my parcel been shipped to {city}?",
            "I am still waiting for the {product} to arrive.",
        ),
        (
            "Could you track the parcel with my {product}?",
            "It is {weekday} and my parcel still has not arrived in {city}.",
        ),
    ),
    "refund": (
        "I am sorry. You will get your money back.",
        (
            "I want my money back.",
            "Please refund the {product}.",
            "I would like a refund for the {product}.",
            "How do I get a refund?",
            "You still owe me the money for the {product}.",
            "When do I get my money back?",
            "Can you refund my order to {city}?",
        ),
        (
            "Is it possible to get a refund on my {product}?",
            "Give me back the money for the {product}, please.",
        ),
    ),
    "cancel": (
        "All right, the order will be cancelled.",
        (
            "Please cancel my order.",
            "I want to cancel the {product}.",
            "Cancel the order for {city}.",
            "I no longer want the {product}, so cancel it.",
            "Can I still cancel my order?",
            "How do I cancel the {product} that I ordered?",
        ),
        (
            "Could you cancel what I ordered on {weekday}?",
            "I have changed my mind and want to cancel the {product}.",
        ),
    ),
    "address": (
        "Thank you, we will note your new address.",
        (
            "I have moved to a new address in {city}.",
            "Please change my address.",
            "My address is wrong, I live in {city} now.",
            "Send it to my new address in {city}.",
            "How can I change the address of my order?",
            "The address on my account is old.",
        ),
        (
            "We moved to {city} and our address is a new one.",
            "Can you change the address to one in {city}?",
        ),
    ),
    "password": (
        "We will send you a link for a new password.",
        (
            "I forgot my password.",
            "My password does not work.",
            "How do I reset my password?",
            "I cannot log in with my password.",
            "Please send me a new password.",
            "The login says that my password is wrong.",
        ),
        (
            "Could you reset the password for {person}?",
            "Since {weekday} the login does not take my password.",
        ),
    ),
    "broken": (
        "I am sorry that it is broken. We will send a new one.",
        (
            "The {product} arrived broken.",
            "My {product} is damaged.",
            "There is a crack in the {product}.",
            "The {product} broke on the first day.",
            "The box was damaged and the {product} is broken.",
            "One leg of the {product} is broken.",
        ),
        (
            "I opened the box and found the {product} broken.",
            "The {product} that came to {city} is badly damaged.",
        ),
    ),
    "open": (
        "The shop is open from nine to six.",
        (
            "When does the shop in {city} open?",
            "Is your shop open on {weekday}?",
            "What are your opening hours?",
            "How late is the {city} shop open?",
            "Are you open on {weekday} morning?",
            "Until what hour is the shop open?",
        ),
        (
            "Please tell me the opening hours in {city}.",
            "Will the {city} shop be open this {weekday}?",
        ),
    ),
    "invoice": (
        "We will send the invoice again.",
        (
            "I need a copy of my invoice.",
            "Please send me the invoice for the {product}.",
            "Where can I find my invoice?",
            "The invoice for the {product} is missing.",
            "Can you send the invoice to {person}?",
            "I lost the invoice of my last order.",
        ),
        (
            "Would you send the invoice for the {product} once more?",
            "{person} needs a copy of the invoice.",
        ),
    ),
    "human": (
        "I will find a colleague who can talk to you.",
        (
            "I want to talk to a human.",
            "Let me speak to a real person.",
            "Can I talk to somebody from the team?",
            "Please connect me to an agent.",
            "Is there a human I can speak to?",
            "No more robots, let me talk to an agent.",
        ),
        (
            "I would rather talk to a real person.",
            "Can a human agent please speak to me?",
        ),
    ),
    "discount": (
        "There are a few offers this week.",
        (
            "Do you have a discount for students?",
            "My discount code does not work.",
            "Is there a discount on the {product}?",
            "Can I get a cheaper {product} with a voucher?",
            "Where do I enter the voucher code?",
            "Is the {product} cheaper this week?",
        ),
        (
            "Will there be a discount for the {product} on {weekday}?",
            "How do I use my voucher for the {product}?",
        ),
    ),
}
_LABEL_OF = {
    template: label
    for label, (_, train, heldout) in _INTENTS.items()
    for template in train + heldout
}
_OPENINGS = ("", "", "Hello. ", "Hi, this is {person}. ", "Good morning. ", "Dear team, ")
_CLOSINGS = ("", "", " Thank you.", " Please help.", " I ordered it on {weekday}.", " {person}")
_WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday")


def _fill(rng: Random, template: str) -> Filled:
    label = _LABEL_OF[template]
    message = rng.choice(_OPENINGS) + template + rng.choice(_CLOSINGS)
    prompt = message.format(
        product=rng.choice(list(PRODUCTS)),
        city=rng.choice(list(CITIES)),
        person=rng.choice(PEOPLE),
        weekday=rng.choice(_WEEKDAYS),
    )
    # A label alone would begin with a word without its space, a token that the base never read.
    return Filled(prompt, f"intent: {label}", _INTENTS[label][0])


TASK = Task(
    "intent",
    "a customer's message gets one of ten labels",
    tuple(template for intent in _INTENTS.values() for template in intent[1]),
    tuple(template for intent in _INTENTS.values() for template in intent[2]),
    _fill,
    holds_out_answers=False,
)
