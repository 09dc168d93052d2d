"""Workers: the order of results, errors, one torch thread each, memory that is used again."""

import threading

import pytest
import torch

from warp_core.weights.workers import BLOCK_NUMEL, Scratch, Workers, blocks_of


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_results_come_in_the_order_of_the_items_from_other_threads(three_threads):
    with Workers() as workers:
        found = list(workers.map(lambda item: (item, threading.get_ident(), torch.get_num_threads()), range(100)))
    assert [item for item, _, _ in found] == list(range(100))
    assert threading.get_ident() not in {thread for _, thread, _ in found}
    assert {threads for _, _, threads in found} == {1}
    assert torch.get_num_threads() == 3
    later: list[int] = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert later == [3]


def test_with_one_thread_the_caller_does_the_work():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with Workers() as workers:
            assert set(workers.map(lambda _: threading.get_ident(), range(5))) == {threading.get_ident()}
    finally:
        torch.set_num_threads(before)


def test_an_error_ends_the_work(three_threads):
    done: list[int] = []

    def work(item: int) -> None:
        if item == 5:
            raise KeyError(item)
        done.append(item)

    with pytest.raises(KeyError, match="5"), Workers() as workers:
        list(workers.map(work, range(1000)))
    assert set(range(5)) <= set(done)
    assert len(done) < 100


def test_scratch_is_used_again_and_is_each_threads_own():
    scratch = Scratch()
    first = scratch.take("x", 10, torch.float64)
    assert first.dtype == torch.float64
    assert first.shape == (10,)
    assert scratch.take("x", 20, torch.bfloat16).data_ptr() == first.data_ptr()
    assert scratch.take("y", 10, torch.float64).data_ptr() != first.data_ptr()
    others: list[int] = []
    thread = threading.Thread(target=lambda: others.append(scratch.take("x", 10, torch.float64).data_ptr()))
    thread.start()
    thread.join()
    assert others != [first.data_ptr()]


def test_blocks_cover_a_tensor_once():
    assert list(blocks_of(0)) == []
    assert list(blocks_of(2 * BLOCK_NUMEL + 3)) == [
        (0, BLOCK_NUMEL),
        (BLOCK_NUMEL, 2 * BLOCK_NUMEL),
        (2 * BLOCK_NUMEL, 2 * BLOCK_NUMEL + 3),
    ]
