"""Ctrl-C in one of two processes is told to both, and both stop at the same question."""

from tests import running

CODE = """
import os, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from bar_jax.runtime import distributed
from bar_jax.runtime import preemption
preemption.install()
with preemption.hearing_ctrl_c():
    distributed.start(distributed.Cluster("localhost:" + sys.argv[1], 2, int(sys.argv[2])))
    question = 1
    while not preemption.asked():
        if question == 3 and sys.argv[2] == "1":
            os.kill(os.getpid(), signal.SIGINT)
        question += 1
        time.sleep(0.05)
    print(question)
"""


def test_ctrl_c_in_one_process_stops_both():
    printed = running.two("-c", CODE)
    first, second = (int(text.splitlines()[-1]) for text in printed)
    assert first == second > 3
