"""Entry point of the container: `torchrun ... -m launch.entrypoint` runs `fit` with the job's config."""

import sys

from w2v_lightning.sagemaker.container import main

if __name__ == "__main__":
    sys.exit(main())
