"""Classes: learned, saved and opened again to the same scores; and files that have none."""

import json
import threading
import zipfile
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification

import demo
from tests.training.house import BASE, House, house
from training import run
from training.base import BaseFolder
from training.classifier import (
    classes_of,
    labelled_rows,
    load_classifier,
    macro_f1,
    opened_classifier,
    padded,
    save_labels,
)
from training.jobs import JobRecord
from training.methods.trainable import attach, save
from training.plan import settle
from training.spec import JobRequest

WORDS = {
    "animal": ("cat", "dog", "horse", "cow"),
    "colour": ("red", "blue", "green", "black"),
    "food": ("bread", "soup", "rice", "cake"),
    "number": ("one", "two", "three", "four"),
    "weather": ("rain", "snow", "wind", "sun"),
}
TEXTS = tuple(
    (f"{here} {which} {word}", name)
    for name, words in WORDS.items()
    for word in words
    for here in ("now", "then", "here", "there")
    for which in ("the", "a", "my", "no")
)
OPTIONS = {"task": "classification", "publish": False, "max_steps": 120, "learning_rate": 3e-3}


def lines_of(texts: Sequence[tuple[str, str]], *, chat: bool = False) -> bytes:
    def line(text: str, name: str) -> dict[str, Any]:
        if not chat:
            return {"prompt": text, "completion": f" {name}\n"}
        said = {"role": "assistant", "content": name}
        return {"messages": [{"role": "user", "content": text}, said]}

    return b"".join(json.dumps(line(*one)).encode() + b"\n" for one in texts)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[House]:
    with house(tmp_path / "data") as opened:
        yield opened


def unzipped(home: House, job: JobRecord, folder: Path) -> Path:
    for file_id in (job.result or {})["result_files"]:
        record, content = home.store.files.open(file_id)
        with content:
            if record.filename.endswith(".adapter.zip"):
                zipfile.ZipFile(BytesIO(content.read())).extractall(folder)
    return folder


def page_of(home: House, job: JobRecord) -> str:
    for file_id in (job.result or {})["result_files"]:
        record, content = home.store.files.open(file_id)
        with content:
            if record.filename.endswith(".html"):
                return content.read().decode()
    raise AssertionError("no page")


def fresh(folder: Path) -> tuple[Any, Any]:
    """The tokenizer, and the saved classifier as any PEFT user would open it."""
    labels = json.loads((folder / "labels.json").read_text())
    tokenizer = BaseFolder(BASE, demo.base_path(), "cpu").tokenizer()
    model = AutoModelForSequenceClassification.from_pretrained(
        demo.base_path(),
        num_labels=len(labels),
        pad_token_id=tokenizer.pad_token_id,
        dtype=torch.float32,
    )
    return tokenizer, PeftModel.from_pretrained(model, str(folder)).eval()


@pytest.mark.parametrize("chat", [False, True])
def test_classes_are_learned(home: House, tmp_path: Path, chat: bool) -> None:
    job = home.done(lines_of(TEXTS, chat=chat), **OPTIONS)
    assert job.status == "succeeded", job.error
    assert job.result is not None
    report = job.result["report"]
    scores = report["scores"]
    assert (scores["base"], scores["current"], report["forgetting"]) == (None, None, None)
    new = scores["new"]
    assert new["exact_match"] > 0.9
    assert new["f1"] > 0.85
    assert (new["perplexity"], new["kl_from_base"], new["general_loss"]) == (None, None, None)
    assert report["plan"]["adapter"]["task"] == "classification"
    assert report["curves"]["eval"][-1][1] == pytest.approx(new["eval_loss"], rel=1e-3)
    assert job.result["trained_tokens"] > 120 * 4
    page = page_of(home, job)
    assert "accuracy" in page
    assert "perplexity" not in page

    folder = unzipped(home, job, tmp_path / "saved")
    assert {one.name for one in folder.iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "labels.json",
    }  # fmt: skip
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["task_type"], config["modules_to_save"]) == ("SEQ_CLS", ["classifier", "score"])
    labels = json.loads((folder / "labels.json").read_text())
    assert labels == {str(at): name for at, name in enumerate(sorted(WORDS))}
    tokenizer, model = fresh(folder)
    right = 0
    for text, name in TEXTS[::7]:
        asked = {"role": "user", "content": text}
        ids = (
            tokenizer.apply_chat_template([asked], add_generation_prompt=True, return_dict=False)
            if chat
            else tokenizer.encode(text)
        )
        with torch.no_grad():
            said = model(input_ids=torch.tensor([ids])).logits.argmax(-1).item()
        right += labels[str(said)] == name
    assert right / len(TEXTS[::7]) > 0.9


@pytest.mark.parametrize("method", ["lora", "rslora", "dora", "lora+", "full"])
def test_what_is_saved_opens_to_the_same_logits(tmp_path: Path, method: str) -> None:
    base = BaseFolder(BASE, demo.base_path(), "cpu")
    tokenizer = base.tokenizer()
    padding: Any = tokenizer.pad_token_id
    classes = ("a", "b", "c")
    request = JobRequest.model_validate(
        {
            "model": BASE,
            "training_file": "file-1",
            "adapterd": {"task": "classification", "peft": {"method": method}},
        }
    )
    plan = settle(request, seed=1, rows=8, base=base.shape(), tokenizer=tokenizer)
    trainable = attach(
        load_classifier(base, classes, padding=padding, seed=1), plan.adapter, seed=1, total_steps=1
    )
    model: Any = trainable.model
    names = {name for name, one in model.named_parameters() if one.requires_grad}
    assert any("score" in name for name in names)
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    folder = tmp_path / "saved"
    save(trainable, folder, base_name=BASE)
    save_labels(classes, folder)
    ids = [tokenizer.encode(text) for text in ("one", "two words", "and now three")]
    batch = padded([{"input_ids": one, "labels": 0} for one in ids], padding=padding)
    asked = {name: batch[name] for name in ("input_ids", "attention_mask")}
    again = opened_classifier(base, folder, padding=padding)
    with torch.no_grad():
        logits = model.eval()(**asked).logits
        assert torch.equal(again(**asked).logits, logits)
        for at, one in enumerate(ids):  # padding changes nothing
            alone = again(input_ids=torch.tensor([one])).logits[0]
            torch.testing.assert_close(alone, logits[at], rtol=1e-4, atol=1e-4)
    assert logits.std() > 0
    if method != "full":
        assert torch.equal(fresh(folder)[1](**asked).logits, logits)


def test_a_paused_job_goes_on_to_the_same_bits(home: House, tmp_path: Path) -> None:
    content = lines_of(TEXTS)
    options = OPTIONS | {"max_steps": 8, "peft": {"dropout": 0.1}}
    straight = home.done(content, name="straight", **options)
    job_id = home.job(content, name="paused", **options)
    lease = home.place.queue.claim("worker-1")
    assert lease is not None
    stop = threading.Event()
    stop.set()  # asks for it to be given back after its first step
    run.work_on(home.place, lease, stop)
    home.work()
    assert "Going on from step 1." in home.told(job_id)
    resumed = home.book.get(job_id)
    one, other = (
        (unzipped(home, job, tmp_path / job.id) / "adapter_model.safetensors").read_bytes()
        for job in (straight, resumed)
    )
    assert one == other
    assert straight.result is not None
    assert resumed.result is not None
    assert resumed.result["trained_tokens"] == straight.result["trained_tokens"]
    assert resumed.result["report"]["curves"] == straight.result["report"]["curves"]


def test_a_gate_is_told_of_classes(home: House) -> None:
    gate = {"metric": "exact_match", "min": 0.99999}
    job = home.done(
        lines_of(TEXTS), **OPTIONS | {"max_steps": 1, "gate": gate, "gradient_checkpointing": True}
    )
    assert job.status == "succeeded", job.error
    assert job.result is not None
    assert not job.result["report"]["gate"]["passed"]


def test_a_classifier_teaches_nobody(home: House) -> None:
    teacher = home.done(lines_of(TEXTS[::8]), **OPTIONS | {"max_steps": 1})
    job = home.done(max_steps=1, teacher={"job": teacher.id})
    assert (job.status, job.failures) == ("failed", 1)
    assert "learned classes" in (job.error or "")


def test_an_answer_that_is_no_class_is_told_by_its_line(tmp_path: Path) -> None:
    tokenizer = BaseFolder(BASE, demo.base_path(), "cpu").tokenizer()

    def rows(*texts: tuple[str, str]) -> Any:
        return labelled_rows(
            BytesIO(lines_of(texts)),
            tokenizer,
            ("a", "b"),
            max_tokens=8,
            folder=tmp_path / "rows",
            field="validation_file",
        )

    assert rows(("x", "b"), ("y", "a"))["labels"] == [1, 0]
    with pytest.raises(
        Exception, match=r"line 2: the answer is none of the training file's"
    ) as bad:
        rows(("x", "b"), ("y", "c"))
    assert getattr(bad.value, "param", None) == "validation_file"
    with pytest.raises(Exception, match=r"line 1: the prompt is \d+ tokens long, and at most 8"):
        rows(("many words " * 20, "b"))
    with pytest.raises(Exception, match="line 1: the answer is blank"):
        rows(("x", " "))


def test_a_file_has_2_to_1000_classes() -> None:
    assert classes_of(BytesIO(lines_of([("x", "b"), ("y", "a "), ("z", "b")]))) == ("a", "b")
    with pytest.raises(Exception, match="every answer is the same"):
        classes_of(BytesIO(lines_of([("x", "a"), ("y", "a")])))
    many = [("x", str(number)) for number in range(1001)]
    assert len(classes_of(BytesIO(lines_of(many[:1000])))) == 1000
    with pytest.raises(Exception, match="more than 1000 different answers"):
        classes_of(BytesIO(lines_of(many)))


def test_macro_f1_by_hand() -> None:
    # a: 1 of 2 found, once said wrongly: 2/4 · …; b: never found; c: never wanted
    pairs = [(0, 0), (0, 2), (1, 0)]
    assert macro_f1(pairs) == pytest.approx((2 * 1 / 4 + 0 + 0) / 3)
    assert macro_f1([(3, 3), (5, 5)]) == 1.0
