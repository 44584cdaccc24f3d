"""`python -m launch COMMAND ...`: the SageMaker commands of `python -m w2v_lightning`."""

import sys

from w2v_lightning.sagemaker.command import main

if __name__ == "__main__":
    sys.exit(main())
