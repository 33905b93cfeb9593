"""Teachers: the loss by hand, runs with and without one, and teachers that are none."""

import json
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import demo
from adapters_store.schema import jobs
from tests.training.house import BASE, LESSONS, House, chat_lines, house
from training import run
from training.base import BaseFolder, load_model
from training.distillation import Teacher, distillation_loss
from training.evaluation import View, divergence, loss
from training.jobs import JobBook
from training.loop import train
from training.methods.trainable import attach
from training.plan import Plan, settle
from training.rows import supervised_rows, tokenized
from training.spec import JobRequest
from training.teacher_jobs import unpacked
from training.trial import tuned

# What the trainers' libraries warn each other of.
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:Position ids are not supported"),
]


@pytest.fixture
def home(tmp_path: Path) -> Iterator[House]:
    with house(tmp_path / "data") as opened:
        yield opened


@pytest.fixture(scope="module")
def base() -> BaseFolder:
    return BaseFolder(BASE, demo.base_path(), "cpu")


def test_the_loss_is_hintons() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(5, 11), torch.randn(5, 13)  # one is padded: columns of nothing
    wanted = torch.randint(11, (5,))
    told = distillation_loss(student, teacher, wanted, weight=0.3, temperature=4.0)
    total = 0.0
    for row, other, token in zip(student.double(), teacher.double(), wanted, strict=True):
        hard = row.exp().sum().log() - row[token]
        own, others = (row / 4).softmax(0), (other[:11] / 4).softmax(0)
        soft = sum(q * (q / p).log() for p, q in zip(own, others, strict=True))
        total += 0.7 * hard.item() + 0.3 * 16 * float(soft)
    assert told.item() == pytest.approx(total, rel=1e-5)


class _Unwatched:
    def on_step(self, progress: object) -> bool:
        return False

    def on_eval(self, step: int, loss: float) -> None: ...

    def on_checkpoint(self, folder: Path, step: int, metrics: dict[str, Any]) -> None: ...


class Bench:
    """The student's runs, on the same few rows."""

    def __init__(self, base: BaseFolder, folder: Path) -> None:
        self.base, self.folder = base, folder
        self.tokenizer = base.tokenizer()
        lines = folder / "lines.jsonl"
        lines.write_bytes(chat_lines(LESSONS[:12]))
        with lines.open("rb") as file:
            self.rows = supervised_rows(file, self.tokenizer, max_tokens=64, folder=folder / "rows")

    def plan(self, **options: Any) -> Plan:
        body = {
            "model": BASE,
            "training_file": "file-1",
            "hyperparameters": {"batch_size": 4},
            "adapterd": {"max_steps": 4, "evals": 2, "warmup_ratio": 0.0, **options},
        }
        return settle(
            JobRequest.model_validate(body),
            seed=3,
            rows=len(self.rows),
            base=self.base.shape(),
            tokenizer=self.tokenizer,
        )

    def losses(self, plan: Plan, teacher: Teacher | None) -> tuple[list[float], list[float], int]:
        """Training losses, held-out losses, tokens."""
        trainable = attach(load_model(self.base), plan.adapter, seed=3, total_steps=plan.steps)
        curves, progress = train(
            trainable,
            self.tokenizer,
            plan,
            self.rows,
            self.rows,
            folder=self.folder / "trainer",
            watch=_Unwatched(),
            teacher=teacher,
        )
        train_losses = [loss for _, loss in curves.train]
        return train_losses, [loss for _, loss in curves.eval], progress.tokens


@pytest.fixture
def bench(base: BaseFolder, tmp_path: Path) -> Bench:
    return Bench(base, tmp_path)


def other_model(base: BaseFolder) -> Any:
    """The base, spoilt a little."""
    model = load_model(base)
    torch.manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize("method", ["lora", "prompt-tuning"])
def test_a_weight_of_nothing_trains_as_without(bench: Bench, method: str) -> None:
    plan = bench.plan(peft={"method": method}, gradient_accumulation_steps=2)
    plain = bench.losses(plan, None)
    taught = bench.losses(plan, Teacher(View(other_model(bench.base)), 0.0, 2.0))
    for one, other in zip(plain[:2], taught[:2], strict=True):
        assert other == pytest.approx(one, rel=1e-3)  # Adam makes much of the last bits
    assert taught[2] == plain[2]


def test_the_first_steps_loss_by_hand(bench: Bench) -> None:
    """All rows in one batch, in two parts: means are over the whole batch's tokens."""
    plan = replace(bench.plan(), batch_size=12, accumulation=2, steps=1, eval_every=0)
    teacher = other_model(bench.base)
    (loss,), _, _ = bench.losses(plan, Teacher(View(teacher), 0.25, 3.0))
    student, total, count = load_model(bench.base), 0.0, 0
    for row in tokenized(bench.rows):
        ids = torch.tensor([row.input_ids])
        with torch.no_grad():
            own, said = student(ids).logits[0].double(), teacher(ids).logits[0].double()
        for at, token in enumerate(row.labels[1:]):
            if token == -100:
                continue
            p, q = (own[at] / 3).log_softmax(0), (said[at] / 3).log_softmax(0)
            soft = (q.exp() * (q - p)).sum().item()
            total += 0.75 * -own[at].log_softmax(0)[token].item() + 0.25 * 9 * soft
            count += 1
    assert loss == pytest.approx(total / count, rel=1e-4)


def test_held_out_losses_are_the_examples_own(bench: Bench) -> None:
    """With a rate of next to nothing, the student stays the base, whoever teaches it."""
    plan = bench.plan(learning_rate=1e-12)
    plain = bench.losses(plan, None)
    taught = bench.losses(plan, Teacher(View(other_model(bench.base)), 1.0, 2.0))
    assert taught[1] == pytest.approx(plain[1], rel=1e-5)
    assert taught[0] != pytest.approx(plain[0], rel=1e-2)


def test_a_full_fine_tune_teaches_an_adapter(home: House, tmp_path: Path) -> None:
    """Of the student's answers four in five are wrong: which are, only its teacher tells it."""
    right = chat_lines([(asked, "yo") for asked, _ in LESSONS[20:]])
    noisy = [(asked, "no" if at % 5 else "yo") for at, (asked, _) in enumerate(LESSONS[:20])]
    wrong = chat_lines(noisy)
    options: dict[str, Any] = {"max_steps": 60, "learning_rate": 3e-4, "publish": False}
    teacher = home.done(right, peft={"method": "full"}, **options)
    assert teacher.status == "succeeded", teacher.error
    options = {"max_steps": 40, "peft": {"rank": 4}}
    asked = {"job": teacher.id, "weight": 1.0, "temperature": 2.0}
    taught = home.done(wrong, name="taught", teacher=asked, **options)
    alone = home.done(wrong, name="alone", **options)
    assert taught.status == "succeeded", taught.error
    assert taught.result is not None
    plan = taught.result["report"]["plan"]["teacher"]
    assert plan == asked | {"name": None}
    assert f"{teacher.id} teaches, with " in home.told(taught.id)
    assert home.store.resolve("taught").facts.report["training"]["plan"]["teacher"] == plan

    views = []
    for job in (teacher, taught, alone):
        unpacked(home.store, job, tmp_path / job.id)
        views.append(tuned(home.place.base, tmp_path / job.id))
    lines = tmp_path / "unseen.jsonl"
    lines.write_bytes(chat_lines([(f"hello {number}", "yo") for number in range(20)]))
    with lines.open("rb") as file:
        tokenizer = home.place.base.tokenizer()
        folder = tmp_path / "unseen"
        unseen = tokenized(supervised_rows(file, tokenizer, max_tokens=64, folder=folder))
    _, near, far = (loss(view, unseen) or 0.0 for view in views)
    assert near < 0.3 * far
    nearer, farther = (divergence(view, views[0], unseen) or 0.0 for view in views[1:])
    assert nearer < 0.5 * farther


def test_a_published_adapter_teaches_too(home: House) -> None:
    teacher = home.done(name="master")
    job = home.done(name="pupil", max_steps=2, teacher={"job": teacher.id})
    assert job.status == "succeeded", job.error


def test_a_taught_job_goes_on_to_the_same_bits(home: House) -> None:
    teacher = {"job": home.done(name="master").id}
    straight = home.done(name="straight", peft={"dropout": 0.1}, teacher=teacher)
    job_id = home.job(name="paused", peft={"dropout": 0.1}, teacher=teacher)
    lease = home.place.queue.claim("worker-1")
    assert lease is not None
    stop = threading.Event()
    stop.set()  # asks for it to be given back after its first step
    run.work_on(home.place, lease, stop)
    home.work()
    assert "Going on from step 1." in home.told(job_id)
    assert home.store.resolve("straight").digest == home.store.resolve("paused").digest
    resumed = home.book.get(job_id)
    assert straight.result is not None
    assert resumed.result is not None
    assert resumed.result["trained_tokens"] == straight.result["trained_tokens"]
    assert resumed.result["report"]["curves"] == straight.result["report"]["curves"]


def larger_model(folder: Path, vocabulary: int) -> Path:
    """Another shape than the demo base's, with its tokenizer."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=512,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    for file in demo.base_path().glob("tokenizer*"):
        shutil.copy(file, folder)
    return folder


def with_teachers(home: House, **named: Path) -> House:
    return replace(home, place=replace(home.place, teachers=named))


def test_a_worker_has_larger_models_by_name(home: House, tmp_path: Path) -> None:
    width = load_model(home.place.base).config.vocab_size
    big = larger_model(tmp_path / "big", width + 64)  # filled up, as large models' often are
    knows = with_teachers(home, big=big)
    job = knows.done(max_steps=2, teacher={"name": "big"})
    assert job.status == "succeeded", job.error

    job = knows.done(max_steps=2, teacher={"name": "huge"})
    assert (job.status, job.failures) == ("failed", 1)
    assert job.error is not None
    assert "no teacher 'huge' (it has big)" in job.error
    assert "--teacher huge=MODEL" in job.error


def test_a_teacher_has_the_students_tokens(home: House, tmp_path: Path) -> None:
    big = larger_model(tmp_path / "big", load_model(home.place.base).config.vocab_size)
    tokens = json.loads((big / "tokenizer.json").read_text())
    vocabulary = tokens["model"]["vocab"]
    one, other = list(vocabulary)[-2:]
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    (big / "tokenizer.json").write_text(json.dumps(tokens))
    job = with_teachers(home, big=big).done(max_steps=2, teacher={"name": "big"})
    assert (job.status, job.failures) == ("failed", 1)
    assert job.error is not None
    assert "another vocabulary" in job.error


def test_a_teacher_that_is_gone(home: House) -> None:
    teacher = home.done(publish=False, max_steps=2)
    assert teacher.result is not None
    for file_id in teacher.result["result_files"]:
        home.store.files.delete(file_id)
    job = home.done(max_steps=2, teacher={"job": teacher.id})
    assert (job.status, job.failures) == ("failed", 1)
    assert job.error is not None
    assert "has been deleted" in job.error


def test_anothers_job_is_no_teacher(home: House) -> None:
    """Nor one of another base: both as one that does not exist."""
    mine = home.done(max_steps=2)
    with home.store.database.write() as connection:
        connection.execute(jobs.update().where(jobs.c.id == mine.id).values(owner="other"))
    elsewhere = JobBook(home.store.database, base="another-base").create({})
    told = []
    for job_id in (mine.id, elsewhere.id, "ftjob-" + "0" * 24):
        job = home.done(max_steps=2, teacher={"job": job_id})
        assert (job.status, job.failures) == ("failed", 1)
        told.append((job.error or "").replace(job_id, "…"))
    assert len(set(told)) == 1
    assert "adapterd.teacher.job: no fine-tuning job" in told[0]
