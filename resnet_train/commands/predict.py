"""`resnet-train predict`: the most probable classes of image files."""

import argparse
import dataclasses
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from resnet_train.commands import add_classes, add_json, positive_int
from resnet_train.errors import BadInput

if TYPE_CHECKING:
    from resnet_train.evaluation.predictor import Prediction

logger = logging.getLogger(__name__)

EXAMPLE = "resnet-train predict checkpoints/best.pt photo.jpg --top 3"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(words="images")
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a checkpoint, or foreign weights with --network")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files, or folders of them")
    parser.add_argument(
        "--network",
        metavar="NAME",
        help="the network of foreign weights, such as resnet-50 (default: that of the checkpoint)",
    )
    add_classes(parser)
    parser.add_argument(
        "--top", type=positive_int, default=5, metavar="K", help="number of classes to print (default: %(default)s)"
    )
    add_json(parser)


def main(args: argparse.Namespace) -> None:
    """Print the most probable classes of each image. A file that cannot be decoded does not stop the others."""
    from resnet_train.evaluation import predictor, pretrained
    from resnet_train.evaluation.class_names import class_names
    from resnet_train.runtime import distributed
    from resnet_train.runtime.precision import set_precision

    model = pretrained.load(args.checkpoint, args.network)
    model = dataclasses.replace(model, classes=class_names(model.classes, model.run.data, args.classes))
    files = predictor.find_images([Path(image) for image in args.images])
    with distributed.start("auto") as world:
        if not world.is_main:
            return
        set_precision("fp32", world.device)
        records, failed = [], 0
        for prediction in predictor.predict_files(model.to(world.device), files, args.top):
            if prediction.error is not None:
                failed += 1
                logger.info("%s", prediction.error)
                continue
            records.append(_record(prediction))
            if not args.json:
                print("\n".join([str(prediction.path), *(f"{p:9.2%}  {name}" for name, p in prediction.classes)]))
        if args.json:
            print(json.dumps(records, indent=2))
        if failed:
            raise BadInput(f"{failed} of {len(files)} images could not be predicted: they are named above")


def _record(prediction: "Prediction") -> dict[str, object]:
    classes = [{"class": name, "probability": probability} for name, probability in prediction.classes]
    return {"image": str(prediction.path), "predictions": classes}
