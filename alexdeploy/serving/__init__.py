"""Classification as a service: the Open Inference Protocol v2 over HTTP and gRPC."""

from importlib.util import find_spec as _find_spec

from alexdeploy.core.packages import missing_package as _missing_package

# Of the application; `alexdeploy serve` looks for those of the servers as well.
for _module, _package in (
    ("starlette", "starlette"),
    ("python_multipart", "python-multipart"),
    ("prometheus_client", "prometheus-client"),
):
    if _find_spec(_module) is None:
        raise _missing_package(_package, "serving", "serve")
