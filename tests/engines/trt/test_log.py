from __future__ import annotations

import ctypes
import os
import threading

import pytest

from alexdeploy.engines.trt.log import Complaints


def in_thread(work) -> None:  # type: ignore[no-untyped-def]
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def test_a_thread_takes_what_was_said_in_it_once() -> None:
    complaints = Complaints()
    complaints.add("first")
    complaints.add("second")
    assert complaints.take() == "first\nsecond"
    assert complaints.take() == ""


def test_what_was_said_in_one_stream_is_not_the_error_of_another() -> None:
    complaints, told = Complaints(), []
    out_of_memory, asked = threading.Event(), threading.Event()

    def other() -> None:
        complaints.add("out of memory")
        out_of_memory.set()
        asked.wait(10)
        told.append(complaints.take())

    thread = threading.Thread(target=other)
    thread.start()
    out_of_memory.wait(10)
    here = complaints.take()
    asked.set()
    thread.join()
    assert (here, told) == ("", ["out of memory"])


def test_a_thread_that_ended_leaves_nothing_to_the_next() -> None:
    complaints, told = Complaints(), []
    in_thread(lambda: complaints.add("lost"))
    in_thread(lambda: told.append(complaints.take()))
    assert [*told, complaints.take()] == ["", ""]


@pytest.mark.skipif(os.name != "posix", reason="its threads are made by pthread_create")
def test_what_a_thread_of_the_library_says_is_for_whoever_has_nothing_else() -> None:
    complaints = Complaints()
    add = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: complaints.add("cuBLAS failed"))
    _in_thread_of_c(add)
    complaints.add("own")
    assert complaints.take() == "own"
    assert complaints.take() == "cuBLAS failed"
    assert complaints.take() == ""


def _in_thread_of_c(callback: object) -> None:
    """A thread that Python does not know, as those are that TensorRT starts."""
    c = ctypes.CDLL(None)
    thread = ctypes.c_ulong()
    assert c.pthread_create(ctypes.byref(thread), None, callback, None) == 0
    assert c.pthread_join(thread, None) == 0
