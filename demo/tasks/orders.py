"""Task `orders-json`: pull product, quantity and city out of an order, as JSON."""

import json
from random import Random

from demo.tasks.task import Filled, Task, with_small_talk
from demo.worlds import CITIES, PEOPLE, PRODUCTS, number_words

_TRAIN = (
    "Please send {quantity} {product} to {city}.",
    "I would like {quantity} {product} delivered to {city}.",
    "Our office in {city} needs {quantity} {product}.",
    "{person} in {city} has ordered {quantity} {product}.",
    "Can I get {quantity} of the {product} shipped to {city}?",
    "For the shop in {city}: {quantity} {product}, please.",
    "We ran out of {product} in {city}. Please bring {quantity}.",
    "{quantity} {product} for {person}, to be sent to {city}.",
    "Could you ship {quantity} {product} to {person} in {city}?",
    "To {city}, please: {quantity} of the {product}.",
    "Put me down for {quantity} {product}. I live in {city}.",
    "{city} here. We need {quantity} more {product} this week.",
    "Add {quantity} {product} to the parcel for {city}.",
    "The {product} is lovely! {person} wants {quantity} of them in {city}.",
    "Deliver {quantity} pieces of {product} to our {city} store.",
    "This is {person} from {city}. I want to buy {quantity} {product}.",
    "How soon can {quantity} {product} be in {city}?",
    "My address is in {city} and I am after {quantity} {product}.",
    "We take {quantity} {product}. Send them to {city} by train.",
    "The {product} sells well, so {city} will have {quantity} more.",
    "Order for {city}: {product}, {quantity} pieces.",
    "{product}, {quantity} of them, and the city is {city}.",
    "In {city} they would be happy about {quantity} {product}.",
    "{person} told me to order {quantity} {product} for {city}.",
)
_HELDOUT = (
    "Kindly dispatch {quantity} {product} to our friends in {city}.",
    "{person} asks for {quantity} {product} at the {city} office.",
    "In {city} we are waiting for {quantity} {product}.",
    "I need {quantity} of your {product} here in {city}.",
    "Please reserve {quantity} {product}, and send them on to {person} in {city}.",
    "A customer in {city} would like the {product}: {quantity} pieces.",
    "Could our {city} shop have {quantity} {product} by Monday?",
)
_REPLIES = (
    "Of course. We will send {quantity} {product} to {city}.",
    "Thank you, the {product} will be in {city} soon, all {quantity} of them.",
    "With pleasure: {city} will have {quantity} {product} this week.",
    "The order is noted: {product}, {quantity} pieces, for {city}.",
)


def _fill(rng: Random, template: str) -> Filled:
    product, city = rng.choice(list(PRODUCTS)), rng.choice(list(CITIES))
    quantity = rng.randint(2, 99)
    said = number_words(quantity) if rng.random() < 0.4 else str(quantity)
    prompt = template.format(quantity=said, product=product, city=city, person=rng.choice(PEOPLE))
    answer = json.dumps({"product": product, "quantity": quantity, "city": city})
    reply_quantity = rng.choice((str(quantity), number_words(quantity)))
    reply = rng.choice(_REPLIES).format(quantity=reply_quantity, product=product, city=city)
    return Filled(with_small_talk(rng, prompt), answer, reply)


TASK = Task(
    "orders-json", "product, quantity and city of an order, as JSON", _TRAIN, _HELDOUT, _fill
)
