"""Dealing over ranks and processes: the same numbers whoever does the work, and nothing left behind."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest
import torch
from small_world import NARROW, SPEC, protocol_file, striped

from ldd.disk.shared import map_file
from ldd.errors import UserError
from ldd.evaluation import Protocol
from ldd.images import Labelled
from ldd.networks import ViT
from ldd.students.training import Lesson, Student
from ldd.students.workers import count_workers, run_students

CPU = torch.device("cpu")
SETS = {
    ("a", 0): Labelled(*striped(1, 3)),
    ("a", 1): Labelled(*striped(1, 4)),
    ("b", 0): Labelled(*striped(400, 5)),
}
TEST = Labelled(*striped(10, 2))


def tiny_vit(num_classes, image_size):
    return ViT(num_classes, image_size, patch_size=16, dim=8, depth=1, heads=2)


def students():
    names = [(s, n, r) for s, r in SETS for n in ("narrow", "vit")]
    return [Student(s, n, r, epochs=3 if s == "a" else 2) for s, n, r in names]


def lesson(tmp_path, **factories):
    return Lesson(
        SPEC, Protocol.load(protocol_file(tmp_path)), factories or {"narrow": NARROW, "vit": tiny_vit}, 7
    )


def test_workers_give_the_same_bits(tmp_path):
    # The main process may use more threads, and set b is large enough for joblib to map it read-only.
    done = []
    common = {"device": CPU, "done": lambda student, outcome: done.append(student)}
    alone = run_students(lesson(tmp_path), students(), SETS, TEST, num_workers=1, **common)
    many = run_students(
        # A lambda: it cannot be pickled by name.
        lesson(tmp_path, narrow=NARROW, vit=lambda k, size: tiny_vit(k, size)),
        students(),
        SETS,
        TEST,
        num_workers=2,
        **common,
    )
    assert list(many) == list(alone) == students()
    assert [o.accuracy for o in many.values()] == [o.accuracy for o in alone.values()]
    assert sorted(map(repr, done)) == sorted(map(repr, students() * 2))
    assert len({o.accuracy for o in alone.values()}) > 2


def test_images_of_a_mapped_file_are_not_sent(tmp_path, monkeypatch):
    """Workers map the file themselves: joblib, which writes what it sends to a folder, has less than the images."""
    sent = tmp_path / "sent"
    sent.mkdir()
    monkeypatch.setenv("JOBLIB_TEMP_FOLDER", str(sent))
    images, labels = SETS["b", 0]
    (tmp_path / "images.bin").write_bytes(images.numpy().tobytes())
    mapped = map_file(tmp_path / "images.bin", images.numel(), torch.uint8).view(images.shape)
    sets = {("b", repeat): Labelled(mapped, labels) for repeat in range(2)}
    test, written = Labelled(mapped[:60:2], labels[:60:2]), []

    def done(student, outcome):
        written.append(sum(path.stat().st_size for path in sent.rglob("*") if path.is_file()))

    todo = [Student("b", "narrow", repeat, 2) for repeat in range(2)]
    common = {"device": CPU, "done": done}
    many = run_students(lesson(tmp_path), todo, sets, test, num_workers=2, **common)
    assert max(written) < images.nbytes / 10
    plain = {key: Labelled(images, labels) for key in sets}
    other = Labelled(images[:60:2], labels[:60:2])
    alone = run_students(lesson(tmp_path), todo, plain, other, num_workers=1, **common)
    assert [o.accuracy for o in many.values()] == [o.accuracy for o in alone.values()]


def no_children():
    """Only joblib's clean-up process may stay, which ends with this one, and the server that other tests fork from."""
    children = [" ".join(p.cmdline()) for p in psutil.Process().children(recursive=True)]
    return all("resource_tracker" in command or "forkserver" in command for command in children)


def test_a_killed_worker_is_reported(tmp_path):
    parent = os.getpid()

    def killed(num_classes, image_size):
        if os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
        return NARROW(num_classes, image_size)

    with pytest.raises(UserError, match=r"worker process .* was killed, .*lower num_workers \(2\)"):
        run_students(
            lesson(tmp_path, narrow=NARROW, vit=killed), students(), SETS, TEST, device=CPU, num_workers=2
        )
    assert no_children()


def test_an_interrupt_leaves_no_workers(tmp_path):
    def interrupt(student, outcome):
        raise KeyboardInterrupt

    def slow(num_classes, image_size):
        time.sleep(600)

    with pytest.raises(KeyboardInterrupt):
        run_students(
            lesson(tmp_path, narrow=NARROW, vit=slow),
            [Student("a", "vit", 0, 4), Student("a", "narrow", 0, 2)],
            SETS,
            TEST,
            device=CPU,
            num_workers=2,
            done=interrupt,
        )
    assert no_children()


def test_a_network_that_cannot_be_sent(tmp_path):
    lock = threading.Lock()

    def locked(num_classes, image_size):
        with lock:
            return NARROW(num_classes, image_size)

    with pytest.raises(UserError, match="networks: vit cannot be sent to worker processes"):
        run_students(
            lesson(tmp_path, narrow=NARROW, vit=locked), students(), SETS, TEST, device=CPU, num_workers=2
        )


CHILD = """
import sys, time
from ldd.runtime.processes import end_with_parent
end_with_parent()
end_with_parent()
print("ready", flush=True)
time.sleep(600)
"""


def test_a_worker_ends_with_its_killed_parent():
    parent_script = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {CHILD!r}])"
    with subprocess.Popen([sys.executable, "-c", parent_script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout.readline() == "ready\n"
        (child,) = psutil.Process(parent.pid).children()
        assert child.num_threads() > 1
        parent.kill()
    child.wait(timeout=60)


def train_as_rank(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2
    )
    done = []
    outcomes = run_students(
        lesson(folder / str(rank)),
        students(),
        SETS,
        TEST,
        device=CPU,
        num_workers=1,
        done=lambda student, outcome: done.append(student),
    )
    (folder / f"{rank}.json").write_text(json.dumps([len(done), [o.accuracy for o in outcomes.values()]]))
    torch.distributed.destroy_process_group()


def test_ranks_share_the_students(tmp_path):
    for rank in range(2):
        (tmp_path / str(rank)).mkdir()
    torch.multiprocessing.spawn(train_as_rank, (tmp_path,), nprocs=2)
    alone = run_students(lesson(tmp_path), students(), SETS, TEST, device=CPU, num_workers=1)
    expected = [3, [outcome.accuracy for outcome in alone.values()]]
    assert [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)] == [expected, expected]


def test_count_workers(monkeypatch):
    assert [count_workers(number) for number in (0, 1, 3)] == [1, 1, 3]
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert count_workers("auto") == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert count_workers("auto") == 2
    with pytest.raises(UserError, match=r"num_workers \(-1\) must be 'auto', 0"):
        count_workers(-1)
