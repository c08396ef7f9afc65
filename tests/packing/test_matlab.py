"""MATLAB's files, of which ILSVRC2012's development kit is one."""

from pathlib import Path

import numpy as np
import pytest

from resnet_train.packing import matlab


def test_matlab_files_are_read_as_scipy_reads_them() -> None:
    from scipy.io import loadmat, savemat

    struct = np.array([[(1.5, "böse"), (np.arange(3, dtype=np.int32), "")]], [("a", "O"), ("b", "O")])
    cell = np.empty((1, 2), object)
    cell[0, 0], cell[0, 1] = "text", np.uint8(7)
    values = {"s": struct, "cell": cell, "m": np.arange(6.0).reshape(2, 3), "n": np.int8(-5)}
    for compressed in (False, True):
        savemat("x.mat", values, do_compression=compressed)
        found, theirs = matlab.read(Path("x.mat").read_bytes()), loadmat("x.mat")
        assert found["m"].tolist() == theirs["m"].T.ravel().tolist()  # MATLAB's order: columns first
        assert found["n"].tolist() == [-5]
        assert [one["b"] for one in found["s"]] == ["böse", ""]
        assert [one["a"].tolist() for one in found["s"]] == [[1.5], [0, 1, 2]]
        assert (found["cell"][0], found["cell"][1].tolist()) == ("text", [7])
    for bad in (b"", bytes(200), Path("x.mat").read_bytes()[:-9]):
        with pytest.raises(ValueError, match=r"not a MATLAB 5 file|cut short|damaged"):
            matlab.read(bad)
