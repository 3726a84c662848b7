"""Become `yaat` with few files: python -m apps.run_with_files COUNT run APP OPTIONS..."""

import os
import resource
import sys

if __name__ == "__main__":
    count, *arguments = sys.argv[1:]
    resource.setrlimit(resource.RLIMIT_NOFILE, (int(count), int(count)))
    os.execv(sys.executable, [sys.executable, "-m", "yaat", *arguments])
