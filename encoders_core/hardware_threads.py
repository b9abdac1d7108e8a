"""The thread rule: one intra-op thread in each encoder process, parallelism from processes.

With two intra-op threads on two cores, one competing process makes small operations 5 to 10 times slower: OpenMP's
barrier waits for the thread that was descheduled.
"""

import cv2
import torch


def configure_threads(intra_op: int = 1) -> None:
    """Give torch and OpenCV `intra_op` threads each in this process; an encoder worker calls it once, first thing."""
    torch.set_num_threads(intra_op)
    cv2.setNumThreads(intra_op)
