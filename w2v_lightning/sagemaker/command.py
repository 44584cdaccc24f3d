"""Table of the commands for SageMaker jobs, and their main program, `python -m launch`.

Importing this module imports neither boto3 nor torch nor jsonargparse.
"""

import sys
from collections.abc import Sequence

from w2v_lightning.errors import InputError

ABOUT = "Training jobs on SageMaker."
# Each command, with the module whose main(args) runs it and what it does.
COMMANDS = {
    "submit": ("w2v_lightning.sagemaker.submit", "start a run as a SageMaker training job"),
    "resubmit": (
        "w2v_lightning.sagemaker.resubmit",
        "resume a run in a new SageMaker job, perhaps on other instances",
    ),
    "status": ("w2v_lightning.sagemaker.status", "show the state of a job, and what to do next"),
    "logs": ("w2v_lightning.sagemaker.logs", "print what a job has logged"),
    "stop": ("w2v_lightning.sagemaker.stop", "stop a job; its checkpoint is kept"),
    "list": ("w2v_lightning.sagemaker.list_jobs", "list the jobs submitted by this package"),
    "download": ("w2v_lightning.sagemaker.download", "fetch a job's model, logs and scores"),
    "cost": ("w2v_lightning.sagemaker.job_cost", "show the time and cost of jobs"),
    "plan": ("w2v_lightning.sagemaker.plan_command", "recommend instances, their number, and on-demand or spot"),
    "study": ("w2v_lightning.sagemaker.study_command", "measure hardware in a matrix of runs, and report on them"),
}


def main(args: Sequence[str] | None = None) -> int:
    """Run the command that the first argument names; return the exit status.

    Args:
        args: command and its arguments; None: those of this process.
    """
    from w2v_lightning import command_line  # imports jsonargparse

    try:
        return command_line.run(COMMANDS, "python -m launch", ABOUT, sys.argv[1:] if args is None else args)
    except InputError as error:
        print(f"error: {error.line}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
