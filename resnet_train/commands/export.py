"""`resnet-train export`: a network as a file for other programs."""

import argparse


def main(args: argparse.Namespace) -> None:
    """Write the file, read it back, and print how far its logits are from those of the network."""
    from resnet_train.evaluation import pretrained
    from resnet_train.evaluation.export import check_format, export

    check_format(args.to)
    report = export(pretrained.load(args.checkpoint, args.network), args.to, args.out)
    print(
        f"wrote {report.path}: read back, its logits differ by at most {report.difference:.2g}, "
        f"the largest being {report.largest:.2g}"
    )
