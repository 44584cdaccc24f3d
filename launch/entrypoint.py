"""The container's entry point: `torchrun ... -m launch.entrypoint` trains as the job's config says."""

import sys

from w2v_lightning.sagemaker.container import main

if __name__ == "__main__":
    sys.exit(main())
