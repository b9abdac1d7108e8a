import subprocess
import sys

import encoders_core


def test_every_export_is_there() -> None:
    for name in encoders_core.__all__:
        assert getattr(encoders_core, name) is not None
    assert set(encoders_core.__all__) <= set(dir(encoders_core))


def test_import_alone_loads_neither_torch_nor_opencv() -> None:
    code = "import sys, encoders_core; sys.exit(bool({'torch', 'cv2'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
