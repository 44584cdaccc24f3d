"""State or end of a job, and what to do about it, in one or two sentences."""

from w2v_lightning.sagemaker.training_job import TrainingJob

# Remedies by words of a FailureReason in lower case; the first that matches counts.
REMEDIES = {
    ("insufficientinstancecapacity", "capacityerror"): "AWS has no free instances of this type: try later, or use"
    " another --instance_type or --region.",
    ("resourcelimitexceeded",): "Request a higher quota in Service Quotas (Amazon SageMaker, training job usage).",
    ("internalservererror",): "The error is on the side of AWS, not of the job.",
    ("out of memory", "outofmemory"): "Lower data.device_seconds: the same steps in smaller micro-batches, so the model"
    " will be the same.",
    ("no space left",): "Raise --volume_gb, or mount the data instead of copying it (--input_mode FastFile).",
    ("accessdenied", "not authorized"): "Give the execution role the missing permission (docs/sagemaker.md).",
    ("no s3 objects found",): "Correct --data: there are no objects below it.",
    ("unable to pull",): "Correct --image: its repository, tag and region must match.",
}


def advice(job: TrainingJob) -> str:
    """Return what the user can do next; "" if there is nothing to do."""
    resubmit = f"`python -m w2v_lightning resubmit {job.run}`"
    resume = f"{resubmit} resumes from its checkpoints" if job.checkpoints else "submit it again"
    if job.status == "Failed":
        return _after_failure(job, resume)
    match job.secondary_status:
        case "MaxWaitTimeExceeded" if not job.has_trained:
            return (
                f"No spot capacity was available within --max_wait_hours; nothing is billed. Run {resubmit} with a"
                " larger --max_wait_hours, another --instance_type, or --no_spot."
            )
        case "MaxWaitTimeExceeded":
            return f"Waiting for spot capacity took too long. With a larger --max_wait_hours, {resume}."
        case "MaxRuntimeExceeded":
            return f"Training reached --max_hours. With a larger --max_hours, {resume}."
        case "Interrupted":
            return "Its spot instances were reclaimed: it waits for new ones, then resumes from its newest checkpoint."
        case "Stopped":
            return f"It was stopped; {resume}."
        case "Completed":
            return f"`python -m w2v_lightning download {job.name}` fetches the model."
    return ""


def end_of(job: TrainingJob) -> str:
    """Return how a job ended, why if it failed, and what to do next."""
    reason = f": {job.failure_reason.rstrip('.')}" if job.failure_reason else ""
    return f"{job.name}: {job.secondary_status}{reason}. {advice(job)}"


def _after_failure(job: TrainingJob, resume: str) -> str:
    reason = job.failure_reason.lower()
    for words, remedy in REMEDIES.items():
        if any(word in reason for word in words):
            return f"{remedy} Then {resume}."
    return f"`python -m w2v_lightning logs {job.name}` shows what it printed. When the cause is fixed, {resume}."
