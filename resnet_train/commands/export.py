"""`resnet-train export`: a network as a file for other programs."""

import argparse
from pathlib import Path

EXAMPLE = "resnet-train export checkpoints/best.pt --to onnx"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a checkpoint, or foreign weights with --network")
    parser.add_argument(
        "--to",
        required=True,
        choices=("safetensors", "onnx", "torch-export", "torchvision"),
        help="the format; onnx and torch-export also hold the normalisation, and take uint8 images",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="the file to write (default: beside the checkpoint)")
    parser.add_argument(
        "--network",
        metavar="NAME",
        help="the network of foreign weights, such as resnet-50 (default: that of the checkpoint)",
    )


def main(args: argparse.Namespace) -> None:
    """Write the file, read it back, and print how far its logits are from those of the network."""
    from resnet_train.errors import wrap
    from resnet_train.evaluation import pretrained
    from resnet_train.evaluation.export import check_format, export
    from resnet_train.runtime.tables import terminal_width

    check_format(args.to)
    report = export(pretrained.load(args.checkpoint, args.network), args.to, args.out)
    message = (
        f"wrote {report.path}: read back, its logits differ by at most {report.difference:.2g}, "
        f"the largest being {report.largest:.2g}"
    )
    print(wrap(message, terminal_width()))
