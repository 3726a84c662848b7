"""Go to a directory, and become `yaat` there: python -m apps.run_in DIRECTORY run APP OPTIONS..."""

import os
import sys

if __name__ == "__main__":
    directory, *arguments = sys.argv[1:]
    os.chdir(directory)
    os.execv(sys.executable, [sys.executable, "-m", "yaat", *arguments])
