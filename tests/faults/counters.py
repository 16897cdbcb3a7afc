"""A program that counts pages and dies of some files, as a fault in an image library would make it."""

import os
import signal

from maskfleet.jobs.planning import counting_program


def program(settings):
    count = counting_program.count

    def deadly(file):
        if file.read(4) == b"DIE!":
            os.kill(os.getpid(), signal.SIGKILL)
        return count(file)

    counting_program.count = deadly
    return counting_program.program(settings)
