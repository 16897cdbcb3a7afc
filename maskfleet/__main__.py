"""The command line: `python -m maskfleet`.

`python -m` puts the working directory first on the module search path. A `json.py` or `numpy.py` in it would replace
the real module. So it is removed from the path before anything else is imported, unless maskfleet itself lies there.
"""

import os
import sys


def _leave_working_directory() -> None:
    home = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    here = os.path.realpath(os.getcwd())
    if not sys.flags.safe_path and sys.path and os.path.realpath(sys.path[0]) == here != home:
        del sys.path[0]


if __name__ == "__main__":
    _leave_working_directory()
    from maskfleet.cluster.cli.main import main

    main()
