"""This database: three nodes of `mydatastore lab`, all requests at the first."""

import subprocess

from measure import generator, lab

from .system import RespSystem


class MyDataStore(RespSystem):
    name = "MyDataStore"
    promises = "W=2 of 3 synced to disk; R=2"
    weak_read = "R=1"
    fsync = "always"

    def __init__(self, offset):
        super().__init__(offset)
        self.lab = lab.Lab(port_offset=offset, fsync=self.fsync, parent=self.directory)

    def start(self):
        self.lab.start()

    def stop(self):
        self.lab.stop()

    def pids(self):
        return self.lab.pids()

    def target(self):
        return self.lab.target()

    def quorum(self, what):
        return ("--read-quorum", 1) if what == "weak-read" else ()

    def version(self):
        return subprocess.run([generator.BINARY, "--version"], capture_output=True, text=True).stdout.strip()


class MyDataStoreOs(MyDataStore):
    name = "MyDataStore-os"
    promises = "W=2 of 3, in the system's memory; R=2"
    fsync = "os"
