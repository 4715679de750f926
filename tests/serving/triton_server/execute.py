"""Run a model of Triton's Python backend as the server does, in a process of its own.

    python -I execute.py VERSION INPUT REQUESTS ANSWERS

VERSION is the folder of a version; REQUESTS a pickled list of arrays for the input INPUT. ANSWERS becomes a pickled
dictionary: `responses`, each a dictionary of arrays or the text and code of an error, and `modules`: name -> file.
"""

from __future__ import annotations

import importlib
import json
import pickle
import sys
from pathlib import Path

version, name, requests, answers = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4])
sys.path[:0] = [str(version), str(Path(__file__).parent)]
utils = importlib.import_module("triton_python_backend_utils")
model = importlib.import_module("model").TritonPythonModel()
config = {"instance_group": [{"count": 2}]}
model.initialize({"model_name": version.parent.name, "model_version": version.name, "model_config": json.dumps(config)})
responses = model.execute([[utils.Tensor(name, array)] for array in pickle.loads(requests.read_bytes())])
if hasattr(model, "finalize"):
    model.finalize()
found = {
    "responses": [
        (each.error.message, each.error.code)
        if each.error is not None
        else {tensor.name: tensor.as_numpy() for tensor in each.output_tensors}
        for each in responses
    ],
    "modules": {key: str(getattr(module, "__file__", None)) for key, module in list(sys.modules.items())},
}
answers.write_bytes(pickle.dumps(found))
