from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from alexdeploy.core.interrupts import InterruptGuard, deferred_interrupts


def test_ctrl_c_waits_for_the_end_of_the_block():
    # In a process of its own: the tests' would end with whatever else handles the signal there.
    code = textwrap.dedent("""
        import os, signal
        from alexdeploy.core.interrupts import deferred_interrupts
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            with deferred_interrupts():
                os.kill(os.getpid(), signal.SIGINT)
                print("all of it")
            print("and more")
        except KeyboardInterrupt:
            print("interrupted")
    """)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "all of it\ninterrupted\n", "")


def test_the_handlers_of_before_are_put_back():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with deferred_interrupts():
        assert signal.getsignal(signal.SIGINT) is not before[0]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_another_thread_has_nothing_to_hold_back():
    seen = []

    def work() -> None:
        with deferred_interrupts():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGINT)]


DEAF = "hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)"
"""Minutes inside a C function, in which Python hears no signal."""

LIMIT_SECONDS = 20
"""For what takes two seconds on a quiet machine."""


@contextmanager
def guarded(work: str) -> Iterator[subprocess.Popen[str]]:
    """A process that does `work` under a guard, and ends with what the guard says, or with 99."""
    code = textwrap.dedent("""
        import hashlib, sys, threading, time
        from alexdeploy.core.interrupts import InterruptGuard, be_patient, deferred_interrupts, set_last_words
        def ready():
            print("ready", flush=True)
        def soon_ready():
            # From another thread, when the main thread is well inside of what comes next.
            threading.Timer(0.1, ready).start()
        with InterruptGuard() as guard:
            try:
        %s
            except KeyboardInterrupt:
                sys.exit(guard.exit_code)
        sys.exit(99)
    """) % textwrap.indent(textwrap.dedent(work), " " * 8)
    words = [sys.executable, "-c", code]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and messages of a process that has got a signal."""
    _, messages = process.communicate(timeout=LIMIT_SECONDS)
    return process.returncode, messages


WORK = {
    "hears": "soon_ready(); time.sleep(60)",
    "deaf": f"soon_ready(); {DEAF}",
    "deaf while it cleans up": f"try:\n    soon_ready(); time.sleep(60)\nfinally:\n    {DEAF}",
}


@pytest.mark.parametrize(
    ("number", "exit_code", "name"),
    [
        (signal.SIGINT, 130, "hears"),
        (signal.SIGTERM, 143, "hears"),
        pytest.param(signal.SIGINT, 130, "deaf", marks=pytest.mark.slow),
        (signal.SIGTERM, 143, "deaf"),
        (signal.SIGINT, 130, "deaf while it cleans up"),
        pytest.param(signal.SIGTERM, 143, "deaf while it cleans up", marks=pytest.mark.slow),
    ],
)
def test_a_signal_ends_the_process_in_time(number: int, exit_code: int, name: str) -> None:
    with guarded(WORK[name]) as process:
        process.send_signal(number)
        assert ended(process) == (exit_code, "")


@pytest.mark.parametrize(
    "work",
    [
        f"be_patient(); soon_ready(); {DEAF}",
        "be_patient()\ntry:\n    soon_ready(); time.sleep(60)\nfinally:\n    time.sleep(60)",
    ],
)
def test_who_has_something_to_save_is_ended_by_a_second_signal_alone(work: str) -> None:
    with guarded(work) as process:
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        assert process.stderr.readline().endswith("A second signal stops immediately.\n")
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert ended(process) == (143, "")


def test_two_signals_at_once_are_one() -> None:
    # The second would end the process before anything is said.
    with guarded("be_patient(); soon_ready(); time.sleep(60)") as process:
        process.send_signal(signal.SIGSTOP)
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGCONT)
        code, _ = ended(process)
        assert code in (130, 143)


def test_a_signal_that_another_thread_gets_is_heard_by_the_main_thread() -> None:
    # It would not interrupt the main thread's sleep.
    work = """
        import signal, threading
        be_patient()
        def get_one():
            time.sleep(1)
            signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
        threading.Thread(target=get_one, daemon=True).start()
        ready()
        time.sleep(60)
    """
    with guarded(work) as process:
        assert ended(process) == (143, "")


def test_the_last_words_are_said_where_the_process_is_ended() -> None:
    with guarded(
        f"set_last_words(lambda: print('rows are in rows.partial', file=sys.stderr)); soon_ready(); {DEAF}"
    ) as process:
        process.send_signal(signal.SIGTERM)
        assert ended(process) == (143, "rows are in rows.partial\n")


def test_an_interrupt_that_a_finalizer_swallowed_is_raised_again() -> None:
    # Python drops what is raised in __del__, and would print it.
    with guarded("""
        class Thing:
            def __del__(self):
                soon_ready()
                time.sleep(60)
        thing = Thing()
        del thing
        time.sleep(60)
    """) as process:
        process.send_signal(signal.SIGINT)
        assert ended(process) == (130, "")


def test_deferred_signals_are_heard_at_the_end_of_the_block_however_long_it_takes() -> None:
    with guarded("""
        with deferred_interrupts():
            soon_ready()
            time.sleep(3)
            print("all of it", file=sys.stderr)
        time.sleep(60)
    """) as process:
        process.send_signal(signal.SIGTERM)
        assert ended(process) == (143, "all of it\n")


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with InterruptGuard() as guard:
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            os.kill(os.getpid(), signal.SIGINT)
        assert guard.exit_code is None
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_guard_puts_everything_back() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), sys.unraisablehook
    with InterruptGuard():
        pass
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), sys.unraisablehook) == before
    assert signal.set_wakeup_fd(-1) == -1
    assert "alexdeploy-interrupts" not in [thread.name for thread in threading.enumerate()]


@pytest.mark.skipif(os.name != "posix", reason="signals are sent to the process")
def test_sigterm_in_an_exec_ends_the_program_with_its_own_code(tmp_path: Path) -> None:
    # Run as a module: of a program given by -c, Python does not remember it.
    (tmp_path / "interrupted").mkdir()
    (tmp_path / "interrupted" / "__main__.py").write_text(
        textwrap.dedent(
            """
            import sys
            from alexdeploy.core.interrupts import InterruptGuard

            with InterruptGuard() as guard:
                try:
                    exec("import os, signal, time; os.kill(os.getpid(), signal.SIGTERM); time.sleep(100)")
                except KeyboardInterrupt:
                    pass
            sys.exit(guard.exit_code)
            """
        )
    )
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-m", "interrupted"], env={**os.environ, "PYTHONPATH": path}, timeout=200, check=False
    )
    assert done.returncode == 143
