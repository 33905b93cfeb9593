"""Fine-tuning jobs, their events and checkpoints as OpenAI's objects, and what we add to them.

Here: records → JSON. Not here: routes, where records come from.
"""

from typing import Any

from training.advisor.request import ADVISE, AdviceRequest
from training.checkpoints import CheckpointRecord
from training.jobs import JobEvent, JobRecord
from training.spec import JobRequest

EVENT = "ftevent-"
PROGRESS = ("step", "steps", "loss", "tokens_per_second", "epoch")
OPENAI_HYPER = ("n_epochs", "batch_size", "learning_rate_multiplier")
METRICS = {  # OpenAI's name → the trainer's
    "train_loss": "loss",
    "train_mean_token_accuracy": "mean_token_accuracy",
    "valid_loss": "eval_loss",
    "valid_mean_token_accuracy": "eval_mean_token_accuracy",
}

Json = dict[str, Any]


def job_object(job: JobRecord) -> Json:
    """OpenAI's fields, with ours under `adapterd` and `progress`."""
    if job.spec.get("kind") == ADVISE:
        return _advice_object(job)
    request = JobRequest.model_validate(job.spec)
    result = job.result or {}
    hyper = request.hyper.model_dump(mode="json")
    hyper |= {key: one for key, one in result.get("hyperparameters", {}).items() if key in hyper}
    method = request.method.type
    return _common(job) | {
        "model": request.model,
        "fine_tuned_model": result.get("fine_tuned_model"),
        "training_file": request.training_file,
        "validation_file": request.validation_file,
        "seed": request.seed,
        "hyperparameters": {key: hyper[key] for key in OPENAI_HYPER},
        "method": {"type": method, method: {"hyperparameters": hyper}},
        "trained_tokens": result.get("trained_tokens"),
        "metadata": request.metadata,
        "adapterd": request.adapterd.model_dump(mode="json"),
    }


def _advice_object(job: JobRecord) -> Json:
    """A job that trains nothing: no model comes of it, no method is its own; its report does.

    OpenAI's clients know one kind of job, so it is one to them; `adapterd.kind` tells.
    """
    request = AdviceRequest.model_validate(job.spec)
    return _common(job) | {
        "model": request.model,
        "fine_tuned_model": None,
        "training_file": request.training_file,
        "validation_file": None,
        "seed": request.seed,
        "hyperparameters": dict.fromkeys(OPENAI_HYPER, "auto"),
        "method": None,
        "trained_tokens": None,
        "metadata": request.metadata,
        "adapterd": {"kind": ADVISE, **request.adapterd.model_dump(mode="json")},
    }


def _common(job: JobRecord) -> Json:
    """What every kind of job tells."""
    told = job.progress or {}
    return {
        "id": job.id,
        "object": "fine_tuning.job",
        "created_at": job.created_at,
        "finished_at": job.finished_at,
        "status": job.status,
        "error": _error(job),
        "organization_id": job.owner,
        "result_files": list((job.result or {}).get("result_files", ())),
        "estimated_finish": told.get("estimated_finish") if job.status == "running" else None,
        "integrations": [],
        "progress": {key: told.get(key) for key in PROGRESS} if told else None,
    }


def _error(job: JobRecord) -> Json | None:
    if job.status != "failed":
        return None
    return {"code": "training_failed", "message": job.error, "param": None}


def event_object(event: JobEvent) -> Json:
    """OpenAI's; one whose data say a step tells metrics."""
    measured = event.data is not None and not event.data.keys().isdisjoint({"step", "metrics"})
    return {
        "id": f"{EVENT}{event.id}",
        "object": "fine_tuning.job.event",
        "created_at": event.created_at,
        "level": event.level,
        "message": event.message,
        "data": event.data,
        "type": "metrics" if measured else "message",
    }


def checkpoint_object(record: CheckpointRecord) -> Json:
    """OpenAI's, but that its model is only its own id: a checkpoint is gone on from, not served."""
    return {
        "id": record.id,
        "object": "fine_tuning.job.checkpoint",
        "created_at": record.created_at,
        "fine_tuning_job_id": record.job_id,
        "fine_tuned_model_checkpoint": record.id,
        "step_number": record.step,
        "metrics": {"step": record.step}
        | {name: record.metrics.get(ours) for name, ours in METRICS.items()},
    }
