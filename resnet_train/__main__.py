"""`python -m resnet_train`, and so `torchrun -m resnet_train`."""

from resnet_train.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
