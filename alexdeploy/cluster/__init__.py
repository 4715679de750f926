"""Classification on many machines, with Ray."""

from importlib.util import find_spec as _find_spec

from alexdeploy.core.packages import missing_package as _missing_package

for _package in ("ray", "pyarrow"):
    if _find_spec(_package) is None:
        raise _missing_package(_package, "alexdeploy.cluster", "ray")
