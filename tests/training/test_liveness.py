"""A process that ends, is killed or falls silent ends the others, with a line that names it."""

from __future__ import annotations

import socket
import sys
import threading
import time
import types

import pytest

from egno_jax.training import liveness
from tests.training.test_mesh import free_port
from tests.training.test_processes import outcome, outcome_of


class Store(dict):
    """The part of JAX's store that is used."""

    def key_value_set(self, key, value):
        self[key] = value

    def blocking_key_value_get(self, key, _):
        return self[key]


class Run:
    """A watch for each of some processes, all in this one."""

    def __init__(self, monkeypatch, count):
        self.monkeypatch, self.store, self.ends = monkeypatch, Store(), {}
        monkeypatch.setattr(liveness.atexit, "register", lambda function: None)
        monkeypatch.setattr(liveness.os, "register_at_fork", lambda **_: None)
        monkeypatch.setattr(liveness, "fail", self.end)
        monkeypatch.setattr(liveness, "is_one_of_several", lambda: True)
        monkeypatch.setattr(sys, "excepthook", sys.excepthook)
        monkeypatch.setattr(liveness, "_watch", None)
        monkeypatch.setattr(liveness, "_GRACE", 0.1)
        monkeypatch.setattr(liveness, "_BEAT", 0.05)
        address = f"127.0.0.1:{free_port()}"
        self.states = [
            types.SimpleNamespace(
                process_id=index,
                num_processes=count,
                client=self.store,
                coordinator_address=address,
            )
            for index in range(count)
        ]
        self.watches = [self.start(index) for index in range(count)]
        deadline = time.monotonic() + 10
        while sum(line.index is not None for line in self.watches[0]._lines) < count - 1:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def start(self, index):
        self.monkeypatch.setattr(liveness.distributed, "global_state", self.states[index])
        liveness.watch_others()
        return liveness._watch

    def end(self, message, code):
        """Stands for the end of the process whose thread calls."""
        thread = threading.current_thread()
        self.ends[thread] = (message, code)

    def messages(self, number):
        deadline = time.monotonic() + 10
        while len(self.ends) < number and time.monotonic() < deadline:
            time.sleep(0.01)
        assert all(code == 75 for _, code in self.ends.values())
        return sorted(message for message, _ in self.ends.values())


@pytest.fixture
def run(monkeypatch):
    made = []

    def make(count):
        made.append(Run(monkeypatch, count))
        return made[-1]

    yield make
    for each in made:
        for watch in each.watches:
            watch.stop()
        time.sleep(0.1)
        for watch in each.watches:
            watch.close()


def test_all_others_end_when_one_is_killed(run):
    three = run(3)
    three.watches[1].close()
    said = "error: process 1 of 3 ended (see the output there), so this one ends too; "
    # The killed process is a thread here, which notices that its own connection is gone.
    assert sum(message.startswith(said) for message in three.messages(2)) >= 2
    assert three.watches[2].loss().startswith(said.removeprefix("error: "))


def test_the_message_of_a_process_that_fails_reaches_all(run):
    three = run(3)
    three.watches[2].tell("error: no space left")
    (message,) = set(three.messages(2))  # also of the thread that stands for the process itself
    assert message.startswith("error: process 2 of 3 ended (error: no space left), so this")


def test_a_silent_process_ends_the_others(run, monkeypatch):
    two = run(2)
    monkeypatch.setattr(two.watches[1], "_send", lambda message, but=None: None)
    monkeypatch.setattr(liveness, "_SILENCE", 1.0)
    assert any("process 1 of 2 ended" in message for message in two.messages(2))


def test_processes_that_end_well_and_signs_of_life_end_no_other(run):
    three = run(3)
    time.sleep(0.3)
    three.watches[1].stop()
    time.sleep(0.3)
    assert not three.ends
    assert not three.watches[0].loss()


def test_strangers_are_not_heard(run):
    two = run(2)
    port = int(two.store[liveness._ADDRESS].split()[0])
    for word in (b"GET / HTTP/1.1\r\n\r\n", b"0123 1\n", b"\xff\xfe\n"):
        with socket.create_connection(("127.0.0.1", port)) as stranger:
            stranger.sendall(word)
            time.sleep(0.1)
    assert [line.index for line in two.watches[0]._lines] == [1]
    assert not two.ends


def test_messages_may_come_in_pieces_and_together(run):
    two = run(2)
    port, token = two.store[liveness._ADDRESS].split()
    with socket.create_connection(("127.0.0.1", int(port))) as third:
        third.sendall(token[:7].encode())
        time.sleep(0.1)
        third.sendall(token[7:].encode() + b" 2\n\n2 error: no spa")
        time.sleep(0.1)
        assert not two.ends
        third.sendall(b"ce left\n")
        (message,) = set(two.messages(1))
    assert message.startswith("error: process 2 of 2 ended (error: no space left), so")


def test_an_error_of_communication_names_the_lost_process(run):
    two = run(2)
    with pytest.raises(RuntimeError, match=r"^Gloo all-reduce failed$"):  # nobody has ended
        with liveness.naming_lost_processes():
            raise RuntimeError("Gloo all-reduce failed")
    two.watches[0].tell("error: a")
    with pytest.raises(liveness.LostProcessError, match=r"process 0 of 2 ended \(error: a\)"):
        with liveness.naming_lost_processes():
            raise RuntimeError("Gloo all-reduce failed")
    with pytest.raises(ValueError, match=r"^times$"):  # another error stays what it is
        with liveness.naming_lost_processes():
            raise ValueError("times")


def test_an_address_that_cannot_be_reached_is_warned_of(run, monkeypatch):
    two = run(2)
    for address in (f"{free_port()} token", ""):
        two.store[liveness._ADDRESS] = address
        with pytest.warns(RuntimeWarning, match="process 1 has no connection with process 0 "):
            two.start(1)


def test_processes_that_are_suspended_together_go_on(run, monkeypatch):
    two, clock = run(2), time.monotonic
    monkeypatch.setattr(liveness.time, "monotonic", lambda: clock() + 3600)
    time.sleep(0.5)
    assert not two.ends


@pytest.mark.parametrize(
    ("host", "is_open"), [("127.0.0.1", False), ("localhost", True), ("no.such.host", True)]
)
def test_a_name_is_not_taken_for_its_loopback(host, is_open):
    with liveness._listen(host) as listener:
        assert (listener.getsockname()[0] in ("::", "0.0.0.0")) == is_open


SCRIPT = """
import sys
from egno_jax import training

address, index, kind = sys.argv[1], int(sys.argv[2]), sys.argv[3]
training.start_processes(address, 2, index)
if kind == "raises" and index == 1:
    raise RuntimeError("the data are gone")
training.wait_for_all("data")
if kind == "at the end" and index == 0:
    import time
    time.sleep(2)  # the other one has ended its part
    training.fail("error: no space left", 1)
"""


@pytest.mark.parametrize(
    ("kind", "codes", "message"),
    [
        ("raises", [75, 1], "process 1 of 2 ended (RuntimeError: the data are gone), so this one"),
        pytest.param(
            "at the end",
            [1, 75],
            "process 0 of 2 ended (error: no space left), so this one ends",
            marks=pytest.mark.slow,
        ),
        pytest.param("well", [0, 0], "", marks=pytest.mark.slow),
    ],
)
def test_every_end_of_a_script_of_your_own_ends_the_others(kind, codes, message):
    found, errors = outcome_of(lambda address, index: ["-c", SCRIPT, address, index, kind])
    assert found == codes, errors
    assert not message or message in errors[codes.index(75)]


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 1])
def test_a_killed_process_ends_the_other_with_a_line_and_the_run_resumes(tmp_path, index):
    codes, errors = outcome(tmp_path, f"kill {index}")
    assert (codes[index], codes[1 - index]) == (-9, 75), errors
    lines = [line for line in errors[1 - index].splitlines() if line.startswith("error: ")]
    assert [line[: line.index(")")] for line in lines] == [
        f"error: process {index} of 2 ended (see the output there"
    ]
    codes, errors = outcome(tmp_path, "none")
    assert codes == [0, 0], errors
