"""A user's own source, found by its dotted name, that takes its time and tells which images were read."""

import os
import time

from ldd.data import FolderSource


class SlowFolder(FolderSource):
    """A folder; each reading takes `SLOW` seconds and adds a line to the file `READ`."""

    def read(self, item):
        time.sleep(float(os.environ["SLOW"]))
        with open(os.environ["READ"], "a") as file:
            file.write(f"{item.key}\n")
        return super().read(item)
