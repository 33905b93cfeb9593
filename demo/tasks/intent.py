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
            "My parcel should have come on {weekday}.",
            "No parcel has arrived in {city}.",
            "Did you lose my parcel?",
        ),
        (
            "Could you track the parcel with my {product}?",
            "It is {weekday} and my parcel still has not arrived in {city}.",
            "Can you see where my parcel with the {product} is?",
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
            "My {product} was too dear, I want the money back.",
            "I ask for my money back.",
            "Do I get a refund for the {product} from {weekday}?",
            "Money back, please, for the {product}.",
        ),
        (
            "Is it possible to get a refund on my {product}?",
            "Give me back the money for the {product}, please.",
            "The shop in {city} promised me a refund.",
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
            "Cancel everything that I ordered.",
            "I do not need the {product} any more, please cancel.",
            "We changed our plans, cancel the {product}.",
        ),
        (
            "Could you cancel what I ordered on {weekday}?",
            "I have changed my mind and want to cancel the {product}.",
            "Cancel my {product}, {person} bought one already.",
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
            "Our new address is in {city}.",
            "We live in {city} now, this is our new address.",
            "I gave you the wrong address.",
        ),
        (
            "We moved to {city} and our address is a new one.",
            "Can you change the address to one in {city}?",
            "Please note that my address in {city} is new.",
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
            "My old password is gone.",
            "{person} has lost the password.",
            "The password I got on {weekday} does not work.",
        ),
        (
            "Could you reset the password for {person}?",
            "Since {weekday} the login does not take my password.",
            "What can I do when I forgot my password?",
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
            "I found my {product} broken.",
            "When I opened it, the {product} was damaged.",
            "Why is the {product} in the box broken?",
            "We opened the parcel and the {product} was broken.",
        ),
        (
            "I opened the box and found the {product} broken.",
            "The {product} that came to {city} is badly damaged.",
            "My new {product} has a broken leg.",
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
            "Do you open early on {weekday}?",
            "Tell me when you are open.",
            "At what hour do you open in {city}?",
        ),
        (
            "Please tell me the opening hours in {city}.",
            "Will the {city} shop be open this {weekday}?",
            "Until when are you open on {weekday}?",
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
            "My boss {person} wants to see the invoice.",
            "An invoice for the {product}, please.",
            "There was no invoice in the box.",
        ),
        (
            "Would you send the invoice for the {product} once more?",
            "{person} needs a copy of the invoice.",
            "I cannot find the invoice for my {product}.",
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
            "May I speak to a human, please?",
            "I need an agent to talk to.",
            "A real person should talk to me.",
        ),
        (
            "I would rather talk to a real person.",
            "Can a human agent please speak to me?",
            "Get me a human to talk to, please.",
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
            "Does my voucher work for the {product}?",
            "I have a voucher for the {product}.",
            "Can I use a voucher in {city}?",
            "What is the discount on {weekday}?",
        ),
        (
            "Will there be a discount for the {product} on {weekday}?",
            "How do I use my voucher for the {product}?",
            "Is there any discount in {city} on {weekday}?",
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
