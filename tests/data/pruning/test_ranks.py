"""Two ranks share the work and end with the same table as one."""

import os

import torch
import torch.distributed as dist
from processes import run_ranks
from pruning_cases import NoiseSource, spec_of
from torchvision.models import get_model

from ldd.data import CrossFittedLossPruner, LossPruner, ScoringNetwork
from ldd.data.pruning.base import complete
from ldd.errors import UserError
from ldd.networks import ConvNet
from ldd.runtime.ranks import dealt, merged, shared
from ldd.runtime.seeding import seeded


def by_classifier(folder, cache):
    """A pruner by a classifier with random weights, the same for both ranks."""
    path = folder / "weights.pt"
    if not path.exists():
        with seeded(0):
            torch.save(get_model("mobilenet_v3_small", num_classes=2).state_dict(), path)
    sizes = {"resize": 36, "crop": 32, "device": "cpu", "precision": "float32"}
    return LossPruner(0.5, classifier="mobilenet_v3_small", weights=str(path), cache_dir=cache, **sizes)


def pruner(cache):
    training = ScoringNetwork(lambda classes, size: ConvNet(classes, size, width=4), epochs=1, device="cpu")
    return CrossFittedLossPruner(0.5, folds=2, training=training, cache_dir=cache)


def of_rank(folder):
    """What this rank, and both together, make of the same images; and what it says when the other one cannot go on."""
    rank = int(os.environ["RANK"])
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    source = NoiseSource(4, 6)  # batches of four, and one of two
    tables = [
        made.score(source, source.items("train"), spec_of(source), seed=0)
        for made in (pruner(f"{folder}/cache"), by_classifier(folder, f"{folder}/cache"))
    ]

    late = complete([None, 7 if rank else None], lambda places: [10 * place for place in places], None)

    def fail(pieces):
        raise UserError(f"rank {rank} cannot") if 1 in pieces else SystemExit(0)

    try:
        shared(2, lambda pieces: fail(pieces) if rank == 1 else list(pieces))
        message = "no error"
    except UserError as error:
        message = str(error)
    dist.barrier()
    dist.destroy_process_group()
    return [table.values.tolist() for table in tables], late, message


def test_two_ranks_agree_with_one(tmp_path):
    source = NoiseSource(4, 6)
    alone = [
        made.score(source, source.items("train"), spec_of(source), seed=0)
        for made in (pruner(None), by_classifier(tmp_path, None))
    ]
    for values, late, message in run_ranks(of_rank, tmp_path, environments=[{"RANK": "0"}, {"RANK": "1"}]):
        for mine, table in zip(values, alone, strict=True):
            assert mine == table.values.tolist()
        assert late == [0, 10]  # one of them looked when the other had already added its result
        assert message == "rank 1 cannot"


def test_work_is_dealt_to_ranks_and_gathered_in_order():
    parts = [[f"piece {i}" for i in dealt(10, rank, 3)] for rank in range(3)]
    assert sorted(len(part) for part in parts) == [3, 3, 4]
    assert merged(10, parts) == [f"piece {i}" for i in range(10)]
    assert shared(3, lambda pieces: [2 * piece for piece in pieces]) == [0, 2, 4]
